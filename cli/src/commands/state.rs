//! `weir state show|set|reset`: watermarks of incremental sources.

use std::process::ExitCode;

use weir_coordinator::history;
use weir_spec::NodeName;

use crate::args::{Global, Output, StateCommand};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

pub(crate) async fn state(global: &Global, command: StateCommand) -> Result<ExitCode, Failure> {
    let state_dir = super::state_dir_here(global);
    match command {
        StateCommand::Show { pipeline, cluster } => {
            let watermarks = match Client::named(&cluster)? {
                Some(mut client) => client.watermarks(&pipeline).await?,
                None => history::watermarks(&state_dir, &pipeline).await?,
            };
            if global.output == Output::Json {
                output::json(&watermarks)?;
            } else {
                let rows = watermarks
                    .into_iter()
                    .map(|(source, watermark)| vec![source.to_string(), watermark])
                    .collect();
                output::table(&["SOURCE", "WATERMARK"], rows)?;
            }
        }
        StateCommand::Set { pipeline, source, value, cluster } => match Client::named(&cluster)? {
            Some(mut client) => client.set_watermark(&pipeline, &source, &value).await?,
            None => {
                let source = NodeName::new(source);
                history::set_watermark(&state_dir, &pipeline, &source, &value).await?;
            }
        },
        StateCommand::Reset { pipeline, source, cluster } => match Client::named(&cluster)? {
            Some(mut client) => client.reset_watermarks(&pipeline, source.as_deref()).await?,
            None => {
                let source = source.map(NodeName::new);
                history::reset_watermark(&state_dir, &pipeline, source.as_ref()).await?;
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

//! `weir audit RUN`: the proof. Exit code 1 when something differs.

use std::process::ExitCode;

use weir_connectors::Redactor;
use weir_coordinator::history;

use crate::args::{Global, Output};
use crate::failure::Failure;
use crate::{files, output};

pub(crate) async fn audit(
    global: &Global,
    id: &str,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    let state_dir = super::state_dir_here(global);
    let frozen = history::frozen(&state_dir, id).await?;
    let context = files::context(global, &frozen.base_dir, redactor)?;
    let report = history::audit(&state_dir, &frozen.run, &context).await?;
    if global.output == Output::Json {
        output::json(&report)?;
    } else {
        let nodes = report
            .nodes
            .iter()
            .map(|node| {
                vec![
                    node.node.to_string(),
                    output::count(node.rows_in),
                    output::count(node.rows_out),
                    output::count(node.filtered),
                    output::count(node.dead_lettered),
                    output::count(node.dropped),
                ]
            })
            .collect();
        output::table(&["NODE", "IN", "OUT", "FILTERED", "DEAD LETTERS", "DROPPED"], nodes)?;
        output::line("")?;
        let sinks = report
            .sinks
            .iter()
            .map(|sink| {
                vec![
                    sink.sink.to_string(),
                    output::count(sink.batches),
                    output::count(sink.rows_in_ledger),
                    output::count(sink.rows_in_target),
                    sink.checksum.clone(),
                ]
            })
            .collect();
        output::table(&["SINK", "BATCHES", "ROWS IN LEDGER", "ROWS IN TARGET", "CHECKSUM"], sinks)?;
        output::line("")?;
        for finding in &report.findings {
            output::line(&format!("DIFFERS  {finding}"))?;
        }
        output::line(if report.clean {
            "clean: every row that was read is accounted for, and the targets agree"
        } else {
            "NOT clean"
        })?;
    }
    Ok(if report.clean { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

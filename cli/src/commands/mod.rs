//! One file a verb. Each reads its files, asks the engine, prints.

mod audit;
mod backfill;
mod cluster;
mod connection;
mod dead_letters;
mod init;
mod logs;
mod pipelines;
mod plan;
mod preview;
mod run;
mod runs;
mod serve;
mod state;
mod submit;
mod tasks;
mod test;
mod validate;

use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;
use weir_connectors::Redactor;

use crate::args::{Cli, Command, Global};
use crate::client::Client;
use crate::failure::Failure;
use crate::{files, output};

pub(crate) async fn run(cli: Cli, redactor: &Redactor) -> Result<ExitCode, Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Run(arguments) if arguments.file == Path::new("show") => match &arguments.id {
            Some(id) => runs::show(global, id, &arguments.cluster).await,
            None => {
                Err(Failure::Usage("write `weir run show ID`; `weir runs` lists ids".to_owned()))
            }
        },
        Command::Run(arguments) => run::run(global, arguments, redactor).await,
        Command::Validate { files } => validate::validate(global, &files),
        Command::Plan(arguments) => plan::plan(global, &arguments, redactor).await,
        Command::Preview { file, node, limit, values } => {
            preview::preview(global, &file, &node, limit, &values, redactor).await
        }
        Command::Test { files } => test::test(global, &files).await,
        Command::Runs { pipeline, limit, cluster } => {
            runs::list(global, pipeline.as_deref(), limit, &cluster).await
        }
        Command::Logs { id, follow, cluster } => match Client::named(&cluster)? {
            Some(client) => logs::of_cluster(global, client, &id, follow).await,
            None => logs::logs(global, &id, follow).await,
        },
        Command::Retry { id, wait, cluster } => match Client::named(&cluster)? {
            Some(client) => submit::retry(global, client, &id, wait, &cluster).await,
            None => run::retry(global, &id, redactor).await,
        },
        Command::Audit { id, cluster } => audit::audit(global, &id, &cluster, redactor).await,
        Command::State(command) => state::state(global, command).await,
        Command::DeadLetters(command) => {
            dead_letters::dead_letters(global, command, redactor).await
        }
        Command::Connection(command) => connection::connection(global, command, redactor).await,
        Command::Submit(arguments) => submit::submit(global, arguments).await,
        Command::Pipelines { cluster } => pipelines::list(global, &cluster).await,
        Command::Pipeline(command) => pipelines::pipeline(global, command).await,
        Command::Cancel { id, cluster } => submit::cancel(global, &id, &cluster).await,
        Command::Tasks { id, cluster } => tasks::tasks(global, &id, &cluster).await,
        Command::Backfill(command) => backfill::backfill(global, command).await,
        Command::Backfills { pipeline, cluster } => {
            backfill::list(global, pipeline.as_deref(), &cluster).await
        }
        Command::Cluster(command) => cluster::cluster(global, command).await,
        Command::Coordinator(arguments) => serve::coordinator(global, arguments, redactor).await,
        Command::Executor(arguments) => serve::executor(global, arguments, redactor).await,
        Command::Schema => {
            output::json(&weir_spec::json_schema())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Init { dir } => init::init(&dir),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "weir", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The state folder for commands that name no pipeline file.
fn state_dir_here(global: &Global) -> std::path::PathBuf {
    files::state_dir(global, Path::new("."))
}

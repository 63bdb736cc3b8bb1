//! `weir`, the command line: thin commands around the engine, which it embeds,
//! or around a cluster, whose processes it also is.
//!
//! ```text
//! args ─▶ files (pipeline, weir.yaml, secrets, state folder) ─▶ commands/<verb> ─▶ engine ─▶ output
//!                                                                     └─▶ client ─▶ cluster ─▶
//! ```

mod allocator;
mod args;
mod client;
mod cluster_file;
mod commands;
mod failure;
mod files;
mod logging;
mod output;
mod progress;
mod signals;
mod token;
mod watching;

use std::process::ExitCode;

use clap::Parser as _;
use weir_connectors::Redactor;

use args::{Cli, Command, Output};

fn main() -> ExitCode {
    allocator::limit_arenas();
    let cli = Cli::parse();
    let redactor = Redactor::default();
    let default = match &cli.command {
        // openraft warns of every late vote.
        Command::Coordinator(_) | Command::Executor(_) => "info,openraft=error",
        _ => "off",
    };
    logging::init(cli.global.log.as_deref().unwrap_or(default), &redactor);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: failed to start the runtime: {error}");
            return ExitCode::from(1);
        }
    };
    let json = cli.global.output == Output::Json;
    let result = runtime.block_on(commands::run(cli, &redactor));
    // Blocking readers of abandoned tasks are not waited for: what they hold is not visible anyway.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(failure) => {
            let message = redactor.redact(failure.message());
            if json {
                println!("{}", serde_json::json!({ "error": message }));
            } else {
                eprintln!("error: {message}");
            }
            failure.exit_code()
        }
    }
}

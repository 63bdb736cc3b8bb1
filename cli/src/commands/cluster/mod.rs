//! `weir cluster …`: a cluster's processes on this machine, its members, and who may use it.

mod add_coordinator;
mod audit_log;
mod certificates;
mod drain;
mod layout;
mod members;
mod private_file;
mod process;
mod ready;
mod remove_coordinator;
mod start;
mod status;
mod stop;
mod token;
mod up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::args::{ClusterCommand, Global};
use crate::failure::Failure;

pub(super) async fn cluster(global: &Global, command: ClusterCommand) -> Result<ExitCode, Failure> {
    match command {
        ClusterCommand::Up(arguments) => up::up(global, arguments).await,
        ClusterCommand::Down { dir } => stop::down(&absolute(&dir)?).await,
        ClusterCommand::Start { name, dir } => start::start(&absolute(&dir)?, &name).await,
        ClusterCommand::Members { cluster } => members::members(global, &cluster).await,
        ClusterCommand::AddCoordinator { id, url, cluster } => {
            add_coordinator::add(global, id.zip(url), &cluster).await
        }
        ClusterCommand::RemoveCoordinator { name, cluster } => {
            remove_coordinator::remove(global, &name, &cluster).await
        }
        ClusterCommand::Drain { name, detach, cluster } => {
            drain::drain(global, &name, detach, &cluster).await
        }
        ClusterCommand::Undrain { name, cluster } => drain::undrain(global, &name, &cluster).await,
        ClusterCommand::AuditLog { limit, cluster } => {
            audit_log::audit_log(global, limit, &cluster).await
        }
        ClusterCommand::Token(command) => token::token(global, command).await,
        ClusterCommand::Status { hash, cluster } => status::status(global, hash, &cluster).await,
    }
}

/// Processes are started in one folder and found from another.
fn absolute(dir: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(dir).map_err(|error| Failure::Usage(format!("{}: {error}", dir.display())))
}

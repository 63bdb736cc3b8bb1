//! `weir cluster drain|undrain`: an executor leaves in good order, or stays after all.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::{absolute, process};
use crate::args::{ClusterArgs, Global, Output};
use crate::client::{self, Client, Endpoints};
use crate::cluster_file::ClusterFile;
use crate::failure::Failure;
use crate::output;

const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(200);

pub(super) async fn drain(
    global: &Global,
    name: &str,
    detach: bool,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let is_new = Client::required(cluster)?.drain_executor(name).await?;
    if !detach {
        until_it_has_left(name, cluster).await?;
    }
    if global.output == Output::Json {
        output::json(&serde_json::json!({ "executor": name, "changed": is_new }))?;
    } else if detach {
        output::line(&format!("{name} takes no tasks any more, and leaves"))?;
    } else {
        output::line(&format!("{name} has left"))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn undrain(
    global: &Global,
    name: &str,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let is_new = Client::required(cluster)?.undrain_executor(name).await?;
    if global.output == Output::Json {
        output::json(&serde_json::json!({ "executor": name, "changed": is_new }))?;
    } else {
        let text = "if it has left, or was just about to, start it again";
        output::line(&format!("{name} may take tasks; {text}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Until no leader knows it any more, and its process, if it is of this machine, has ended.
async fn until_it_has_left(name: &str, cluster: &ClusterArgs) -> Result<(), Failure> {
    let endpoints = Endpoints::required(cluster)?;
    let dir = cluster.dir.as_deref().map(absolute).transpose()?;
    let mut is_said = false;
    loop {
        let standings =
            client::standings(&endpoints.urls, &endpoints.access, PATIENCE, false).await;
        let leader = standings.iter().filter(|standing| standing.is_leader());
        let leader = leader.filter_map(|standing| standing.answer.as_ref().ok());
        if let Some(leader) = leader.max_by_key(|answer| answer.epoch) {
            let here = leader.executors.iter().find(|executor| executor.id == name);
            if !leader.draining.iter().any(|draining| draining == name) {
                return Err(Failure::Run(format!("{name} is not to leave any more")));
            }
            if here.is_none() && !lives(dir.as_deref(), name)? {
                return Ok(());
            }
            if let Some(here) = here.filter(|_| !is_said) {
                is_said = true;
                eprintln!("{name} has {} tasks; Ctrl-C ends the waiting only", here.busy_slots);
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Of a cluster of another machine nobody knows it here.
fn lives(dir: Option<&Path>, name: &str) -> Result<bool, Failure> {
    let Some(dir) = dir else { return Ok(false) };
    let file = ClusterFile::read(dir)?;
    Ok(file.executors.iter().any(|entry| entry.id == name && process::is_alive(&entry.process)))
}

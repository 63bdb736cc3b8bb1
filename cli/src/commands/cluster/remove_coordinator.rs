//! `weir cluster remove-coordinator`: a member less, dead or alive.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::{absolute, process};
use crate::args::{ClusterArgs, Global, Output};
use crate::client::Client;
use crate::cluster_file::ClusterFile;
use crate::failure::Failure;
use crate::output;

/// Until a process that has not ended is killed. Nothing that counts is on it any more.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

pub(super) async fn remove(
    global: &Global,
    name: &str,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let id = number(name)?;
    let dir = cluster.dir.as_deref().map(absolute).transpose()?;
    let _lock = dir.as_deref().map(ClusterFile::lock).transpose()?;
    let is_gone = Client::required(cluster)?.remove_coordinator(id).await?;
    if let Some(dir) = dir {
        stop(&dir, id).await?;
    }
    if global.output == Output::Json {
        output::json(&serde_json::json!({ "id": id, "changed": is_gone }))?;
    } else if is_gone {
        output::line(&format!("coordinator {id} takes part no longer"))?;
    } else {
        output::line(&format!("coordinator {id} took no part"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Its process, and its place in the cluster's file. Its folder and its log stay, for people.
async fn stop(dir: &Path, id: u64) -> Result<(), Failure> {
    let mut file = ClusterFile::read(dir)?;
    let Some(at) = file.coordinators.iter().position(|entry| entry.id == id) else {
        return Ok(());
    };
    let entry = file.coordinators.remove(at).process;
    process::terminate(&entry);
    // At once: `up` looks here for what to say of a process that has ended.
    file.write(dir)?;
    let asked = Instant::now();
    while process::is_alive(&entry) {
        if asked.elapsed() > PATIENCE {
            eprintln!("{} did not end by itself and was killed", entry.name);
            process::kill(&entry);
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn number(name: &str) -> Result<u64, Failure> {
    name.strip_prefix("coordinator-").unwrap_or(name).parse().map_err(|_| {
        Failure::Usage(format!("`{name}` is no coordinator: write `coordinator-N`, or its number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_is_named_as_it_is_listed() {
        let parsed = |name| number(name).map_err(|failure| failure.message().to_owned());
        assert_eq!(parsed("coordinator-12"), Ok(12));
        assert_eq!(parsed("3"), Ok(3));
        assert!(parsed("executor-1").is_err_and(|message| message.contains("coordinator-N")));
    }
}

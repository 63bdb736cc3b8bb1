//! `weir cluster drain|undrain`: an executor leaves in good order, or stays after all.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::{absolute, process};
use crate::args::{ClusterArgs, Global, Output};
use crate::client::{self, Client, Endpoints};
use crate::cluster_file::ClusterFile;
use crate::failure::Failure;
use crate::output;

const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(200);
/// Longer than an executor takes to find a new leader, which it does within its lease (3 s) and two seconds more.
const LONGEST_ARRIVAL: Duration = Duration::from_secs(6);

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

/// Until the leader does not know it any more, and its process has ended; of one on another machine, which cannot be looked
/// at, until the leader has not known it for so long that it would have come if it were still there.
async fn until_it_has_left(name: &str, cluster: &ClusterArgs) -> Result<(), Failure> {
    let endpoints = Endpoints::required(cluster)?;
    let dir = cluster.dir.as_deref().map(absolute).transpose()?;
    let mut is_said = false;
    let mut absence = Absence::default();
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
            let absent_for = absence.of(leader.epoch, here.is_some(), Instant::now());
            let is_gone = match dir.as_deref() {
                Some(dir) => here.is_none() && !lives(dir, name)?,
                None => absent_for.is_some_and(|absent_for| absent_for >= LONGEST_ARRIVAL),
            };
            if is_gone {
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

/// Since when a leader has not known an executor. A new one knows none at first.
#[derive(Debug, Default)]
struct Absence {
    epoch: u64,
    since: Option<Instant>,
}

impl Absence {
    fn of(&mut self, epoch: u64, is_here: bool, now: Instant) -> Option<Duration> {
        if is_here || epoch != self.epoch {
            *self = Self { epoch, since: None };
        }
        if is_here {
            return None;
        }
        Some(now.duration_since(*self.since.get_or_insert(now)))
    }
}

fn lives(dir: &Path, name: &str) -> Result<bool, Failure> {
    let file = ClusterFile::read(dir)?;
    Ok(file.executors.iter().any(|entry| entry.id == name && process::is_alive(&entry.process)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executor_that_a_new_leader_does_not_know_yet_has_not_left() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let mut absence = Absence::default();
        assert_eq!(absence.of(3, true, began), None);
        assert_eq!(absence.of(3, false, began + second), Some(Duration::ZERO));
        assert_eq!(absence.of(3, false, began + 3 * second), Some(2 * second));
        assert_eq!(absence.of(8, false, began + 9 * second), Some(Duration::ZERO));
        assert_eq!(absence.of(8, true, began + 10 * second), None);
        assert_eq!(absence.of(8, false, began + 11 * second), Some(Duration::ZERO));
    }
}

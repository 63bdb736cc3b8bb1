//! `weir cluster down`, and how `up` ends: executors first, so that what they have done is still noted.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::process;
use crate::cluster_file::{ClusterFile, ProcessEntry};
use crate::failure::Failure;
use crate::output;

/// Until whoever has not ended is killed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Until the coordinators are asked too: so long executors may commit what they have.
const EXECUTORS: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

pub(super) async fn down(dir: &Path) -> Result<ExitCode, Failure> {
    let _lock = ClusterFile::lock(dir)?;
    let file = ClusterFile::read(dir)?;
    let count = file.processes().filter(|entry| process::is_alive(entry)).count();
    let killed = stop(&file).await;
    let plural = if count == 1 { "" } else { "es" };
    output::line(&format!("{count} process{plural} stopped"))?;
    for name in killed {
        eprintln!("{name} did not end within {} s and was killed", PATIENCE.as_secs());
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the names of those that had to be killed.
pub(super) async fn stop(file: &ClusterFile) -> Vec<String> {
    let started = Instant::now();
    let executors: Vec<&ProcessEntry> = file.executors.iter().map(|entry| &entry.process).collect();
    let all: Vec<&ProcessEntry> = file.processes().collect();
    // Each is asked once: a second SIGTERM means at once.
    for entry in &executors {
        process::terminate(entry);
    }
    wait(&executors, started + EXECUTORS).await;
    for entry in &file.coordinators {
        process::terminate(&entry.process);
    }
    wait(&all, started + PATIENCE).await;
    let mut killed = Vec::new();
    for entry in all {
        if process::is_alive(entry) {
            process::kill(entry);
            killed.push(entry.name.clone());
        }
    }
    killed
}

async fn wait(entries: &[&ProcessEntry], until: Instant) {
    while entries.iter().any(|entry| process::is_alive(entry)) && Instant::now() < until {
        tokio::time::sleep(POLL).await;
    }
}

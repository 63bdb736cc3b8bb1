//! `weir cluster start NAME`: one process that has ended, as it was started before.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::{layout, process, ready};
use crate::client::Access;
use crate::cluster_file::ClusterFile;
use crate::failure::Failure;
use crate::output;

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn start(dir: &Path, name: &str) -> Result<ExitCode, Failure> {
    let lock = ClusterFile::lock(dir)?;
    let mut file = ClusterFile::read(dir)?;
    let access = Access::of_cluster(dir, &file)?;
    let known: Vec<String> = file.processes().map(|entry| entry.name.clone()).collect();
    let entry = file.process_mut(name).ok_or_else(|| {
        Failure::Usage(format!("no process `{name}`: there are {}", known.join(", ")))
    })?;
    if process::is_alive(entry) {
        return Err(Failure::Run(format!("{name} runs already, as process {}", entry.pid)));
    }
    // The cluster has been up: whoever has no ledger now has lost it.
    entry.arguments = layout::without_founding(&entry.arguments);
    let mut child = process::spawn(entry)?;
    let entry = entry.clone();
    file.write(dir)?;
    drop(lock);
    let started = Instant::now();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Failure::Run(format!(
                "{name} ended ({status}); the end of {}:{}",
                entry.log.display(),
                process::log_tail(&entry)
            )));
        }
        // Others may be dead on purpose: only this one is waited for.
        let Some(missing) = ready::missing_of(&file, &access, name).await else { break };
        if started.elapsed() >= PATIENCE {
            return Err(Failure::Unreachable(format!(
                "{name} runs as process {}, but after {} s {missing}",
                entry.pid,
                PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
    output::line(&format!("{name} runs as process {}", entry.pid))?;
    Ok(ExitCode::SUCCESS)
}

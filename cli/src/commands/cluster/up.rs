//! `weir cluster up`: starts the processes, waits until they have found each other, and stays with them.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ExitCode, ExitStatus};
use std::time::{Duration, Instant, SystemTime};

use weir_executor::storage::StorageAddress;

use super::layout::{self, Common};
use super::{absolute, certificates, private_file, process, ready, stop};
use crate::args::{Global, UpArgs};
use crate::client::Access;
use crate::cluster_file::{self, ClusterFile};
use crate::failure::Failure;
use crate::{output, signals};

const PROCESSES: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn up(global: &Global, arguments: UpArgs) -> Result<ExitCode, Failure> {
    let dir = absolute(&arguments.dir)?;
    let failed = |error: std::io::Error| {
        Failure::Usage(format!("failed to make {}: {error}", dir.display()))
    };
    std::fs::create_dir_all(&dir).map_err(failed)?;
    let lock = ClusterFile::lock(&dir)?;
    let mut file = planned(global, &arguments, &dir)?;
    if let Ok(StorageAddress::Folder(folder)) = file.storage.parse() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    for entry in file.processes() {
        std::fs::create_dir_all(dir.join(&entry.name)).map_err(failed)?;
    }
    if !arguments.insecure {
        let names = file.processes().map(|entry| entry.name.as_str());
        certificates::provide(&dir, names, SystemTime::now())?;
        provide_token(&cluster_file::admin_token(&dir))?;
    }
    let access = Access::of_cluster(&dir, &file)?;
    let mut children = Children::start(&mut file)?;
    let found = tokio::select! {
        found = children.wait_until_up(&file, &access) => found,
        () = signals::stop_asked() => Err(Failure::Run("stopped before the cluster was up".to_owned())),
    };
    if let Err(failure) = found.and_then(|()| file.write(&dir)) {
        children.stop(&file).await;
        return Err(failure);
    }
    drop(lock);
    print(&dir, &file)?;
    if arguments.detach {
        return Ok(ExitCode::SUCCESS);
    }
    output::line("Ctrl-C stops it.")?;
    tokio::select! {
        ended = children.until_all_ended(&dir) => return ended,
        () = signals::stop_asked() => {}
    }
    eprintln!("stopping");
    let _lock = ClusterFile::lock(&dir)?;
    // Some may have been started again by others since.
    children.stop(&ClusterFile::read(&dir)?).await;
    Ok(ExitCode::SUCCESS)
}

/// A new cluster, or the one that has been in this folder, at the same addresses.
fn planned(global: &Global, arguments: &UpArgs, dir: &Path) -> Result<ClusterFile, Failure> {
    let secrets_file = global.secrets_file.as_deref().map(absolute).transpose()?;
    let is_insecure = arguments.insecure;
    let old = ClusterFile::read_if_any(dir)?;
    let common = Common {
        memory_bytes: global.memory,
        secrets_file,
        log: global.log.clone(),
        is_insecure,
        storage: storage(arguments, old.as_ref())?,
    };
    let wanted = arguments.coordinators.map(|count| count.get());
    let scheme = if is_insecure { "http" } else { "https" };
    let wanted_executors = arguments.executors.map(|count| count.get());
    let (members, executors): (Vec<(u64, String)>, _) = match old {
        None => {
            let coordinators = wanted.unwrap_or(PROCESSES);
            let executors = wanted_executors.unwrap_or(PROCESSES);
            let mut urls = free_urls(scheme, coordinators + executors)?;
            let executors = urls.split_off(coordinators as usize);
            ((1..).zip(urls).collect(), executors)
        }
        Some(old) => {
            if let Some(entry) = old.processes().find(|entry| process::is_alive(entry)) {
                return Err(Failure::Run(format!(
                    "{} of the cluster in {dir} runs already, as process {}: stop it with `weir \
                     cluster down --dir {dir}`, or start what has ended with `weir cluster start \
                     NAME --dir {dir}`",
                    entry.name,
                    entry.pid,
                    dir = dir.display(),
                )));
            }
            if old.is_insecure() != is_insecure {
                let (was, remedy) = match old.is_insecure() {
                    true => ("without", "--insecure"),
                    false => ("with", "no --insecure"),
                };
                return Err(Failure::Usage(format!(
                    "the cluster in {} was made {was} TLS, which cannot be changed: give {remedy}",
                    dir.display(),
                )));
            }
            let members: Vec<(u64, String)> =
                old.coordinators.iter().map(|entry| (entry.id, entry.url.clone())).collect();
            if wanted.is_some_and(|wanted| members.len() != wanted as usize) {
                return Err(Failure::Usage(format!(
                    "the cluster in {dir} has {count} coordinators: start it as it is, and change that with \
                     `weir cluster add-coordinator --dir {dir}` or `weir cluster remove-coordinator NAME --dir {dir}`",
                    dir = dir.display(),
                    count = members.len()
                )));
            }
            let mut executors: Vec<String> =
                old.executors.iter().map(|entry| entry.url.clone()).collect();
            let known = u32::try_from(executors.len()).unwrap_or(u32::MAX);
            let count = wanted_executors.unwrap_or(known);
            executors.truncate(count as usize);
            executors.extend(free_urls(scheme, count.saturating_sub(known))?);
            (members, executors)
        }
    };
    Ok(layout::cluster(dir, &members, &executors, arguments.slots, &common))
}

/// As it was when the cluster was made, and as it was asked for.
fn storage(
    arguments: &UpArgs,
    old: Option<&ClusterFile>,
) -> Result<Option<StorageAddress>, Failure> {
    let wanted = match &arguments.storage {
        Some(StorageAddress::Folder(folder)) => Some(StorageAddress::Folder(absolute(folder)?)),
        wanted => wanted.clone(),
    };
    let Some(old) = old else { return Ok(wanted) };
    let known: StorageAddress = old.storage.parse().map_err(Failure::Usage)?;
    match wanted {
        Some(wanted) if wanted != known => Err(Failure::Usage(format!(
            "--storage {wanted}: what this cluster has is in {known}, and is not moved"
        ))),
        _ => Ok(Some(known)),
    }
}

/// Made once, from the system's random numbers.
fn provide_token(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let (one, two) = (uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    private_file::write(path, &format!("weir_{one}{two}\n"))
}

/// Where a cluster may listen: below the ports that systems give to outgoing connections, one of which could
/// hold a coordinator's when that is started again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Addresses that nobody listens at. All are held until the last has been found.
pub(super) fn free_urls(scheme: &str, count: u32) -> Result<Vec<String>, Failure> {
    // Two clusters that are started at once look at different ones.
    let first = (uuid::Uuid::new_v4().as_u128() % PORTS.len() as u128) as usize;
    let bound: Vec<(TcpListener, u16)> = (PORTS.cycle().skip(first).take(PORTS.len()))
        .filter_map(|port| Some((TcpListener::bind(("127.0.0.1", port)).ok()?, port)))
        .take(count as usize)
        .collect();
    if bound.len() < count as usize {
        return Err(Failure::Run(format!(
            "{count} free ports on 127.0.0.1 are needed, between {} and {}",
            PORTS.start, PORTS.end
        )));
    }
    Ok(bound.into_iter().map(|(_listener, port)| format!("{scheme}://127.0.0.1:{port}")).collect())
}

/// The processes that this command has started, by name.
struct Children(Vec<(String, Child)>);

impl Children {
    /// All or none.
    fn start(file: &mut ClusterFile) -> Result<Self, Failure> {
        let names: Vec<String> = file.processes().map(|entry| entry.name.clone()).collect();
        let mut children = Self(Vec::new());
        for name in names {
            let entry = file.process_mut(&name).expect("the name is of an entry");
            match process::spawn(entry) {
                Ok(child) => children.0.push((name, child)),
                Err(failure) => {
                    for (_, child) in &mut children.0 {
                        // Ended already is fine.
                        let _ = child.kill();
                        let _ = child.wait();
                    }
                    return Err(failure);
                }
            }
        }
        Ok(children)
    }

    async fn wait_until_up(&mut self, file: &ClusterFile, access: &Access) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            if let Some((name, status)) = self.ended().first() {
                let entry = file.processes().find(|entry| entry.name == *name);
                let entry = entry.expect("the name is of an entry");
                return Err(Failure::Run(format!(
                    "{name} ended ({status}); the end of {}:{}",
                    entry.log.display(),
                    process::log_tail(entry)
                )));
            }
            let Some(missing) = ready::missing(file, access).await else { return Ok(()) };
            if started.elapsed() >= PATIENCE {
                return Err(Failure::Run(format!(
                    "the cluster is not up after {} s: {missing}",
                    PATIENCE.as_secs()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Those that have ended since the last look.
    fn ended(&mut self) -> Vec<(String, ExitStatus)> {
        let mut ended = Vec::new();
        self.0.retain_mut(|(name, child)| match child.try_wait() {
            Ok(Some(status)) => {
                ended.push((name.clone(), status));
                false
            }
            Ok(None) | Err(_) => true,
        });
        ended
    }

    /// Says who ends. Whoever is dead stays dead: that is for the operator to decide.
    async fn until_all_ended(&mut self, dir: &Path) -> Result<ExitCode, Failure> {
        let mut all_ended_well = true;
        // Said with the next look: who removes a coordinator ends it, and then it leaves the cluster's file.
        let mut unsaid: Vec<(String, ExitStatus)> = Vec::new();
        loop {
            for (name, status) in std::mem::replace(&mut unsaid, self.ended()) {
                all_ended_well &= status.success();
                let file = ClusterFile::read(dir)?;
                eprintln!("{}", said_of_ended(dir, &file, &name, status));
            }
            if unsaid.is_empty()
                && self.0.is_empty()
                && !ClusterFile::read(dir)?.processes().any(process::is_alive)
            {
                eprintln!("all processes of the cluster have ended");
                return Ok(ExitCode::from(u8::from(!all_ended_well)));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn stop(&mut self, file: &ClusterFile) {
        for name in stop::stop(file).await {
            eprintln!("{name} did not end by itself and was killed");
        }
        for (_, child) in &mut self.0 {
            let _ = child.wait();
        }
    }
}

fn said_of_ended(dir: &Path, file: &ClusterFile, name: &str, status: ExitStatus) -> String {
    match file.processes().any(|entry| entry.name == name) {
        true => format!(
            "{name} ended ({status}): `weir cluster start {name} --dir {}` starts it again",
            dir.display()
        ),
        false => format!("{name} ended ({status}): it is no part of the cluster any more"),
    }
}

fn print(dir: &Path, file: &ClusterFile) -> Result<(), Failure> {
    for entry in &file.coordinators {
        let process = &entry.process;
        output::line(&format!("{:<14} process {:<8} {}", process.name, process.pid, entry.url))?;
    }
    for entry in &file.executors {
        output::line(&format!("{:<14} process {}", entry.process.name, entry.process.pid))?;
    }
    let dir = dir.display();
    if file.is_insecure() {
        output::line("INSECURE: whoever is on this machine may do anything with it")?;
    }
    output::line(&format!("logs: {dir}/*.log"))?;
    output::line(&format!("use it: weir submit FILE --run --wait --dir {dir}"))?;
    output::line(&format!("see it: weir cluster status --dir {dir}"))?;
    output::line(&format!("stop it: weir cluster down --dir {dir}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn a_process_that_was_removed_is_not_to_be_started_again() {
        let (dir, status) = (Path::new("/c"), ExitStatus::from_raw(0));
        let members = [1, 2].map(|id| (id, format!("http://127.0.0.1:400{id}")));
        let mut file = layout::cluster(dir, &members, &[], None, &Common::default());
        file.coordinators.remove(0);
        let removed = said_of_ended(dir, &file, "coordinator-1", status);
        assert!(!removed.contains("weir cluster start"), "{removed}");
        let other = said_of_ended(dir, &file, "coordinator-2", status);
        assert!(other.contains("weir cluster start coordinator-2 --dir /c"), "{other}");
    }
}

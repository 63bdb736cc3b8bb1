//! `weir cluster add-coordinator`: one more member, started here or elsewhere.

use std::path::Path;
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use weir_proto::v1::{Member, Role};

use super::{absolute, certificates, layout, process, ready, up};
use crate::args::{ClusterArgs, Global, Output};
use crate::client::{Access, Client};
use crate::cluster_file::{ClusterFile, CoordinatorEntry};
use crate::failure::Failure;
use crate::output;

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// `there`: the number and the URL of one that was started by hand.
pub(super) async fn add(
    global: &Global,
    there: Option<(u64, String)>,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    match (&cluster.dir, there) {
        (Some(dir), _) => add_here(global, &absolute(dir)?, cluster).await,
        (None, Some((id, url))) => {
            let is_new = Client::required(cluster)?.add_coordinator(id, &url).await?;
            said(global, id, &url, is_new)
        }
        (None, None) => Err(Failure::Usage(
            "which one? Give --dir DIR to have one started on this machine, or --id N and --url URL of one that \
             was started with `weir coordinator --join`"
                .to_owned(),
        )),
    }
}

async fn add_here(global: &Global, dir: &Path, cluster: &ClusterArgs) -> Result<ExitCode, Failure> {
    let _lock = ClusterFile::lock(dir)?;
    let mut file = ClusterFile::read(dir)?;
    let access = Access::of_cluster(dir, &file)?;
    let mut client = Client::required(cluster)?;
    let members = client.members().await?.members;
    let mut entry = match begun(&file, &members) {
        Some(begun) => begun.clone(),
        None => new_entry(dir, &file, &members)?,
    };
    let (id, url, name) = (entry.id, entry.url.clone(), entry.process.name.clone());
    let failed = |error| Failure::Run(format!("failed to make {}: {error}", dir.display()));
    std::fs::create_dir_all(dir.join(&name)).map_err(failed)?;
    if !file.is_insecure() {
        certificates::provide(dir, [name.as_str()].into_iter(), SystemTime::now())?;
    }
    let mut child = None;
    if !process::is_alive(&entry.process) {
        entry.process.arguments = layout::without_founding(&entry.process.arguments);
        child = Some(process::spawn(&mut entry.process)?);
    }
    file.coordinators.retain(|known| known.id != id);
    file.coordinators.push(entry.clone());
    // Known before it takes part: whatever happens now, it can be stopped and removed by its name.
    file.write(dir)?;
    let added = async {
        until_it_answers(&file, &access, &entry, child.as_mut()).await?;
        Ok(client.add_coordinator(id, &url).await?)
    };
    match added.await {
        Ok(is_new) => said(global, id, &url, is_new),
        Err(failure) => Err(undone(dir, failure, &entry)),
    }
}

/// One that an earlier attempt has started, and that does not take part yet.
fn begun<'file>(file: &'file ClusterFile, members: &[Member]) -> Option<&'file CoordinatorEntry> {
    let takes_part = |id| members.iter().any(|one| one.id == id && one.role() != Role::Learner);
    file.coordinators.iter().find(|entry| !takes_part(entry.id))
}

fn new_entry(
    dir: &Path,
    file: &ClusterFile,
    members: &[Member],
) -> Result<CoordinatorEntry, Failure> {
    let id = next_number(
        file.coordinators.iter().map(|entry| entry.id).chain(members.iter().map(|one| one.id)),
        |id| dir.join(layout::coordinator_name(id)).exists(),
    );
    let scheme = if file.is_insecure() { "http" } else { "https" };
    let url = up::free_urls(scheme, 1)?.remove(0);
    let model = file.coordinators.first().ok_or_else(|| {
        Failure::Usage(format!("{} has no coordinator left to learn from", dir.display()))
    })?;
    Ok(layout::joining(dir, model, id, &url))
}

/// A coordinator that has not come to take part may still do so: it is left for a second attempt, or for its removal.
fn undone(dir: &Path, failure: Failure, entry: &CoordinatorEntry) -> Failure {
    let (name, dir) = (&entry.process.name, dir.display());
    eprintln!(
        "{name} runs as process {}, and does not take part: the same command goes on with it, `weir cluster \
         remove-coordinator {name} --dir {dir}` stops it",
        entry.process.pid
    );
    failure
}

async fn until_it_answers(
    file: &ClusterFile,
    access: &Access,
    entry: &CoordinatorEntry,
    mut child: Option<&mut Child>,
) -> Result<(), Failure> {
    let name = &entry.process.name;
    let started = Instant::now();
    while let Some(missing) = ready::missing_of(file, access, name).await {
        let ended = child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        if let Some(status) = ended {
            return Err(Failure::Run(format!(
                "{name} ended ({status}); the end of {}:{}",
                entry.process.log.display(),
                process::log_tail(&entry.process)
            )));
        }
        if started.elapsed() >= PATIENCE {
            return Err(Failure::Unreachable(format!(
                "{name} runs, but after {} s {missing}",
                PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Beyond all that there are, and none that has left a folder behind.
fn next_number(known: impl Iterator<Item = u64>, was_here: impl Fn(u64) -> bool) -> u64 {
    let first = known.max().unwrap_or(0) + 1;
    (first..).find(|id| !was_here(*id)).expect("there are more numbers than folders")
}

fn said(global: &Global, id: u64, url: &str, is_new: bool) -> Result<ExitCode, Failure> {
    if global.output == Output::Json {
        output::json(&serde_json::json!({ "id": id, "url": url, "changed": is_new }))?;
    } else if is_new {
        output::line(&format!("coordinator {id} at {url} takes part"))?;
    } else {
        output::line(&format!("coordinator {id} at {url} takes part already"))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_attempt_has_started_is_gone_on_with() {
        let urls = [1, 2].map(|id| (id, format!("http://127.0.0.1:400{id}")));
        let common = layout::Common::default();
        let mut file = layout::cluster(Path::new("/c"), &urls, &[], None, &common);
        let member = |id, role: Role| Member { id, role: role.into(), ..Member::default() };
        let mut members = vec![member(1, Role::Leader), member(2, Role::Follower)];
        let begun = |file: &ClusterFile, members: &[Member]| begun(file, members).map(|one| one.id);
        assert_eq!(begun(&file, &members), None);
        let url = "http://127.0.0.1:4003";
        file.coordinators.push(layout::joining(Path::new("/c"), &file.coordinators[0], 3, url));
        assert_eq!(begun(&file, &members), Some(3));
        members.push(member(3, Role::Learner));
        assert_eq!(begun(&file, &members), Some(3), "it gets a copy");
        members[2] = member(3, Role::Follower);
        assert_eq!(begun(&file, &members), None);
    }

    #[test]
    fn a_number_is_given_once() {
        assert_eq!(next_number([1, 3, 2].into_iter(), |_| false), 4);
        assert_eq!(next_number([1].into_iter(), |id| id < 4), 4, "2 and 3 have been here");
    }
}

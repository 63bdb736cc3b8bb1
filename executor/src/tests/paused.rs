//! An attempt that was given up wakes up after its successor has finished: it touches none of its files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::fakes::*;
use super::whole::{scan, sorted, whole_task};
use crate::{Task, TaskError, TaskOutcome, run_task};

/// Every file of the run, with its content.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the folder can be listed") {
        let path = entry.expect("the folder can be listed").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let content = std::fs::read(&path).expect("the file can be read");
            found.insert(path, content);
        }
    }
    found
}

/// Attempt 2 to its end, then attempt 1, of which the ledger accepts nothing any more.
async fn run_both(world: &World, task: Task) -> Result<TaskOutcome, TaskError> {
    world.run(Task { attempt: 2, ..task.clone() }).await.expect("nothing fails");
    let accepted = files(world.folder.path());
    let (events, _) = tokio::sync::mpsc::unbounded_channel();
    let log = Arc::new(FakeLog { fence_intent: Some(0), ..FakeLog::default() });
    let woken = run_task(task, Arc::clone(&world.env), log, events, CancellationToken::new()).await;
    let now = files(world.folder.path());
    assert!(now.len() > accepted.len(), "attempt 1 has written files of its own");
    for (path, content) in accepted {
        assert_eq!(now.get(&path), Some(&content), "{}", path.display());
    }
    woken
}

fn rejecting() -> FakeSource {
    FakeSource { reject_every: Some(50), ..FakeSource::default() }
}

#[tokio::test]
async fn streaming_attempts_have_checkpoints_and_dead_letters_of_their_own() {
    let world = World::new(rejecting(), Leaf::morsel);
    let woken = run_both(&world, streaming_task(vec![split(0, 1000)], 280)).await;
    woken.expect_err("the ledger knows a later attempt");
    assert!(world.log.commits().len() > 1);

    // What it has left is removed by whoever comes next.
    let start = world.log.next_start();
    assert_eq!(start, None, "attempt 2 has finished the slice");
    let left = files(world.folder.path());
    world.log.commits.lock().expect("not poisoned").clear();
    world.log.done.lock().expect("not poisoned").clear();
    world.sink.published.lock().expect("not poisoned").clear();
    let task = streaming_task(vec![split(0, 1000)], 280);
    world.run(Task { attempt: 3, ..task }).await.expect("nothing fails");
    let now = files(world.folder.path());
    assert!(left.keys().all(|path| !now.contains_key(path)), "{left:?}");
}

#[tokio::test]
async fn whole_attempts_have_exchanges_and_dead_letters_of_their_own() {
    let world = World::new(rejecting(), || sorted(scan()));
    run_both(&world, whole_task(1)).await.expect("nobody is asked yet");
}

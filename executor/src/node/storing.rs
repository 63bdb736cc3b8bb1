//! Kept outputs on their way into the storage (`checkpoint.exchange: async`).
//!
//! ```text
//! task ends ─▶ on its way ─▶ stored ─▶ the leader knows: in the ledger, or unwanted
//!                              └─▶ told again until then
//! ```
//!
//! Nothing waits for it but this process itself, when it is about to leave.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use weir_proto::internal::StoredOutput;

use crate::exchange::StoreJob;

/// Outputs on their way at the same time: the rest of the network is for rows that somebody waits for.
const AT_ONCE: usize = 2;

#[derive(Debug)]
pub(super) struct Storing {
    /// Also of what nobody wants any more, until it is removed.
    work: JoinSet<io::Result<()>>,
    keys: HashMap<Id, Key>,
    open: BTreeMap<Key, Progress>,
    places: Arc<Semaphore>,
}

/// Names of outputs are those of a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    run: String,
    stage: u32,
    file_id: String,
}

#[derive(Debug)]
struct Progress {
    job: Arc<StoreJob>,
    is_stored: bool,
    unwanted: CancellationToken,
}

impl Key {
    fn of(output: &StoredOutput) -> Self {
        let StoredOutput { run, stage, file_id, .. } = output;
        Self { run: run.clone(), stage: *stage, file_id: file_id.clone() }
    }
}

impl Storing {
    pub(super) fn new() -> Self {
        let (work, keys, open) = (JoinSet::new(), HashMap::new(), BTreeMap::new());
        Self { work, keys, open, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    pub(super) fn start(&mut self, job: StoreJob) {
        let (key, job, unwanted) = (Key::of(&job.output), Arc::new(job), CancellationToken::new());
        let work = {
            let (job, unwanted, places) =
                (Arc::clone(&job), unwanted.clone(), Arc::clone(&self.places));
            async move { job.store(&places, &unwanted).await }
        };
        self.keys.insert(self.work.spawn(work).id(), key.clone());
        self.open.insert(key, Progress { job, is_stored: false, unwanted });
    }

    /// The next output whose files are all in the storage; `None` while there is none that could be.
    pub(super) async fn next_stored(&mut self) -> Option<StoredOutput> {
        loop {
            let (id, result) = match self.work.join_next_with_id().await? {
                Ok((id, result)) => (id, result),
                Err(ended) => (ended.id(), Err(io::Error::other(ended))),
            };
            let Some(key) = self.keys.remove(&id) else { continue };
            // What nobody wants is not known any more.
            let Some(progress) = self.open.get_mut(&key) else { continue };
            match result {
                Ok(()) => {
                    progress.is_stored = true;
                    return Some(progress.job.output.clone());
                }
                Err(error) => {
                    // It is still here: as good as with `off`.
                    let Key { run, stage, file_id } = &key;
                    tracing::warn!(run, stage, file_id, %error, "kept rows are not stored");
                    self.open.remove(&key);
                }
            }
        }
    }

    /// Of which the leader has not said yet that it knows.
    pub(super) fn stored(&self) -> impl Iterator<Item = &StoredOutput> {
        let stored = self.open.values().filter(|progress| progress.is_stored);
        stored.map(|progress| &progress.job.output)
    }

    /// The leader knows: it is in the ledger, or nobody wants it there.
    pub(super) fn noted(&mut self, output: &StoredOutput, is_wanted: bool) {
        let Some(progress) = self.open.remove(&Key::of(output)) else { return };
        let StoredOutput { run, stage, file_id, .. } = output;
        tracing::debug!(run, stage, file_id, is_wanted, "kept rows are stored");
        if !is_wanted {
            self.remove(progress.job);
        }
    }

    /// Nobody will read outputs of the run again. What the leader knows of he removes; the rest may have come to the
    /// storage behind him.
    pub(super) fn forget(&mut self, run_folder: &str) {
        let mut stored = Vec::new();
        self.open.retain(|_, progress| {
            let is_over = progress.job.run_folder == run_folder;
            match progress.is_stored {
                true if is_over => stored.push(Arc::clone(&progress.job)),
                // It removes what it has begun.
                false if is_over => progress.unwanted.cancel(),
                _ => {}
            }
            !is_over
        });
        stored.into_iter().for_each(|job| self.remove(job));
    }

    fn remove(&mut self, job: Arc<StoreJob>) {
        self.work.spawn(async move {
            job.remove().await;
            Ok(())
        });
    }

    /// Outputs that the storage does not have yet, or of which the leader does not know it.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// Whether nothing would be lost if this process left.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.work.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::Storage;

    fn job(folder: &Path, file_id: &str, run_folder: &str) -> StoreJob {
        let own = folder.join("own").join(run_folder);
        let file = own.join(format!("exchange/1/{file_id}/0.arrow"));
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("writable");
        std::fs::write(&file, file_id).expect("writable");
        StoreJob {
            run_folder: run_folder.to_owned(),
            output: StoredOutput {
                run: run_folder.to_owned(),
                stage: 1,
                slice: 2,
                file_id: file_id.to_owned(),
            },
            partitions: 0..1,
            own,
            storage: Storage::folder(folder.join(run_folder)),
        }
    }

    fn stored(folder: &Path, file_id: &str, run_folder: &str) -> Option<String> {
        let file = format!("{run_folder}/exchange/1/{file_id}/0.arrow");
        std::fs::read_to_string(folder.join(file)).ok()
    }

    #[tokio::test]
    async fn what_is_stored_is_told_until_it_is_noted() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut storing = Storing::new();
        storing.start(job(folder.path(), "0-1-1", "a"));
        assert_eq!(storing.stored().count(), 0, "it is on its way");
        assert!(!storing.is_empty());
        let output = storing.next_stored().await.expect("it is stored");
        assert_eq!(stored(folder.path(), "0-1-1", "a").as_deref(), Some("0-1-1"));
        assert_eq!(storing.stored().collect::<Vec<_>>(), [&output]);
        assert!(!storing.is_empty(), "the leader does not know yet");
        storing.noted(&output, true);
        assert!(storing.is_empty());
        assert_eq!(stored(folder.path(), "0-1-1", "a").as_deref(), Some("0-1-1"));
    }

    #[tokio::test]
    async fn what_nobody_wants_is_removed_and_neither_that_nor_what_fails_is_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut storing = Storing::new();
        storing.start(job(folder.path(), "0-1-1", "a"));
        storing.start(job(folder.path(), "1-1-1", "b"));
        // Of this one there is the first file, and not the second.
        let half = StoreJob { partitions: 0..2, ..job(folder.path(), "2-1-1", "b") };
        storing.start(half);
        // The run is over.
        storing.forget("a");
        let output = storing.next_stored().await.expect("that of the other run");
        assert_eq!(output.file_id, "1-1-1");
        // Another attempt has won.
        storing.noted(&output, false);
        assert_eq!(storing.next_stored().await, None);
        assert!(storing.is_empty(), "what cannot be stored is not waited for");
        for (file_id, run) in [("0-1-1", "a"), ("1-1-1", "b"), ("2-1-1", "b")] {
            assert_eq!(stored(folder.path(), file_id, run), None);
        }
    }

    #[tokio::test]
    async fn what_has_come_to_the_storage_of_a_run_that_is_over_is_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut storing = Storing::new();
        storing.start(job(folder.path(), "0-1-1", "a"));
        storing.start(job(folder.path(), "1-1-1", "a"));
        let known = storing.next_stored().await.expect("it is stored");
        storing.noted(&known, true);
        let unknown = storing.next_stored().await.expect("it is stored, too");
        storing.forget("a");
        assert_eq!(storing.next_stored().await, None);
        assert!(storing.is_empty());
        assert_eq!(stored(folder.path(), &unknown.file_id, "a"), None);
        assert!(stored(folder.path(), &known.file_id, "a").is_some(), "the leader removes it");
    }

    #[tokio::test]
    async fn nothing_is_on_its_way_while_others_have_the_places() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut storing = Storing::new();
        let places = Arc::clone(&storing.places);
        let mut taken = Vec::new();
        while let Ok(place) = places.try_acquire() {
            taken.push(place);
        }
        for number in 0..5 {
            storing.start(job(folder.path(), &format!("{number}-1-1"), "a"));
        }
        {
            let mut waiting = std::pin::pin!(storing.next_stored());
            for _ in 0..100 {
                tokio::task::yield_now().await;
                assert!(futures::poll!(waiting.as_mut()).is_pending());
            }
            taken.pop();
            waiting.await.expect("it is stored");
        }
        // One place is enough for all of them.
        for _ in 1..5 {
            storing.next_stored().await.expect("it is stored");
        }
        assert_eq!(storing.stored().count(), 5);
    }
}

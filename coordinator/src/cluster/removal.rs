//! Rows that stages of a run kept in the storage: when it has succeeded they are of no use, and nobody waits until they
//! are removed.
//!
//! ```text
//! the run succeeds ─▶ .to-remove/<run>-<epoch>, a rename ─▶ removed beside what follows
//!                └──▶ removed before it ends: in an object store, which has no folders, and while others are removed
//! ```
//!
//! A leader that dies in between leaves them there. Whoever removes something, or begins to lead, removes all that is there.

use std::io::ErrorKind;
use std::sync::Arc;

use weir_executor::RunFolder;
use weir_executor::storage::Storage;
use weir_ledger::RunId;

/// No pipeline can be called so.
const FOLDER: &str = ".to-remove";

/// Removes one thing at a time, so that a storage gets room as fast as runs end.
#[derive(Debug)]
pub(super) struct Removal {
    storage: Storage,
    at_work: Arc<tokio::sync::Mutex<()>>,
}

impl Removal {
    pub(super) fn new(storage: Storage) -> Self {
        Self { storage: storage.hasty(), at_work: Arc::default() }
    }

    /// Takes the rows out of a run's folder, if that is quickly done. Otherwise they stay.
    pub(super) async fn take(&self, of: &RunFolder, run: &RunId, epoch: u64) {
        let Ok(at_work) = Arc::clone(&self.at_work).try_lock_owned() else { return };
        let name = format!("{FOLDER}/{run}-{epoch}");
        match of.storage().move_folder(RunFolder::EXCHANGE, &self.storage, &name).await {
            Ok(true) => {
                let storage = self.storage.clone();
                tokio::spawn(async move {
                    remove(&storage).await;
                    drop(at_work);
                });
            }
            Ok(false) => {}
            // As a rule the run has kept none.
            Err(cause) if cause.kind() == ErrorKind::NotFound => {}
            Err(cause) => {
                let path = of.storage().shown(RunFolder::EXCHANGE);
                tracing::warn!(path, %cause, "rows are not moved, and removed where they are");
            }
        }
    }

    /// What other leaders have not come to.
    pub(super) async fn remove_what_is_left(self: Arc<Self>) {
        let _at_work = self.at_work.lock().await;
        remove(&self.storage).await;
    }
}

async fn remove(storage: &Storage) {
    if let Err(error) = storage.delete_all(FOLDER).await {
        let path = storage.shown(FOLDER);
        tracing::warn!(path, %error, "not everything is removed; tried again when a run has succeeded");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::cluster::tests::wait_until;

    struct Place {
        folder: tempfile::TempDir,
        removal: Arc<Removal>,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let removal = Arc::new(Removal::new(Storage::folder(folder.path())));
            Self { folder, removal }
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.folder.path().join(name)
        }

        fn put(&self, name: &str) {
            let file = self.path(name);
            fs::create_dir_all(file.parent().unwrap_or(Path::new(""))).expect("room");
            fs::write(file, "rows").expect("room");
        }

        async fn take(&self) {
            let of = RunFolder::new(self.removal.storage.within("p/runs/r"));
            self.removal.take(&of, &RunId("r".into()), 3).await;
        }
    }

    const KEPT: &str = "p/runs/r/exchange/0/rows.arrow";

    /// The thread of this test does not go on with what was spawned before it waits.
    #[tokio::test]
    async fn rows_are_out_of_the_way_at_once_and_removed_later() {
        let place = Place::new();
        place.put(KEPT);
        place.put(".to-remove/q-2/0/rows.arrow");
        place.take().await;
        assert!(place.path(".to-remove/r-3/0/rows.arrow").exists());
        assert!(!place.path("p/runs/r/exchange").exists() && place.path("p/runs/r").exists());
        wait_until("room, also where another leader was", || !place.path(FOLDER).exists()).await;
        // A run that has kept nothing.
        place.take().await;
        assert!(!place.path(FOLDER).exists() && place.path("p/runs/r").exists());
    }

    #[tokio::test]
    async fn what_cannot_be_moved_stays_and_so_does_what_comes_while_others_are_removed() {
        let place = Place::new();
        place.put(KEPT);
        place.put(".to-remove/r-3/1/rows.arrow");
        place.take().await;
        assert!(place.path(KEPT).exists(), "the name is taken");
        let at_work = place.removal.at_work.lock().await;
        place.take().await;
        assert!(place.path(KEPT).exists(), "something is being removed");
        drop(at_work);
        Arc::clone(&place.removal).remove_what_is_left().await;
        assert!(!place.path(FOLDER).exists());
        place.take().await;
        assert!(!place.path(KEPT).exists());
    }

    #[tokio::test]
    async fn a_storage_that_is_not_there_is_not_made() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = Storage::folder(folder.path().join("unmounted"));
        let of = RunFolder::new(storage.within("p/runs/r"));
        Removal::new(storage).take(&of, &RunId("r".into()), 3).await;
        assert!(!folder.path().join("unmounted").exists());
    }
}

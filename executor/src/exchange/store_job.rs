//! A kept output on its way into the storage.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use weir_plan::StageId;
use weir_proto::internal::StoredOutput;

use crate::RunFolder;
use crate::storage::Storage;

/// Takes files that this process keeps to the storage as well. They are under the name of one attempt there, which
/// nothing else uses. Many may wait: what it holds does not grow with the number of files.
#[derive(Clone, Debug)]
pub struct StoreJob {
    pub(crate) run_folder: String,
    pub(crate) output: StoredOutput,
    /// One file each.
    pub(crate) partitions: Range<u32>,
    /// The run's folder on this machine.
    pub(crate) own: PathBuf,
    /// The run's folder in it.
    pub(crate) storage: Storage,
}

impl StoreJob {
    /// Returns once the storage has all files; or none of them, when it does not take them, or nobody wants them any
    /// more (`unwanted`). Waits for one of the `places` first, which other jobs have.
    pub(crate) async fn store(
        &self,
        places: &Semaphore,
        unwanted: &CancellationToken,
    ) -> io::Result<()> {
        let _place = places.acquire().await.map_err(io::Error::other)?;
        let mut stored = Ok(());
        let mut has_begun = false;
        for partition in self.partitions.clone() {
            if unwanted.is_cancelled() || stored.is_err() {
                break;
            }
            has_begun = true;
            let name = self.file(partition);
            stored = self.storage.upload(self.own.join(&name), &name).await;
        }
        if has_begun && (unwanted.is_cancelled() || stored.is_err()) {
            self.remove().await;
        }
        stored
    }

    /// By its name in both folders.
    fn file(&self, partition: u32) -> String {
        let StoredOutput { stage, file_id, .. } = &self.output;
        RunFolder::exchange_file(StageId(*stage), file_id, partition as usize)
    }

    /// What the storage has of it. What cannot be removed is removed with the run.
    pub(crate) async fn remove(&self) {
        let StoredOutput { stage, file_id, .. } = &self.output;
        let folder = RunFolder::exchange_output(StageId(*stage), file_id);
        if let Err(error) = self.storage.clone().hasty().delete_all(&folder).await {
            let path = self.storage.shown(&folder);
            tracing::warn!(path, %error, "rows that nobody wants are left");
        }
    }
}

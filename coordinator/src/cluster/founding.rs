//! One storage belongs to one ledger. A coordinator that has lost its disk knows nothing of the ledger that it has been
//! part of, and with `--members` it would found a second one, lead it, and take the executors and files of the first.
//!
//! ```text
//! the ledger has an id (its first epoch) ─▶ created in the storage, once ─▶ who finds another id there does not lead
//! ```
//!
//! The id is in the ledger before it is in the storage: whoever leads knows it from there, so that a ledger without
//! an id has certainly not written the one that it finds.

use std::io;
use std::time::Duration;

use weir_executor::storage::Storage;

use crate::EngineError;
use crate::pipeline_files::storage_error;

/// No pipeline can be called so.
const MARKER: &str = ".ledger-id";

/// A leader that waits for its storage for longer goes on without knowing.
const LONGEST_LOOK: Duration = Duration::from_secs(3);

/// Whose a storage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    ThisLedger,
    Nobody,
    /// It does not answer.
    Unknown,
}

/// Refused, if it is another ledger's. `own`: the id of this one, once it has begun.
pub(super) async fn look(storage: &Storage, own: Option<&str>) -> Result<Owner, EngineError> {
    // A new cluster may be the first to use its folder. That of an older one may not be mounted yet, and is not made.
    let found = in_time(async {
        if own.is_some() {
            storage.check().await?;
        }
        read(storage).await
    });
    match (found.await, own) {
        (Ok(None), _) => Ok(Owner::Nobody),
        (Ok(Some(other)), own) if own != Some(&other) => Err(foreign(storage, own, &other)),
        (Ok(Some(_)), _) => Ok(Owner::ThisLedger),
        (Err(error), Some(_)) => {
            tracing::warn!(path = storage.shown(MARKER), %error, "whose the storage is will be seen later");
            Ok(Owner::Unknown)
        }
        (Err(error), None) => Err(storage_error("read", storage, MARKER, error)),
    }
}

/// Makes a storage that was nobody's this ledger's.
pub(super) async fn claim(storage: &Storage, own: &str) -> Result<(), EngineError> {
    let created = in_time(storage.create(MARKER, format!("{own}\n"))).await;
    match created {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        created => return created.map_err(|error| storage_error("write", storage, MARKER, error)),
    }
    // Somebody else was faster, perhaps this ledger's leader before.
    let found = in_time(read(storage)).await;
    match found.map_err(|error| storage_error("read", storage, MARKER, error))? {
        Some(other) if other != own => Err(foreign(storage, Some(own), &other)),
        _ => Ok(()),
    }
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let worked = tokio::time::timeout(LONGEST_LOOK, work).await;
    worked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn read(storage: &Storage) -> io::Result<Option<String>> {
    match storage.get(MARKER).await {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn foreign(storage: &Storage, own: Option<&str>, other: &str) -> EngineError {
    let own = own.map_or_else(|| "is new".to_owned(), |own| format!("is {own}"));
    let path = storage.shown(MARKER);
    EngineError::Refused(format!(
        "the storage is that of the ledger {other}, as {path} says, and this coordinator's ledger {own}. If this \
         coordinator has lost its disk, remove it from its cluster (`weir cluster remove-coordinator`) and add a new \
         one (`weir cluster add-coordinator`). If this is to be another cluster, give it a `--storage` of its own. \
         If all copies of the ledger {other} are lost for good, delete {path}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_storage_belongs_to_the_first_ledger_that_claims_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = Storage::folder(folder.path().join("storage"));
        assert_eq!(look(&storage, None).await.ok(), Some(Owner::Nobody));
        claim(&storage, "one").await.expect("it is nobody's");
        claim(&storage, "one").await.expect("it is its own");
        assert_eq!(look(&storage, Some("one")).await.ok(), Some(Owner::ThisLedger));
        for refused in [
            look(&storage, None).await.map(drop),
            look(&storage, Some("two")).await.map(drop),
            claim(&storage, "two").await,
        ] {
            let error = refused.expect_err("it is another one's").to_string();
            assert!(error.contains("one, as") && error.contains(".ledger-id"), "{error}");
        }
    }

    /// Its folder is mounted late.
    #[tokio::test]
    async fn a_storage_that_is_not_there_is_made_for_a_new_ledger_only() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = Storage::folder(folder.path().join("storage"));
        assert_eq!(look(&storage, Some("one")).await.ok(), Some(Owner::Unknown));
        assert_eq!(look(&storage, None).await.ok(), Some(Owner::Nobody));
    }
}

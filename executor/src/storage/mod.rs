//! Where a run's files are: a folder, or an object store.
//!
//! ```text
//! plan, checkpoints, dead letters, durable exchanges ─▶ Storage ─┬▶ local:   files of a folder
//!                                                                └▶ objects: S3, Azure, GCS
//! ```
//!
//! A name is relative to the storage, its parts separated by `/`. What is under a name is either all there
//! and durable, or not there. Errors are [`io::Error`]s: `NotFound`, `AlreadyExists`, and [`is_unavailable`]
//! for a store that has not answered for as long as the caller wanted to wait.

mod local;

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;

use self::local::Local;
pub(crate) use self::local::{off_thread, remove_if_present};

/// A folder of a storage, and what is below it.
#[derive(Clone, Debug)]
pub struct Storage {
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Local(Local),
}

impl Storage {
    /// A folder of this machine, or one that several machines share.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self { place: Place::Local(Local::new(path.into())) }
    }

    /// The same, for a simulation: files are written and read where it is asked for, since other threads
    /// would do it at another moment each time.
    pub fn inline(self) -> Self {
        match self.place {
            Place::Local(local) => Self { place: Place::Local(local.inline()) },
        }
    }

    /// The folder below this one.
    pub fn within(&self, folder: &str) -> Self {
        match &self.place {
            Place::Local(local) => Self { place: Place::Local(local.within(folder)) },
        }
    }

    /// Its path, where it has one.
    pub fn local(&self) -> Option<&Path> {
        match &self.place {
            Place::Local(local) => Some(&local.root),
        }
    }

    /// What is under a name, for messages: a path or a URL.
    pub fn shown(&self, name: &str) -> String {
        match &self.place {
            Place::Local(local) => local.root.join(name).display().to_string(),
        }
    }

    /// All of a file, which is known to be small.
    pub async fn get(&self, name: &str) -> io::Result<Bytes> {
        match &self.place {
            Place::Local(local) => local.get(name).await,
        }
    }

    /// A file piece by piece: only a few are in memory at a time.
    pub async fn read(&self, name: &str) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        match &self.place {
            Place::Local(local) => local.read(name).await,
        }
    }

    /// Writes a file in place of what may be there.
    pub async fn put(&self, name: &str, bytes: impl Into<Bytes>) -> io::Result<()> {
        let bytes = bytes.into();
        match &self.place {
            Place::Local(local) => local.put(name, bytes).await,
        }
    }

    /// Writes a file that is not there yet; of several that do so at the same time one succeeds, and the
    /// others get `AlreadyExists`.
    pub async fn create(&self, name: &str, bytes: impl Into<Bytes>) -> io::Result<()> {
        let bytes = bytes.into();
        match &self.place {
            Place::Local(local) => local.create(name, bytes).await,
        }
    }

    /// Moves a finished file of this machine here. In a folder it has to be below [`Self::local`].
    pub async fn adopt(&self, file: PathBuf, name: &str) -> io::Result<()> {
        match &self.place {
            Place::Local(local) => local.adopt(file, name).await,
        }
    }

    /// The names of all files below a folder, relative to this storage. A folder that is not there has
    /// none.
    pub async fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        match &self.place {
            Place::Local(local) => local.list(folder).await,
        }
    }

    /// Removes a file that may be missing.
    pub async fn delete(&self, name: &str) -> io::Result<()> {
        match &self.place {
            Place::Local(local) => local.delete(name).await,
        }
    }

    /// Removes the files directly in a folder that `is_meant` says by their names, unfinished ones among
    /// them.
    pub async fn delete_in(
        &self,
        folder: &str,
        is_meant: impl Fn(&str) -> bool + Send + 'static,
    ) -> io::Result<()> {
        match &self.place {
            Place::Local(local) => local.delete_in(folder, is_meant).await,
        }
    }

    /// Removes a folder that may be missing, with everything below it.
    pub async fn delete_all(&self, folder: &str) -> io::Result<()> {
        match &self.place {
            Place::Local(local) => local.delete_all(folder).await,
        }
    }
}

/// Whether the store has not answered for as long as the caller wanted to wait: later it may.
pub fn is_unavailable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut
}

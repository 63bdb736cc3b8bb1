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

mod address;
mod local;
mod objects;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

pub use self::address::{SECRET_VARIABLES, Service, StorageAddress};
use self::local::Local;
pub(crate) use self::local::{off_thread, remove_if_present};
use self::objects::Objects;

/// How long a store that does not answer is asked, unless somebody can wait for longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder of a storage, and what is below it.
#[derive(Clone, Debug)]
pub struct Storage {
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Local(Local),
    Objects(Objects),
}

impl Storage {
    /// A folder of this machine, or one that several machines share.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self { place: Place::Local(Local::new(path.into())) }
    }

    /// Opens what was written on a command line, with what the environment says. Asks nobody yet.
    pub fn open(address: &StorageAddress) -> Result<Self, String> {
        // What is no text says nothing about a storage.
        let text = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::open_with(address, text)
    }

    /// As [`Self::open`], with other variables than those of this process.
    pub fn open_with(
        address: &StorageAddress,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, String> {
        match address {
            StorageAddress::Folder(path) => Ok(Self::folder(path)),
            StorageAddress::Objects { service, bucket, prefix } => {
                let environment = environment.into_iter().collect::<Vec<_>>();
                let objects = Objects::open(*service, bucket, prefix, &environment);
                let failed = |error| format!("the storage {address} cannot be used: {error}");
                Ok(Self { place: Place::Objects(objects.map_err(failed)?) })
            }
        }
    }

    /// The same, for somebody who can wait until the store answers, however long that takes.
    pub fn waiting(self) -> Self {
        self.with_patience(None)
    }

    /// The same, for somebody who cannot.
    pub fn hasty(self) -> Self {
        self.with_patience(Some(PATIENCE))
    }

    fn with_patience(self, patience: Option<Duration>) -> Self {
        match self.place {
            Place::Local(_) => self,
            Place::Objects(objects) => {
                Self { place: Place::Objects(objects.with_patience(patience)) }
            }
        }
    }

    /// Whether it can be used now; `Err` says why not.
    pub async fn check(&self) -> io::Result<()> {
        match &self.place {
            Place::Local(local) if local.root.is_dir() => Ok(()),
            Place::Local(_) => Err(io::Error::new(io::ErrorKind::NotFound, "it is not there")),
            Place::Objects(objects) => objects.check().await,
        }
    }

    /// The same, for a simulation: files are written and read where it is asked for, since other threads
    /// would do it at another moment each time.
    pub fn inline(self) -> Self {
        match self.place {
            Place::Local(local) => Self { place: Place::Local(local.inline()) },
            Place::Objects(_) => self,
        }
    }

    /// The folder below this one.
    pub fn within(&self, folder: &str) -> Self {
        match &self.place {
            Place::Local(local) => Self { place: Place::Local(local.within(folder)) },
            Place::Objects(objects) => Self { place: Place::Objects(objects.within(folder)) },
        }
    }

    /// Its path, where it has one.
    pub fn local(&self) -> Option<&Path> {
        match &self.place {
            Place::Local(local) => Some(&local.root),
            Place::Objects(_) => None,
        }
    }

    /// What is under a name, for messages: a path or a URL.
    pub fn shown(&self, name: &str) -> String {
        match &self.place {
            Place::Local(local) => local.root.join(name).display().to_string(),
            Place::Objects(objects) => objects.shown(name),
        }
    }

    /// All of a file, which is known to be small.
    pub async fn get(&self, name: &str) -> io::Result<Bytes> {
        match &self.place {
            Place::Local(local) => local.get(name).await,
            Place::Objects(objects) => objects.get(name).await,
        }
    }

    /// A file piece by piece: only a few are in memory at a time.
    pub async fn read(&self, name: &str) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        match &self.place {
            Place::Local(local) => local.read(name).await,
            Place::Objects(objects) => objects.read(name).await,
        }
    }

    /// Writes a file in place of what may be there.
    pub async fn put(&self, name: &str, bytes: impl Into<Bytes>) -> io::Result<()> {
        let bytes = bytes.into();
        match &self.place {
            Place::Local(local) => local.put(name, bytes).await,
            Place::Objects(objects) => objects.put(name, bytes).await,
        }
    }

    /// Writes a file that is not there yet; of several that do so at the same time one succeeds, and the
    /// others get `AlreadyExists`.
    pub async fn create(&self, name: &str, bytes: impl Into<Bytes>) -> io::Result<()> {
        let bytes = bytes.into();
        match &self.place {
            Place::Local(local) => local.create(name, bytes).await,
            Place::Objects(objects) => objects.create(name, bytes).await,
        }
    }

    /// Moves a finished file of this machine here. In a folder it has to be below [`Self::local`].
    pub async fn adopt(&self, file: PathBuf, name: &str) -> io::Result<()> {
        match &self.place {
            Place::Local(local) => local.adopt(file, name).await,
            Place::Objects(objects) => {
                objects.upload(&file, name).await?;
                off_thread(move || remove_if_present(&file).map(drop)).await
            }
        }
    }

    /// Copies a finished file of this machine here, piece by piece.
    pub async fn upload(&self, file: PathBuf, name: &str) -> io::Result<()> {
        match &self.place {
            Place::Local(local) => local.copy(file, name).await,
            Place::Objects(objects) => objects.upload(&file, name).await,
        }
    }

    /// The names of all files below a folder, relative to this storage. A folder that is not there has
    /// none.
    pub async fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        match &self.place {
            Place::Local(local) => local.list(folder).await,
            Place::Objects(objects) => objects.list(folder).await,
        }
    }

    /// Removes a file that may be missing.
    pub async fn delete(&self, name: &str) -> io::Result<()> {
        match &self.place {
            Place::Local(local) => local.delete(name).await,
            Place::Objects(objects) => objects.delete(name).await,
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
            Place::Objects(objects) => {
                let mut names = objects.list(folder).await?;
                let inside = format!("{folder}/");
                names.retain(|name| {
                    let name = name.strip_prefix(&inside).unwrap_or(name);
                    !name.contains('/') && is_meant(name)
                });
                objects.delete_each(names).await
            }
        }
    }

    /// Makes a folder the folder `name` of another storage, without a copy of what is in it. `false`: this one has no
    /// folders, and nothing has happened.
    pub async fn move_folder(&self, folder: &str, to: &Self, name: &str) -> io::Result<bool> {
        let (Place::Local(local), Place::Local(to)) = (&self.place, &to.place) else {
            return Ok(false);
        };
        local.move_folder(folder, to.root.join(name)).await.map(|()| true)
    }

    /// Removes a folder that may be missing, with everything below it.
    pub async fn delete_all(&self, folder: &str) -> io::Result<()> {
        match &self.place {
            Place::Local(local) => local.delete_all(folder).await,
            Place::Objects(objects) => {
                let names = objects.list(folder).await?;
                objects.delete_each(names).await
            }
        }
    }
}

/// Whether the store has not answered for as long as the caller wanted to wait: later it may.
pub fn is_unavailable(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut
}

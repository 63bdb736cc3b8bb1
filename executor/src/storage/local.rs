//! A folder: files that are either complete and on the disk, or not there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio_util::io::ReaderStream;
use weir_connectors::durable::create_dir_all_durable;

use crate::durable::sync_parent;

/// Of a file that is read as a stream.
const PIECE_BYTES: usize = 256 * 1024;

/// Runs file work that waits for the disk off the async threads.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
}

/// A folder, and what does its work.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) root: PathBuf,
    /// All work is done where it is asked for.
    is_inline: bool,
}

impl Local {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, is_inline: false }
    }

    pub(super) fn inline(self) -> Self {
        Self { is_inline: true, ..self }
    }

    pub(super) fn within(&self, folder: &str) -> Self {
        Self { root: self.root.join(folder), is_inline: self.is_inline }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if self.is_inline { work() } else { off_thread(work).await }
    }

    pub(super) async fn get(&self, name: &str) -> io::Result<Bytes> {
        let path = self.root.join(name);
        self.run(move || fs::read(path)).await.map(Bytes::from)
    }

    pub(super) async fn read(
        &self,
        name: &str,
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        if self.is_inline {
            return Ok(stream::iter([Ok(self.get(name).await?)]).boxed());
        }
        let file = tokio::fs::File::open(self.root.join(name)).await?;
        Ok(ReaderStream::with_capacity(file, PIECE_BYTES).boxed())
    }

    pub(super) async fn put(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let path = self.root.join(name);
        self.run(move || {
            create_dir_all_durable(parent(&path)?)?;
            let temporary = path.with_extension("tmp");
            write_synced(&temporary, &bytes)?;
            fs::rename(&temporary, &path)?;
            sync_parent(&path)
        })
        .await
    }

    pub(super) async fn create(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let path = self.root.join(name);
        self.run(move || {
            create_dir_all_durable(parent(&path)?)?;
            // Others may create the same file; what one of them leaves behind means nothing.
            let temporary = path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4().simple()));
            let created =
                write_synced(&temporary, &bytes).and_then(|()| fs::hard_link(&temporary, &path));
            remove_if_present(&temporary)?;
            created?;
            sync_parent(&path)
        })
        .await
    }

    pub(super) async fn adopt(&self, file: PathBuf, name: &str) -> io::Result<()> {
        let path = self.root.join(name);
        self.run(move || {
            create_dir_all_durable(parent(&path)?)?;
            File::open(&file)?.sync_all()?;
            fs::rename(&file, &path)?;
            sync_parent(&path)
        })
        .await
    }

    pub(super) async fn copy(&self, file: PathBuf, name: &str) -> io::Result<()> {
        let path = self.root.join(name);
        self.run(move || {
            create_dir_all_durable(parent(&path)?)?;
            let temporary = path.with_extension("tmp");
            fs::copy(&file, &temporary)?;
            File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, &path)?;
            sync_parent(&path)
        })
        .await
    }

    pub(super) async fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let (path, folder) = (self.root.join(folder), folder.to_owned());
        self.run(move || {
            let mut names = Vec::new();
            add_names(&path, &folder, &mut names)?;
            names.sort();
            Ok(names)
        })
        .await
    }

    pub(super) async fn delete(&self, name: &str) -> io::Result<()> {
        let path = self.root.join(name);
        self.run(move || remove_if_present(&path).map(drop)).await
    }

    pub(super) async fn delete_in(
        &self,
        folder: &str,
        is_meant: impl Fn(&str) -> bool + Send + 'static,
    ) -> io::Result<()> {
        let folder = self.root.join(folder);
        self.run(move || {
            let entries = match fs::read_dir(folder) {
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(&is_meant) {
                    remove_if_present(&entry.path())?;
                }
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn delete_all(&self, folder: &str) -> io::Result<()> {
        let folder = self.root.join(folder);
        self.run(move || match fs::remove_dir_all(folder) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => Ok(()),
        })
        .await
    }
}

fn add_names(path: &Path, shown: &str, names: &mut Vec<String>) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        // Ours are.
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let name = if shown.is_empty() { name } else { format!("{shown}/{name}") };
        if entry.file_type()?.is_dir() {
            add_names(&entry.path(), &name, names)?;
        } else if !name.ends_with(".tmp") {
            names.push(name);
        }
    }
    Ok(())
}

/// Removes a file that may be missing; whether there was one.
pub(crate) fn remove_if_present(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(cause) => Err(cause),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a file has a folder"))
}

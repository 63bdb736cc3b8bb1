//! A folder: files that are either complete and on the disk, or not there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio_util::io::ReaderStream;
use weir_connectors::durable::create_dir_all_durable;

use crate::durable::sync_parent;

/// Of a file that is read as a stream.
const PIECE_BYTES: usize = 256 * 1024;

/// Of removing a folder into which others still write.
const MOST_ROUNDS: u32 = 100;

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
            let temporary = temporary_of(&path);
            let written =
                write_synced(&temporary, &bytes).and_then(|()| fs::rename(&temporary, &path));
            if written.is_err() {
                remove_if_present(&temporary)?;
            }
            written?;
            sync_parent(&path)
        })
        .await
    }

    pub(super) async fn create(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let path = self.root.join(name);
        self.run(move || {
            create_dir_all_durable(parent(&path)?)?;
            let temporary = temporary_of(&path);
            let created =
                write_synced(&temporary, &bytes).and_then(|()| move_to_new(&temporary, &path));
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
            let copied = fs::copy(&file, &temporary)
                .and_then(|_| File::open(&temporary)?.sync_all())
                .and_then(|()| fs::rename(&temporary, &path));
            if copied.is_err() {
                // It may have filled the disk.
                remove_if_present(&temporary)?;
            }
            copied?;
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
        self.run(move || remove_until_gone(|| fs::remove_dir_all(&folder))).await
    }

    /// After a power cut it may be where it was.
    pub(super) async fn move_folder(&self, folder: &str, to: PathBuf) -> io::Result<()> {
        let folder = self.root.join(folder);
        self.run(move || match fs::rename(&folder, &to) {
            // One of the two is missing.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && folder.is_dir() => {
                fs::create_dir(parent(&to)?)?;
                fs::rename(folder, to)
            }
            moved => moved,
        })
        .await
    }
}

/// Somebody who does not know yet that the folder goes may put something into it meanwhile.
fn remove_until_gone(mut remove: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut rounds = 0;
    loop {
        rounds += 1;
        match remove() {
            Err(cause)
                if cause.kind() == io::ErrorKind::DirectoryNotEmpty && rounds < MOST_ROUNDS => {}
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
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

/// Others may write the same file at the same time, this process among them: each has a file of its own
/// until it is whole. What one of them leaves behind means nothing.
fn temporary_of(path: &Path) -> PathBuf {
    path.with_extension(format!("{}.tmp", uuid::Uuid::new_v4().simple()))
}

/// Shows a whole file under a name that nothing has yet.
fn move_to_new(temporary: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(temporary, path) {
        // NFS may ask a second time after the first answer was lost, and then finds its own link.
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
            match fs::metadata(temporary)?.nlink() {
                2 => Ok(()),
                _ => Err(cause),
            }
        }
        // A file system without hard links (FAT, many network shares). Attempts have names of their own, so
        // that two seldom want the same one, and never with other contents that count.
        Err(cause)
            if matches!(
                cause.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported
            ) =>
        {
            if path.exists() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(temporary, path)
        }
        linked => linked,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_many_that_write_one_file_at_once_each_writes_all_of_it_or_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let local = Local::new(folder.path().to_owned());
        let content = |number: u8| Bytes::from(vec![number; 100_000 + usize::from(number)]);
        let puts = (0..20).map(|number| local.put("a/file", content(number)));
        for put in futures::future::join_all(puts).await {
            put.expect("each succeeds");
        }
        let found = local.get("a/file").await.expect("it is there");
        assert_eq!(found, content(found[0]));
        let creates = (0..20).map(|number| local.create("a/new", content(number)));
        let created = futures::future::join_all(creates).await;
        let winners: Vec<usize> = (0..20).filter(|number| created[*number].is_ok()).collect();
        let [winner] = winners[..] else { panic!("one succeeds, not {winners:?}") };
        assert_eq!(local.get("a/new").await.expect("it is there"), content(winner as u8));
        for lost in created.into_iter().filter_map(Result::err) {
            assert_eq!(lost.kind(), io::ErrorKind::AlreadyExists);
        }
        let files = fs::read_dir(folder.path().join("a")).expect("it is there");
        assert_eq!(files.count(), 2, "nothing unfinished is left");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_copied_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let local = Local::new(folder.path().to_owned());
        let file = folder.path().join("own");
        fs::write(&file, "rows").expect("writable");
        // Something else is there.
        fs::create_dir_all(folder.path().join("a/file/in/the/way")).expect("writable");
        local.copy(file, "a/file").await.expect_err("it is no file");
        let left = fs::read_dir(folder.path().join("a")).expect("it is there");
        assert_eq!(left.count(), 1, "what was in the way");
    }

    #[test]
    fn a_folder_goes_though_somebody_has_put_something_into_it_meanwhile() {
        let gone_after = |rounds: u32, kind: io::ErrorKind| {
            let mut left = rounds;
            let removed = remove_until_gone(|| {
                let is_gone = left == 0;
                left = left.saturating_sub(1);
                if is_gone { Ok(()) } else { Err(kind.into()) }
            });
            removed.map_err(|error| error.kind())
        };
        let not_empty = io::ErrorKind::DirectoryNotEmpty;
        assert_eq!(gone_after(0, not_empty), Ok(()));
        assert_eq!(gone_after(3, not_empty), Ok(()));
        assert_eq!(gone_after(u32::MAX, not_empty), Err(not_empty), "not for ever");
        assert_eq!(gone_after(1, io::ErrorKind::NotFound), Ok(()));
        let denied = io::ErrorKind::PermissionDenied;
        assert_eq!(gone_after(1, denied), Err(denied));
    }
}

//! The coordinators that an executor has last been told of, in its own folder: all of those that it was started with
//! may have been replaced by the time it starts again.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;

const NAME: &str = "coordinators.json";

/// The file.
#[derive(Debug)]
pub(super) struct Known {
    path: PathBuf,
    newest: Mutex<Vec<String>>,
    /// Held by who writes the file.
    writing: Mutex<()>,
}

impl Known {
    pub(super) fn in_folder(dir: &Path) -> Self {
        Self { path: dir.join(NAME), newest: Mutex::default(), writing: Mutex::default() }
    }

    /// None, if nothing was kept or it cannot be read: then those count that the process was started with.
    pub(super) fn read(&self) -> Vec<String> {
        let read = || -> std::io::Result<Vec<String>> {
            Ok(serde_json::from_slice(&std::fs::read(&self.path)?)?)
        };
        read().unwrap_or_else(|error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(path = %self.path.display(), %error, "not read");
            }
            Vec::new()
        })
    }

    /// Returns at once: the disk may take longer than a heartbeat may. What is kept in the end is what was given last.
    pub(super) fn keep(self: &Arc<Self>, urls: &[String]) -> JoinHandle<()> {
        urls.clone_into(&mut self.newest.lock().unwrap_or_else(PoisonError::into_inner));
        let known = Arc::clone(self);
        tokio::task::spawn_blocking(move || known.write_newest())
    }

    /// A reader sees the old list or the new one.
    fn write_newest(&self) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let urls = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let part = self.path.with_extension("part");
        let keep = || {
            let mut file = std::fs::File::create(&part)?;
            serde_json::to_writer(&mut file, &urls)?;
            file.flush()?;
            file.sync_all()?;
            std::fs::rename(&part, &self.path)
        };
        if let Err(error) = keep() {
            tracing::warn!(path = %self.path.display(), %error, "the coordinators are not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_process_knows_whom_the_one_before_was_told_of() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let known = || Arc::new(Known::in_folder(folder.path()));
        assert_eq!(known().read(), Vec::<String>::new());
        let urls = ["https://a:1".to_owned(), "https://b:2".to_owned()];
        let here = known();
        let writes = [here.keep(&urls[..1]), here.keep(&urls)];
        for write in writes {
            write.await.expect("no panic");
        }
        assert_eq!(known().read(), urls);
        std::fs::write(folder.path().join(NAME), "half").expect("the disk has room");
        assert_eq!(known().read(), Vec::<String>::new());
    }
}

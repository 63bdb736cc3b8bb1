//! The coordinators that an executor has last been told of, in its own folder: all of those that it was started with
//! may have been replaced by the time it starts again.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

const NAME: &str = "coordinators.json";

/// The file.
#[derive(Debug)]
pub(super) struct Known(PathBuf);

impl Known {
    pub(super) fn in_folder(dir: &Path) -> Self {
        Self(dir.join(NAME))
    }

    /// None, if nothing was kept or it cannot be read: then those count that the process was started with.
    pub(super) fn read(&self) -> Vec<String> {
        let read = || -> std::io::Result<Vec<String>> {
            Ok(serde_json::from_slice(&std::fs::read(&self.0)?)?)
        };
        read().unwrap_or_else(|error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(path = %self.0.display(), %error, "not read");
            }
            Vec::new()
        })
    }

    /// A reader sees the old list or the new one.
    pub(super) fn keep(&self, urls: &[String]) {
        let part = self.0.with_extension("part");
        let keep = || {
            let mut file = std::fs::File::create(&part)?;
            serde_json::to_writer(&mut file, urls)?;
            file.flush()?;
            file.sync_all()?;
            std::fs::rename(&part, &self.0)
        };
        if let Err(error) = keep() {
            tracing::warn!(path = %self.0.display(), %error, "the coordinators are not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_knows_whom_the_one_before_was_told_of() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let known = || Known::in_folder(folder.path());
        assert_eq!(known().read(), Vec::<String>::new());
        let urls = ["https://a:1".to_owned(), "https://b:2".to_owned()];
        known().keep(&urls);
        assert_eq!(known().read(), urls);
        std::fs::write(folder.path().join(NAME), "half").expect("the disk has room");
        assert_eq!(known().read(), Vec::<String>::new());
    }
}

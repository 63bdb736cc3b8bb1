//! One file, opened once: everything that is read of it comes from the same file, also when another
//! has taken its name meanwhile.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ConnectorError;
use crate::files::listing::stamp_of;

/// Cheap to clone; clones are the same open file.
#[derive(Clone, Debug)]
pub(crate) struct OpenFile {
    file: Arc<File>,
    path: PathBuf,
}

impl OpenFile {
    pub(crate) fn open(path: &Path) -> Result<Self, ConnectorError> {
        let file = File::open(path).map_err(|error| ConnectorError::io("open", path, error))?;
        Ok(Self { file: Arc::new(file), path: path.to_owned() })
    }

    /// The name that it was opened by.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Size and modification time as they are now, of this file and not of what has its name.
    pub(crate) fn stamp(&self) -> std::io::Result<(u64, i64)> {
        stamp_of(&self.file.metadata()?)
    }

    /// Reads from an offset on, independently of other readers.
    pub(crate) fn reader(&self, offset: u64) -> impl Read + Send + 'static {
        FileReader { file: Arc::clone(&self.file), offset }
    }

    /// Another handle; it shares its place in the file with others of its kind.
    pub(crate) fn handle(&self) -> Result<File, ConnectorError> {
        self.file.try_clone().map_err(|error| ConnectorError::io("open", &self.path, error))
    }
}

struct FileReader {
    file: Arc<File>,
    offset: u64,
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

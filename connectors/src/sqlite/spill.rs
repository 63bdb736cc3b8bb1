//! The open batch of a writer, in a file: nothing of it is in the database before it is published.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

use crate::{ConnectorError, ErrorKind};

/// A file of rows. Removed when dropped.
pub(super) struct Spill {
    path: PathBuf,
    writer: StreamWriter<BufWriter<File>>,
    pub rows: u64,
    pub bytes: u64,
}

/// A finished file of rows. Removed when dropped.
#[derive(Debug)]
pub(super) struct SpilledRows {
    path: PathBuf,
    pub rows: u64,
}

impl Spill {
    pub(super) fn create(folder: &Path, schema: &SchemaRef) -> Result<Self, ConnectorError> {
        fs::create_dir_all(folder).map_err(|error| io_error("create", folder, error))?;
        let path = folder.join(format!("{}.arrow", uuid::Uuid::new_v4().simple()));
        let file = File::create_new(&path).map_err(|error| io_error("create", &path, error))?;
        let options =
            IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
        let writer = StreamWriter::try_new_with_options(BufWriter::new(file), schema, options)
            .map_err(|error| spill_error(&path, error))?;
        Ok(Self { path, writer, rows: 0, bytes: 0 })
    }

    pub(super) fn write(&mut self, rows: &RecordBatch) -> Result<(), ConnectorError> {
        self.writer.write(rows).map_err(|error| spill_error(&self.path, error))?;
        self.rows += rows.num_rows() as u64;
        self.bytes += rows.get_array_memory_size() as u64;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<SpilledRows, ConnectorError> {
        self.writer.finish().map_err(|error| spill_error(&self.path, error))?;
        let path = std::mem::take(&mut self.path);
        Ok(SpilledRows { path, rows: self.rows })
    }
}

impl SpilledRows {
    /// The rows in order, one Arrow batch at a time.
    pub(super) fn open(&self) -> Result<StreamReader<BufReader<File>>, ConnectorError> {
        let file = File::open(&self.path).map_err(|error| io_error("open", &self.path, error))?;
        StreamReader::try_new_buffered(file, None).map_err(|error| spill_error(&self.path, error))
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        // What cannot be removed here is removed with the run's staging.
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for SpilledRows {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The folder of a run's spill files: beside the database, where there is room for its rows.
pub(super) fn folder(database: &Path, run: &str, sink: &str) -> PathBuf {
    let name = database.file_name().unwrap_or_default().to_string_lossy();
    let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_");
    database.with_file_name(format!("_weir-{name}")).join(format!("{}.{}", plain(run), plain(sink)))
}

/// Removes a run's spill files, and the folder of all runs when it was the last.
pub(super) fn remove(folder: &Path) -> Result<(), ConnectorError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", folder, error));
        }
        _ => {}
    }
    if let Some(parent) = folder.parent() {
        // Other runs may still use it.
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

fn io_error(attempt: &str, path: &Path, error: io::Error) -> ConnectorError {
    ConnectorError::io(&format!("{attempt} the file of unpublished rows"), path, error)
}

fn spill_error(path: &Path, error: arrow::error::ArrowError) -> ConnectorError {
    match error {
        arrow::error::ArrowError::IoError(_, cause) => io_error("write", path, cause),
        other => ConnectorError::caused(
            ErrorKind::Internal,
            format!("the file of unpublished rows {} failed", path.display()),
            other,
        ),
    }
}

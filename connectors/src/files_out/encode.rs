//! One open data file in one of the formats.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::json::writer::LineDelimited;
use arrow::json::{Writer as JsonWriter, WriterBuilder as JsonWriterBuilder};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use weir_spec::{Compression, FileFormat};

use super::csv::CsvStyle;
use super::durable::io_error;
use super::json::ValueEncoders;
use super::output::{CountedFile, FileState, TextOutput};
use crate::{ConnectorError, ErrorKind};

/// Rows of a Parquet row group at most.
const ROW_GROUP_ROWS: usize = 1024 * 1024;
/// Encoded bytes of a row group at most; also what one batch's open Parquet files may hold in memory
/// together.
pub(super) const ROW_GROUP_BYTES: usize = 64 * 1024 * 1024;

/// A format with its compression, checked once.
#[derive(Clone, Debug)]
pub(super) struct Format {
    pub format: FileFormat,
    compression: Compression,
}

impl Format {
    pub(super) fn new(
        format: FileFormat,
        compression: Compression,
    ) -> Result<Self, ConnectorError> {
        if matches!((&format, compression), (FileFormat::Parquet, Compression::Gzip)) {
            return Err(ConnectorError::config(
                "Parquet files are not written with gzip: use `auto` (snappy), `zstd` or `none`",
            ));
        }
        Ok(Self { format, compression })
    }

    /// Of file names, without a leading dot.
    pub(super) fn suffix(&self) -> &'static str {
        match (&self.format, self.compression) {
            (FileFormat::Parquet, _) => "parquet",
            (FileFormat::Csv { .. }, Compression::Gzip) => "csv.gz",
            (FileFormat::Csv { .. }, Compression::Zstd) => "csv.zst",
            (FileFormat::Csv { .. }, _) => "csv",
            (FileFormat::Json, Compression::Gzip) => "jsonl.gz",
            (FileFormat::Json, Compression::Zstd) => "jsonl.zst",
            (FileFormat::Json, _) => "jsonl",
        }
    }

    /// Opens a new file for rows of `schema`.
    pub(super) fn create(
        &self,
        path: PathBuf,
        schema: &SchemaRef,
    ) -> Result<OpenFile, ConnectorError> {
        let (file, state) =
            CountedFile::create(&path).map_err(|error| io_error("create", &path, error))?;
        let text = |file| {
            TextOutput::new(file, self.compression).map_err(|error| io_error("write", &path, error))
        };
        let encoder = match &self.format {
            FileFormat::Parquet => {
                let writer = ArrowWriter::try_new(file, schema.clone(), Some(self.properties()))
                    .map_err(|error| encode_error("write", &path, &state, error))?;
                Encoder::Parquet(Box::new(writer))
            }
            FileFormat::Csv { delimiter, quote, header } => {
                let style = CsvStyle { delimiter: *delimiter, quote: *quote, header: *header };
                let mut output = text(file)?;
                style
                    .write_header(schema, &mut output)
                    .map_err(|error| encode_error("write", &path, &state, error))?;
                Encoder::Csv { style, output }
            }
            FileFormat::Json => Encoder::Json(
                JsonWriterBuilder::new()
                    .with_explicit_nulls(true)
                    .with_encoder_factory(Arc::new(ValueEncoders))
                    .build(text(file)?),
            ),
        };
        Ok(OpenFile { path, encoder, state, rows: 0 })
    }

    fn properties(&self) -> WriterProperties {
        let compression = match self.compression {
            Compression::None => ParquetCompression::UNCOMPRESSED,
            Compression::Zstd => ParquetCompression::ZSTD(ZstdLevel::default()),
            Compression::Auto | Compression::Gzip => ParquetCompression::SNAPPY,
        };
        WriterProperties::builder()
            .set_compression(compression)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
            .build()
    }
}

enum Encoder {
    Parquet(Box<ArrowWriter<CountedFile>>),
    Csv { style: CsvStyle, output: TextOutput },
    Json(JsonWriter<TextOutput, LineDelimited>),
}

/// A file that takes rows.
pub(super) struct OpenFile {
    path: PathBuf,
    encoder: Encoder,
    state: Arc<FileState>,
    pub rows: u64,
}

impl OpenFile {
    pub(super) fn write(&mut self, rows: &RecordBatch) -> Result<(), ConnectorError> {
        let (path, state) = (&self.path, &self.state);
        match &mut self.encoder {
            Encoder::Parquet(writer) => {
                writer.write(rows).map_err(|error| encode_error("write", path, state, error))
            }
            Encoder::Csv { style, output } => style
                .write_rows(rows, output)
                .map_err(|error| encode_error("write", path, state, error)),
            Encoder::Json(writer) => {
                writer.write(rows).map_err(|error| encode_error("write", path, state, error))
            }
        }?;
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    /// About how large the file would be if it were closed now.
    pub(super) fn bytes(&self) -> u64 {
        match &self.encoder {
            Encoder::Parquet(writer) => (writer.bytes_written() + writer.in_progress_size()) as u64,
            Encoder::Csv { .. } | Encoder::Json(_) => self.state.written(),
        }
    }

    /// Memory held for rows that are not in the file yet.
    pub(super) fn buffered_bytes(&self) -> usize {
        match &self.encoder {
            Encoder::Parquet(writer) => writer.memory_size(),
            Encoder::Csv { .. } | Encoder::Json(_) => 0,
        }
    }

    /// Moves buffered rows into the file.
    pub(super) fn flush(&mut self) -> Result<(), ConnectorError> {
        match &mut self.encoder {
            Encoder::Parquet(writer) => writer
                .flush()
                .map_err(|error| encode_error("write", &self.path, &self.state, error)),
            Encoder::Csv { .. } | Encoder::Json(_) => Ok(()),
        }
    }

    /// Completes the file and makes it durable. Returns its size.
    pub(super) fn finish(self) -> Result<u64, ConnectorError> {
        let (path, state) = (&self.path, &self.state);
        let synced = match self.encoder {
            Encoder::Parquet(writer) => writer
                .into_inner()
                .map_err(|error| encode_error("complete", path, state, error))?
                .sync(),
            Encoder::Csv { mut output, .. } => output.flush().and_then(|()| output.finish()),
            Encoder::Json(mut writer) => {
                writer.finish().map_err(|error| encode_error("complete", path, state, error))?;
                writer.into_inner().finish()
            }
        };
        synced.map_err(|error| io_error("complete", path, error))?;
        Ok(self.state.written())
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }
}

/// An encoder's error: the I/O error behind it if there is one, else rows that cannot be written.
fn encode_error(
    attempt: &str,
    path: &std::path::Path,
    state: &FileState,
    error: impl std::error::Error + Send + Sync + 'static,
) -> ConnectorError {
    match state.take_failure() {
        Some(cause) => io_error(attempt, path, cause),
        None => ConnectorError::caused(
            ErrorKind::Data,
            format!("failed to {attempt} rows into {}", path.display()),
            error,
        ),
    }
}

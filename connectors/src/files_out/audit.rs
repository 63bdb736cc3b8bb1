//! Counts the rows of a run's files, in the files themselves.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use parquet::file::reader::{FileReader, SerializedFileReader};
use weir_spec::FileFormat;

use super::durable::io_error;
use super::encode::Format;
use super::layout::{Layout, parse_final_name};
use crate::{ConnectorError, ErrorKind, PrepareSink, PublishedBatch};

/// Every batch of the run of which files are visible, whoever knows about it.
pub(super) fn published(
    layout: &Layout,
    identity: &PrepareSink,
    format: &Format,
) -> Result<Vec<PublishedBatch>, ConnectorError> {
    let mut batches = BTreeMap::new();
    visit(&layout.target, &mut |path, name| {
        if let Some(batch) = parse_final_name(identity, name) {
            *batches.entry(batch).or_insert(0) += count_rows(path, format)?;
        }
        Ok(())
    })?;
    Ok(batches
        .into_iter()
        .map(|((slice, sequence), rows)| PublishedBatch { slice, sequence, rows, checksum: None })
        .collect())
}

/// Calls `found` for each visible file below `folder`.
fn visit(
    folder: &Path,
    found: &mut dyn FnMut(&Path, &str) -> Result<(), ConnectorError>,
) -> Result<(), ConnectorError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("list the folder", folder, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| io_error("list the folder", folder, error))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(['_', '.']) {
            continue;
        }
        let kind = entry.file_type().map_err(|error| io_error("look at", &entry.path(), error))?;
        if kind.is_dir() {
            visit(&entry.path(), found)?;
        } else {
            found(&entry.path(), name)?;
        }
    }
    Ok(())
}

fn count_rows(path: &Path, format: &Format) -> Result<u64, ConnectorError> {
    let file = File::open(path).map_err(|error| io_error("open", path, error))?;
    let (quote, header) = match format.format {
        FileFormat::Parquet => {
            let reader = SerializedFileReader::new(file).map_err(|error| {
                ConnectorError::caused(
                    ErrorKind::Data,
                    format!("{} is not a whole Parquet file", path.display()),
                    error,
                )
            })?;
            let rows = reader.metadata().file_metadata().num_rows();
            return Ok(u64::try_from(rows).unwrap_or_default());
        }
        FileFormat::Csv { quote, header, .. } => (Some(quote), header),
        FileFormat::Json => (None, false),
    };
    // By the file's own name: the node may have changed its compression since.
    let name = path.to_string_lossy();
    let reader: Box<dyn Read> = if name.ends_with(".gz") {
        Box::new(MultiGzDecoder::new(BufReader::new(file)))
    } else if name.ends_with(".zst") {
        Box::new(zstd::Decoder::new(file).map_err(|error| io_error("read", path, error))?)
    } else {
        Box::new(file)
    };
    let lines =
        count_lines(reader, quote).map_err(|error| io_error("read the rows of", path, error))?;
    Ok(lines.saturating_sub(u64::from(header)))
}

/// Line breaks outside quotes. A doubled quote closes and opens, so parity is enough.
fn count_lines(mut reader: impl Read, quote: Option<u8>) -> io::Result<u64> {
    let mut buffer = vec![0; 128 * 1024];
    let (mut lines, mut is_quoted) = (0, false);
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok(lines),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for byte in &buffer[..count] {
            if Some(*byte) == quote {
                is_quoted = !is_quoted;
            } else if *byte == b'\n' && !is_quoted {
                lines += 1;
            }
        }
    }
}

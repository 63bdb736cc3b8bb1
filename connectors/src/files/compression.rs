//! Bytes of a file, decompressed while they are read.

use std::io::Read;
use std::path::Path;

use weir_spec::Compression;

use crate::ConnectorError;
use crate::files::opened::OpenFile;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    None,
    Gzip,
    Zstd,
}

impl Codec {
    /// As set, else by the suffix of the name.
    pub(crate) fn of(name: &str, compression: Compression) -> Self {
        let lower = name.to_ascii_lowercase();
        match compression {
            Compression::None => Codec::None,
            Compression::Gzip => Codec::Gzip,
            Compression::Zstd => Codec::Zstd,
            Compression::Auto if lower.ends_with(".gz") || lower.ends_with(".gzip") => Codec::Gzip,
            Compression::Auto if lower.ends_with(".zst") || lower.ends_with(".zstd") => Codec::Zstd,
            Compression::Auto => Codec::None,
        }
    }
}

pub(crate) type Bytes = Box<dyn Read + Send>;

/// The uncompressed bytes from `start`. Compressed files are read and discarded up to there.
/// Blocking.
pub(crate) fn open(file: &OpenFile, codec: Codec, start: u64) -> Result<Bytes, ConnectorError> {
    let path = file.path();
    let mut bytes: Bytes = match codec {
        Codec::None => return Ok(Box::new(file.reader(start))),
        Codec::Gzip => {
            let buffered = std::io::BufReader::with_capacity(256 * 1024, file.reader(0));
            Box::new(flate2::bufread::MultiGzDecoder::new(buffered))
        }
        Codec::Zstd => {
            let decoder = zstd::stream::read::Decoder::new(file.reader(0));
            Box::new(decoder.map_err(|error| ConnectorError::io("open", path, error))?)
        }
    };
    let skipped = std::io::copy(&mut (&mut bytes).take(start), &mut std::io::sink())
        .map_err(|error| read_error(path, codec, error))?;
    if skipped < start {
        return Err(ConnectorError::data(format!(
            "{} ends at uncompressed byte {skipped}, before the position {start} to read on from",
            path.display()
        )));
    }
    Ok(bytes)
}

/// An error while reading: of the decompressor it means broken data, else the file system failed.
pub(crate) fn read_error(path: &Path, codec: Codec, error: std::io::Error) -> ConnectorError {
    if codec == Codec::None || error.raw_os_error().is_some() {
        return ConnectorError::io("read", path, error);
    }
    let format = if codec == Codec::Gzip { "gzip" } else { "zstd" };
    ConnectorError::caused(
        crate::ErrorKind::Data,
        format!(
            "{} is not a complete {format} file (write it again, or say with `compression` how it is \
             compressed)",
            path.display()
        ),
        error,
    )
}

/// Appends at most `wanted` bytes to `buffer`; fewer only at the end.
pub(crate) fn fill(
    bytes: &mut Bytes,
    buffer: &mut Vec<u8>,
    wanted: usize,
) -> std::io::Result<usize> {
    buffer.reserve(wanted);
    bytes.take(wanted as u64).read_to_end(buffer)
}

/// Line breaks in `bytes`.
pub(crate) fn count_lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

/// Line breaks before an offset: reads the file up to there. Blocking.
pub(crate) fn count_lines_before(
    file: &OpenFile,
    codec: Codec,
    offset: u64,
) -> Result<u64, ConnectorError> {
    const CHUNK_BYTES: usize = 1024 * 1024;
    if offset == 0 {
        return Ok(0);
    }
    let mut bytes = open(file, codec, 0)?;
    let mut left = offset;
    let mut lines = 0;
    let mut buffer = Vec::new();
    while left > 0 {
        buffer.clear();
        let wanted = CHUNK_BYTES.min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = fill(&mut bytes, &mut buffer, wanted)
            .map_err(|error| read_error(file.path(), codec, error))?;
        lines += count_lines(&buffer);
        left -= read as u64;
        if read < wanted {
            break;
        }
    }
    Ok(lines)
}

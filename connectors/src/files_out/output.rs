//! The bytes of one file: counted, compressed, and with the first I/O error kept.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use flate2::write::GzEncoder;
use weir_spec::Compression;

/// What is known of a file while an encoder owns it.
#[derive(Debug, Default)]
pub(super) struct FileState {
    written: AtomicU64,
    /// Encoders wrap I/O errors in their own; the kind (disk full) is only sure here.
    failure: Mutex<Option<io::Error>>,
}

impl FileState {
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failure.lock().expect("no holder of this lock panics").take()
    }
}

/// A file that counts what is written to it.
#[derive(Debug)]
pub(super) struct CountedFile {
    file: File,
    state: Arc<FileState>,
}

impl CountedFile {
    pub(super) fn create(path: &Path) -> io::Result<(Self, Arc<FileState>)> {
        let file = File::options().write(true).create_new(true).open(path)?;
        let state = Arc::new(FileState::default());
        Ok((Self { file, state: state.clone() }, state))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

impl Write for CountedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.write(bytes) {
            Ok(count) => {
                self.state.written.fetch_add(count as u64, Ordering::Relaxed);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let copy = match error.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => error.kind().into(),
                };
                *self.state.failure.lock().expect("no holder of this lock panics") = Some(copy);
                Err(error)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A text file, compressed or not.
pub(super) enum TextOutput {
    Plain(BufWriter<CountedFile>),
    Gzip(GzEncoder<BufWriter<CountedFile>>),
    Zstd(zstd::Encoder<'static, BufWriter<CountedFile>>),
}

impl TextOutput {
    pub(super) fn new(file: CountedFile, compression: Compression) -> io::Result<Self> {
        let buffered = BufWriter::with_capacity(256 * 1024, file);
        Ok(match compression {
            Compression::Auto | Compression::None => TextOutput::Plain(buffered),
            Compression::Gzip => {
                TextOutput::Gzip(GzEncoder::new(buffered, flate2::Compression::default()))
            }
            Compression::Zstd => TextOutput::Zstd(zstd::Encoder::new(buffered, 1)?),
        })
    }

    /// Writes what is buffered, ends the compression, and makes the file durable.
    pub(super) fn finish(self) -> io::Result<()> {
        let buffered = match self {
            TextOutput::Plain(buffered) => buffered,
            TextOutput::Gzip(encoder) => encoder.finish()?,
            TextOutput::Zstd(encoder) => encoder.finish()?,
        };
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?.sync()
    }
}

impl Write for TextOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            TextOutput::Plain(inner) => inner.write(bytes),
            TextOutput::Gzip(inner) => inner.write(bytes),
            TextOutput::Zstd(inner) => inner.write(bytes),
        }
    }

    /// Does nothing: flushing a compressor after each batch would spoil its output.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

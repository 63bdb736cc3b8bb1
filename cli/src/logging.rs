//! Logs: standard error for people, and one file of JSON lines a pipeline for `weir logs`. Every line
//! passes the redactor.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;
use weir_connectors::Redactor;

/// Opened once the pipeline is known; lines before that go to standard error only.
static LOG_FILE: OnceLock<Arc<Mutex<File>>> = OnceLock::new();

/// Installs the subscriber of the process. `filter` is for standard error; the file keeps `info` and
/// above unless the filter asks for more.
pub(crate) fn init(filter: &str, redactor: &Redactor) {
    let stderr_filter = EnvFilter::new(filter);
    let file_filter = EnvFilter::new(file_filter(filter));
    let stderr = tracing_subscriber::fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(Redacting { redactor: redactor.clone(), target: Target::Stderr })
        .with_filter(stderr_filter);
    let file = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_writer(Redacting { redactor: redactor.clone(), target: Target::File })
        .with_filter(file_filter);
    tracing_subscriber::registry().with(stderr).with(file).init();
}

/// `info`, and what the filter for standard error asks for beyond it.
fn file_filter(filter: &str) -> String {
    let mut directives = vec!["info"];
    let quiet = ["off", "error", "warn", "info"];
    directives.extend(
        filter
            .split(',')
            .map(str::trim)
            .filter(|directive| !directive.is_empty())
            .filter(|directive| !quiet.contains(&directive.to_ascii_lowercase().as_str())),
    );
    directives.join(",")
}

/// The log of a pipeline.
pub(crate) fn path(state_dir: &Path, pipeline: &str) -> PathBuf {
    state_dir.join(pipeline).join("log.jsonl")
}

/// From here on lines also go to the pipeline's log. A log that cannot be written is not a reason to
/// stop a run: the failure is shown once.
pub(crate) fn open_file(state_dir: &Path, pipeline: &str) {
    let path = path(state_dir, pipeline);
    let opened = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| OpenOptions::new().create(true).append(true).open(&path));
    match opened {
        Ok(file) => {
            // A second pipeline in one process keeps the first one's log.
            let _ = LOG_FILE.set(Arc::new(Mutex::new(file)));
        }
        Err(error) => eprintln!("warning: failed to open the log {}: {error}", path.display()),
    }
}

#[derive(Clone)]
struct Redacting {
    redactor: Redactor,
    target: Target,
}

#[derive(Clone, Copy)]
enum Target {
    Stderr,
    File,
}

/// Collects one event (the formatter writes it in pieces) and passes it on when it is complete.
struct Line {
    redactor: Redactor,
    target: Target,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Redacting {
    type Writer = Line;
    fn make_writer(&'a self) -> Line {
        Line { redactor: self.redactor.clone(), target: self.target, bytes: Vec::new() }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.bytes.is_empty() {
            return;
        }
        let line = self.redactor.redact(&String::from_utf8_lossy(&self.bytes));
        // A full disk must not end a run because of its log.
        let _ = match self.target {
            Target::Stderr => io::stderr().write_all(line.as_bytes()),
            Target::File => match LOG_FILE.get() {
                Some(file) => match file.lock() {
                    Ok(mut file) => file.write_all(line.as_bytes()),
                    Err(_) => Ok(()),
                },
                None => Ok(()),
            },
        };
    }
}

#[cfg(test)]
mod tests {
    use super::file_filter;

    #[test]
    fn file_keeps_info_whatever_standard_error_shows() {
        assert_eq!(file_filter(""), "info");
        assert_eq!(file_filter("error"), "info");
        assert_eq!(file_filter("error,weir_executor=debug"), "info,weir_executor=debug");
        assert_eq!(file_filter("trace"), "info,trace");
    }
}

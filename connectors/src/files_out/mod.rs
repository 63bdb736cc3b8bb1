//! Folders of CSV, JSON-lines and Parquet files as sinks.
//!
//! ```text
//! rows ─▶ <control>/staging/<run>/<sink>/<writer>/…      invisible: names that start with `_`
//!            │ stage: close, fsync                        are skipped by readers of data folders
//!            ▼ publish (commit: batch) or commit_run (commit: run)
//!         <path>/[column=value/…]<run>-<sink>-<slice>-<sequence>-<n>.<suffix>    by rename
//! ```
//!
//! `<control>` is `<path>/_weir`; for `mode: replace`, which exchanges the whole folder, it is the
//! sibling `_weir-<name>`. Both are on the target's file system, so every rename is atomic.
//!
//! **What is atomic.** Each file appears at once and is never changed afterwards. `replace` exchanges
//! the folder in one system call. A batch or an appending run of several files appears file by file:
//! a local folder has no transaction. An interrupted one is finished by recovery, never taken back;
//! `<path>/_weir/manifests/<run>-<sink>.json` lists the files of an appending `commit: run`.
//!
//! **Fencing.** The epoch is a file in `<control>`, checked under a file lock before renames. On file
//! systems without locks, checking and renaming are two steps; a late writer still changes nothing,
//! because recovery has consumed its staged files: each of its renames finds nothing to rename.

mod audit;
mod batch;
mod commit;
mod csv;
mod durable;
mod encode;
mod fence;
pub(crate) mod json;
mod layout;
mod output;
mod partition;
mod replace;
mod sink;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use weir_spec as spec;

use crate::{ConnectorContext, ConnectorError, Sink};

/// Opens a file sink. `name` is the node's name, for messages.
pub(crate) fn open_sink(
    name: &str,
    sink: &spec::Sink,
    target: &spec::FileTarget,
    context: &ConnectorContext,
) -> Result<Arc<dyn Sink>, ConnectorError> {
    Ok(Arc::new(sink::FileSink::new(name, sink, target, context)?))
}

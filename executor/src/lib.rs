//! Runs tasks: reads splits, executes the stage's operators, writes sinks and exchanges, and keeps
//! enough on disk to go on after a crash.
//!
//! ```text
//! Task ─▶ morsel (source batches up to a position) ─▶ operators ─▶ SinkWriter
//!            ▲                                                        │ stage
//!            └──────── CommitLog::intent ◀─ progress file ◀───────────┘
//!                      publish, CommitLog::done, next morsel
//! ```
//!
//! An executor knows plans and connectors. It deliberately does not know the ledger: it reports
//! intents and completions through [`CommitLog`] and waits for them to be durable.

pub mod address;
mod checksum;
mod context;
mod cursor;
mod dead_letters;
mod durable;
mod env;
mod exchange;
mod failure;
mod folder;
mod given;
mod graph;
pub mod identity;
mod morsel;
pub mod node;
mod reading;
mod recorder;
mod resources;
mod run;
mod services;
pub mod storage;
mod streaming;
mod task;
#[cfg(test)]
mod tests;
pub mod tls;
mod whole;
mod wire;

pub use checksum::RowChecksum;
pub use dead_letters::DeadLetterLine;
pub use env::{ExecutorEnv, ExecutorOptions, Registry, Systems};
pub use exchange::ExchangeCompression;
pub use folder::RunFolder;
pub use given::GivenSource;
pub use resources::Resources;
pub use run::run_task;
pub use task::{CommitLog, CommitLogError, ProgressEvent, Task, TaskError, TaskOutcome};
pub use weir_plan::{Commit, RowAccount, SlicePosition, SliceStart};
pub use wire::{TaskEnd, TaskFailure};

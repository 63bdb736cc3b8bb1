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

pub mod task;

pub use task::{CommitLog, CommitLogError, ProgressEvent, Task, TaskError, TaskOutcome};
pub use weir_plan::{Commit, RowAccount, SlicePosition, SliceStart};

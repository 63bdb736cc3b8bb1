//! Owns the ledger and decides what runs: plans a run, places its tasks, commits its sinks.
//!
//! ```text
//! RunRequest ─▶ Engine ─▶ describe sources ─▶ plan ─▶ ledger ─▶ decide ─▶ tasks ─▶ commits ─▶ report
//! ```
//!
//! [`Engine`] is embedded in the command line: the only writer of its pipeline's ledger
//! (`<state dir>/<pipeline>/ledger.db`), which it guards with a file lock; readers ([`history`]) need no
//! lock. [`cluster`] is the coordinators' process: the ledger is replicated ([`raft`]), and executors
//! carry out the tasks.

mod abandon;
pub mod api;
mod audit;
mod choose;
pub mod cluster;
mod commit_log;
mod connection_limits;
mod dead_letters;
mod decide;
mod driver;
mod engine;
mod frozen;
pub mod history;
mod limits;
mod loaded_since;
mod lock;
mod params;
mod pipeline_files;
mod preview;
mod progress_files;
pub mod raft;
mod render;
pub mod replay;
mod retry;
mod session;
mod shape;
mod since;
mod sources;
mod state_dir;
mod store;
mod stragglers;
mod summary;
mod surroundings;
#[cfg(test)]
mod tests;
mod validated;
mod workers;

pub use api::*;
pub use engine::Engine;
pub use lock::exclusively;

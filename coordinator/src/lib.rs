//! Owns the ledger and decides what runs: plans a run, places its tasks, commits its sinks.
//!
//! ```text
//! RunRequest ─▶ Engine ─▶ describe sources ─▶ plan ─▶ ledger ─▶ decide ─▶ tasks ─▶ commits ─▶ report
//! ```
//!
//! In this version one member: [`Engine`] is embedded in the command line. It is the only writer of
//! its pipeline's ledger (`<state dir>/<pipeline>/ledger.db`), which it guards with a file lock;
//! readers ([`history`]) need no lock.

pub mod api;
pub mod lock;
pub mod state_dir;
pub mod store;

pub use api::*;

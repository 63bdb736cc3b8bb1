//! The coordinator's process: a member of the replicated ledger, which leads when it is elected.
//!
//! ```text
//! clients ─▶ runs, backfills, cluster services ─▶ Leading ─▶ one Session a run ─▶ Driver ─▶ decide
//!                                         │                             │
//! executors ◀─▶ executors service ◀─▶   Pool   ◀──── RemoteWorkers ◀────┘
//! ```

mod access;
mod access_layer;
mod audit_log;
mod backfill_audit;
mod backfills;
mod backfills_service;
mod cluster_service;
mod convert;
mod dead_letters_service;
mod deadline;
mod draining;
mod ended_runs;
mod errors;
mod executors_service;
mod founding;
mod leading;
mod letters;
mod logs;
mod members;
mod next_turns;
mod next_windows;
mod node;
mod pipelines;
mod pipelines_service;
pub(crate) mod place;
mod pool;
mod queue;
mod quota;
mod remote;
mod removal;
mod replays;
mod reports;
mod requests;
mod run_log;
mod runs_service;
mod serve;
#[cfg(test)]
mod simulation;
mod sizes;
mod state_service;
mod stored;
mod systems;
mod taking_up;
mod tasks;
#[cfg(test)]
mod tests;
mod ways;
mod wire;

pub use ended_runs::KeptRuns;
pub(crate) use leading::Cluster;
pub use quota::ClientLimits;
pub use serve::{CoordinatorOptions, Security, ServeError, serve};

//! The facts that survive any process, as a pure state machine over [`Command`]s.
//!
//! ```text
//! Command ─apply(index)─▶ Ledger ─queries─▶ what runs next, watermarks, row accounts, audit
//! ```
//!
//! [`apply`] is deterministic: replaying the same commands with the same indexes gives an equal
//! ledger, on any machine. Deliberately absent: clocks, randomness and I/O. Times and ids come with
//! the commands; whoever keeps the log (a file, later a replicated log) is not known here.

mod apply;
mod audit;
mod backfills;
mod client_changes;
mod commands;
mod committers;
mod facts;
mod intervals;
mod packed_account;
mod pipelines;
mod rejection;
mod slices;
mod watermark;

#[cfg(test)]
mod tests;

pub use apply::{Response, apply};
pub use audit::{LedgerAudit, NodeTotals};
pub use backfills::{
    Again, BACKFILL_PREFIX, BackfillFacts, BackfillId, BackfillState, SinkTotals, Totals, WindowOf,
    WindowRange, WindowState,
};
pub use client_changes::{ClientChange, MOST_CLIENT_CHANGES, MOST_REFUSALS};
pub use commands::{
    BackfillChange, BeginRun, ChangeBackfill, CleanUpDone, Command, CommitDone, CommitIntent,
    CommitLost, CreateBackfill, CreateToken, DeletePipeline, EndedRun, FailAttempt, FinishExchange,
    FinishRun, ForgetRuns, JoinRun, LoseAttempt, LoseOutputs, LostOutput, MOST_QUEUED,
    MOST_SKIPPED, NewEpoch, NoteClientChange, OutputStored, PlanRun, PrepareSink, QueueRun,
    QueuedRun, RegisterPipeline, Requested, ResetWatermark, ResumeRun, RevokeToken, RunCommitDone,
    RunCommitIntent, SetDraining, SetWatermark, SkipRun, SliceAttempt, StartAttempt, StartCopy,
    StartRun,
};
pub use committers::{CommittedBy, Committers};
pub use facts::{
    EpochFacts, Ledger, NodeRole, NodeShape, OpenIntent, PipelineFacts, Role, RunCommit, RunFacts,
    RunId, RunOutcome, RunState, SliceFacts, SliceState, StageFacts, StageOutputShape, StageShape,
    TokenFacts,
};
pub use intervals::Intervals;
pub use packed_account::PackedAccount;
pub use pipelines::{
    AnsweredRequests, MOST_REQUESTS, MOST_VERSIONS, PipelineVersion, RequestFacts,
};
pub use rejection::Rejection;
pub use slices::{SliceMut, Slices};

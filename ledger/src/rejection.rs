//! Why a command changes nothing.

use weir_plan::StageId;

use crate::{BackfillId, RunId};

/// The reason for which [`crate::apply`] has refused a command. The ledger is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("epoch {given} is over: the ledger is in epoch {current}")]
    OldEpoch { given: u64, current: u64 },
    #[error("this is ledger {known}, not {given}")]
    OtherLedger { known: String, given: String },
    #[error("run {0} is not known")]
    UnknownRun(RunId),
    #[error("run {0} exists already")]
    RunExists(RunId),
    #[error("the request means run {run}")]
    RequestKnown { run: RunId },
    #[error("run {active} of the pipeline is not finished")]
    RunActive { active: RunId },
    #[error("run {run} is not the first of its pipeline's queue")]
    NotItsTurn { run: RunId },
    #[error(
        "{waiting} runs of pipeline `{pipeline}` wait for their turn already, which is the most: cancel some, \
         or wait"
    )]
    QueueFull { pipeline: String, waiting: usize },
    #[error("run {run} is {state}")]
    RunState { run: RunId, state: &'static str },
    #[error("run {0} has its plan already: a run is never planned again")]
    AlreadyPlanned(RunId),
    #[error("run {0} has no plan yet")]
    NotPlanned(RunId),
    #[error("the plan of run {run} is not valid: {reason}")]
    InvalidPlan { run: RunId, reason: String },
    #[error("run {run} has no stage {stage} with a slice {slice}")]
    UnknownSlice { run: RunId, stage: StageId, slice: u32 },
    #[error("run {run} has no sink `{sink}`")]
    UnknownSink { run: RunId, sink: String },
    #[error("stage {stage} does not end in {expected}")]
    WrongOutput { stage: StageId, expected: &'static str },
    #[error("stage {stage} reads stage {input}, which is not finished")]
    InputNotReady { stage: StageId, input: StageId },
    #[error("attempt {given} of slice {slice} of stage {stage} is not the current one ({current})")]
    OldAttempt { stage: StageId, slice: u32, given: u32, current: u32 },
    #[error("attempt {attempt} of slice {slice} of stage {stage} is at work")]
    AttemptRunning { stage: StageId, slice: u32, attempt: u32 },
    #[error("slice {slice} of stage {stage} is finished")]
    SliceFinished { stage: StageId, slice: u32 },
    #[error("batch {given} of slice {slice} of stage {stage} is out of order: {expected} is next")]
    OutOfSequence { stage: StageId, slice: u32, given: u64, expected: u64 },
    #[error(
        "batch {sequence} of slice {slice} of stage {stage} has an intent without a completion"
    )]
    IntentOpen { stage: StageId, slice: u32, sequence: u64 },
    #[error("batch {sequence} of slice {slice} of stage {stage} has no open intent")]
    NoIntent { stage: StageId, slice: u32, sequence: u64 },
    #[error("the batch of slice {slice} of stage {stage} does not fit its own account: {reason}")]
    InconsistentBatch { stage: StageId, slice: u32, reason: String },
    #[error("stage {stage} has unfinished slices")]
    StageUnfinished { stage: StageId },
    #[error("stage {stage} has no intent to commit its run")]
    NoRunCommitIntent { stage: StageId },
    #[error("run {0} has unfinished stages")]
    RunUnfinished(RunId),
    #[error("there is a token `{0}` already")]
    TokenExists(String),
    #[error("there is no token `{0}`")]
    UnknownToken(String),
    #[error("backfill {0} is not known")]
    UnknownBackfill(BackfillId),
    #[error("backfill {0} exists already")]
    BackfillExists(BackfillId),
    #[error("the request has created backfill {backfill} before")]
    BackfillRequestKnown { backfill: BackfillId },
    #[error("backfill {backfill} is {state}")]
    BackfillState { backfill: BackfillId, state: &'static str },
    #[error("window {window} of backfill {backfill} is {state}")]
    WindowState { backfill: BackfillId, window: u32, state: &'static str },
    #[error("run {given} is not the next of its window, which is {next}")]
    NotTheNextRun { given: RunId, next: RunId },
    #[error("the request id `{request}` was used before, for {method} of {subject}")]
    RequestUsed { request: String, method: String, subject: String },
    #[error("pipeline {0} is not known")]
    UnknownPipeline(String),
}

impl Rejection {
    /// Whether the sender has lost the right to write, in contrast to having asked for nonsense.
    pub fn is_fenced(&self) -> bool {
        matches!(
            self,
            Rejection::OldEpoch { .. }
                | Rejection::OldAttempt { .. }
                | Rejection::SliceFinished { .. }
                | Rejection::RunState { .. }
        )
    }
}

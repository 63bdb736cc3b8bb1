//! Everything that can be written to the ledger: one file a family, each command with its rules.

mod attempts;
mod backfills;
mod batches;
mod client_changes;
mod epoch;
mod executors;
mod forget_runs;
mod outputs;
mod pipelines;
mod queue;
mod requests;
mod runs;
mod sinks;
mod tokens;
mod watermarks;

use serde::{Deserialize, Serialize};
use weir_plan::StageId;

pub use attempts::{
    FailAttempt, FinishExchange, LoseAttempt, SliceAttempt, StartAttempt, StartCopy,
};
pub use backfills::{BackfillChange, ChangeBackfill, CreateBackfill};
pub use batches::{CommitDone, CommitIntent, CommitLost};
pub use client_changes::NoteClientChange;
pub use epoch::NewEpoch;
pub use executors::SetDraining;
pub use forget_runs::{EndedRun, ForgetRuns};
pub use outputs::{LoseOutputs, LostOutput, OutputStored};
pub use pipelines::{DeletePipeline, RegisterPipeline};
pub use queue::{BeginRun, MOST_QUEUED, MOST_SKIPPED, QueueRun, QueuedRun, SkipRun};
pub use requests::Requested;
pub use runs::{CleanUpDone, FinishRun, JoinRun, PlanRun, ResumeRun, StartRun};
pub use sinks::{PrepareSink, RunCommitDone, RunCommitIntent};
pub use tokens::{CreateToken, RevokeToken};
pub use watermarks::{ResetWatermark, SetWatermark};

use crate::facts::{Ledger, RunFacts, RunId, RunState, StageFacts};
use crate::rejection::Rejection;
use crate::slices::SliceMut;

/// A fact on its way into the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    NewEpoch(NewEpoch),
    StartRun(StartRun),
    PlanRun(PlanRun),
    PrepareSink(PrepareSink),
    StartAttempt(StartAttempt),
    StartCopy(StartCopy),
    CommitIntent(CommitIntent),
    CommitDone(CommitDone),
    CommitLost(CommitLost),
    FinishExchange(FinishExchange),
    FailAttempt(FailAttempt),
    LoseAttempt(LoseAttempt),
    LoseOutputs(LoseOutputs),
    OutputStored(OutputStored),
    RunCommitIntent(RunCommitIntent),
    RunCommitDone(RunCommitDone),
    FinishRun(FinishRun),
    ResumeRun(ResumeRun),
    JoinRun(JoinRun),
    CleanUpDone(CleanUpDone),
    SetWatermark(SetWatermark),
    ResetWatermark(ResetWatermark),
    CreateToken(CreateToken),
    RevokeToken(RevokeToken),
    CreateBackfill(CreateBackfill),
    ChangeBackfill(ChangeBackfill),
    RegisterPipeline(RegisterPipeline),
    DeletePipeline(DeletePipeline),
    Requested(Requested),
    SetDraining(SetDraining),
    NoteClientChange(NoteClientChange),
    QueueRun(QueueRun),
    BeginRun(BeginRun),
    SkipRun(SkipRun),
    ForgetRuns(ForgetRuns),
}

impl Command {
    /// The epoch in which it was decided; `None` for the command that begins one.
    pub fn epoch(&self) -> Option<u64> {
        match self {
            Command::NewEpoch(_) => None,
            Command::StartRun(command) => Some(command.epoch),
            Command::PlanRun(command) => Some(command.epoch),
            Command::PrepareSink(command) => Some(command.epoch),
            Command::StartAttempt(command) => Some(command.task.epoch),
            Command::StartCopy(command) => Some(command.task.epoch),
            Command::CommitIntent(command) => Some(command.task.epoch),
            Command::CommitDone(command) => Some(command.task.epoch),
            Command::CommitLost(command) => Some(command.task.epoch),
            Command::FinishExchange(command) => Some(command.task.epoch),
            Command::FailAttempt(command) => Some(command.task.epoch),
            Command::LoseAttempt(command) => Some(command.task.epoch),
            Command::LoseOutputs(command) => Some(command.epoch),
            Command::OutputStored(command) => Some(command.epoch),
            Command::RunCommitIntent(command) => Some(command.epoch),
            Command::RunCommitDone(command) => Some(command.epoch),
            Command::FinishRun(command) => Some(command.epoch),
            Command::ResumeRun(command) => Some(command.epoch),
            Command::JoinRun(command) => Some(command.epoch),
            Command::CleanUpDone(command) => Some(command.epoch),
            Command::SetWatermark(command) => Some(command.epoch),
            Command::ResetWatermark(command) => Some(command.epoch),
            Command::CreateToken(command) => Some(command.epoch),
            Command::RevokeToken(command) => Some(command.epoch),
            Command::CreateBackfill(command) => Some(command.epoch),
            Command::ChangeBackfill(command) => Some(command.epoch),
            Command::RegisterPipeline(command) => Some(command.epoch),
            Command::DeletePipeline(command) => Some(command.epoch),
            Command::Requested(command) => Some(command.epoch),
            Command::SetDraining(command) => Some(command.epoch),
            Command::NoteClientChange(command) => Some(command.epoch),
            Command::QueueRun(command) => Some(command.start.epoch),
            Command::BeginRun(command) => Some(command.epoch),
            Command::SkipRun(command) => Some(command.start.epoch),
            Command::ForgetRuns(command) => Some(command.epoch),
        }
    }
}

fn known_run<'ledger>(
    ledger: &'ledger mut Ledger,
    run: &RunId,
) -> Result<&'ledger mut RunFacts, Rejection> {
    ledger.runs.get_mut(run).ok_or_else(|| Rejection::UnknownRun(run.clone()))
}

fn running_run<'ledger>(
    ledger: &'ledger mut Ledger,
    run: &RunId,
) -> Result<&'ledger mut RunFacts, Rejection> {
    let facts = known_run(ledger, run)?;
    match facts.state {
        RunState::Running => Ok(facts),
        RunState::Queued
        | RunState::Succeeded { .. }
        | RunState::Failed { .. }
        | RunState::Abandoned { .. }
        | RunState::Skipped { .. } => Err(wrong_state(run, &facts.state)),
    }
}

fn wrong_state(run: &RunId, state: &RunState) -> Rejection {
    let state = match state {
        RunState::Queued => "queued",
        RunState::Running => "running",
        RunState::Succeeded { .. } => "succeeded",
        RunState::Failed { .. } => "failed",
        RunState::Abandoned { .. } => "abandoned",
        RunState::Skipped { .. } => "skipped",
    };
    Rejection::RunState { run: run.clone(), state }
}

fn planned_stage<'run>(
    run_id: &RunId,
    run: &'run mut RunFacts,
    stage: StageId,
) -> Result<&'run mut StageFacts, Rejection> {
    if !run.is_planned() {
        return Err(Rejection::NotPlanned(run_id.clone()));
    }
    let unknown = || Rejection::UnknownSlice { run: run_id.clone(), stage, slice: 0 };
    let index = usize::try_from(stage.0).map_err(|_| unknown())?;
    run.stages.get_mut(index).ok_or_else(unknown)
}

fn slice_of<'run>(
    run: &'run mut RunFacts,
    task: &SliceAttempt,
) -> Result<SliceMut<'run>, Rejection> {
    let stage = planned_stage(&task.run, run, task.stage)?;
    let unknown =
        || Rejection::UnknownSlice { run: task.run.clone(), stage: task.stage, slice: task.slice };
    stage.slices.get_mut(task.slice).ok_or_else(unknown)
}

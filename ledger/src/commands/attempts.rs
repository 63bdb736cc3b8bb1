//! Attempts at slices: begun, failed, or ended with an exchange.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use weir_plan::{ExchangeOutput, RowAccount, StageId};

use super::{planned_stage, running_run, slice_of};
use crate::facts::{Ledger, RunId, SliceFacts, SliceState, StageOutputShape};
use crate::rejection::Rejection;

/// Who speaks: one attempt at one slice, in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SliceAttempt {
    pub epoch: u64,
    pub run: RunId,
    pub stage: StageId,
    pub slice: u32,
    pub attempt: u32,
}

impl SliceAttempt {
    /// The slice's current attempt, or its copy, at work in this epoch.
    pub(super) fn check_current(&self, slice: &SliceFacts) -> Result<(), Rejection> {
        if slice.is_finished() {
            return Err(Rejection::SliceFinished { stage: self.stage, slice: self.slice });
        }
        match slice.is_at_work(self.epoch, self.attempt) {
            true => Ok(()),
            false => Err(self.old_attempt(slice)),
        }
    }

    pub(super) fn old_attempt(&self, slice: &SliceFacts) -> Rejection {
        Rejection::OldAttempt {
            stage: self.stage,
            slice: self.slice,
            given: self.attempt,
            current: slice.attempts,
        }
    }
}

/// Begins the next attempt at a slice, from its last committed batch. No attempt of this epoch is at
/// work on it, its inputs are complete, and every earlier intent has been resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartAttempt {
    pub task: SliceAttempt,
}

impl StartAttempt {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let task = &self.task;
        let run = running_run(ledger, &task.run)?;
        for input in planned_stage(&task.run, run, task.stage)?.shape.inputs.clone() {
            if !planned_stage(&task.run, run, input)?.is_complete() {
                return Err(Rejection::InputNotReady { stage: task.stage, input });
            }
        }
        let mut slice = slice_of(run, task)?;
        match slice.state {
            SliceState::Finished => {
                return Err(Rejection::SliceFinished { stage: task.stage, slice: task.slice });
            }
            SliceState::Running { epoch } | SliceState::Copied { epoch, .. }
                if epoch == task.epoch =>
            {
                return Err(Rejection::AttemptRunning {
                    stage: task.stage,
                    slice: task.slice,
                    attempt: slice.attempts,
                });
            }
            SliceState::Pending
            | SliceState::Running { .. }
            | SliceState::Copied { .. }
            | SliceState::Failed { .. } => {}
        }
        if let Some(intent) = &slice.intent {
            return Err(Rejection::IntentOpen {
                stage: task.stage,
                slice: task.slice,
                sequence: intent.commit.manifest.sequence,
            });
        }
        if Some(task.attempt) != slice.attempts.checked_add(1) {
            return Err(task.old_attempt(&slice));
        }
        slice.attempts = task.attempt;
        slice.state = SliceState::Running { epoch: task.epoch };
        Ok(true)
    }
}

/// Begins a second attempt beside the one that is at work and takes long: the first result counts, the other is
/// ignored. Only for whole stages, whose attempts write files of their own and change nothing else; a sink lets only
/// the last attempt publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCopy {
    pub task: SliceAttempt,
}

impl StartCopy {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let task = &self.task;
        let run = running_run(ledger, &task.run)?;
        let stage = planned_stage(&task.run, run, task.stage)?;
        if stage.shape.output != StageOutputShape::Exchange {
            return Err(Rejection::WrongOutput { stage: task.stage, expected: "an exchange" });
        }
        let mut slice = slice_of(run, task)?;
        if slice.is_finished() {
            return Err(Rejection::SliceFinished { stage: task.stage, slice: task.slice });
        }
        // The attempt before is at work, and has no copy yet.
        let first = slice.attempts;
        let is_next = first.checked_add(1) == Some(task.attempt);
        if !is_next || slice.state != (SliceState::Running { epoch: task.epoch }) {
            return Err(task.old_attempt(&slice));
        }
        slice.attempts = task.attempt;
        slice.state = SliceState::Copied { epoch: task.epoch, live: vec![first, task.attempt] };
        Ok(true)
    }
}

/// An attempt has ended badly. An open intent stays open until the target has been asked. While another attempt at the
/// slice is at work, or has finished it, nothing has failed but this attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailAttempt {
    pub task: SliceAttempt,
    /// Without secrets.
    pub error: String,
    /// When the slice may be attempted again; `None`: not at all in this session of the run.
    pub retry_at: Option<DateTime<Utc>>,
}

impl FailAttempt {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = running_run(ledger, &self.task.run)?;
        let mut slice = slice_of(run, &self.task)?;
        if slice.is_finished() {
            return Ok(false);
        }
        self.task.check_current(&slice)?;
        if slice.leave(self.task.attempt) {
            return Ok(true);
        }
        slice.failures += 1;
        slice.state = SliceState::Failed { error: self.error.clone(), retry_at: self.retry_at };
        Ok(true)
    }
}

/// The executor of an attempt was lost. Another attempt may begin at once, unless this was the last.
/// A slice whose last batch it had committed before has lost nothing, nor has one that another attempt is at work on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoseAttempt {
    pub task: SliceAttempt,
    pub error: String,
    /// No other attempt may be made in this session of the run.
    pub is_last: bool,
}

impl LoseAttempt {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = running_run(ledger, &self.task.run)?;
        let mut slice = slice_of(run, &self.task)?;
        if slice.is_finished() {
            return Ok(false);
        }
        self.task.check_current(&slice)?;
        if slice.leave(self.task.attempt) {
            return Ok(true);
        }
        slice.losses += 1;
        slice.state = match self.is_last {
            true => SliceState::Failed { error: self.error.clone(), retry_at: None },
            false => SliceState::Pending,
        };
        Ok(true)
    }
}

/// A slice's exchange files are durable. The first result wins; later ones are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishExchange {
    pub task: SliceAttempt,
    pub output: ExchangeOutput,
    pub account: RowAccount,
}

impl FinishExchange {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = running_run(ledger, &self.task.run)?;
        let stage = planned_stage(&self.task.run, run, self.task.stage)?;
        if stage.shape.output != StageOutputShape::Exchange {
            return Err(Rejection::WrongOutput { stage: self.task.stage, expected: "an exchange" });
        }
        let mut slice = slice_of(run, &self.task)?;
        if slice.is_finished() {
            return Ok(false);
        }
        self.task.check_current(&slice)?;
        slice.exchange = Some(Box::new(self.output.clone()));
        slice.note_committed(0, self.task.attempt);
        slice.add_account(&self.account);
        slice.failures = 0;
        slice.losses = 0;
        slice.state = SliceState::Finished;
        drop(slice);
        planned_stage(&self.task.run, run, self.task.stage)?.finished_slices += 1;
        Ok(true)
    }
}

//! Batches of a slice on their way to a sink: intended, then done or lost.
//!
//! ```text
//!              CommitIntent            CommitDone
//! sequence n ─────────────▶ open n ───────────────▶ sequence n + 1, or the slice is finished
//!      ▲                      │
//!      └───── CommitLost ─────┘  (the batch is written again under the same sequence)
//! ```

use serde::{Deserialize, Serialize};
use weir_plan::{Commit, StageId};

use super::{SliceAttempt, planned_stage, running_run, slice_of};
use crate::facts::{Ledger, OpenIntent, RunId, SliceState, StageOutputShape};
use crate::rejection::Rejection;
use crate::watermark::advance_watermarks;

/// A staged batch is about to be published by the slice's current attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitIntent {
    pub task: SliceAttempt,
    pub commit: Commit,
}

impl CommitIntent {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let task = &self.task;
        let run = running_run(ledger, &task.run)?;
        let stage = planned_stage(&task.run, run, task.stage)?;
        if stage.shape.output == StageOutputShape::Exchange {
            return Err(Rejection::WrongOutput { stage: task.stage, expected: "a sink" });
        }
        let mut slice = slice_of(run, task)?;
        task.check_current(&slice)?;
        let manifest = &self.commit.manifest;
        if let Some(open) = &slice.intent {
            if open.attempt == task.attempt && open.commit == self.commit {
                return Ok(false);
            }
            return Err(Rejection::IntentOpen {
                stage: task.stage,
                slice: task.slice,
                sequence: open.commit.manifest.sequence,
            });
        }
        if manifest.sequence != slice.next_sequence {
            return Err(Rejection::OutOfSequence {
                stage: task.stage,
                slice: task.slice,
                given: manifest.sequence,
                expected: slice.next_sequence,
            });
        }
        let inconsistent = |reason: String| Rejection::InconsistentBatch {
            stage: task.stage,
            slice: task.slice,
            reason,
        };
        if manifest.slice != task.slice {
            return Err(inconsistent(format!("its manifest is of slice {}", manifest.slice)));
        }
        if manifest.rows != self.commit.account.rows_written {
            return Err(inconsistent(format!(
                "{} rows in the manifest, {} in the account",
                manifest.rows, self.commit.account.rows_written
            )));
        }
        slice.intent = Some(Box::new(OpenIntent {
            attempt: task.attempt,
            epoch: task.epoch,
            commit: self.commit.clone(),
        }));
        Ok(true)
    }
}

/// A batch has been published: said by the attempt that did it, or, after the target has been
/// asked, by a later epoch in the name of the attempt that intended it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitDone {
    pub task: SliceAttempt,
    pub sequence: u64,
}

impl CommitDone {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let task = &self.task;
        let run = running_run(ledger, &task.run)?;
        let mut slice = slice_of(run, task)?;
        let Some(intent) = take_intent(&mut slice, task, self.sequence)? else { return Ok(false) };
        slice.note_committed(self.sequence, intent.attempt);
        let commit = intent.commit;
        slice.next_sequence += 1;
        slice.failures = 0;
        slice.losses = 0;
        slice.add_account(&commit.account);
        slice.manifest_rows += commit.manifest.rows;
        slice.manifest_checksum = slice.manifest_checksum.wrapping_add(commit.manifest.checksum);
        slice.position = commit.resume_at.map(Box::new);
        if slice.position.is_none() {
            slice.state = SliceState::Finished;
            drop(slice);
            let stage = planned_stage(&task.run, run, task.stage)?;
            stage.finished_slices += 1;
            if stage.is_complete() {
                complete_sink(ledger, &task.run, task.stage);
            }
        }
        Ok(true)
    }
}

/// The target says that a batch has not landed and never will.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitLost {
    /// The attempt that intended it; it is no longer at work.
    pub task: SliceAttempt,
    pub sequence: u64,
}

impl CommitLost {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let task = &self.task;
        let run = running_run(ledger, &task.run)?;
        let mut slice = slice_of(run, task)?;
        if slice.state == (SliceState::Running { epoch: task.epoch }) {
            return Err(Rejection::AttemptRunning {
                stage: task.stage,
                slice: task.slice,
                attempt: slice.attempts,
            });
        }
        match take_intent(&mut slice, task, self.sequence)? {
            Some(_) => Ok(true),
            // Published: that cannot be taken back.
            None => Err(Rejection::NoIntent {
                stage: task.stage,
                slice: task.slice,
                sequence: self.sequence,
            }),
        }
    }
}

/// The open intent that is meant; `None` if it has been done already.
fn take_intent(
    slice: &mut crate::SliceFacts,
    task: &SliceAttempt,
    sequence: u64,
) -> Result<Option<OpenIntent>, Rejection> {
    if sequence < slice.next_sequence {
        return Ok(None);
    }
    let is_meant = |intent: &mut Box<OpenIntent>| {
        intent.commit.manifest.sequence == sequence && intent.attempt == task.attempt
    };
    match slice.intent.take_if(is_meant) {
        Some(intent) => Ok(Some(*intent)),
        None if slice.intent.is_some() && task.attempt != slice.attempts => {
            Err(task.old_attempt(slice))
        }
        None => Err(Rejection::NoIntent { stage: task.stage, slice: task.slice, sequence }),
    }
}

/// All rows of a sink are visible: watermarks may move.
pub(super) fn complete_sink(ledger: &mut Ledger, run: &RunId, stage: StageId) {
    if let Some(facts) = ledger.runs.get(run) {
        let pipeline = ledger.pipelines.entry(facts.pipeline.clone()).or_default();
        advance_watermarks(pipeline, facts, stage);
    }
}

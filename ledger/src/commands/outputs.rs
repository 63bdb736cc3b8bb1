//! Exchanges that are kept by an executor: lost with it, unless the storage has them, too.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use weir_plan::{Holder, InStorage, StageId};

use super::{known_run, planned_stage, running_run};
use crate::facts::{Ledger, RunFacts, RunId, SliceFacts, SliceState, StageFacts};
use crate::rejection::Rejection;

/// What one slice has left of an exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostOutput {
    pub stage: StageId,
    pub slice: u32,
    /// Another output of the slice is not meant.
    pub file_id: String,
}

/// Outputs are gone that somebody still has to read. Their slices are to be computed again; and so are
/// those that may have read them, unless their stage is complete and durable: computed a second time, the
/// rows may lie in other partitions, and one that has read of both would lose some and have others twice.
/// Attempts that are at work on such a slice are the current ones no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoseOutputs {
    pub epoch: u64,
    pub run: RunId,
    pub outputs: Vec<LostOutput>,
}

impl LoseOutputs {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = running_run(ledger, &self.run)?;
        let mut lost = BTreeSet::new();
        for LostOutput { stage, slice, file_id } in &self.outputs {
            let known = run.slice(*stage, *slice).and_then(|slice| slice.exchange.as_ref());
            // What has been stored meanwhile is not lost.
            if known.is_some_and(|output| output.file_id == *file_id && !output.is_durable()) {
                let stage_facts = &mut run.stages[stage.0 as usize];
                stage_facts.reset(*slice);
                lost.insert(*stage);
            }
        }
        let changed = !lost.is_empty();
        for index in 0..run.stages.len() {
            let stage = &run.stages[index];
            let reads_lost = stage.shape.inputs.iter().any(|input| lost.contains(input));
            let id = StageId(u32::try_from(index).unwrap_or(u32::MAX));
            let is_safe = stage.are_slices_finished()
                && (stage.sink().is_some() || stage.is_durable() || !run.is_still_read(id));
            if reads_lost && !is_safe {
                let stage = &mut run.stages[index];
                (0..stage.slices.count()).for_each(|slice| stage.reset(slice));
                lost.insert(id);
            }
        }
        Ok(changed)
    }
}

/// The storage has what an executor keeps: it is not lost with the executor any more. Of a run that has failed, too:
/// it may be taken up again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputStored {
    pub epoch: u64,
    pub run: RunId,
    pub stage: StageId,
    pub slice: u32,
    /// Another output of the slice is not meant.
    pub file_id: String,
}

impl OutputStored {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = known_run(ledger, &self.run)?;
        if run.state.is_terminal() {
            return Ok(false);
        }
        let stage = planned_stage(&self.run, run, self.stage)?;
        let Some(mut slice) = stage.slices.get_mut(self.slice) else { return Ok(false) };
        match &mut slice.exchange {
            Some(output) if output.file_id == self.file_id && !output.is_durable() => {
                output.in_storage = InStorage::Yes;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

impl RunFacts {
    /// Outputs that are gone, as their holders are, and that are still needed.
    pub fn lost_outputs(&self, is_lost: &dyn Fn(&Holder) -> bool) -> Vec<LostOutput> {
        let mut outputs = Vec::new();
        for (stage, id) in self.stages.iter().zip(0..) {
            let stage_id = StageId(id);
            if !stage.slices.are_at_risk() || !self.is_still_read(stage_id) {
                continue;
            }
            let held = stage.slices.iter().zip(0..).filter_map(|(slice, number)| {
                let output = slice.exchange.as_ref()?;
                let holder = output.holder.as_ref().filter(|_| !output.is_durable())?;
                Some((number, holder, &output.file_id))
            });
            outputs.extend(held.filter(|(_, holder, _)| is_lost(holder)).map(
                |(slice, _, file_id)| LostOutput {
                    stage: stage_id,
                    slice,
                    file_id: file_id.clone(),
                },
            ));
        }
        outputs
    }

    fn is_still_read(&self, stage: StageId) -> bool {
        let mut readers = self.stages.iter().filter(|reader| reader.shape.inputs.contains(&stage));
        readers.any(|reader| !reader.are_slices_finished())
    }
}

impl StageFacts {
    fn is_durable(&self) -> bool {
        !self.slices.are_at_risk()
    }

    fn reset(&mut self, slice: u32) {
        let Some(mut slice) = self.slices.get_mut(slice) else { return };
        match slice.state {
            SliceState::Pending | SliceState::Failed { .. } => return,
            SliceState::Running { .. } | SliceState::Copied { .. } => {}
            SliceState::Finished => self.finished_slices -= 1,
        }
        slice.forget_account();
        let kept = SliceFacts { attempts: slice.attempts, ..SliceFacts::default() };
        *slice = SliceFacts { failures: slice.failures, losses: slice.losses, ..kept };
    }
}

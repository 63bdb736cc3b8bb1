//! Sinks as a whole: prepared before the first row, and shown at once with `commit: run`.

use serde::{Deserialize, Serialize};
use weir_connectors::PreparedSink;
use weir_plan::StageId;
use weir_spec::{CommitMode, NodeName};

use super::batches::complete_sink;
use super::{planned_stage, running_run};
use crate::facts::{Ledger, RunCommit, RunId, StageFacts};
use crate::rejection::Rejection;

/// What a sink has agreed with its target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareSink {
    pub epoch: u64,
    pub run: RunId,
    pub sink: NodeName,
    pub prepared: PreparedSink,
}

impl PrepareSink {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = running_run(ledger, &self.run)?;
        if !run.is_planned() {
            return Err(Rejection::NotPlanned(self.run.clone()));
        }
        if !run.sink_stages().any(|stage| stage.sink().is_some_and(|(sink, _)| *sink == self.sink))
        {
            return Err(Rejection::UnknownSink {
                run: self.run.clone(),
                sink: self.sink.to_string(),
            });
        }
        let known = run.prepared.insert(self.sink.clone(), self.prepared.clone());
        Ok(known.as_ref() != Some(&self.prepared))
    }
}

/// All batches of a `commit: run` sink are durable; they are about to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCommitIntent {
    pub epoch: u64,
    pub run: RunId,
    pub stage: StageId,
}

impl RunCommitIntent {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = running_run(ledger, &self.run)?;
        for input in planned_stage(&self.run, run, self.stage)?.shape.inputs.clone() {
            if !planned_stage(&self.run, run, input)?.is_complete() {
                return Err(Rejection::InputNotReady { stage: self.stage, input });
            }
        }
        let stage = run_committed_stage(planned_stage(&self.run, run, self.stage)?, self.stage)?;
        if !stage.are_slices_finished() {
            return Err(Rejection::StageUnfinished { stage: self.stage });
        }
        match stage.run_commit {
            RunCommit::Open => {
                stage.run_commit = RunCommit::Intended;
                Ok(true)
            }
            RunCommit::Intended | RunCommit::Done => Ok(false),
        }
    }
}

/// All rows of a `commit: run` sink are visible. Watermarks advance in this entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCommitDone {
    pub epoch: u64,
    pub run: RunId,
    pub stage: StageId,
}

impl RunCommitDone {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = running_run(ledger, &self.run)?;
        let stage = run_committed_stage(planned_stage(&self.run, run, self.stage)?, self.stage)?;
        match stage.run_commit {
            RunCommit::Done => Ok(false),
            RunCommit::Open => Err(Rejection::NoRunCommitIntent { stage: self.stage }),
            RunCommit::Intended => {
                stage.run_commit = RunCommit::Done;
                complete_sink(ledger, &self.run, self.stage);
                Ok(true)
            }
        }
    }
}

fn run_committed_stage(stage: &mut StageFacts, id: StageId) -> Result<&mut StageFacts, Rejection> {
    match stage.sink() {
        Some((_, CommitMode::Run)) => Ok(stage),
        Some((_, CommitMode::Batch)) | None => {
            Err(Rejection::WrongOutput { stage: id, expected: "a sink with `commit: run`" })
        }
    }
}

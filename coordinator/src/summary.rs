//! A run's facts as listings show them.

use indexmap::IndexMap;
use weir_ledger::{NodeRole, RunFacts, RunId, RunState, StageFacts};

use crate::{RunDetail, RunStatus, RunSummary, StageDetail};

/// `is_held`: whether some process writes the pipeline's ledger now.
pub(crate) fn summarize(id: &RunId, run: &RunFacts, is_held: bool) -> RunSummary {
    let (status, error) = match &run.state {
        RunState::Queued => (RunStatus::Queued, None),
        RunState::Running if is_held => (RunStatus::Running, None),
        RunState::Running => (RunStatus::Interrupted, None),
        RunState::Succeeded { .. } => (RunStatus::Succeeded, None),
        RunState::Failed { error, .. } => (RunStatus::Failed, Some(error.clone())),
        RunState::Abandoned { error, .. } => (RunStatus::Abandoned, error.clone()),
        RunState::Skipped { beside, .. } => {
            (RunStatus::Skipped, Some(format!("run {beside} of the pipeline went on")))
        }
    };
    let mut rows_read = 0;
    let mut dead_letters = 0;
    let mut rows_written = IndexMap::new();
    for stage in &run.stages {
        let account = stage.account();
        for (node, counts) in &account.nodes {
            dead_letters += counts.dead_lettered;
            if let Some(NodeRole::Source { .. }) = stage.role(node) {
                rows_read += counts.rows_in;
            }
        }
        if let Some((sink, _)) = stage.sink() {
            rows_written.insert(sink.clone(), account.rows_written);
        }
    }
    RunSummary {
        run: id.0.clone(),
        pipeline: run.pipeline.0.clone(),
        status,
        started_at: run.started_at,
        ended_at: run.state.ended_at(),
        params: run.params.clone(),
        window: run.window,
        version: run.version,
        rows_read,
        rows_written,
        dead_letters,
        sessions: run.sessions,
        error,
    }
}

pub(crate) fn detail(id: &RunId, run: &RunFacts, is_held: bool) -> RunDetail {
    let stages = run.stages.iter().zip(0..).map(|(stage, id)| stage_detail(id, stage)).collect();
    RunDetail { summary: summarize(id, run, is_held), stages }
}

fn stage_detail(id: u32, stage: &StageFacts) -> StageDetail {
    StageDetail {
        stage: id,
        name: stage.shape.name.clone(),
        slices: stage.shape.slices,
        slices_done: stage.finished_slices,
        attempts: stage.slices.iter().map(|slice| slice.attempts).sum(),
        account: stage.account(),
    }
}

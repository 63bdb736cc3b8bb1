//! The life of a run: started, planned once, perhaps resumed, ended.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weir_spec::{NodeName, PipelineName};

use super::backfills::{finish_window, is_forgotten, resume_window, start_window};
use super::{known_run, running_run, wrong_state};
use crate::backfills::WindowOf;
use crate::facts::{
    Ledger, RunFacts, RunId, RunOutcome, RunState, SliceState, StageFacts, StageOutputShape,
    StageShape,
};
use crate::rejection::Rejection;

/// Begins a run. The pipeline has no other that is going on, apart from those of backfills' windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartRun {
    pub epoch: u64,
    pub run: RunId,
    pub pipeline: PipelineName,
    pub spec_hash: String,
    pub params: BTreeMap<String, Value>,
    pub window: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// The registered version that it runs; `None`: its file came with its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// What the client has called its request; no other run has it.
    #[serde(default)]
    pub request_id: Option<String>,
    /// The window that it loads, if it is of a backfill; the window begins with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<WindowOf>,
    /// The run whose rejected rows it loads again, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<RunId>,
    pub at: DateTime<Utc>,
}

impl StartRun {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        if ledger.runs.contains_key(&self.run) {
            return Err(Rejection::RunExists(self.run.clone()));
        }
        check_request(ledger, self.request_id.as_ref(), None)?;
        match &self.backfill {
            None => check_no_other_active(ledger, &self.pipeline, &self.run)?,
            Some(window) => start_window(ledger, window, &self.run)?,
        }
        self.note(ledger);
        if self.backfill.is_none() {
            let pipeline = ledger.pipelines.entry(self.pipeline.clone()).or_default();
            pipeline.active_run = Some(self.run.clone());
        }
        let facts = self.facts(ledger, RunState::Running, 1);
        ledger.runs.insert(self.run.clone(), facts);
        Ok(true)
    }

    /// What the pipeline and the client's request have to do with it.
    pub(super) fn note(&self, ledger: &mut Ledger) {
        let pipeline = ledger.pipelines.entry(self.pipeline.clone()).or_default();
        if !pipeline.spec_hashes.contains(&self.spec_hash) {
            pipeline.spec_hashes.push(self.spec_hash.clone());
        }
        if let Some(request) = &self.request_id {
            ledger.requests.insert(request.clone(), self.run.clone());
        }
    }

    pub(super) fn facts(&self, ledger: &mut Ledger, state: RunState, sessions: u32) -> RunFacts {
        RunFacts {
            pipeline: self.pipeline.clone(),
            spec_hash: self.spec_hash.clone(),
            params: self.params.clone(),
            window: self.window,
            version: self.version,
            request_id: self.request_id.clone(),
            backfill: self.backfill.clone(),
            replay_of: self.replay_of.clone(),
            started_at: self.at,
            number: ledger.next_run_number(),
            state,
            sessions,
            graph_hash: None,
            engine_version: None,
            stages: Vec::new(),
            prepared: BTreeMap::new(),
            cleaned_up: false,
        }
    }
}

/// Freezes the plan of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanRun {
    pub epoch: u64,
    pub run: RunId,
    pub graph_hash: String,
    pub engine_version: String,
    /// By stage id.
    pub stages: Vec<StageShape>,
}

impl PlanRun {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = running_run(ledger, &self.run)?;
        if run.is_planned() {
            return Err(Rejection::AlreadyPlanned(self.run.clone()));
        }
        check_shape(&self.stages)
            .map_err(|reason| Rejection::InvalidPlan { run: self.run.clone(), reason })?;
        // It reads what is there by now, whoever was started before it.
        let number = ledger.next_run_number();
        let run = known_run(ledger, &self.run)?;
        run.number = number;
        run.graph_hash = Some(self.graph_hash.clone());
        run.engine_version = Some(self.engine_version.clone());
        run.stages = self.stages.iter().cloned().map(StageFacts::new).collect();
        Ok(true)
    }
}

/// Inputs come before what reads them and end in an exchange; every sink is fed by one stage, so
/// that `(sink, slice, sequence)` identifies a batch.
fn check_shape(stages: &[StageShape]) -> Result<(), String> {
    let mut sinks = Vec::new();
    for (id, stage) in stages.iter().enumerate() {
        for input in &stage.inputs {
            let read = usize::try_from(input.0).ok().filter(|read| *read < id);
            match read.map(|read| &stages[read].output) {
                Some(StageOutputShape::Exchange) => {}
                Some(StageOutputShape::Sink { .. }) => {
                    return Err(format!("stage {id} reads stage {input}, which ends in a sink"));
                }
                None => {
                    return Err(format!("stage {id} reads stage {input}, which is not before it"));
                }
            }
        }
        if let StageOutputShape::Sink { node, .. } = &stage.output {
            if sinks.contains(&node) {
                return Err(format!("two stages feed sink `{node}`"));
            }
            sinks.push(node);
        }
    }
    Ok(())
}

/// Goes on with a run that was interrupted or has failed. Slices that had failed for good may be
/// attempted again, and so may those whose attempts were stopped, also in the epoch of these: what such an
/// attempt still says is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeRun {
    pub epoch: u64,
    pub run: RunId,
    /// What the client has called its request, if one has asked for it: it means this run from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    pub at: DateTime<Utc>,
}

impl ResumeRun {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let facts = known_run(ledger, &self.run)?;
        if facts.state.is_terminal() || facts.state == RunState::Queued {
            return Err(wrong_state(&self.run, &facts.state));
        }
        let (pipeline, state) = (facts.pipeline.clone(), facts.state.clone());
        let window = facts.backfill.clone();
        check_request(ledger, self.request_id.as_ref(), Some(&self.run))?;
        match (window, state) {
            (None, _) => check_no_other_active(ledger, &pipeline, &self.run)?,
            (Some(window), state) => resume_window(ledger, &window, &state)?,
        }
        if let Some(request) = &self.request_id {
            ledger.requests.insert(request.clone(), self.run.clone());
        }
        if !known_run(ledger, &self.run)?.is_complete() {
            // What it loads from now on other runs must not load again.
            let number = ledger.next_run_number();
            known_run(ledger, &self.run)?.number = number;
        }
        let facts = known_run(ledger, &self.run)?;
        facts.state = RunState::Running;
        facts.sessions += 1;
        facts.cleaned_up = false;
        // What a sink had prepared may be gone: by a clean-up that has come to its end, or has not, or by another run.
        // With batches it is still there.
        let untouched = facts.sink_stages().filter(|stage| !stage.has_batches());
        let untouched: Vec<NodeName> =
            untouched.filter_map(|stage| Some(stage.sink()?.0.clone())).collect();
        facts.prepared.retain(|node, _| !untouched.contains(node));
        for slices in facts.stages.iter_mut().map(|stage| &mut stage.slices) {
            for number in 0..slices.count() {
                let mut slice = slices.get_mut(number).expect("there are so many");
                slice.failures = 0;
                slice.losses = 0;
                match slice.state {
                    SliceState::Failed { .. }
                    | SliceState::Running { .. }
                    | SliceState::Copied { .. } => {
                        slice.state = SliceState::Pending;
                    }
                    SliceState::Pending | SliceState::Finished => {}
                }
            }
        }
        if facts.backfill.is_none() {
            ledger.pipelines.entry(pipeline).or_default().active_run = Some(self.run.clone());
        }
        Ok(true)
    }
}

/// A client's request means this run, which goes on already: repeated, it starts no other. Earlier versions have noted that of a
/// second request for the same run, and their logs still have it; now such a request is queued or skipped
/// ([`QueueRun`](super::QueueRun), [`SkipRun`](super::SkipRun)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRun {
    pub epoch: u64,
    pub run: RunId,
    pub request_id: String,
}

impl JoinRun {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        known_run(ledger, &self.run)?;
        check_request(ledger, Some(&self.request_id), Some(&self.run))?;
        let before = ledger.requests.insert(self.request_id.clone(), self.run.clone());
        Ok(before.is_none())
    }
}

/// Ends a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishRun {
    pub epoch: u64,
    pub run: RunId,
    pub outcome: RunOutcome,
    pub at: DateTime<Utc>,
}

impl FinishRun {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = known_run(ledger, &self.run)?;
        let state = match (&run.state, &self.outcome) {
            (RunState::Running, RunOutcome::Succeeded) => {
                if !run.is_complete() {
                    return Err(Rejection::RunUnfinished(self.run.clone()));
                }
                RunState::Succeeded { at: self.at }
            }
            (RunState::Queued | RunState::Running, RunOutcome::Failed { error }) => {
                RunState::Failed { at: self.at, error: error.clone() }
            }
            (RunState::Queued | RunState::Running, RunOutcome::Abandoned) => {
                RunState::Abandoned { at: self.at, error: None }
            }
            (RunState::Failed { error, .. }, RunOutcome::Abandoned) => {
                RunState::Abandoned { at: self.at, error: Some(error.clone()) }
            }
            (state, _) => return Err(wrong_state(&self.run, state)),
        };
        run.state = state;
        let (pipeline, window) = (run.pipeline.clone(), run.backfill.clone());
        let pipeline = ledger.pipelines.entry(pipeline).or_default();
        if pipeline.active_run.as_ref() == Some(&self.run) {
            pipeline.active_run = None;
        }
        pipeline.queue.retain(|queued| queued.run != self.run);
        if let Some(window) = window {
            finish_window(ledger, &window, &self.run, &self.outcome, self.at);
            forget(ledger, &self.run);
        }
        Ok(true)
    }
}

/// The sinks of a run have nothing left in staging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanUpDone {
    pub epoch: u64,
    pub run: RunId,
}

impl CleanUpDone {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let run = known_run(ledger, &self.run)?;
        let changed = !run.cleaned_up;
        run.cleaned_up = true;
        forget(ledger, &self.run);
        Ok(changed)
    }
}

/// Takes a window's run out of the ledger when it is of no use there any more: a backfill may have many.
fn forget(ledger: &mut Ledger, run: &RunId) {
    if ledger.runs.get(run).is_some_and(is_forgotten) {
        ledger.runs.remove(run);
    }
}

/// A request means one run as long as that is in the ledger.
pub(super) fn check_request(
    ledger: &Ledger,
    request: Option<&String>,
    wanted: Option<&RunId>,
) -> Result<(), Rejection> {
    match request.and_then(|request| ledger.run_of_request(request)) {
        Some(run) if Some(run) != wanted => Err(Rejection::RequestKnown { run: run.clone() }),
        Some(_) | None => Ok(()),
    }
}

pub(super) fn check_no_other_active(
    ledger: &Ledger,
    pipeline: &PipelineName,
    run: &RunId,
) -> Result<(), Rejection> {
    match ledger.pipelines.get(pipeline).and_then(|pipeline| pipeline.active_run.as_ref()) {
        Some(active) if active != run => Err(Rejection::RunActive { active: active.clone() }),
        Some(_) | None => Ok(()),
    }
}

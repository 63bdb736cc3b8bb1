//! Runs beside another one: one run of a pipeline goes on at a time, apart from those of backfills' windows. The
//! others wait for their turn, or are skipped.
//!
//! ```text
//! QueueRun ─▶ Queued ─BeginRun─▶ Running ─▶ …
//!                │
//!                └─FinishRun─▶ Failed, Abandoned (cancelled, or it cannot begin)
//! SkipRun ──▶ Skipped
//! ```

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use weir_spec::PipelineName;

use super::runs::{check_no_other_active, check_request};
use super::{StartRun, known_run, wrong_state};
use crate::facts::{Ledger, RunFacts, RunId, RunState};
use crate::rejection::Rejection;

/// Runs of one pipeline that wait; more are refused.
pub const MOST_QUEUED: usize = 100;

/// Skipped runs of one pipeline that are remembered; of more the oldest are forgotten, as what submits every
/// second might be skipped for days.
pub const MOST_SKIPPED: usize = 1_000;

/// A run that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedRun {
    pub run: RunId,
    /// It gives an unfinished run up, instead of failing because of it.
    pub is_fresh: bool,
    /// It waits for no run: the one that goes on is stopped and given up, and so are those that wait before
    /// it.
    pub cancels_others: bool,
}

/// Puts a run at the end of its pipeline's queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueRun {
    /// As it will start; of no backfill.
    pub start: StartRun,
    pub is_fresh: bool,
    pub cancels_others: bool,
}

impl QueueRun {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let start = &self.start;
        if ledger.runs.contains_key(&start.run) {
            return Err(Rejection::RunExists(start.run.clone()));
        }
        check_request(ledger, start.request_id.as_ref(), None)?;
        let waiting =
            ledger.pipelines.get(&start.pipeline).map_or(0, |pipeline| pipeline.queue.len());
        if waiting >= MOST_QUEUED {
            return Err(Rejection::QueueFull { pipeline: start.pipeline.to_string(), waiting });
        }
        start.note(ledger);
        let pipeline = ledger.pipelines.entry(start.pipeline.clone()).or_default();
        pipeline.queue.push(QueuedRun {
            run: start.run.clone(),
            is_fresh: self.is_fresh,
            cancels_others: self.cancels_others,
        });
        let facts = start.facts(ledger, RunState::Queued, 0);
        ledger.runs.insert(start.run.clone(), facts);
        Ok(true)
    }
}

/// The first run of a queue begins: no other one of its pipeline is going on any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginRun {
    pub epoch: u64,
    pub run: RunId,
    pub at: DateTime<Utc>,
}

impl BeginRun {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let facts = known_run(ledger, &self.run)?;
        if facts.state != RunState::Queued {
            return Err(wrong_state(&self.run, &facts.state));
        }
        let pipeline = facts.pipeline.clone();
        check_no_other_active(ledger, &pipeline, &self.run)?;
        let known = ledger.pipelines.entry(pipeline).or_default();
        if known.queue.first().is_none_or(|first| first.run != self.run) {
            return Err(Rejection::NotItsTurn { run: self.run.clone() });
        }
        known.queue.remove(0);
        known.active_run = Some(self.run.clone());
        // It reads what is there by now, whoever was submitted before it.
        let number = ledger.next_run_number();
        let facts = known_run(ledger, &self.run)?;
        facts.number = number;
        facts.state = RunState::Running;
        facts.sessions = 1;
        facts.started_at = self.at;
        Ok(true)
    }
}

/// Notes a run that does not begin, because another one of its pipeline goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkipRun {
    /// As it would have started; of no backfill.
    pub start: StartRun,
    /// The run that goes on, or waits.
    pub beside: RunId,
}

impl SkipRun {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let start = &self.start;
        if ledger.runs.contains_key(&start.run) {
            return Err(Rejection::RunExists(start.run.clone()));
        }
        check_request(ledger, start.request_id.as_ref(), None)?;
        start.note(ledger);
        let state = RunState::Skipped { at: start.at, beside: self.beside.clone() };
        let facts = RunFacts { cleaned_up: true, ..start.facts(ledger, state, 0) };
        ledger.runs.insert(start.run.clone(), facts);
        forget_oldest_skipped(ledger, &start.pipeline);
        Ok(true)
    }
}

fn forget_oldest_skipped(ledger: &mut Ledger, pipeline: &PipelineName) {
    let skipped = |run: &RunFacts| matches!(run.state, RunState::Skipped { .. });
    let runs = ledger.runs.iter().filter(|(_, run)| run.pipeline == *pipeline && skipped(run));
    let mut runs: Vec<_> = runs.map(|(id, run)| (run.order(), id)).collect();
    if runs.len() <= MOST_SKIPPED {
        return;
    }
    runs.sort_unstable();
    let oldest = runs[0].1.clone();
    let forgotten = ledger.runs.remove(&oldest);
    if let Some(request) = forgotten.and_then(|run| run.request_id) {
        ledger.requests.remove(&request);
    }
}

//! Backfills: created and steered by clients, moved on by the runs of their windows.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weir_spec::PipelineName;

use crate::backfills::{
    Again, BackfillFacts, BackfillId, BackfillState, Totals, WindowOf, WindowRange, WindowState,
};
use crate::facts::{Ledger, RunFacts, RunId, RunOutcome, RunState};
use crate::intervals::Intervals;
use crate::rejection::Rejection;

/// Characters of an error that are kept with its window; the run's folder has all of it.
const LONGEST_ERROR: usize = 300;

/// Begins a backfill. Every window is pending.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateBackfill {
    pub epoch: u64,
    pub backfill: BackfillId,
    pub pipeline: PipelineName,
    pub spec_hash: String,
    pub params: BTreeMap<String, Value>,
    /// The registered version that it loads; `None`: its file came with its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    pub range: WindowRange,
    pub parallel: u32,
    pub priority: i32,
    /// What the client has called its request; no other backfill has it.
    pub request_id: Option<String>,
    pub at: DateTime<Utc>,
}

impl CreateBackfill {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        if ledger.backfills.contains_key(&self.backfill) {
            return Err(Rejection::BackfillExists(self.backfill.clone()));
        }
        if let Some(request) = &self.request_id
            && let Some(backfill) = ledger.backfill_of_request(request)
        {
            return Err(Rejection::BackfillRequestKnown { backfill: backfill.clone() });
        }
        let facts = BackfillFacts {
            pipeline: self.pipeline.clone(),
            spec_hash: self.spec_hash.clone(),
            params: self.params.clone(),
            version: self.version,
            range: self.range.clone(),
            parallel: self.parallel,
            priority: self.priority,
            request_id: self.request_id.clone(),
            created_at: self.at,
            state: BackfillState::Running,
            finished: Intervals::default(),
            failed: BTreeMap::new(),
            running: BTreeSet::new(),
            again: BTreeMap::new(),
            starts: BTreeMap::new(),
            totals: Totals::default(),
            last_run_number: 0,
        };
        ledger.backfills.insert(self.backfill.clone(), facts);
        Ok(true)
    }
}

/// What a client wants of a backfill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeBackfill {
    pub epoch: u64,
    pub backfill: BackfillId,
    pub change: BackfillChange,
    pub at: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackfillChange {
    Pause,
    Resume,
    Cancel,
    SetPriority(i32),
    /// Brings failed windows back; no list: all of them.
    Retry {
        windows: Option<Vec<u32>>,
        again: Again,
    },
}

impl ChangeBackfill {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let facts = known_backfill(ledger, &self.backfill)?;
        let wrong_state = |facts: &BackfillFacts| Rejection::BackfillState {
            backfill: self.backfill.clone(),
            state: facts.state.name(),
        };
        let next = match (&self.change, &facts.state) {
            (BackfillChange::SetPriority(priority), _) => {
                let before = std::mem::replace(&mut facts.priority, *priority);
                return Ok(before != *priority);
            }
            (BackfillChange::Retry { windows, again }, _) => {
                return self.retry(facts, windows.as_deref(), *again);
            }
            (BackfillChange::Pause, BackfillState::Running | BackfillState::Paused) => {
                BackfillState::Paused
            }
            (
                BackfillChange::Resume,
                BackfillState::Running | BackfillState::Paused | BackfillState::Cancelled,
            ) => BackfillState::Running,
            (
                BackfillChange::Cancel,
                BackfillState::Running | BackfillState::Paused | BackfillState::Cancelled,
            ) => BackfillState::Cancelled,
            (BackfillChange::Pause | BackfillChange::Resume | BackfillChange::Cancel, _) => {
                return Err(wrong_state(facts));
            }
        };
        let changed = facts.state != next;
        facts.state = next;
        Ok(changed)
    }

    fn retry(
        &self,
        facts: &mut BackfillFacts,
        windows: Option<&[u32]>,
        again: Again,
    ) -> Result<bool, Rejection> {
        for window in windows.unwrap_or_default() {
            match facts.window(*window) {
                Some(WindowState::Failed) => {}
                state => return Err(window_state(&self.backfill, *window, state)),
            }
        }
        let windows: Vec<u32> = match windows {
            Some(windows) => windows.to_vec(),
            None => facts.failed.keys().copied().collect(),
        };
        let mut changed = false;
        for window in windows {
            // The same number may be there twice.
            if facts.failed.remove(&window).is_some() {
                facts.again.insert(window, again);
                changed = true;
            }
        }
        if changed && matches!(facts.state, BackfillState::Finished { .. }) {
            facts.state = BackfillState::Running;
        }
        Ok(changed)
    }
}

pub(super) fn known_backfill<'ledger>(
    ledger: &'ledger mut Ledger,
    backfill: &BackfillId,
) -> Result<&'ledger mut BackfillFacts, Rejection> {
    ledger.backfills.get_mut(backfill).ok_or_else(|| Rejection::UnknownBackfill(backfill.clone()))
}

fn window_state(backfill: &BackfillId, window: u32, state: Option<WindowState>) -> Rejection {
    Rejection::WindowState {
        backfill: backfill.clone(),
        window,
        state: state.map_or("unknown", WindowState::name),
    }
}

/// A pending window of a backfill that is going on.
fn pending_window<'ledger>(
    ledger: &'ledger mut Ledger,
    WindowOf { backfill, window }: &WindowOf,
) -> Result<&'ledger mut BackfillFacts, Rejection> {
    let facts = known_backfill(ledger, backfill)?;
    if facts.state != BackfillState::Running {
        let (backfill, state) = (backfill.clone(), facts.state.name());
        return Err(Rejection::BackfillState { backfill, state });
    }
    match facts.window(*window) {
        Some(WindowState::Pending) => Ok(facts),
        state => Err(window_state(backfill, *window, state)),
    }
}

/// A window's run is about to start. Its id is the one that follows from the window, and the run that the
/// window has had before is over.
pub(super) fn start_window(
    ledger: &mut Ledger,
    of: &WindowOf,
    run: &RunId,
) -> Result<(), Rejection> {
    let facts = pending_window(ledger, of)?;
    let next = facts.next_run_of(&of.backfill, of.window);
    let last = facts.run_of(&of.backfill, of.window);
    if next != *run {
        return Err(Rejection::NotTheNextRun { given: run.clone(), next });
    }
    if let Some(last) = last
        && let Some(before) = ledger.runs.get(&last)
        && !before.state.is_terminal()
    {
        return Err(Rejection::RunActive { active: last });
    }
    let facts = pending_window(ledger, of)?;
    let starts = facts.starts(of.window) + 1;
    if starts > 1 {
        facts.starts.insert(of.window, starts);
    }
    facts.again.remove(&of.window);
    facts.running.insert(of.window);
    Ok(())
}

/// A window's run is about to be taken up: by the next leader, or after it had failed.
pub(super) fn resume_window(
    ledger: &mut Ledger,
    of: &WindowOf,
    state: &RunState,
) -> Result<(), Rejection> {
    if *state == RunState::Running {
        return Ok(());
    }
    let facts = pending_window(ledger, of)?;
    facts.again.remove(&of.window);
    facts.running.insert(of.window);
    Ok(())
}

/// A window's run has ended.
pub(super) fn finish_window(
    ledger: &mut Ledger,
    of: &WindowOf,
    run: &RunId,
    outcome: &RunOutcome,
    at: DateTime<Utc>,
) {
    let Ledger { backfills, runs, .. } = ledger;
    let (Some(facts), Some(run)) = (backfills.get_mut(&of.backfill), runs.get(run)) else { return };
    let was_running = facts.running.remove(&of.window);
    match outcome {
        RunOutcome::Succeeded => {
            facts.finished.insert(of.window);
            facts.totals.add(run);
            facts.last_run_number = facts.last_run_number.max(run.number);
        }
        // It was stopped, and goes on when the backfill does.
        RunOutcome::Failed { .. } if facts.state == BackfillState::Cancelled => {
            facts.again.insert(of.window, Again::GoOn);
        }
        RunOutcome::Failed { error } => {
            let error = error.chars().take(LONGEST_ERROR).collect();
            facts.failed.insert(of.window, error);
        }
        RunOutcome::Abandoned => {
            if was_running {
                facts.again.insert(of.window, Again::Fresh);
            }
        }
    }
    facts.settle(at);
}

/// Whether a window's run is of no use to the ledger any more: it is over, or has committed nothing with
/// which it could go on, and nothing of it is left in staging. Its summary is in its folder.
pub(super) fn is_forgotten(run: &RunFacts) -> bool {
    run.backfill.is_some()
        && run.cleaned_up
        && match run.state {
            RunState::Queued | RunState::Running => false,
            RunState::Failed { .. } => !run.may_have_committed(),
            RunState::Succeeded { .. } | RunState::Abandoned { .. } | RunState::Skipped { .. } => {
                true
            }
        }
}

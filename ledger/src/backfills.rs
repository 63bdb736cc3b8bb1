//! Backfills: one pipeline over many windows, each of which is loaded by a run of its own.
//!
//! ```text
//!              StartRun            FinishRun(Succeeded)
//! pending ───────────────▶ running ─────────────────▶ finished
//!    ▲ ▲    or ResumeRun     │  │ FinishRun(Failed)
//!    │ └──── (cancelled) ────┘  └────▶ failed ──┐
//!    └────────────── ChangeBackfill(Retry) ─────┘
//! ```
//!
//! A window changes in the entry that starts or ends its run: whatever dies, and whoever leads next, no
//! window is lost and none is loaded by two runs. What is pending is not kept: it is what is nothing else.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weir_spec::{NodeName, PipelineName};

use crate::facts::{NodeRole, RunFacts, RunId};
use crate::intervals::Intervals;

/// A backfill. Ids sort by the time of their creation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackfillId(pub String);

impl std::fmt::Display for BackfillId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which window a run loads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WindowOf {
    pub backfill: BackfillId,
    pub window: u32,
}

/// The windows of a backfill: steps of the calendar from `from` to `to`. Their bounds are computed where
/// they are needed; how many there are stays as it was counted when the backfill was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowRange {
    pub from: DateTime<Utc>,
    pub to: DateTime<Utc>,
    /// `15m`, `1h`, `1d`, `1w`, `1mo`.
    pub step: String,
    /// IANA name.
    pub timezone: String,
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackfillFacts {
    pub pipeline: PipelineName,
    pub spec_hash: String,
    pub params: BTreeMap<String, Value>,
    /// The registered version that it loads; `None`: its file came with its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    pub range: WindowRange,
    /// Windows at once.
    pub parallel: u32,
    /// Greater ones go first.
    pub priority: i32,
    /// What the client has called its request, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    pub created_at: DateTime<Utc>,
    pub state: BackfillState,
    pub finished: Intervals,
    /// With the error of the run that has failed last.
    pub failed: BTreeMap<u32, String>,
    pub running: BTreeSet<u32>,
    /// Pending windows that have had a run before: what becomes of it.
    pub again: BTreeMap<u32, Again>,
    /// How many runs each window has had, if more than one.
    pub starts: BTreeMap<u32, u32>,
    /// Of finished windows.
    pub totals: Totals,
    /// The greatest [`RunFacts::number`](crate::RunFacts::number) of their runs; 0: not known.
    #[serde(default, skip_serializing_if = "is_not_known")]
    pub last_run_number: u64,
}

fn is_not_known(number: &u64) -> bool {
    *number == 0
}

/// ```text
///            Pause                 nothing is left
/// Running ◀─────────▶ Paused     ─────────────────▶ Finished
///    ▲ │    Resume      │  Cancel                      │ Retry
///    │ └───────▶ Cancelled ◀┘                          ▼
///    └──── Resume ───┘                              Running
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackfillState {
    Running,
    /// Nothing begins; windows that are at work come to their end.
    Paused,
    /// Windows that are at work are stopped at their next commit, and are pending again.
    Cancelled,
    /// Every window has finished or failed.
    Finished {
        at: DateTime<Utc>,
    },
}

/// What becomes of the run that a window has had, when the window begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Again {
    /// It goes on behind what it has committed, if it has committed anything.
    GoOn,
    /// It is given up; what it has committed stays in the targets.
    Fresh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowState {
    Pending,
    Running,
    Finished,
    Failed,
}

impl WindowState {
    pub fn name(self) -> &'static str {
        match self {
            WindowState::Pending => "pending",
            WindowState::Running => "running",
            WindowState::Finished => "finished",
            WindowState::Failed => "failed",
        }
    }
}

/// What the runs of finished windows have come to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub rows_read: u64,
    pub dead_letters: u64,
    pub sinks: BTreeMap<NodeName, SinkTotals>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkTotals {
    pub rows: u64,
    /// Order-independent: of all batches.
    pub checksum: u64,
    pub batches: u64,
}

impl Totals {
    /// Adds what a run has come to.
    pub fn add(&mut self, run: &RunFacts) {
        for stage in &run.stages {
            let account = stage.account();
            for (node, counts) in &account.nodes {
                self.dead_letters += counts.dead_lettered;
                if let Some(NodeRole::Source { .. }) = stage.role(node) {
                    self.rows_read += counts.rows_in;
                }
            }
            if let Some((sink, _)) = stage.sink() {
                let sink = self.sinks.entry(sink.clone()).or_default();
                sink.rows += account.rows_written;
                sink.checksum = sink.checksum.wrapping_add(account.checksum);
                sink.batches += stage.slices.iter().map(|slice| slice.next_sequence).sum::<u64>();
            }
        }
    }
}

impl BackfillState {
    pub fn name(&self) -> &'static str {
        match self {
            BackfillState::Running => "running",
            BackfillState::Paused => "paused",
            BackfillState::Cancelled => "cancelled",
            BackfillState::Finished { .. } => "finished",
        }
    }
}

impl BackfillFacts {
    /// `None`: there is no such window.
    pub fn window(&self, window: u32) -> Option<WindowState> {
        let state = if window >= self.range.count {
            return None;
        } else if self.finished.contains(window) {
            WindowState::Finished
        } else if self.running.contains(&window) {
            WindowState::Running
        } else if self.failed.contains_key(&window) {
            WindowState::Failed
        } else {
            WindowState::Pending
        };
        Some(state)
    }

    /// Windows that are to begin, in their order.
    pub fn pending(&self) -> impl Iterator<Item = u32> {
        self.finished
            .gaps(self.range.count)
            .flatten()
            .filter(|window| !self.running.contains(window) && !self.failed.contains_key(window))
    }

    pub fn pending_count(&self) -> u32 {
        let others = self.failed.len() + self.running.len();
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        self.range.count.saturating_sub(self.finished.len()).saturating_sub(others)
    }

    /// Runs that a window has had.
    pub fn starts(&self, window: u32) -> u32 {
        match self.starts.get(&window) {
            Some(starts) => *starts,
            None => u32::from(
                self.again.contains_key(&window)
                    || self.window(window).is_some_and(|state| state != WindowState::Pending),
            ),
        }
    }

    /// The run that a window has, or has had last.
    pub fn run_of(&self, id: &BackfillId, window: u32) -> Option<RunId> {
        match self.starts(window) {
            0 => None,
            starts => Some(run_id(id, window, starts)),
        }
    }

    /// The run with which a window begins anew.
    pub fn next_run_of(&self, id: &BackfillId, window: u32) -> RunId {
        run_id(id, window, self.starts(window) + 1)
    }

    /// Ends the backfill if nothing is left to be done.
    pub(crate) fn settle(&mut self, at: DateTime<Utc>) {
        let is_over = matches!(self.state, BackfillState::Finished { .. });
        if !is_over && self.running.is_empty() && self.pending_count() == 0 {
            self.state = BackfillState::Finished { at };
        }
    }
}

/// Known from the window alone, so that the run of a finished window is found though the ledger has
/// forgotten it: `<backfill>-<window>`, and from the second run on `<backfill>-<window>-<n>`. The prefix
/// that tells backfills from runs is left out.
fn run_id(backfill: &BackfillId, window: u32, start: u32) -> RunId {
    let backfill = backfill.0.strip_prefix(BACKFILL_PREFIX).unwrap_or(&backfill.0);
    RunId(match start {
        0 | 1 => format!("{backfill}-{window:06}"),
        start => format!("{backfill}-{window:06}-{start}"),
    })
}

/// What the ids of backfills begin with.
pub const BACKFILL_PREFIX: &str = "bf-";

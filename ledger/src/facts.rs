//! What the ledger knows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weir_connectors::PreparedSink;
use weir_plan::{Commit, ExchangeOutput, Holder, RowAccount, SlicePosition, SliceStart, StageId};
use weir_spec::{CommitMode, NodeName, PipelineName};

use crate::PackedAccount;
use crate::backfills::{BackfillFacts, BackfillId, WindowOf};
use crate::client_changes::ClientChange;
use crate::commands::QueuedRun;
use crate::committers::{CommittedBy, Committers};
use crate::pipelines::{AnsweredRequests, PipelineVersion};
use crate::slices::Slices;

/// One execution of a pipeline. Ids sort by the time of their start.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub String);

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// All facts. Changed by [`crate::apply`] only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Given by the first epoch; scopes the fences in targets.
    pub ledger_id: Option<String>,
    /// Who owns the ledger now.
    pub epoch: Option<EpochFacts>,
    pub pipelines: BTreeMap<PipelineName, PipelineFacts>,
    pub runs: BTreeMap<RunId, RunFacts>,
    /// The last one that was given out ([`RunFacts::number`]).
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub last_run_number: u64,
    /// So many runs have left (`ForgetRuns`).
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub runs_left: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub backfills: BTreeMap<BackfillId, BackfillFacts>,
    /// Runs by what clients have called the requests that have started, resumed or joined them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, RunId>,
    /// Other changes that clients have asked for.
    #[serde(default, skip_serializing_if = "AnsweredRequests::is_empty")]
    pub answered: AnsweredRequests,
    /// Of clients, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens: BTreeMap<String, TokenFacts>,
    /// Executors that are to take no tasks any more, whether they are there or not.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub draining: BTreeSet<String>,
    /// The newest [`MOST_CLIENT_CHANGES`](crate::MOST_CLIENT_CHANGES), oldest first.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub client_changes: VecDeque<ClientChange>,
    /// What was refused, those that are alike together: the newest [`MOST_REFUSALS`](crate::MOST_REFUSALS).
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub client_refusals: VecDeque<ClientChange>,
    /// Index of the last command that changed something; 0 before the first.
    pub last_index: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochFacts {
    /// The index of its entry.
    pub epoch: u64,
    pub boot_id: String,
    pub pid: u32,
    pub host: String,
    pub at: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenFacts {
    pub role: Role,
    /// BLAKE3 of the token, hex.
    pub hash: String,
    pub created_at: DateTime<Utc>,
}

/// What a client may do; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at everything.
    Viewer,
    /// Start, cancel and retry runs.
    Operator,
    /// Manage tokens and members.
    Admin,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PipelineFacts {
    /// Hashes of the versions that have run, oldest first, each once.
    pub spec_hashes: Vec<String>,
    /// What is registered, oldest first; empty: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<PipelineVersion>,
    /// The number of the last version that was registered, also of one that was deleted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last_version: u32,
    /// Greatest committed cursor, by incremental source.
    pub watermarks: BTreeMap<NodeName, String>,
    /// The run that is going on, or was when its process ended. Those of backfills' windows do not count:
    /// they may go on beside it, and beside each other.
    pub active_run: Option<RunId>,
    /// Runs that wait for their turn, the next one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queue: Vec<QueuedRun>,
    /// The order of the newest run that has left the ledger and may have committed rows. An older one that is still there
    /// must not load them again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_left: Option<(u64, DateTime<Utc>)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFacts {
    pub pipeline: PipelineName,
    pub spec_hash: String,
    pub params: BTreeMap<String, Value>,
    /// `[start, end)`.
    pub window: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// The registered version that it runs; `None`: its file came with its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// What the client has called its request, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The window that it loads, if it is of a backfill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<WindowOf>,
    /// The run whose rejected rows it loads again, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<RunId>,
    /// As its leader's clock said. Which of two runs is the later one is said by their numbers.
    pub started_at: DateTime<Utc>,
    /// When it was last decided what it reads, or that it may load it: a new number, greater than that of any other run,
    /// with its start, its plan, and each time that it is taken up with something left to load. A run may have several one
    /// after the other; 0: not known, from a version that did not number them.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub number: u64,
    pub state: RunState,
    /// Processes that have worked on it.
    pub sessions: u32,
    /// Set by `PlanRun`, never changed afterwards: a run is never planned again.
    pub graph_hash: Option<String>,
    pub engine_version: Option<String>,
    pub stages: Vec<StageFacts>,
    /// By sink node.
    pub prepared: BTreeMap<NodeName, PreparedSink>,
    /// Whether the staging of its sinks has been removed.
    pub cleaned_up: bool,
}

/// ```text
///                          ResumeRun ┌───────┐
///                                    ▼       │
/// StartRun ────────────────────▶ Running ─▶ Failed ─▶ Abandoned
///                      BeginRun ▲  │ │        ▲           ▲
/// QueueRun ─▶ Queued ───────────┘  │ └────────│───────────┤
///               │                  └─▶ Succeeded          │
///               └─────────────────────────────┴───────────┘
/// SkipRun ──▶ Skipped
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Another run of its pipeline goes on; it begins when that has ended.
    Queued,
    Running,
    Succeeded {
        at: DateTime<Utc>,
    },
    Failed {
        at: DateTime<Utc>,
        error: String,
    },
    /// Given up for a fresh run. Keeps why it had failed, if it had.
    Abandoned {
        at: DateTime<Utc>,
        error: Option<String>,
    },
    /// Another run of its pipeline went on, and it was not to wait.
    Skipped {
        at: DateTime<Utc>,
        beside: RunId,
    },
}

/// How a run ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunOutcome {
    Succeeded,
    Failed { error: String },
    Abandoned,
}

/// A stage as the plan has made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageShape {
    /// For people.
    pub name: String,
    pub slices: u32,
    /// Row by row, and resumable; otherwise computed as a whole.
    pub streaming: bool,
    /// Stages whose exchanges it reads; all have smaller ids.
    pub inputs: Vec<StageId>,
    pub nodes: Vec<NodeShape>,
    pub output: StageOutputShape,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeShape {
    pub name: NodeName,
    pub role: NodeRole,
}

/// What a node does to rows, as far as its account must add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    Source { incremental: bool },
    Sql,
    Validate,
    Deduplicate,
    Sink,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageOutputShape {
    Exchange,
    Sink { node: NodeName, commit: CommitMode },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageFacts {
    pub shape: StageShape,
    pub slices: Slices,
    pub finished_slices: u32,
    /// `commit: run` sinks only.
    pub run_commit: RunCommit,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunCommit {
    #[default]
    Open,
    Intended,
    Done,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SliceFacts {
    /// Attempts begun so far; the last one is the current one.
    pub attempts: u32,
    /// Attempts that have failed since the last progress or resumption, while no other was at work.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// Executors that were lost with an attempt since then.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub losses: u32,
    pub state: SliceState,
    /// Behind the last committed batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Box<SlicePosition>>,
    /// Also the number of committed batches.
    pub next_sequence: u64,
    /// Whose the committed batches, or the finished exchange, are; one entry for each attempt that has
    /// any. Files of other attempts mean nothing: a paused attempt may write them at any time.
    #[serde(default)]
    pub committed_by: Committers,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<Box<OpenIntent>>,
    /// Of all committed batches, or of the finished exchange.
    pub account: PackedAccount,
    /// As the manifests of the committed batches say.
    pub manifest_rows: u64,
    pub manifest_checksum: u64,
    /// Of a finished slice of a stage that ends in an exchange.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<Box<ExchangeOutput>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SliceState {
    #[default]
    Pending,
    /// The current attempt is at work, unless its epoch is over.
    Running {
        epoch: u64,
    },
    /// Of a whole stage: these attempts are at work, unless their epoch is over. The first result counts.
    Copied {
        epoch: u64,
        live: Vec<u32>,
    },
    /// The last attempt has failed; `retry_at: None` means that no other may be made.
    Failed {
        error: String,
        retry_at: Option<DateTime<Utc>>,
    },
    Finished,
}

/// A batch whose publication is being attempted, or was when its process ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpenIntent {
    pub attempt: u32,
    pub epoch: u64,
    pub commit: Commit,
}

impl Ledger {
    pub fn run(&self, run: &RunId) -> Option<&RunFacts> {
        self.runs.get(run)
    }

    pub(crate) fn next_run_number(&mut self) -> u64 {
        self.last_run_number += 1;
        self.last_run_number
    }

    /// The run that a client's request has started, resumed or joined.
    pub fn run_of_request(&self, request: &str) -> Option<&RunId> {
        self.requests.get(request)
    }

    pub fn backfill(&self, backfill: &BackfillId) -> Option<&BackfillFacts> {
        self.backfills.get(backfill)
    }

    /// The backfill that a client's request has created.
    pub fn backfill_of_request(&self, request: &str) -> Option<&BackfillId> {
        (self.backfills.iter())
            .find(|(_, backfill)| backfill.request_id.as_deref() == Some(request))
            .map(|(id, _)| id)
    }

    /// The current epoch's number; 0 before the first.
    pub fn current_epoch(&self) -> u64 {
        self.epoch.as_ref().map_or(0, |epoch| epoch.epoch)
    }

    /// Processes of executors that alone have rows which a run has still to read.
    pub fn holders_needed(&self) -> BTreeSet<Holder> {
        let runs = self.runs.values().filter(|run| run.state == RunState::Running);
        let needed: BTreeSet<&Holder> = runs.flat_map(RunFacts::holders_needed).collect();
        needed.into_iter().cloned().collect()
    }

    pub fn watermark(&self, pipeline: &PipelineName, source: &NodeName) -> Option<&str> {
        self.pipelines.get(pipeline)?.watermarks.get(source).map(String::as_str)
    }
}

impl PipelineFacts {
    pub fn newest_version(&self) -> Option<&PipelineVersion> {
        self.versions.last()
    }

    pub fn version(&self, number: u32) -> Option<&PipelineVersion> {
        self.versions.iter().find(|version| version.version == number)
    }
}

impl RunState {
    /// Whether nothing can happen to the run any more.
    pub fn is_terminal(&self) -> bool {
        matches!(
            self,
            RunState::Succeeded { .. } | RunState::Abandoned { .. } | RunState::Skipped { .. }
        )
    }

    pub fn ended_at(&self) -> Option<DateTime<Utc>> {
        match self {
            RunState::Queued | RunState::Running => None,
            RunState::Succeeded { at }
            | RunState::Failed { at, .. }
            | RunState::Abandoned { at, .. }
            | RunState::Skipped { at, .. } => Some(*at),
        }
    }
}

impl RunFacts {
    /// Greater for a run that was started, planned or taken up later, whatever clocks say: of two runs only that one
    /// can have loaded something since the other was planned.
    pub fn order(&self) -> (u64, DateTime<Utc>) {
        (self.number, self.started_at)
    }

    pub fn is_planned(&self) -> bool {
        self.graph_hash.is_some()
    }

    pub fn stage(&self, stage: StageId) -> Option<&StageFacts> {
        self.stages.get(usize::try_from(stage.0).ok()?)
    }

    pub fn slice(&self, stage: StageId, slice: u32) -> Option<&SliceFacts> {
        self.stage(stage)?.slices.get(usize::try_from(slice).ok()?)
    }

    /// Whether any batch may be visible or any exchange is finished. A batch that was intended counts:
    /// only the target knows whether it has landed.
    pub fn may_have_committed(&self) -> bool {
        self.stages.iter().any(|stage| stage.finished_slices > 0 || stage.has_batches())
    }

    /// Who alone has what an unfinished stage reads, or may read when it begins again.
    fn holders_needed(&self) -> impl Iterator<Item = &Holder> {
        let unfinished = self.stages.iter().filter(|stage| !stage.is_complete());
        let read = unfinished.flat_map(|stage| &stage.shape.inputs);
        let stages = read.filter_map(|stage| self.stage(*stage));
        let at_risk = stages.filter(|stage| stage.slices.are_at_risk());
        let outputs =
            at_risk.flat_map(|stage| &stage.slices).filter_map(|slice| slice.exchange.as_ref());
        outputs.filter(|output| !output.is_durable()).filter_map(|output| output.holder.as_ref())
    }

    /// Whether every slice is finished and every sink visible.
    pub fn is_complete(&self) -> bool {
        self.is_planned() && self.stages.iter().all(StageFacts::is_complete)
    }

    /// Whether nothing more can come of it: it is over, or has failed with nothing that it could go on with, every target
    /// has said which batches it has, and nothing is left in staging. (Backfills know themselves which runs they need.)
    pub fn may_leave(&self) -> bool {
        let is_over = match self.state {
            RunState::Queued | RunState::Running => false,
            RunState::Failed { .. } => !self.may_have_committed() || self.is_complete(),
            RunState::Succeeded { .. } | RunState::Abandoned { .. } | RunState::Skipped { .. } => {
                true
            }
        };
        is_over && self.backfill.is_none() && self.cleaned_up && !self.is_any_commit_open()
    }

    /// Whether only a target knows what has become of some batch, or of a whole sink.
    fn is_any_commit_open(&self) -> bool {
        self.stages.iter().any(|stage| {
            stage.run_commit == RunCommit::Intended
                || stage.slices.unsettled().any(|(_, slice)| slice.intent.is_some())
        })
    }

    pub fn task_count(&self) -> usize {
        self.stages.iter().map(|stage| stage.slices.len()).sum()
    }

    /// Rows of committed batches.
    pub fn committed_rows(&self) -> u64 {
        (self.sink_stages())
            .flat_map(|stage| &stage.slices)
            .map(|slice| slice.account.rows_written)
            .sum()
    }

    pub fn sink_stages(&self) -> impl Iterator<Item = &StageFacts> {
        self.stages.iter().filter(|stage| stage.sink().is_some())
    }
}

impl StageFacts {
    pub(crate) fn new(shape: StageShape) -> Self {
        let slices = Slices::new(shape.slices);
        Self { shape, slices, finished_slices: 0, run_commit: RunCommit::Open }
    }

    /// The sink that the stage feeds, with its commit mode.
    pub fn sink(&self) -> Option<(&NodeName, CommitMode)> {
        match &self.shape.output {
            StageOutputShape::Exchange => None,
            StageOutputShape::Sink { node, commit } => Some((node, *commit)),
        }
    }

    /// Whether the target has any batch of it, or may have.
    pub fn has_batches(&self) -> bool {
        self.run_commit != RunCommit::Open
            || self.slices.iter().any(|slice| slice.next_sequence > 0 || slice.intent.is_some())
    }

    pub fn are_slices_finished(&self) -> bool {
        self.finished_slices == self.shape.slices
    }

    /// Whether its exchange can be read, or its sink shows all rows.
    pub fn is_complete(&self) -> bool {
        self.are_slices_finished()
            && match self.sink() {
                Some((_, CommitMode::Run)) => self.run_commit == RunCommit::Done,
                Some((_, CommitMode::Batch)) | None => true,
            }
    }

    /// What each slice has left of the exchange; `None` until all are finished.
    pub fn exchange(&self) -> Option<Vec<ExchangeOutput>> {
        self.slices.iter().map(|slice| slice.exchange.as_deref().cloned()).collect()
    }

    /// All slices added up.
    pub fn account(&self) -> RowAccount {
        let mut total = RowAccount::default();
        for slice in &self.slices {
            total.add(&slice.account.unpack());
        }
        total
    }

    pub fn role(&self, node: &NodeName) -> Option<NodeRole> {
        self.shape.nodes.iter().find(|shape| shape.name == *node).map(|shape| shape.role)
    }
}

impl SliceFacts {
    /// Where the next attempt goes on.
    pub fn start(&self) -> SliceStart {
        SliceStart {
            position: self.position.as_deref().cloned(),
            next_sequence: self.next_sequence,
        }
    }

    /// Whether the ledger waits for this attempt of the epoch.
    pub fn is_at_work(&self, epoch: u64, attempt: u32) -> bool {
        match &self.state {
            SliceState::Running { epoch: running } => *running == epoch && attempt == self.attempts,
            SliceState::Copied { epoch: running, live } => {
                *running == epoch && live.contains(&attempt)
            }
            SliceState::Pending | SliceState::Failed { .. } | SliceState::Finished => false,
        }
    }

    /// Another attempt goes on without this one, if there is one.
    pub(crate) fn leave(&mut self, attempt: u32) -> bool {
        let SliceState::Copied { epoch, live } = &mut self.state else { return false };
        live.retain(|other| *other != attempt);
        match live.as_slice() {
            [] => false,
            [last] if *last == self.attempts => {
                self.state = SliceState::Running { epoch: *epoch };
                true
            }
            _ => true,
        }
    }

    pub fn is_finished(&self) -> bool {
        self.state == SliceState::Finished
    }

    /// The attempt that has committed a batch, or the exchange (0).
    pub fn attempt_of(&self, sequence: u64) -> Option<u32> {
        let by = self.committed_by.iter().rev().find(|by| by.from <= sequence);
        by.map(|by| by.attempt)
    }

    /// Batch `sequence` is committed, and none behind it.
    pub(crate) fn note_committed(&mut self, sequence: u64, attempt: u32) {
        if self.committed_by.last().is_none_or(|last| last.attempt != attempt) {
            self.committed_by.push(CommittedBy { from: sequence, attempt });
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
fn is_none_yet(number: &u64) -> bool {
    *number == 0
}

//! A small pipeline and short ways to write its commands.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use indexmap::IndexMap;
use serde_json::json;
use weir_connectors::{Manifest, Position};
use weir_plan::{
    Commit, ExchangeOutput, InStorage, NodeCounts, RowAccount, SlicePosition, StageId,
};
use weir_spec::{CommitMode, NodeName, PipelineName};

use crate::*;

/// ```text
/// 0: orders (incremental) ─▶ [exchange]
/// 1: exchange of 0 ─▶ kept (commit: batch), two slices
/// 2: exchange of 0 ─▶ shown (commit: run), one slice
/// ```
pub(super) fn shapes() -> Vec<StageShape> {
    let node = |name: &str, role| NodeShape { name: NodeName::new(name), role };
    let sink = |name: &str, commit| StageOutputShape::Sink { node: NodeName::new(name), commit };
    vec![
        StageShape {
            name: "orders".into(),
            slices: 1,
            streaming: false,
            inputs: vec![],
            nodes: vec![node("orders", NodeRole::Source { incremental: true })],
            output: StageOutputShape::Exchange,
        },
        StageShape {
            name: "kept".into(),
            slices: 2,
            streaming: true,
            inputs: vec![StageId(0)],
            nodes: vec![node("valid", NodeRole::Validate), node("kept", NodeRole::Sink)],
            output: sink("kept", CommitMode::Batch),
        },
        StageShape {
            name: "shown".into(),
            slices: 1,
            streaming: true,
            inputs: vec![StageId(0)],
            nodes: vec![node("shown", NodeRole::Sink)],
            output: sink("shown", CommitMode::Run),
        },
    ]
}

pub(super) fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + second, 0).expect("a time of this century")
}

pub(super) fn pipeline() -> PipelineName {
    PipelineName("orders".into())
}

pub(super) fn run_id(number: u64) -> RunId {
    RunId(format!("run-{number}"))
}

pub(super) fn new_epoch() -> Command {
    Command::NewEpoch(NewEpoch {
        ledger_id: "ledger".into(),
        boot_id: "boot".into(),
        pid: 7,
        host: "here".into(),
        at: at(0),
    })
}

pub(super) fn start_run(epoch: u64, run: &RunId) -> Command {
    Command::StartRun(StartRun {
        epoch,
        run: run.clone(),
        pipeline: pipeline(),
        spec_hash: "spec".into(),
        params: BTreeMap::from([("country".to_owned(), json!("DE"))]),
        window: None,
        version: None,
        request_id: None,
        backfill: None,
        replay_of: None,
        at: at(1),
    })
}

pub(super) fn plan_run(epoch: u64, run: &RunId) -> Command {
    Command::PlanRun(PlanRun {
        epoch,
        run: run.clone(),
        graph_hash: "graph".into(),
        engine_version: "weir-test".into(),
        stages: shapes(),
    })
}

pub(super) fn finish_run(epoch: u64, run: &RunId, outcome: RunOutcome) -> Command {
    Command::FinishRun(FinishRun { epoch, run: run.clone(), outcome, at: at(9) })
}

pub(super) fn task(epoch: u64, run: &RunId, stage: u32, slice: u32, attempt: u32) -> SliceAttempt {
    SliceAttempt { epoch, run: run.clone(), stage: StageId(stage), slice, attempt }
}

pub(super) fn start(task: &SliceAttempt) -> Command {
    Command::StartAttempt(StartAttempt { task: task.clone() })
}

pub(super) fn finish_exchange(task: &SliceAttempt, rows: u64, cursor: &str) -> Command {
    let mut account = account("orders", rows);
    account.cursors.insert(NodeName::new("orders"), cursor.into());
    Command::FinishExchange(FinishExchange {
        task: task.clone(),
        output: ExchangeOutput {
            file_id: format!("{}-{}", task.slice, task.attempt),
            first: 0,
            partitions: 2,
            holder: None,
            in_storage: InStorage::No,
        },
        account,
    })
}

pub(super) fn intent(task: &SliceAttempt, sequence: u64, rows: u64, is_last: bool) -> Command {
    let node = if task.stage == StageId(1) { "valid" } else { "shown" };
    let mut account = account(node, rows);
    account.exchanges_read.insert(StageId(0), rows);
    Command::CommitIntent(CommitIntent {
        task: task.clone(),
        commit: Commit {
            manifest: Manifest {
                slice: task.slice,
                sequence,
                rows,
                checksum: account.checksum,
                epoch: task.epoch,
                payload: json!({ "file": format!("{sequence}.parquet") }),
            },
            account,
            resume_at: (!is_last).then(|| SlicePosition {
                split: 0,
                inner: Some(Position(format!("{}", sequence + 1))),
            }),
        },
    })
}

pub(super) fn done(task: &SliceAttempt, sequence: u64) -> Command {
    Command::CommitDone(CommitDone { task: task.clone(), sequence })
}

pub(super) fn lost(task: &SliceAttempt, sequence: u64) -> Command {
    Command::CommitLost(CommitLost { task: task.clone(), sequence })
}

pub(super) fn lose(task: &SliceAttempt, is_last: bool) -> Command {
    let (task, error) = (task.clone(), "executor a was lost".to_owned());
    Command::LoseAttempt(LoseAttempt { task, error, is_last })
}

pub(super) fn fail(task: &SliceAttempt) -> Command {
    Command::FailAttempt(FailAttempt {
        task: task.clone(),
        error: "connection refused".into(),
        retry_at: Some(at(5)),
    })
}

/// Without another attempt.
pub(super) fn fail_for_good(task: &SliceAttempt) -> Command {
    let (task, error) = (task.clone(), "not enough memory".to_owned());
    Command::FailAttempt(FailAttempt { task, error, retry_at: None })
}

fn account(node: &str, rows: u64) -> RowAccount {
    RowAccount {
        nodes: IndexMap::from([(
            NodeName::new(node),
            NodeCounts { rows_in: rows, rows_out: rows, dead_lettered: 0, dropped: 0 },
        )]),
        exchanges_read: IndexMap::new(),
        rows_written: rows,
        checksum: rows.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        cursors: IndexMap::new(),
    }
}

/// Applies commands under growing indexes and panics with the reason of a rejection.
#[derive(Default)]
pub(super) struct Book {
    pub(super) ledger: Ledger,
    pub(super) index: u64,
}

impl Book {
    /// A run that is planned, in epoch 1.
    pub(super) fn planned() -> Self {
        let mut book = Self::default();
        book.accept(&new_epoch());
        book.accept(&start_run(1, &run_id(1)));
        book.accept(&plan_run(1, &run_id(1)));
        book
    }

    pub(super) fn apply(&mut self, command: &Command) -> Response {
        self.index += 1;
        apply(&mut self.ledger, self.index, command)
    }

    pub(super) fn accept(&mut self, command: &Command) {
        let response = self.apply(command);
        assert_eq!(response, Response::Accepted { changed: true }, "{command:?}");
    }

    /// Asserts that nothing changes, and returns why.
    pub(super) fn reject(&mut self, command: &Command) -> Rejection {
        let before = self.ledger.clone();
        let response = self.apply(command);
        assert_eq!(self.ledger, before, "{command:?}");
        match response {
            Response::Rejected(rejection) => rejection,
            Response::Accepted { .. } => panic!("accepted: {command:?}"),
        }
    }

    pub(super) fn ignore(&mut self, command: &Command) {
        let before = self.ledger.clone();
        assert_eq!(self.apply(command), Response::Accepted { changed: false }, "{command:?}");
        assert_eq!(self.ledger, before, "{command:?}");
    }

    pub(super) fn slice(&self, stage: u32, slice: u32) -> &SliceFacts {
        self.ledger.runs[&run_id(1)].slice(StageId(stage), slice).expect("a slice of the test plan")
    }

    pub(super) fn watermark(&self) -> Option<&str> {
        self.ledger.watermark(&pipeline(), &NodeName::new("orders"))
    }

    /// Stage 0 with `rows` rows.
    pub(super) fn exchange(&mut self, rows: u64, cursor: &str) {
        let task = task(1, &run_id(1), 0, 0, 1);
        self.accept(&start(&task));
        self.accept(&finish_exchange(&task, rows, cursor));
    }
}

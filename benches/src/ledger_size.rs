//! How large a ledger of many finished tasks is, in memory and as a snapshot:
//! `ledger-size [TASKS] [RUNS] [WINDOWS]`, by default a million tasks in ten runs, and a hundred thousand windows of a
//! backfill.

use std::collections::BTreeMap;
use std::time::Instant;

use chrono::{DateTime, TimeDelta};
use serde_json::json;
use weir_connectors::Manifest;
use weir_ledger::{
    BackfillId, CleanUpDone, Command, CommitDone, CommitIntent, CreateBackfill, FinishRun, Ledger,
    NewEpoch, NodeRole, NodeShape, PlanRun, Response, RunId, RunOutcome, SliceAttempt,
    StageOutputShape, StageShape, StartAttempt, StartRun, WindowOf, WindowRange, apply,
};
use weir_plan::{Commit, NodeCounts, RowAccount, StageId};
use weir_spec::{CommitMode, NodeName, PipelineName};

/// A pipeline of three nodes, as its row accounts have them.
const NODES: [&str; 3] = ["orders", "cleaned", "warehouse"];

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u32>());
    let mut next = |default| arguments.next().map_or(default, |number| number.expect("a number"));
    let (tasks, runs, windows) = (next(1_000_000), next(10), next(100_000));
    let mut log = Log::default();
    log.append(Command::NewEpoch(NewEpoch {
        ledger_id: "ledger".into(),
        boot_id: "boot".into(),
        pid: 1,
        host: "here".into(),
        at: DateTime::UNIX_EPOCH,
    }));
    let before = resident_bytes();
    let begun = Instant::now();
    for run in 0..runs {
        let pipeline = PipelineName(format!("pipeline-{run}"));
        let run = RunId(format!("019aad3b-0000-7000-8000-{run:012}"));
        finished_tasks(&mut log, &run, pipeline, tasks / runs, None);
    }
    finished_windows(&mut log, windows);
    let megabytes = |bytes: u64| bytes / 1_000_000;
    println!(
        "{tasks} finished tasks in {runs} runs, and {windows} finished windows, {:.1?} to apply",
        begun.elapsed()
    );
    println!("in memory: {} MB", megabytes(resident_bytes().saturating_sub(before)));

    let begun = Instant::now();
    let json = serde_json::to_vec(&log.ledger).expect("facts are JSON");
    println!("as JSON: {} MB in {:.1?}", megabytes(json.len() as u64), begun.elapsed());
    let begun = Instant::now();
    let read: Ledger = serde_json::from_slice(&json).expect("facts are read again");
    println!("read again in {:.1?}", begun.elapsed());
    assert!(read == log.ledger, "it is the same");
}

#[derive(Default)]
struct Log {
    ledger: Ledger,
    index: u64,
}

impl Log {
    fn append(&mut self, command: Command) {
        self.index += 1;
        let response = apply(&mut self.ledger, self.index, &command);
        assert_eq!(response, Response::Accepted { changed: true }, "{command:?}");
    }
}

/// A run of one stage whose slices have committed one batch each.
fn finished_tasks(
    log: &mut Log,
    run: &RunId,
    pipeline: PipelineName,
    slices: u32,
    backfill: Option<WindowOf>,
) {
    let epoch = 1;
    log.append(Command::StartRun(StartRun {
        epoch,
        run: run.clone(),
        pipeline,
        spec_hash: "spec".into(),
        params: BTreeMap::new(),
        window: None,
        version: None,
        request_id: None,
        backfill,
        replay_of: None,
        at: DateTime::UNIX_EPOCH,
    }));
    let roles = [NodeRole::Source { incremental: true }, NodeRole::Sql, NodeRole::Sink];
    let nodes = NODES.iter().zip(roles).map(|(name, role)| (NodeName::new(*name), role));
    let sink = StageOutputShape::Sink { node: NodeName::new(NODES[2]), commit: CommitMode::Batch };
    log.append(Command::PlanRun(PlanRun {
        epoch,
        run: run.clone(),
        graph_hash: "graph".into(),
        engine_version: "engine".into(),
        stages: vec![StageShape {
            name: NODES[2].into(),
            slices,
            streaming: true,
            inputs: Vec::new(),
            nodes: nodes.map(|(name, role)| NodeShape { name, role }).collect(),
            output: sink,
        }],
    }));
    for slice in 0..slices {
        let task = SliceAttempt { epoch, run: run.clone(), stage: StageId(0), slice, attempt: 1 };
        log.append(Command::StartAttempt(StartAttempt { task: task.clone() }));
        let (rows, checksum) = (u64::from(slice) * 7 % 50_000, u64::from(slice) << 32);
        let counts = NodeCounts { rows_in: rows, rows_out: rows, ..NodeCounts::default() };
        let cursor = format!("2024-01-01T00:00:{:02}.{slice:06}", slice % 60);
        let account = RowAccount {
            nodes: NODES.iter().map(|name| (NodeName::new(*name), counts)).collect(),
            rows_written: rows,
            checksum,
            cursors: [(NodeName::new(NODES[0]), cursor)].into_iter().collect(),
            ..RowAccount::default()
        };
        let payload = json!({ "files": [{ "name": format!("{slice}.parquet"), "bytes": rows }] });
        let manifest = Manifest { slice, sequence: 0, rows, checksum, epoch, payload };
        let commit = Commit { manifest, account, resume_at: None };
        log.append(Command::CommitIntent(CommitIntent { task: task.clone(), commit }));
        log.append(Command::CommitDone(CommitDone { task, sequence: 0 }));
    }
}

/// Each by a run of one slice.
fn finished_windows(log: &mut Log, count: u32) {
    let backfill = BackfillId("backfill".into());
    let (from, to) = (DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH + TimeDelta::hours(count.into()));
    log.append(Command::CreateBackfill(CreateBackfill {
        epoch: 1,
        backfill: backfill.clone(),
        pipeline: windows_pipeline(),
        spec_hash: "spec".into(),
        params: BTreeMap::new(),
        version: None,
        range: WindowRange { from, to, step: "1h".into(), timezone: "UTC".into(), count },
        parallel: 4,
        priority: 0,
        request_id: None,
        at: DateTime::UNIX_EPOCH,
    }));
    for window in 0..count {
        let of = WindowOf { backfill: backfill.clone(), window };
        let run = RunId(format!("{backfill}-{window:06}"));
        finished_tasks(log, &run, windows_pipeline(), 1, Some(of));
        let (outcome, at) = (RunOutcome::Succeeded, DateTime::UNIX_EPOCH);
        let finished = FinishRun { epoch: 1, run: run.clone(), outcome, at };
        log.append(Command::FinishRun(finished));
        // Then the ledger keeps the window's totals alone.
        log.append(Command::CleanUpDone(CleanUpDone { epoch: 1, run }));
    }
}

fn windows_pipeline() -> PipelineName {
    PipelineName("windows".into())
}

/// Of this process.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux tells it");
    let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("its second number are pages in memory") * 4096
}

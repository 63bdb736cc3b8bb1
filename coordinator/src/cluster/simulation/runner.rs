//! Tasks without rows: they read, write and commit numbers, by the protocol of the real ones, and take their time.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::Rng as _;
use tokio::time::Instant;
use weir_connectors::{ConnectorError, ErrorKind, Manifest, Position};
use weir_executor::node::{GivenTask, TaskRunner, assigned_task};
use weir_executor::{
    Commit, ProgressEvent, RowAccount, RunFolder, SlicePosition, Task, TaskError, TaskOutcome,
};
use weir_plan::{
    ExchangeOutput, Holder, InStorage, NodeCounts, Slice, Stage, StageId, StageKind, StageOutput,
    StreamInput,
};
use weir_spec::{ExchangeDurability, NodeName, Source};

use super::Control;
use super::pipelines::place_of;
use super::shared::Shared;
use super::systems::{places_of, refused};
use super::targets::TargetKey;
use crate::raft::simulation::{Seeded, at_most};
use crate::tests::target::{Kind, Refusal, Rows, Writer};

const LONGEST_COMPUTING: Duration = Duration::from_millis(900);
const LONGEST_BATCH: Duration = Duration::from_millis(250);
const LONGEST_STEP: Duration = Duration::from_millis(20);
/// Somebody who is asked for rows and says nothing is given up.
const LONGEST_READ: Duration = Duration::from_secs(2);
/// As long as a connector waits for a lock.
const LONGEST_LOCKED: Duration = Duration::from_secs(1);

/// An executor's process.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) host: String,
    pub(super) boot_id: String,
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct VirtualRunner(pub(super) Arc<Machine>);

impl TaskRunner for VirtualRunner {
    fn run(&mut self, given: GivenTask) -> BoxFuture<'static, Result<TaskOutcome, TaskError>> {
        let machine = Arc::clone(&self.0);
        async move {
            let stage = machine.stage(&given).await?;
            let task = assigned_task(&given.id, given.assign.clone(), stage)?;
            let number = machine.shared.new_number();
            let work = Work { machine, task, given, number };
            match &work.task.stage.kind {
                StageKind::Whole { .. } => work.compute().await,
                StageKind::Streaming { .. } => work.stream().await,
            }
        }
        .boxed()
    }

    fn run_over(&mut self, _run_folder: &str) {}

    fn keep_only(&mut self, _run_folders: &[String]) {}

    fn tick(&mut self, _now: Instant) {}
}

impl Machine {
    fn folder(&self, given: &GivenTask) -> RunFolder {
        RunFolder::new(self.shared.storage.within(&given.assign.run_folder))
    }

    async fn stage(&self, given: &GivenTask) -> Result<Arc<Stage>, TaskError> {
        let graph = self.folder(given).read_graph(&given.assign.graph_hash).await;
        let graph = graph.map_err(|source| TaskError::State {
            attempt: "read the plan".into(),
            path: given.assign.graph_hash.clone(),
            source,
        })?;
        let stage = graph.stages.into_iter().find(|stage| stage.id.0 == given.id.stage);
        Ok(Arc::new(stage.expect("the leader knows the plan")))
    }
}

/// On one task.
struct Work {
    machine: Arc<Machine>,
    task: Task,
    given: GivenTask,
    number: u64,
}

/// What a streaming task reads, one split after the other, and how far it is.
struct Reading {
    splits: Vec<Rows>,
    split: usize,
    inner: usize,
}

impl Reading {
    fn take(&mut self, count: usize) -> Rows {
        let Some(split) = self.splits.get(self.split) else { return Rows::new() };
        let to = split.len().min(self.inner + count);
        let rows = split[self.inner..to].to_vec();
        self.inner = to;
        if to == split.len() && self.split + 1 < self.splits.len() {
            (self.split, self.inner) = (self.split + 1, 0);
        }
        rows
    }

    fn is_at_end(&self) -> bool {
        self.splits.get(self.split).is_none_or(|split| self.inner == split.len())
            && self.split + 1 >= self.splits.len()
    }

    fn position(&self) -> SlicePosition {
        let inner = (self.inner > 0).then(|| Position(self.inner.to_string()));
        SlicePosition { split: u32::try_from(self.split).expect("few splits"), inner }
    }
}

impl Work {
    /// Time passes, and nothing else happens while the machine stands still.
    async fn take_time(&self, longest: Duration) {
        tokio::time::sleep(at_most(longest)).await;
        self.machine.shared.awake(&self.machine.host).await;
    }

    fn may_fail(&self, node: &NodeName) -> Result<(), TaskError> {
        if Seeded.gen_range(0..100) >= self.machine.shared.error_percent {
            return Ok(());
        }
        let kind = ErrorKind::Unavailable { retry_after: None, status: None };
        let source = ConnectorError::new(kind, "the system does not answer");
        Err(TaskError::Connector { node: node.clone(), source })
    }

    /// A task of a whole stage: what comes in is dealt out to partitions.
    async fn compute(&self) -> Result<TaskOutcome, TaskError> {
        let Task { run, stage, slice, attempt, epoch, .. } = &self.task;
        let StageKind::Whole { partitions, slices, durability, .. } = &stage.kind else {
            unreachable!("whoever calls this has looked")
        };
        let (shared, host) = (&self.machine.shared, &self.machine.host);
        self.take_time(LONGEST_COMPUTING).await;
        if self.given.stop.is_cancelled() {
            return Ok(TaskOutcome::Stopped);
        }
        let mut account = RowAccount::default();
        let mut rows = Rows::new();
        for (input, outputs) in &self.task.inputs {
            let read = self.read(*input, outputs, |number| number % slices == *slice).await?;
            account.exchanges_read.insert(*input, read.len() as u64);
            rows.extend(read);
        }
        let pipeline_run = shared.state().trace.number_of(run);
        for node in &stage.nodes {
            let Some(source) = shared.find_source(node.as_str()) else { continue };
            self.may_fail(node)?;
            let own: Rows = (source.read_by(pipeline_run))
                .filter(|row| place_of(*row) % u64::from(*slices) == u64::from(*slice))
                .collect();
            account.nodes.insert(node.clone(), counts(own.len()));
            if let Some(last) = own.last().filter(|_| source.is_incremental) {
                account.cursors.insert(node.clone(), place_of(*last).to_string());
            }
            rows.extend(own);
        }
        for node in &stage.nodes {
            account.nodes.entry(node.clone()).or_insert(counts(rows.len()));
        }
        account.rows_written = rows.len() as u64;
        account.checksum = checksum(&rows);
        let mut dealt = vec![Rows::new(); *partitions as usize];
        for row in rows {
            let partition = mixed(row) % u64::from(*partitions);
            dealt[usize::try_from(partition).expect("few partitions")].push(row);
        }
        let file_id = format!("{slice}-{epoch}-{attempt}");
        let is_durable = *durability == ExchangeDurability::Sync;
        let keeps = !is_durable || shared.control == Control::DurableIsKept;
        let holder = keeps.then(|| Holder {
            executor: host.clone(),
            boot_id: self.machine.boot_id.clone(),
            url: format!("http://{host}"),
        });
        shared.state().exchanges.put(run, stage.id, &file_id, dealt, holder.as_ref());
        let (partitions, in_storage) = (*partitions, InStorage::No);
        let output = ExchangeOutput { file_id, first: 0, partitions, holder, in_storage };
        Ok(TaskOutcome::Exchanged { output, account })
    }

    /// The partitions of an exchange whose numbers are meant.
    async fn read(
        &self,
        input: StageId,
        outputs: &[ExchangeOutput],
        is_meant: impl Fn(u32) -> bool,
    ) -> Result<Rows, TaskError> {
        let shared = &self.machine.shared;
        let partitions = outputs.iter().map(|output| output.first + output.partitions).max();
        let mut rows = Rows::new();
        for partition in (0..partitions.unwrap_or(0)).filter(|number| is_meant(*number)) {
            for output in outputs.iter().filter(|output| output.holds(partition)) {
                let lost = || TaskError::InputLost {
                    stage: self.task.stage.name.clone(),
                    message: format!("rows of stage {input} cannot be had: {output:?}"),
                };
                if let Some(holder) = &output.holder {
                    let awake = shared.awake(&holder.executor);
                    tokio::time::timeout(LONGEST_READ, awake).await.map_err(|_| lost())?;
                }
                let mut state = shared.state();
                let found = state.exchanges.read(&self.task.run, input, output, partition);
                match found.cloned() {
                    Some(found) => rows.extend(found),
                    None if output.holder.is_some() => return Err(lost()),
                    None => {
                        let what = format!("an accepted output is not there: {output:?}");
                        state.trace.violated(what);
                        return Err(lost());
                    }
                }
            }
        }
        Ok(rows)
    }

    async fn reading(&self) -> Result<Reading, TaskError> {
        let Task { stage, slice, start, .. } = &self.task;
        let StageKind::Streaming { input, slices, .. } = &stage.kind else {
            unreachable!("whoever calls this has looked")
        };
        let splits = match (input, &slices[*slice as usize]) {
            (StreamInput::Source { node, .. }, Slice::Splits(splits)) => {
                let source = self.machine.shared.source(node.as_str());
                let rows = |(first, last): (u64, u64)| {
                    (first..=last).map(|place| source.row(place)).collect::<Rows>()
                };
                splits.iter().map(|split| rows(places_of(split))).collect()
            }
            (StreamInput::Exchange { stage }, Slice::Partition(partition)) => {
                let outputs = self.task.inputs.get(stage).map_or(&[][..], Vec::as_slice);
                vec![self.read(*stage, outputs, |number| number == *partition).await?]
            }
            _ => unreachable!("the slices fit the input"),
        };
        let position = match self.machine.shared.control {
            Control::PositionsAreIgnored => None,
            _ => start.position.clone(),
        };
        let (split, inner) = position.map_or((0, 0), |position| {
            let inner = position.inner.map_or(0, |inner| inner.0.parse().expect("a number"));
            (position.split as usize, inner)
        });
        Ok(Reading { splits, split, inner })
    }

    /// A task of a streaming stage: batch by batch, each committed before the next one begins.
    async fn stream(&self) -> Result<TaskOutcome, TaskError> {
        let stage = &self.task.stage;
        let StageOutput::Sink { node, .. } = &stage.output else {
            unreachable!("streaming stages end in sinks")
        };
        let key = (self.task.run.clone(), node.to_string());
        let mut reading = self.reading().await?;
        self.open(node, &key).await?;
        let mut sequence = self.task.start.next_sequence;
        let mut total = RowAccount::default();
        loop {
            self.take_time(LONGEST_BATCH).await;
            if self.given.stop.is_cancelled() {
                return Ok(TaskOutcome::Stopped);
            }
            self.may_fail(node)?;
            let rows = reading.take(Seeded.gen_range(1..5));
            // The end may be known only once nothing more comes.
            let is_last = reading.is_at_end() && (rows.is_empty() || Seeded.gen_bool(0.5));
            let resume_at = (!is_last).then(|| reading.position());
            let account = self.batch_account(node, &rows);
            self.commit(node, &key, sequence, &rows, account.clone(), resume_at).await?;
            total.add(&account);
            sequence += 1;
            if is_last {
                return Ok(TaskOutcome::Committed(total));
            }
        }
    }

    async fn open(&self, node: &NodeName, key: &TargetKey) -> Result<(), TaskError> {
        let (shared, writer) = (&self.machine.shared, self.writer());
        let give_up = Instant::now() + LONGEST_LOCKED;
        loop {
            self.take_time(LONGEST_STEP).await;
            let asking = shared.ask(&self.machine.host, key, move |target| target.open(writer));
            match asking.await.map_err(|error| at(node, error))? {
                Ok(()) => return Ok(()),
                Err(Refusal::Busy) if Instant::now() < give_up => {}
                Err(refusal) => return Err(at(node, refused(refusal))),
            }
        }
    }

    /// As the real tasks commit, step by step.
    async fn commit(
        &self,
        node: &NodeName,
        key: &TargetKey,
        sequence: u64,
        rows: &Rows,
        account: RowAccount,
        resume_at: Option<SlicePosition>,
    ) -> Result<(), TaskError> {
        let (shared, task) = (&self.machine.shared, &self.task);
        let (writer, name) = (self.writer(), shared.new_number());
        self.take_time(LONGEST_STEP).await;
        let manifest = shared
            .at_once(key, |target| target.stage(writer, sequence, rows, account.checksum, name));
        let commit = Commit { manifest, account, resume_at };
        self.keep(&commit).await?;
        self.take_time(LONGEST_STEP).await;
        self.given.log.intent(task, &commit).await?;
        self.take_time(LONGEST_STEP).await;
        if shared.control != Control::NothingIsPublished || Seeded.gen_bool(0.9) {
            self.publish(node, key, &commit.manifest, rows).await?;
        }
        self.take_time(LONGEST_STEP).await;
        self.given.log.done(task, sequence).await?;
        let _ = self.given.events.send(ProgressEvent::BatchCommitted {
            run: task.run.clone(),
            node: node.clone(),
            slice: task.slice,
            sequence,
            rows: rows.len() as u64,
        });
        Ok(())
    }

    /// The checkpoint, in the storage.
    async fn keep(&self, commit: &Commit) -> Result<(), TaskError> {
        let Task { stage, slice, attempt, .. } = &self.task;
        let sequence = commit.manifest.sequence;
        let name = RunFolder::progress_file(stage.id, *slice, sequence, *attempt);
        let json = serde_json::to_vec(commit).expect("commits are JSON");
        let kept = self.machine.folder(&self.given).storage().put(&name, json).await;
        kept.map_err(|source| TaskError::State {
            attempt: "write the checkpoint".into(),
            path: name,
            source,
        })
    }

    async fn publish(
        &self,
        node: &NodeName,
        key: &TargetKey,
        manifest: &Manifest,
        rows: &Rows,
    ) -> Result<(), TaskError> {
        let (shared, writer) = (&self.machine.shared, self.writer());
        if shared.sink(node.as_str()).kind != Kind::Files {
            let (manifest, rows) = (manifest.clone(), rows.clone());
            let publish = move |target: &mut crate::tests::target::Target| {
                target.publish(writer, &manifest, &rows)
            };
            let answer = shared.ask(&self.machine.host, key, publish).await;
            return answer
                .and_then(|answer| answer.map_err(refused))
                .map_err(|error| at(node, error));
        }
        let held = shared.at_once(key, |target| target.hold(self.number, writer.epoch));
        held.map_err(|refusal| at(node, refused(refusal)))?;
        let _holding = Holding { shared, key, number: self.number };
        for file in 0.. {
            self.take_time(LONGEST_STEP).await;
            let renamed = shared.at_once(key, |target| target.rename(writer, manifest, file));
            if !renamed.map_err(|refusal| at(node, refused(refusal)))? {
                break;
            }
        }
        Ok(())
    }

    fn writer(&self) -> Writer {
        let Task { epoch, slice, attempt, .. } = self.task;
        Writer { epoch, slice, attempt }
    }

    fn batch_account(&self, sink: &NodeName, rows: &Rows) -> RowAccount {
        let stage = &self.task.stage;
        let mut account = RowAccount {
            rows_written: rows.len() as u64,
            checksum: checksum(rows),
            ..RowAccount::default()
        };
        account.nodes.extend(stage.nodes.iter().map(|node| (node.clone(), counts(rows.len()))));
        account.nodes.insert(sink.clone(), counts(rows.len()));
        let StageKind::Streaming { input, .. } = &stage.kind else {
            unreachable!("whoever calls this has looked")
        };
        match input {
            StreamInput::Source { node, source, .. } => {
                if let Some(cursor) = cursor_of(source, rows) {
                    account.cursors.insert(node.clone(), cursor);
                }
            }
            StreamInput::Exchange { stage } => {
                account.exchanges_read.insert(*stage, rows.len() as u64);
            }
        }
        account
    }
}

/// Somebody renames files; whoever dies does so no longer.
struct Holding<'work> {
    shared: &'work Shared,
    key: &'work TargetKey,
    number: u64,
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.shared.at_once(self.key, |target| target.release(self.number));
    }
}

fn at(node: &NodeName, source: ConnectorError) -> TaskError {
    TaskError::Connector { node: node.clone(), source }
}

fn counts(rows: usize) -> NodeCounts {
    let rows = rows as u64;
    NodeCounts { rows_in: rows, rows_out: rows, ..NodeCounts::default() }
}

fn cursor_of(source: &Source, rows: &Rows) -> Option<String> {
    source.incremental()?;
    rows.last().map(|row| place_of(*row).to_string())
}

fn checksum(rows: &Rows) -> u64 {
    rows.iter().fold(0, |sum, row| sum.wrapping_add(mixed(*row)))
}

/// Spreads numbers that lie side by side (splitmix64).
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

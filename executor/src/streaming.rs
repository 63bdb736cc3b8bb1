//! A streaming task: morsel by morsel through the operators into the sink, each committed before
//! the next one begins.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::datatypes::SchemaRef;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use weir_connectors::{ConnectorError, SinkTask, SinkWriter};
use weir_plan::{
    Commit, EncodedPlan, RowAccount, Slice, SlicePosition, StageKind, StageOutput, StreamInput,
};
use weir_spec::{NodeName, SinkTarget};

use crate::checksum::RowChecksum;
use crate::context::{BATCH_ROWS, read_plan, task_context};
use crate::durable::storage_error;
use crate::exchange;
use crate::failure::FailureSite;
use crate::morsel::{MorselBounds, MorselEnd, MorselFeed, Origin, SliceInput, Written};
use crate::reading::SliceReader;
use crate::recorder::Recorder;
use crate::services::{ExecutorServices, open_source};
use crate::{CommitLog, ExecutorEnv, ProgressEvent, RunFolder, Task, TaskError, TaskOutcome};

/// Rows read for each row that a batch may have: bounds what a crash repeats when most rows are
/// filtered out.
const ROWS_READ_PER_ROW_WRITTEN: u64 = 16;

/// A streaming stage's parts, taken out of the task.
struct StreamingStage<'task> {
    input: &'task StreamInput,
    plan: &'task EncodedPlan,
    slice: &'task Slice,
    sink_node: &'task NodeName,
    sink: &'task weir_spec::Sink,
}

/// Runs a slice from its start to its end, or until asked to stop.
pub(crate) async fn run_streaming(
    task: &Task,
    env: &Arc<ExecutorEnv>,
    log: &dyn CommitLog,
    recorder: &Arc<Recorder>,
    stop: &CancellationToken,
    site: &FailureSite<'_>,
) -> Result<TaskOutcome, TaskError> {
    let stage = streaming_stage(task, site)?;
    let (plan, schema) = {
        // Decoding needs no morsels; the services that have them need the decoded leaf's schema.
        let services = ExecutorServices::shared(task, env, recorder, None);
        let plan = read_plan(stage.plan, env, &task_context(env, services), site)?;
        let schema = leaf_schema(&plan);
        (plan, schema)
    };
    if plan.output_partitioning().partition_count() != 1 {
        return Err(site.internal("the plan of a streaming stage has several partitions"));
    }
    let written = Arc::new(Written::default());
    let input = slice_input(&stage, task, env, recorder, &written, stop, site)?;
    let feed = MorselFeed::new(input, schema);
    let services = ExecutorServices::shared(task, env, recorder, Some(feed.clone()));
    let context = task_context(env, services);
    let writer = open_writer(&stage, task, env, &plan, site).await?;

    let mut driver = Driver {
        task,
        env,
        log,
        recorder,
        site,
        sink_node: stage.sink_node,
        plan,
        context,
        feed,
        written,
        writer,
        sequence: task.start.next_sequence,
        total: RowAccount::default(),
    };
    loop {
        let morsel = driver.write_morsel().await?;
        let resume_at = match morsel.end {
            MorselEnd::Idle | MorselEnd::Abandoned => return Ok(TaskOutcome::Stopped),
            MorselEnd::At(position) => Some(position),
            MorselEnd::Finished => None,
        };
        let is_finished = resume_at.is_none();
        driver.commit(morsel.rows, morsel.checksum, resume_at).await?;
        if is_finished {
            return Ok(TaskOutcome::Committed(driver.total));
        }
        if stop.is_cancelled() {
            return Ok(TaskOutcome::Stopped);
        }
    }
}

/// A morsel whose rows have all been given to the sink.
struct WrittenMorsel {
    end: MorselEnd,
    rows: u64,
    checksum: u64,
}

struct Driver<'task> {
    task: &'task Task,
    env: &'task Arc<ExecutorEnv>,
    log: &'task dyn CommitLog,
    recorder: &'task Arc<Recorder>,
    site: &'task FailureSite<'task>,
    sink_node: &'task NodeName,
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    feed: MorselFeed,
    written: Arc<Written>,
    writer: Box<dyn SinkWriter>,
    sequence: u64,
    total: RowAccount,
}

impl Driver<'_> {
    /// Passes one morsel through the operators into the sink's open batch.
    async fn write_morsel(&mut self) -> Result<WrittenMorsel, TaskError> {
        self.feed.input().await.begin();
        let classify = |error| self.site.classify(error);
        let plan = reset_plan_states(Arc::clone(&self.plan)).map_err(classify)?;
        let mut output = plan.execute(0, Arc::clone(&self.context)).map_err(classify)?;
        let mut checksum = RowChecksum::default();
        let mut rows = 0;
        while let Some(batch) = output.next().await {
            let batch = batch.map_err(classify)?;
            if batch.num_rows() == 0 {
                continue;
            }
            checksum.add(&batch).map_err(|cause| self.site.classify(cause.into()))?;
            rows += batch.num_rows() as u64;
            self.recorder.on_written(self.sink_node, &batch);
            self.writer.write(batch).await.map_err(|error| at_node(self.sink_node, error))?;
            self.written.rows.store(rows, Ordering::Relaxed);
            self.written.bytes.store(self.writer.open_bytes(), Ordering::Relaxed);
        }
        drop(output);
        let end = self.feed.input().await.end().await.map_err(classify)?;
        Ok(WrittenMorsel { end, rows, checksum: checksum.value() })
    }

    /// Makes the open batch visible, in the order in which a crash can be repaired at any point.
    async fn commit(
        &mut self,
        rows: u64,
        checksum: u64,
        resume_at: Option<SlicePosition>,
    ) -> Result<(), TaskError> {
        let sequence = self.sequence;
        let at_sink = |error| at_node(self.sink_node, error);
        let mut account =
            self.recorder.take_account().map_err(|error| self.site.classify(error))?;
        account.rows_written = rows;
        account.checksum = checksum;
        let manifest = self.writer.stage(sequence, rows, checksum).await.map_err(at_sink)?;
        let commit = Commit { manifest, account, resume_at };
        self.keep_durably(&commit).await?;
        self.log.intent(self.task, &commit).await?;
        self.writer.publish(&commit.manifest).await.map_err(at_sink)?;
        self.log.done(self.task, sequence).await?;
        self.total.add(&commit.account);
        self.sequence += 1;
        self.recorder.send(ProgressEvent::BatchCommitted {
            run: self.task.run.clone(),
            node: self.sink_node.clone(),
            slice: self.task.slice,
            sequence,
            rows,
        });
        Ok(())
    }

    /// Dead letters first, then the checkpoint that vouches for them.
    async fn keep_durably(&mut self, commit: &Commit) -> Result<(), TaskError> {
        let Task { stage, slice, attempt, .. } = self.task;
        let sequence = self.sequence;
        let json = serde_json::to_vec(commit)
            .map_err(|cause| self.site.internal(format!("a commit is not JSON: {cause}")))?;
        let storage = self.env.folder.storage();
        self.recorder.publish_dead_letters(sequence, storage).await?;
        let name = RunFolder::progress_file(stage.id, *slice, sequence, *attempt);
        let created = storage.create(&name, json).await;
        created.map_err(|cause| storage_error("write the checkpoint", storage, &name, cause))
    }
}

fn streaming_stage<'task>(
    task: &'task Task,
    site: &FailureSite<'_>,
) -> Result<StreamingStage<'task>, TaskError> {
    let StageKind::Streaming { input, plan, slices } = &task.stage.kind else {
        return Err(site.internal("a whole stage was to be streamed"));
    };
    let StageOutput::Sink { node: sink_node, sink, .. } = &task.stage.output else {
        return Err(site.internal("a streaming stage writes an exchange"));
    };
    let slice = slices.get(task.slice as usize).ok_or_else(|| {
        site.internal(format!("slice {} of {} was to be run", task.slice, slices.len()))
    })?;
    Ok(StreamingStage { input, plan, slice, sink_node, sink })
}

fn slice_input(
    stage: &StreamingStage<'_>,
    task: &Task,
    env: &Arc<ExecutorEnv>,
    recorder: &Arc<Recorder>,
    written: &Arc<Written>,
    stop: &CancellationToken,
    site: &FailureSite<'_>,
) -> Result<SliceInput, TaskError> {
    let start = task.start.position.clone().unwrap_or(SlicePosition { split: 0, inner: None });
    let (reader, origin, split_count) = match (stage.input, stage.slice) {
        (StreamInput::Source { node, source, request }, Slice::Splits(splits)) => {
            let opened =
                open_source(env, recorder, node, source).map_err(|error| at_node(node, error))?;
            let count = u32::try_from(splits.len()).map_err(|cause| site.internal(cause))?;
            let reader = SliceReader::of_source(
                node.clone(),
                opened,
                splits.clone(),
                request.clone(),
                start.clone(),
            );
            (reader, Origin::Source(node.clone()), count)
        }
        (StreamInput::Exchange { stage: input }, Slice::Partition(partition)) => {
            let files = (env.places.files_of(&task.inputs, *input, *partition))
                .and_then(exchange::durable_files)
                .map_err(|error| site.internal(error))?;
            let reader = SliceReader::of_exchange(files, start.clone());
            (reader, Origin::Exchange(*input), 1)
        }
        _ => return Err(site.internal("the slice does not fit the stage's input")),
    };
    let batch_rows = stage.sink.batch_rows.get();
    let bounds = MorselBounds {
        rows_written: batch_rows,
        rows_read: rows_read_bound(batch_rows),
        bytes_written: match &stage.sink.target {
            SinkTarget::Files(files) => Some(files.target_file_size_bytes.get()),
            SinkTarget::Table(_) | SinkTarget::Unsupported(_) => None,
        },
        every: env.checkpoint_every,
    };
    Ok(SliceInput::new(
        reader,
        origin,
        split_count,
        start,
        bounds,
        Arc::clone(written),
        Arc::clone(recorder),
        stop.clone(),
    ))
}

/// Operators hold rows back until they have a batch of their own, so that rows written say little
/// about sinks with smaller batches than that.
fn rows_read_bound(batch_rows: u64) -> u64 {
    let bound = batch_rows.saturating_mul(ROWS_READ_PER_ROW_WRITTEN);
    let operator_rows = BATCH_ROWS as u64;
    if batch_rows < operator_rows { bound.min(operator_rows) } else { bound }
}

async fn open_writer(
    stage: &StreamingStage<'_>,
    task: &Task,
    env: &ExecutorEnv,
    plan: &Arc<dyn ExecutionPlan>,
    site: &FailureSite<'_>,
) -> Result<Box<dyn SinkWriter>, TaskError> {
    let prepared = task
        .prepared
        .clone()
        .ok_or_else(|| site.internal("the sink of the task has not been prepared"))?;
    let at_sink = |error| at_node(stage.sink_node, error);
    let sink = env.systems.open_sink(stage.sink_node, stage.sink).map_err(at_sink)?;
    let sink_task = SinkTask {
        prepared,
        epoch: task.epoch,
        slice: task.slice,
        attempt: task.attempt,
        schema: plan.schema(),
    };
    sink.writer(sink_task).await.map_err(at_sink)
}

/// The schema of the plan's first leaf, which for streaming stages is the only one.
fn leaf_schema(plan: &Arc<dyn ExecutionPlan>) -> SchemaRef {
    let mut node = Arc::clone(plan);
    loop {
        let child = node.children().first().map(|child| Arc::clone(child));
        match child {
            Some(child) => node = child,
            None => return node.schema(),
        }
    }
}

fn at_node(node: &NodeName, source: ConnectorError) -> TaskError {
    TaskError::Connector { node: node.clone(), source }
}

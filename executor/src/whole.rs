//! A task of a whole stage: all partitions of a plan at once, or one of them, into a durable exchange.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::{FutureExt as _, StreamExt, TryStreamExt, stream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_plan::{ExchangeOutput, InStorage, SliceRows, StageKind, StageOutput, execute_slice};

use crate::checksum::RowChecksum;
use crate::context::{read_plan, task_context};
use crate::durable::{off_thread, storage_error};
use crate::exchange::{ExchangeFolder, ExchangeWriter};
use crate::failure::FailureSite;
use crate::recorder::Recorder;
use crate::services::ExecutorServices;
use crate::storage::Storage;
use crate::{ExecutorEnv, RunFolder, Task, TaskError, TaskOutcome};

/// Files of one task on their way to an object store.
const UPLOADS_AT_ONCE: usize = 4;

/// Computes a slice of the stage. Nothing of it is visible unless all of it is.
pub(crate) async fn run_whole(
    task: &Task,
    env: &Arc<ExecutorEnv>,
    recorder: &Arc<Recorder>,
    stop: &CancellationToken,
    site: &FailureSite<'_>,
) -> Result<TaskOutcome, TaskError> {
    let (StageKind::Whole { plan, partitions, slices, durability }, StageOutput::Exchange) =
        (&task.stage.kind, &task.stage.output)
    else {
        return Err(site.internal("only whole stages write exchanges"));
    };
    let context = task_context(env, ExecutorServices::shared(task, env, recorder, None));
    let plan = read_plan(plan, env, &context, site)?;
    let partition_count = plan.output_partitioning().partition_count();
    if partition_count != *partitions as usize {
        return Err(site.internal(format!(
            "the plan has {partition_count} partitions instead of {partitions}"
        )));
    }
    // An epoch belongs to one leader, an attempt to one task: no two attempts share a name, and one that
    // was given up cannot touch what another has finished.
    let file_id = format!("{}-{}-{}", task.slice, task.epoch, task.attempt);
    let (place, holder, in_storage) = env.places.output(*durability);
    let is_durable_here = holder.is_none() && env.places.is_storage_here();
    let folder = ExchangeFolder::create(&place, task.stage.id, &file_id, is_durable_here)?
        .compressed(env.places.compression());

    let mut writing = JoinSet::new();
    let written_partitions = match slices {
        1 => {
            for partition in 0..partition_count {
                let writer = folder.writer(partition, &plan.schema())?;
                let (plan, context) = (Arc::clone(&plan), Arc::clone(&context));
                writing.spawn(write_partition(plan, partition, context, writer));
            }
            0..partition_count
        }
        _ => {
            let (slice, slices) = (task.slice as usize, *slices as usize);
            let rows = execute_slice(&plan, slice, slices, context)
                .map_err(|error| site.classify(error))?;
            let partitions = rows.partitions.clone();
            let writers = (partitions.clone())
                .map(|partition| folder.writer(partition, &plan.schema()))
                .collect::<Result<Vec<_>, _>>()?;
            writing.spawn(write_slice(rows, writers));
            partitions
        }
    };
    let mut written = Written::default();
    loop {
        let finished = tokio::select! {
            finished = writing.join_next() => finished,
            () = stop.cancelled() => {
                writing.shutdown().await;
                return Ok(TaskOutcome::Stopped);
            }
        };
        match finished {
            None => break,
            Some(Ok(Ok(rows))) => {
                written.rows += rows.rows;
                written.checksum.merge(rows.checksum);
            }
            Some(failed) => {
                writing.shutdown().await;
                return Err(match failed {
                    Ok(Err(WriteError::Operator(error))) => site.classify(error),
                    Ok(Err(WriteError::Task(error))) => error,
                    Err(ended) => site.ended(ended),
                    Ok(Ok(_)) => unreachable!("matched above"),
                });
            }
        }
    }
    recorder.publish_dead_letters(0, env.folder.storage()).await?;
    off_thread(move || folder.publish()).await?;
    if holder.is_none() && !is_durable_here {
        upload(&place, env.folder.storage(), task, &file_id, written_partitions.clone()).await?;
    }
    let mut account = recorder.take_account().map_err(|error| site.classify(error))?;
    account.rows_written = written.rows;
    account.checksum = written.checksum.value();
    let output = exchange_output(file_id, &written_partitions, site)?;
    let output = ExchangeOutput { holder, in_storage, ..output };
    Ok(TaskOutcome::Exchanged { output, account })
}

/// Takes finished files of this machine to the storage.
async fn upload(
    place: &Path,
    storage: &Storage,
    task: &Task,
    file_id: &str,
    partitions: Range<usize>,
) -> Result<(), TaskError> {
    let uploads = partitions.map(|partition| {
        let name = RunFolder::exchange_file(task.stage.id, file_id, partition);
        async move {
            let uploaded = storage.upload(place.join(&name), &name).await;
            uploaded.map_err(|cause| storage_error("write the exchange to", storage, &name, cause))
        }
        .boxed()
    });
    stream::iter(uploads).buffer_unordered(UPLOADS_AT_ONCE).try_collect().await
}

fn exchange_output(
    file_id: String,
    partitions: &Range<usize>,
    site: &FailureSite<'_>,
) -> Result<ExchangeOutput, TaskError> {
    let count = |number: usize| u32::try_from(number).map_err(|cause| site.internal(cause));
    let (first, partitions) = (count(partitions.start)?, count(partitions.len())?);
    Ok(ExchangeOutput { file_id, first, partitions, holder: None, in_storage: InStorage::No })
}

#[derive(Default)]
struct Written {
    rows: u64,
    checksum: RowChecksum,
}

impl Written {
    fn add(&mut self, rows: &RecordBatch) -> Result<(), WriteError> {
        self.rows += rows.num_rows() as u64;
        self.checksum.add(rows).map_err(|cause| WriteError::Operator(cause.into()))
    }
}

enum WriteError {
    Operator(DataFusionError),
    Task(TaskError),
}

async fn write_partition(
    plan: Arc<dyn ExecutionPlan>,
    partition: usize,
    context: Arc<TaskContext>,
    mut writer: ExchangeWriter,
) -> Result<Written, WriteError> {
    let mut output = plan.execute(partition, context).map_err(WriteError::Operator)?;
    let mut written = Written::default();
    while let Some(rows) = output.next().await {
        let rows = rows.map_err(WriteError::Operator)?;
        written.add(&rows)?;
        writer.write(rows).map_err(WriteError::Task)?;
    }
    off_thread(move || writer.finish()).await.map_err(WriteError::Task)?;
    Ok(written)
}

/// One writer for each partition that the rows may belong to.
async fn write_slice(
    output: SliceRows,
    mut writers: Vec<ExchangeWriter>,
) -> Result<Written, WriteError> {
    let SliceRows { partitions, mut rows } = output;
    let mut written = Written::default();
    while let Some(next) = rows.next().await {
        let (partition, rows) = next.map_err(WriteError::Operator)?;
        written.add(&rows)?;
        writers[partition - partitions.start].write(rows).map_err(WriteError::Task)?;
    }
    off_thread(move || writers.into_iter().try_for_each(ExchangeWriter::finish))
        .await
        .map_err(WriteError::Task)?;
    Ok(written)
}

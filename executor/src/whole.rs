//! A whole task: all partitions of a plan at once, into a durable exchange.

use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::StreamExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_plan::{StageKind, StageOutput};

use crate::checksum::RowChecksum;
use crate::context::{read_plan, task_context};
use crate::durable::off_thread;
use crate::exchange::{ExchangeFolder, ExchangeWriter};
use crate::failure::FailureSite;
use crate::recorder::Recorder;
use crate::services::ExecutorServices;
use crate::{ExecutorEnv, Task, TaskError, TaskOutcome};

/// Computes the stage. Nothing of it is visible unless all of it is.
pub(crate) async fn run_whole(
    task: &Task,
    env: &Arc<ExecutorEnv>,
    recorder: &Arc<Recorder>,
    stop: &CancellationToken,
    site: &FailureSite<'_>,
) -> Result<TaskOutcome, TaskError> {
    let (StageKind::Whole { plan, partitions }, StageOutput::Exchange) =
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
    let folder = ExchangeFolder::create(&env.folder, task.stage.id, &file_id)?;

    let mut writing = JoinSet::new();
    for partition in 0..partition_count {
        let writer = ExchangeWriter::create(folder.file(partition), &plan.schema())?;
        writing.spawn(write_partition(Arc::clone(&plan), partition, Arc::clone(&context), writer));
    }
    let mut rows_written = 0;
    let mut checksum = RowChecksum::default();
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
            Some(Ok(Ok(partition))) => {
                rows_written += partition.rows;
                checksum.merge(partition.checksum);
            }
            Some(failed) => {
                writing.shutdown().await;
                return Err(match failed {
                    Ok(Err(PartitionError::Operator(error))) => site.classify(error),
                    Ok(Err(PartitionError::Task(error))) => error,
                    Err(ended) => site.ended(ended),
                    Ok(Ok(_)) => unreachable!("matched above"),
                });
            }
        }
    }
    let dead_letters = Arc::clone(recorder);
    off_thread(move || {
        dead_letters.publish_dead_letters(0)?;
        folder.publish()
    })
    .await?;
    let mut account = recorder.take_account().map_err(|error| site.classify(error))?;
    account.rows_written = rows_written;
    account.checksum = checksum.value();
    Ok(TaskOutcome::Exchanged { file_id, partitions: *partitions, account })
}

struct WrittenPartition {
    rows: u64,
    checksum: RowChecksum,
}

enum PartitionError {
    Operator(datafusion::error::DataFusionError),
    Task(TaskError),
}

async fn write_partition(
    plan: Arc<dyn ExecutionPlan>,
    partition: usize,
    context: Arc<TaskContext>,
    mut writer: ExchangeWriter,
) -> Result<WrittenPartition, PartitionError> {
    let mut output = plan.execute(partition, context).map_err(PartitionError::Operator)?;
    let mut written = WrittenPartition { rows: 0, checksum: RowChecksum::default() };
    while let Some(rows) = output.next().await {
        let rows = rows.map_err(PartitionError::Operator)?;
        written.checksum.add(&rows).map_err(|cause| PartitionError::Operator(cause.into()))?;
        written.rows += rows.num_rows() as u64;
        writer.write(rows).map_err(PartitionError::Task)?;
    }
    off_thread(move || writer.finish()).await.map_err(PartitionError::Task)?;
    Ok(written)
}

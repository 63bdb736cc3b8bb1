//! One slice of a whole stage that several tasks compute.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::metrics::Time;
use datafusion::physical_plan::repartition::{BatchPartitioner, RepartitionExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, Partitioning};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

/// The rows of a slice.
pub struct SliceRows {
    /// The partitions of the exchange that they may belong to.
    pub partitions: Range<usize>,
    /// Each batch with its partition.
    pub rows: BoxStream<'static, Result<(usize, RecordBatch)>>,
}

/// Executes one partition of the plan; or, where the root of the plan deals rows out by hash, one
/// partition of what is dealt out.
pub fn execute_slice(
    plan: &Arc<dyn ExecutionPlan>,
    slice: usize,
    slices: usize,
    context: Arc<TaskContext>,
) -> Result<SliceRows> {
    let dealt_out = plan.downcast_ref::<RepartitionExec>();
    let input = dealt_out.map_or(plan, RepartitionExec::input);
    let partitions = input.output_partitioning().partition_count();
    if partitions != slices || slice >= slices {
        return Err(DataFusionError::Internal(format!(
            "slice {slice} of {slices} does not fit a plan of {partitions} partitions"
        )));
    }
    let rows = input.execute(slice, context)?;
    let Some(dealt_out) = dealt_out else {
        let rows = rows.map_ok(move |batch| (slice, batch)).boxed();
        return Ok(SliceRows { partitions: slice..slice + 1, rows });
    };
    let Partitioning::Hash(keys, count) = dealt_out.partitioning() else {
        return Err(DataFusionError::Internal("rows are dealt out by hash only".to_owned()));
    };
    let mut partitioner =
        BatchPartitioner::new_hash_partitioner(keys.clone(), *count, Time::new())?;
    let rows = rows.map(move |batch| {
        let mut dealt: Vec<Result<(usize, RecordBatch)>> = Vec::new();
        partitioner.partition(batch?, |partition, rows| {
            dealt.push(Ok((partition, rows)));
            Ok(())
        })?;
        Ok::<_, DataFusionError>(futures::stream::iter(dealt))
    });
    Ok(SliceRows { partitions: 0..*count, rows: rows.try_flatten().boxed() })
}

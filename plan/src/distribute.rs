//! Cuts the plan of a whole stage into several at the borders where rows change their partition, so
//! that the tasks of each can run on different executors.
//!
//! ```text
//! scan ─▶ [by hash of the key] ─┐
//!                               ├─▶ join of one partition ─▶ [as it is]
//! scan ─▶ [by hash of the key] ─┘
//! ```
//!
//! Ballista's planner finds the borders. What is between two of them is computed by one task for each
//! partition, if its operators allow it, and else by one task for all.

use std::collections::BTreeSet;
use std::sync::Arc;

use ballista_core::JobId;
use ballista_core::execution_plans::{ShuffleWriter, UnresolvedShuffleExec};
use ballista_scheduler::planner::{DefaultDistributedPlanner, DistributedPlanner as _};
use datafusion::common::JoinType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode, SortMergeJoinExec,
};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, Partitioning};
use weir_spec::NodeName;

use crate::StageId;
use crate::collect::{follows_right_side, kept, unmark};
use crate::operators::{CountExec, ExchangeScanExec, SourceScanExec, ValidateExec};

/// One of the stages that a plan is cut into.
pub(crate) struct Part {
    pub(crate) id: StageId,
    /// Its root is a [`RepartitionExec`] by hash where the rows are dealt out anew.
    pub(crate) plan: Arc<dyn ExecutionPlan>,
    /// 1, or as many as its rows have partitions before they are dealt out.
    pub(crate) slices: usize,
}

/// In order of the data; the last one yields what `plan` yields. Ids count from `first`.
pub(crate) fn cut(
    plan: &Arc<dyn ExecutionPlan>,
    first: StageId,
    options: &ConfigOptions,
) -> Result<Vec<Part>> {
    let whole = || vec![Part { id: first, plan: Arc::clone(plan), slices: 1 }];
    if !all(plan, &can_be_cut) {
        return Ok(whole());
    }
    let (marked, mut options) = kept(plan, options)?;
    // Every task would read all rows to keep its share of them.
    options.optimizer.enable_round_robin_repartition = false;
    let dealt_out = hash_repartitions(&marked);
    let mut planner = DefaultDistributedPlanner::new();
    let Ok(writers) = planner.plan_query_stages(&JobId::from("plan"), marked, &options) else {
        return Ok(whole());
    };
    // Operators rely on where rows are: a border that this plan does not have would double or lose some.
    let borders = writers.iter().filter(|writer| writer.shuffle_output_partitioning().is_some());
    if borders.count() != dealt_out {
        return Ok(whole());
    }
    let numbers: Vec<usize> = writers.iter().map(|writer| writer.stage_id()).collect();
    let id_of = |number: usize| {
        let index = numbers.iter().position(|known| *known == number)?;
        Some(StageId(first.0 + u32::try_from(index).ok()?))
    };
    (writers.iter().zip(first.0..))
        .map(|(writer, id)| part(writer.as_ref(), StageId(id), &id_of))
        .collect()
}

fn part(
    writer: &dyn ShuffleWriter,
    id: StageId,
    id_of: &dyn Fn(usize) -> Option<StageId>,
) -> Result<Part> {
    let input = Arc::clone(writer.children()[0]);
    let input = input.transform_up(|node| replace_shuffle(node, id, id_of))?.data;
    let input = input.transform_up(|node| Ok(unmark(node)))?.data;
    let partitions = input.output_partitioning().partition_count();
    let slices = if is_separable(&input) { partitions } else { 1 };
    let plan = match writer.shuffle_output_partitioning() {
        None => input,
        Some(partitioning) => Arc::new(RepartitionExec::try_new(input, partitioning.clone())?) as _,
    };
    Ok(Part { id, plan, slices })
}

/// Where the plan deals rows out by their values.
fn hash_repartitions(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let here = plan
        .downcast_ref::<RepartitionExec>()
        .is_some_and(|node| matches!(node.partitioning(), Partitioning::Hash(..)));
    usize::from(here) + plan.children().into_iter().map(hash_repartitions).sum::<usize>()
}

/// Ballista's name for the output of another stage becomes ours.
fn replace_shuffle(
    node: Arc<dyn ExecutionPlan>,
    reader: StageId,
    id_of: &dyn Fn(usize) -> Option<StageId>,
) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let Some(shuffle) = node.downcast_ref::<UnresolvedShuffleExec>() else {
        return Ok(Transformed::no(node));
    };
    let Some(stage) = id_of(shuffle.stage_id).filter(|stage| *stage < reader) else {
        return Err(DataFusionError::Internal(format!(
            "stage {reader} of a cut plan reads shuffle {}, which is not before it",
            shuffle.stage_id
        )));
    };
    let partitions = match shuffle.broadcast {
        true => shuffle.upstream_partition_count,
        false => shuffle.output_partition_count,
    };
    let scan = ExchangeScanExec::new(stage, partitions, None, Arc::clone(&shuffle.schema));
    let scan: Arc<dyn ExecutionPlan> = Arc::new(scan);
    Ok(Transformed::yes(match shuffle.broadcast {
        true => Arc::new(CoalescePartitionsExec::new(scan)),
        false => scan,
    }))
}

/// Whether Ballista's planner and this module know what the operator does with partitions.
fn can_be_cut(node: &Arc<dyn ExecutionPlan>) -> bool {
    match node.downcast_ref::<RepartitionExec>() {
        // Others than those by hash are left out, as if they did nothing but balance.
        Some(repartition) => {
            let inputs = repartition.input().output_partitioning().partition_count();
            let merges_in_order = inputs > 1 && repartition.maintains_input_order()[0];
            !merges_in_order && !matches!(repartition.partitioning(), Partitioning::Range(_))
        }
        None => is_known(node),
    }
}

fn is_known(node: &Arc<dyn ExecutionPlan>) -> bool {
    keeps_partitions_apart(node) || gathers(node) || node.is::<NestedLoopJoinExec>()
}

/// Whether a partition of its output is made of the same partition of each of its inputs, or of those
/// that lie under it, and of nothing else.
fn keeps_partitions_apart(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.is::<AggregateExec>()
        || node.is::<BoundedWindowAggExec>()
        || node.is::<CooperativeExec>()
        || node.is::<CountExec>()
        || node.is::<CrossJoinExec>()
        || node.is::<EmptyExec>()
        || node.is::<ExchangeScanExec>()
        || node.is::<FilterExec>()
        || node.is::<GlobalLimitExec>()
        || node.is::<HashJoinExec>()
        || node.is::<LocalLimitExec>()
        || node.is::<PlaceholderRowExec>()
        || node.is::<ProjectionExec>()
        || node.is::<SortExec>()
        || node.is::<SortMergeJoinExec>()
        || node.is::<SourceScanExec>()
        || node.is::<UnionExec>()
        || node.is::<UnnestExec>()
        || node.is::<ValidateExec>()
        || node.is::<WindowAggExec>()
}

/// Whether it makes one partition of many.
fn gathers(node: &Arc<dyn ExecutionPlan>) -> bool {
    node.is::<CoalescePartitionsExec>() || node.is::<SortPreservingMergeExec>()
}

/// Whether each partition can be computed by a task that knows nothing of the others.
fn is_separable(plan: &Arc<dyn ExecutionPlan>) -> bool {
    if gathers(plan) {
        // One partition, which one task owns.
        return all(plan, &is_known);
    }
    if let Some(SharedLeft { join_type, left, right }) = shares_left_side(plan) {
        return follows_right_side(join_type) && can_be_read_twice(left) && is_separable(right);
    }
    keeps_partitions_apart(plan) && plan.children().into_iter().all(is_separable)
}

/// A join whose partitions all read the whole left side.
struct SharedLeft<'plan> {
    join_type: JoinType,
    left: &'plan Arc<dyn ExecutionPlan>,
    right: &'plan Arc<dyn ExecutionPlan>,
}

fn shares_left_side(plan: &Arc<dyn ExecutionPlan>) -> Option<SharedLeft<'_>> {
    let shared = |join_type, left, right| Some(SharedLeft { join_type, left, right });
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        return match join.partition_mode() {
            PartitionMode::Partitioned => None,
            _ => shared(*join.join_type(), join.left(), join.right()),
        };
    }
    if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
        return shared(*join.join_type(), join.left(), join.right());
    }
    let join = plan.downcast_ref::<CrossJoinExec>()?;
    shared(JoinType::Inner, join.left(), join.right())
}

/// Whether rows that several tasks read are counted nowhere.
fn can_be_read_twice(plan: &Arc<dyn ExecutionPlan>) -> bool {
    all(plan, &|node| {
        let counts =
            node.is::<SourceScanExec>() || node.is::<ValidateExec>() || node.is::<CountExec>();
        is_known(node) && !counts
    })
}

fn all(plan: &Arc<dyn ExecutionPlan>, holds: &dyn Fn(&Arc<dyn ExecutionPlan>) -> bool) -> bool {
    holds(plan) && plan.children().into_iter().all(|child| all(child, holds))
}

/// The exchanges that a plan reads, each once.
pub(crate) fn exchanges_read(plan: &Arc<dyn ExecutionPlan>) -> Result<BTreeSet<StageId>> {
    let mut stages = BTreeSet::new();
    plan.apply(|node| {
        stages.extend(node.downcast_ref::<ExchangeScanExec>().map(|scan| scan.stage));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(stages)
}

/// The nodes that a plan counts rows of.
pub(crate) fn counted_nodes(plan: &Arc<dyn ExecutionPlan>) -> Result<BTreeSet<NodeName>> {
    let mut nodes = BTreeSet::new();
    plan.apply(|node| {
        if let Some(count) = node.downcast_ref::<CountExec>() {
            nodes.extend(count.out_of.iter().chain(&count.into).cloned());
        } else if let Some(source) = node.downcast_ref::<SourceScanExec>() {
            nodes.extend(Some(&source.scan().node).filter(|_| !source.scan().again).cloned());
        } else if let Some(validate) = node.downcast_ref::<ValidateExec>() {
            nodes.insert(validate.node().clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(nodes)
}

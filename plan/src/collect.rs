//! Which sides of joins every task of a cluster reads whole, so that the other side's rows stay where they are.
//!
//! DataFusion proposes the sides that it takes for small. [`DealOutLargeSides`] takes back what could turn out large, what
//! moves more bytes than dealing out does, and what would leave the join to one task. Operators above a join rely on where it leaves its rows: this is decided
//! before they are placed, and [`kept`] keeps Ballista's planner from deciding anew.

use std::sync::Arc;

use ballista_core::config::{BALLISTA_BROADCAST_JOIN_THRESHOLD_BYTES, BallistaConfig};
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::common::JoinType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::config::{ConfigOptions, ExtensionOptions as _};
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, ExecutionPlan, ExecutionPlanProperties as _, ReplaceChildrenOptions,
};

use crate::operators::{COLLECTED_BYTES, CollectedExec};

/// A side that is estimated below is small.
const SMALL_SIDE_BYTES: usize = 16 << 20;
/// A side that is estimated below is read whole if that moves fewer bytes than to deal out both.
const MEDIUM_SIDE_BYTES: usize = 64 << 20;
/// A side of more rows is not proposed where nobody knows how long they are.
const MOST_ROWS: usize = 1_000_000;
/// What a side may have at most if no filter takes a row away. Each task keeps its own copy in memory, and estimates of
/// what filters leave may be wrong by any factor.
const LARGEST_SIDE_BYTES: usize = 256 << 20;
/// Of a value whose type does not say it.
const GUESSED_BYTES: usize = 32;

type Rules = Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>;

/// Makes DataFusion plan for tasks that share nothing.
pub(crate) fn plan_for_tasks(options: &mut ConfigOptions) -> Rules {
    // Dealing the other side out costs a write and a read of all its rows.
    options.optimizer.hash_join_single_partition_threshold = MEDIUM_SIDE_BYTES;
    options.optimizer.hash_join_single_partition_threshold_rows = MOST_ROWS;
    let mut rules = PhysicalOptimizer::new().rules;
    let selection = rules.iter().position(|rule| rule.name() == "join_selection");
    rules.insert(selection.map_or(0, |index| index + 1), Arc::new(DealOutLargeSides));
    rules
}

#[derive(Debug)]
struct DealOutLargeSides;

impl PhysicalOptimizerRule for DealOutLargeSides {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        options: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let tasks = options.execution.target_partitions;
        let dealt_out = plan.transform_up(|node| {
            let join = node.downcast_ref::<HashJoinExec>();
            // A null-aware join needs all rows of both sides at once.
            let proposed = join.filter(|join| is_collected(join) && !join.null_aware);
            match proposed {
                Some(join) if !may_be_collected(join) || !moves_fewer_bytes(join, tasks) => {
                    let join = join.builder().with_partition_mode(PartitionMode::Partitioned);
                    Ok(Transformed::yes(join.build_exec()?))
                }
                _ => Ok(Transformed::no(node)),
            }
        })?;
        Ok(dealt_out.data)
    }

    fn name(&self) -> &str {
        "deal_out_large_sides"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn is_collected(join: &HashJoinExec) -> bool {
    *join.partition_mode() == PartitionMode::CollectLeft
}

fn may_be_collected(join: &HashJoinExec) -> bool {
    let bytes = most_rows(join.left())
        .map(|rows| rows.saturating_mul(bytes_of_a_row(&join.left().schema())));
    follows_right_side(*join.join_type()) && bytes.is_none_or(|bytes| bytes <= LARGEST_SIDE_BYTES)
}

/// Whether the left side is small, or all tasks together read no more of it than what would be dealt out of both. A right
/// side without an estimate may be tiny.
fn moves_fewer_bytes(join: &HashJoinExec, tasks: usize) -> bool {
    let Some(left) = estimated_bytes(join.left()) else { return true };
    if left <= SMALL_SIDE_BYTES {
        return true;
    }
    let both = estimated_bytes(join.right()).map_or(0, |right| left.saturating_add(right));
    // A union has the partitions of all its inputs.
    let tasks = tasks.max(join.right().output_partitioning().partition_count());
    left <= MEDIUM_SIDE_BYTES && left.saturating_mul(tasks) <= both
}

fn estimated_bytes(plan: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    let statistics =
        StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new()).ok()?;
    let rows = statistics.num_rows.get_value();
    let by_width = || rows.map(|rows| rows.saturating_mul(bytes_of_a_row(&plan.schema())));
    statistics.total_byte_size.get_value().copied().or_else(by_width)
}

/// Whether each row of the output is due to one row of the right side. Otherwise rows of the left side
/// that have found no partner come at the end, once, when all partitions have been seen.
pub(crate) fn follows_right_side(join: JoinType) -> bool {
    matches!(
        join,
        JoinType::Inner
            | JoinType::Right
            | JoinType::RightAnti
            | JoinType::RightMark
            | JoinType::RightSemi
    )
}

/// As if filters let all rows pass, and joins each row once.
fn most_rows(plan: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    let children = plan.children();
    let rows = if children.is_empty() {
        let statistics = StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new());
        statistics.ok().and_then(|statistics| statistics.num_rows.get_value().copied())
    } else {
        let together = if plan.is::<UnionExec>() { usize::saturating_add } else { usize::max };
        children.into_iter().map(most_rows).try_fold(0, |all, rows| Some(together(all, rows?)))
    };
    match (rows, plan.fetch()) {
        (Some(rows), Some(limit)) => Some(rows.min(limit)),
        (rows, limit) => rows.or(limit),
    }
}

fn bytes_of_a_row(schema: &Schema) -> usize {
    let bytes = |field: &Arc<Field>| field.data_type().primitive_width().unwrap_or(GUESSED_BYTES);
    schema.fields().iter().map(bytes).sum()
}

/// The plan and the options for Ballista's planner, with which it neither collects a side nor deals out one that is
/// collected.
pub(crate) fn kept(
    plan: &Arc<dyn ExecutionPlan>,
    options: &ConfigOptions,
) -> Result<(Arc<dyn ExecutionPlan>, ConfigOptions)> {
    let mut options = options.clone();
    let mut threshold = BallistaConfig::default();
    let key = BALLISTA_BROADCAST_JOIN_THRESHOLD_BYTES.trim_start_matches("ballista.");
    // It collects what is below, and 0 would have it deal out everything.
    threshold.set(key, &(COLLECTED_BYTES + 1).to_string())?;
    options.extensions.insert(threshold);
    let marked = Arc::clone(plan).transform_up(|node| {
        let Some(join) = node.downcast_ref::<HashJoinExec>().filter(|join| is_collected(join))
        else {
            return Ok(Transformed::no(node));
        };
        let sides = vec![mark(join.left())?, Arc::clone(join.right())];
        Ok(Transformed::yes(node.replace_children(sides, recomputed())?))
    })?;
    Ok((marked.data, options))
}

fn recomputed() -> ReplaceChildrenOptions {
    ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute)
}

fn mark(side: &Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let collected = |side| Arc::new(CollectedExec::new(side)) as Arc<dyn ExecutionPlan>;
    match side.downcast_ref::<CoalescePartitionsExec>() {
        // Ballista's planner gathers the partitions in its own way, which knows no limit.
        Some(gathering) if gathering.fetch().is_none() => {
            let input = collected(Arc::clone(gathering.input()));
            Arc::clone(side).replace_children(vec![input], recomputed())
        }
        _ => Ok(collected(Arc::clone(side))),
    }
}

/// Takes the marks away.
pub(crate) fn unmark(node: Arc<dyn ExecutionPlan>) -> Transformed<Arc<dyn ExecutionPlan>> {
    match node.downcast_ref::<CollectedExec>() {
        Some(mark) => Transformed::yes(Arc::clone(mark.input())),
        None => Transformed::no(node),
    }
}

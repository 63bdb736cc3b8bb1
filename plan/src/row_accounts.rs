//! Finds the borders between nodes in a physical plan, and counts the rows that cross them.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::error::Result;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use weir_spec::NodeName;

use crate::operators::{CountExec, ExchangeScanExec, SourceScanExec, ValidateExec};

/// Adds the rows that enter each counted node, where they leave the node before: another counted
/// node, a `validate`, a source or an exchange. A node behind a join has as many rows in as all its
/// inputs together.
///
/// Done on the finished physical plan, so that counting keeps no filter from being pushed down.
pub(crate) fn count_rows_in(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    rewrite(plan, None)
}

/// Leaves the rows of a source to the account of the first of its scans.
pub(crate) fn count_sources_once(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let mut seen = BTreeSet::new();
    let plan = plan.transform_up(|node| {
        Ok(match node.downcast_ref::<SourceScanExec>() {
            Some(scan) if !seen.insert(scan.scan().node.clone()) => {
                Transformed::yes(Arc::new(scan.again()) as _)
            }
            _ => Transformed::no(node),
        })
    })?;
    Ok(plan.data)
}

fn rewrite(
    plan: Arc<dyn ExecutionPlan>,
    reader: Option<&NodeName>,
) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(count) = plan.downcast_ref::<CountExec>() {
        let (out_of, input) = (count.out_of.clone(), Arc::clone(plan.children()[0]));
        let input = rewrite(input, out_of.as_ref())?;
        return Ok(Arc::new(CountExec::new(out_of, reader.cloned(), input)));
    }
    let is_border =
        plan.is::<ValidateExec>() || plan.is::<SourceScanExec>() || plan.is::<ExchangeScanExec>();
    let below = if is_border { None } else { reader };
    let children = plan
        .children()
        .into_iter()
        .map(|child| rewrite(Arc::clone(child), below))
        .collect::<Result<Vec<_>>>()?;
    let plan =
        if children.is_empty() { plan } else { replace_children_if_necessary(plan, children)? };
    match reader {
        Some(reader) if is_border => Ok(Arc::new(CountExec::new(None, Some(reader.clone()), plan))),
        _ => Ok(plan),
    }
}

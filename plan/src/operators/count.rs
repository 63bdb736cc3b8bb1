//! Counts rows for the row account, and lets them pass.

use std::fmt;
use std::sync::Arc;

use datafusion::common::Statistics;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::CardinalityEffect;
use datafusion::physical_plan::statistics::{ChildStats, StatisticsArgs};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;
use weir_spec::NodeName;

use super::services;
use crate::NodeCounts;

/// Pass-through on the border between two nodes: same schema, partitions and order as its input.
#[derive(Debug)]
pub struct CountExec {
    /// The rows leave this node.
    pub out_of: Option<NodeName>,
    /// The rows enter this node.
    pub into: Option<NodeName>,
    input: Arc<dyn ExecutionPlan>,
}

impl CountExec {
    pub fn new(
        out_of: Option<NodeName>,
        into: Option<NodeName>,
        input: Arc<dyn ExecutionPlan>,
    ) -> Self {
        Self { out_of, into, input }
    }
}

impl DisplayAs for CountExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CountExec:")?;
        if let Some(node) = &self.out_of {
            write!(f, " out_of={node}")?;
        }
        if let Some(node) = &self.into {
            write!(f, " into={node}")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for CountExec {
    fn name(&self) -> &str {
        "CountExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }
    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.swap_remove(0);
        Ok(Arc::new(Self::new(self.out_of.clone(), self.into.clone(), input)))
    }
    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }
    fn statistics_from_inputs(
        &self,
        inputs: &[Arc<Statistics>],
        _args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        Ok(Arc::clone(&inputs[0]))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let services = services(&context)?;
        let (out_of, into) = (self.out_of.clone(), self.into.clone());
        let rows = self.input.execute(partition, context)?.map(move |batch| {
            let batch = batch?;
            let rows = batch.num_rows() as u64;
            if let Some(node) = &out_of {
                services.count(node, NodeCounts { rows_out: rows, ..NodeCounts::default() });
            }
            if let Some(node) = &into {
                services.count(node, NodeCounts { rows_in: rows, ..NodeCounts::default() });
            }
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

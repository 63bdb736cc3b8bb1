//! Reads the output of an earlier stage inside a whole stage.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;

use super::{leaf_methods, leaf_properties, services};
use crate::StageId;
use crate::schema::conform;

/// Leaf. One partition for each partition of the exchange, in the order in which it was written.
#[derive(Debug)]
pub struct ExchangeScanExec {
    pub stage: StageId,
    pub partitions: usize,
    /// Columns of the exchange that are yielded; `None` is all.
    pub projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
}

impl ExchangeScanExec {
    /// `schema` is the schema after the projection.
    pub fn new(
        stage: StageId,
        partitions: usize,
        projection: Option<Vec<usize>>,
        schema: SchemaRef,
    ) -> Self {
        Self { stage, partitions, projection, properties: leaf_properties(schema, partitions) }
    }
}

impl DisplayAs for ExchangeScanExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = self.schema();
        let columns: Vec<&str> =
            schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(
            f,
            "ExchangeScanExec: stage={}, partitions={}, columns=[{}]",
            self.stage,
            self.partitions,
            columns.join(", ")
        )
    }
}

impl ExecutionPlan for ExchangeScanExec {
    fn name(&self) -> &str {
        "ExchangeScanExec"
    }

    leaf_methods!();

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let rows = services(&context)?.read_exchange(self.stage, partition)?;
        let (schema, projection) = (self.schema(), self.projection.clone());
        let output_schema = Arc::clone(&schema);
        let rows = rows.map(move |batch| conform(&batch?, projection.as_deref(), &output_schema));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

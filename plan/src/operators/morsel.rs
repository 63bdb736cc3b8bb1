//! The leaf of a streaming stage: the rows that its task has just read.

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
use crate::schema::conform;

/// Leaf, one partition. The morsel has all columns of the stage's input (the scan request's, or
/// the exchange's); `projection` picks those that the operators need.
#[derive(Debug)]
pub struct MorselExec {
    pub projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
}

impl MorselExec {
    /// `schema` is the schema after the projection.
    pub fn new(projection: Option<Vec<usize>>, schema: SchemaRef) -> Self {
        Self { projection, properties: leaf_properties(schema, 1) }
    }
}

impl DisplayAs for MorselExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = self.schema();
        let columns: Vec<&str> =
            schema.fields().iter().map(|field| field.name().as_str()).collect();
        write!(f, "MorselExec: columns=[{}]", columns.join(", "))
    }
}

impl ExecutionPlan for MorselExec {
    fn name(&self) -> &str {
        "MorselExec"
    }

    leaf_methods!();

    fn execute(
        &self,
        _partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let rows = services(&context)?.morsel()?;
        let (schema, projection) = (self.schema(), self.projection.clone());
        let output_schema = Arc::clone(&schema);
        let rows = rows.map(move |batch| conform(&batch?, projection.as_deref(), &output_schema));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

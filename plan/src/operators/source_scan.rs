//! Reads the splits of a source inside a whole stage.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ColumnStatistics, Statistics, internal_err};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use weir_connectors::{ScanRequest, Split};
use weir_spec::{NodeName, Source};

use super::{NodeFailure, leaf_methods, leaf_properties, services};
use crate::schema::conform;

/// What a scan reads, frozen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceScan {
    pub node: NodeName,
    /// Plan-time templates rendered.
    pub source: Source,
    pub request: ScanRequest,
    /// One list of splits for each partition, read one after the other.
    pub partitions: Vec<Vec<Split>>,
    /// Which of the requested columns are yielded; `None` is all. Only `Some(vec![])` is used: a
    /// count needs no column, but a source is always asked for at least one.
    pub output: Option<Vec<usize>>,
    /// Whether another scan of the plan reads the same rows and accounts for them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

/// Leaf. Schema: the requested columns; one partition for each list of splits; no order promised.
#[derive(Debug)]
pub struct SourceScanExec {
    scan: Arc<SourceScan>,
    /// Of the output columns, while a run is planned.
    columns: Vec<ColumnStatistics>,
    properties: Arc<PlanProperties>,
}

impl SourceScanExec {
    /// `schema` is the schema of the output columns.
    pub fn new(scan: SourceScan, schema: SchemaRef) -> Self {
        let properties = leaf_properties(schema, scan.partitions.len().max(1));
        let columns = Statistics::unknown_column(properties.equivalence_properties().schema());
        Self { scan: Arc::new(scan), columns, properties }
    }

    /// With what is known of its output columns, one for each.
    pub(crate) fn with_statistics(self, columns: Vec<ColumnStatistics>) -> Self {
        Self { columns, ..self }
    }

    /// The same for rows that another scan accounts for.
    pub(crate) fn again(&self) -> Self {
        Self {
            scan: Arc::new(SourceScan { again: true, ..SourceScan::clone(&self.scan) }),
            columns: self.columns.clone(),
            properties: Arc::clone(&self.properties),
        }
    }

    pub fn scan(&self) -> &SourceScan {
        &self.scan
    }
}

impl DisplayAs for SourceScanExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scan = &self.scan;
        let splits: usize = scan.partitions.iter().map(Vec::len).sum();
        write!(f, "SourceScanExec: node={}, splits={splits}", scan.node)?;
        if let Some(columns) = &scan.request.columns {
            write!(f, ", columns=[{}]", columns.join(", "))?;
        }
        if !scan.request.predicates.is_empty() {
            let predicates: Vec<String> =
                scan.request.predicates.iter().map(crate::pushdown::describe).collect();
            write!(f, ", predicates=[{}]", predicates.join(" AND "))?;
        }
        if let Some(limit) = scan.request.limit {
            write!(f, ", limit={limit}")?;
        }
        if let Some(since) = &scan.request.since {
            write!(f, ", since={since}")?;
        }
        if scan.again {
            write!(f, ", again")?;
        }
        Ok(())
    }
}

impl ExecutionPlan for SourceScanExec {
    fn name(&self) -> &str {
        "SourceScanExec"
    }

    leaf_methods!();

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let services = services(&context)?;
        let scan = Arc::clone(&self.scan);
        let schema = self.schema();
        let splits = match scan.partitions.get(partition) {
            Some(splits) => splits.clone(),
            None if partition == 0 => Vec::new(),
            None => return internal_err!("source `{}` has no partition {partition}", scan.node),
        };
        let source = services
            .open_source(&scan.node, &scan.source)
            .map_err(|error| NodeFailure::wrap(&scan.node, error))?;
        let opened = Arc::clone(&scan);
        let batches = stream::iter(splits)
            .then(move |split| {
                let (source, scan) = (Arc::clone(&source), Arc::clone(&opened));
                async move {
                    let opened = source.open(&split, &scan.request, None).await;
                    opened.map_err(|error| NodeFailure::wrap(&scan.node, error)).map(|stream| {
                        stream.map_err(move |error| NodeFailure::wrap(&scan.node, error))
                    })
                }
            })
            .try_flatten();
        let output_schema = Arc::clone(&schema);
        let rows = batches.map(move |batch| {
            let batch = batch?;
            if !scan.again {
                services.on_source_batch(&scan.node, &batch)?;
            }
            conform(&batch.rows, scan.output.as_deref(), &output_schema)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    /// The sources' estimates, for the choice of a join's build side; never exact.
    fn statistics_from_inputs(
        &self,
        _inputs: &[Arc<Statistics>],
        args: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        let estimate = |splits: &Vec<Split>| -> Option<u64> {
            splits.iter().map(|split| split.estimated_rows).sum()
        };
        let rows = match args.partition() {
            Some(partition) => self.scan.partitions.get(partition).and_then(estimate),
            None => self.scan.partitions.iter().map(estimate).sum(),
        };
        if let Some(rows) = rows.and_then(|rows| usize::try_from(rows).ok()) {
            statistics.num_rows = Precision::Inexact(rows);
            statistics.column_statistics = self.columns.clone();
            statistics.calculate_total_byte_size(&self.schema());
        }
        Ok(Arc::new(statistics))
    }
}

//! What SQL sees: sources, exchanges and, while schemas are worked out, columns alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use weir_connectors::{ColumnBounds, ScanRequest, Split};
use weir_spec::{NodeName, Source};

use crate::StageId;
use crate::operators::{ExchangeScanExec, SourceScan, SourceScanExec};
use crate::pushdown::predicate;
use crate::slices::group;

/// A source node. Yields its requested columns; applies exactly the predicates that the source
/// does.
#[derive(Debug)]
pub(crate) struct SourceTable {
    pub(crate) node: NodeName,
    pub(crate) source: Source,
    pub(crate) schema: SchemaRef,
    pub(crate) exact_predicates: Vec<String>,
    pub(crate) bounds: BTreeMap<String, ColumnBounds>,
    pub(crate) splits: Vec<Split>,
    pub(crate) since: Option<String>,
    pub(crate) partitions: usize,
}

impl SourceTable {
    fn exact(&self, filter: &Expr) -> Option<weir_connectors::Predicate> {
        predicate(filter).filter(|predicate| self.exact_predicates.contains(&predicate.column))
    }

    fn statistics(&self, column: &Field) -> ColumnStatistics {
        let mut statistics = ColumnStatistics::new_unknown();
        let bounds = self.bounds.get(column.name());
        if let Some(bounds) = bounds.filter(|known| known.least.data_type() == column.data_type()) {
            let value =
                |array: &ArrayRef| ScalarValue::try_from_array(array, 0).map(Precision::Inexact);
            statistics.min_value = value(&bounds.least).unwrap_or_default();
            statistics.max_value = value(&bounds.greatest).unwrap_or_default();
            statistics.null_count =
                usize::try_from(bounds.nulls).map(Precision::Inexact).unwrap_or_default();
        }
        statistics
    }
}

#[async_trait]
impl TableProvider for SourceTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
    fn table_type(&self) -> TableType {
        TableType::Base
    }
    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(filters
            .iter()
            .map(|filter| match self.exact(filter) {
                Some(_) => TableProviderFilterPushDown::Exact,
                None => TableProviderFilterPushDown::Unsupported,
            })
            .collect())
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (mut columns, mut output, schema) = match projection {
            Some(indices) if indices.is_empty() && !self.schema.fields().is_empty() => {
                let first = self.schema.field(0).name().clone();
                (Some(vec![first]), Some(Vec::new()), Arc::new(Schema::empty()))
            }
            Some(indices) if !indices.iter().copied().eq(0..self.schema.fields().len()) => {
                let schema = Arc::new(self.schema.project(indices)?);
                (
                    Some(schema.fields().iter().map(|field| field.name().clone()).collect()),
                    None,
                    schema,
                )
            }
            _ => (None, None, Arc::clone(&self.schema)),
        };
        let incremental = self.source.incremental();
        // The watermark is made of what is read: the cursor is read even when nobody uses it.
        if let (Some(incremental), Some(columns)) = (incremental, &mut columns)
            && !columns.contains(&incremental.cursor)
            && self.schema.field_with_name(&incremental.cursor).is_ok()
        {
            output.get_or_insert_with(|| (0..columns.len()).collect::<Vec<usize>>());
            columns.push(incremental.cursor.clone());
        }
        // Rows that a limit leaves unread would lie behind the watermark.
        let limit = limit.filter(|_| incremental.is_none());
        let request = ScanRequest {
            columns,
            predicates: filters.iter().filter_map(|filter| self.exact(filter)).collect(),
            limit: limit.map(|rows| rows as u64),
            since: self.since.clone(),
        };
        let scan = SourceScan {
            node: self.node.clone(),
            source: self.source.clone(),
            request,
            partitions: group(&self.splits, self.partitions),
            output,
            again: false,
        };
        let statistics = schema.fields().iter().map(|field| self.statistics(field)).collect();
        Ok(Arc::new(SourceScanExec::new(scan, schema).with_statistics(statistics)))
    }
}

/// The output of an earlier stage.
#[derive(Debug)]
pub(crate) struct ExchangeTable {
    pub(crate) stage: StageId,
    pub(crate) partitions: usize,
    pub(crate) schema: SchemaRef,
}

#[async_trait]
impl TableProvider for ExchangeTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
    fn table_type(&self) -> TableType {
        TableType::Base
    }
    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(indices) => Arc::new(self.schema.project(indices)?),
            None => Arc::clone(&self.schema),
        };
        let scan = ExchangeScanExec::new(self.stage, self.partitions, projection.cloned(), schema);
        Ok(Arc::new(scan))
    }
}

/// Columns without rows: enough to find out what a node yields and what it reads.
#[derive(Debug)]
pub(crate) struct SchemaTable(pub(crate) SchemaRef);

#[async_trait]
impl TableProvider for SchemaTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0)
    }
    fn table_type(&self) -> TableType {
        TableType::Base
    }
    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(indices) => Arc::new(self.0.project(indices)?),
            None => Arc::clone(&self.0),
        };
        Ok(Arc::new(EmptyExec::new(schema)))
    }
}

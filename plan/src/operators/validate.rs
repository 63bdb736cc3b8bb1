//! `validate`: separates the rows that keep all rules from those that do not.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, BooleanBufferBuilder, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use weir_spec::NodeName;

use super::rows_json::rows_to_json;
use super::services;
use crate::{NodeCounts, Rejection, TaskServices};

/// The column that the rejected side adds: all reasons, joined by `; `.
pub const ERROR_COLUMN: &str = "_error";

/// What happens to rows that break a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValidateMode {
    DeadLetter,
    Drop,
    Fail,
    /// `node.errors`: the rejected rows are the output. Counts and rejects nothing: the accepted
    /// side, computed elsewhere from the same rows, does.
    Errors,
}

impl From<weir_spec::OnError> for ValidateMode {
    fn from(on_error: weir_spec::OnError) -> Self {
        match on_error {
            weir_spec::OnError::DeadLetter => Self::DeadLetter,
            weir_spec::OnError::Drop => Self::Drop,
            weir_spec::OnError::Fail => Self::Fail,
        }
    }
}

#[derive(Clone, Debug)]
pub struct ValidateRule {
    pub reason: String,
    /// Boolean; anything but true breaks the rule.
    pub passes: Arc<dyn PhysicalExpr>,
}

/// Row-wise: partitions and order of its input. Schema: the input's, plus [`ERROR_COLUMN`] for
/// [`ValidateMode::Errors`].
#[derive(Debug)]
pub struct ValidateExec {
    node: NodeName,
    mode: ValidateMode,
    rules: Vec<ValidateRule>,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl ValidateExec {
    pub fn new(
        node: NodeName,
        mode: ValidateMode,
        rules: Vec<ValidateRule>,
        input: Arc<dyn ExecutionPlan>,
    ) -> Self {
        let properties = match mode {
            ValidateMode::Errors => Arc::new(PlanProperties::new(
                EquivalenceProperties::new(errors_schema(&input.schema())),
                datafusion::physical_expr::Partitioning::UnknownPartitioning(
                    input.output_partitioning().partition_count(),
                ),
                EmissionType::Incremental,
                Boundedness::Bounded,
            )),
            _ => Arc::clone(input.properties()),
        };
        Self { node, mode, rules, input, properties }
    }

    pub fn node(&self) -> &NodeName {
        &self.node
    }
    pub fn mode(&self) -> ValidateMode {
        self.mode
    }
    pub fn rules(&self) -> &[ValidateRule] {
        &self.rules
    }
}

/// The schema of the rejected side.
pub(crate) fn errors_schema(input: &Schema) -> SchemaRef {
    let mut fields: Vec<_> =
        input.fields().iter().filter(|field| field.name() != ERROR_COLUMN).cloned().collect();
    fields.push(Arc::new(Field::new(ERROR_COLUMN, DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

impl DisplayAs for ValidateExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons: Vec<&str> = self.rules.iter().map(|rule| rule.reason.as_str()).collect();
        let mode = match self.mode {
            ValidateMode::DeadLetter => "dead_letter",
            ValidateMode::Drop => "drop",
            ValidateMode::Fail => "fail",
            ValidateMode::Errors => "errors",
        };
        write!(
            f,
            "ValidateExec: node={}, mode={mode}, reject when [{}]",
            self.node,
            reasons.join("; ")
        )
    }
}

impl ExecutionPlan for ValidateExec {
    fn name(&self) -> &str {
        "ValidateExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }
    fn apply_expressions(
        &self,
        visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for rule in &self.rules {
            if visit(&rule.passes)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }
    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.swap_remove(0);
        Ok(Arc::new(Self::new(self.node.clone(), self.mode, self.rules.clone(), input)))
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let judge = Judge {
            node: self.node.clone(),
            mode: self.mode,
            rules: self.rules.clone(),
            schema: self.schema(),
            services: services(&context)?,
        };
        let rows = self.input.execute(partition, context)?.map(move |batch| judge.pass(&batch?));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}

struct Judge {
    node: NodeName,
    mode: ValidateMode,
    rules: Vec<ValidateRule>,
    schema: SchemaRef,
    services: Arc<dyn TaskServices>,
}

impl Judge {
    fn pass(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let verdicts =
            self.rules.iter().map(|rule| self.evaluate(rule, batch)).collect::<Result<Vec<_>>>()?;
        let mut accepted = BooleanBufferBuilder::new(batch.num_rows());
        for row in 0..batch.num_rows() {
            accepted.append(verdicts.iter().all(|verdict| verdict.value(row)));
        }
        let accepted = BooleanArray::new(accepted.finish(), None);
        let rejected_count = batch.num_rows() - accepted.true_count();
        if self.mode == ValidateMode::Errors {
            return self.rejected_side(batch, &accepted, &verdicts);
        }
        let mut counts = NodeCounts {
            rows_in: batch.num_rows() as u64,
            rows_out: accepted.true_count() as u64,
            ..NodeCounts::default()
        };
        if rejected_count == 0 {
            self.services.count(&self.node, counts);
            return Ok(batch.clone());
        }
        match self.mode {
            ValidateMode::DeadLetter => {
                counts.dead_lettered = rejected_count as u64;
                self.services.reject(&self.node, self.rejections(batch, &accepted, &verdicts)?)?;
            }
            ValidateMode::Drop => counts.dropped = rejected_count as u64,
            ValidateMode::Fail | ValidateMode::Errors => {
                let rejections = self.rejections(batch, &accepted, &verdicts)?;
                let first = rejections.first().map_or_else(String::new, |rejection| {
                    format!("{}: {}", rejection.reasons.join("; "), rejection.row)
                });
                return Err(DataFusionError::Execution(format!(
                    "node `{}` fails on a row that breaks a rule (on_error: fail): {first}",
                    self.node
                )));
            }
        }
        self.services.count(&self.node, counts);
        Ok(filter_record_batch(batch, &accepted)?)
    }

    /// True where the row keeps the rule; never null.
    fn evaluate(&self, rule: &ValidateRule, batch: &RecordBatch) -> Result<BooleanArray> {
        let values = rule.passes.evaluate(batch)?.into_array(batch.num_rows())?;
        let values = values.as_boolean_opt().ok_or_else(|| {
            DataFusionError::Internal(format!(
                "rule `{}` of node `{}` is not boolean",
                rule.reason, self.node
            ))
        })?;
        Ok(match values.nulls() {
            None => values.clone(),
            Some(nulls) => BooleanArray::new(values.values() & nulls.inner(), None),
        })
    }

    fn reasons(&self, verdicts: &[BooleanArray], row: usize) -> Vec<String> {
        let broken = self.rules.iter().zip(verdicts).filter(|(_, verdict)| !verdict.value(row));
        broken.map(|(rule, _)| rule.reason.clone()).collect()
    }

    fn rejections(
        &self,
        batch: &RecordBatch,
        accepted: &BooleanArray,
        verdicts: &[BooleanArray],
    ) -> Result<Vec<Rejection>> {
        let rejected = filter_record_batch(batch, &negate(accepted))?;
        let rows = rows_to_json(&rejected)?;
        let indices = (0..batch.num_rows()).filter(|row| !accepted.value(*row));
        Ok(indices
            .zip(rows)
            .map(|(index, row)| Rejection {
                row,
                reasons: self.reasons(verdicts, index),
                offset: None,
            })
            .collect())
    }

    fn rejected_side(
        &self,
        batch: &RecordBatch,
        accepted: &BooleanArray,
        verdicts: &[BooleanArray],
    ) -> Result<RecordBatch> {
        let rejected = filter_record_batch(batch, &negate(accepted))?;
        let reasons: StringArray = (0..batch.num_rows())
            .filter(|row| !accepted.value(*row))
            .map(|row| Some(self.reasons(verdicts, row).join("; ")))
            .collect();
        let mut columns: Vec<_> = rejected
            .schema()
            .fields()
            .iter()
            .zip(rejected.columns())
            .filter(|(field, _)| field.name() != ERROR_COLUMN)
            .map(|(_, column)| Arc::clone(column))
            .collect();
        columns.push(Arc::new(reasons));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

fn negate(values: &BooleanArray) -> BooleanArray {
    BooleanArray::new(!values.values(), None)
}

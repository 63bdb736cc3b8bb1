//! Our operators in logical plans, and their way into physical ones.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::{DFSchema, DFSchemaRef};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{
    Expr, Extension, LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use weir_spec::NodeName;

use crate::operators::{CountExec, ValidateExec, ValidateMode, ValidateRule};

/// Rows leave a node. Filters are not pushed below it: they would change the count.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct CountNode {
    pub(crate) node: NodeName,
    pub(crate) input: LogicalPlan,
}

/// See [`ValidateExec`].
#[derive(Debug, Eq)]
pub(crate) struct ValidateNode {
    node: NodeName,
    mode: ValidateMode,
    /// One for each reason.
    passes: Vec<Expr>,
    reasons: Vec<String>,
    input: LogicalPlan,
    schema: DFSchemaRef,
}

impl PartialEq for ValidateNode {
    fn eq(&self, other: &Self) -> bool {
        (&self.node, self.mode, &self.passes, &self.reasons, &self.input)
            == (&other.node, other.mode, &other.passes, &other.reasons, &other.input)
    }
}

impl Hash for ValidateNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.node, self.mode, &self.passes, &self.reasons, &self.input).hash(state);
    }
}

impl PartialOrd for ValidateNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (&self.node, self.mode, &self.reasons)
            .partial_cmp(&(&other.node, other.mode, &other.reasons))
            .filter(|order| *order != Ordering::Equal || self == other)
    }
}

impl PartialOrd for CountNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.node
            .partial_cmp(&other.node)
            .filter(|order| *order != Ordering::Equal || self == other)
    }
}

pub(crate) fn count(node: &NodeName, input: LogicalPlan) -> LogicalPlan {
    LogicalPlan::Extension(Extension { node: Arc::new(CountNode { node: node.clone(), input }) })
}

pub(crate) fn validate(
    node: &NodeName,
    mode: ValidateMode,
    passes: Vec<Expr>,
    reasons: Vec<String>,
    input: LogicalPlan,
) -> Result<LogicalPlan> {
    let node = ValidateNode::new(node.clone(), mode, passes, reasons, input)?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

impl ValidateNode {
    fn new(
        node: NodeName,
        mode: ValidateMode,
        passes: Vec<Expr>,
        reasons: Vec<String>,
        input: LogicalPlan,
    ) -> Result<Self> {
        let schema = match mode {
            ValidateMode::Errors => {
                let schema = crate::operators::errors_schema(input.schema().as_arrow());
                Arc::new(DFSchema::try_from(schema.as_ref().clone())?)
            }
            _ => Arc::clone(input.schema()),
        };
        Ok(Self { node, mode, passes, reasons, input, schema })
    }
}

impl UserDefinedLogicalNodeCore for CountNode {
    fn name(&self) -> &str {
        "Count"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }
    fn expressions(&self) -> Vec<Expr> {
        Vec::new()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Count: {}", self.node)
    }
    fn with_exprs_and_inputs(
        &self,
        _expressions: Vec<Expr>,
        mut inputs: Vec<LogicalPlan>,
    ) -> Result<Self> {
        Ok(Self { node: self.node.clone(), input: inputs.swap_remove(0) })
    }
    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        Some(vec![output_columns.to_vec()])
    }
}

impl UserDefinedLogicalNodeCore for ValidateNode {
    fn name(&self) -> &str {
        "Validate"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }
    fn expressions(&self) -> Vec<Expr> {
        self.passes.clone()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Validate: {}", self.node)
    }
    fn with_exprs_and_inputs(
        &self,
        expressions: Vec<Expr>,
        mut inputs: Vec<LogicalPlan>,
    ) -> Result<Self> {
        let input = inputs.swap_remove(0);
        Self::new(self.node.clone(), self.mode, expressions, self.reasons.clone(), input)
    }
}

/// DataFusion's planner with our operators.
#[derive(Debug)]
pub(crate) struct WeirQueryPlanner;

#[async_trait]
impl QueryPlanner for WeirQueryPlanner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(OperatorPlanner)])
            .create_physical_plan(plan, session)
            .await
    }
}

struct OperatorPlanner;

#[async_trait]
impl ExtensionPlanner for OperatorPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        planning_context: &PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (Some(logical_input), Some(input)) = (logical_inputs.first(), physical_inputs.first())
        else {
            return Err(DataFusionError::Internal(format!("{} has no input", node.name())));
        };
        if let Some(count) = node.as_any().downcast_ref::<CountNode>() {
            let count = CountExec::new(Some(count.node.clone()), None, Arc::clone(input));
            return Ok(Some(Arc::new(count)));
        }
        let Some(validate) = node.as_any().downcast_ref::<ValidateNode>() else { return Ok(None) };
        let rules = validate
            .passes
            .iter()
            .zip(&validate.reasons)
            .map(|(passes, reason)| {
                let passes = planner.create_physical_expr(
                    passes,
                    logical_input.schema(),
                    session,
                    planning_context,
                )?;
                Ok(ValidateRule { reason: reason.clone(), passes })
            })
            .collect::<Result<Vec<_>>>()?;
        let validate =
            ValidateExec::new(validate.node.clone(), validate.mode, rules, Arc::clone(input));
        Ok(Some(Arc::new(validate)))
    }
}

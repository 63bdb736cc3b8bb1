//! The logical plan of a node over tables that stand for its inputs.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Column, TableReference};
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::execution::context::SQLOptions;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, lit};
use datafusion::prelude::SessionContext;
use weir_spec::{Deduplicate, InputRef, Keep, NodeName, Operator, PipelineSpec, Validate};

use crate::conditions::{cast, find_column, passes};
use crate::operators::ValidateMode;
use crate::schema::plain_type;
use crate::template::render_sql;
use crate::union::union_by_name;
use crate::{PlanError, PlanScope, logical, session};

/// A session in which the inputs of some nodes are tables.
pub(crate) struct Workspace<'plan> {
    spec: &'plan PipelineSpec,
    scope: &'plan PlanScope,
    context: SessionContext,
    state: SessionState,
    tables: BTreeMap<InputRef, Arc<dyn TableProvider>>,
}

impl<'plan> Workspace<'plan> {
    pub(crate) fn new(
        spec: &'plan PipelineSpec,
        scope: &'plan PlanScope,
        partitions: usize,
    ) -> Self {
        let (context, state) = session::planning(partitions, scope);
        Self { spec, scope, context, state, tables: BTreeMap::new() }
    }

    pub(crate) fn state(&self) -> &SessionState {
        &self.state
    }

    /// Makes `input` known to SQL as `node` or `node.errors`.
    pub(crate) fn register(
        &mut self,
        input: &InputRef,
        table: Arc<dyn TableProvider>,
    ) -> Result<(), PlanError> {
        let node = input.node.as_str();
        let registered = if input.errors {
            let catalogs = self.context.catalog("datafusion");
            catalogs
                .ok_or_else(|| DataFusionError::Internal("the session has no catalog".into()))
                .and_then(|catalog| {
                    if catalog.schema(node).is_none() {
                        catalog.register_schema(node, Arc::new(MemorySchemaProvider::new()))?;
                    }
                    let name = TableReference::partial(node, "errors");
                    self.context.register_table(name, Arc::clone(&table))
                })
        } else {
            self.context.register_table(TableReference::bare(node), Arc::clone(&table))
        };
        registered.map_err(|error| PlanError::datafusion(&input.node, &error))?;
        self.tables.insert(input.clone(), table);
        Ok(())
    }

    /// The rows of a node, or its rejected side. All its inputs are registered. Columns are
    /// unqualified and have distinct names.
    pub(crate) async fn plan_of(&self, item: &InputRef) -> Result<LogicalPlan, PlanError> {
        let node = &item.node;
        let Some(transform) = self.spec.transforms.get(node) else {
            return self.scan(node, item);
        };
        match &transform.operator {
            Operator::Sql(text) => {
                let sql = render_sql(node, text, self.scope)?;
                let plan = self
                    .state
                    .create_logical_plan(&sql)
                    .await
                    .map_err(|error| PlanError::datafusion(node, &error))?;
                SQLOptions::new()
                    .with_allow_ddl(false)
                    .with_allow_dml(false)
                    .with_allow_statements(false)
                    .verify_plan(&plan)
                    .map_err(|error| PlanError::datafusion(node, &error))?;
                if matches!(plan, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_)) {
                    return Err(PlanError::node(node, "write a query, not EXPLAIN"));
                }
                refuse_recursion(node, &plan)?;
                Ok(logical::count(node, unqualified(node, plan)?))
            }
            Operator::Validate(rules) => {
                let input = self.union(node, &transform.inputs)?;
                self.validate(node, rules, item.errors, input)
            }
            Operator::Deduplicate(deduplicate) => {
                let input = self.union(node, &transform.inputs)?;
                let plan = deduplicated(node, deduplicate, input)?;
                Ok(logical::count(node, plan))
            }
            Operator::Unsupported(unsupported) => Err(PlanError::node(
                node,
                format!("`{}` cannot run in this version", unsupported.type_name),
            )),
        }
    }

    /// The inputs of a node one after the other, columns matched by name.
    pub(crate) fn union(
        &self,
        node: &NodeName,
        inputs: &[InputRef],
    ) -> Result<LogicalPlan, PlanError> {
        let plans = inputs
            .iter()
            .map(|input| Ok((input, self.scan(node, input)?)))
            .collect::<Result<Vec<_>, PlanError>>()?;
        union_by_name(node, plans)
    }

    fn scan(&self, node: &NodeName, input: &InputRef) -> Result<LogicalPlan, PlanError> {
        let table = self.tables.get(input).ok_or_else(|| {
            PlanError::engine(
                format!("failed to plan node `{node}`"),
                format!("no table `{input}`"),
            )
        })?;
        let name = if input.errors {
            TableReference::partial(input.node.as_str(), "errors")
        } else {
            TableReference::bare(input.node.as_str())
        };
        let plan = LogicalPlanBuilder::scan(name, provider_as_source(Arc::clone(table)), None)
            .and_then(LogicalPlanBuilder::build)
            .map_err(|error| PlanError::datafusion(node, &error))?;
        unqualified(node, plan)
    }

    fn validate(
        &self,
        node: &NodeName,
        validate: &Validate,
        errors: bool,
        input: LogicalPlan,
    ) -> Result<LogicalPlan, PlanError> {
        let mode =
            if errors { ValidateMode::Errors } else { ValidateMode::from(validate.on_error) };
        let conditions = validate
            .rules
            .iter()
            .map(|rule| passes(node, rule, input.schema(), &self.state, self.scope))
            .collect::<Result<Vec<_>, _>>()?;
        let reasons = validate.rules.iter().map(weir_spec::Rule::reason).collect();
        logical::validate(node, mode, conditions, reasons, input)
            .map_err(|error| PlanError::datafusion(node, &error))
    }
}

/// DataFusion cannot encode a recursive query, so that it cannot be frozen.
fn refuse_recursion(node: &NodeName, plan: &LogicalPlan) -> Result<(), PlanError> {
    let mut is_recursive = false;
    plan.apply_with_subqueries(|part| {
        is_recursive |= matches!(part, LogicalPlan::RecursiveQuery(_));
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(|error| PlanError::datafusion(node, &error))?;
    if is_recursive {
        return Err(PlanError::node(
            node,
            "WITH RECURSIVE cannot run in this version; for a series of values write \
             `FROM generate_series(1, 10)`",
        ));
    }
    Ok(())
}

/// One row of each key: the first or last in the order, ties broken by all other columns, so that
/// the result does not depend on the order of arrival. Null keys are equal to each other; a null
/// in an `order_by` column counts as neither first nor last.
fn deduplicated(
    node: &NodeName,
    deduplicate: &Deduplicate,
    input: LogicalPlan,
) -> Result<LogicalPlan, PlanError> {
    let schema = Arc::clone(input.schema());
    let keys = deduplicate
        .key
        .iter()
        .map(|column| Ok(find_column(node, column, &schema)?.0))
        .collect::<Result<Vec<_>, PlanError>>()?;
    let ascending = deduplicate.keep == Keep::First;
    let mut order = deduplicate
        .order_by
        .iter()
        .map(|column| Ok(find_column(node, column, &schema)?.0.sort(ascending, false)))
        .collect::<Result<Vec<_>, PlanError>>()?;
    for field in schema.fields() {
        let known = |columns: &[String]| columns.iter().any(|column| column == field.name());
        if is_sortable(field.data_type())
            && !known(&deduplicate.key)
            && !known(&deduplicate.order_by)
        {
            order.push(Expr::Column(Column::new_unqualified(field.name())).sort(ascending, false));
        }
    }
    let failed = |error: DataFusionError| PlanError::datafusion(node, &error);
    let rank = row_number().partition_by(keys).order_by(order).build().map_err(failed)?;
    let rank_column = Expr::Column(Column::new_unqualified(rank.schema_name().to_string()));
    let columns: Vec<Expr> = schema
        .fields()
        .iter()
        .map(|field| Expr::Column(Column::new_unqualified(field.name())))
        .collect();
    LogicalPlanBuilder::from(input)
        .window(vec![rank])
        .and_then(|plan| plan.filter(rank_column.eq(lit(1_u64))))
        .and_then(|plan| plan.project(columns))
        .and_then(LogicalPlanBuilder::build)
        .map_err(failed)
}

fn is_sortable(data_type: &DataType) -> bool {
    !data_type.is_nested() && !matches!(data_type, DataType::Null)
}

/// The plan with unqualified columns, which must have distinct names.
pub(crate) fn unqualified(node: &NodeName, plan: LogicalPlan) -> Result<LogicalPlan, PlanError> {
    let schema = Arc::clone(plan.schema());
    let mut names = std::collections::BTreeSet::new();
    for field in schema.fields() {
        if !names.insert(field.name()) {
            return Err(PlanError::node(
                node,
                format!(
                    "two columns are called `{name}`; give one another name: `… AS other_{name}`",
                    name = field.name()
                ),
            ));
        }
    }
    if schema.iter().all(|(qualifier, _)| qualifier.is_none()) {
        return Ok(plan);
    }
    let columns: Vec<Expr> = schema
        .iter()
        .map(|(qualifier, field)| {
            Expr::Column(Column::new(qualifier.cloned(), field.name())).alias(field.name())
        })
        .collect();
    LogicalPlanBuilder::from(plan)
        .project(columns)
        .and_then(LogicalPlanBuilder::build)
        .map_err(|error| PlanError::datafusion(node, &error))
}

/// The plan with types that exchanges and sinks know. See [`plain_type`].
pub(crate) fn with_plain_types(
    node: &NodeName,
    plan: LogicalPlan,
) -> Result<LogicalPlan, PlanError> {
    let schema = Arc::clone(plan.schema());
    if schema.fields().iter().all(|field| plain_type(field.data_type()) == *field.data_type()) {
        return Ok(plan);
    }
    let columns: Vec<Expr> = schema
        .fields()
        .iter()
        .map(|field| {
            let column = Expr::Column(Column::new_unqualified(field.name()));
            let data_type = plain_type(field.data_type());
            if data_type == *field.data_type() {
                column
            } else {
                cast(column, data_type).alias(field.name())
            }
        })
        .collect();
    LogicalPlanBuilder::from(plan)
        .project(columns)
        .and_then(LogicalPlanBuilder::build)
        .map_err(|error| PlanError::datafusion(node, &error))
}

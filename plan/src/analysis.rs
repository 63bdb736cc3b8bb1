//! What reads what, how often, and which columns everything has.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use indexmap::{IndexMap, IndexSet};
use weir_spec::{InputRef, NodeName, Operator, PipelineSpec};

use crate::schema::without_foreign_metadata;
use crate::tables::SchemaTable;
use crate::template::render_sql;
use crate::workspace::Workspace;
use crate::{Catalog, PlanError, PlanScope};

/// One node, or the rejected side of one.
pub(crate) struct NodeFacts {
    /// Distinct, with how often it reads each: a self-join reads its input twice.
    pub(crate) inputs: IndexMap<InputRef, usize>,
    pub(crate) schema: SchemaRef,
}

/// All nodes that some roots need, each after its inputs.
pub(crate) struct Analysis {
    pub(crate) nodes: IndexMap<InputRef, NodeFacts>,
    uses: BTreeMap<InputRef, usize>,
}

impl Analysis {
    pub(crate) async fn new(
        spec: &PipelineSpec,
        catalog: &Catalog,
        scope: &PlanScope,
        roots: &[(&NodeName, &InputRef)],
    ) -> Result<Self, PlanError> {
        let mut workspace = Workspace::new(spec, scope, 1);
        let mut order = Order {
            spec,
            scope,
            workspace: &workspace,
            done: IndexMap::new(),
            open: IndexSet::new(),
        };
        for (reader, root) in roots {
            order.visit(reader, root)?;
        }
        let inputs_of = order.done;
        let mut nodes = IndexMap::new();
        let mut uses: BTreeMap<InputRef, usize> = BTreeMap::new();
        for (_, root) in roots {
            *uses.entry((*root).clone()).or_default() += 1;
        }
        for (item, written) in inputs_of {
            let facts = if spec.sources.contains_key(&item.node) {
                let source = catalog.sources.get(&item.node).ok_or_else(|| {
                    PlanError::engine(
                        format!("failed to plan source `{}`", item.node),
                        "the catalog does not describe it",
                    )
                })?;
                let schema = without_foreign_metadata(&source.description.schema);
                NodeFacts { inputs: IndexMap::new(), schema }
            } else {
                let plan = workspace.plan_of(&item).await?;
                let inputs = written
                    .into_iter()
                    .map(|input| (count_scans(&plan, &input).max(1), input))
                    .map(|(count, input)| (input, count))
                    .collect();
                NodeFacts { inputs, schema: Arc::clone(plan.schema().inner()) }
            };
            for (input, count) in &facts.inputs {
                *uses.entry(input.clone()).or_default() += count;
            }
            workspace.register(&item, Arc::new(SchemaTable(Arc::clone(&facts.schema))))?;
            nodes.insert(item, facts);
        }
        Ok(Self { nodes, uses })
    }

    /// However often it reads it.
    pub(crate) fn is_read_by_one_node(&self, item: &InputRef) -> bool {
        let readers: Vec<usize> =
            self.nodes.values().filter_map(|facts| facts.inputs.get(item).copied()).collect();
        // More uses than its readers have are those of sinks.
        matches!(readers.as_slice(), [count] if self.uses.get(item) == Some(count))
    }

    pub(crate) fn is_used_more_than_once(&self, item: &InputRef) -> bool {
        self.uses.get(item).is_some_and(|uses| *uses > 1)
    }
}

fn count_scans(plan: &LogicalPlan, input: &InputRef) -> usize {
    let mut scans = 0;
    let counted = plan.apply_with_subqueries(|part| {
        if let LogicalPlan::TableScan(scan) = part {
            let is_it = if input.errors {
                scan.table_name.schema() == Some(input.node.as_str())
                    && scan.table_name.table() == "errors"
            } else {
                scan.table_name.schema().is_none_or(|schema| schema == "public")
                    && scan.table_name.table() == input.node.as_str()
            };
            scans += usize::from(is_it);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(counted.is_ok(), "the visitor never fails");
    scans
}

/// Depth first, so that inputs come before what reads them.
struct Order<'plan> {
    spec: &'plan PipelineSpec,
    scope: &'plan PlanScope,
    workspace: &'plan Workspace<'plan>,
    done: IndexMap<InputRef, Vec<InputRef>>,
    open: IndexSet<InputRef>,
}

impl Order<'_> {
    fn visit(&mut self, reader: &NodeName, item: &InputRef) -> Result<(), PlanError> {
        if self.done.contains_key(item) {
            return Ok(());
        }
        if !self.open.insert(item.clone()) {
            let cycle: Vec<String> = self.open.iter().map(ToString::to_string).collect();
            return Err(PlanError::node(
                reader,
                format!("reads its own output: {} → {item}", cycle.join(" → ")),
            ));
        }
        let inputs = self.inputs(reader, item)?;
        for input in &inputs {
            self.visit(&item.node, input)?;
        }
        self.open.shift_remove(item);
        self.done.insert(item.clone(), inputs);
        Ok(())
    }

    fn inputs(&self, reader: &NodeName, item: &InputRef) -> Result<Vec<InputRef>, PlanError> {
        let node = &item.node;
        let transform = self.spec.transforms.get(node);
        let has_errors =
            transform.is_some_and(|transform| matches!(transform.operator, Operator::Validate(_)));
        if item.errors
            && !has_errors
            && (transform.is_some() || self.spec.sources.contains_key(node))
        {
            return Err(PlanError::node(
                reader,
                format!("`{item}` does not exist: only `validate` nodes have a rejected side"),
            ));
        }
        let Some(transform) = transform else {
            if self.spec.sources.contains_key(node) {
                return Ok(Vec::new());
            }
            let known = self.spec.sources.keys().chain(self.spec.transforms.keys());
            let hint = crate::names::did_you_mean(node.as_str(), known.map(NodeName::as_str));
            return Err(PlanError::node(reader, format!("there is no node `{node}`{hint}")));
        };
        match &transform.operator {
            Operator::Sql(text) => {
                let sql = render_sql(node, text, self.scope)?;
                sql_inputs(node, &sql, self.workspace)
            }
            _ => Ok(transform.inputs.clone()),
        }
    }
}

/// Tables that the text reads, common table expressions excluded.
fn sql_inputs(
    node: &NodeName,
    sql: &str,
    workspace: &Workspace<'_>,
) -> Result<Vec<InputRef>, PlanError> {
    let state = workspace.state();
    let dialect = state.config_options().sql_parser.dialect;
    let references = state
        .sql_to_statement(sql, &dialect)
        .and_then(|statement| state.resolve_table_references(&statement))
        .map_err(|error| PlanError::datafusion(node, &error))?;
    references
        .into_iter()
        .map(|reference| match (reference.catalog(), reference.schema(), reference.table()) {
            (None, None, table) => Ok(InputRef { node: NodeName::new(table), errors: false }),
            (None, Some(schema), "errors") => {
                Ok(InputRef { node: NodeName::new(schema), errors: true })
            }
            _ => Err(PlanError::node(
                node,
                format!("`{reference}` is not a node; write `node` or `node.errors`"),
            )),
        })
        .collect()
}

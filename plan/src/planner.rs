//! Cuts a pipeline into stages.
//!
//! 1. What is read more than once becomes the exchange of a whole stage, in order of the data. Only a
//!    source that yields the same rows each time is read again by the one query that needs it twice.
//! 2. Each sink becomes a streaming stage over the deepest input from which everything up to the
//!    sink is row-wise: a resumable source, an exchange that exists already, or else a new exchange.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::datasource::ViewTable;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties, displayable};
use weir_spec::{
    ExchangeDurability, InputRef, NodeName, PipelineSpec, Sink, SinkTarget, WriteMode,
};

use crate::analysis::Analysis;
use crate::distribute::{Part, counted_nodes, cut, exchanges_read};
use crate::row_accounts::{count_rows_in, count_sources_once};
use crate::row_wise::{RowWisePlan, row_wise};
use crate::slices::group;
use crate::tables::{ExchangeTable, SourceTable};
use crate::workspace::{Workspace, with_plain_types};
use crate::{
    Catalog, EncodedSchema, PlanError, PlanScope, Slice, Stage, StageGraph, StageId, StageKind,
    StageOutput, StreamInput, encode_plan,
};

/// Slices of a streaming stage for each task that may run at once: enough to balance, few enough
/// that each is worth a task.
const SLICES_PER_TASK: usize = 4;

/// Plans a run. Deterministic: the same arguments give the same graph, byte by byte. No I/O.
pub async fn plan(
    spec: &PipelineSpec,
    catalog: &Catalog,
    scope: &PlanScope,
) -> Result<StageGraph, PlanError> {
    let roots: Vec<_> = spec
        .sinks
        .iter()
        .flat_map(|(name, sink)| sink.inputs.iter().map(move |input| (name, input)))
        .collect();
    let analysis = Analysis::new(spec, catalog, scope, &roots).await?;
    let mut planner = Planner::new(spec, catalog, scope, analysis);
    let shared: Vec<InputRef> = planner
        .analysis
        .nodes
        .keys()
        .filter(|item| planner.analysis.is_used_more_than_once(item))
        .filter(|item| !planner.is_read_again(item))
        .cloned()
        .collect();
    for item in shared {
        planner.add_exchange(&item).await?;
    }
    for (name, sink) in &spec.sinks {
        planner.add_sink(name, sink).await?;
    }
    Ok(StageGraph { engine_version: StageGraph::ENGINE_VERSION.to_owned(), stages: planner.stages })
}

/// One whole stage that yields the rows of a node (or of `node.errors`), at most `limit`, without
/// exchanges and sinks: for previews and tests. Only the sources that the node needs must be in the
/// catalog.
pub async fn plan_node(
    spec: &PipelineSpec,
    catalog: &Catalog,
    scope: &PlanScope,
    node: &InputRef,
    limit: Option<usize>,
) -> Result<Stage, PlanError> {
    let inputs = match spec.sinks.get(&node.node) {
        Some(sink) if !node.errors => sink.inputs.clone(),
        _ => vec![node.clone()],
    };
    let roots: Vec<_> = inputs.iter().map(|input| (&node.node, input)).collect();
    let analysis = Analysis::new(spec, catalog, scope, &roots).await?;
    let planner = Planner::new(spec, catalog, scope, analysis);
    let fragment = planner.fragment(&inputs, planner.parallelism(), None).await?;
    let mut plan = fragment.workspace.union(&node.node, &inputs)?;
    if limit.is_some() {
        plan = LogicalPlanBuilder::from(plan)
            .limit(0, limit)
            .and_then(LogicalPlanBuilder::build)
            .map_err(|error| PlanError::datafusion(&node.node, &error))?;
    }
    let plan = with_plain_types(&node.node, plan)?;
    let plan = fragment.physical(&node.node, &plan).await?;
    whole_stage(StageId(0), node.to_string(), fragment.nodes, fragment.inputs, &plan, 1)
}

struct Planner<'plan> {
    spec: &'plan PipelineSpec,
    catalog: &'plan Catalog,
    scope: &'plan PlanScope,
    analysis: Analysis,
    stages: Vec<Stage>,
    exchanges: BTreeMap<InputRef, Exchange>,
}

#[derive(Clone)]
struct Exchange {
    stage: StageId,
    partitions: usize,
    schema: SchemaRef,
}

/// A session in which some nodes are tables, and what stands behind them.
struct Fragment<'plan> {
    workspace: Workspace<'plan>,
    /// In order of the data.
    nodes: Vec<NodeName>,
    /// Exchanges.
    inputs: Vec<StageId>,
}

/// What a streaming stage reads.
enum Leaf {
    Source(NodeName),
    Exchange(Exchange),
}

impl<'plan> Planner<'plan> {
    fn new(
        spec: &'plan PipelineSpec,
        catalog: &'plan Catalog,
        scope: &'plan PlanScope,
        analysis: Analysis,
    ) -> Self {
        Self { spec, catalog, scope, analysis, stages: Vec::new(), exchanges: BTreeMap::new() }
    }

    fn parallelism(&self) -> usize {
        self.scope.parallelism.max(1)
    }

    fn next_id(&self) -> StageId {
        StageId(u32::try_from(self.stages.len()).expect("a pipeline has fewer than 2^32 nodes"))
    }

    /// Makes the items tables of a new session: exchanges where they exist, sources, and all else
    /// inlined. `leaf` stands for its item whatever it is.
    async fn fragment(
        &self,
        items: &[InputRef],
        partitions: usize,
        leaf: Option<(&InputRef, &Exchange)>,
    ) -> Result<Fragment<'plan>, PlanError> {
        let exchange_of = |item: &InputRef| match leaf {
            Some((leaf, exchange)) if leaf == item => Some(exchange),
            _ => self.exchanges.get(item),
        };
        let mut needed = Vec::new();
        let mut open: Vec<&InputRef> = items.iter().collect();
        while let Some(item) = open.pop() {
            if !needed.contains(&item) {
                needed.push(item);
                if exchange_of(item).is_none() {
                    open.extend(self.analysis.nodes[item].inputs.keys());
                }
            }
        }
        let mut fragment = Fragment {
            workspace: Workspace::new(self.spec, self.scope, partitions),
            nodes: Vec::new(),
            inputs: Vec::new(),
        };
        for item in self.analysis.nodes.keys().filter(|item| needed.contains(item)) {
            if let Some(exchange) = exchange_of(item) {
                // A streaming stage reads one partition at a time.
                let is_leaf = leaf.is_some_and(|(leaf, _)| leaf == item);
                fragment.inputs.push(exchange.stage);
                fragment.workspace.register(
                    item,
                    Arc::new(ExchangeTable {
                        stage: exchange.stage,
                        partitions: if is_leaf { 1 } else { exchange.partitions },
                        schema: Arc::clone(&exchange.schema),
                    }),
                )?;
                continue;
            }
            if !fragment.nodes.contains(&item.node) {
                fragment.nodes.push(item.node.clone());
            }
            if let Some(source) = self.catalog.sources.get(&item.node) {
                let table = SourceTable {
                    node: item.node.clone(),
                    source: source.source.clone(),
                    schema: Arc::clone(&self.analysis.nodes[item].schema),
                    exact_predicates: source.description.exact_predicates.clone(),
                    bounds: source.bounds.clone(),
                    splits: source.splits.clone(),
                    since: source.since.clone(),
                    partitions,
                };
                fragment.workspace.register(item, Arc::new(table))?;
            } else {
                let plan = fragment.workspace.plan_of(item).await?;
                fragment.workspace.register(item, Arc::new(ViewTable::new(plan, None)))?;
            }
        }
        fragment.inputs.sort_unstable();
        fragment.inputs.dedup();
        Ok(fragment)
    }

    /// A whole stage that computes one item.
    async fn add_exchange(&mut self, item: &InputRef) -> Result<Exchange, PlanError> {
        let exchange =
            self.add_whole(&item.node, item.to_string(), std::slice::from_ref(item)).await?;
        self.exchanges.insert(item.clone(), exchange.clone());
        Ok(exchange)
    }

    /// A whole stage that computes the union of some items, for `reader`.
    async fn add_whole(
        &mut self,
        reader: &NodeName,
        name: String,
        items: &[InputRef],
    ) -> Result<Exchange, PlanError> {
        let fragment = self.fragment(items, self.parallelism(), None).await?;
        let plan = with_plain_types(reader, fragment.workspace.union(reader, items)?)?;
        let plan = fragment.physical(reader, &plan).await?;
        let failed = |error| PlanError::datafusion(reader, &error);
        let parts = match self.scope.distributed {
            true => cut(&plan, self.next_id(), fragment.workspace.state().config_options())
                .map_err(failed)?,
            false => vec![Part { id: self.next_id(), plan, slices: 1 }],
        };
        let count = parts.len();
        let mut known = BTreeSet::new();
        for (part, number) in parts.iter().zip(1..) {
            let inputs = exchanges_read(&part.plan).map_err(failed)?.into_iter().collect();
            let is_last = number == count;
            let counted = counted_nodes(&part.plan).map_err(failed)?;
            // Nodes that count nothing belong to the last part.
            let is_own =
                |node: &NodeName| counted.contains(node) || (is_last && !known.contains(node));
            let nodes = fragment.nodes.iter().filter(|node| is_own(node)).cloned().collect();
            known.extend(counted);
            let name = match is_last {
                true => name.clone(),
                false => format!("{name}, part {number} of {count}"),
            };
            let exchange = self.spec.checkpoint.exchange;
            let exchange = if is_last { ExchangeDurability::Sync } else { exchange };
            let mut stage = whole_stage(part.id, name, nodes, inputs, &part.plan, part.slices)?;
            if let StageKind::Whole { durability, .. } = &mut stage.kind {
                *durability = exchange;
            }
            self.stages.push(stage);
        }
        let last = parts.last().ok_or_else(|| {
            PlanError::engine(format!("failed to cut the plan of `{reader}`"), "nothing is left")
        })?;
        Ok(Exchange {
            stage: last.id,
            partitions: last.plan.output_partitioning().partition_count(),
            schema: last.plan.schema(),
        })
    }

    async fn add_sink(&mut self, name: &NodeName, sink: &Sink) -> Result<(), PlanError> {
        if let [input] = sink.inputs.as_slice() {
            for item in self.leaves(input) {
                let trial = match self.exchanges.get(&item) {
                    Some(exchange) => Some(exchange.clone()),
                    None if self.is_resumable_source(&item) => None,
                    None => Some(Exchange {
                        stage: self.next_id(),
                        partitions: 1,
                        schema: Arc::clone(&self.analysis.nodes[&item].schema),
                    }),
                };
                let leaf = trial.as_ref().map(|exchange| (&item, exchange));
                let fragment = self.fragment(&sink.inputs, 1, leaf).await?;
                let Some((plan, nodes)) = streaming_plan(name, &sink.inputs, fragment).await?
                else {
                    continue;
                };
                let leaf = match trial {
                    None => Leaf::Source(item.node),
                    Some(_) => Leaf::Exchange(match self.exchanges.get(&item) {
                        Some(exchange) => exchange.clone(),
                        None => self.add_exchange(&item).await?,
                    }),
                };
                return self.push_sink(name, sink, plan, nodes, leaf);
            }
        }
        // A union of inputs, or nothing row-wise at all.
        let exchange = self.add_whole(name, format!("input of {name}"), &sink.inputs).await?;
        let item = InputRef { node: name.clone(), errors: false };
        let mut workspace = Workspace::new(self.spec, self.scope, 1);
        let table = ExchangeTable {
            stage: exchange.stage,
            partitions: 1,
            schema: Arc::clone(&exchange.schema),
        };
        workspace.register(&item, Arc::new(table))?;
        let fragment = Fragment { workspace, nodes: Vec::new(), inputs: Vec::new() };
        let Some((plan, nodes)) = streaming_plan(name, &[item], fragment).await? else {
            return Err(PlanError::engine(
                format!("failed to plan sink `{name}`"),
                "a scan of an exchange is not row-wise",
            ));
        };
        self.push_sink(name, sink, plan, nodes, Leaf::Exchange(exchange))
    }

    /// Candidates for a streaming stage's input, deepest first: the chain of single inputs above
    /// `input`, down to an exchange or source.
    fn leaves(&self, input: &InputRef) -> Vec<InputRef> {
        let mut chain = vec![input.clone()];
        let mut item = input;
        while !self.exchanges.contains_key(item) {
            let inputs = &self.analysis.nodes[item].inputs;
            let (1, Some((next, _))) = (inputs.len(), inputs.first()) else { break };
            chain.push(next.clone());
            item = next;
        }
        chain.reverse();
        chain
    }

    fn is_resumable_source(&self, item: &InputRef) -> bool {
        let source = self.catalog.sources.get(&item.node);
        !item.errors && source.is_some_and(|source| source.description.resumable)
    }

    /// Whether it is cheaper to read it again than to keep it, and safe.
    fn is_read_again(&self, item: &InputRef) -> bool {
        let source = self.catalog.sources.get(&item.node);
        let is_repeatable = source.is_some_and(|source| {
            source.description.repeatable && source.source.incremental().is_none()
        });
        is_repeatable && !item.errors && self.analysis.is_read_by_one_node(item)
    }

    fn push_sink(
        &mut self,
        name: &NodeName,
        sink: &Sink,
        row_wise: RowWisePlan,
        mut nodes: Vec<NodeName>,
        leaf: Leaf,
    ) -> Result<(), PlanError> {
        let schema = row_wise.plan.schema();
        check_sink_columns(name, sink, &schema)?;
        let (input, inputs, slices) = match leaf {
            Leaf::Source(node) => {
                let source = &self.catalog.sources[&node];
                let slices = group(&source.splits, self.parallelism() * SLICES_PER_TASK);
                let input = StreamInput::Source {
                    source: source.source.clone(),
                    request: row_wise.request.ok_or_else(|| {
                        PlanError::engine(
                            format!("failed to plan sink `{name}`"),
                            "no scan request",
                        )
                    })?,
                    node,
                };
                (input, Vec::new(), slices.into_iter().map(Slice::Splits).collect())
            }
            Leaf::Exchange(exchange) => {
                let partitions = u32::try_from(exchange.partitions).unwrap_or(u32::MAX);
                let input = StreamInput::Exchange { stage: exchange.stage };
                (input, vec![exchange.stage], (0..partitions).map(Slice::Partition).collect())
            }
        };
        nodes.push(name.clone());
        self.stages.push(Stage {
            id: self.next_id(),
            name: name.to_string(),
            nodes,
            inputs,
            kind: StageKind::Streaming { input, plan: encode_plan(&row_wise.plan)?, slices },
            output: StageOutput::Sink {
                node: name.clone(),
                sink: sink.clone(),
                schema: EncodedSchema::encode(&schema)?,
            },
            display: displayable(row_wise.plan.as_ref()).indent(false).to_string(),
        });
        Ok(())
    }
}

impl Fragment<'_> {
    async fn physical(
        &self,
        reader: &NodeName,
        plan: &LogicalPlan,
    ) -> Result<Arc<dyn ExecutionPlan>, PlanError> {
        let state = self.workspace.state();
        let plan = state
            .create_physical_plan(plan)
            .await
            .and_then(count_rows_in)
            .and_then(count_sources_once)
            .map_err(|error| PlanError::datafusion(reader, &error))?;
        Ok(plan)
    }
}

/// The sink's rows as a row-wise plan, if they are.
async fn streaming_plan(
    name: &NodeName,
    inputs: &[InputRef],
    fragment: Fragment<'_>,
) -> Result<Option<(RowWisePlan, Vec<NodeName>)>, PlanError> {
    let plan = with_plain_types(name, fragment.workspace.union(name, inputs)?)?;
    let plan = fragment.physical(name, &plan).await?;
    let row_wise = row_wise(&plan).map_err(|error| PlanError::datafusion(name, &error))?;
    Ok(row_wise.map(|plan| (plan, fragment.nodes)))
}

fn whole_stage(
    id: StageId,
    name: String,
    nodes: Vec<NodeName>,
    inputs: Vec<StageId>,
    plan: &Arc<dyn ExecutionPlan>,
    slices: usize,
) -> Result<Stage, PlanError> {
    let partitions = plan.output_partitioning().partition_count();
    Ok(Stage {
        id,
        name,
        nodes,
        inputs,
        kind: StageKind::Whole {
            plan: encode_plan(plan)?,
            partitions: u32::try_from(partitions).unwrap_or(u32::MAX),
            slices: u32::try_from(slices).unwrap_or(u32::MAX),
            durability: ExchangeDurability::Sync,
        },
        output: StageOutput::Exchange,
        display: displayable(plan.as_ref()).indent(false).to_string(),
    })
}

/// What can be said about a sink without asking its target.
fn check_sink_columns(name: &NodeName, sink: &Sink, schema: &SchemaRef) -> Result<(), PlanError> {
    let require = |column: &String, role: &str| {
        if schema.field_with_name(column).is_ok() {
            return Ok(());
        }
        let known = schema.fields().iter().map(|field| field.name().as_str());
        let hint = crate::names::did_you_mean(column, known);
        Err(PlanError::node(name, format!("{role} column `{column}` is not in its input{hint}")))
    };
    if sink.mode == WriteMode::Upsert && sink.key.is_empty() {
        return Err(PlanError::node(name, "`mode: upsert` needs a key; write `key: [COLUMN]`"));
    }
    for column in &sink.key {
        require(column, "key")?;
    }
    if let SinkTarget::Files(files) = &sink.target {
        for column in &files.partition_by {
            require(column, "partition_by")?;
        }
        if !schema.fields().is_empty() && files.partition_by.len() >= schema.fields().len() {
            return Err(PlanError::node(
                name,
                "every column is in `partition_by`: no column is left for the files",
            ));
        }
    }
    Ok(())
}

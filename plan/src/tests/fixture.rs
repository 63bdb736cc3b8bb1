//! Small pipelines over rows in memory.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use weir_spec::*;

use crate::testing::{InMemoryServices, row_splits, table};
use crate::{Catalog, PlanError, PlanScope, StageGraph, StageKind, StageOutput, StreamInput, plan};

pub(super) struct Pipeline {
    pub(super) spec: PipelineSpec,
    rows: BTreeMap<NodeName, RecordBatch>,
    pub(super) exact: Vec<String>,
    pub(super) not_resumable: Vec<NodeName>,
    pub(super) repeatable: Vec<NodeName>,
    /// What sources in many splits say of each.
    pub(super) rows_of_a_split: Option<u64>,
    /// What a source in many splits says of all of them together, in place of that.
    pub(super) estimates: BTreeMap<NodeName, u64>,
    pub(super) scope: PlanScope,
}

pub(super) struct Outcome {
    pub(super) services: Arc<InMemoryServices>,
    pub(super) sinks: BTreeMap<NodeName, Vec<RecordBatch>>,
}

impl Pipeline {
    pub(super) fn new() -> Self {
        let mut scope = PlanScope { parallelism: 2, ..PlanScope::default() };
        scope.run.insert("started_at".into(), json!("2024-05-06T07:08:09Z"));
        Self {
            spec: PipelineSpec {
                pipeline: PipelineName("test".into()),
                description: None,
                owner: None,
                docs: None,
                timezone: "UTC".into(),
                triggers: Vec::new(),
                catch_up: CatchUp::default(),
                concurrency: Concurrency::default(),
                params: IndexMap::new(),
                connections: IndexMap::new(),
                sources: IndexMap::new(),
                transforms: IndexMap::new(),
                sinks: IndexMap::new(),
                retry: RetryPolicy::default(),
                checkpoint: CheckpointPolicy::default(),
                checks: Vec::new(),
                alerts: Vec::new(),
                tests: Vec::new(),
            },
            rows: BTreeMap::new(),
            exact: Vec::new(),
            not_resumable: Vec::new(),
            repeatable: Vec::new(),
            rows_of_a_split: None,
            estimates: BTreeMap::new(),
            scope,
        }
    }

    /// Whole stages in partitions, sources in one split for each row.
    pub(super) fn distributed(mut self, parallelism: usize) -> Self {
        self.scope.parallelism = parallelism;
        self.scope.distributed = true;
        self
    }

    /// A source in many splits says that it has so many rows.
    pub(super) fn estimated(mut self, source: &str, rows: u64) -> Self {
        self.estimates.insert(NodeName::new(source), rows);
        self
    }

    /// Orders and customers.
    pub(super) fn shop() -> Self {
        Self::new()
            .source(
                "orders",
                json!([
                    {"id": 1, "customer": 1, "amount": 10.0, "email": "a@x.org"},
                    {"id": 2, "customer": 1, "amount": 20.0, "email": "nope"},
                    {"id": 3, "customer": 2, "amount": 30.0, "email": null},
                    {"id": 4, "customer": 9, "amount": -1.0, "email": "bad"}
                ]),
            )
            .source("customers", json!([{"id": 1, "name": "Ada"}, {"id": 2, "name": "Bob"}]))
    }

    pub(super) fn source(mut self, name: &str, rows: Value) -> Self {
        let rows: Vec<Map<String, Value>> = serde_json::from_value(rows).expect("rows are objects");
        let source = Source::Parquet(ParquetSource {
            path: TemplateText::new(format!("{name}.parquet")),
            hive_partitions: None,
        });
        self.spec.sources.insert(NodeName::new(name), source);
        self.rows.insert(NodeName::new(name), table(&rows, None).expect("rows have a schema"));
        self
    }

    pub(super) fn transform(mut self, name: &str, inputs: &[&str], operator: Operator) -> Self {
        let inputs = inputs.iter().map(|input| input_ref(input)).collect();
        self.spec.transforms.insert(NodeName::new(name), Transform { inputs, operator });
        self
    }

    pub(super) fn sql(self, name: &str, text: &str) -> Self {
        self.transform(name, &[], Operator::Sql(TemplateText::new(text)))
    }

    pub(super) fn validate(self, name: &str, input: &str, conditions: Vec<Condition>) -> Self {
        self.validate_or(name, input, conditions, OnError::DeadLetter)
    }

    pub(super) fn validate_or(
        self,
        name: &str,
        input: &str,
        conditions: Vec<Condition>,
        on_error: OnError,
    ) -> Self {
        let rules =
            conditions.into_iter().map(|condition| Rule { name: None, condition }).collect();
        self.transform(
            name,
            &[input],
            Operator::Validate(Validate { rules, on_error, max_errors: None }),
        )
    }

    pub(super) fn sink(mut self, name: &str, inputs: &[&str]) -> Self {
        let sink = Sink {
            inputs: inputs.iter().map(|input| input_ref(input)).collect(),
            target: SinkTarget::Files(FileTarget {
                path: TemplateText::new(format!("out/{name}")),
                format: FileFormat::Parquet,
                partition_by: Vec::new(),
                target_file_size_bytes: NonZeroU64::new(1 << 27).expect("not zero"),
                compression: Compression::Auto,
            }),
            mode: WriteMode::Append,
            key: Vec::new(),
            commit: CommitMode::Batch,
            batch_rows: NonZeroU64::new(1000).expect("not zero"),
            schema: SchemaPolicy::default(),
        };
        self.spec.sinks.insert(NodeName::new(name), sink);
        self
    }

    pub(super) fn catalog(&self) -> (Arc<InMemoryServices>, Catalog) {
        let services = InMemoryServices::new(self.rows.clone());
        let mut catalog = services.catalog(&self.spec);
        for (node, source) in &mut catalog.sources {
            source.description.exact_predicates = self.exact.clone();
            source.description.resumable = !self.not_resumable.contains(node);
            source.description.repeatable = self.repeatable.contains(node);
            if self.scope.distributed {
                let rows = self.rows[node].num_rows();
                let estimate = self.estimates.get(node).map(|all| all / rows as u64);
                source.splits = row_splits(rows, estimate.or(self.rows_of_a_split));
            }
        }
        (services, catalog)
    }

    pub(super) async fn plan(&self) -> Result<StageGraph, PlanError> {
        plan(&self.spec, &self.catalog().1, &self.scope).await
    }

    pub(super) async fn run(&self) -> Outcome {
        let (services, catalog) = self.catalog();
        let graph = plan(&self.spec, &catalog, &self.scope).await.expect("the pipeline is right");
        let json = serde_json::to_string(&graph).expect("graphs are JSON");
        let graph: StageGraph = serde_json::from_str(&json).expect("graphs are read back");
        let sinks = services.run(&graph).await.expect("the plan runs");
        Outcome { services, sinks }
    }
}

impl Outcome {
    /// Rows of a sink, columns separated by `|`, sorted.
    pub(super) fn rows(&self, sink: &str) -> Vec<String> {
        show(&self.sinks[&NodeName::new(sink)])
    }
}

pub(super) fn show(batches: &[RecordBatch]) -> Vec<String> {
    let mut rows = Vec::new();
    for batch in batches {
        let options = FormatOptions::default().with_null("null");
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options).expect("types can be shown"))
            .collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<String> =
                columns.iter().map(|column| column.value(row).to_string()).collect();
            rows.push(cells.join("|"));
        }
    }
    rows.sort();
    rows
}

pub(super) fn input_ref(text: &str) -> InputRef {
    match text.strip_suffix(".errors") {
        Some(node) => InputRef { node: NodeName::new(node), errors: true },
        None => InputRef { node: NodeName::new(text), errors: false },
    }
}

pub(super) fn matches(column: &str, pattern: &str) -> Condition {
    Condition::Matches { column: column.into(), pattern: pattern.into() }
}

pub(super) fn check(expression: &str) -> Condition {
    Condition::Check { expression: TemplateText::new(expression) }
}

/// The cut in one line a stage: `0 whole orders -> exchange`, `1 stream of 0 x 2 valid -> out`.
pub(super) fn cut(graph: &StageGraph) -> Vec<String> {
    graph
        .stages
        .iter()
        .map(|stage| {
            let nodes: Vec<&str> = stage.nodes.iter().map(NodeName::as_str).collect();
            let kind = match &stage.kind {
                StageKind::Whole { .. } => {
                    let inputs: Vec<String> =
                        stage.inputs.iter().map(ToString::to_string).collect();
                    match stage.slice_count() {
                        1 => format!("whole [{}]", inputs.join(",")),
                        slices => format!("whole [{}] x {slices}", inputs.join(",")),
                    }
                }
                StageKind::Streaming { input: StreamInput::Source { node, .. }, .. } => {
                    format!("stream {node}")
                }
                StageKind::Streaming { input: StreamInput::Exchange { stage }, .. } => {
                    format!("stream #{stage}")
                }
            };
            let output = match &stage.output {
                StageOutput::Exchange => "exchange",
                StageOutput::Sink { .. } => "sink",
            };
            format!("{} {kind}: {} -> {output}", stage.id, nodes.join(" "))
        })
        .collect()
}

//! Runs plans in memory: for `weir test`, and for tests of everything that plans.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use async_trait::async_trait;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value};
use weir_connectors::records::{Json, decode_given, infer_schema};
use weir_connectors::types::arrow_field;
use weir_connectors::{
    ConnectorError, Position, ScanRequest, Source, SourceBatch, SourceDescription, SourceStream,
    Split,
};
use weir_spec::{DeclaredColumns, NodeName, PipelineSpec};

use crate::{
    Catalog, CatalogSource, EncodedPlan, NodeCounts, PlanError, Rejection, Slice, Stage,
    StageGraph, StageId, StageKind, StageOutput, StreamInput, TaskServices, decode_plan,
    execute_slice, session,
};

/// Given rows instead of sources, memory instead of exchanges, lists instead of dead letters.
#[derive(Debug, Default)]
pub struct InMemoryServices {
    rows: BTreeMap<NodeName, RecordBatch>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    exchanges: BTreeMap<(StageId, usize), Vec<RecordBatch>>,
    morsel: Option<RecordBatch>,
    counts: BTreeMap<NodeName, NodeCounts>,
    rejections: BTreeMap<NodeName, Vec<Rejection>>,
}

impl InMemoryServices {
    /// `rows` are what the sources hold, all columns.
    pub fn new(rows: BTreeMap<NodeName, RecordBatch>) -> Arc<Self> {
        Arc::new(Self { rows, state: Mutex::default() })
    }

    /// The catalog of the given rows: every source one resumable split, no predicates.
    pub fn catalog(&self, spec: &PipelineSpec) -> Catalog {
        let mut catalog = Catalog::default();
        for (node, source) in &spec.sources {
            let Some(batch) = self.rows.get(node) else { continue };
            catalog.sources.insert(
                node.clone(),
                CatalogSource {
                    source: source.clone(),
                    description: describe(batch),
                    splits: vec![split(batch)],
                    bounds: BTreeMap::new(),
                    since: None,
                },
            );
        }
        catalog
    }

    pub fn counts(&self) -> BTreeMap<NodeName, NodeCounts> {
        self.lock().counts.clone()
    }

    pub fn rejections(&self) -> BTreeMap<NodeName, Vec<Rejection>> {
        self.lock().rejections.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs all stages, one after the other. Returns the rows of each sink.
    pub async fn run(
        self: &Arc<Self>,
        graph: &StageGraph,
    ) -> Result<BTreeMap<NodeName, Vec<RecordBatch>>> {
        let mut sinks: BTreeMap<NodeName, Vec<RecordBatch>> = BTreeMap::new();
        for stage in &graph.stages {
            match &stage.kind {
                StageKind::Whole { plan, slices, .. } if *slices > 1 => {
                    for slice in 0..*slices {
                        self.compute_slice(stage.id, plan, slice, *slices).await?;
                    }
                }
                StageKind::Whole { plan, .. } => {
                    for (partition, rows) in self.execute(plan).await?.into_iter().enumerate() {
                        self.lock().exchanges.insert((stage.id, partition), rows);
                    }
                }
                StageKind::Streaming { input, plan, slices } => {
                    let mut written = Vec::new();
                    for slice in slices {
                        for morsel in self.morsels(input, slice).await? {
                            self.lock().morsel = Some(morsel);
                            written.extend(self.execute(plan).await?.into_iter().flatten());
                        }
                    }
                    if let StageOutput::Sink { node, .. } = &stage.output {
                        sinks.entry(node.clone()).or_default().extend(written);
                    }
                }
            }
        }
        Ok(sinks)
    }

    /// Runs the stage that [`crate::plan_node`] has made. Returns its rows.
    pub async fn run_node(self: &Arc<Self>, stage: &Stage) -> Result<Vec<RecordBatch>> {
        let (StageKind::Whole { plan, .. } | StageKind::Streaming { plan, .. }) = &stage.kind;
        Ok(self.execute(plan).await?.into_iter().flatten().collect())
    }

    /// On its own, as a task in a process of its own would.
    async fn compute_slice(
        self: &Arc<Self>,
        stage: StageId,
        plan: &EncodedPlan,
        slice: u32,
        slices: u32,
    ) -> Result<()> {
        let context = self.context();
        let plan: Arc<dyn ExecutionPlan> = decode_plan(plan, &context).map_err(external)?;
        let mut output = execute_slice(&plan, slice as usize, slices as usize, context)?;
        for partition in output.partitions.clone() {
            let empty = RecordBatch::new_empty(plan.schema());
            self.lock().exchanges.entry((stage, partition)).or_default().push(empty);
        }
        while let Some((partition, rows)) = output.rows.try_next().await? {
            self.lock().exchanges.entry((stage, partition)).or_default().push(rows);
        }
        Ok(())
    }

    fn context(self: &Arc<Self>) -> Arc<TaskContext> {
        let services: Arc<dyn TaskServices> = Arc::<Self>::clone(self);
        session::task_context(services, Arc::new(RuntimeEnv::default()), 8192, 1)
    }

    /// Rows by partition.
    async fn execute(self: &Arc<Self>, plan: &EncodedPlan) -> Result<Vec<Vec<RecordBatch>>> {
        let context = self.context();
        let plan: Arc<dyn ExecutionPlan> = decode_plan(plan, &context).map_err(external)?;
        let partitions = plan.output_partitioning().partition_count();
        let streams = (0..partitions)
            .map(|partition| plan.execute(partition, Arc::clone(&context)))
            .collect::<Result<Vec<_>>>()?;
        // Together: a repartitioning waits for all who read it.
        futures::future::try_join_all(streams.into_iter().map(TryStreamExt::try_collect)).await
    }

    async fn morsels(&self, input: &StreamInput, slice: &Slice) -> Result<Vec<RecordBatch>> {
        match (input, slice) {
            (StreamInput::Exchange { stage }, Slice::Partition(partition)) => {
                let key = (*stage, *partition as usize);
                Ok(self.lock().exchanges.get(&key).cloned().unwrap_or_default())
            }
            (StreamInput::Source { node, source, request }, Slice::Splits(splits)) => {
                let opened = self.open_source(node, source).map_err(external)?;
                let mut morsels = Vec::new();
                for split in splits {
                    let mut batches = opened.open(split, request, None).await.map_err(external)?;
                    while let Some(batch) = batches.next().await {
                        let batch = batch.map_err(external)?;
                        self.on_source_batch(node, &batch)?;
                        morsels.push(batch.rows);
                    }
                }
                Ok(morsels)
            }
            _ => Err(DataFusionError::Internal("a slice does not fit its stage's input".into())),
        }
    }
}

impl TaskServices for InMemoryServices {
    fn open_source(
        &self,
        node: &NodeName,
        _source: &weir_spec::Source,
    ) -> Result<Arc<dyn Source>, ConnectorError> {
        match self.rows.get(node) {
            Some(batch) => Ok(Arc::new(GivenRows(batch.clone()))),
            None => Err(ConnectorError::config(format!("no rows are given for source `{node}`"))),
        }
    }

    fn on_source_batch(&self, node: &NodeName, batch: &SourceBatch) -> Result<()> {
        let rows = batch.rows.num_rows() as u64;
        self.count(node, NodeCounts { rows_in: rows, rows_out: rows, ..NodeCounts::default() });
        Ok(())
    }

    fn read_exchange(
        &self,
        stage: StageId,
        partition: usize,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let batches = self.lock().exchanges.get(&(stage, partition)).cloned().unwrap_or_default();
        Ok(stream::iter(batches.into_iter().map(Ok)).boxed())
    }

    fn morsel(&self) -> Result<SendableRecordBatchStream> {
        let morsel = self.lock().morsel.take().ok_or_else(|| {
            DataFusionError::Internal("a morsel was read twice, or there is none".into())
        })?;
        Ok(stream_of(vec![morsel]))
    }

    fn count(&self, node: &NodeName, counts: NodeCounts) {
        *self.lock().counts.entry(node.clone()).or_default() += counts;
    }

    fn reject(&self, node: &NodeName, rows: Vec<Rejection>) -> Result<()> {
        self.lock().rejections.entry(node.clone()).or_default().extend(rows);
        Ok(())
    }
}

/// A source that holds its rows.
#[derive(Debug)]
struct GivenRows(RecordBatch);

#[async_trait]
impl Source for GivenRows {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        Ok(describe(&self.0))
    }

    async fn splits(
        &self,
        _request: &ScanRequest,
        _parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError> {
        Ok(vec![split(&self.0)])
    }

    async fn open(
        &self,
        split: &Split,
        request: &ScanRequest,
        _from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError> {
        let all = match split.payload.as_u64() {
            Some(row) => self.0.slice(usize::try_from(row).unwrap_or(usize::MAX), 1),
            None => self.0.clone(),
        };
        let rows = match &request.columns {
            None => all,
            Some(columns) => {
                let indices = columns
                    .iter()
                    .map(|column| self.0.schema().index_of(column))
                    .collect::<Result<Vec<_>, _>>()?;
                all.project(&indices)?
            }
        };
        let position = Some(Position(rows.num_rows().to_string()));
        let batch = SourceBatch { rows, rejected: Vec::new(), position };
        Ok(stream::iter([Ok(batch)]).boxed())
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        Ok(format!("{} given rows", self.0.num_rows()))
    }
}

fn describe(batch: &RecordBatch) -> SourceDescription {
    SourceDescription {
        schema: batch.schema(),
        resumable: true,
        exact_predicates: Vec::new(),
        repeatable: false,
        notes: Vec::new(),
    }
}

fn split(batch: &RecordBatch) -> Split {
    Split {
        label: "given rows".to_owned(),
        payload: Value::Null,
        weight: 1,
        estimated_rows: Some(batch.num_rows() as u64),
    }
}

/// One split for each row; how many rows they are said to have decides how joins are planned.
pub fn row_splits(rows: usize, estimated_rows: Option<u64>) -> Vec<Split> {
    let split = |row| Split {
        label: format!("row {row}"),
        payload: Value::from(row),
        weight: 1,
        estimated_rows,
    };
    (0..rows).map(split).collect()
}

fn stream_of(batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    let schema = batches.first().map_or_else(|| Arc::new(Schema::empty()), RecordBatch::schema);
    Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches.into_iter().map(Ok))))
}

/// JSON rows as one batch. Columns and types: those declared first, then what the rows hold besides,
/// inferred.
pub fn table(
    rows: &[Map<String, Value>],
    declared: Option<&DeclaredColumns>,
) -> Result<RecordBatch, PlanError> {
    let rows: Vec<Json> = rows.iter().map(|row| Value::Object(row.clone()).into()).collect();
    let mut fields: Vec<_> = declared
        .into_iter()
        .flatten()
        .map(|(name, column_type)| Arc::new(arrow_field(name, column_type)))
        .collect();
    for field in infer_schema(&rows).fields() {
        if !fields.iter().any(|declared| declared.name() == field.name()) {
            fields.push(Arc::clone(field));
        }
    }
    decode_given(&Arc::new(Schema::new(fields)), &rows).map_err(|(row, reason)| {
        PlanError::engine(
            "failed to read the given rows",
            ConnectorError::data(format!("row {}: {reason}", row + 1)),
        )
    })
}

fn external(error: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

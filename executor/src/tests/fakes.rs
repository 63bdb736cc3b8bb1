//! A source, a sink and a ledger in memory, and plans built by hand.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties,
};
use futures::StreamExt;
use indexmap::IndexMap;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use weir_connectors::{
    ConnectorError, ErrorKind, Manifest, Position, PrepareSink, PreparedSink, PublishedBatch,
    Recovery, RejectedRow, ScanRequest, Sink, SinkTask, SinkWriter, Source, SourceBatch,
    SourceDescription, SourceStream, Split,
};
use weir_plan::services::TaskExtension;
use weir_plan::{
    EncodedPlan, EncodedSchema, PlanError, Slice, Stage, StageId, StageKind, StageOutput,
    StreamInput, TaskServices, decode_plan,
};
use weir_spec::{
    CommitMode, Connection, ConnectionRef, HttpConnection, HttpMethod, HttpSource, Incremental,
    NodeName, OnError, Pagination, SchemaPolicy, SinkTarget, SqliteConnection, TableTarget,
    TemplateText, WriteMode,
};

use crate::storage::Storage;
use crate::{
    Commit, CommitLog, CommitLogError, ExecutorEnv, ExecutorOptions, Resources, RunFolder,
    SliceStart, Systems, Task, TaskError, TaskOutcome, run_task,
};

pub(crate) fn row_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("name", DataType::Utf8, true),
    ]))
}

pub(crate) fn rows_of(ids: impl Iterator<Item = i64>) -> RecordBatch {
    let ids: Vec<i64> = ids.collect();
    let names: Vec<String> = ids.iter().map(|id| format!("name {id}")).collect();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from(ids)), Arc::new(StringArray::from(names))];
    RecordBatch::try_new(row_schema(), columns).expect("columns fit")
}

/// Yields ids `from..to` of each split, some of them rejected, and fails on demand.
#[derive(Debug)]
pub(crate) struct FakeSource {
    pub(crate) batch_rows: i64,
    /// Every this many batches carry a position.
    pub(crate) position_every: i64,
    /// Ids that are a multiple of this are rejected.
    pub(crate) reject_every: Option<i64>,
    /// Fails once before this id.
    pub(crate) fail_before: Mutex<Option<i64>>,
    /// Waits forever before this id.
    pub(crate) hang_before: Option<i64>,
}

impl Default for FakeSource {
    fn default() -> Self {
        Self {
            batch_rows: 100,
            position_every: 1,
            reject_every: None,
            fail_before: Mutex::new(None),
            hang_before: None,
        }
    }
}

pub(crate) fn split(from: i64, to: i64) -> Split {
    Split {
        label: format!("ids {from}–{to}"),
        payload: json!({"from": from, "to": to}),
        weight: 1,
        estimated_rows: None,
    }
}

impl FakeSource {
    fn batch(&self, from: i64, to: i64, end: i64, number: i64) -> SourceBatch {
        let is_rejected = |id: &i64| self.reject_every.is_some_and(|every| id % every == 0);
        let rejected = (from..to).filter(is_rejected).map(|id| RejectedRow {
            raw: id.to_string(),
            reason: format!("{id} is a bad number"),
            offset: Some(id as u64),
        });
        let has_position = number % self.position_every == 0 || to == end;
        SourceBatch {
            rows: rows_of((from..to).filter(|id| !is_rejected(id))),
            rejected: rejected.collect(),
            position: has_position.then(|| Position(to.to_string())),
        }
    }
}

#[derive(Debug)]
struct OpenSource(Arc<FakeSource>);

#[async_trait]
impl Source for OpenSource {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        Ok(SourceDescription {
            schema: row_schema(),
            resumable: true,
            exact_predicates: Vec::new(),
            repeatable: false,
            notes: Vec::new(),
        })
    }
    async fn splits(
        &self,
        _request: &ScanRequest,
        _parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError> {
        Ok(vec![split(0, 1000)])
    }
    async fn open(
        &self,
        split: &Split,
        _request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError> {
        let bound = |key: &str| split.payload[key].as_i64().expect("a bound of a fake split");
        let end = bound("to");
        let start = match from {
            Some(Position(id)) => id.parse().expect("a position of a fake source"),
            None => bound("from"),
        };
        let source = Arc::clone(&self.0);
        let batches = futures::stream::try_unfold((start, 1), move |(id, number)| {
            let source = Arc::clone(&source);
            async move {
                if id >= end {
                    return Ok(None);
                }
                if source.hang_before.is_some_and(|hang| id >= hang) {
                    std::future::pending::<()>().await;
                }
                {
                    let mut fail_before = source.fail_before.lock().expect("not poisoned");
                    if fail_before.is_some_and(|fail| id >= fail) {
                        *fail_before = None;
                        let kind = ErrorKind::Unavailable { retry_after: None, status: None };
                        return Err(ConnectorError::new(kind, "the fake server went away"));
                    }
                }
                let next = (id + source.batch_rows).min(end);
                Ok(Some((source.batch(id, next, end, number), (next, number + 1))))
            }
        });
        Ok(batches.boxed())
    }
    async fn check(&self) -> Result<String, ConnectorError> {
        Ok("fake".to_owned())
    }
}

/// What has happened, in order: `stage 0`, `intent 0`, `publish 0`, `done 0`, …
pub(crate) type Timeline = Arc<Mutex<Vec<String>>>;

/// Keeps published rows by sequence; fails on demand.
#[derive(Debug, Default)]
pub(crate) struct FakeSink {
    pub(crate) timeline: Timeline,
    pub(crate) published: Mutex<BTreeMap<(u32, u64), Vec<RecordBatch>>>,
    pub(crate) fail_stage: Mutex<Option<u64>>,
    pub(crate) fail_publish: Mutex<Option<u64>>,
}

impl FakeSink {
    /// All visible ids, sorted.
    pub(crate) fn ids(&self) -> Vec<i64> {
        let published = self.published.lock().expect("not poisoned");
        let mut ids: Vec<i64> = published
            .values()
            .flatten()
            .flat_map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        ids.sort_unstable();
        ids
    }
}

fn fails(at: &Mutex<Option<u64>>, sequence: u64) -> Result<(), ConnectorError> {
    let mut at = at.lock().expect("not poisoned");
    if *at == Some(sequence) {
        *at = None;
        let kind = ErrorKind::Unavailable { retry_after: None, status: None };
        return Err(ConnectorError::new(kind, "the fake target went away"));
    }
    Ok(())
}

#[derive(Debug)]
struct OpenSink(Arc<FakeSink>);

#[async_trait]
impl Sink for OpenSink {
    fn commit_mode(&self) -> CommitMode {
        CommitMode::Batch
    }
    async fn prepare(
        &self,
        identity: &PrepareSink,
        _schema: &SchemaRef,
    ) -> Result<PreparedSink, ConnectorError> {
        Ok(PreparedSink { identity: identity.clone(), payload: json!(null), notes: Vec::new() })
    }
    async fn writer(&self, task: SinkTask) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        Ok(Box::new(FakeWriter { sink: Arc::clone(&self.0), task, open: Vec::new(), staged: None }))
    }
    async fn recover(
        &self,
        _prepared: &PreparedSink,
        manifest: &Manifest,
        _attempt: u32,
        _epoch: u64,
    ) -> Result<Recovery, ConnectorError> {
        let key = (manifest.slice, manifest.sequence);
        let has_landed = self.0.published.lock().expect("not poisoned").contains_key(&key);
        Ok(if has_landed { Recovery::Published } else { Recovery::Lost })
    }
    async fn commit_run(
        &self,
        _prepared: &PreparedSink,
        _manifests: &[Manifest],
        _epoch: u64,
    ) -> Result<(), ConnectorError> {
        Ok(())
    }
    async fn published(
        &self,
        _prepared: &PreparedSink,
        _manifests: &[Manifest],
    ) -> Result<Vec<PublishedBatch>, ConnectorError> {
        Ok(Vec::new())
    }
    async fn clean_up(&self, _prepared: &PreparedSink, _epoch: u64) -> Result<(), ConnectorError> {
        Ok(())
    }
    async fn check(&self) -> Result<String, ConnectorError> {
        Ok("fake".to_owned())
    }
}

struct FakeWriter {
    sink: Arc<FakeSink>,
    task: SinkTask,
    open: Vec<RecordBatch>,
    staged: Option<Vec<RecordBatch>>,
}

impl FakeWriter {
    fn tell(&self, what: &str, sequence: u64) {
        self.sink.timeline.lock().expect("not poisoned").push(format!("{what} {sequence}"));
    }
}

#[async_trait]
impl SinkWriter for FakeWriter {
    async fn write(&mut self, rows: RecordBatch) -> Result<(), ConnectorError> {
        assert!(self.staged.is_none(), "rows are written before the last batch is published");
        self.open.push(rows);
        Ok(())
    }
    fn open_bytes(&self) -> u64 {
        self.open.iter().map(|rows| rows.num_rows() as u64).sum()
    }
    async fn stage(
        &mut self,
        sequence: u64,
        rows: u64,
        checksum: u64,
    ) -> Result<Manifest, ConnectorError> {
        fails(&self.sink.fail_stage, sequence)?;
        self.tell("stage", sequence);
        self.staged = Some(std::mem::take(&mut self.open));
        let (slice, epoch) = (self.task.slice, self.task.epoch);
        Ok(Manifest { slice, sequence, rows, checksum, epoch, payload: json!(null) })
    }
    async fn publish(&mut self, manifest: &Manifest) -> Result<(), ConnectorError> {
        fails(&self.sink.fail_publish, manifest.sequence)?;
        self.tell("publish", manifest.sequence);
        let rows = self.staged.take().expect("a batch is staged before it is published");
        let key = (manifest.slice, manifest.sequence);
        let before = self.sink.published.lock().expect("not poisoned").insert(key, rows);
        assert!(before.is_none(), "a batch is published twice");
        Ok(())
    }
}

/// Remembers commits; may refuse an intent or a done.
#[derive(Debug, Default)]
pub(crate) struct FakeLog {
    pub(crate) timeline: Timeline,
    pub(crate) commits: Mutex<Vec<Commit>>,
    pub(crate) done: Mutex<Vec<u64>>,
    pub(crate) fence_intent: Option<u64>,
    /// Asks the task to stop once this batch is done.
    pub(crate) stop_after: Mutex<Option<(u64, CancellationToken)>>,
}

#[async_trait]
impl CommitLog for FakeLog {
    async fn intent(&self, _task: &Task, commit: &Commit) -> Result<(), CommitLogError> {
        if self.fence_intent == Some(commit.manifest.sequence) {
            return Err(CommitLogError::Fenced("another process has taken over".to_owned()));
        }
        self.tell("intent", commit.manifest.sequence);
        self.commits.lock().expect("not poisoned").push(commit.clone());
        Ok(())
    }
    async fn done(&self, _task: &Task, sequence: u64) -> Result<(), CommitLogError> {
        self.tell("done", sequence);
        self.done.lock().expect("not poisoned").push(sequence);
        if let Some((after, stop)) = &*self.stop_after.lock().expect("not poisoned")
            && *after == sequence
        {
            stop.cancel();
        }
        Ok(())
    }
}

impl FakeLog {
    fn tell(&self, what: &str, sequence: u64) {
        self.timeline.lock().expect("not poisoned").push(format!("{what} {sequence}"));
    }

    pub(crate) fn commits(&self) -> Vec<Commit> {
        self.commits.lock().expect("not poisoned").clone()
    }

    /// Where the next attempt starts, if only done batches count; `None` when all is done.
    pub(crate) fn next_start(&self) -> Option<SliceStart> {
        let done = self.done.lock().expect("not poisoned").len();
        let commits = self.commits();
        let Some(last) = commits[..done].last() else { return Some(SliceStart::default()) };
        let position = last.resume_at.clone()?;
        Some(SliceStart { position: Some(position), next_sequence: last.manifest.sequence + 1 })
    }
}

type PlanMaker = Box<dyn Fn() -> Arc<dyn ExecutionPlan> + Send + Sync>;

/// Opens the fakes; a frozen plan is whatever the test has built.
pub(crate) struct FakeSystems {
    pub(crate) source: Arc<FakeSource>,
    pub(crate) sink: Arc<FakeSink>,
    /// Instead of what the task brings.
    pub(crate) plan: Option<PlanMaker>,
}

impl fmt::Debug for FakeSystems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeSystems")
    }
}

impl Systems for FakeSystems {
    fn open_source(
        &self,
        _node: &NodeName,
        _source: &weir_spec::Source,
    ) -> Result<Arc<dyn Source>, ConnectorError> {
        Ok(Arc::new(OpenSource(Arc::clone(&self.source))))
    }
    fn open_sink(
        &self,
        _node: &NodeName,
        _sink: &weir_spec::Sink,
    ) -> Result<Arc<dyn Sink>, ConnectorError> {
        Ok(Arc::new(OpenSink(Arc::clone(&self.sink))))
    }
    fn read_plan(
        &self,
        plan: &EncodedPlan,
        context: &TaskContext,
    ) -> Result<Arc<dyn ExecutionPlan>, PlanError> {
        match &self.plan {
            Some(make) => Ok(make()),
            None => decode_plan(plan, context),
        }
    }
}

/// A run's folder with fakes around it.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) sink: Arc<FakeSink>,
    pub(crate) log: Arc<FakeLog>,
    pub(crate) env: Arc<ExecutorEnv>,
    pub(crate) stop: CancellationToken,
}

impl World {
    pub(crate) fn new(
        source: FakeSource,
        plan: impl Fn() -> Arc<dyn ExecutionPlan> + Send + Sync + 'static,
    ) -> Self {
        Self::with_options(source, plan, 64 * 1024 * 1024, Duration::from_secs(30))
    }

    pub(crate) fn with_options(
        source: FakeSource,
        plan: impl Fn() -> Arc<dyn ExecutionPlan> + Send + Sync + 'static,
        memory_bytes: u64,
        checkpoint_every: Duration,
    ) -> Self {
        Self::build(source, Some(Box::new(plan)), memory_bytes, checkpoint_every)
    }

    /// A world in which tasks bring their own frozen plans.
    pub(crate) fn with_frozen_plans(source: FakeSource) -> Self {
        Self::build(source, None, 64 * 1024 * 1024, Duration::from_secs(30))
    }

    fn build(
        source: FakeSource,
        plan: Option<PlanMaker>,
        memory_bytes: u64,
        checkpoint_every: Duration,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let timeline = Timeline::default();
        let sink = Arc::new(FakeSink { timeline: Arc::clone(&timeline), ..FakeSink::default() });
        let systems = FakeSystems { source: Arc::new(source), sink: Arc::clone(&sink), plan };
        let resources = Resources::new(
            folder.path().join("spill"),
            NonZeroU64::new(memory_bytes).expect("some memory"),
            NonZeroUsize::new(2).expect("two is not zero"),
        )
        .expect("the folder is writable");
        let env = ExecutorEnv::new(ExecutorOptions {
            folder: RunFolder::new(Storage::folder(folder.path())),
            systems: Arc::new(systems),
            resources: Arc::new(resources),
            checkpoint_every,
            given: IndexMap::new(),
        });
        let log = Arc::new(FakeLog { timeline, ..FakeLog::default() });
        Self { folder, sink, log, env: Arc::new(env), stop: CancellationToken::new() }
    }

    /// A file of the run.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) async fn run(&self, task: Task) -> Result<TaskOutcome, TaskError> {
        let (events, _) = tokio::sync::mpsc::unbounded_channel();
        let log: Arc<dyn CommitLog> = self.log.clone();
        run_task(task, Arc::clone(&self.env), log, events, self.stop.clone()).await
    }

    /// Runs attempts until the slice is finished, each from the last done batch; how many it took.
    pub(crate) async fn run_to_the_end(&self, task: &Task) -> u32 {
        for attempt in 1..100 {
            let Some(start) = self.log.next_start() else { return attempt - 1 };
            // What a coordinator does with an intent that was never published.
            let done = self.log.done.lock().expect("not poisoned").len();
            self.log.commits.lock().expect("not poisoned").truncate(done);
            let _ = self.run(Task { attempt, start, ..task.clone() }).await;
        }
        panic!("the slice does not come to an end: {:?}", self.log.commits());
    }

    pub(crate) fn timeline(&self) -> Vec<String> {
        self.log.timeline.lock().expect("not poisoned").clone()
    }
}

pub(crate) fn source_node() -> NodeName {
    NodeName::new("numbers")
}

pub(crate) fn sink_node() -> NodeName {
    NodeName::new("target")
}

pub(crate) fn source_spec(on_error: OnError) -> weir_spec::Source {
    let connection = HttpConnection {
        base_url: TemplateText::new("http://localhost"),
        auth: None,
        headers: IndexMap::new(),
        rate_limit: None,
        timeout: Duration::from_secs(1),
        max_tasks: None,
    };
    weir_spec::Source::Http(HttpSource {
        connection: ConnectionRef { name: None, config: Connection::Http(connection) },
        path: TemplateText::new("/numbers"),
        method: HttpMethod::Get,
        query: IndexMap::new(),
        headers: IndexMap::new(),
        body: None,
        pagination: Pagination::None,
        records: None,
        error_path: None,
        incremental: Some(Incremental {
            cursor: "id".to_owned(),
            param: None,
            initial: None,
            lag: None,
        }),
        columns: None,
        on_error,
        max_errors: None,
        max_pages: 1,
    })
}

fn sink_spec(batch_rows: u64) -> weir_spec::Sink {
    let connection = SqliteConnection { path: TemplateText::new("target.db"), max_tasks: None };
    weir_spec::Sink {
        inputs: Vec::new(),
        target: SinkTarget::Table(TableTarget {
            connection: ConnectionRef { name: None, config: Connection::Sqlite(connection) },
            table: TemplateText::new("numbers"),
        }),
        mode: WriteMode::Append,
        key: Vec::new(),
        commit: CommitMode::Batch,
        batch_rows: NonZeroU64::new(batch_rows).expect("some rows"),
        schema: SchemaPolicy::default(),
    }
}

pub(crate) fn no_plan() -> EncodedPlan {
    EncodedPlan(Vec::new())
}

/// A task that streams splits of the fake source into the fake sink.
pub(crate) fn streaming_task(splits: Vec<Split>, batch_rows: u64) -> Task {
    let input = StreamInput::Source {
        node: source_node(),
        source: source_spec(OnError::DeadLetter),
        request: ScanRequest::default(),
    };
    task(
        StageKind::Streaming { input, plan: no_plan(), slices: vec![Slice::Splits(splits)] },
        StageOutput::Sink {
            node: sink_node(),
            sink: sink_spec(batch_rows),
            schema: EncodedSchema(Vec::new()),
        },
    )
}

pub(crate) fn task(kind: StageKind, output: StageOutput) -> Task {
    let identity = PrepareSink {
        ledger_id: "ledger".to_owned(),
        pipeline: "pipeline".to_owned(),
        run: "run".to_owned(),
        sink: "target".to_owned(),
        epoch: 1,
        has_others_beside: false,
    };
    Task {
        run: "run".to_owned(),
        pipeline: "pipeline".to_owned(),
        stage: Arc::new(Stage {
            id: StageId(1),
            name: "target".to_owned(),
            nodes: vec![source_node(), sink_node()],
            inputs: Vec::new(),
            kind,
            output,
            display: String::new(),
        }),
        slice: 0,
        attempt: 1,
        epoch: 1,
        start: SliceStart::default(),
        inputs: BTreeMap::new(),
        prepared: Some(PreparedSink { identity, payload: json!(null), notes: Vec::new() }),
    }
}

type StreamMaker =
    Arc<dyn Fn(usize, &TaskContext) -> Result<SendableRecordBatchStream> + Send + Sync>;

/// A leaf that does what the test wants.
pub(crate) struct Leaf {
    make: StreamMaker,
    properties: Arc<PlanProperties>,
}

impl Leaf {
    pub(crate) fn plan(
        schema: SchemaRef,
        partitions: usize,
        make: impl Fn(usize, &TaskContext) -> Result<SendableRecordBatchStream> + Send + Sync + 'static,
    ) -> Arc<dyn ExecutionPlan> {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Arc::new(Self { make: Arc::new(make), properties: Arc::new(properties) })
    }

    /// The leaf of a streaming plan.
    pub(crate) fn morsel() -> Arc<dyn ExecutionPlan> {
        Self::plan(row_schema(), 1, |_, context| services(context).morsel())
    }
}

pub(crate) fn services(context: &TaskContext) -> Arc<dyn TaskServices> {
    let extension = context.session_config().get_extension::<TaskExtension>();
    Arc::clone(&extension.expect("tasks run with their services").0)
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leaf")
    }
}

impl DisplayAs for Leaf {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leaf")
    }
}

impl ExecutionPlan for Leaf {
    fn name(&self) -> &str {
        "Leaf"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }
    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }
    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }
    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }
    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        (self.make)(partition, &context)
    }
}

//! The engine as its callers see it, with real connectors on SQLite files: rows arrive exactly once,
//! however often the work is interrupted.

mod copies;
mod giving_up;
mod replicated;
mod simulation;
pub(crate) mod target;

use std::num::{NonZeroU64, NonZeroUsize};

use indexmap::IndexMap;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_connectors::{ConnectorContext, Redactor, Secrets};
use weir_executor::ProgressEvent;
use weir_spec::{
    CatchUp, CheckpointPolicy, CommitMode, Concurrency, Connection as SpecConnection,
    ConnectionRef, DatabaseSource, Incremental, InputRef, NodeName, OnOverlap, Operator,
    PipelineName, PipelineSpec, RetryPolicy, SchemaPolicy, Sink, SinkTarget, Source,
    SqliteConnection as SqliteFile, TableTarget, TemplateText, Transform, WriteMode,
};

use crate::lock::PipelineLock;
use crate::state_dir::StateDir;
use crate::{Engine, EngineError, EngineOptions, RunEvent, RunRequest, RunStatus, history};

/// Several of the source's own batches for each task.
const ROWS: i64 = 150_000;

struct Place(tempfile::TempDir);

impl Place {
    /// With a source of [`ROWS`] rows.
    async fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary folder"));
        let mut source = place.database("source.db").await;
        execute(&mut source, "CREATE TABLE orders (id INTEGER PRIMARY KEY, amount INTEGER)").await;
        place.add_rows(1, ROWS).await;
        place
    }

    async fn add_rows(&self, from: i64, to: i64) {
        let mut source = self.database("source.db").await;
        sqlx::query(
            "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i < ?) \
             INSERT INTO orders SELECT i, i % 7 FROM n",
        )
        .bind(from)
        .bind(to)
        .execute(&mut source)
        .await
        .expect("rows can be added");
    }

    async fn database(&self, name: &str) -> SqliteConnection {
        SqliteConnectOptions::new()
            .filename(self.0.path().join(name))
            .create_if_missing(true)
            .connect()
            .await
            .expect("the database opens")
    }

    /// Count of rows, count of distinct ids, sum of ids.
    async fn target(&self, table: &'static str) -> (i64, i64, i64) {
        let mut target = self.database("target.db").await;
        let statement = match table {
            "kept" => "SELECT count(*), count(DISTINCT id), coalesce(sum(id), 0) FROM kept",
            _ => "SELECT count(*), count(DISTINCT id), coalesce(sum(id), 0) FROM shown",
        };
        sqlx::query_as(statement).fetch_one(&mut target).await.expect("the table is there")
    }

    fn state(&self) -> std::path::PathBuf {
        self.0.path().join("state")
    }

    fn context(&self) -> ConnectorContext {
        ConnectorContext::new(self.0.path(), Secrets::default(), Redactor::default())
    }

    async fn engine(&self) -> Engine {
        Engine::open(EngineOptions {
            state_dir: self.state(),
            memory_bytes: 64 << 20,
            slots: NonZeroUsize::new(2).expect("not zero"),
            context: self.context(),
        })
        .await
        .expect("the engine opens")
    }

    async fn run(&self, spec: &PipelineSpec) -> Result<crate::RunSummary, EngineError> {
        let (events, _received) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        self.engine().await.run(spec, "", RunRequest::default(), events, stop).await
    }

    async fn assert_clean(&self, run: &str) {
        let report = history::audit(&self.state(), run, &self.context()).await.expect("known run");
        assert_eq!(report.findings, Vec::<String>::new());
        assert!(report.clean);
        for sink in &report.sinks {
            assert_eq!(sink.rows_in_ledger, sink.rows_in_target, "{}", sink.sink);
        }
    }
}

async fn execute(connection: &mut SqliteConnection, statement: &'static str) {
    sqlx::query(statement).execute(&mut *connection).await.expect("the statement is valid");
}

fn sqlite(path: &str) -> ConnectionRef {
    let path = TemplateText::new(path);
    ConnectionRef {
        name: None,
        config: SpecConnection::Sqlite(SqliteFile { path, max_tasks: None }),
    }
}

fn sink(table: &str, mode: WriteMode, commit: CommitMode) -> Sink {
    Sink {
        inputs: vec![InputRef { node: NodeName::new("positive"), errors: false }],
        target: SinkTarget::Table(TableTarget {
            connection: sqlite("target.db"),
            table: TemplateText::new(table),
        }),
        mode,
        key: Vec::new(),
        commit,
        batch_rows: NonZeroU64::new(300).expect("not zero"),
        schema: SchemaPolicy::default(),
    }
}

/// `orders ─▶ positive (SQL) ─▶ kept (append, batch by batch)`
fn spec() -> PipelineSpec {
    PipelineSpec {
        pipeline: PipelineName("orders".into()),
        description: None,
        owner: None,
        docs: None,
        timezone: "UTC".into(),
        triggers: Vec::new(),
        catch_up: CatchUp::default(),
        concurrency: Concurrency::default(),
        params: IndexMap::new(),
        connections: IndexMap::new(),
        sources: IndexMap::from([(
            NodeName::new("orders"),
            Source::Database(DatabaseSource {
                connection: sqlite("source.db"),
                table: Some(TemplateText::new("orders")),
                query: None,
                incremental: None,
            }),
        )]),
        transforms: IndexMap::from([(
            NodeName::new("positive"),
            Transform {
                inputs: Vec::new(),
                operator: Operator::Sql(TemplateText::new(
                    "SELECT id, amount FROM orders WHERE id > 0",
                )),
            },
        )]),
        sinks: IndexMap::from([(
            NodeName::new("kept"),
            sink("kept", WriteMode::Append, CommitMode::Batch),
        )]),
        retry: RetryPolicy::default(),
        checkpoint: CheckpointPolicy::default(),
        checks: Vec::new(),
        alerts: Vec::new(),
        tests: Vec::new(),
    }
}

/// And a second sink that replaces all rows at once.
fn spec_with_two_sinks() -> PipelineSpec {
    let mut spec = spec();
    let shown = sink("shown", WriteMode::Replace, CommitMode::Run);
    spec.sinks.insert(NodeName::new("shown"), shown);
    spec
}

const ALL: (i64, i64, i64) = (ROWS, ROWS, ROWS * (ROWS + 1) / 2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_moves_every_row_and_proves_it() {
    let place = Place::new().await;
    let summary = place.run(&spec_with_two_sinks()).await.expect("the run succeeds");
    assert_eq!(summary.status, RunStatus::Succeeded);
    assert_eq!(summary.rows_read, ROWS.cast_unsigned());
    assert_eq!(summary.rows_written[&NodeName::new("kept")], ROWS.cast_unsigned());
    assert_eq!(place.target("kept").await, ALL);
    assert_eq!(place.target("shown").await, ALL);
    place.assert_clean(&summary.run).await;
    let runs = history::runs(&place.state()).await.expect("the ledger can be read");
    assert_eq!(runs, std::slice::from_ref(&summary));
    assert!(!place.state().join("orders/runs").join(&summary.run).join("exchange").exists());

    let again = place.run(&spec_with_two_sinks()).await.expect("a new run");
    assert_ne!(again.run, summary.run, "a succeeded run is not taken up again");
    assert_eq!(place.target("kept").await.0, 2 * ROWS);
    assert_eq!(place.target("shown").await, ALL, "replaced");
}

/// Drops the engine's work at the `batches`-th commit, as a crash would; `None` when the run ended
/// before.
async fn crash_after(place: &Place, spec: &PipelineSpec, batches: usize) -> Option<()> {
    let (events, mut received) = mpsc::unbounded_channel();
    let engine = place.engine().await;
    let running = engine.run(spec, "", RunRequest::default(), events, CancellationToken::new());
    let crash = async {
        let mut seen = 0;
        while let Some(event) = received.recv().await {
            if matches!(event, RunEvent::Progress(ProgressEvent::BatchCommitted { .. })) {
                seen += 1;
                if seen >= batches {
                    return;
                }
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        result = running => {
            result.expect("the run succeeds");
            None
        }
        () = crash => Some(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_crashes_again_and_again_ends_with_every_row_once() {
    let place = Place::new().await;
    let spec = spec_with_two_sinks();
    let mut crashes = 0;
    while crash_after(&place, &spec, 1 + crashes % 4).await.is_some() {
        crashes += 1;
        assert!(crashes < 200, "no progress is kept");
    }
    assert!(crashes > 2, "the run ended too early to be disturbed");
    assert_eq!(place.target("kept").await, ALL);
    assert_eq!(place.target("shown").await, ALL);
    let runs = history::runs(&place.state()).await.expect("the ledger can be read");
    assert_eq!(runs.len(), 1, "one run, resumed");
    assert_eq!(usize::try_from(runs[0].sessions).ok(), Some(crashes + 1));
    place.assert_clean(&runs[0].run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_is_interrupted_and_goes_on_when_run_again() {
    let place = Place::new().await;
    let (events, mut received) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let engine = place.engine().await;
    let (spec, stopper) = (spec(), stop.clone());
    let running = engine.run(&spec, "", RunRequest::default(), events, stop);
    let watching = async move {
        while let Some(event) = received.recv().await {
            if matches!(event, RunEvent::Progress(ProgressEvent::BatchCommitted { .. })) {
                stopper.cancel();
            }
        }
    };
    let (result, ()) = tokio::join!(running, watching);
    let Err(EngineError::Stopped { run }) = result else { panic!("not stopped: {result:?}") };
    let shown = history::run(&place.state(), &run[..13]).await.expect("found by its beginning");
    assert_eq!(shown.summary.status, RunStatus::Interrupted);
    assert!(place.target("kept").await.0 < ROWS);

    let mut changed = spec.clone();
    changed.sinks[0].batch_rows = NonZeroU64::new(301).expect("not zero");
    let refused = place.run(&changed).await.expect_err("the pipeline has changed");
    assert!(matches!(&refused, EngineError::Refused(text) if text.contains(&run)), "{refused}");

    let resumed = place.run(&spec).await.expect("the run succeeds");
    assert_eq!(resumed.run, run);
    assert_eq!(place.target("kept").await, ALL);
    place.assert_clean(&run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_source_is_read_from_where_the_last_run_committed() {
    let place = Place::new().await;
    let mut spec = spec();
    let Source::Database(orders) = &mut spec.sources[0] else { panic!("a database") };
    orders.incremental =
        Some(Incremental { cursor: "id".into(), param: None, initial: None, lag: None });
    place.run(&spec).await.expect("the first run");
    let orders = NodeName::new("orders");
    let watermarks = history::watermarks(&place.state(), "orders").await.expect("known");
    assert_eq!(watermarks[&orders], ROWS.to_string());

    place.add_rows(ROWS + 1, ROWS + 10).await;
    let second = place.run(&spec).await.expect("the second run");
    assert_eq!(second.rows_read, 10);
    assert_eq!(place.target("kept").await.0, ROWS + 10);
    place.assert_clean(&second.run).await;

    history::set_watermark(&place.state(), "orders", &orders, "150008").await.expect("idle");
    assert_eq!(place.run(&spec).await.expect("the third run").rows_read, 2);
    history::reset_watermark(&place.state(), "orders", None).await.expect("idle");
    assert_eq!(place.run(&spec).await.expect("the fourth run").rows_read, 150_010);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_waits_for_the_one_that_is_going_on_or_is_skipped() {
    let place = Place::new().await;
    let dir = StateDir::new(place.state()).pipeline(&PipelineName("orders".into()));
    let lock = PipelineLock::try_acquire(&dir).expect("writable").expect("free");
    let mut skipping = spec();
    skipping.concurrency.on_overlap = OnOverlap::Skip;
    let skipped = place.run(&skipping).await.expect("skipping is no failure");
    assert_eq!(skipped.status, RunStatus::Skipped);

    let (events, mut received) = mpsc::unbounded_channel();
    let (engine, queued) = (place.engine().await, spec());
    let running = engine.run(&queued, "", RunRequest::default(), events, CancellationToken::new());
    let releasing = async move {
        let waiting = received.recv().await;
        assert!(matches!(waiting, Some(RunEvent::Waiting { .. })), "{waiting:?}");
        drop(lock);
        while received.recv().await.is_some() {}
    };
    let (result, ()) = tokio::join!(running, releasing);
    assert_eq!(result.expect("its turn has come").status, RunStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_cannot_start_is_kept_as_failed_and_the_next_one_is_new() {
    let place = Place::new().await;
    let mut broken = spec();
    let Source::Database(orders) = &mut broken.sources[0] else { panic!("a database") };
    orders.table = Some(TemplateText::new("missing"));
    let failed = place.run(&broken).await.expect_err("there is no such table");
    let EngineError::RunFailed { run, message, .. } = failed else {
        panic!("not failed: {failed}")
    };
    assert!(message.contains("orders") && message.contains("missing"), "{message}");
    let shown = history::run(&place.state(), &run).await.expect("known");
    assert_eq!(shown.summary.status, RunStatus::Failed);
    assert_eq!(shown.summary.error, Some(message));
    assert_ne!(place.run(&spec()).await.expect("mended").run, run);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planning_alone_leaves_nothing_behind() {
    let place = Place::new().await;
    let engine = place.engine().await;
    let graph = engine.plan(&spec(), RunRequest::default()).await.expect("it can be planned");
    assert!(graph.stages.iter().any(|stage| stage.name == "kept"));
    assert!(!place.state().exists());
    assert!(!place.0.path().join("target.db").exists());
}

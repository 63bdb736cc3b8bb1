//! SQLite against the conformance suites, and what is special about it.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array,
    RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::SqliteArguments;
use weir_spec::{
    CommitMode, Connection, ConnectionRef, InputRef, MissingColumns, NewColumns, NodeName,
    SchemaPolicy, SinkTarget, TableTarget, TemplateText, TypeChanges, WriteMode,
};

use super::connect::Database;
use crate::sink_conformance::{
    SinkUnderTest, TestRow, check_sink, test_batch, test_identity, test_rows,
};
use crate::{
    ConnectorContext, ConnectorError, ErrorKind, Manifest, PreparedSink, Redactor, Secrets, Sink,
    SinkTask,
};

fn context() -> ConnectorContext {
    ConnectorContext::new("/", Secrets::default(), Redactor::default())
}

fn connection(path: &Path) -> ConnectionRef {
    let path = TemplateText::new(path.to_str().expect("temporary paths are UTF-8"));
    let config = Connection::Sqlite(weir_spec::SqliteConnection { path, max_tasks: None });
    ConnectionRef { name: Some("db".to_owned()), config }
}

fn table_sink(
    path: &Path,
    mode: WriteMode,
    commit: CommitMode,
    policy: SchemaPolicy,
) -> Arc<dyn Sink> {
    let target = TableTarget { connection: connection(path), table: TemplateText::new("out") };
    let sink = weir_spec::Sink {
        inputs: vec![InputRef { node: NodeName::new("in"), errors: false }],
        target: SinkTarget::Table(target),
        mode,
        key: vec!["id".to_owned()],
        commit,
        batch_rows: NonZeroU64::new(1000).expect("not zero"),
        schema: policy,
    };
    crate::registry::open_sink("out", &sink, &context()).expect("the sink is well configured")
}

/// A temporary database, read and written beside the sink.
struct TestDatabase {
    folder: tempfile::TempDir,
}

impl TestDatabase {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder can be made") }
    }
    fn path(&self) -> PathBuf {
        self.folder.path().join("test.db")
    }
    fn database(&self) -> Database {
        Database { path: self.path() }
    }
    async fn execute(&self, sql: &str) {
        let mut transaction = self.database().begin().await.expect("can be written");
        transaction.session.execute("set up", sql).await.expect("is SQL");
        transaction.commit().await.expect("can be committed");
    }
    /// Rows of a query as text, with `NULL` and blobs as SQLite's `quote` writes them.
    async fn texts(&self, sql: &str) -> Vec<String> {
        let mut session = self.database().read().await.expect("can be read");
        let rows = session.fetch("read", sql, SqliteArguments::default()).await.expect("is SQL");
        rows.iter().map(|row| row.get(0)).collect()
    }
}

struct TableUnderTest {
    database: TestDatabase,
    mode: WriteMode,
    commit: CommitMode,
}

#[async_trait]
impl SinkUnderTest for TableUnderTest {
    fn mode(&self) -> WriteMode {
        self.mode
    }
    fn open(&self) -> Arc<dyn Sink> {
        table_sink(&self.database.path(), self.mode, self.commit, SchemaPolicy::default())
    }
    async fn visible(&self) -> Vec<TestRow> {
        let mut session = self.database.database().read().await.expect("can be read");
        let sql = "SELECT id, label FROM out";
        match session.fetch("read", sql, SqliteArguments::default()).await {
            Ok(rows) => rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
                Vec::new()
            }
        }
    }
    async fn leftovers(&self) -> Vec<String> {
        let sql = "SELECT name FROM sqlite_schema WHERE name LIKE '%\\_\\_weir%' ESCAPE '\\'";
        let mut found = self.database.texts(sql).await;
        for entry in std::fs::read_dir(self.database.folder.path()).expect("can be listed") {
            let name = entry.expect("can be listed").file_name().to_string_lossy().into_owned();
            if !name.starts_with("test.db") {
                found.push(name);
            }
        }
        found
    }
}

async fn check_table(mode: WriteMode, commit: CommitMode) {
    check_sink(&|| {
        Box::pin(async move {
            let target = TableUnderTest { database: TestDatabase::new(), mode, commit };
            Box::new(target) as Box<dyn SinkUnderTest>
        })
    })
    .await;
}

#[tokio::test]
async fn appended_batches_conform() {
    check_table(WriteMode::Append, CommitMode::Batch).await;
}

#[tokio::test]
async fn appended_runs_conform() {
    check_table(WriteMode::Append, CommitMode::Run).await;
}

#[tokio::test]
async fn upserted_batches_conform() {
    check_table(WriteMode::Upsert, CommitMode::Batch).await;
}

#[tokio::test]
async fn upserted_runs_conform() {
    check_table(WriteMode::Upsert, CommitMode::Run).await;
}

#[tokio::test]
async fn replacements_conform() {
    check_table(WriteMode::Replace, CommitMode::Run).await;
}

/// Writes one batch as run `r1`.
async fn write_batch(
    sink: &Arc<dyn Sink>,
    rows: &RecordBatch,
) -> Result<(PreparedSink, Vec<Manifest>), ConnectorError> {
    let prepared = sink.prepare(&test_identity("r1", 1), &rows.schema()).await?;
    let task = SinkTask {
        prepared: prepared.clone(),
        epoch: 1,
        slice: 0,
        attempt: 1,
        schema: rows.schema(),
    };
    let mut writer = sink.writer(task).await?;
    writer.write(rows.clone()).await?;
    let manifest = writer.stage(0, rows.num_rows() as u64, 0).await?;
    writer.publish(&manifest).await?;
    if sink.commit_mode() == CommitMode::Run {
        sink.commit_run(&prepared, std::slice::from_ref(&manifest), 1).await?;
    }
    Ok((prepared, vec![manifest]))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .expect("the columns fit")
}

fn rich_batch() -> RecordBatch {
    let amounts = Decimal128Array::from(vec![Some(-120_507), None])
        .with_precision_and_scale(12, 2)
        .expect("fits");
    let exact = Decimal128Array::from(vec![Some(12_345_678_901_234_567_890_123), None])
        .with_precision_and_scale(30, 5)
        .expect("fits");
    let at = TimestampMicrosecondArray::from(vec![Some(1_700_000_000_000_001), None]);
    batch(vec![
        ("id", Arc::new(Int64Array::from(vec![1, 2]))),
        ("flag", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("ratio", Arc::new(Float64Array::from(vec![Some(0.1), None]))),
        ("amount", Arc::new(amounts)),
        ("exact", Arc::new(exact)),
        ("day", Arc::new(Date32Array::from(vec![Some(19_000), None]))),
        ("at", Arc::new(at.clone())),
        ("at_utc", Arc::new(at.with_timezone("UTC"))),
        ("name", Arc::new(StringArray::from(vec![Some("007"), None]))),
        ("raw", Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\x00\xff"), None]))),
    ])
}

#[tokio::test]
async fn every_type_is_stored_as_documented() {
    let database = TestDatabase::new();
    for (mode, commit) in [
        (WriteMode::Append, CommitMode::Batch),
        (WriteMode::Upsert, CommitMode::Run),
        (WriteMode::Replace, CommitMode::Run),
    ] {
        let sink = table_sink(&database.path(), mode, commit, SchemaPolicy::default());
        write_batch(&sink, &rich_batch()).await.expect("every type can be written");
        let sql = "SELECT concat_ws(' | ', quote(id), quote(flag), quote(ratio), quote(amount), \
                   quote(exact), quote(day), quote(at), quote(at_utc), quote(name), quote(raw)) \
                   FROM out ORDER BY id";
        assert_eq!(
            database.texts(sql).await,
            [
                "1 | 1 | 0.1 | -1205.07 | '123456789012345678.90123' | '2022-01-08' | \
                 '2023-11-14 22:13:20.000001' | '2023-11-14 22:13:20.000001+00:00' | '007' | X'00FF'",
                "2 | NULL | NULL | NULL | NULL | NULL | NULL | NULL | NULL | NULL",
            ]
        );
        database.execute("DROP TABLE out").await;
        database.execute("DELETE FROM _weir_ledger").await;
    }
}

#[tokio::test]
async fn the_schema_policy_decides_about_differing_columns() {
    let rows = batch(vec![
        ("id", Arc::new(Int64Array::from(vec![1]))),
        ("label", Arc::new(Int64Array::from(vec![7]))),
        ("extra", Arc::new(Float64Array::from(vec![2.5]))),
    ]);
    let policy = |new_columns, type_changes, missing_columns| SchemaPolicy {
        new_columns,
        type_changes,
        missing_columns,
    };
    use MissingColumns::FillNull;
    let refused = [
        (policy(NewColumns::Fail, TypeChanges::Cast, FillNull), "has no column `extra`"),
        (policy(NewColumns::Add, TypeChanges::Fail, FillNull), "column `label` of table `out`"),
        (
            policy(NewColumns::Add, TypeChanges::Cast, MissingColumns::Fail),
            "the rows have no column `other`",
        ),
    ];
    for mode in [WriteMode::Append, WriteMode::Replace] {
        let database = TestDatabase::new();
        database.execute("CREATE TABLE out (id INTEGER, label TEXT, other TEXT)").await;
        for (policy, message) in refused {
            let sink = table_sink(&database.path(), mode, CommitMode::Batch, policy);
            let error = write_batch(&sink, &rows).await.expect_err("the policy says so");
            assert_eq!(error.kind, ErrorKind::Config);
            assert!(error.message.contains(message), "{error}");
        }
        assert_eq!(database.texts("SELECT name FROM sqlite_schema").await, ["out"]);
        for (new_columns, expected) in
            [(NewColumns::Ignore, "1|7|text|"), (NewColumns::Add, "1|7|text|2.5")]
        {
            let policy = policy(new_columns, TypeChanges::Cast, FillNull);
            let sink = table_sink(&database.path(), mode, CommitMode::Batch, policy);
            write_batch(&sink, &rows).await.expect("the policy allows it");
            let extra = if new_columns == NewColumns::Add { "extra" } else { "''" };
            let sql = format!("SELECT id||'|'||label||'|'||typeof(label)||'|'||{extra} FROM out");
            assert_eq!(database.texts(&sql).await, [expected]);
            database.execute("DELETE FROM out").await;
            database.execute("DELETE FROM _weir_ledger").await;
        }
    }
}

#[tokio::test]
async fn values_that_do_not_fit_are_errors_that_name_the_column() {
    let database = TestDatabase::new();
    database.execute("CREATE TABLE out (id INTEGER, n INTEGER)").await;
    let cast = SchemaPolicy { type_changes: TypeChanges::Cast, ..SchemaPolicy::default() };
    let sink = table_sink(&database.path(), WriteMode::Append, CommitMode::Batch, cast);
    let columns: [(ArrayRef, &str); 3] = [
        (Arc::new(StringArray::from(vec!["12", "x"])), "column `n`"),
        (Arc::new(Float64Array::from(vec![1.0, 1.5])), "1.5 is not an integer"),
        (Arc::new(UInt64Array::from(vec![1, u64::MAX])), "18446744073709551615"),
    ];
    for (array, message) in columns {
        let rows = batch(vec![("id", Arc::new(Int64Array::from(vec![1, 2]))), ("n", array)]);
        let error = write_batch(&sink, &rows).await.expect_err("a value does not fit");
        assert_eq!(error.kind, ErrorKind::Data);
        assert!(error.message.contains(message) && error.message.contains("column `n`"), "{error}");
    }
    assert_eq!(database.texts("SELECT count(*) || '' FROM out").await, ["0"]);
    let sink = table_sink(&database.path(), WriteMode::Upsert, CommitMode::Batch, cast);
    let rows = batch(vec![("id", Arc::new(Int64Array::from(vec![Some(1), None])))]);
    let error = write_batch(&sink, &rows).await.expect_err("a key is null");
    assert!(error.message.contains("key column `id`"), "{error}");
}

#[tokio::test]
async fn replacing_keeps_constraints_indexes_and_views() {
    let database = TestDatabase::new();
    for sql in [
        "CREATE TABLE \"out\" (id INTEGER PRIMARY KEY, label TEXT DEFAULT 'none' CHECK (label <> 'bad'))",
        "CREATE INDEX by_label ON out (label)",
        "CREATE VIEW seen AS SELECT count(*) AS n FROM out",
        "INSERT INTO out VALUES (1, 'old')",
    ] {
        database.execute(sql).await;
    }
    let open = || {
        let policy = SchemaPolicy::default();
        table_sink(&database.path(), WriteMode::Replace, CommitMode::Run, policy)
    };
    let bad = test_batch(&[(5, Some("bad".to_owned()))]);
    let error = write_batch(&open(), &bad).await.expect_err("the constraint is kept");
    assert_eq!(error.kind, ErrorKind::Data);
    assert!(error.message.contains("constraint"), "{error}");
    assert_eq!(database.texts("SELECT label FROM out").await, ["old"]);
    write_batch(&open(), &test_batch(&test_rows(10, 7))).await.expect("can be replaced");
    assert_eq!(database.texts("SELECT n || '' FROM seen").await, ["7"]);
    let sql = "SELECT name FROM sqlite_schema WHERE tbl_name = 'out' ORDER BY name";
    assert_eq!(database.texts(sql).await, ["by_label", "out"]);
}

#[tokio::test]
async fn slices_written_at_once_all_arrive() {
    let database = TestDatabase::new();
    let policy = SchemaPolicy::default();
    let sink = table_sink(&database.path(), WriteMode::Append, CommitMode::Batch, policy);
    let rows = test_batch(&[]);
    let prepared =
        sink.prepare(&test_identity("r1", 1), &rows.schema()).await.expect("can be prepared");
    let mut tasks = Vec::new();
    for slice in 0..8u32 {
        let task = SinkTask {
            prepared: prepared.clone(),
            epoch: 1,
            slice,
            attempt: 1,
            schema: rows.schema(),
        };
        let sink = sink.clone();
        tasks.push(tokio::spawn(async move {
            let mut writer = sink.writer(task).await.expect("a writer");
            for sequence in 0..5u64 {
                let first = i64::from(slice) * 10_000 + sequence as i64 * 1000;
                writer.write(test_batch(&test_rows(first, 300))).await.expect("written");
                let manifest = writer.stage(sequence, 300, 0).await.expect("staged");
                writer.publish(&manifest).await.expect("published");
            }
        }));
    }
    for task in tasks {
        task.await.expect("no writer fails");
    }
    let sql = "SELECT count(*) || '|' || count(DISTINCT id) FROM out";
    assert_eq!(database.texts(sql).await, ["12000|12000"]);
}

#[tokio::test]
async fn unusable_databases_are_told_apart() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let text = folder.path().join("text.db");
    std::fs::write(&text, "this is no database, it is a longer text\n".repeat(40))
        .expect("written");
    let policy = SchemaPolicy::default();
    let rows = test_batch(&test_rows(0, 3));
    let sink = table_sink(&text, WriteMode::Append, CommitMode::Batch, policy);
    let error = write_batch(&sink, &rows).await.expect_err("a text is no database");
    assert_eq!(error.kind, ErrorKind::Data, "{error}");
    assert!(error.message.contains("not a SQLite database"), "{error}");
    let missing = Database { path: folder.path().join("missing.db") };
    let error = missing.read().await.expect_err("the file is missing");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
}

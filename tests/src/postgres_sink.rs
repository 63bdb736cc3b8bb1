//! The PostgreSQL sink against a real server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{
    ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampNanosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _};
use sqlx::Row as _;
use weir_connectors::sink_conformance::{SinkUnderTest, TestRow, check_sink, test_identity};
use weir_connectors::{
    ConnectorContext, ConnectorError, ErrorKind, Manifest, PreparedSink, Recovery, Redactor,
    ScanRequest, Secrets, Sink, SinkTask, SinkWriter, registry,
};
use weir_spec::{
    CommitMode, Connection, ConnectionRef, DatabaseSource, MissingColumns, NewColumns,
    PostgresConnection, SchemaPolicy, SinkTarget, TableTarget, TemplateText, TypeChanges,
    WriteMode,
};

use crate::postgres::{PostgresServer, connect, execute};

fn context() -> ConnectorContext {
    ConnectorContext::new("/", Secrets::default(), Redactor::default())
}

fn connection(url: &str) -> ConnectionRef {
    ConnectionRef {
        name: Some("db".to_owned()),
        config: Connection::Postgres(PostgresConnection {
            url: TemplateText::new(url),
            max_tasks: None,
        }),
    }
}

fn node(url: &str, mode: WriteMode, commit: CommitMode) -> weir_spec::Sink {
    weir_spec::Sink {
        inputs: Vec::new(),
        target: SinkTarget::Table(TableTarget {
            connection: connection(url),
            table: TemplateText::new("public.target"),
        }),
        mode,
        key: if mode == WriteMode::Upsert { vec!["id".to_owned()] } else { Vec::new() },
        commit,
        batch_rows: std::num::NonZeroU64::new(1000).expect("not zero"),
        schema: SchemaPolicy::default(),
    }
}

fn open_node(node: &weir_spec::Sink) -> Arc<dyn Sink> {
    registry::open_sink("out", node, &context()).expect("the node is right")
}

fn open(url: &str, mode: WriteMode, commit: CommitMode) -> Arc<dyn Sink> {
    open_node(&node(url, mode, commit))
}

async fn database(name: &str, sql: &str) -> String {
    let url = PostgresServer::shared().create_database(name).await;
    execute(&mut connect(&url).await, sql).await;
    url
}

async fn texts(url: &str, sql: &str) -> Vec<String> {
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned()))
        .fetch_all(&mut connect(url).await)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, array)| (name, array, true)),
    )
    .expect("columns are equally long")
}

fn rows(ids: impl IntoIterator<Item = i64>, label: &str) -> RecordBatch {
    let ids: Vec<i64> = ids.into_iter().collect();
    let labels: StringArray = ids.iter().map(|_| Some(label)).collect();
    batch(vec![("id", Arc::new(Int64Array::from(ids))), ("label", Arc::new(labels))])
}

fn task(prepared: &PreparedSink, slice: u32, batch: &RecordBatch) -> SinkTask {
    SinkTask {
        prepared: prepared.clone(),
        epoch: prepared.identity.epoch,
        slice,
        attempt: 1,
        schema: batch.schema(),
    }
}

/// Prepares a run and stages one batch of slice 0.
async fn stage(
    sink: &dyn Sink,
    run: &str,
    batch: &RecordBatch,
) -> Result<(PreparedSink, Box<dyn SinkWriter>, Manifest), ConnectorError> {
    let prepared = sink.prepare(&test_identity(run, 1), &batch.schema()).await?;
    let mut writer = sink.writer(task(&prepared, 0, batch)).await?;
    writer.write(batch.clone()).await?;
    let manifest = writer.stage(0, batch.num_rows() as u64, 7).await?;
    Ok((prepared, writer, manifest))
}

/// A whole run of one batch.
async fn load(
    sink: &dyn Sink,
    run: &str,
    batch: &RecordBatch,
) -> Result<PreparedSink, ConnectorError> {
    let (prepared, mut writer, manifest) = stage(sink, run, batch).await?;
    writer.publish(&manifest).await?;
    drop(writer);
    if sink.commit_mode() == CommitMode::Run {
        sink.commit_run(&prepared, &[manifest], 1).await?;
    }
    sink.clean_up(&prepared, 1).await?;
    Ok(prepared)
}

struct Conformance {
    url: String,
    mode: WriteMode,
    commit: CommitMode,
}

#[async_trait]
impl SinkUnderTest for Conformance {
    fn mode(&self) -> WriteMode {
        self.mode
    }
    fn open(&self) -> Arc<dyn Sink> {
        open(&self.url, self.mode, self.commit)
    }
    async fn visible(&self) -> Vec<TestRow> {
        let mut connection = connect(&self.url).await;
        let exists: bool = sqlx::query_scalar("SELECT to_regclass('public.target') IS NOT NULL")
            .fetch_one(&mut connection)
            .await
            .expect("the catalogue can be read");
        if !exists {
            return Vec::new();
        }
        sqlx::query("SELECT id, label FROM public.target")
            .fetch_all(&mut connection)
            .await
            .expect("the target can be read")
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect()
    }
    async fn leftovers(&self) -> Vec<String> {
        texts(
            &self.url,
            "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relname LIKE '\\_weir\\_%' \
             AND relname NOT IN ('_weir_ledger', '_weir_fence', '_weir_attempts')",
        )
        .await
    }
}

async fn conforms(mode: WriteMode, commit: CommitMode, setup: &'static str) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let make = move || {
        async move {
            let name = format!("conformance_{}", COUNT.fetch_add(1, Ordering::Relaxed));
            let url = database(&name, setup).await;
            let target: Box<dyn SinkUnderTest> = Box::new(Conformance { url, mode, commit });
            target
        }
        .boxed()
    };
    check_sink(&make).await;
}

#[tokio::test]
async fn append_by_batch_conforms() {
    conforms(WriteMode::Append, CommitMode::Batch, "").await;
}

#[tokio::test]
async fn append_by_run_conforms() {
    conforms(WriteMode::Append, CommitMode::Run, "").await;
}

#[tokio::test]
async fn upsert_by_batch_conforms() {
    conforms(WriteMode::Upsert, CommitMode::Batch, "").await;
}

#[tokio::test]
async fn upsert_by_run_conforms() {
    conforms(WriteMode::Upsert, CommitMode::Run, "").await;
}

#[tokio::test]
async fn replace_by_swap_conforms() {
    conforms(WriteMode::Replace, CommitMode::Run, "").await;
}

#[tokio::test]
async fn replace_of_a_table_with_a_view_conforms() {
    let setup = "CREATE TABLE target (id int8 PRIMARY KEY, label text);
                 CREATE VIEW seen AS SELECT * FROM target";
    conforms(WriteMode::Replace, CommitMode::Run, setup).await;
}

#[tokio::test]
async fn append_with_columns_that_have_no_binary_form_conforms() {
    // An unknown type travels as text and is cast by the server.
    let setup = "CREATE TABLE target (id int8, label text, at inet DEFAULT '::1')";
    conforms(WriteMode::Append, CommitMode::Batch, setup).await;
}

const ALL_TYPES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE DOMAIN price AS numeric(8,2) CHECK (VALUE >= 0);
    CREATE TABLE origin (id int8, b bool, i2 int2, i4 int4, f4 float4, f8 float8, n numeric(12,3),
      n38 numeric(38,38), free numeric, wide numeric(50,2), s text, v varchar(5), c char(4),
      nm name, by bytea, d date, tm time, tz timetz, ts timestamp, tsz timestamptz, iv interval,
      u uuid, j json, jb jsonb, x xml, m mood, p price, ip inet, r int4range, oi oid, money money,
      bits varbit, tags text[], nums numeric(5,1)[], days date[], ips inet[], us uuid[], moods mood[]);
    INSERT INTO origin SELECT 1, true, -32768, -2147483648, 'NaN', '-Infinity', 999999999.999,
      0.99999999999999999999999999999999999999, -99999999999999999999999999999.999999999,
      12345678901234567890123456789.25, E'é\\n\\t\"\\\\', 'abcde', 'ab', 'name', '\\x00ff', '4713-01-01 BC',
      '00:00', '12:00+02', '4713-01-01 00:00:00 BC', '294246-01-01', '1 mon -2 days 03:04:05.5',
      'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{\"a\":  1}', '{\"b\": 2}', '<a/>', 'glad', 3.50,
      '10.0.0.1/8', '[1,5)', 4294967295, '12.34', B'101', '{a,NULL,\"c d\",\"\"}', '{1.5,-2}',
      '{2000-01-01}', '{::1}', '{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}', '{sad,glad}';
    INSERT INTO origin (id) VALUES (2);
    INSERT INTO origin (id, tags, i2, i4, f4, f8, n, free, s, by, d, ts) VALUES
      (3, '{}', 32767, 2147483647, '-0', 'Infinity', -0.001, 0.000000001, '', '', '5874897-12-31',
       '2000-01-01 00:00:00.000001');
    CREATE TABLE target (LIKE origin);";

#[tokio::test]
async fn every_type_arrives_as_it_was() {
    for (name, mode, commit) in [
        ("round_append", WriteMode::Append, CommitMode::Batch),
        ("round_direct", WriteMode::Append, CommitMode::Batch),
        ("round_swap", WriteMode::Replace, CommitMode::Run),
        ("round_upsert", WriteMode::Upsert, CommitMode::Batch),
        ("round_run", WriteMode::Append, CommitMode::Run),
        ("round_replace", WriteMode::Replace, CommitMode::Run),
    ] {
        let url = database(name, ALL_TYPES).await;
        if matches!(name, "round_direct" | "round_swap") {
            // The types that travel as text keep the others from going straight into the table.
            let drop = ["wide", "tz", "iv", "ip", "r", "money", "bits", "ips"]
                .map(|column| format!("DROP {column}"))
                .join(", ");
            for table in ["origin", "target"] {
                execute(&mut connect(&url).await, &format!("ALTER TABLE {table} {drop}")).await;
            }
        }
        if mode == WriteMode::Upsert {
            execute(&mut connect(&url).await, "ALTER TABLE target ADD PRIMARY KEY (id)").await;
        }
        let source = weir_spec::Source::Database(DatabaseSource {
            connection: connection(&url),
            table: Some(TemplateText::new("origin")),
            query: None,
            incremental: None,
        });
        let source = registry::open_source("src", &source, &context()).expect("the node is right");
        let request = ScanRequest::default();
        let splits = source.splits(&request, 1).await.expect("the table is there");
        let mut stream = source.open(&splits[0], &request, None).await.expect("readable");
        let rows = stream.next().await.expect("rows").expect("readable").rows;
        assert_eq!(rows.num_rows(), 3);
        let sink = open(&url, mode, commit);
        load(&*sink, "r1", &rows).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        let differing = texts(
            &url,
            "(SELECT o::text FROM origin o EXCEPT ALL SELECT t::text FROM target t) UNION ALL \
             (SELECT t::text FROM target t EXCEPT ALL SELECT o::text FROM origin o)",
        )
        .await;
        assert_eq!(differing, Vec::<String>::new(), "{name}");
    }
}

#[tokio::test]
async fn a_missing_table_is_made_for_the_rows() {
    let url = database("sink_create", "").await;
    let fields = vec![
        Field::new("id", DataType::Int64, false),
        Field::new("at", DataType::Timestamp(arrow::datatypes::TimeUnit::Nanosecond, None), true),
        Field::new("doc", DataType::Utf8, true)
            .with_metadata([("weir.type".to_owned(), "json".to_owned())].into()),
        Field::new(
            "point",
            DataType::Struct(vec![Field::new("x", DataType::Float64, true)].into()),
            true,
        ),
    ];
    let point = arrow::array::StructArray::from(vec![(
        Arc::new(Field::new("x", DataType::Float64, true)),
        Arc::new(Float64Array::from(vec![Some(1.5), None])) as ArrayRef,
    )]);
    let rows = RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        vec![
            Arc::new(Int64Array::from(vec![1, 2])),
            Arc::new(TimestampNanosecondArray::from(vec![Some(1_999), None])),
            Arc::new(StringArray::from(vec![Some("{\"a\": [1]}"), None])),
            Arc::new(point),
        ],
    )
    .expect("columns fit");
    let sink = open(&url, WriteMode::Upsert, CommitMode::Batch);
    let prepared = load(&*sink, "r1", &rows).await.expect("the table is made");
    assert_eq!(prepared.notes, ["created table public.target"]);
    assert_eq!(
        texts(&url, "SELECT t::text FROM target t ORDER BY id").await,
        [
            "(1,\"1970-01-01 00:00:00.000001\",\"{\"\"a\"\": [1]}\",\"{\"\"x\"\": 1.5}\")",
            "(2,,,\"{\"\"x\"\": null}\")"
        ]
    );
    assert_eq!(
        texts(
            &url,
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute \
             WHERE attrelid = 'target'::regclass AND attnum > 0 ORDER BY attnum"
        )
        .await,
        ["bigint", "timestamp without time zone", "jsonb", "jsonb"]
    );
}

#[tokio::test]
async fn the_schema_policy_decides_before_the_first_row() {
    let url = database("sink_policy", "").await;
    let mut connection = connect(&url).await;
    let rows = rows([1], "x");
    let lenient = SchemaPolicy {
        new_columns: NewColumns::Add,
        type_changes: TypeChanges::Cast,
        missing_columns: MissingColumns::FillNull,
    };
    let strict = SchemaPolicy { missing_columns: MissingColumns::Fail, ..SchemaPolicy::default() };
    let ignoring = SchemaPolicy { new_columns: NewColumns::Ignore, ..SchemaPolicy::default() };
    let default = SchemaPolicy::default();
    // (table, policy, words of the error, or the row as text)
    type Expected = Result<&'static str, &'static [&'static str]>;
    let cases: [(&str, SchemaPolicy, Expected); 14] = [
        ("id int8", default, Err(&["\"label\"", "Utf8", "ADD COLUMN", "new_columns: add"])),
        ("id int8", lenient, Ok("(1,x)")),
        ("id int8", ignoring, Ok("(1)")),
        (
            "id int8, label int4",
            default,
            Err(&["\"label\"", "Utf8", "integer", "type_changes: cast"]),
        ),
        (
            "id int4, label text",
            default,
            Err(&["\"id\"", "Int64", "integer", "type_changes: cast"]),
        ),
        ("id int4, label text", lenient, Ok("(1,x)")),
        ("id numeric(19,0), label varchar(9)", default, Ok("(1,x)")),
        ("id numeric(18,0), label text", default, Err(&["numeric(18,0)"])),
        ("id int8, label text, more int", default, Ok("(1,x,)")),
        ("id int8, label text, more int DEFAULT 7", default, Ok("(1,x,7)")),
        ("id int8, label text, more int", strict, Err(&["\"more\"", "fill_null"])),
        ("id int8, label text, more int NOT NULL", default, Err(&["\"more\"", "NOT NULL"])),
        ("id int8, label text GENERATED ALWAYS AS ('g') STORED", default, Err(&["generated"])),
        ("id int8, label text, n int GENERATED ALWAYS AS (3) STORED", strict, Ok("(1,x,3)")),
    ];
    for (index, (columns, policy, expected)) in cases.into_iter().enumerate() {
        execute(
            &mut connection,
            &format!("DROP TABLE IF EXISTS target; CREATE TABLE target ({columns})"),
        )
        .await;
        let node =
            weir_spec::Sink { schema: policy, ..node(&url, WriteMode::Append, CommitMode::Batch) };
        let sink = open_node(&node);
        let prepared = sink.prepare(&test_identity(&format!("r{index}"), 1), &rows.schema()).await;
        match expected {
            Err(words) => {
                let error = prepared.expect_err(columns);
                assert_eq!(error.kind, ErrorKind::Config, "{error}");
                for word in words {
                    assert!(error.message.contains(word), "{columns}: no {word} in: {error}");
                }
            }
            Ok(row) => {
                prepared.unwrap_or_else(|error| panic!("{columns}: {error}"));
                load(&*sink, &format!("r{index}"), &rows)
                    .await
                    .unwrap_or_else(|error| panic!("{columns}: {error}"));
                assert_eq!(texts(&url, "SELECT t::text FROM target t").await, [row], "{columns}");
            }
        }
    }
}

#[tokio::test]
async fn rows_that_do_not_fit_are_errors_that_name_the_column() {
    let url = database(
        "sink_bad_rows",
        "CREATE TABLE target (id int4, label varchar(3) NOT NULL, u uuid, n numeric(4,1), at inet)",
    )
    .await;
    let text = |value: Option<&str>| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
    let good: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int32Array::from(vec![1]))),
        ("label", text(Some("abc"))),
        ("u", text(None)),
        ("n", Arc::new(Float64Array::from(vec![1.0]))),
        ("at", text(Some("::1"))),
    ];
    let cases: [(&str, ArrayRef, &str); 8] = [
        ("id", Arc::new(Int64Array::from(vec![3_000_000_000])), "3000000000"),
        ("label", text(Some("abcd")), "too long"),
        ("label", text(None), "not-null"),
        ("label", text(Some("a\0")), "NUL"),
        ("u", text(Some("not-a-uuid")), "not-a-uuid"),
        ("n", Arc::new(Float64Array::from(vec![99999.0])), "n"),
        ("at", text(Some("1.2.3.4.5")), "1.2.3.4.5"),
        ("n", Arc::new(Float64Array::from(vec![f64::NAN])), "NaN"),
    ];
    for (index, (name, array, reason)) in cases.into_iter().enumerate() {
        let columns = good
            .iter()
            .map(|(column, value)| {
                (*column, if *column == name { array.clone() } else { value.clone() })
            })
            .collect();
        let policy = SchemaPolicy { type_changes: TypeChanges::Cast, ..SchemaPolicy::default() };
        for commit in [CommitMode::Batch, CommitMode::Run] {
            let node = weir_spec::Sink { schema: policy, ..node(&url, WriteMode::Append, commit) };
            let sink = open_node(&node);
            let run = format!("r{index}{commit:?}");
            let rows = batch(Vec::clone(&columns));
            let error = load(&*sink, &run, &rows).await.expect_err(reason);
            assert_eq!(error.kind, ErrorKind::Data, "{name}: {error}");
            assert!(error.message.contains(reason), "{name}: {error}");
            if name != "at" {
                assert!(error.message.contains(&format!("\"{name}\"")), "{name}: {error}");
            }
        }
    }
    assert_eq!(texts(&url, "SELECT t::text FROM target t").await, Vec::<String>::new());
}

#[tokio::test]
async fn upsert_needs_a_unique_index_and_a_key_without_nulls() {
    let url = database("sink_key", "CREATE TABLE target (id int8, label text)").await;
    let sink = open(&url, WriteMode::Upsert, CommitMode::Batch);
    let error = load(&*sink, "r1", &rows([1], "a")).await.expect_err("no index");
    assert_eq!(error.kind, ErrorKind::Config);
    assert!(
        error.message.contains("CREATE UNIQUE INDEX ON \"public\".\"target\" (\"id\")"),
        "{error}"
    );
    execute(&mut connect(&url).await, "CREATE UNIQUE INDEX ON target (id)").await;
    load(&*sink, "r1", &rows([1], "a")).await.expect("the index is there");
    let null_key = batch(vec![
        ("id", Arc::new(Int64Array::from(vec![None, Some(2)]))),
        ("label", Arc::new(StringArray::from(vec!["a", "b"]))),
    ]);
    let error = load(&*sink, "r2", &null_key).await.expect_err("a null key");
    assert_eq!(error.kind, ErrorKind::Data);
    assert!(error.message.contains("\"id\" is null in 1 rows"), "{error}");
}

#[tokio::test]
async fn slices_that_upsert_the_same_keys_do_not_deadlock() {
    let url = database("sink_deadlock", "").await;
    let sink = open(&url, WriteMode::Upsert, CommitMode::Batch);
    let forward = rows(0..2000, "f");
    let prepared =
        sink.prepare(&test_identity("r1", 1), &forward.schema()).await.expect("the table is made");
    let slices = (0..4u32).map(|slice| {
        let (sink, prepared) = (sink.clone(), prepared.clone());
        let batch = if slice % 2 == 0 { forward.clone() } else { rows((0..2000).rev(), "r") };
        tokio::spawn(async move {
            let mut writer = sink.writer(task(&prepared, slice, &batch)).await.expect("prepared");
            for sequence in 0..5 {
                writer.write(batch.clone()).await.expect("writable");
                let manifest = writer.stage(sequence, 2000, 0).await.expect("no deadlock");
                writer.publish(&manifest).await.expect("publishable");
            }
        })
    });
    for slice in futures::future::join_all(slices).await {
        slice.expect("no slice fails");
    }
    assert_eq!(texts(&url, "SELECT count(*)::text FROM target").await, ["2000"]);
}

#[tokio::test]
async fn readers_see_the_old_rows_or_the_new_ones() {
    for (name, setup) in [
        ("replace_swap", "CREATE TABLE target (id int8, label text)"),
        (
            "replace_refill",
            "CREATE TABLE target (id int8, label text); CREATE VIEW seen AS SELECT id FROM target",
        ),
    ] {
        let url = database(name, setup).await;
        execute(
            &mut connect(&url).await,
            "CREATE INDEX target_by_label ON target (label, id); CREATE ROLE reader_of_all;
             GRANT SELECT ON target TO reader_of_all; COMMENT ON TABLE target IS 'keep me'",
        )
        .await;
        let sink = open(&url, WriteMode::Replace, CommitMode::Run);
        load(&*sink, "r1", &rows(0..1000, "old")).await.expect("loadable");
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let reader = tokio::spawn({
            let (url, stop) = (url.clone(), stop.clone());
            async move {
                let mut connection = connect(&url).await;
                let mut seen = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let row = sqlx::query(
                        "SELECT count(*), coalesce(min(label), ''), coalesce(max(label), '') FROM target",
                    )
                    .persistent(false)
                    .fetch_one(&mut connection)
                    .await
                    .expect("readers never fail");
                    seen.push((
                        row.get::<i64, _>(0),
                        row.get::<String, _>(1),
                        row.get::<String, _>(2),
                    ));
                }
                seen
            }
        });
        for round in 0..5 {
            let label = format!("new{round}");
            load(&*sink, &format!("n{round}"), &rows(0..1000, &label)).await.expect("loadable");
        }
        stop.store(true, Ordering::Relaxed);
        for (count, least, greatest) in reader.await.expect("the reader ends well") {
            assert_eq!(count, 1000, "{name}");
            assert_eq!(least, greatest, "{name}");
        }
        assert_eq!(
            texts(
                &url,
                "SELECT obj_description('target'::regclass) || ' ' || \
                 has_table_privilege('reader_of_all', 'target', 'SELECT') || ' ' || \
                 (SELECT string_agg(indexrelid::regclass::text, ',') FROM pg_index \
                  WHERE indrelid = 'target'::regclass)"
            )
            .await,
            ["keep me true target_by_label"],
            "{name}"
        );
        execute(&mut connect(&url).await, "DROP OWNED BY reader_of_all; DROP ROLE reader_of_all")
            .await;
    }
}

#[tokio::test]
async fn the_ledger_decides_when_the_server_crashes_around_a_commit() {
    let server = PostgresServer::start();
    let url = server.create_database("crash").await;
    for (mode, commit) in [
        (WriteMode::Append, CommitMode::Batch),
        (WriteMode::Append, CommitMode::Run),
        (WriteMode::Upsert, CommitMode::Batch),
    ] {
        execute(&mut connect(&url).await, "DROP TABLE IF EXISTS target, _weir_fence").await;
        let sink = open(&url, mode, commit);
        let run = format!("{mode:?}{commit:?}");
        let (prepared, mut writer, manifest) =
            stage(&*sink, &run, &rows(0..10, "a")).await.expect("writable");
        server.restart_after_crash();
        let error = writer.publish(&manifest).await.expect_err("the transaction is gone");
        assert!(error.is_retryable(), "{error}");
        let recovery = sink.recover(&prepared, &manifest, 1, 2).await.expect("the server answers");
        assert_eq!(recovery, Recovery::Lost);

        let identity = test_identity(&run, 2);
        let prepared = sink.prepare(&identity, &rows([], "").schema()).await.expect("prepared");
        let batch = rows(0..10, "a");
        let again = SinkTask { attempt: 2, ..task(&prepared, 0, &batch) };
        let mut writer = sink.writer(again).await.expect("prepared");
        writer.write(batch).await.expect("writable");
        let manifest = writer.stage(0, 10, 7).await.expect("writable");
        writer.publish(&manifest).await.expect("publishable");
        server.restart_after_crash();
        let recovery = sink.recover(&prepared, &manifest, 2, 3).await.expect("the server answers");
        assert_eq!(recovery, Recovery::Published);
        if commit == CommitMode::Run {
            sink.commit_run(&prepared, &[manifest], 3).await.expect("staged rows survive a crash");
        }
        assert_eq!(texts(&url, "SELECT count(*)::text FROM target").await, ["10"], "{run}");
    }
}

#[tokio::test]
async fn recovery_waits_for_a_publication_that_it_cannot_end() {
    let url = database("sink_paused", "").await;
    let sink = open(&url, WriteMode::Append, CommitMode::Batch);
    for (run, end, expected) in
        [("r1", "COMMIT", Recovery::Published), ("r2", "ROLLBACK", Recovery::Lost)]
    {
        let (prepared, writer, manifest) =
            stage(&*sink, run, &rows(0..3, "a")).await.expect("writable");
        drop(writer);
        // As a writer holds it, in a session that is not found by its name.
        let mut paused = connect(&url).await;
        let held = format!(
            "BEGIN; SELECT FROM _weir_attempts WHERE run = '{run}' FOR SHARE; \
             INSERT INTO _weir_ledger SELECT ledger_id, 'conformance', sink, run, slice, 0, 3, 7, 1 \
             FROM _weir_attempts WHERE run = '{run}'"
        );
        execute(&mut paused, &held).await;
        let waiting = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                       AND datname = current_database()";
        let recovering = async {
            tokio::select! {
                early = sink.recover(&prepared, &manifest, 1, 1) => panic!("early: {early:?}"),
                () = async {
                    while texts(&url, waiting).await != ["1"] {
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    }
                } => {}
            }
        };
        recovering.await;
        let (recovery, ()) = futures::future::join(
            sink.recover(&prepared, &manifest, 1, 1),
            execute(&mut paused, end),
        )
        .await;
        assert_eq!(recovery.expect("the server answers"), expected, "{run}");
        // What has been given up is not opened again.
        let batch = rows(0..3, "a");
        let late = sink.writer(task(&prepared, 0, &batch)).await.err().expect("it is over");
        assert_eq!(late.kind, ErrorKind::Fenced, "{late}");
    }
}

/// Forwards to the server; after a client's `COMMIT` it waits until the server has answered, and
/// cuts the connection instead of passing the answer on, or gives another answer.
async fn commit_eater(port: u16, answer: Option<&'static [u8]>) -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let own_port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let has_eaten = Arc::new(std::sync::atomic::AtomicBool::new(false));
        while let Ok((mut client, _)) = listener.accept().await {
            let has_eaten = has_eaten.clone();
            tokio::spawn(async move {
                let mut server =
                    tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("running");
                let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
                let mut is_eating = false;
                loop {
                    tokio::select! {
                        read = client.read(&mut up) => match read {
                            Ok(length) if length > 0 => {
                                if up[..length].windows(7).any(|bytes| bytes == b"COMMIT\0")
                                    && !has_eaten.swap(true, Ordering::SeqCst) {
                                    is_eating = true;
                                }
                                if server.write_all(&up[..length]).await.is_err() { return; }
                            }
                            _ => return,
                        },
                        read = server.read(&mut down) => match (read, answer) {
                            (Ok(length), Some(answer)) if length > 0 && is_eating => {
                                is_eating = false;
                                if client.write_all(answer).await.is_err() { return; }
                            }
                            (Ok(length), _) if length > 0 && !is_eating => {
                                if client.write_all(&down[..length]).await.is_err() { return; }
                            }
                            _ => return,
                        },
                    }
                }
            });
        }
    });
    own_port
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_in_the_ledger() {
    // An ErrorResponse that says statement_completion_unknown, and ReadyForQuery.
    const UNKNOWN: &[u8] = b"E\0\0\0\x23SERROR\0VERROR\0C40003\0Munknown\0\0Z\0\0\0\x05I";
    for (name, answer) in [("lost_answer", None), ("unknown_answer", Some(UNKNOWN))] {
        let server = PostgresServer::shared();
        let url = database(name, "").await;
        // The table and the books are made on a straight connection: those commits must not be eaten.
        let sink = open(&url, WriteMode::Append, CommitMode::Batch);
        let batch = rows(0..10, "a");
        let prepared =
            sink.prepare(&test_identity("r1", 1), &batch.schema()).await.expect("prepared");
        let port = commit_eater(server.port(), answer).await;
        let through = url.replace(&format!(":{}/", server.port()), &format!(":{port}/"));
        let sink = open(&through, WriteMode::Append, CommitMode::Batch);
        let mut writer = sink.writer(task(&prepared, 0, &batch)).await.expect("prepared");
        writer.write(batch).await.expect("writable");
        let manifest = writer.stage(0, 10, 7).await.expect("writable");
        writer.publish(&manifest).await.expect("the ledger knows that it has landed");
        assert_eq!(texts(&url, "SELECT count(*)::text FROM target").await, ["10"], "{name}");
    }
}

#[tokio::test]
async fn who_goes_on_with_a_run_raises_the_fence() {
    let fence = "SELECT epoch::text FROM _weir_fence";
    let url = database("sink_fence", "").await;
    let sink = open(&url, WriteMode::Append, CommitMode::Run);
    let batch = rows(0..10, "a");
    let (prepared, mut writer, manifest) = stage(&*sink, "r1", &batch).await.expect("writable");
    writer.publish(&manifest).await.expect("publishable");
    drop(writer);
    let manifests = [manifest];
    // The next process opens a writer, and prepares nothing.
    let resumed = SinkTask { epoch: 4, ..task(&prepared, 1, &batch) };
    drop(sink.writer(resumed).await.expect("a newer epoch takes over"));
    assert_eq!(texts(&url, fence).await, ["4"]);
    let late = sink.writer(task(&prepared, 1, &batch)).await.err().expect("epoch 1 is over");
    assert_eq!(late.kind, ErrorKind::Fenced, "{late}");
    let late = sink.commit_run(&prepared, &manifests, 3).await.expect_err("epoch 3 is over");
    assert_eq!(late.kind, ErrorKind::Fenced, "{late}");
    assert_eq!(texts(&url, "SELECT count(*)::text FROM target").await, ["0"]);

    sink.commit_run(&prepared, &manifests, 5).await.expect("a newer epoch takes over");
    assert_eq!(texts(&url, fence).await, ["5"]);
    // The one that was paused wakes up.
    let late = sink.commit_run(&prepared, &manifests, 4).await.expect_err("epoch 4 is over");
    assert_eq!(late.kind, ErrorKind::Fenced, "{late}");
    sink.commit_run(&prepared, &manifests, 6).await.expect("it has been done");
    assert_eq!(texts(&url, fence).await, ["6"]);
    let late = sink.recover(&prepared, &manifests[0], 1, 5).await.expect_err("epoch 5 is over");
    assert_eq!(late.kind, ErrorKind::Fenced, "{late}");
    assert_eq!(texts(&url, "SELECT count(*)::text FROM target").await, ["10"]);
}

#[tokio::test]
async fn what_was_made_on_a_table_during_a_run_outlives_its_replacing() {
    for (name, statement, check, expected) in [
        (
            "nothing_late",
            "CREATE TABLE before AS SELECT 'target'::regclass::oid AS id",
            "SELECT (id <> 'target'::regclass::oid)::text FROM before",
            "true",
        ),
        (
            "late_view",
            "CREATE VIEW seen AS SELECT count(*) AS n FROM target",
            "SELECT n::text FROM seen",
            "10",
        ),
        (
            "late_key",
            "CREATE TABLE other (id int8 REFERENCES target (id))",
            "SELECT confrelid::regclass::text FROM pg_constraint WHERE contype = 'f'",
            "target",
        ),
        (
            "late_index",
            "CREATE INDEX made_late ON target (label)",
            "SELECT indrelid::regclass::text FROM pg_index WHERE indexrelid = 'made_late'::regclass",
            "target",
        ),
        (
            "late_column",
            "ALTER TABLE target ADD COLUMN more int DEFAULT 7",
            "SELECT sum(more)::text FROM target",
            "70",
        ),
    ] {
        let url = database(name, "CREATE TABLE target (id int8 PRIMARY KEY, label text)").await;
        let sink = open(&url, WriteMode::Replace, CommitMode::Run);
        let (prepared, mut writer, manifest) =
            stage(&*sink, "r1", &rows(0..10, "new")).await.expect("writable");
        writer.publish(&manifest).await.expect("publishable");
        drop(writer);
        execute(
            &mut connect(&url).await,
            &format!("INSERT INTO target VALUES (99, 'old'); {statement}"),
        )
        .await;
        sink.commit_run(&prepared, &[manifest], 1)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(texts(&url, check).await, [expected], "{name}");
        assert_eq!(texts(&url, "SELECT DISTINCT label FROM target").await, ["new"], "{name}");
        sink.clean_up(&prepared, 1).await.expect("staging can be dropped");
    }
}

#[tokio::test]
async fn a_commit_is_on_the_disk_whatever_the_database_is_set_to() {
    for (mode, commit) in
        [(WriteMode::Append, CommitMode::Batch), (WriteMode::Upsert, CommitMode::Run)]
    {
        for (name, set, expected) in
            [("off", "off", "on"), ("apply", "remote_apply", "remote_apply")]
        {
            let database_name = format!("durable_{name}_{mode:?}");
            let url = database(
                &database_name,
                &format!(
                    "CREATE TABLE target (id int8 PRIMARY KEY, label text, \
                     how text DEFAULT current_setting('synchronous_commit'));
                     ALTER DATABASE \"{database_name}\" SET synchronous_commit = {set}"
                ),
            )
            .await;
            load(&*open(&url, mode, commit), "r1", &rows([1], "a")).await.expect("loadable");
            assert_eq!(texts(&url, "SELECT how FROM target").await, [expected], "{database_name}");
        }
    }
}

#[tokio::test]
async fn missing_rights_and_schemas_say_how_to_mend_them() {
    let url = database(
        "sink_rights",
        "CREATE TABLE target (id int8, label text); DROP ROLE IF EXISTS poor;
         CREATE ROLE poor LOGIN; GRANT SELECT, INSERT ON target TO poor",
    )
    .await;
    let poor = url.replace("postgres@", "poor@");
    let sink = open(&poor, WriteMode::Append, CommitMode::Batch);
    let error = load(&*sink, "r1", &rows([1], "a")).await.expect_err("no right to create");
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(error.message.contains("_weir_ledger") && error.message.contains("poor"), "{error}");

    let mut missing = node(&url, WriteMode::Append, CommitMode::Batch);
    missing.target = SinkTarget::Table(TableTarget {
        connection: connection(&url),
        table: TemplateText::new("nowhere.target"),
    });
    let error = load(&*open_node(&missing), "r1", &rows([1], "a")).await.expect_err("no schema");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(error.message.contains("CREATE SCHEMA \"nowhere\""), "{error}");
}

#[tokio::test]
async fn staging_of_an_abandoned_run_is_removed_by_the_next() {
    let url = database("sink_abandoned", "").await;
    let sink = open(&url, WriteMode::Append, CommitMode::Run);
    let (_, writer, _) = stage(&*sink, "r1", &rows([1], "a")).await.expect("writable");
    drop(writer);
    load(&*sink, "r2", &rows([2], "b")).await.expect("loadable");
    assert_eq!(
        texts(&url, "SELECT relname::text FROM pg_class WHERE relname LIKE '\\_weir\\_%' AND relkind = 'r' ORDER BY 1").await,
        ["_weir_attempts", "_weir_fence", "_weir_ledger"]
    );
    assert_eq!(texts(&url, "SELECT id::text FROM target").await, ["2"]);
}

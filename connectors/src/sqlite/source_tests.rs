//! Reading SQLite: splits, positions, pushdown, types and cursors.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use arrow::util::pretty::pretty_format_batches;
use futures::TryStreamExt as _;
use weir_spec::{Connection, ConnectionRef, DatabaseSource, Incremental, TemplateText};

use super::connect::Database;
use crate::{
    Comparison, ConnectorContext, ConnectorError, ErrorKind, Literal, Position, Predicate,
    Redactor, ScanRequest, Secrets, Source, SourceBatch, Split,
};

struct TestDatabase {
    folder: tempfile::TempDir,
}

impl TestDatabase {
    async fn with(statements: &[&str]) -> Self {
        let made = Self { folder: tempfile::tempdir().expect("a temporary folder can be made") };
        made.run(statements).await;
        made
    }

    async fn run(&self, statements: &[&str]) {
        let path = self.folder.path().join("in.db");
        let mut transaction = Database { path }.begin().await.expect("can be written");
        for sql in statements {
            transaction.session.execute("set up", sql).await.expect("is SQL");
        }
        transaction.commit().await.expect("can be committed");
    }

    fn open(
        &self,
        table: Option<&str>,
        query: Option<&str>,
        cursor: Option<&str>,
    ) -> Arc<dyn Source> {
        let path = self.folder.path().join("in.db");
        let path = TemplateText::new(path.to_str().expect("temporary paths are UTF-8"));
        let config = Connection::Sqlite(weir_spec::SqliteConnection { path, max_tasks: None });
        let source = weir_spec::Source::Database(DatabaseSource {
            connection: ConnectionRef { name: None, config },
            table: table.map(TemplateText::new),
            query: query.map(TemplateText::new),
            incremental: cursor.map(|cursor| Incremental {
                cursor: cursor.to_owned(),
                param: None,
                initial: None,
                lag: None,
            }),
        });
        let context = ConnectorContext::new("/", Secrets::default(), Redactor::default());
        crate::registry::open_source("in", &source, &context).expect("is well configured")
    }

    fn table(&self, table: &str) -> Arc<dyn Source> {
        self.open(Some(table), None, None)
    }
}

/// `big(id, name)` with 120,000 rows and gaps.
async fn big() -> TestDatabase {
    TestDatabase::with(&[
        "CREATE TABLE big (id INTEGER NOT NULL, name TEXT)",
        "INSERT INTO big WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
         WHERE i < 120000) SELECT i, 'n' || i FROM n",
        "DELETE FROM big WHERE rowid % 10 = 0",
    ])
    .await
}

async fn read(
    source: &Arc<dyn Source>,
    split: &Split,
    request: &ScanRequest,
    from: Option<&Position>,
) -> Result<Vec<SourceBatch>, ConnectorError> {
    source.open(split, request, from).await?.try_collect().await
}

async fn read_all(source: &Arc<dyn Source>, request: &ScanRequest) -> Vec<SourceBatch> {
    let mut batches = Vec::new();
    for split in source.splits(request, 4).await.expect("can be split") {
        batches.extend(read(source, &split, request, None).await.expect("can be read"));
    }
    batches
}

fn ids(batches: &[SourceBatch]) -> Vec<i64> {
    batches
        .iter()
        .flat_map(|batch| {
            let ids = batch.rows.column_by_name("id").expect("is there");
            ids.as_primitive::<Int64Type>().values().to_vec()
        })
        .collect()
}

fn show(batches: &[SourceBatch]) -> Vec<String> {
    let rows: Vec<_> = batches.iter().map(|batch| batch.rows.clone()).collect();
    let table = pretty_format_batches(&rows).expect("can be shown").to_string();
    let lines: Vec<&str> = table.lines().collect();
    lines[3..lines.len() - 1]
        .iter()
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>().join("|"))
        .map(|line| line.trim_matches('|').to_owned())
        .collect()
}

#[tokio::test]
async fn splits_cover_a_table_once_and_resume_from_every_position() {
    let database = big().await;
    let source = database.table("big");
    let description = source.describe().await.expect("can be described");
    assert!(description.resumable);
    assert!(
        !description.schema.field(0).is_nullable() && description.schema.field(1).is_nullable()
    );
    let request = ScanRequest::default();
    let splits = source.splits(&request, 4).await.expect("can be split");
    assert_eq!(splits, source.splits(&request, 4).await.expect("can be split"));
    assert_eq!(splits.len(), 2);
    let expected: Vec<i64> = (1..=120_000).filter(|id| id % 10 != 0).collect();
    assert_eq!(ids(&read_all(&source, &request).await), expected);
    for split in &splits {
        let batches = read(&source, split, &request, None).await.expect("can be read");
        assert!(batches.len() > 5);
        for cut in 0..batches.len() {
            let position = batches[cut].position.clone().expect("every batch has a position");
            let rest = database.table("big");
            let rest = read(&rest, split, &request, Some(&position)).await.expect("can be read");
            assert_eq!(ids(&rest), ids(&batches[cut + 1..]));
        }
    }
}

#[tokio::test]
async fn columns_filters_and_limits_are_pushed_down_exactly() {
    let database = big().await;
    let source = database.table("big");
    let predicate = |column: &str, comparison| Predicate { column: column.to_owned(), comparison };
    let mut request = ScanRequest {
        columns: Some(vec!["name".to_owned(), "id".to_owned()]),
        predicates: vec![
            predicate("id", Comparison::GreaterOrEqual(Literal::Int(59_998))),
            predicate("id", Comparison::Less(Literal::UInt(60_005))),
            predicate("name", Comparison::NotEqual(Literal::String("n60001'; --".to_owned()))),
            predicate("name", Comparison::IsNotNull),
        ],
        ..ScanRequest::default()
    };
    let batches = read_all(&source, &request).await;
    assert_eq!(ids(&batches), [59_998, 59_999, 60_001, 60_002, 60_003, 60_004]);
    assert_eq!(batches[0].rows.schema().field(0).name(), "name");
    let wanted = ["n7", "n9", "N8", "n10"].map(|name| Literal::String(name.to_owned()));
    request.predicates = vec![predicate("name", Comparison::In(wanted.to_vec()))];
    assert_eq!(ids(&read_all(&source, &request).await), [7, 9]);
    request.predicates = vec![predicate("id", Comparison::Less(Literal::Float(f64::NAN)))];
    request.limit = Some(10_000);
    let splits = source.splits(&request, 1).await.expect("can be split");
    let batches = read(&source, &splits[0], &request, None).await.expect("can be read");
    assert_eq!(ids(&batches).len(), 10_000);
    let position = batches[0].position.as_ref();
    let rest = read(&source, &splits[0], &request, position).await.expect("can be read");
    assert_eq!(ids(&rest), ids(&batches[1..]), "the limit counts over attempts");
    request.columns = Some(Vec::new());
    let batches = read(&source, &splits[0], &request, None).await.expect("can be read");
    assert_eq!(batches.iter().map(|batch| batch.rows.num_rows()).sum::<usize>(), 10_000);
}

#[tokio::test]
async fn declared_types_decide_how_values_are_read() {
    let database = TestDatabase::with(&[
        "CREATE TABLE t (i INT, r REAL, d DECIMAL(10,2), b BOOLEAN, s VARCHAR(9), x BLOB, day DATE, \
         tm TIME, ts DATETIME, tz TIMESTAMPTZ, any_number NUMERIC, untyped)",
        "INSERT INTO t VALUES (1, 2, 3.25, 1, 'é', X'00FF', '2024-02-29', '13:00:01.5', \
         '2024-02-29 13:00:01', '2024-02-29T13:00:01.25+02:00', 12.5, 'u')",
        "INSERT INTO t DEFAULT VALUES",
    ])
    .await;
    let source = database.table("t");
    let schema = source.describe().await.expect("can be described").schema;
    let micros = TimeUnit::Microsecond;
    let expected = [
        DataType::Int64,
        DataType::Float64,
        DataType::Decimal128(10, 2),
        DataType::Boolean,
        DataType::Utf8,
        DataType::Binary,
        DataType::Date32,
        DataType::Time64(micros),
        DataType::Timestamp(micros, None),
        DataType::Timestamp(micros, Some("UTC".into())),
        DataType::Utf8,
        DataType::Utf8,
    ];
    let found: Vec<_> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
    assert_eq!(found, expected);
    let batches = read_all(&source, &ScanRequest::default()).await;
    assert_eq!(
        show(&batches),
        [
            "1|2.0|3.25|true|é|00ff|2024-02-29|13:00:01.500|2024-02-29T13:00:01|\
             2024-02-29T11:00:01.250Z|12.5|u",
            "",
        ]
    );
}

#[tokio::test]
async fn a_value_that_breaks_its_declared_type_is_named() {
    for (declared, value, shown) in [
        ("INTEGER", "'twelve'", "\"twelve\""),
        ("DECIMAL(5,2)", "1.005", "1.005"),
        ("DECIMAL(5,2)", "12345.5", "12345.5"),
        ("BOOLEAN", "2", "2"),
        ("DATE", "'2024-02-30'", "\"2024-02-30\""),
        ("TEXT", "X'FF'", "a blob of 1 bytes"),
    ] {
        let database = TestDatabase::with(&[
            &format!("CREATE TABLE t (c {declared})"),
            &format!("INSERT INTO t VALUES (NULL), ({value})"),
        ])
        .await;
        let source = database.table("t");
        let request = ScanRequest::default();
        let splits = source.splits(&request, 1).await.expect("can be split");
        let error = read(&source, &splits[0], &request, None).await.expect_err("does not fit");
        assert_eq!(error.kind, ErrorKind::Data);
        for part in ["table `t`", "rowid 2", "column `c`", shown] {
            assert!(error.message.contains(part), "{declared}: {error}");
        }
    }
}

#[tokio::test]
async fn queries_views_and_tables_without_rowid_are_read_whole() {
    let database = TestDatabase::with(&[
        "CREATE TABLE k (id INTEGER PRIMARY KEY, v REAL) WITHOUT ROWID",
        "INSERT INTO k VALUES (1, 0.5), (2, 1.5), (3, NULL)",
        "CREATE VIEW w AS SELECT id, v * 2 AS doubled FROM k",
    ])
    .await;
    let query = "SELECT id, sum(v) AS total, count(*) AS n FROM k GROUP BY id ORDER BY id ;";
    for (source, expected) in [
        (database.table("k"), vec!["1|0.5", "2|1.5", "3"]),
        (database.table("w"), vec!["1|1.0", "2|3.0", "3"]),
        (database.open(None, Some(query), None), vec!["1|0.5|1", "2|1.5|1", "3||1"]),
    ] {
        let description = source.describe().await.expect("can be described");
        assert!(!description.resumable);
        let request = ScanRequest::default();
        assert_eq!(source.splits(&request, 4).await.expect("can be split").len(), 1);
        let batches = read_all(&source, &request).await;
        assert_eq!(show(&batches), expected);
        assert_eq!(batches[0].rows.schema(), description.schema);
        assert!(batches.iter().all(|batch| batch.position.is_none()));
        let request = ScanRequest { limit: Some(2), ..ScanRequest::default() };
        assert_eq!(ids(&read_all(&source, &request).await), [1, 2]);
    }
    for statement in ["DELETE FROM k", "SELECT 1 AS id; DELETE FROM k"] {
        let source = database.open(None, Some(statement), None);
        assert!(source.describe().await.is_err(), "{statement}");
        assert_eq!(ids(&read_all(&database.table("k"), &ScanRequest::default()).await).len(), 3);
    }
}

#[tokio::test]
async fn incremental_reading_starts_behind_the_cursor() {
    let database = TestDatabase::with(&[
        "CREATE TABLE t (id INTEGER, at TIMESTAMP, day DATE)",
        "INSERT INTO t VALUES (1, '2024-01-01 00:00:00', '2024-01-01'), \
         (2, '2024-01-02T00:00:00.000001', '2024-01-02'), \
         (3, '2024-01-02 00:00:00.000002', '2024-01-03'), (4, NULL, NULL)",
    ])
    .await;
    for (cursor, since, expected) in [
        ("id", "2", vec![3, 4]),
        ("at", "2024-01-01T00:00:00", vec![2, 3]),
        ("at", "2024-01-02 00:00:00.000001", vec![3]),
        ("at", "2024-01-02T01:00:00.000001+01:00", vec![3]),
        ("day", "2024-01-02", vec![3]),
    ] {
        let source = database.open(Some("t"), None, Some(cursor));
        let request = ScanRequest { since: Some(since.to_owned()), ..ScanRequest::default() };
        assert_eq!(ids(&read_all(&source, &request).await), expected, "{cursor} {since}");
    }
    let source = database.open(Some("t"), None, Some("at"));
    let request = ScanRequest { since: Some("soon".to_owned()), ..ScanRequest::default() };
    let error = source.splits(&request, 1).await.expect_err("is no time");
    assert_eq!(error.kind, ErrorKind::Config);
    let error = database.open(Some("t"), None, Some("nope")).describe().await.expect_err("unknown");
    assert!(error.message.contains("id, at, day"), "{error}");
}

#[tokio::test]
async fn a_run_reads_up_to_the_cursor_at_its_planning() {
    let database = TestDatabase::with(&[
        "CREATE TABLE t (id INTEGER, at TIMESTAMP, name TEXT COLLATE NOCASE, price DECIMAL(9,2))",
        "INSERT INTO t VALUES (1, '2024-01-01T00:00:00Z', 'B', 1), \
         (2, '2024-01-01 00:00:00.0009996', 'a', 1.5), \
         (3, '2024-01-01T01:00:00.001+01:00', 'c', 10), (4, NULL, NULL, NULL)",
    ])
    .await;
    let cursors = ["id", "at", "name", "price"];
    let since = |since: Option<&str>| ScanRequest {
        since: since.map(str::to_owned),
        ..ScanRequest::default()
    };
    let mut planned = Vec::new();
    for cursor in cursors {
        let source = database.open(Some("t"), None, Some(cursor));
        planned.push(source.splits(&since(None), 1).await.expect("can be split"));
    }
    database
        .run(&[
            // Rows behind what a first session may have read get a greater cursor.
            "UPDATE t SET id = 20, at = '2024-02-01', name = 'd', price = 11 WHERE id = 1",
            "UPDATE t SET id = 30, at = '2024-02-02', name = 'e', price = 12 WHERE id = 3",
        ])
        .await;
    for (cursor, splits) in cursors.into_iter().zip(planned) {
        let source = database.open(Some("t"), None, Some(cursor));
        let request = since(None);
        let batches = read(&source, &splits[0], &request, None).await.expect("can be read");
        assert_eq!(ids(&batches), [2, 4], "{cursor}");
    }
    // The watermark of a run that has read all: the rows equal to it are not read again.
    for (cursor, watermark, expected) in [
        ("at", "2024-01-01T00:00:00.000999", vec![20, 30]),
        ("at", "2024-02-01T00:00:00.000000", vec![30]),
        ("name", "d", vec![30]),
        ("price", "11.00", vec![30]),
        ("id", "20", vec![30]),
    ] {
        let source = database.open(Some("t"), None, Some(cursor));
        assert_eq!(ids(&read_all(&source, &since(Some(watermark))).await), expected, "{cursor}");
    }
}

#[tokio::test]
async fn cursors_without_values_are_not_read_and_wrong_ones_refused() {
    let database = TestDatabase::with(&[
        "CREATE TABLE t (id INTEGER, at TIMESTAMP, number NUMERIC, day DATE)",
        "INSERT INTO t VALUES (1, NULL, 5, '2024-01-01'), (2, NULL, 10, 20240102)",
    ])
    .await;
    let request = ScanRequest::default();
    let nothing = database.open(Some("t"), None, Some("at"));
    assert!(nothing.splits(&request, 4).await.expect("can be split").is_empty());
    let error = database.open(Some("t"), None, Some("number")).describe().await;
    let error = error.expect_err("10 would come before 5");
    assert!(error.message.contains("cannot be a cursor"), "{error}");
    let error = database.open(Some("t"), None, Some("day")).splits(&request, 4).await;
    let error = error.expect_err("a number is no date");
    assert!(error.message.contains("holds 20240102"), "{error}");
    database.run(&["UPDATE t SET at = '2024-01-01 00:00:00+0100' WHERE id = 2"]).await;
    let error = nothing.splits(&request, 4).await.expect_err("SQLite cannot compare it");
    assert!(error.message.contains("+0100"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let database = TestDatabase::with(&["CREATE TABLE t (id INTEGER)"]).await;
    let error = database.table("u").describe().await.expect_err("is missing");
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.contains("which has: t"), "{error}");
    let source = database.table("t");
    assert!(source.splits(&ScanRequest::default(), 4).await.expect("can be split").is_empty());
    assert!(source.check().await.expect("can be opened").contains("1 columns"));
    std::fs::remove_file(database.folder.path().join("in.db")).expect("can be removed");
    let error = source.describe().await.expect_err("is missing");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_refused() {
    let database = big().await;
    let path = database.folder.path().join("in.db");
    let whole = std::fs::metadata(&path).expect("it is there").len();
    let source = database.table("big");
    source.describe().await.expect("the file is whole");
    let file = std::fs::File::options().write(true).open(&path).expect("it can be written");
    for length in [whole - 1, whole - 5000, 4096] {
        file.set_len(length).expect("it can be cut");
        let error = source.describe().await.expect_err("it is cut off");
        assert_eq!(error.kind, ErrorKind::Data, "{error}");
        assert!(error.message.contains(&format!("{length} of the {whole} bytes")), "{error}");
    }
}

#[tokio::test]
async fn pages_that_are_still_in_the_log_are_not_missed() {
    let database = TestDatabase::with(&["CREATE TABLE t (id INTEGER)"]).await;
    let path = database.folder.path().join("in.db");
    let open = Database { path: path.clone() }.begin().await.expect("can be written");
    let mut other = open;
    other
        .session
        .execute(
            "fill",
            "INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
             WHERE i < 50000) SELECT i FROM n",
        )
        .await
        .expect("is SQL");
    other.session.execute("commit", "COMMIT").await.expect("can be committed");
    let source = database.table("t");
    assert_eq!(ids(&read_all(&source, &ScanRequest::default()).await).len(), 50_000);
    drop(other);
}

//! The PostgreSQL source against a real server.

use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::{DataType, Decimal128Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use futures::StreamExt as _;
use weir_connectors::{
    Comparison, ConnectorContext, ConnectorError, ErrorKind, Literal, Position, Predicate,
    Redactor, ScanRequest, Secrets, Source, Split, registry,
};
use weir_spec::{
    Connection, ConnectionRef, DatabaseSource, Incremental, PostgresConnection, TemplateText,
};

use crate::postgres::{PostgresServer, connect, execute};

fn node(url: &str, table: Option<&str>, query: Option<&str>) -> DatabaseSource {
    DatabaseSource {
        connection: ConnectionRef {
            name: Some("db".to_owned()),
            config: Connection::Postgres(PostgresConnection {
                url: TemplateText::new(url),
                max_tasks: None,
            }),
        },
        table: table.map(TemplateText::new),
        query: query.map(TemplateText::new),
        incremental: None,
    }
}

fn open(node: DatabaseSource) -> Arc<dyn Source> {
    let context = ConnectorContext::new("/", Secrets::default(), Redactor::default());
    registry::open_source("src", &weir_spec::Source::Database(node), &context)
        .expect("the node is right")
}

fn table(url: &str, name: &str) -> Arc<dyn Source> {
    open(node(url, Some(name), None))
}

fn query(url: &str, sql: &str) -> Arc<dyn Source> {
    open(node(url, None, Some(sql)))
}

/// Batches of a split with their positions.
async fn read_split(
    source: &dyn Source,
    split: &Split,
    request: &ScanRequest,
    from: Option<&Position>,
) -> Result<Vec<(RecordBatch, Option<Position>)>, ConnectorError> {
    let mut stream = source.open(split, request, from).await?;
    let mut batches = Vec::new();
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        batches.push((batch.rows, batch.position));
    }
    Ok(batches)
}

async fn read_all(
    source: &dyn Source,
    request: &ScanRequest,
    parallelism: usize,
) -> Result<Vec<RecordBatch>, ConnectorError> {
    let mut rows = Vec::new();
    for split in source.splits(request, parallelism).await? {
        let batches = read_split(source, &split, request, None).await?;
        rows.extend(batches.into_iter().map(|(rows, _)| rows));
    }
    Ok(rows)
}

/// The int64 column `index` of all batches, sorted.
fn ids(batches: &[RecordBatch], index: usize) -> Vec<i64> {
    let mut ids: Vec<i64> = batches
        .iter()
        .flat_map(|batch| batch.column(index).as_primitive::<Int64Type>().values().to_vec())
        .collect();
    ids.sort_unstable();
    ids
}

async fn database(name: &str, sql: &str) -> String {
    let url = PostgresServer::shared().create_database(name).await;
    execute(&mut connect(&url).await, sql).await;
    url
}

#[tokio::test]
async fn types_become_their_arrow_types() {
    let url = database(
        "source_types",
        "CREATE TYPE mood AS ENUM ('sad', 'glad');
         CREATE DOMAIN price AS numeric(8,2) CHECK (VALUE >= 0);
         CREATE TABLE t (b bool NOT NULL, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8,
           n numeric(12,3), free numeric, wide numeric(50,2), s text, v varchar(5), c char(4),
           by bytea, d date, tm time, ts timestamp, tz timestamptz, iv interval, u uuid,
           j json, jb jsonb, m mood, p price, ip inet, tags text[], nums numeric(5,1)[],
           days date[], ips inet[]);
         INSERT INTO t VALUES (true, -32768, -2147483648, -9223372036854775808, 'NaN', 1e308,
           -123456789.001, 12345678901234567890.123456789, 12345678901234567890123456789.25, 'é',
           'abcde', 'ab', '\\x00ff', '0001-01-01', '23:59:59.999999', '1969-12-31 23:59:59.999999',
           '2024-02-29 12:00:00+02', '1 mon 2 days 03:04:05.5', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11',
           '{\"a\": 1}', '{\"b\":2}', 'glad', 3.50, '10.0.0.1/8', '{a,NULL,\"c d\"}', '{1.5,-2}',
           '{2000-01-01}', '{::1}');
         INSERT INTO t (b, tags) VALUES (false, '{}');",
    )
    .await;
    let source = table(&url, "t");
    let description = source.describe().await.expect("the table is there");
    let data_type = |name: &str| {
        description.schema.field_with_name(name).expect("a column").data_type().clone()
    };
    assert!(description.resumable);
    assert!(!description.schema.field(0).is_nullable());
    assert!(description.schema.field(1).is_nullable());
    assert_eq!(data_type("n"), DataType::Decimal128(12, 3));
    assert_eq!(data_type("free"), DataType::Decimal128(38, 9));
    assert_eq!(data_type("wide"), DataType::Utf8);
    assert_eq!(data_type("p"), DataType::Decimal128(8, 2));
    assert_eq!(data_type("tz"), DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())));
    assert_eq!(
        description.schema.field_with_name("jb").expect("a column").metadata()["weir.type"],
        "json"
    );
    let batches = read_all(&*source, &ScanRequest::default(), 4).await.expect("readable");
    let batch = &batches[0];
    assert_eq!(batch.schema(), description.schema);
    let shown = |name: &str| {
        let column = batch.column_by_name(name).expect("a column");
        arrow::util::display::array_value_to_string(column, 0).expect("values can be shown")
    };
    for (name, value) in [
        ("b", "true"),
        ("i2", "-32768"),
        ("i4", "-2147483648"),
        ("i8", "-9223372036854775808"),
        ("f4", "NaN"),
        ("f8", "1e308"),
        ("n", "-123456789.001"),
        ("free", "12345678901234567890.123456789"),
        ("wide", "12345678901234567890123456789.25"),
        ("s", "é"),
        ("v", "abcde"),
        ("c", "ab  "),
        ("by", "00ff"),
        ("d", "0001-01-01"),
        ("tm", "23:59:59.999999"),
        ("ts", "1969-12-31T23:59:59.999999"),
        ("tz", "2024-02-29T10:00:00Z"),
        ("iv", "P1M2DT3H4M5.5S"),
        ("u", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("j", "{\"a\": 1}"),
        ("jb", "{\"b\": 2}"),
        ("m", "glad"),
        ("p", "3.50"),
        ("ip", "10.0.0.1/8"),
        ("tags", "[a, , c d]"),
        ("nums", "[1.5, -2.0]"),
        ("days", "[2000-01-01]"),
        ("ips", "[::1/128]"),
    ] {
        assert_eq!(shown(name), value, "column {name}");
    }
    for (index, column) in batch.columns().iter().enumerate().skip(1) {
        let name = batch.schema().field(index).name().clone();
        assert_eq!(column.is_null(1), name != "tags", "column {name} of the second row");
    }
    assert_eq!(batch.column_by_name("tags").expect("a column").as_list::<i32>().value(1).len(), 0);
}

#[tokio::test]
async fn values_without_an_arrow_value_are_errors_that_name_the_column() {
    let url = database(
        "source_refused",
        "CREATE TABLE t (id int, free numeric, ts timestamptz, day date, grid int[], at time);
         INSERT INTO t VALUES (1, 1.0000000001, 'infinity', '-infinity', '{{1,2},{3,4}}', '24:00');
         INSERT INTO t VALUES (2, 'NaN', '294276-12-31 00:00:00', NULL, NULL, NULL)",
    )
    .await;
    for (column, condition, reason) in [
        ("free", "id = 1", "more than 9 digits behind the point"),
        ("free", "id = 2", "NaN"),
        ("ts", "id = 1", "infinity"),
        ("ts", "id = 2", "too far in the future"),
        ("day", "id = 1", "-infinity"),
        ("grid", "id = 1", "2 dimensions"),
        ("at", "id = 1", "24:00:00"),
    ] {
        let source = query(&url, &format!("SELECT {column} FROM t WHERE {condition}"));
        let error = read_all(&*source, &ScanRequest::default(), 1).await.expect_err(reason);
        assert_eq!(error.kind, ErrorKind::Data, "{error}");
        assert!(error.message.contains(&format!("\"{column}\"")), "{error}");
        assert!(error.message.contains(reason), "{error}");
    }
}

#[tokio::test]
async fn a_table_is_read_in_parallel_and_resumed_from_every_position() {
    let url = database(
        "source_resume",
        "CREATE TABLE t AS SELECT id::int8, 'row ' || id AS label FROM generate_series(1, 400000) id;
         DELETE FROM t WHERE id % 7 = 0; ANALYZE t",
    )
    .await;
    let expected: Vec<i64> = (1..=400_000).filter(|id| id % 7 != 0).collect();
    let source = table(&url, "public.t");
    let request = ScanRequest::default();
    let splits = source.splits(&request, 3).await.expect("the table can be split");
    assert_eq!(splits.len(), 3);
    let mut all = Vec::new();
    for split in &splits {
        let batches = read_split(&*source, split, &request, None).await.expect("readable");
        assert!(batches.iter().all(|(rows, _)| rows.num_rows() <= 8192));
        let whole: Vec<RecordBatch> = batches.iter().map(|(rows, _)| rows.clone()).collect();
        let positions = batches.iter().filter(|(_, position)| position.is_some()).count();
        assert!(positions > 2, "{positions} positions");
        assert!(batches.last().expect("not empty").1.is_some());
        // As another process would: a source of its own.
        let other = table(&url, "public.t");
        for (index, (_, position)) in batches.iter().enumerate() {
            let Some(position) = position else { continue };
            let rest =
                read_split(&*other, split, &request, Some(position)).await.expect("readable");
            let rest: Vec<RecordBatch> = rest.into_iter().map(|(rows, _)| rows).collect();
            assert_eq!(ids(&rest, 0), ids(&whole[index + 1..], 0), "behind {position:?}");
        }
        all.extend(whole);
    }
    assert_eq!(ids(&all, 0), expected);
}

#[tokio::test]
async fn all_splits_see_one_snapshot() {
    let url = database(
        "source_snapshot",
        "CREATE TABLE t AS SELECT id::int8 FROM generate_series(1, 300000) id",
    )
    .await;
    let source = table(&url, "t");
    let request = ScanRequest::default();
    let splits = source.splits(&request, 2).await.expect("the table can be split");
    assert_eq!(splits.len(), 2);
    let mut rows = read_split(&*source, &splits[0], &request, None).await.expect("readable");
    execute(
        &mut connect(&url).await,
        "DELETE FROM t WHERE id % 2 = 0; INSERT INTO t SELECT -id FROM generate_series(1, 1000) id",
    )
    .await;
    rows.extend(read_split(&*source, &splits[1], &request, None).await.expect("readable"));
    let rows: Vec<RecordBatch> = rows.into_iter().map(|(rows, _)| rows).collect();
    assert_eq!(ids(&rows, 0), (1..=300_000).collect::<Vec<i64>>());
}

#[tokio::test]
async fn columns_predicates_and_limit_are_applied_by_the_database() {
    let url = database(
        "source_pushdown",
        "CREATE TABLE t (id int8, \"Na me\" text, amount numeric(10,2), at timestamptz, day date);
         INSERT INTO t SELECT id, CASE WHEN id % 10 = 0 THEN NULL ELSE chr(64 + id % 60) || 'x' END,
           id / 4.0, timestamptz '2024-01-01 00:00+00' + id * interval '1 second',
           date '1960-01-01' + id FROM generate_series(1, 1000) id",
    )
    .await;
    let source = table(&url, "t");
    let description = source.describe().await.expect("the table is there");
    assert_eq!(description.exact_predicates, ["id", "Na me", "amount", "at", "day"]);
    let count = |predicates: Vec<(&str, Comparison)>| {
        let source = source.clone();
        let predicates = predicates
            .into_iter()
            .map(|(column, comparison)| Predicate { column: column.to_owned(), comparison })
            .collect();
        async move {
            let request = ScanRequest {
                columns: Some(vec!["id".to_owned()]),
                predicates,
                ..ScanRequest::default()
            };
            let batches = read_all(&*source, &request, 1).await.expect("readable");
            ids(&batches, 0)
        }
    };
    assert_eq!(count(vec![("id", Comparison::Less(Literal::Int(4)))]).await, [1, 2, 3]);
    assert_eq!(count(vec![("id", Comparison::LessOrEqual(Literal::Int(-4)))]).await, [0; 0]);
    let text = |value: &str| Literal::String(value.to_owned());
    assert_eq!(
        count(vec![
            ("Na me", Comparison::Equal(text("Ax"))),
            ("id", Comparison::Less(Literal::Int(100)))
        ])
        .await,
        [1, 61]
    );
    // Bytes, not a language's order: lower case is behind upper case.
    let small = count(vec![("Na me", Comparison::GreaterOrEqual(text("z")))]).await;
    assert!(small.iter().all(|id| id % 60 >= 58) && !small.is_empty());
    assert_eq!(
        count(vec![("Na me", Comparison::Equal(text("'; DROP TABLE t; --\\")))]).await,
        [0; 0]
    );
    assert_eq!(count(vec![("Na me", Comparison::IsNull)]).await.len(), 100);
    assert_eq!(
        count(vec![(
            "amount",
            Comparison::In(vec![
                Literal::Decimal { unscaled: 25, scale: 2 },
                Literal::Decimal { unscaled: 5, scale: 1 }
            ])
        )])
        .await,
        [1, 2]
    );
    let second = 1_704_067_200_000_000_i64 + 5_000_000;
    assert_eq!(
        count(vec![("at", Comparison::Less(Literal::Timestamp { micros: second, utc: true }))])
            .await,
        [1, 2, 3, 4]
    );
    assert_eq!(count(vec![("day", Comparison::Equal(Literal::Date(-3652)))]).await, [1]);

    let request =
        ScanRequest { columns: Some(Vec::new()), limit: Some(7), ..ScanRequest::default() };
    let batches = read_all(&*source, &request, 1).await.expect("readable");
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 7);
    assert_eq!(batches[0].num_columns(), 0);
}

#[tokio::test]
async fn an_incremental_source_reads_what_is_behind_its_cursor() {
    let url = database(
        "source_incremental",
        "CREATE TABLE t (id int8, at timestamptz);
         INSERT INTO t SELECT id, timestamptz '2024-01-01 00:00+00' + id * interval '1 microsecond'
         FROM generate_series(1, 10) id",
    )
    .await;
    for subject in [node(&url, Some("t"), None), node(&url, None, Some("SELECT * FROM t -- all;"))]
    {
        let cursor = Incremental { cursor: "at".to_owned(), param: None, initial: None, lag: None };
        let source = open(DatabaseSource { incremental: Some(cursor), ..subject });
        let request = ScanRequest {
            since: Some("2024-01-01T00:00:00.000007Z".to_owned()),
            ..ScanRequest::default()
        };
        let batches = read_all(&*source, &request, 2).await.expect("readable");
        assert_eq!(ids(&batches, 0), [8, 9, 10]);
        let at = batches[0].column(1).as_primitive::<TimestampMicrosecondType>();
        assert_eq!(at.value(0), 1_704_067_200_000_008);
    }
}

fn incremental(url: &str, name: &str, cursor: &str) -> Arc<dyn Source> {
    let cursor = Incremental { cursor: cursor.to_owned(), param: None, initial: None, lag: None };
    open(DatabaseSource { incremental: Some(cursor), ..node(url, Some(name), None) })
}

#[tokio::test]
async fn a_run_reads_up_to_the_cursor_at_its_planning() {
    let url = database(
        "source_until",
        "CREATE TABLE t (id int8, at timestamptz, name text COLLATE \"en-x-icu\", price numeric);
         INSERT INTO t VALUES (1, '2024-01-01', 'B', 9), (2, '2024-01-02', 'a', 10.5),
           (3, '2024-01-03', 'c', 11), (4, NULL, NULL, NULL)",
    )
    .await;
    let cursors = ["id", "at", "name", "price"];
    let request = ScanRequest::default();
    let mut planned = Vec::new();
    for cursor in cursors {
        let source = incremental(&url, "t", cursor);
        planned.push(source.splits(&request, 2).await.expect("the table can be split"));
    }
    execute(
        &mut connect(&url).await,
        "UPDATE t SET id = 10, at = '2024-02-01', name = 'd', price = 100 WHERE id = 1;
         INSERT INTO t VALUES (11, '2024-02-02', 'e', 101)",
    )
    .await;
    for (cursor, splits) in cursors.into_iter().zip(planned) {
        // As a process does that resumes the run.
        let source = incremental(&url, "t", cursor);
        let batches = read_split(&*source, &splits[0], &request, None).await.expect("readable");
        let rows: Vec<RecordBatch> = batches.into_iter().map(|(rows, _)| rows).collect();
        assert_eq!(ids(&rows, 0), [2, 3, 4], "{cursor}");
    }
    for (cursor, since) in [("id", "10"), ("at", "2024-02-01"), ("name", "d"), ("price", "100")] {
        let source = incremental(&url, "t", cursor);
        let request = ScanRequest { since: Some(since.to_owned()), ..ScanRequest::default() };
        let batches = read_all(&*source, &request, 2).await.expect("readable");
        assert_eq!(ids(&batches, 0), [11], "{cursor}");
    }
    // Bytes, as the watermark goes: "B" is before "a".
    let source = incremental(&url, "t", "name");
    let request = ScanRequest { since: Some("Z".to_owned()), ..ScanRequest::default() };
    assert_eq!(ids(&read_all(&*source, &request, 2).await.expect("readable"), 0), [2, 3, 10, 11]);
    let request = ScanRequest { since: Some("z".to_owned()), ..ScanRequest::default() };
    assert!(source.splits(&request, 2).await.expect("nothing is new").is_empty());
}

#[tokio::test]
async fn a_cursor_without_a_common_order_is_refused() {
    let url = database(
        "source_no_cursor",
        "CREATE TYPE mood AS ENUM ('sad', 'glad');
         CREATE TABLE t (id int8, m mood, ip inet, wide numeric(50,0), c char(4))",
    )
    .await;
    for cursor in ["m", "ip", "wide", "c", "nothing"] {
        let error = incremental(&url, "t", cursor).describe().await.expect_err(cursor);
        assert_eq!(error.kind, ErrorKind::Config, "{error}");
        assert!(error.message.contains("cannot be the cursor"), "{error}");
    }
}

#[tokio::test]
async fn partitions_views_and_queries_are_read() {
    let url = database(
        "source_kinds",
        "CREATE TABLE p (id int8, region text) PARTITION BY LIST (region);
         CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a');
         CREATE TABLE p_b (region text, id int8);
         ALTER TABLE p ATTACH PARTITION p_b FOR VALUES IN ('b');
         INSERT INTO p SELECT id, CASE WHEN id % 2 = 0 THEN 'a' ELSE 'b' END
           FROM generate_series(1, 100) id;
         CREATE VIEW v AS SELECT id, id / 3::numeric AS third FROM p WHERE id <= 3",
    )
    .await;
    let source = table(&url, "p");
    assert!(source.describe().await.expect("there").resumable);
    let batches = read_all(&*source, &ScanRequest::default(), 1).await.expect("readable");
    assert_eq!(ids(&batches, 0), (1..=100).collect::<Vec<i64>>());

    let source = table(&url, "v");
    assert!(!source.describe().await.expect("there").resumable);
    let request = ScanRequest { columns: Some(vec!["id".to_owned()]), ..ScanRequest::default() };
    assert_eq!(ids(&read_all(&*source, &request, 4).await.expect("readable"), 0), [1, 2, 3]);

    let source = query(
        &url,
        "SELECT count(*) AS n, (sum(id) / 4)::numeric(10,1) AS quarter, 'x' AS label FROM p; ",
    );
    let description = source.describe().await.expect("a query can be described");
    assert!(!description.resumable);
    let batches = read_all(&*source, &ScanRequest::default(), 4).await.expect("readable");
    assert_eq!(batches[0].column(1).as_primitive::<Decimal128Type>().value(0), 12_625);
    assert_eq!(ids(&batches, 0), [100]);
    assert_eq!(batches[0].column(2).as_string::<i32>().value(0), "x");
}

#[tokio::test]
async fn failures_say_what_is_wrong_and_hide_the_password() {
    let server = PostgresServer::shared();
    let url = database(
        "source_failures",
        &format!(
            "CREATE TABLE secret_t AS SELECT 1 AS id; DROP ROLE IF EXISTS guarded;
             CREATE ROLE guarded LOGIN PASSWORD '{}'; CREATE TABLE empty_t (id int);
             CREATE TABLE some_t (id int, other int); GRANT SELECT (id) ON some_t TO guarded;
             CREATE TABLE parts (id int8) PARTITION BY LIST (id);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1); INSERT INTO parts VALUES (1);
             GRANT SELECT ON parts TO guarded",
            crate::postgres::GUARDED_PASSWORD
        ),
    )
    .await;
    let as_guarded = |password: &str| url.replace("postgres@", &format!("guarded:{password}@"));
    let right = as_guarded(crate::postgres::GUARDED_PASSWORD);

    let error = table(&url, "public.nothing").describe().await.expect_err("missing");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(error.message.contains("public.nothing"), "{error}");

    let error = table(&as_guarded("wrong-canary"), "t").check().await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    assert!(!format!("{error:?}").contains("wrong-canary"), "{error:?}");

    let line = table(&right, "t").check().await.expect("the password is right");
    assert!(line.contains("PostgreSQL 15") && !line.contains("horse"), "{line}");

    for name in ["secret_t", "empty_t"] {
        let error = table(&right, name).describe().await.expect_err("no right");
        assert_eq!(error.kind, ErrorKind::Denied, "{error}");
        let remedy = format!("GRANT SELECT ON \"public\".\"{name}\" TO \"guarded\"");
        assert!(error.message.contains(&remedy), "{error}");
    }
    // A right on some columns is enough for these, and is asked for even if there is no row.
    let source = table(&right, "some_t");
    let only =
        |name: &str| ScanRequest { columns: Some(vec![name.to_owned()]), ..ScanRequest::default() };
    read_all(&*source, &only("id"), 1).await.expect("it may be read");
    let error = read_all(&*source, &only("other"), 1).await.expect_err("no right");
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    // The right is on the whole, and not on its partitions.
    let batches = read_all(&*table(&right, "parts"), &ScanRequest::default(), 4).await;
    assert_eq!(ids(&batches.expect("it may be read"), 0), [1]);

    let missing = server.database_url("no_such_database");
    let error = table(&missing, "t").check().await.expect_err("missing");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");

    let error =
        table("postgres://u:canary-pw@127.0.0.1:1/d", "t").check().await.expect_err("closed");
    assert!(error.is_retryable(), "{error}");
    assert!(error.message.contains("127.0.0.1:1/d"), "{error}");
    assert!(!format!("{error:?}").contains("canary-pw"), "{error:?}");

    let error = query(&url, "SELEC 1").describe().await.expect_err("syntax");
    assert_eq!(error.kind, ErrorKind::Config, "{error}");
    let error = query(&url, "SELECT 1 AS a, 2 AS a").describe().await.expect_err("twice");
    assert!(error.message.contains("AS"), "{error}");
    let error = query(&url, "SELECT 1 / (id - id) AS a FROM generate_series(1, 9) id");
    let error = read_all(&*error, &ScanRequest::default(), 1).await.expect_err("division");
    assert_eq!(error.kind, ErrorKind::Data, "{error}");
}

#[tokio::test]
async fn a_server_that_goes_away_is_a_retryable_error_and_a_new_snapshot_goes_on() {
    let server = PostgresServer::start();
    let url = server.create_database("goes_away").await;
    execute(
        &mut connect(&url).await,
        "CREATE TABLE t AS SELECT id::int8, repeat('x', 100) AS filler
         FROM generate_series(1, 200000) id",
    )
    .await;
    let source = table(&url, "t");
    let request = ScanRequest::default();
    let splits = source.splits(&request, 2).await.expect("the table can be split");
    let mut stream = source.open(&splits[0], &request, None).await.expect("readable");
    let mut position = None;
    let mut rows = Vec::new();
    while position.is_none() {
        let batch = stream.next().await.expect("more rows").expect("readable");
        position = batch.position;
        rows.push(batch.rows);
    }
    server.crash();
    let error = loop {
        match stream.next().await {
            None => panic!("the stream ended as if it were complete"),
            Some(Err(error)) => break error,
            Some(Ok(_)) => {}
        }
    };
    assert!(error.is_retryable(), "{error}");
    let down = source.open(&splits[0], &request, None).await.err().expect("the server is down");
    assert!(down.is_retryable(), "{down}");
    server.resume();
    for (split, from) in [(&splits[0], position.as_ref()), (&splits[1], None)] {
        let rest = read_split(&*source, split, &request, from).await.expect("readable");
        rows.extend(rest.into_iter().map(|(rows, _)| rows));
    }
    assert_eq!(ids(&rows, 0), (1..=200_000).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_table_that_others_inherit_from_is_read_with_their_rows() {
    let url = database(
        "source_heirs",
        "CREATE TABLE parent (id int8); CREATE TABLE child () INHERITS (parent);
         INSERT INTO child SELECT generate_series(1, 1000)",
    )
    .await;
    let batches = read_all(&*table(&url, "parent"), &ScanRequest::default(), 4).await;
    assert_eq!(ids(&batches.expect("readable"), 0), (1..=1000).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_table_that_was_rewritten_is_not_read_on() {
    for (name, statement) in [
        ("source_vacuum", "VACUUM FULL t"),
        ("source_truncate", "TRUNCATE t"),
        ("source_alter", "ALTER TABLE t ALTER COLUMN label TYPE varchar"),
        ("source_refresh", "REFRESH MATERIALIZED VIEW m"),
    ] {
        let url = database(
            name,
            "CREATE TABLE t AS SELECT id::int8, 'x'::text AS label FROM generate_series(1, 1000) id;
             CREATE MATERIALIZED VIEW m AS SELECT id FROM t",
        )
        .await;
        let read = if name == "source_refresh" { "m" } else { "t" };
        let request = ScanRequest::default();
        let splits = table(&url, read).splits(&request, 1).await.expect("it can be split");
        let same = read_split(&*table(&url, read), &splits[0], &request, None).await;
        assert!(same.is_ok(), "{same:?}");
        execute(&mut connect(&url).await, statement).await;
        let resumed = table(&url, read);
        let error = read_split(&*resumed, &splits[0], &request, Some(&Position("1".to_owned())))
            .await
            .expect_err(name);
        assert_eq!(error.kind, ErrorKind::Changed, "{error}");
    }
}

use serde_json::json;
use weir_spec::{Condition, Deduplicate, Keep, NodeName, OnError, Operator};

use super::fixture::*;
use crate::{NodeCounts, plan_node};

#[tokio::test]
async fn a_join_yields_its_rows_after_encoding() {
    let pipeline = Pipeline::shop()
        .sql(
            "joined",
            "SELECT o.id, c.name FROM orders o LEFT JOIN customers c ON c.id = o.customer",
        )
        .sink("out", &["joined"]);
    let outcome = pipeline.run().await;
    assert_eq!(outcome.rows("out"), ["1|Ada", "2|Ada", "3|Bob", "4|null"]);
    assert_eq!(
        outcome.services.counts()[&NodeName::new("joined")],
        NodeCounts { rows_in: 6, rows_out: 4, ..NodeCounts::default() }
    );
}

#[tokio::test]
async fn functions_windows_and_subqueries_survive_encoding() {
    for (sql, rows) in [
        (
            "SELECT id, row_number() OVER (PARTITION BY customer ORDER BY id) AS n FROM orders",
            vec!["1|1", "2|2", "3|1", "4|1"],
        ),
        ("SELECT id FROM orders WHERE amount > (SELECT avg(amount) FROM orders)", vec!["2", "3"]),
        ("SELECT id FROM orders WHERE customer IN (SELECT id FROM customers)", vec!["1", "2", "3"]),
        ("SELECT id FROM orders ORDER BY amount DESC LIMIT 1", vec!["3"]),
        ("SELECT count(*) AS n FROM orders", vec!["4"]),
        (
            "SELECT customer, sum(amount) AS s, count(DISTINCT id) AS n FROM orders GROUP BY customer",
            vec!["1|30.0|2", "2|30.0|1", "9|-1.0|1"],
        ),
        (
            "SELECT upper(name) || '!' AS n, regexp_replace(name, 'b', 'x', 'g') AS r, md5(name) IS NULL AS m FROM customers",
            vec!["ADA!|Ada|false", "BOB!|Box|false"],
        ),
        ("SELECT CAST(now() AS DATE) AS d FROM customers", vec!["2024-05-06", "2024-05-06"]),
        (
            "SELECT unnest([1, 2]) AS i, name FROM customers",
            vec!["1|Ada", "1|Bob", "2|Ada", "2|Bob"],
        ),
        (
            "SELECT NULL AS nothing, arrow_cast(name, 'Dictionary(Int32, Utf8)') AS name FROM customers",
            vec!["null|Ada", "null|Bob"],
        ),
    ] {
        let pipeline = Pipeline::shop().sql("node", sql).sink("out", &["node"]);
        let outcome = pipeline.run().await;
        assert_eq!(outcome.rows("out"), rows, "{sql}");
    }
}

#[tokio::test]
async fn rejected_rows_carry_every_reason() {
    let pipeline = Pipeline::shop()
        .validate(
            "valid",
            "orders",
            vec![
                Condition::NotNull { column: "email".into() },
                matches("email", "@"),
                check("amount > 0"),
                Condition::Between { column: "id".into(), low: json!(1), high: json!(3) },
            ],
        )
        .sink("out", &["valid"]);
    let outcome = pipeline.run().await;
    assert_eq!(outcome.rows("out"), ["1|1|10.0|a@x.org"]);
    let rejections = &outcome.services.rejections()[&NodeName::new("valid")];
    let reasons: Vec<String> =
        rejections.iter().map(|rejection| rejection.reasons.join("; ")).collect();
    assert_eq!(
        reasons,
        [
            "email does not match",
            "email is null",
            "email does not match; check failed: amount > 0; id is not between 1 and 3"
        ]
    );
    assert_eq!(
        rejections[1].row,
        json!({"id": 3, "customer": 2, "amount": 30.0, "email": null}).into()
    );
    assert_eq!(
        outcome.services.counts()[&NodeName::new("valid")],
        NodeCounts { rows_in: 4, rows_out: 1, dead_lettered: 3, dropped: 0 }
    );
}

#[tokio::test]
async fn the_rejected_side_feeds_a_sink_without_being_rejected_again() {
    let pipeline = Pipeline::shop()
        .validate("valid", "orders", vec![matches("email", "@")])
        .sink("good", &["valid"])
        .sink("bad", &["valid.errors"]);
    let outcome = pipeline.run().await;
    assert_eq!(outcome.rows("good"), ["1|1|10.0|a@x.org", "3|2|30.0|null"]);
    assert_eq!(
        outcome.rows("bad"),
        ["2|1|20.0|nope|email does not match", "4|9|-1.0|bad|email does not match"]
    );
    assert_eq!(outcome.services.rejections()[&NodeName::new("valid")].len(), 2);
    assert_eq!(outcome.services.counts()[&NodeName::new("orders")].rows_in, 4, "read once");
}

#[tokio::test]
async fn sql_reads_the_rejected_side_by_name() {
    let pipeline = Pipeline::shop()
        .validate("valid", "orders", vec![matches("email", "@")])
        .sql("why", "SELECT _error, count(*) AS n FROM valid.errors GROUP BY _error")
        .sink("out", &["why"]);
    assert_eq!(pipeline.run().await.rows("out"), ["email does not match|2"]);
}

#[tokio::test]
async fn dropped_rows_are_counted_and_failing_ones_stop_the_plan() {
    let rules = || vec![check("amount > 0")];
    let dropping = Pipeline::shop()
        .validate_or("valid", "orders", rules(), OnError::Drop)
        .sink("out", &["valid"]);
    let outcome = dropping.run().await;
    assert_eq!(outcome.services.counts()[&NodeName::new("valid")].dropped, 1);
    assert!(outcome.services.rejections().is_empty());

    let failing = Pipeline::shop()
        .validate_or("valid", "orders", rules(), OnError::Fail)
        .sink("out", &["valid"]);
    let (services, _) = failing.catalog();
    let error = services.run(&failing.plan().await.unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("node `valid` fails"), "{error}");
    assert!(error.contains("check failed: amount > 0") && error.contains("\"id\":4"), "{error}");
}

#[tokio::test]
async fn deduplication_does_not_depend_on_the_order_of_arrival() {
    let rows = [
        json!({"k": 1, "v": "a", "t": 1}),
        json!({"k": 1, "v": "b", "t": 2}),
        json!({"k": 1, "v": "c", "t": 2}),
        json!({"k": null, "v": "d", "t": 1}),
        json!({"k": null, "v": "e", "t": null}),
    ];
    let mut reversed = rows.to_vec();
    reversed.reverse();
    for rows in [rows.to_vec(), reversed] {
        for (keep, expected) in
            [(Keep::Last, ["1|c|2", "null|d|1"]), (Keep::First, ["1|a|1", "null|d|1"])]
        {
            let deduplicate =
                Deduplicate { key: vec!["k".into()], keep, order_by: vec!["t".into()] };
            let pipeline = Pipeline::new()
                .source("events", json!(rows))
                .sql("ordered", "SELECT k, v, t FROM events")
                .transform("latest", &["ordered"], Operator::Deduplicate(deduplicate))
                .sink("out", &["latest"]);
            let outcome = pipeline.run().await;
            assert_eq!(outcome.rows("out"), expected);
            assert_eq!(
                outcome.services.counts()[&NodeName::new("latest")],
                NodeCounts { rows_in: 5, rows_out: 2, ..NodeCounts::default() }
            );
        }
    }
}

#[tokio::test]
async fn unions_match_columns_by_name_and_fill_with_null() {
    let pipeline = Pipeline::new()
        .source("a", json!([{"id": 1, "x": 1}]))
        .source("b", json!([{"y": "text", "id": 2.5}]))
        .sql("small", "SELECT arrow_cast(id, 'Int32') AS id, x FROM a")
        .sink("out", &["small", "b"]);
    assert_eq!(pipeline.run().await.rows("out"), ["1.0|1|null", "2.5|null|text"]);
}

#[tokio::test]
async fn templates_are_literals() {
    let mut pipeline = Pipeline::shop()
        .sql("one", "SELECT id FROM orders WHERE email = {{ params.email }}")
        .sink("out", &["one"]);
    pipeline.scope.params.insert("email".into(), json!("x' OR 'a'='a"));
    assert!(pipeline.run().await.rows("out").is_empty());
}

#[tokio::test]
async fn any_node_can_be_previewed() {
    let pipeline = Pipeline::shop()
        .validate("valid", "orders", vec![matches("email", "@")])
        .sql("twice", "SELECT a.id FROM valid a JOIN valid b ON a.id = b.id")
        .sink("out", &["twice"]);
    for (node, limit, count) in [
        ("orders", Some(2), 2),
        ("valid", None, 2),
        ("valid.errors", None, 2),
        ("twice", None, 2),
        ("out", Some(1), 1),
    ] {
        let (services, catalog) = pipeline.catalog();
        let stage = plan_node(&pipeline.spec, &catalog, &pipeline.scope, &input_ref(node), limit)
            .await
            .unwrap();
        assert_eq!(show(&services.run_node(&stage).await.unwrap()).len(), count, "{node}");
    }
}

use serde_json::json;
use weir_spec::{Condition, SinkTarget, WriteMode};

use super::fixture::*;

async fn mistake(pipeline: Pipeline) -> String {
    pipeline.plan().await.expect_err("the pipeline is wrong").to_string()
}

#[tokio::test]
async fn mistakes_name_the_node_and_the_nearest_right_name() {
    let sql = |text: &str| Pipeline::shop().sql("node", text).sink("out", &["node"]);
    let cases = [
        (
            sql("SELECT * FROM ordrs"),
            "node `node`: there is no node `ordrs`; did you mean `orders`?",
        ),
        (sql("SELECT amont FROM orders"), "node `node`: No field named amont"),
        (sql("SELECT amont FROM orders"), "did you mean `amount`?"),
        (sql("SELEC 1"), "node `node`: "),
        (sql("DROP TABLE orders"), "node `node`: "),
        (sql("SET datafusion.execution.batch_size = 1"), "node `node`: "),
        (
            sql(
                "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i FROM n",
            ),
            "WITH RECURSIVE cannot run in this version",
        ),
        (sql("EXPLAIN SELECT 1"), "write a query, not EXPLAIN"),
        (sql("SELECT id, customer AS id FROM orders"), "node `node`: "),
        (
            sql("SELECT o.id, c.id FROM orders o, customers c"),
            "two columns are called `id`; give one another name",
        ),
        (sql("SELECT * FROM orders.errors"), "only `validate` nodes have a rejected side"),
        (sql("SELECT * FROM node"), "reads its own output"),
        (sql("SELECT {{ params.x }}"), "node `node`: `{{ params.x }}` cannot be rendered"),
        (
            Pipeline::shop().sink("out", &["custmers"]),
            "there is no node `custmers`; did you mean `customers`?",
        ),
        (
            Pipeline::shop()
                .validate("valid", "orders", vec![matches("mail", "@")])
                .sink("out", &["valid"]),
            "node `valid`: its input has no column `mail`; did you mean `email`?",
        ),
        (
            Pipeline::shop()
                .validate("valid", "orders", vec![check("amount + 1")])
                .sink("out", &["valid"]),
            "yields Float64; write a condition",
        ),
        (
            Pipeline::shop()
                .validate(
                    "valid",
                    "orders",
                    vec![Condition::OneOf { column: "id".into(), values: vec![json!("x")] }],
                )
                .sink("out", &["valid"]),
            "column `id` is Int64, which does not compare with \"x\"",
        ),
        (
            Pipeline::new()
                .source("a", json!([{"x": 1}]))
                .source("b", json!([{"x": "one"}]))
                .sink("out", &["a", "b"]),
            "column `x` is Int64 in `a` and Utf8 in `b`; cast one of them",
        ),
        (
            Pipeline::new()
                .source("people", json!([{"fullName": "Ada"}]))
                .sql("node", "SELECT fullName FROM people")
                .sink("out", &["node"]),
            "write \"fullName\" in double quotes",
        ),
    ];
    for (pipeline, expected) in cases {
        let message = mistake(pipeline).await;
        assert!(message.contains(expected), "{message}\nlacks: {expected}");
    }
}

#[tokio::test]
async fn keys_and_partition_columns_of_sinks_must_exist() {
    let mut pipeline = Pipeline::shop().sink("out", &["orders"]);
    pipeline.spec.sinks[0].mode = WriteMode::Upsert;
    assert!(mistake(pipeline).await.contains("needs a key"));

    let mut pipeline = Pipeline::shop().sink("out", &["orders"]);
    pipeline.spec.sinks[0].key = vec!["idd".into()];
    assert!(
        mistake(pipeline)
            .await
            .contains("key column `idd` is not in its input; did you mean `id`?")
    );

    let mut pipeline = Pipeline::shop().sink("out", &["orders"]);
    if let SinkTarget::Files(files) = &mut pipeline.spec.sinks[0].target {
        files.partition_by = vec!["day".into()];
    }
    assert!(mistake(pipeline).await.contains("partition_by column `day` is not in its input"));
}

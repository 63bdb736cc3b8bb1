use weir_spec::{Deduplicate, Keep, NodeName, Operator};

use super::fixture::*;
use crate::{Slice, StageKind, StreamInput, render};

#[tokio::test]
async fn a_source_goes_straight_to_its_sink() {
    let graph = Pipeline::shop().sink("out", &["orders"]).plan().await.unwrap();
    assert_eq!(cut(&graph), ["0 stream orders: orders out -> sink"]);
}

#[tokio::test]
async fn columns_and_exact_filters_are_pushed_into_the_source() {
    let mut pipeline = Pipeline::shop()
        .sql("big", "SELECT id, amount * 2 AS twice FROM orders WHERE id >= 2 AND amount > 1")
        .sink("out", &["big"]);
    pipeline.exact = vec!["id".into()];
    let graph = pipeline.plan().await.unwrap();
    assert_eq!(cut(&graph), ["0 stream orders: orders big out -> sink"]);
    let StageKind::Streaming { input: StreamInput::Source { request, .. }, .. } =
        &graph.stages[0].kind
    else {
        panic!("not a streaming stage over a source");
    };
    assert_eq!(request.columns.as_deref(), Some(["id".to_owned(), "amount".to_owned()].as_slice()));
    let predicates: Vec<String> =
        request.predicates.iter().map(crate::pushdown::describe).collect();
    assert_eq!(predicates, ["id >= 2"]);
    assert!(
        graph.stages[0].display.contains("FilterExec: amount@1 > 1"),
        "{}",
        graph.stages[0].display
    );
}

#[tokio::test]
async fn validation_is_part_of_the_streaming_stage() {
    let graph = Pipeline::shop()
        .sql("cleaned", "SELECT id, lower(email) AS email FROM orders")
        .validate("valid", "cleaned", vec![matches("email", "@")])
        .sink("out", &["valid"])
        .plan()
        .await
        .unwrap();
    assert_eq!(cut(&graph), ["0 stream orders: orders cleaned valid out -> sink"]);
}

#[tokio::test]
async fn what_is_not_row_wise_is_computed_whole_first() {
    for sql in [
        "SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer",
        "WITH sums AS (SELECT customer, sum(amount) AS total FROM orders GROUP BY customer) SELECT * FROM sums",
        "SELECT id, rank() OVER (ORDER BY amount) AS place FROM orders",
        "SELECT id FROM orders LIMIT 2",
        "SELECT id FROM orders ORDER BY amount DESC LIMIT 1",
        "SELECT DISTINCT customer FROM orders",
        "SELECT id FROM orders WHERE amount > (SELECT max(id) FROM customers)",
        "SELECT 1 AS one",
    ] {
        let pipeline = Pipeline::shop().sql("node", sql).sink("out", &["node"]);
        let cut = cut(&pipeline.plan().await.unwrap());
        assert_eq!(cut.len(), 2, "{sql}: {cut:?}");
        assert!(
            cut[0].starts_with("0 whole []") && cut[0].ends_with("node -> exchange"),
            "{cut:?}"
        );
        assert_eq!(cut[1], "1 stream #0: out -> sink", "{sql}");
    }
}

#[tokio::test]
async fn row_wise_nodes_behind_a_join_stream() {
    let graph = Pipeline::shop()
        .sql("joined", "SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer")
        .validate("valid", "joined", vec![check("id > 0")])
        .sink("out", &["valid"])
        .plan()
        .await
        .unwrap();
    assert_eq!(
        cut(&graph),
        ["0 whole []: customers orders joined -> exchange", "1 stream #0: valid out -> sink"]
    );
}

#[tokio::test]
async fn a_node_used_twice_is_computed_once() {
    let graph = Pipeline::shop()
        .sql("cleaned", "SELECT id, amount FROM orders")
        .sql("small", "SELECT * FROM cleaned WHERE amount < 15")
        .sink("all", &["cleaned"])
        .sink("some", &["small"])
        .plan()
        .await
        .unwrap();
    assert_eq!(
        cut(&graph),
        [
            "0 whole []: orders cleaned -> exchange",
            "1 stream #0: all -> sink",
            "2 stream #0: small some -> sink"
        ]
    );
}

#[tokio::test]
async fn the_input_of_both_sides_of_a_validation_is_computed_once() {
    let graph = Pipeline::shop()
        .validate("valid", "orders", vec![matches("email", "@")])
        .sink("good", &["valid"])
        .sink("bad", &["valid.errors"])
        .plan()
        .await
        .unwrap();
    assert_eq!(
        cut(&graph),
        [
            "0 whole []: orders -> exchange",
            "1 stream #0: valid good -> sink",
            "2 stream #0: valid bad -> sink"
        ]
    );
}

#[tokio::test]
async fn a_self_join_reads_its_input_once() {
    let graph = Pipeline::shop()
        .sql(
            "pairs",
            "SELECT a.id, b.id AS other FROM orders a JOIN orders b ON a.customer = b.customer",
        )
        .sink("out", &["pairs"])
        .plan()
        .await
        .unwrap();
    assert_eq!(
        cut(&graph),
        [
            "0 whole []: orders -> exchange",
            "1 whole [0]: pairs -> exchange",
            "2 stream #1: out -> sink"
        ]
    );
}

#[tokio::test]
async fn a_self_join_reads_rows_that_stay_the_same_again_and_accounts_for_them_once() {
    let mut pipeline = Pipeline::shop()
        .sql(
            "pairs",
            "SELECT a.id, b.id AS other FROM orders a JOIN orders b ON a.customer = b.customer",
        )
        .sink("out", &["pairs"]);
    pipeline.repeatable = vec![NodeName::new("orders")];
    assert_eq!(
        cut(&pipeline.plan().await.unwrap()),
        ["0 whole []: orders pairs -> exchange", "1 stream #0: out -> sink"]
    );
    let outcome = pipeline.run().await;
    assert_eq!(outcome.rows("out"), ["1|1", "1|2", "2|1", "2|2", "3|3", "4|4"]);
    let counts = outcome.services.counts();
    assert_eq!(counts[&NodeName::new("orders")].rows_out, 4);
    assert_eq!(counts[&NodeName::new("pairs")].rows_in, 8);
}

#[tokio::test]
async fn what_two_nodes_read_is_kept_although_it_stays_the_same() {
    let mut pipeline = Pipeline::shop()
        .sql("small", "SELECT id FROM orders WHERE amount < 15")
        .sql("large", "SELECT id FROM orders WHERE amount >= 15")
        .sink("out", &["small", "large"]);
    pipeline.repeatable = vec![NodeName::new("orders")];
    let graph = pipeline.plan().await.unwrap();
    assert_eq!(cut(&graph)[0], "0 whole []: orders -> exchange");
}

#[tokio::test]
async fn sources_without_positions_are_read_whole_first() {
    let mut pipeline = Pipeline::shop()
        .sql("small", "SELECT id FROM orders WHERE amount < 15")
        .sink("out", &["small"]);
    pipeline.not_resumable = vec![NodeName::new("orders")];
    assert_eq!(
        cut(&pipeline.plan().await.unwrap()),
        ["0 whole []: orders -> exchange", "1 stream #0: small out -> sink"]
    );
}

#[tokio::test]
async fn a_union_is_computed_whole() {
    let graph = Pipeline::shop().sink("out", &["orders", "customers"]).plan().await.unwrap();
    assert_eq!(
        cut(&graph),
        ["0 whole []: orders customers -> exchange", "1 stream #0: out -> sink"]
    );
}

#[tokio::test]
async fn a_source_without_splits_has_one_empty_slice() {
    let pipeline = Pipeline::shop().sink("out", &["orders"]);
    let (_, mut catalog) = pipeline.catalog();
    catalog.sources[0].splits.clear();
    let graph = crate::plan(&pipeline.spec, &catalog, &pipeline.scope).await.unwrap();
    let StageKind::Streaming { slices, .. } = &graph.stages[0].kind else {
        panic!("not a streaming stage");
    };
    assert_eq!(slices, &[Slice::Splits(Vec::new())]);
}

/// Everything that DataFusion might name, order or number differently from time to time.
fn everything() -> Pipeline {
    let order = Deduplicate {
        key: vec!["customer".into()],
        keep: Keep::Last,
        order_by: vec!["amount".into()],
    };
    Pipeline::shop()
        .validate("valid", "orders", vec![matches("email", "@"), check("amount > 0")])
        .transform("latest", &["valid"], Operator::Deduplicate(order))
        .sql(
            "report",
            "SELECT c.name, l.amount, (SELECT max(id) FROM customers) AS top, now() AS at
             FROM latest l LEFT JOIN customers c ON c.id = l.customer ORDER BY l.amount LIMIT 5",
        )
        .sink("out", &["report"])
        .sink("bad", &["valid.errors"])
}

#[tokio::test]
async fn the_same_pipeline_gives_the_same_bytes() {
    let pipeline = everything();
    let first = serde_json::to_string(&pipeline.plan().await.unwrap()).unwrap();
    for _ in 0..5 {
        let mut again = everything();
        again.spec.sources.reverse();
        again.spec.transforms.reverse();
        assert_eq!(serde_json::to_string(&again.plan().await.unwrap()).unwrap(), first);
    }
    let (_, mut catalog) = pipeline.catalog();
    catalog.sources.reverse();
    let other = crate::plan(&pipeline.spec, &catalog, &pipeline.scope).await.unwrap();
    assert_eq!(serde_json::to_string(&other).unwrap(), first);
}

#[tokio::test]
async fn a_graph_is_told_in_plain_words() {
    let graph = Pipeline::shop()
        .sql("small", "SELECT id FROM orders WHERE amount < 15")
        .sink("out", &["small"])
        .plan()
        .await
        .unwrap();
    assert_eq!(
        render(&graph),
        "\
stage 0: out
  nodes:  orders → small → out
  reads:  source orders, columns id, amount
  tasks:  1 slice, row by row; an interrupted one goes on behind its last committed batch
          slice 0: given rows
  writes: append to Parquet files in out/out
  commit: 1000 rows at a time: files are staged, then moved into place, exactly once
  operators:
    CountExec: out_of=small
      FilterExec: amount@1 < 15, projection=[id@0]
        CooperativeExec
          CountExec: into=small
            MorselExec: columns=[id, amount]

"
    );
}

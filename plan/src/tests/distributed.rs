use serde_json::{Value, json};
use weir_spec::{Deduplicate, Keep, NodeName, Operator};

use super::fixture::*;
use crate::{Stage, StageGraph, StageKind};

/// More rows than partitions, keys that repeat, and nulls among them.
fn sales() -> Pipeline {
    let sale = |id: i64| {
        let customer = if id % 11 == 0 { Value::Null } else { json!(id * 7 % 13) };
        json!({"id": id, "customer": customer, "amount": id * 10 % 70, "email": format!("{id}@x")})
    };
    let customer = |id: i64| json!({"id": id, "name": format!("c{id}"), "region": id % 3});
    let region = |id: i64| json!({"id": id, "label": format!("r{id}")});
    Pipeline::new()
        .source("sales", (0..60).map(sale).collect())
        .source("customers", (0..10).map(customer).collect())
        .source("regions", (0..2).map(region).collect())
}

const JOIN: &str = "SELECT s.id, c.name FROM sales s JOIN customers c ON c.id = s.customer";

#[tokio::test]
async fn a_join_is_cut_at_what_its_inputs_are_dealt_out_by() {
    let pipeline = sales().distributed(4).sql("joined", JOIN).sink("out", &["joined"]);
    let graph = pipeline.plan().await.unwrap();
    assert_eq!(
        cut(&graph),
        [
            "0 whole [] x 4: sales joined -> exchange",
            "1 whole [] x 4: customers joined -> exchange",
            "2 whole [0,1] x 4: joined -> exchange",
            "3 stream #2: out -> sink",
        ]
    );
    assert_eq!(graph, pipeline.plan().await.unwrap(), "the same plan each time");
}

#[tokio::test]
async fn a_small_side_of_a_join_is_read_by_every_task() {
    let mut pipeline = sales().distributed(4).sql("joined", JOIN).sink("out", &["joined"]);
    pipeline.rows_of_a_split = Some(1);
    assert_eq!(
        cut(&pipeline.plan().await.unwrap()),
        [
            "0 whole [] x 4: customers joined -> exchange",
            "1 whole [0] x 4: sales joined -> exchange",
            "2 stream #1: out -> sink",
        ]
    );
}

/// Lines name a part and a supplier, of which there are few.
fn warehouse() -> Pipeline {
    let line = |id: i64| json!({"id": id, "part": id % 7, "supplier": id % 5, "quantity": id});
    let part = |id: i64| json!({"id": id, "weight": id});
    let supplier = |id: i64| {
        let text = |kind: &str| format!("{kind}{id}");
        json!({"id": id, "name": text("s"), "street": text("t"), "town": text("o"), "phone": text("p")})
    };
    let stock = |id: i64| json!({"part": id, "place": id * 2});
    Pipeline::new()
        .source("lines", (0..70).map(line).collect())
        .source("parts", (0..7).map(part).collect())
        .source("suppliers", (0..5).map(supplier).collect())
        .source("stocks", (0..7).map(stock).collect())
}

/// Where one join deals rows out and another one leaves them, what is above must know where they are.
#[tokio::test]
async fn no_group_is_doubled_and_no_row_lost_whatever_sources_estimate() {
    let queries = [
        "SELECT l.part, sum(l.quantity) AS total, min(s.name) AS name FROM lines l \
         JOIN parts p ON l.part = p.id JOIN suppliers s ON l.supplier = s.id GROUP BY l.part",
        "SELECT l.id, k.place, s.name FROM lines l JOIN parts p ON l.part = p.id \
         JOIN suppliers s ON l.supplier = s.id JOIN stocks k ON l.part = k.part",
        "SELECT l.part, count(s.name) AS n FROM lines l JOIN parts p ON l.part = p.id \
         LEFT JOIN suppliers s ON l.supplier = s.id GROUP BY l.part",
        "SELECT l.part, count(*) AS n FROM lines l JOIN parts p ON l.part = p.id \
         WHERE l.supplier IN (SELECT id FROM suppliers WHERE name > 's1') GROUP BY l.part",
        "SELECT l.id, row_number() OVER (PARTITION BY l.part ORDER BY l.id) AS n FROM lines l \
         JOIN parts p ON l.part = p.id JOIN suppliers s ON l.supplier = s.id",
        // A limit on the small side.
        "SELECT count(*) AS n FROM lines l JOIN (SELECT 3 AS one FROM suppliers LIMIT 2) t ON t.one = l.part",
    ];
    for sql in queries {
        let pipeline = || warehouse().sql("node", sql).sink("out", &["node"]);
        let expected = pipeline().run().await;
        for suppliers in [0, 5, 500_000, 900_000, 50_000_000] {
            let pipeline = pipeline().distributed(4).estimated("suppliers", suppliers);
            let found = pipeline.run().await;
            let graph = pipeline.plan().await.unwrap();
            assert_eq!(
                found.rows("out"),
                expected.rows("out"),
                "{sql}\nwith {suppliers} suppliers:\n{}",
                graph.stages.iter().map(|stage| stage.display.as_str()).collect::<String>()
            );
        }
    }
}

/// How many stages deal out their rows.
fn dealing_out(graph: &StageGraph) -> usize {
    let deals_out = |stage: &&Stage| stage.display.starts_with("RepartitionExec");
    graph.stages.iter().filter(deals_out).count()
}

#[tokio::test]
async fn what_only_a_filter_makes_small_is_dealt_out() {
    let sql = "SELECT l.quantity, s.* FROM lines l JOIN suppliers s ON l.supplier = s.id WHERE s.name > 's3'";
    let dealt_out = async |suppliers| {
        let pipeline = warehouse().distributed(4).sql("node", sql).sink("out", &["node"]);
        dealing_out(&pipeline.estimated("suppliers", suppliers).plan().await.unwrap())
    };
    assert_eq!(dealt_out(500_000).await, 0, "all tasks read the suppliers");
    assert_eq!(dealt_out(4_000_000).await, 2, "suppliers and lines are dealt out");
    // Each table is small enough, and all of them together are not.
    let union = "(SELECT * FROM suppliers UNION ALL SELECT * FROM suppliers UNION ALL SELECT * FROM suppliers)";
    let sql = sql.replace("JOIN suppliers", &format!("JOIN {union}"));
    let pipeline = warehouse().distributed(4).sql("node", &sql).sink("out", &["node"]);
    let graph = pipeline.estimated("suppliers", 900_000).plan().await.unwrap();
    assert!(graph.stages.iter().any(|stage| stage.display.contains("mode=Partitioned")));
}

/// A supplier's row is taken for 136 bytes, and a line's for 24.
#[tokio::test]
async fn a_side_of_medium_size_is_read_by_every_task_if_that_moves_fewer_bytes() {
    let sql =
        "SELECT l.quantity, l.id AS line, s.* FROM lines l JOIN suppliers s ON l.supplier = s.id";
    let dealt_out = async |suppliers, lines, tasks| {
        let pipeline = warehouse().distributed(tasks).sql("node", sql).sink("out", &["node"]);
        let pipeline = pipeline.estimated("suppliers", suppliers).estimated("lines", lines);
        dealing_out(&pipeline.plan().await.unwrap())
    };
    assert_eq!(dealt_out(120_000, 1_000_000, 100).await, 0, "small: 16 MB");
    assert_eq!(dealt_out(250_000, 5_000_000, 4).await, 0, "4 × 34 MB, and 154 MB");
    assert_eq!(dealt_out(250_000, 5_000_000, 5).await, 2, "5 × 34 MB, and 154 MB");
    assert_eq!(dealt_out(250_000, 3_000_000, 4).await, 2, "4 × 34 MB, and 106 MB");
    assert_eq!(dealt_out(450_000, 500_000_000, 4).await, 0, "61 MB, and 12 GB");
    assert_eq!(dealt_out(600_000, 500_000_000, 4).await, 2, "82 MB, whatever is at the other side");
}

#[tokio::test]
async fn cut_plans_compute_what_whole_ones_do() {
    let queries = [
        JOIN,
        "SELECT s.id, c.name FROM sales s LEFT JOIN customers c ON c.id = s.customer",
        "SELECT s.id, c.name FROM sales s RIGHT JOIN customers c ON c.id = s.customer",
        "SELECT s.id, c.name FROM sales s FULL JOIN customers c ON c.id = s.customer",
        "SELECT id FROM sales WHERE customer IN (SELECT id FROM customers)",
        "SELECT id FROM sales WHERE customer NOT IN (SELECT id FROM customers WHERE region = 1)",
        "SELECT id FROM sales s WHERE NOT EXISTS (SELECT 1 FROM customers c WHERE c.id = s.customer)",
        "SELECT id FROM customers c WHERE EXISTS (SELECT 1 FROM sales s WHERE s.customer = c.id)",
        "SELECT s.id, c.id AS c FROM sales s JOIN customers c ON s.amount < c.id",
        "SELECT s.id, c.id AS c FROM sales s LEFT JOIN customers c ON s.amount < c.id",
        "SELECT s.id, c.id AS c FROM sales s FULL JOIN customers c ON s.amount < c.id",
        "SELECT s.id, r.label FROM sales s CROSS JOIN regions r",
        "SELECT r.label, sum(s.amount) AS total, count(DISTINCT c.id) AS customers FROM sales s \
         JOIN customers c ON c.id = s.customer JOIN regions r ON r.id = c.region GROUP BY r.label",
        "SELECT customer, sum(amount) AS total, count(*) AS n FROM sales GROUP BY customer",
        "SELECT count(*) AS n, avg(amount) AS mean FROM sales",
        "SELECT count(*) AS n FROM sales WHERE id < 0",
        "SELECT DISTINCT customer, amount FROM sales",
        "SELECT id, row_number() OVER (PARTITION BY customer ORDER BY id) AS n FROM sales",
        "SELECT id, rank() OVER (ORDER BY amount, id) AS place FROM sales",
        "SELECT id, sum(amount) OVER (PARTITION BY customer) AS total FROM sales",
        "SELECT id FROM sales ORDER BY amount DESC, id LIMIT 7",
        "SELECT id, amount FROM sales ORDER BY amount, id",
        "SELECT count(*) AS n FROM (SELECT id FROM sales LIMIT 9)",
        "SELECT id FROM sales WHERE amount > (SELECT avg(amount) FROM sales)",
        "SELECT id, amount > (SELECT max(id) FROM regions) AS big FROM sales",
        "SELECT s.id, (SELECT max(c.region) FROM customers c WHERE c.id = s.customer) AS r FROM sales s",
        "SELECT id FROM sales UNION ALL SELECT id FROM customers",
        "SELECT customer FROM sales UNION SELECT id FROM customers",
        "SELECT id FROM sales INTERSECT SELECT id FROM customers",
        "SELECT customer FROM sales EXCEPT SELECT id FROM regions",
        "SELECT count(*) AS n FROM sales UNION ALL SELECT id FROM regions",
        "SELECT unnest([s.id, c.id]) AS i FROM sales s JOIN customers c ON c.id = s.customer",
        "SELECT 1 AS one",
        "WITH totals AS (SELECT customer, sum(amount) AS t FROM sales GROUP BY customer) \
         SELECT a.customer, b.t FROM totals a JOIN totals b ON a.customer = b.customer AND a.t <= b.t",
        "SELECT region, grouping(region) AS g, count(*) AS n FROM customers GROUP BY ROLLUP (region)",
    ];
    let mut cut_queries = 0;
    for sql in queries {
        let pipeline = |parallelism| {
            let pipeline = sales().sql("node", sql).sink("out", &["node"]);
            if parallelism == 0 { pipeline } else { pipeline.distributed(parallelism) }
        };
        let expected = pipeline(0).run().await;
        for (parallelism, rows_of_a_split) in
            [(1, None), (3, Some(1)), (7, None), (2, Some(u64::MAX >> 20))]
        {
            let mut pipeline = pipeline(parallelism);
            pipeline.rows_of_a_split = rows_of_a_split;
            let graph = pipeline.plan().await.unwrap();
            let found = pipeline.run().await;
            assert_eq!(
                found.rows("out"),
                expected.rows("out"),
                "{sql}\nin {parallelism} partitions:\n{}",
                graph.stages.iter().map(|stage| stage.display.as_str()).collect::<String>()
            );
            if !sql.contains("LIMIT") && !sql.contains("EXISTS") {
                assert_eq!(found.services.counts(), expected.services.counts(), "{sql}");
            }
            cut_queries += usize::from(parallelism == 7 && graph.stages.len() > 2);
        }
    }
    assert!(cut_queries >= 24, "only {cut_queries} queries were cut");
}

#[tokio::test]
async fn a_join_that_needs_all_rows_at_once_is_one_task() {
    let sql = "SELECT id FROM sales WHERE customer NOT IN (SELECT id FROM customers)";
    let mut pipeline = sales().distributed(4).sql("node", sql).sink("out", &["node"]);
    pipeline.rows_of_a_split = Some(1 << 40);
    assert_eq!(
        cut(&pipeline.plan().await.unwrap()),
        [
            "0 whole [] x 4: sales node -> exchange",
            "1 whole [] x 4: customers node -> exchange",
            "2 whole [0,1]: node -> exchange",
            "3 stream #2: out -> sink",
        ]
    );
}

#[tokio::test]
async fn what_reaches_a_sink_in_order_stays_so() {
    let sql = "SELECT id, amount FROM sales ORDER BY amount, id";
    let pipeline = sales().distributed(5).sql("node", sql).sink("out", &["node"]);
    let ordered = pipeline.run().await;
    let (mut ids, mut last) = (0, (i64::MIN, i64::MIN));
    for batch in &ordered.sinks[&NodeName::new("out")] {
        let column = |index: usize| {
            batch.column(index).as_any().downcast_ref::<arrow::array::Int64Array>().unwrap().clone()
        };
        for (id, amount) in column(0).values().iter().zip(column(1).values()) {
            assert!(last < (*amount, *id), "{last:?} before {:?}", (amount, id));
            (ids, last) = (ids + 1, (*amount, *id));
        }
    }
    assert_eq!(ids, 60);
}

#[tokio::test]
async fn nodes_between_cut_joins_keep_their_accounts() {
    let pipeline = |distributed: bool| {
        let pipeline = sales()
            .sql(
                "joined",
                "SELECT s.id, s.email, c.region FROM sales s JOIN customers c ON c.id = s.customer",
            )
            .validate("valid", "joined", vec![check("region <> 1")])
            .transform(
                "latest",
                &["valid"],
                Operator::Deduplicate(Deduplicate {
                    key: vec!["region".into()],
                    keep: Keep::Last,
                    order_by: vec!["id".into()],
                }),
            )
            .sink("out", &["latest"])
            .sink("rejected", &["valid.errors"]);
        if distributed { pipeline.distributed(3) } else { pipeline }
    };
    let (expected, found) = (pipeline(false).run().await, pipeline(true).run().await);
    assert_eq!(found.rows("out"), expected.rows("out"));
    assert_eq!(found.services.counts(), expected.services.counts());
    assert_eq!(
        found.services.rejections().values().map(Vec::len).sum::<usize>(),
        expected.services.rejections().values().map(Vec::len).sum::<usize>()
    );
}

#[tokio::test]
async fn one_process_keeps_a_whole_stage_in_one_task() {
    let pipeline = sales().sql("joined", JOIN).sink("out", &["joined"]);
    let graph = pipeline.plan().await.unwrap();
    let is_one_task = |kind: &StageKind| !matches!(kind, StageKind::Whole { slices: 2.., .. });
    assert!(graph.stages.iter().all(|stage| is_one_task(&stage.kind)));
    assert_eq!(graph.stages.len(), 2);
}

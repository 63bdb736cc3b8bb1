//! The main job of a cluster: orders and lines of TPC-H are joined into PostgreSQL, while the leader and an
//! executor are killed. What is there afterwards is what `weir run` makes of the same files.
//! `WEIR_TEST_SEED` repeats the moments, `WEIR_TEST_SCALE` sets TPC-H's scale factor.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::foreign;
use weir_tests::moments::Moments;
use weir_tests::weir::Weir;

use crate::examples::copied;
use crate::targets;

/// 300,000 lines of 75,000 orders.
pub(crate) const SCALE: &str = "0.05";
const REQUEST: &str = "the-only-one";

pub(crate) fn generate(folder: &Path, scale: &str, more: &[&str]) {
    let scale = std::env::var("WEIR_TEST_SCALE").unwrap_or_else(|_| scale.to_owned());
    let status = Command::new(foreign::installed("tpchgen-cli"))
        .args(["parquet", "--quiet", "-s", &scale, "--tables=orders,lineitem"])
        .args(more)
        .arg("--output-dir")
        .arg(folder.join("data"))
        .status();
    assert!(status.is_ok_and(|status| status.success()), "the data cannot be made");
}

/// Rows, and the sum of their hashes, which does not depend on their order.
pub(crate) fn content(url: &str) -> Vec<String> {
    let query = "SELECT count(*) || ' rows, ' || sum(hashtextextended(t::text, 0)::numeric) \
                 FROM public.order_lines t";
    targets::rows(url, query)
}

#[test]
fn a_join_of_tpch_into_postgres_is_exact_though_the_leader_and_an_executor_are_killed() {
    let mut moments = Moments::random("TPC-H");
    let (_guard, folder) = copied("tpch-join");
    generate(&folder, SCALE, &[]);
    // Small batches: what is lost must be a part of the run.
    let file = folder.join("pipeline.yaml");
    let text = std::fs::read_to_string(&file).expect("the example is there");
    std::fs::write(&file, text + "    batch_rows: 5000\n").expect("the disk has room");

    let alone = targets::database("tpch_alone");
    let embedded = Weir::new(&folder).env("DATABASE_URL", &alone);
    embedded.run(&["run", "pipeline.yaml"]).expect_code(0);
    embedded.assert_audit_clean();
    let lines: u64 = targets::rows(&alone, "SELECT count(*)::text FROM public.order_lines")[0]
        .parse()
        .expect("a number");

    let url = targets::database("tpch_cluster");
    let cluster = Cluster::up_with(Weir::new(&folder).env("DATABASE_URL", &url), &[]);
    let run = cluster.submit("pipeline.yaml", REQUEST);
    let admin = cluster.dir.join("admin.token");
    // The same request: it watches the run that goes on.
    let job = ["job", "pipeline.yaml", "--request-id", REQUEST];
    let watching = foreign::begin(&cluster, Some(&admin), &job);

    // Somewhere in the join, or a little later; and then while rows go into the table.
    std::thread::sleep(moments.below(Duration::from_secs(2)));
    let mut victim = None;
    wait_until("an executor to work", || {
        victim = cluster.working_on(&run).into_iter().next();
        victim.is_some()
    });
    let victim = victim.expect("it has been waited for");
    cluster.kill(&victim);
    let rows = moments.fraction() * 0.7 * lines as f64;
    wait_until("rows to be there", || cluster.rows_written(&run) as f64 >= rows);
    let leader = cluster.leader();
    cluster.kill(&leader);
    let shown = cluster.wait(&run);
    assert!(shown["summary"]["sessions"].as_u64() >= Some(2), "{shown:#}");
    let stages = shown["stages"].as_array().expect("a list");
    assert!(stages.iter().any(|stage| stage["attempts"].as_u64() > stage["slices"].as_u64()));

    assert_eq!(content(&url), content(&alone), "{}", cluster.logs());
    let report = cluster.assert_audit_clean(&run);
    assert_eq!(report["sinks"][0]["rows_in_target"], lines, "{report:#}");

    // The one who watched has found the next leader, and says the same as `weir run show`.
    let watched = watching.wait();
    assert!(watched.is_ok, "{watched:#?}");
    let submitted = watched.the("submitted");
    assert_eq!((&submitted["run"], &submitted["is_new"]), (&json!(run), &json!(false)));
    assert_eq!(watched.the("shown")["status"], "RUN_STATUS_SUCCEEDED");
    assert_eq!(watched.the("shown")["rows_written"]["warehouse"], lines.to_string());
    assert_eq!(shown["summary"]["rows_written"]["warehouse"], lines, "{shown:#}");
    assert_eq!(watched.the("audit")["clean"], true);
    cluster.start(&victim);
    cluster.start(&leader);
}

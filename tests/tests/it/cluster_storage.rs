//! A cluster whose storage is an S3 bucket: what it keeps there, and what happens while the bucket does not
//! answer.

use std::time::Duration;

use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::dataset::Checker;
use weir_tests::moments::Moments;
use weir_tests::s3::{BUCKET, S3Server, SECRET};
use weir_tests::weir::Weir;

use crate::cluster_faults::{BATCH_ROWS, ROWS, write_pipeline};
use crate::cluster_tpch::{SCALE, content, generate};
use crate::examples::copied;
use crate::targets;

pub(crate) fn weir_with(server: &S3Server, folder: &std::path::Path) -> Weir {
    let variables = server.environment();
    variables.iter().fold(Weir::new(folder), |weir, (name, value)| weir.env(name, value))
}

/// Another prefix for each cluster of a test.
pub(crate) fn url(prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}")
}

#[test]
fn a_join_of_tpch_is_exact_with_a_bucket_as_storage_though_the_leader_and_an_executor_are_killed() {
    let mut moments = Moments::random("TPC-H with S3");
    let (_guard, folder) = copied("tpch-join");
    generate(&folder, SCALE, &[]);
    let file = folder.join("pipeline.yaml");
    let text = std::fs::read_to_string(&file).expect("the example is there");
    std::fs::write(&file, text + "    batch_rows: 10000\n").expect("the disk has room");

    let alone = targets::database("s3_alone");
    let embedded = Weir::new(&folder).env("DATABASE_URL", &alone);
    embedded.run(&["run", "pipeline.yaml"]).expect_code(0);

    let server = S3Server::start();
    let target = targets::database("s3_cluster");
    let weir = weir_with(&server, &folder).env("DATABASE_URL", &target);
    let cluster = Cluster::up_with(weir, &["--storage", &url("weir")]);
    let run = cluster.submit("pipeline.yaml", "one");
    wait_until("an executor to work", || !cluster.working_on(&run).is_empty());
    std::thread::sleep(moments.below(Duration::from_secs(3)));
    let victim = cluster.working_on(&run).into_iter().next();
    if let Some(victim) = &victim {
        cluster.kill(victim);
    }
    wait_until("rows to be there", || cluster.rows_written(&run) > 0);
    let leader = cluster.leader();
    cluster.kill(&leader);
    let shown = cluster.wait(&run);
    assert!(shown["summary"]["sessions"].as_u64() >= Some(2), "{shown:#}");
    assert_eq!(content(&target), content(&alone), "{}", cluster.logs());
    cluster.assert_audit_clean(&run);

    // All of the run is in the bucket but what only a running one needs.
    let kept = server.objects(&format!("weir/tpch_join/runs/{run}/"));
    let has = |part: &str| kept.iter().any(|name| name.contains(part));
    assert!(has("/spec.json") && has("/plan/") && has("/progress/"), "{kept:?}");
    wait_until("exchanges to be removed", || {
        server.objects(&format!("weir/tpch_join/runs/{run}/exchange/")).is_empty()
    });
    assert!(!cluster.dir.join("storage").exists(), "there is no folder for it");
    let file = std::fs::read_to_string(cluster.dir.join("cluster.json")).expect("it is there");
    assert!(file.contains(&url("weir")) && !file.contains(SECRET), "{file}");
    for (name, _) in cluster.processes() {
        assert!(!cluster.log(&name).contains(SECRET), "{name} tells the key");
    }
}

#[test]
fn a_run_waits_while_the_bucket_does_not_answer_and_ends_exactly() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let target = targets::postgres_named("s3_outage", "append", "batch");
    write_pipeline(folder.path(), "sync", &target.yaml(BATCH_ROWS));
    let server = S3Server::start();
    let weir = weir_with(&server, folder.path());
    let cluster = Cluster::up_with(weir, &["--storage", &url("outage")]);
    let run = cluster.submit("pipeline.yaml", "one");
    wait_until("rows to be there", || cluster.rows_written(&run) > 0);
    server.pause();
    // What is on its way is committed, and nothing more.
    let mut written = cluster.rows_written(&run);
    wait_until("commits to stand still", || {
        std::thread::sleep(Duration::from_secs(2));
        std::mem::replace(&mut written, cluster.rows_written(&run)) == written
    });
    assert_eq!(cluster.show(&run)["summary"]["status"], "running", "{}", cluster.logs());
    assert!(written < ROWS as u64, "the run was over before");
    server.resume();
    cluster.wait(&run);
    let mut checker = Checker::default();
    target.read(&mut checker);
    assert_eq!(checker.problem(ROWS), None, "{}", cluster.logs());
    cluster.assert_audit_clean(&run);
}

//! Pipelines that are registered with a cluster: versions, runs by name, deletion, and what survives a leader.

use serde_json::{Value, json};
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::weir::Weir;

const SMALL: [&str; 4] = ["--coordinators", "1", "--executors", "1"];

fn write(cluster: &Cluster, name: &str, text: &str) {
    std::fs::write(cluster.weir.folder.join(name), text).expect("the disk has room");
}

fn pipeline(path: &str) -> String {
    format!(
        "pipeline: orders\nparams: {{ part: {{ type: string, default: in }} }}\n\
         sources: {{ a: {{ type: csv, path: \"{{{{ params.part }}}}.csv\" }} }}\n\
         sinks: {{ s: {{ input: a, type: csv, path: {path}, mode: replace }} }}\n"
    )
}

fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    cluster.run(&[arguments, &["--output", "json"]].concat()).expect_code(0).json()
}

#[test]
fn a_submitted_file_is_registered_and_run_only_when_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up_with(Weir::new(folder.path()), &SMALL);
    write(&cluster, "in.csv", "id\n1\n2\n");
    write(&cluster, "orders.yaml", &pipeline("out"));
    let said = cluster.run(&["submit", "orders.yaml"]).expect_code(0).stdout;
    assert!(said.contains("version 1; no run was started"), "{said}");
    assert!(said.contains("weir submit orders.yaml --run"), "{said}");
    assert_eq!(json(&cluster, &["runs"]), json!([]));
    // What only a run can use is not taken in silence.
    for option in
        [&["--fresh"][..], &["--param", "part=in"], &["--from", "2024-01-01", "--to", "2024-01-02"]]
    {
        let refused = cluster.run(&[&["submit", "orders.yaml"], option].concat()).expect_code(2);
        assert!(refused.stderr.contains("add --run"), "{}", refused.all());
    }

    // The same again is no version; another text is, and a run says which one it is of.
    let registered = |version: u32, is_new: bool| json!({ "pipeline": "orders", "version": version, "is_new": is_new });
    assert_eq!(json(&cluster, &["submit", "orders.yaml"]), registered(1, false));
    write(&cluster, "orders.yaml", &pipeline("elsewhere"));
    assert_eq!(json(&cluster, &["submit", "orders.yaml"]), registered(2, true));
    cluster.run(&["submit", "--pipeline", "orders", "--version", "1", "--wait"]).expect_code(0);
    assert!(folder.path().join("out").is_dir() && !folder.path().join("elsewhere").exists());
    cluster.run(&["submit", "orders.yaml", "--wait"]).expect_code(0);
    assert!(folder.path().join("elsewhere").is_dir());
    let versions = json(&cluster, &["runs"]);
    assert_eq!((&versions[0]["version"], &versions[1]["version"]), (&json!(2), &json!(1)));

    let shown = cluster.run(&["pipeline", "show", "orders", "--version", "1"]).expect_code(0);
    assert_eq!(shown.stdout, pipeline("out"));
    let all = json(&cluster, &["pipeline", "versions", "orders"]);
    assert_eq!((all[0]["version"].as_u64(), all[1]["version"].as_u64()), (Some(2), Some(1)));
    // Values are checked against what is registered.
    let wrong = ["submit", "--pipeline", "orders", "--run", "--param", "nosuch=1"];
    let refused = cluster.run(&wrong).expect_code(2);
    assert!(refused.stderr.contains("has no such parameter (part)"), "{}", refused.all());
    cluster.run(&["submit", "--pipeline", "orders", "--version", "7", "--run"]).expect_code(2);
    cluster.run(&["submit", "--pipeline", "nosuch", "--run"]).expect_code(2);

    cluster.run(&["pipeline", "delete", "orders"]).expect_code(0);
    assert_eq!(json(&cluster, &["pipelines"]), json!([]));
    for gone in [&["show", "orders"][..], &["versions", "orders"], &["delete", "orders"]] {
        cluster.run(&[&["pipeline"], gone].concat()).expect_code(2);
    }
    assert_eq!(json(&cluster, &["runs"]).as_array().map(Vec::len), Some(2), "its runs stay");
    assert_eq!(json(&cluster, &["submit", "orders.yaml"]), registered(3, true));
}

#[test]
fn what_is_registered_survives_its_leader() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up(folder.path());
    write(&cluster, "in.csv", "id\n1\n2\n");
    write(&cluster, "orders.yaml", &pipeline("out"));
    let submit = ["submit", "orders.yaml", "--request-id", "once"];
    assert_eq!(json(&cluster, &submit)["is_new"], true);
    let leader = cluster.leader();
    cluster.kill(&leader);
    wait_until("another leader", || cluster.leader() != leader);
    // The same request, whose answer may have been lost; then by name.
    let again = json(&cluster, &submit);
    assert_eq!(again, json!({ "pipeline": "orders", "version": 1, "is_new": false }));
    let shown = json(&cluster, &["pipeline", "show", "orders"]);
    assert_eq!(shown["text"], pipeline("out"));
    cluster.run(&["submit", "--pipeline", "orders", "--wait"]).expect_code(0);
    assert!(folder.path().join("out").is_dir());
}

#[test]
fn watermarks_are_shown_set_and_reset_on_a_cluster() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up_with(Weir::new(folder.path()), &SMALL);
    sqlite(&cluster, "CREATE TABLE t (id INTEGER); INSERT INTO t VALUES (1), (2), (3)");
    write(
        &cluster,
        "p.yaml",
        "pipeline: p\nsources:\n  a:\n    type: sqlite\n    path: a.db\n    table: t\n    \
         incremental: { cursor: id }\nsinks: { s: { input: a, type: csv, path: out } }\n",
    );
    let show = || json(&cluster, &["state", "show", "p"]);
    let refused = cluster.run(&["state", "show", "p"]).expect_code(2);
    assert!(refused.stderr.contains("pipeline `p`"), "{}", refused.all());
    // Of what is registered it may be set before the first run.
    cluster.run(&["submit", "p.yaml"]).expect_code(0);
    cluster.run(&["state", "set", "p", "a", "1"]).expect_code(0);
    cluster.run(&["submit", "p.yaml", "--wait"]).expect_code(0);
    assert_eq!(show(), json!({ "a": "3" }));

    // What is set is read from: the third row again.
    cluster.run(&["state", "set", "p", "a", "2"]).expect_code(0);
    assert_eq!(show(), json!({ "a": "2" }));
    let run = cluster.submit("p.yaml", "second");
    assert_eq!(cluster.wait(&run)["summary"]["rows_read"], 1);
    assert_eq!(show(), json!({ "a": "3" }));

    // What no source is called would stay in the ledger.
    let refused = cluster.run(&["state", "set", "p", "nosuch", "2"]).expect_code(2);
    assert!(refused.stderr.contains("source `nosuch` of pipeline `p`"), "{}", refused.all());
    let long = "x".repeat(300);
    let refused = cluster.run(&["state", "set", "p", &long, "2"]).expect_code(2);
    assert!(refused.stderr.contains("at most 256 bytes"), "{}", refused.all());
    assert_eq!(show(), json!({ "a": "3" }));
    let refused = cluster.run(&["state", "reset", "p", "nosuch"]).expect_code(2);
    assert!(refused.stderr.contains("source `nosuch`"), "{}", refused.all());
    cluster.run(&["state", "reset", "p"]).expect_code(0);
    assert_eq!(show(), json!({}));
    let run = cluster.submit("p.yaml", "third");
    assert_eq!(cluster.wait(&run)["summary"]["rows_read"], 3);
}

fn sqlite(cluster: &Cluster, statements: &str) {
    let database = cluster.weir.folder.join("a.db").display().to_string();
    let script =
        format!("import sqlite3; sqlite3.connect({database:?}).executescript({statements:?})");
    let made = std::process::Command::new(weir_tests::foreign::installed("python"))
        .args(["-c", &script])
        .status();
    assert!(made.expect("python starts").success());
}

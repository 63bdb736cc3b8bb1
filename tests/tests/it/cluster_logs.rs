//! The log of a run on a cluster: what it says, and that a reader who follows it gets each line once, whoever
//! leads.

use std::collections::BTreeSet;

use serde_json::Value;
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::dataset;
use weir_tests::weir::Weir;

/// Enough for a run that can be met in its middle.
const ROWS: i64 = 400_000;

fn write_pipeline(cluster: &Cluster) {
    let folder = &cluster.weir.folder;
    dataset::write_csv(&folder.join("data"), ROWS, 2);
    let columns = dataset::COLUMNS;
    let text = format!(
        "pipeline: noted\n\
         sources: {{ rows: {{ type: csv, path: \"data/*.csv\", columns: {columns} }} }}\n\
         sinks:\n  lake: {{ input: rows, type: json, path: out, mode: append, batch_rows: 5000 }}\n"
    );
    std::fs::write(folder.join("pipeline.yaml"), text).expect("the disk has room");
}

fn lines(printed: &str) -> Vec<Value> {
    let parse = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"))
    };
    printed.lines().map(parse).collect()
}

fn with<'a>(lines: &'a [Value], beginning: &str) -> Vec<&'a Value> {
    let begins = |line: &&Value| {
        line["message"].as_str().is_some_and(|message| message.starts_with(beginning))
    };
    lines.iter().filter(begins).collect()
}

/// Each batch that was committed is told once, with its rows.
#[track_caller]
fn assert_batches(lines: &[Value]) {
    let batches = with(lines, "batch ");
    let rows: i64 = batches.iter().filter_map(|line| line["rows"].as_i64()).sum();
    assert_eq!(rows, ROWS, "{lines:#?}");
    let each: BTreeSet<String> =
        batches.iter().map(|line| format!("{} {}", line["slice"], line["message"])).collect();
    assert_eq!(each.len(), batches.len(), "{lines:#?}");
}

#[test]
fn a_log_says_what_was_planned_who_worked_and_what_was_committed() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let small = ["--coordinators", "1", "--executors", "1"];
    let cluster = Cluster::up_with(Weir::new(folder.path()), &small);
    write_pipeline(&cluster);
    let run = cluster.submit("pipeline.yaml", "noted");
    // Followed while it goes on: that ends with the run.
    let followed = cluster.run(&["logs", &run, "-f", "--output", "json"]).expect_code(0);
    let followed = lines(&followed.stdout);
    assert_eq!(cluster.wait(&run)["summary"]["status"], "succeeded");
    let later = cluster.run(&["logs", &run[..run.len() - 2], "--output", "json"]).expect_code(0);
    assert_eq!(lines(&later.stdout), followed, "it is the same afterwards");

    assert_batches(&followed);
    assert_eq!(with(&followed, "planned: 1 stage").len(), 1, "{followed:#?}");
    assert_eq!(with(&followed, "stage done")[0]["rows"], ROWS, "{followed:#?}");
    let attempts = with(&followed, "attempt began");
    assert!(!attempts.is_empty());
    assert!(attempts.iter().all(|line| line["executor"] == "executor-1"), "{attempts:#?}");
    assert_eq!(with(&followed, "attempt ended").len(), attempts.len(), "{followed:#?}");
    assert_eq!(followed.last().expect("there are lines")["message"], "run succeeded");
    let times: Vec<&str> = followed.iter().filter_map(|line| line["timestamp"].as_str()).collect();
    assert!(times.is_sorted() && times.len() == followed.len(), "{times:?}");

    let shown = cluster.run(&["logs", &run]).expect_code(0).stdout;
    let last = shown.lines().last().expect("there are lines");
    assert!(last.ends_with("INFO  run succeeded"), "{last}");
    cluster.run(&["logs", "nosuch"]).expect_code(2);
}

#[test]
fn a_followed_log_goes_on_with_the_next_leader_and_says_why_a_run_failed() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up(folder.path());
    write_pipeline(&cluster);
    let run = cluster.submit("pipeline.yaml", "noted");
    let leader = cluster.leader();
    let following = cluster.begin(&["logs", &run, "-f", "--output", "json"]);
    wait_until("a part of the run to be told", || following.printed().contains(" committed\""));
    cluster.kill(&leader);
    cluster.wait(&run);
    let followed = lines(&following.wait().expect_code(0).all());
    let epochs = with(&followed, "work begins, under the leader of epoch ");
    assert!(epochs.len() >= 2, "{followed:#?}");
    assert!(!with(&followed, "resumed: ").is_empty(), "{followed:#?}");
    assert_eq!(followed.last().expect("there are lines")["message"], "run succeeded");
    let each: BTreeSet<String> = with(&followed, "batch ")
        .iter()
        .map(|line| format!("{} {}", line["slice"], line["message"]))
        .collect();
    assert_eq!(each.len(), with(&followed, "batch ").len(), "no line comes twice: {followed:#?}");

    // What does not work is told with its reason.
    let wrong = "pipeline: wrong\nsources: { a: { type: csv, path: nosuch.csv } }\n\
                 sinks: { s: { input: a, type: csv, path: out } }\nretry: { max_attempts: 1 }\n";
    std::fs::write(folder.path().join("wrong.yaml"), wrong).expect("the disk has room");
    let run = cluster.submit("wrong.yaml", "wrong");
    let followed = cluster.run(&["logs", &run, "-f", "--output", "json"]).expect_code(0);
    let followed = lines(&followed.stdout);
    let last = followed.last().expect("there are lines");
    assert_eq!(last["level"], "ERROR", "{followed:#?}");
    let said = last["message"].as_str().expect("it says something");
    assert!(said.starts_with("run failed: ") && said.contains("nosuch.csv"), "{said}");

    // Tried again, it has two logs, one behind the other.
    std::fs::write(folder.path().join("nosuch.csv"), "a\n1\n").expect("the disk has room");
    cluster.run(&["retry", &run, "--wait"]).expect_code(0);
    let both = lines(&cluster.run(&["logs", &run, "--output", "json"]).expect_code(0).stdout);
    assert_eq!(both[..followed.len()], followed[..], "why it had failed is still known");
    assert_eq!(both.last().expect("there are lines")["message"], "run succeeded");
}

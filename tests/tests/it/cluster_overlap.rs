//! A second run of a pipeline beside one that goes on: what `concurrency.on_overlap` says, whoever leads.

use serde_json::{Value, json};
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::dataset;
use weir_tests::weir::Weir;

const ROWS: i64 = 400_000;

/// Every rule is a pipeline of its own, with targets of its own.
fn write_pipeline(cluster: &Cluster, on_overlap: &str) -> String {
    let folder = &cluster.weir.folder;
    if !folder.join("data").exists() {
        dataset::write_csv(&folder.join("data"), ROWS, 2);
    }
    let columns = dataset::COLUMNS;
    let text = format!(
        "pipeline: {on_overlap}\nconcurrency: {{ on_overlap: {on_overlap} }}\n\
         params: {{ target: {{ type: string, default: one }} }}\n\
         sources: {{ rows: {{ type: csv, path: \"data/*.csv\", columns: {columns} }} }}\n\
         sinks:\n  lake: {{ input: rows, type: json, path: \"{on_overlap}/{{{{ params.target }}}}\", \
         mode: append, batch_rows: 5000 }}\n"
    );
    let file = format!("{on_overlap}.yaml");
    std::fs::write(folder.join(&file), text).expect("the disk has room");
    file
}

fn submit(cluster: &Cluster, file: &str, target: &str) -> Value {
    let target = format!("target={target}");
    let arguments = ["submit", file, "--run", "--param", &target, "--output", "json"];
    cluster.run(&arguments).expect_code(0).json()
}

fn id(submitted: &Value) -> String {
    submitted["run"].as_str().unwrap_or_else(|| panic!("no run: {submitted}")).to_owned()
}

fn summary(cluster: &Cluster, run: &str) -> Value {
    cluster.show(run)["summary"].clone()
}

fn status(cluster: &Cluster, run: &str) -> String {
    summary(cluster, run)["status"].as_str().expect("it has a status").to_owned()
}

/// What a command has to say of a run that ends as it should.
fn assert_loaded(cluster: &Cluster, run: &str) -> Value {
    let shown = cluster.wait(run);
    assert_eq!(shown["summary"]["rows_written"]["lake"], ROWS, "{shown:#}");
    cluster.assert_audit_clean(run);
    shown["summary"].clone()
}

#[test]
fn a_second_run_waits_or_is_skipped_or_replaces_the_first_also_when_the_leader_is_killed() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up_with(Weir::new(folder.path()), &["--executors", "1"]);
    let [queue, skip, cancel] =
        ["queue", "skip", "cancel_running"].map(|on_overlap| write_pipeline(&cluster, on_overlap));
    // Without it the first runs go on for as long as the test wants.
    cluster.kill("executor-1");
    let first = [&queue, &skip, &cancel].map(|file| id(&submit(&cluster, file, "one")));

    let second = submit(&cluster, &queue, "two");
    assert_eq!(second["outcome"], "queued", "{second}");
    assert_eq!(second["beside"], json!(first[0]), "{second}");
    let second = id(&second);
    assert_eq!(status(&cluster, &second), "queued");
    // One that nobody wants any more leaves the queue, and others do not wait for it.
    let unwanted = id(&submit(&cluster, &queue, "unwanted"));
    cluster.run(&["cancel", &unwanted]).expect_code(0);
    assert_eq!(status(&cluster, &unwanted), "failed");
    let third = ["submit", "--pipeline", "queue", "--wait", "--param", "target=three"];
    let third = cluster.begin(&third);
    wait_until("it to wait", || third.printed().contains("waits for its turn"));

    let skipped = ["submit", "--pipeline", "skip", "--wait", "--request-id", "once"];
    let said = cluster.run(&skipped).expect_code(0);
    assert!(said.stdout.contains(&format!("is skipped: run {}", first[1])), "{}", said.all());
    let listed = cluster.run(&["runs", "--pipeline", "skip", "--output", "json"]).json();
    let listed = listed.as_array().cloned().unwrap_or_default();
    let skipped_run = listed.iter().find(|run| run["status"] == "skipped").expect("it is listed");
    let skipped_run = skipped_run["run"].as_str().expect("it has an id").to_owned();
    let refused = cluster.run(&["retry", &skipped_run]).expect_code(2);
    assert!(refused.stderr.contains("was skipped"), "{}", refused.all());

    let replaced = id(&submit(&cluster, &cancel, "replaced"));
    let last = id(&submit(&cluster, &cancel, "two"));

    let leader = cluster.leader();
    cluster.kill(&leader);
    wait_until("another leader", || cluster.leader() != leader);
    assert_eq!(status(&cluster, &second), "queued", "the next leader knows who waits");
    // Repeated it is answered as before, and is no second one.
    let said = cluster.run(&skipped).expect_code(0);
    assert!(said.stdout.contains(&skipped_run), "{}", said.all());

    cluster.start("executor-1");
    let first_summary = assert_loaded(&cluster, &first[0]);
    let second_summary = assert_loaded(&cluster, &second);
    let ended = first_summary["ended_at"].as_str().expect("it has ended");
    let started = second_summary["started_at"].as_str().expect("it has started");
    assert!(ended <= started, "{first_summary:#} {second_summary:#}");
    third.wait().expect_code(0);

    assert_loaded(&cluster, &first[1]);
    assert_eq!(status(&cluster, &skipped_run), "skipped");

    assert_loaded(&cluster, &last);
    for run in [&first[2], &replaced] {
        let summary = summary(&cluster, run);
        assert!(summary["status"] == "failed" || summary["status"] == "abandoned", "{summary:#}");
        let why = summary["error"].as_str().expect("it says why");
        assert!(why.contains("was submitted") && why.contains("cancel_running"), "{why}");
    }
}

#[test]
fn a_run_that_is_replaced_half_way_is_given_up_and_leaves_no_staging() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let small = ["--coordinators", "1", "--executors", "1", "--slots", "1"];
    let cluster = Cluster::up_with(Weir::new(folder.path()), &small);
    let file = write_pipeline(&cluster, "cancel_running");
    let path = folder.path().join(&file);
    let text = std::fs::read_to_string(&path).expect("it was written");
    std::fs::write(&path, text.replace("batch_rows: 5000", "batch_rows: 2000")).expect("room");
    let first = id(&submit(&cluster, &file, "one"));
    wait_until("the first run to be at work", || cluster.rows_written(&first) > 0);
    // In the middle of a batch, whose files are in staging.
    cluster.kill("executor-1");
    let second = submit(&cluster, &file, "two");
    assert_eq!(second["outcome"], "queued", "{second}");
    cluster.start("executor-1");
    assert_loaded(&cluster, &id(&second));

    let summary = summary(&cluster, &first);
    assert_eq!(summary["status"], "abandoned", "{summary:#}");
    let rows = summary["rows_written"]["lake"].as_i64().expect("it has committed some");
    assert!(0 < rows && rows < ROWS, "half-way: {rows}");
    let target = folder.path().join("cancel_running/one");
    assert_eq!(lines_in(&target), rows, "the target has what the ledger says, and no part of more");
    assert!(!target.join("_weir/staging").join(&first).exists(), "{summary:#}");
}

/// Of the files that readers see.
fn lines_in(folder: &std::path::Path) -> i64 {
    let entries = std::fs::read_dir(folder).expect("it is there");
    let files =
        entries.map(|entry| entry.expect("it can be read").path()).filter(|path| path.is_file());
    let lines = |path| std::fs::read_to_string(path).expect("JSON is text").lines().count();
    i64::try_from(files.map(lines).sum::<usize>()).expect("a small number")
}

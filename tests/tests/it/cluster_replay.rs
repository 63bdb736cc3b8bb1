//! Rejected rows of a run on a cluster, loaded by another run: as they are, mended, or by a mended pipeline.

use serde_json::{Value, json};
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::foreign::ask;
use weir_tests::weir::Weir;

fn write(cluster: &Cluster, name: &str, text: &str) {
    std::fs::write(cluster.weir.folder.join(name), text).expect("the disk has room");
}

fn pipeline(check: &str) -> String {
    format!(
        "pipeline: rejecting\n\
         sources: {{ a: {{ type: csv, path: in.csv, columns: {{ id: int64, amount: int64 }}, max_errors: 9 }} }}\n\
         transforms: {{ valid: {{ input: a, validate: [{{ check: {check} }}], max_errors: 9 }} }}\n\
         sinks: {{ s: {{ input: valid, type: json, path: out, mode: append, batch_rows: 5000 }} }}\n"
    )
}

/// Ids of all rows that have been loaded.
fn loaded(cluster: &Cluster) -> Vec<i64> {
    let files = std::fs::read_dir(cluster.weir.folder.join("out")).expect("it has been made");
    let mut ids = Vec::new();
    for file in files.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(file).expect("it can be read");
        let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        ids.extend(rows.filter_map(|row| row["id"].as_i64()));
    }
    ids.sort_unstable();
    ids
}

#[test]
fn rejected_rows_are_replayed_as_without_a_cluster() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up_with(Weir::new(folder.path()), &["--executors", "2"]);
    write(&cluster, "in.csv", "id,amount\n1,5\n2,x\n3,-1\n4,7\n5,-2\n");
    write(&cluster, "pipeline.yaml", &pipeline("amount > 0"));
    let run = cluster.submit("pipeline.yaml", "first");
    cluster.wait(&run);
    assert_eq!(loaded(&cluster), [1, 4]);

    // A line that could not be read is no row.
    let refused = cluster.run(&["dead-letters", "replay", &run]).expect_code(2);
    assert!(refused.stderr.contains("rejected rows of `a` are raw text"), "{}", refused.all());
    let refused = ["dead-letters", "replay", &run, "--node", "nosuch", "--rows", "in.csv"];
    let refused = cluster.run(&refused).expect_code(2);
    assert!(refused.stderr.contains("no source or transform `nosuch`"), "{}", refused.all());
    let none = cluster.run(&["dead-letters", "replay", &run, "--node", "s"]).expect_code(0);
    assert!(none.stdout.contains("nothing to replay"), "{}", none.all());

    // As they are: rejected again.
    let replay = ["dead-letters", "replay", &run, "--node", "valid"];
    let again = cluster.run(&[&replay[..], &["--output", "json"]].concat()).expect_code(0).json();
    let again = again["run"].as_str().expect("it has an id").to_owned();
    assert_eq!(cluster.wait(&again)["summary"]["dead_letters"], 2);
    assert_eq!(loaded(&cluster), [1, 4]);

    // Mended rows, and then a mended pipeline for what the replay has rejected.
    write(&cluster, "mended.jsonl", "{\"id\": 3, \"amount\": 1}\n");
    cluster.run(&[&replay[..], &["--rows", "mended.jsonl", "--wait"]].concat()).expect_code(0);
    assert_eq!(loaded(&cluster), [1, 3, 4]);
    write(&cluster, "mended.yaml", &pipeline("amount < -1"));
    let file = ["dead-letters", "replay", &again, "--file", "mended.yaml", "--wait"];
    cluster.run(&file).expect_code(0);
    assert_eq!(loaded(&cluster), [1, 3, 4, 5]);

    // A client of another kind, twice with one id: one run.
    let rows = "{\"id\": 7, \"amount\": 1}\n";
    let start = json!({ "run": run, "node": "valid", "rows_bytes": rows.len(), "request_id": "r" });
    // As JSON of protobuf has bytes.
    let encoded = "eyJpZCI6IDcsICJhbW91bnQiOiAxfQo=";
    let parts = json!([{ "start": start }, { "rows": encoded }]).to_string();
    let admin = cluster.dir.join("admin.token");
    let call = ["call", "weir.v1.DeadLetters/Replay", &parts];
    let first = ask(&cluster, Some(&admin), &call);
    let id = first.lines[0]["run"].as_str().unwrap_or_else(|| panic!("{first:?}")).to_owned();
    assert_eq!(ask(&cluster, Some(&admin), &call).lines[0]["run"], id);
    cluster.wait(&id);
    assert_eq!(loaded(&cluster), [1, 3, 4, 5, 7]);
    // Rows that have not all arrived are none.
    let start = json!({ "run": run, "node": "valid", "rows_bytes": 99 });
    let parts = json!([{ "start": start }, { "rows": encoded }]).to_string();
    let refused = ask(&cluster, Some(&admin), &["call", "weir.v1.DeadLetters/Replay", &parts]);
    assert_eq!(refused.refusal(), "INVALID_ARGUMENT", "{refused:?}");
    // The name of a request means one thing.
    let start = json!({ "run": again, "request_id": "r" });
    let parts = json!([{ "start": start }]).to_string();
    let refused = ask(&cluster, Some(&admin), &["call", "weir.v1.DeadLetters/Replay", &parts]);
    assert_eq!(refused.refusal(), "FAILED_PRECONDITION", "{refused:?}");
    let noted = cluster.run(&["cluster", "audit-log", "--output", "json"]).json();
    let noted = noted.as_array().cloned().unwrap_or_default();
    let is_noted = |about: &str| {
        noted.iter().any(|entry| entry["what"] == "DeadLetters/Replay" && entry["about"] == about)
    };
    assert!(is_noted(&id), "{noted:#?}");

    // Rows of which some are loaded when the leader dies: all once.
    let mended: String =
        (0..MANY).map(|id| format!("{{\"id\": {}, \"amount\": 1}}\n", 1_000 + id)).collect();
    write(&cluster, "many.jsonl", &mended);
    let replaying = cluster.begin(&[&replay[..], &["--rows", "many.jsonl", "--wait"]].concat());
    wait_until("some of the rows to be loaded", || {
        let loaded = newest(&cluster)["rows_written"]["s"].as_u64().unwrap_or_default();
        (1..MANY).contains(&loaded)
    });
    cluster.kill(&cluster.leader());
    replaying.wait().expect_code(0);
    let all: Vec<i64> = [1, 3, 4, 5, 7].into_iter().chain(1_000..1_000 + MANY as i64).collect();
    assert!(loaded(&cluster) == all, "{} rows", loaded(&cluster).len());
    let newest = newest(&cluster)["run"].as_str().expect("it has an id").to_owned();
    cluster.assert_audit_clean(&newest);
}

const MANY: u64 = 200_000;

/// Of all runs that load.
fn newest(cluster: &Cluster) -> Value {
    let runs = cluster.run(&["runs", "--limit", "1", "--output", "json"]).expect_code(0).json();
    runs[0].clone()
}

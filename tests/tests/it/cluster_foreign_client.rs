//! The API as somebody finds it who has nothing of ours: by reflection, over TLS, with a token.

use std::path::PathBuf;

use serde_json::{Value, json};
use weir_tests::cluster::Cluster;
use weir_tests::dataset;
use weir_tests::foreign::{Answer, ask};
use weir_tests::weir::Weir;

const ROWS: i64 = 20_000;
const PUBLIC: [&str; 8] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "weir.v1.Backfills",
    "weir.v1.Cluster",
    "weir.v1.DeadLetters",
    "weir.v1.Pipelines",
    "weir.v1.Runs",
    "weir.v1.State",
];

/// A new token in a file.
fn token(cluster: &Cluster, role: &str) -> PathBuf {
    let made = cluster.run(&["cluster", "token", "create", role, "--role", role]).expect_code(0);
    let file = cluster.weir.folder.join(format!("{role}.token"));
    std::fs::write(&file, made.stdout).expect("the disk has room");
    file
}

fn write_pipeline(cluster: &Cluster) {
    let folder = &cluster.weir.folder;
    dataset::write_csv(&folder.join("data"), ROWS, 4);
    let columns = dataset::COLUMNS;
    let text = format!(
        "pipeline: foreign\n\
         sources: {{ rows: {{ type: csv, path: \"data/*.csv\", columns: {columns} }} }}\n\
         sinks: {{ lake: {{ input: rows, type: parquet, path: out, mode: append }} }}\n"
    );
    std::fs::write(folder.join("pipeline.yaml"), text).expect("the disk has room");
}

#[test]
fn a_client_that_knows_no_proto_file_submits_watches_and_audits_a_run() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up(folder.path());
    write_pipeline(&cluster);
    let operator = token(&cluster, "operator");
    let ask = |arguments: &[&str]| ask(&cluster, Some(&operator), arguments);

    let services = ask(&["services"]);
    let listed = services.lines[0].as_array().expect("a list");
    for service in PUBLIC {
        assert!(listed.contains(&service.into()), "{service}: {services:?}");
    }

    let done = ask(&["job", "pipeline.yaml", "--request-id", "foreign"]);
    assert!(done.is_ok, "{done:#?}");
    assert_eq!(done.the("submitted")["is_new"], true, "{done:#?}");
    let run = done.the("submitted")["run"].as_str().expect("the run has an id").to_owned();
    let states: Vec<&Value> =
        done.all("update").iter().filter_map(|update| update.get("run")).collect();
    assert_eq!(states.first().expect("it is told")["status"], "RUN_STATUS_RUNNING");
    assert_eq!(states.last().expect("it is told")["status"], "RUN_STATUS_SUCCEEDED");
    let shown = done.the("shown");
    // JSON of protobuf has numbers of 64 bits as text.
    assert_eq!(shown["rows_written"]["lake"], ROWS.to_string(), "{shown:#}");
    let stages = shown["stages"].as_array().expect("a list");
    assert!(
        !stages.is_empty() && stages.iter().all(|stage| stage["slices"] == stage["slices_done"])
    );
    let audit = done.the("audit");
    assert_eq!((&audit["clean"], &audit["findings"]), (&json!(true), &json!([])), "{audit:#}");
    assert_eq!(audit["sinks"][0]["rows_in_target"], ROWS.to_string(), "{audit:#}");

    // Our own command says the same; and the same request begins nothing.
    let ours = cluster.show(&run);
    assert_eq!(ours["summary"]["rows_written"]["lake"], ROWS, "{ours:#}");
    let again = ask(&["job", "pipeline.yaml", "--request-id", "foreign"]);
    let submitted = again.the("submitted");
    assert_eq!(
        (&submitted["run"], &submitted["is_new"]),
        (&json!(run), &json!(false)),
        "{again:#?}"
    );
}

#[test]
fn a_client_that_knows_no_proto_file_is_refused_with_the_right_codes() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let small = ["--coordinators", "1", "--executors", "1"];
    let cluster = Cluster::up_with(Weir::new(folder.path()), &small);
    write_pipeline(&cluster);
    let (viewer, admin) = (token(&cluster, "viewer"), cluster.dir.join("admin.token"));
    let unknown = cluster.weir.folder.join("unknown.token");
    std::fs::write(&unknown, "weir_nobody-has-this-one").expect("the disk has room");
    let refused = |answer: Answer, code: &str| assert_eq!(answer.refusal(), code, "{answer:?}");

    for nobody in [None, Some(unknown.as_path())] {
        refused(ask(&cluster, nobody, &["services"]), "UNAUTHENTICATED");
        refused(ask(&cluster, nobody, &["call", "weir.v1.Runs/List"]), "UNAUTHENTICATED");
        refused(ask(&cluster, nobody, &["job", "pipeline.yaml"]), "UNAUTHENTICATED");
    }

    let viewer = Some(viewer.as_path());
    let runs = ask(&cluster, viewer, &["call", "weir.v1.Runs/List"]);
    assert_eq!(
        (runs.is_ok, &runs.lines[0]),
        (true, &json!({ "runs": [], "left": "0" })),
        "{runs:?}"
    );
    refused(ask(&cluster, viewer, &["job", "pipeline.yaml"]), "PERMISSION_DENIED");
    refused(ask(&cluster, viewer, &["call", "weir.v1.Cluster/ListTokens"]), "PERMISSION_DENIED");
    let missing = ["call", "weir.v1.Runs/Get", r#"{ "run": "nosuch" }"#];
    refused(ask(&cluster, viewer, &missing), "NOT_FOUND");

    // What a coordinator does not know is for admins only, whom it tells so.
    for method in ["weir.v1.Runs/Nothing", "weir.v1.Nothing/Get"] {
        refused(ask(&cluster, viewer, &["call", method]), "PERMISSION_DENIED");
        refused(ask(&cluster, Some(&admin), &["call", method]), "UNIMPLEMENTED");
    }
    let empty =
        ["call", "weir.v1.Runs/Submit", r#"{ "pipeline": "pipeline: p", "base_dir": "/" }"#];
    refused(ask(&cluster, Some(&admin), &empty), "INVALID_ARGUMENT");
    let runs = ask(&cluster, viewer, &["call", "weir.v1.Runs/List"]);
    assert_eq!(runs.lines, [json!({ "runs": [], "left": "0" })], "nothing has begun");
}

#[test]
fn a_client_that_knows_no_proto_file_registers_a_pipeline_and_runs_it_by_its_name() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let small = ["--coordinators", "1", "--executors", "1"];
    let cluster = Cluster::up_with(Weir::new(folder.path()), &small);
    write_pipeline(&cluster);
    let (operator, viewer) = (token(&cluster, "operator"), token(&cluster, "viewer"));
    let call = |method: &str, request: Value| {
        ask(&cluster, Some(&operator), &["call", method, &request.to_string()])
    };
    let text = std::fs::read_to_string(cluster.weir.folder.join("pipeline.yaml"));
    let text = text.expect("it has just been written");
    let base_dir = cluster.weir.folder.display().to_string();
    let register = json!({ "text": text, "base_dir": base_dir, "request_id": "register" });
    let registered = call("weir.v1.Pipelines/Register", register.clone());
    let first = json!({ "pipeline": "foreign", "version": 1, "is_new": true });
    assert_eq!(registered.lines, [first], "{registered:?}");
    // Asked for again, and refused for somebody who may only look.
    let again = call("weir.v1.Pipelines/Register", register.clone());
    assert_eq!(again.lines[0]["is_new"], false, "{again:?}");
    let refused = ["call", "weir.v1.Pipelines/Register", &register.to_string()];
    assert_eq!(ask(&cluster, Some(&viewer), &refused).refusal(), "PERMISSION_DENIED");
    // The name of a request means one thing.
    let other = json!({ "pipeline": "foreign", "request_id": "register" });
    assert_eq!(call("weir.v1.Pipelines/Delete", other).refusal(), "FAILED_PRECONDITION");

    let wanted = json!({ "registered": "foreign", "request_id": "run" });
    let submitted = call("weir.v1.Runs/Submit", wanted);
    let run = submitted.lines[0]["run"].clone();
    let run = json!({ "run": run });
    let watched = call("weir.v1.Runs/Watch", run.clone());
    assert!(watched.is_ok, "{watched:?}");
    let shown = call("weir.v1.Runs/Get", run);
    assert_eq!(shown.lines[0]["status"], "RUN_STATUS_SUCCEEDED", "{shown:?}");
    assert_eq!(shown.lines[0]["version"], 1, "{shown:?}");

    let log = call("weir.v1.Runs/Logs", json!({ "run": shown.lines[0]["run"], "follow": true }));
    assert!(log.is_ok, "{log:?}");
    let last = log.lines.last().expect("there are lines");
    assert_eq!(
        (&last["message"], &last["level"]),
        (&json!("run succeeded"), &json!("LOG_LEVEL_INFO"))
    );
    let rest = json!({ "run": shown.lines[0]["run"], "after": log.lines[0]["position"] });
    let rest = call("weir.v1.Runs/Logs", rest);
    assert_eq!(rest.lines, log.lines[1..], "{rest:?}");
    let set = json!({ "pipeline": "foreign", "source": "rows", "value": "7" });
    let set = call("weir.v1.State/SetWatermark", set);
    assert_eq!(set.lines[0]["watermarks"], json!({ "rows": "7" }), "{set:?}");
    let reset = call("weir.v1.State/ResetWatermarks", json!({ "pipeline": "foreign" }));
    assert_eq!(reset.lines[0]["watermarks"], json!({}), "{reset:?}");

    let listed = call("weir.v1.Pipelines/List", json!({}));
    assert_eq!(listed.lines[0]["pipelines"][0]["version"], 1, "{listed:?}");
    let got = call("weir.v1.Pipelines/Get", json!({ "pipeline": "foreign" }));
    assert_eq!(got.lines[0]["text"], text, "{got:?}");
    let deleted = call("weir.v1.Pipelines/Delete", json!({ "pipeline": "foreign" }));
    assert!(deleted.is_ok, "{deleted:?}");
    let gone = call("weir.v1.Pipelines/Get", json!({ "pipeline": "foreign" }));
    assert_eq!(gone.refusal(), "NOT_FOUND");
}

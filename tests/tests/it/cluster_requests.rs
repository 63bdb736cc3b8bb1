//! Requests that come again: answered again, and nothing is changed twice, whoever leads by then.

use std::path::PathBuf;

use serde_json::{Value, json};
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::foreign::{Answer, ask};
use weir_tests::weir::Weir;

struct Clients {
    cluster: Cluster,
    admin: PathBuf,
}

impl Clients {
    fn call(&self, method: &str, request: &Value) -> Answer {
        ask(&self.cluster, Some(&self.admin), &["call", method, &request.to_string()])
    }

    #[track_caller]
    fn done(&self, method: &str, request: &Value) -> Value {
        let answer = self.call(method, request);
        assert!(answer.is_ok, "{method} {request}: {answer:#?}");
        answer.lines[0].clone()
    }

    #[track_caller]
    fn refused(&self, method: &str, request: &Value, code: &str) {
        assert_eq!(self.call(method, request).refusal(), code, "{method} {request}");
    }

    fn kill_the_leader(&self) {
        let leader = self.cluster.leader();
        self.cluster.kill(&leader);
        wait_until("another leader", || self.cluster.leader() != leader);
        self.cluster.start(&leader);
    }
}

/// Three days, a row each.
fn write_data(cluster: &Cluster) {
    for day in 1..=3 {
        let file = cluster.weir.folder.join(format!("2024-01-0{day}.csv"));
        std::fs::write(file, format!("id\n{day}\n")).expect("the disk has room");
    }
}

fn write_pipeline(cluster: &Cluster, description: &str) {
    let folder = &cluster.weir.folder;
    let text = format!(
        "pipeline: daily\ndescription: {description}\n\
         sources: {{ rows: {{ type: csv, path: \"{{{{ window.start[:10] }}}}.csv\", \
         columns: {{ id: int64 }} }} }}\n\
         sinks: {{ lake: {{ input: rows, type: json, path: out, mode: append }} }}\n"
    );
    std::fs::write(folder.join("daily.yaml"), text).expect("the disk has room");
}

#[test]
fn changes_of_a_backfill_by_the_name_of_its_pipeline_are_made_once_whoever_leads() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up_with(Weir::new(folder.path()), &["--executors", "1"]);
    let clients = Clients { admin: cluster.dir.join("admin.token"), cluster };
    let cluster = &clients.cluster;
    write_data(cluster);
    write_pipeline(cluster, "first");
    cluster.run(&["submit", "daily.yaml", "--request-id", "register"]).expect_code(0);
    // Until it is there again, windows stay at work.
    cluster.kill("executor-1");
    let create = json!({
        "registered": "daily", "from": "2024-01-01T00:00:00Z", "to": "2024-01-04T00:00:00Z",
        "step": "1d", "request_id": "create",
    });
    let created = clients.done("weir.v1.Backfills/Create", &create);
    assert_eq!((&created["is_new"], &created["backfill"]["version"]), (&json!(true), &json!(1)));
    let backfill = created["backfill"]["backfill"].as_str().expect("it has an id").to_owned();
    let about = |request: &str| json!({ "backfill": backfill, "request_id": request });
    let priority = |priority: i32, request: &str| json!({ "backfill": backfill, "priority": priority, "request_id": request });
    let status = |method: &str, request: &str| {
        clients.done(&format!("weir.v1.Backfills/{method}"), &about(request))["status"].clone()
    };
    assert_eq!(status("Pause", "pause"), "BACKFILL_STATUS_PAUSED");
    assert_eq!(status("Resume", "resume"), "BACKFILL_STATUS_RUNNING");
    for (number, request) in [(5, "five"), (7, "seven")] {
        clients.done("weir.v1.Backfills/SetPriority", &priority(number, request));
    }
    assert_eq!(status("Cancel", "cancel"), "BACKFILL_STATUS_CANCELLED");
    assert_eq!(status("Resume", "again"), "BACKFILL_STATUS_RUNNING");

    clients.kill_the_leader();
    // What has been done since stays, and is what is answered.
    for (method, request) in [("Pause", "pause"), ("Cancel", "cancel"), ("Resume", "resume")] {
        assert_eq!(status(method, request), "BACKFILL_STATUS_RUNNING", "{method}");
    }
    let answer = clients.done("weir.v1.Backfills/SetPriority", &priority(5, "five"));
    assert_eq!(answer["priority"], 7, "{answer:#}");
    // The newest version is another one by now: the request means what it has meant.
    write_pipeline(cluster, "second");
    let said = cluster.run(&["submit", "daily.yaml"]).expect_code(0);
    assert!(said.stdout.contains("version 2"), "{}", said.all());
    let created = clients.done("weir.v1.Backfills/Create", &create);
    assert_eq!((&created["is_new"], &created["backfill"]["version"]), (&json!(false), &json!(1)));
    assert_eq!(created["backfill"]["backfill"], json!(backfill));

    // A name is for one request.
    let code = "FAILED_PRECONDITION";
    clients.refused("weir.v1.Backfills/SetPriority", &priority(6, "five"), code);
    clients.refused("weir.v1.Backfills/Resume", &about("pause"), code);
    clients.refused("weir.v1.Backfills/Pause", &about("create"), code);
    let mut other_step = create.clone();
    other_step["step"] = json!("1h");
    clients.refused("weir.v1.Backfills/Create", &other_step, code);

    cluster.start("executor-1");
    // As a command it is the same request.
    let start = ["backfill", "start", "--pipeline", "daily", "--from", "2024-01-01", "--to"];
    let rest = ["2024-01-04", "--step", "1d", "--request-id", "create", "--wait"];
    cluster.run(&[&start[..], &rest].concat()).expect_code(0);
    let listed = cluster.run(&["backfills", "--output", "json"]).expect_code(0).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed:#}");
    assert_eq!(listed[0]["rows_written"]["lake"], 3, "{listed:#}");
    let retry = json!({ "backfill": backfill, "request_id": "windows" });
    clients.done("weir.v1.Backfills/RetryWindows", &retry);
    clients.refused("weir.v1.Backfills/Cancel", &about("windows"), code);
}

#[test]
fn tokens_are_made_and_revoked_once_whoever_leads() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up_with(Weir::new(folder.path()), &["--executors", "1"]);
    let clients = Clients { admin: cluster.dir.join("admin.token"), cluster };
    let secret = |digit: &str| format!("weir_{}", digit.repeat(64));
    let create = |role: &str, token: &str, request: &str| json!({ "name": "eve", "role": role, "token": token, "request_id": request });
    let viewer = create("TOKEN_ROLE_VIEWER", &secret("a"), "eve");
    let made = |request: &Value| clients.done("weir.v1.Cluster/CreateToken", request);
    assert_eq!(made(&viewer)["token"], json!(secret("a")));
    // Nobody can be told it again.
    let chosen_there = json!({ "name": "bob", "role": "TOKEN_ROLE_VIEWER", "request_id": "bob" });
    made(&chosen_there);

    clients.kill_the_leader();
    assert_eq!(made(&viewer)["token"], json!(secret("a")));
    let refused = |request: &Value, code: &str| {
        clients.refused("weir.v1.Cluster/CreateToken", request, code);
    };
    refused(&chosen_there, "FAILED_PRECONDITION");
    refused(&create("TOKEN_ROLE_ADMIN", &secret("a"), "eve"), "FAILED_PRECONDITION");
    refused(&create("TOKEN_ROLE_VIEWER", &secret("b"), "eve"), "FAILED_PRECONDITION");
    refused(&create("TOKEN_ROLE_VIEWER", &secret("b"), "another"), "ALREADY_EXISTS");
    refused(&create("TOKEN_ROLE_VIEWER", "weir_easy", "another"), "INVALID_ARGUMENT");

    let revoke = json!({ "name": "eve", "request_id": "revoke" });
    clients.done("weir.v1.Cluster/RevokeToken", &revoke);
    made(&create("TOKEN_ROLE_OPERATOR", &secret("c"), "eve, later"));
    // The one that has got the name since is not meant.
    clients.done("weir.v1.Cluster/RevokeToken", &revoke);
    let listed = clients.done("weir.v1.Cluster/ListTokens", &json!({}));
    let tokens = listed["tokens"].as_array().cloned().unwrap_or_default();
    let eve = tokens.iter().find(|token| token["name"] == "eve").expect("it is not revoked");
    assert_eq!(eve["role"], "TOKEN_ROLE_OPERATOR", "{listed:#}");
    let file = clients.cluster.weir.folder.join("eve.token");
    std::fs::write(&file, secret("c")).expect("the disk has room");
    assert!(ask(&clients.cluster, Some(&file), &["call", "weir.v1.Runs/List"]).is_ok);
}

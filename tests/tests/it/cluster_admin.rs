//! What admins do with a cluster: executors leave in good order, changes are noted, and nobody can ask for too much.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use weir_proto::v1::cluster_client::ClusterClient;
use weir_proto::v1::runs_client::RunsClient;
use weir_proto::v1::{StatusRequest, SubmitRequest, WatchRunRequest};
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::dataset::{self, Checker};
use weir_tests::weir::{Running, Weir};

use crate::targets::{self, Target};

const ROWS: i64 = 100_000;

/// A join whose rows between its parts executors keep for each other. An outer one, though each row has its group: otherwise
/// every task would read the groups, and no rows would be dealt out.
fn write_pipeline(folder: &Path, target: &dyn Target) {
    dataset::write_csv(&folder.join("data"), ROWS, 4);
    let groups: String = (0..97).map(|group| format!("{group}\n")).collect();
    std::fs::write(folder.join("data/groups.txt"), format!("grp\n{groups}")).expect("room");
    let (columns, target) = (dataset::COLUMNS, target.yaml(2_000));
    let text = format!(
        "pipeline: joined\n\
         checkpoint: {{ exchange: off }}\n\
         sources:\n  rows: {{ type: csv, path: \"data/*.csv\", columns: {columns} }}\n\
         \x20 groups: {{ type: csv, path: data/groups.txt, columns: {{ grp: int64 }} }}\n\
         transforms:\n  joined:\n    sql: \"SELECT r.id, r.grp, r.amount, r.name FROM rows r \
         FULL JOIN groups g ON r.grp = g.grp\"\n\
         sinks:\n  target:\n    input: joined\n{target}"
    );
    std::fs::write(folder.join("pipeline.yaml"), text).expect("room");
}

fn is_draining(cluster: &Cluster, name: &str) -> bool {
    let draining = cluster.status()["draining"].as_array().cloned().unwrap_or_default();
    draining.iter().any(|draining| draining == name)
}

#[test]
fn executors_that_are_drained_leave_and_the_run_loses_nothing_though_the_leader_dies_meanwhile() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let target = targets::files_at(folder.path(), "lake/out", "parquet", "append", "batch");
    write_pipeline(folder.path(), &*target);
    let cluster = Cluster::up(folder.path());
    let run = cluster.submit("pipeline.yaml", "drained");
    wait_until("executors work on it", || cluster.working_on(&run).len() > 1);
    for name in ["executor-2", "executor-3"] {
        cluster.run(&["cluster", "drain", name, "--detach"]).expect_code(0);
    }
    let leader = cluster.leader();
    cluster.kill(&leader);
    cluster.start(&leader);
    // Waits until it has left.
    let drained = cluster.run(&["cluster", "drain", "executor-2", "--output", "json"]);
    assert_eq!(drained.expect_code(0).json()["changed"], false, "the next leader knows it");
    assert!(!cluster.is_alive(cluster.pid("executor-2")));
    cluster.run(&["cluster", "drain", "executor-3"]).expect_code(0);
    assert!(is_draining(&cluster, "executor-2") && is_draining(&cluster, "executor-3"));
    assert_eq!(cluster.executors(), ["executor-1"]);
    cluster.wait(&run);
    let mut checker = Checker::default();
    target.read(&mut checker);
    assert_eq!(checker.problem(ROWS), None, "{}", cluster.logs());
    cluster.assert_audit_clean(&run);

    cluster.run(&["cluster", "undrain", "executor-2"]).expect_code(0);
    assert!(!is_draining(&cluster, "executor-2"));
    cluster.start("executor-2");
    assert_eq!(cluster.executors(), ["executor-1", "executor-2"]);
    let unknown = cluster.run(&["cluster", "drain", "nobody"]).expect_code(2);
    assert!(unknown.stderr.contains("no executor `nobody`"), "{}", unknown.stderr);
}

/// A coordinator alone, without TLS, with options of its own.
struct Alone {
    _process: Running,
    weir: Weir,
    url: String,
    folder: PathBuf,
}

impl Alone {
    fn start(folder: &Path, options: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        drop(listener);
        let (url, weir) = (format!("http://{address}"), Weir::new(folder));
        std::fs::create_dir(folder.join("storage")).expect("the folder can be made");
        let members = format!("1={url}");
        let command = [
            "coordinator",
            "--id",
            "1",
            "--listen",
            &address,
            "--url",
            &url,
            "--members",
            &members,
            "--dir",
            "alone",
            "--storage",
            "storage",
            "--insecure",
        ];
        let process = weir.start(&[&command, options].concat());
        let alone = Self { _process: process, weir, url, folder: folder.to_owned() };
        wait_until("it leads", || alone.run(&["cluster", "status"]).status.code() == Some(0));
        alone
    }

    fn run(&self, arguments: &[&str]) -> weir_tests::weir::Output {
        self.weir.run(&[arguments, &["--coordinator", &self.url]].concat())
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.url.clone()).expect("it is a URL");
        endpoint.connect().await.expect("it lives")
    }
}

#[test]
fn the_process_of_a_drained_executor_ends_well_and_does_so_again_until_it_is_wanted() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let alone = Alone::start(folder.path(), &[]);
    let spare = ["executor", "--id", "spare", "--coordinators", &alone.url, "--dir", "spare"];
    let start =
        || alone.weir.start(&[&spare[..], &["--storage", "storage", "--insecure"]].concat());
    let is_here = || {
        let status = alone.run(&["cluster", "status", "--output", "json"]).json();
        status["executors"].as_array().is_some_and(|executors| executors.len() == 1)
    };
    let process = start();
    wait_until("it is here", is_here);
    alone.run(&["cluster", "drain", "spare"]).expect_code(0);
    process.wait().expect_code(0);
    // As long as it is to leave.
    start().wait().expect_code(0);
    alone.run(&["cluster", "undrain", "spare"]).expect_code(0);
    let process = start();
    wait_until("it is here again", is_here);
    process.terminate();
    process.wait().expect_code(0);
}

#[test]
fn whoever_asks_for_too_much_is_told_when_to_come_again() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let limits = ["--requests-per-second", "20", "--calls-at-once", "3"];
    let alone = Alone::start(folder.path(), &limits);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(async {
        let cluster = ClusterClient::new(alone.channel().await);
        let asking: Vec<_> = (0..100)
            .map(|_| {
                let mut cluster = cluster.clone();
                tokio::spawn(async move { cluster.status(StatusRequest::default()).await.err() })
            })
            .collect();
        let mut refusal = None;
        for asked in asking {
            let refused = asked.await.expect("no panic");
            let is_meant = |status: &Status| status.message().contains("requests a second");
            refusal = refusal.or(refused.filter(is_meant));
        }
        let refusal = refusal.expect("a hundred at once are more than twenty");
        assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal:?}");
        let hint = refusal.metadata().get("grpc-retry-pushback-ms").expect("it says when");
        let millis: u64 = hint.to_str().ok().and_then(|hint| hint.parse().ok()).expect("a number");
        assert!((1..=1_000).contains(&millis), "{millis}");
    });
    // Commands come again by themselves.
    alone.run(&["runs"]).expect_code(0);

    // Without executors a run goes on for ever.
    let data = alone.folder.join("data.csv");
    std::fs::write(data, "a\n1\n").expect("room");
    let pipeline = "pipeline: waits\nsources: { s: { type: csv, path: data.csv, columns: { a: int64 } } }\n\
                    sinks: { t: { input: s, type: csv, path: out, mode: append } }\n";
    runtime.block_on(async {
        let submit = SubmitRequest {
            pipeline: pipeline.to_owned(),
            base_dir: alone.folder.display().to_string(),
            ..SubmitRequest::default()
        };
        let mut runs = RunsClient::new(alone.channel().await);
        let run = loop {
            match runs.submit(submit.clone()).await {
                Ok(submitted) => break submitted.into_inner().run,
                Err(status) if status.code() == Code::ResourceExhausted => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(status) => panic!("{status:?}"),
            }
        };
        let watch = async |timeout: Option<Duration>| loop {
            let mut request = Request::new(WatchRunRequest { run: run.clone() });
            if let Some(timeout) = timeout {
                request.set_timeout(timeout);
            }
            match RunsClient::new(alone.channel().await).watch(request).await {
                Err(status) if status.message().contains("requests a second") => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                answer => break answer.map(tonic::Response::into_inner),
            }
        };
        // Its client says how long it waits for the end, and hears of it.
        let mut bounded = watch(Some(Duration::from_secs(2))).await.expect("it is not over");
        let ended = loop {
            match bounded.message().await {
                Ok(Some(_)) => {}
                Ok(None) => break Status::ok(""),
                Err(status) => break status,
            }
        };
        assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended:?}");
        let watching = [watch(None).await, watch(None).await, watch(None).await];
        assert!(watching.iter().all(Result::is_ok), "three may go on at once: {watching:?}");
        let fourth = watch(None).await.expect_err("three are not over");
        assert_eq!(fourth.code(), Code::ResourceExhausted, "{fourth:?}");
        drop(watching);
        let mut after = watch(None).await;
        while after.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            after = watch(None).await;
        }
    });
}

#[test]
fn who_has_changed_what_is_noted_without_what_was_sent() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let options = ["--coordinators", "1", "--executors", "1"];
    let cluster = Cluster::up_with(Weir::new(folder.path()), &options);
    let token = |name: &str, role: &str| {
        let create = ["cluster", "token", "create", name, "--role", role];
        let made = cluster.run(&create).expect_code(0).stdout;
        let file = folder.path().join(format!("{name}.token"));
        std::fs::write(&file, &made).expect("the disk has room");
        (file.display().to_string(), made.trim().to_owned())
    };
    let ((olga, olgas), (eve, eves)) = (token("olga", "operator"), token("eve", "viewer"));
    std::fs::write(folder.path().join("data.csv"), "a\n1\n").expect("the disk has room");
    let pipeline = "pipeline: noted\nsources: { s: { type: csv, path: data.csv, columns: { a: int64 } } }\n\
                    sinks: { t: { input: s, type: csv, path: out_of_sight, mode: append } }\n";
    std::fs::write(folder.path().join("p.yaml"), pipeline).expect("the disk has room");
    let submit = ["submit", "p.yaml", "--wait", "--output", "json", "--token-file"];
    cluster.run(&[&submit[..], &[&olga]].concat()).expect_code(0);
    cluster.run(&[&submit[..], &[&eve]].concat()).expect_code(2);
    cluster.run(&["cancel", "no-such-run", "--token-file", &olga]).expect_code(2);
    cluster.run(&["runs", "--token-file", &eve]).expect_code(0);
    cluster.run(&["cluster", "token", "revoke", "eve"]).expect_code(0);
    // It is for admins.
    cluster.run(&["cluster", "audit-log", "--token-file", &olga]).expect_code(2);

    let listed = cluster.run(&["cluster", "audit-log", "--output", "json"]).expect_code(0);
    let entries = listed.json().as_array().cloned().expect("a list");
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let seen: Vec<[String; 3]> = (entries.iter())
        .map(|entry| [text(entry, "who"), text(entry, "what"), text(entry, "refused")])
        .collect();
    let expected = [
        ["bootstrap", "Cluster/CreateToken", ""],
        ["bootstrap", "Cluster/CreateToken", ""],
        ["olga", "Pipelines/Register", ""],
        ["olga", "Runs/Submit", ""],
        ["eve", "Pipelines/Register", "PERMISSION_DENIED"],
        ["olga", "Runs/Cancel", "NOT_FOUND"],
        ["bootstrap", "Cluster/RevokeToken", ""],
    ];
    assert_eq!(seen, expected.map(|entry| entry.map(str::to_owned)));
    let run = cluster.run(&["runs", "--output", "json"]).expect_code(0).json();
    let about: Vec<String> = entries.iter().map(|entry| text(entry, "about")).collect();
    let run = text(&run[0], "run");
    assert_eq!(about, ["olga", "eve", "noted", run.as_str(), "", "no-such-run", "eve"]);
    for secret in [&olgas, &eves, "out_of_sight"] {
        assert!(!listed.stdout.contains(secret), "{secret}");
    }
    let newest = ["cluster", "audit-log", "--limit", "1", "--output", "json"];
    let newest = cluster.run(&newest).expect_code(0).json();
    assert_eq!(newest.as_array().map(Vec::len), Some(1));
    assert_eq!(newest[0]["what"], "Cluster/RevokeToken");
}

#[test]
fn runs_that_are_over_leave_the_ledger_and_are_found_by_their_ids() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let alone = Alone::start(folder.path(), &["--kept-runs", "1"]);
    dataset::write_csv(&folder.path().join("data"), 1_000, 2);
    let columns = dataset::COLUMNS;
    let text = format!(
        "pipeline: kept\n\
         sources: {{ rows: {{ type: csv, path: \"data/*.csv\", columns: {columns} }} }}\n\
         sinks:\n  lake: {{ input: rows, type: json, path: out, mode: append }}\n"
    );
    std::fs::write(folder.path().join("pipeline.yaml"), text).expect("the disk has room");
    let json = |arguments: &[&str]| {
        alone.run(&[arguments, &["--output", "json"]].concat()).expect_code(0).json()
    };
    let submit = |name: &str| {
        let answer = json(&["submit", "pipeline.yaml", "--run", "--request-id", name]);
        answer["run"].as_str().expect("the run has an id").to_owned()
    };
    let summary = |run: &str| json(&["run", "show", run])["summary"].clone();
    let ended =
        |run: &str| wait_until("it has succeeded", || summary(run)["status"] == "succeeded");

    // Nobody works on it, and it commits nothing.
    let cancelled = submit("cancelled");
    alone.run(&["cancel", &cancelled]).expect_code(0);
    let executor = ["executor", "--id", "one", "--coordinators", &alone.url, "--dir", "one"];
    let _executor =
        alone.weir.start(&[&executor[..], &["--storage", "storage", "--insecure"]].concat());
    let first = submit("first");
    ended(&first);
    let before = summary(&first);
    let second = submit("second");
    ended(&second);

    let listed = || {
        let runs = json(&["runs"]);
        let runs = runs.as_array().cloned().unwrap_or_default();
        runs.iter().filter_map(|run| run["run"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    wait_until("older runs to have left", || listed() == [second.clone()]);
    let printed = alone.run(&["runs"]).expect_code(0).stdout;
    assert!(printed.contains("2 older runs"), "{printed}");
    assert_eq!(summary(&first), before);
    assert_eq!(json(&["audit", &first])["clean"], true);
    let log = alone.run(&["logs", &first]).expect_code(0).stdout;
    assert!(log.contains("run succeeded"), "{log}");
    assert!(json(&["tasks", &first]).as_array().is_some_and(|tasks| !tasks.is_empty()));
    let beginning = &first[..first.len() - 1];
    let unknown = alone.run(&["run", "show", beginning]).expect_code(2).stderr;
    assert!(unknown.contains("by its whole id"), "{unknown}");

    assert_eq!(summary(&cancelled)["status"], "failed");
    let refused = alone.run(&["retry", &cancelled]).expect_code(2).stderr;
    assert!(refused.contains("has left the ledger"), "{refused}");
    let refused = alone.run(&["retry", &first]).expect_code(2).stderr;
    assert!(refused.contains("has succeeded"), "{refused}");
    let refused = alone.run(&["cancel", &first]).expect_code(2).stderr;
    assert!(refused.contains("is over"), "{refused}");
    assert_eq!(summary(&second)["status"], "succeeded", "it is the newest");
}

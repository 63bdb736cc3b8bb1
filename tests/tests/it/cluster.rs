//! The promise on a cluster: whatever process is killed or paused during a run, the destinations end up
//! exactly right. Moments are random; `WEIR_TEST_SEED` repeats them.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::dataset::{self, Checker};
use weir_tests::moments::Moments;
use weir_tests::weir::Weir;

use crate::targets::{self, Target};

/// Enough for a run that can be met in its middle.
const ROWS: i64 = 200_000;
const BATCH_ROWS: i64 = 5_000;
const REQUEST: &str = "the-only-one";
/// Longer than the lease of an executor (3 s): it has lost its tasks when it wakes up.
const PAUSE: Duration = Duration::from_secs(8);

/// CSV files: joined into Parquet and SQLite (whole stages, exchanges), and copied as they are (four
/// slices at once, shown at the end).
struct Scenario {
    folder: tempfile::TempDir,
    targets: [(&'static str, Box<dyn Target>); 3],
}

impl Scenario {
    fn new() -> Self {
        Self::with(|path| {
            [
                targets::files_at(path, "lake/out", "parquet", "append", "batch"),
                targets::sqlite_at(path, "report/out.db", "upsert", "batch"),
                targets::files_at(path, "copied/out", "csv", "append", "run"),
            ]
        })
    }

    /// With the targets that sinks `lake`, `report` and `copied` write into.
    fn with(targets: impl FnOnce(&Path) -> [Box<dyn Target>; 3]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path();
        dataset::write_csv(&path.join("data"), ROWS, 4);
        let groups: String = (0..97).map(|group| format!("{group}\n")).collect();
        write(&path.join("data/groups.txt"), &format!("grp\n{groups}"));
        std::fs::create_dir(path.join("report")).expect("the folder can be made");
        let [lake, report, copied] = targets(path);
        let targets = [("lake", lake), ("report", report), ("copied", copied)];
        let [lake, report, copied] = targets.each_ref().map(|(_, target)| target.yaml(BATCH_ROWS));
        let columns = dataset::COLUMNS;
        write(
            &path.join("pipeline.yaml"),
            &format!(
                "pipeline: clustered\n\
                 sources:\n  rows: {{ type: csv, path: \"data/*.csv\", columns: {columns} }}\n\
                 \x20 plain: {{ type: csv, path: \"data/*.csv\", columns: {columns} }}\n\
                 \x20 groups: {{ type: csv, path: data/groups.txt, columns: {{ grp: int64 }} }}\n\
                 transforms:\n  joined:\n    sql: \"SELECT r.id, r.grp, r.amount, r.name FROM rows r \
                 JOIN groups g ON r.grp = g.grp\"\n\
                 sinks:\n  lake:\n    input: joined\n{lake}  report:\n    input: joined\n{report}\
                 \x20 copied:\n    input: plain\n{copied}",
            ),
        );
        Self { folder, targets }
    }

    fn up(&self) -> Cluster {
        Cluster::up(self.folder.path())
    }

    /// Every row exactly once in each target, no staging left, and the ledger agrees.
    #[track_caller]
    fn assert_exact(&self, cluster: &Cluster, run: &str) {
        self.assert_rows_exact(cluster, run);
        for (name, target) in &self.targets {
            assert_eq!(target.leftovers(), None, "{name}: staging is left behind");
        }
    }

    /// As [`assert_exact`](Self::assert_exact); but who is paused beyond the end of a run and wakes up may
    /// leave an invisible folder.
    #[track_caller]
    fn assert_rows_exact(&self, cluster: &Cluster, run: &str) {
        for (name, target) in &self.targets {
            let mut checker = Checker::default();
            target.read(&mut checker);
            assert_eq!(checker.problem(ROWS), None, "{name}\n{}", cluster.logs());
        }
        cluster.assert_audit_clean(run);
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the disk has room");
}

/// Starts a run and comes back at a random moment of it: all its rows are counted once for each target.
fn submitted_and_met_in_the_middle(cluster: &Cluster, moments: &mut Moments) -> String {
    let run = cluster.submit("pipeline.yaml", REQUEST);
    let rows = moments.fraction() * 0.7 * 3.0 * ROWS as f64;
    wait_until("the run to be in its middle", || cluster.rows_written(&run) as f64 >= rows);
    run
}

/// An executor that has a task of the run.
fn at_work(cluster: &Cluster, run: &str) -> String {
    let mut found = None;
    wait_until("an executor to work", || {
        found = cluster.working_on(run).into_iter().next();
        found.is_some()
    });
    found.expect("it has been waited for")
}

/// The test has disturbed it: a second leader has worked on it.
#[track_caller]
fn assert_taken_up_again(shown: &Value) {
    assert!(shown["summary"]["sessions"].as_u64() >= Some(2), "{shown:#}");
}

/// The test has disturbed it: a slice was given to somebody else.
#[track_caller]
fn assert_done_again(shown: &Value) {
    let stages = shown["stages"].as_array().expect("a list");
    let is_repeated = |stage: &Value| stage["attempts"].as_u64() > stage["slices"].as_u64();
    assert!(stages.iter().any(is_repeated), "{shown:#}");
}

#[test]
fn a_submitted_pipeline_fills_its_targets() {
    let scenario = Scenario::new();
    let cluster = scenario.up();
    let output = cluster.run(&["submit", "pipeline.yaml", "--wait"]).expect_code(0);
    assert!(output.stdout.contains("succeeded in"), "{}", output.all());
    let runs = cluster.run(&["runs", "--output", "json"]).expect_code(0).json();
    let run = runs[0]["run"].as_str().unwrap_or_else(|| panic!("no run: {runs:#}"));
    assert_eq!(runs[0]["status"], "succeeded", "{runs:#}");
    assert_eq!(runs[0]["rows_written"]["lake"], ROWS, "{runs:#}");
    scenario.assert_exact(&cluster, run);
    let tasks = cluster.run(&["tasks", run, "--output", "json"]).expect_code(0).json();
    let tasks = tasks.as_array().expect("a list");
    let is_done = |task: &Value| {
        task["state"] == "finished"
            && task["attempts"] == 1
            && task["committed_by"] == serde_json::json!([{ "from_batch": 0, "attempt": 1 }])
    };
    assert!(tasks.len() > 3 && tasks.iter().all(is_done), "{tasks:#?}");
    let listed = cluster.run(&["tasks", run]).expect_code(0);
    assert_eq!(listed.stdout.lines().count(), tasks.len() + 1, "a header and a line each");

    let stopped = cluster.down();
    assert!(stopped.stdout.contains("6 processes stopped"), "{}", stopped.all());
}

#[test]
fn mistakes_are_refused_and_repeated_requests_are_done_once() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    write(&folder.path().join("wrong.yaml"), "pipeline: p\nsources: { a: { type: nosuch } }\n");
    let cluster =
        Cluster::up_with(Weir::new(folder.path()), &["--coordinators", "1", "--executors", "1"]);
    let output = cluster.run(&["submit", "wrong.yaml"]).expect_code(2);
    assert!(output.stderr.contains("wrong.yaml:2"), "{}", output.all());
    for command in [&["run", "show", "x"][..], &["audit", "x"], &["cancel", "x"], &["retry", "x"]] {
        cluster.run(command).expect_code(2);
    }

    // The same request starts no second run, though the first has ended; another one does.
    write(&folder.path().join("in.csv"), "id\n1\n");
    write(
        &folder.path().join("right.yaml"),
        "pipeline: p\nsources: { a: { type: csv, path: in.csv } }\n\
         sinks: { s: { input: a, type: csv, path: out, mode: replace } }\n",
    );
    let run = cluster.submit("right.yaml", "once");
    cluster.wait(&run);
    assert_eq!(cluster.submit("right.yaml", "once"), run);
    assert_ne!(cluster.submit("right.yaml", "twice"), run);

    cluster.kill_all();
    let status = cluster.run(&["cluster", "status", "--output", "json"]).expect_code(3).json();
    assert_eq!(status["coordinators"][0]["role"], "unreachable", "{status:#}");
}

#[test]
fn rejected_rows_are_listed_as_without_a_cluster() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    write(&folder.path().join("in.csv"), "id,amount\n1,5\n2,x\n3,-1\n4,7\n");
    write(
        &folder.path().join("pipeline.yaml"),
        "pipeline: rejecting\n\
         sources: { a: { type: csv, path: in.csv, columns: { id: int64, amount: int64 }, max_errors: 1 } }\n\
         transforms: { valid: { input: a, validate: [{ check: amount > 0 }], max_errors: 1 } }\n\
         sinks: { s: { input: valid, type: csv, path: out, mode: replace } }\n",
    );
    let cluster =
        Cluster::up_with(Weir::new(folder.path()), &["--coordinators", "1", "--executors", "1"]);
    let run = cluster.submit("pipeline.yaml", "rejecting");
    cluster.wait(&run);
    let list = |more: &[&str]| {
        let arguments = [&["dead-letters", "list", &run, "--output", "json"], more].concat();
        cluster.run(&arguments).expect_code(0).json().as_array().cloned().expect("a list")
    };
    let letters = list(&[]);
    assert_eq!(letters.len(), 2, "{letters:#?}");
    let of_valid = list(&["--node", "valid"]);
    assert_eq!(of_valid[0]["row"], serde_json::json!({ "id": 3, "amount": -1 }));
    assert_eq!(of_valid.len(), 1);
    assert_eq!(list(&["--limit", "1"]).len(), 1);
    let id = of_valid[0]["id"].as_str().expect("letters have ids");
    let shown = cluster.run(&["dead-letters", "show", id]).expect_code(0).json();
    assert_eq!(shown, of_valid[0]);
    cluster.run(&["dead-letters", "show", &format!("{run}/valid/9-9-9/9")]).expect_code(2);
    cluster.run(&["dead-letters", "list", "20000101"]).expect_code(2);
}

#[test]
fn a_secret_is_in_no_file_of_a_cluster_and_in_no_answer() {
    const SECRET: &str = "canary/x&y";
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    // Nobody listens there: messages speak of the connection.
    write(
        &folder.path().join("pipeline.yaml"),
        "pipeline: secret\nconnections:\n\
         \x20 pg: { type: postgres, url: \"postgres://u:{{ secret.PW }}@127.0.0.1:1/db\" }\n\
         sources: { a: { type: json, path: in.jsonl, columns: { id: int64 } } }\n\
         sinks: { s: { input: a, connection: pg, table: t } }\nretry: { max_attempts: 1 }\n",
    );
    write(&folder.path().join("in.jsonl"), "{\"id\": 1}\n");
    let weir = Weir::new(folder.path()).env("WEIR_SECRET_PW", SECRET);
    let options = ["--coordinators", "1", "--executors", "1", "--log", "debug"];
    let cluster = Cluster::up_with(weir, &options);
    let output = cluster.run(&["submit", "pipeline.yaml", "--wait"]).expect_code(1);
    assert!(output.stderr.contains("failed to connect to PostgreSQL"), "{}", output.all());
    let shown = cluster.run(&["runs", "--output", "json"]);
    assert!(!format!("{}{}", output.all(), shown.all()).contains("canary"), "{}", output.all());
    cluster.down();
    for file in files_in(&cluster.dir) {
        let text = std::fs::read(&file).expect("the file is there");
        let is_there = text.windows(6).any(|window| window == b"canary");
        assert!(!is_there, "the secret is in {}", file.display());
    }
}

fn files_in(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder can be listed").flatten();
    let in_entry = |entry: std::fs::DirEntry| {
        if entry.path().is_dir() { files_in(&entry.path()) } else { vec![entry.path()] }
    };
    entries.flat_map(in_entry).collect()
}

#[test]
fn a_cluster_in_the_foreground_says_who_dies_and_ends_with_its_command() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::in_folder_of(Weir::new(folder.path()));
    let up = cluster.begin(&["cluster", "up", "--coordinators", "1", "--executors", "2"]);
    wait_until("the cluster to be up", || cluster.processes().len() == 3);
    let second = cluster.run(&["cluster", "up"]).expect_code(1);
    assert!(second.stderr.contains("runs already"), "{}", second.all());
    cluster.kill("executor-2");
    wait_until("the death to be told", || up.printed().contains("executor-2 ended (signal: 9"));
    cluster.start("executor-2");
    let pids = cluster.processes();
    up.terminate();
    up.wait().expect_code(0);
    for (name, pid) in pids {
        assert!(!cluster.is_alive(pid), "{name} is left behind");
    }
}

#[test]
fn a_run_goes_on_when_the_leader_is_killed() {
    let mut moments = Moments::random("leader killed");
    let scenario = Scenario::new();
    let cluster = scenario.up();
    let run = submitted_and_met_in_the_middle(&cluster, &mut moments);
    // The same request: it watches the run that goes on, and finds the next leader by itself.
    let watching = cluster.begin(&["submit", "pipeline.yaml", "--request-id", REQUEST, "--wait"]);
    let leader = cluster.leader();
    cluster.kill(&leader);
    wait_until("another leader", || cluster.leader() != leader);
    assert_taken_up_again(&cluster.wait(&run));
    watching.wait().expect_code(0);
    scenario.assert_exact(&cluster, &run);

    // It comes back as a follower that knows the same.
    cluster.start(&leader);
    wait_until("all coordinators to hold the same facts", || {
        let status = cluster.status();
        let members = status["coordinators"].as_array().cloned().unwrap_or_default();
        members.len() == 3
            && members.iter().all(|member| {
                member["applied_index"] == members[0]["applied_index"]
                    && member["state_hash"] == members[0]["state_hash"]
                    && member["role"] != "unreachable"
            })
    });
}

#[test]
fn a_run_goes_on_when_an_executor_is_killed() {
    let mut moments = Moments::random("executor killed");
    let scenario = Scenario::new();
    let cluster = scenario.up();
    let run = submitted_and_met_in_the_middle(&cluster, &mut moments);
    let victim = at_work(&cluster, &run);
    cluster.kill(&victim);
    assert_done_again(&cluster.wait(&run));
    scenario.assert_exact(&cluster, &run);
    assert!(!cluster.executors().contains(&victim), "the leader has noticed");
    cluster.start(&victim);
    assert_eq!(cluster.executors().len(), 3);
}

#[test]
fn a_run_goes_on_when_all_processes_were_killed_and_are_there_again() {
    let mut moments = Moments::random("all killed");
    let scenario = Scenario::new();
    let cluster = scenario.up();
    let run = submitted_and_met_in_the_middle(&cluster, &mut moments);
    cluster.kill_all();
    cluster.up_again();
    assert_taken_up_again(&cluster.wait(&run));
    scenario.assert_exact(&cluster, &run);
}

#[test]
fn an_executor_that_was_paused_beyond_its_lease_writes_nothing_twice() {
    let mut moments = Moments::random("executor paused");
    let scenario = Scenario::new();
    let cluster = scenario.up();
    let run = submitted_and_met_in_the_middle(&cluster, &mut moments);
    let victim = at_work(&cluster, &run);
    cluster.pause(&victim);
    std::thread::sleep(PAUSE);
    cluster.resume(&victim);
    assert_done_again(&cluster.wait(&run));
    scenario.assert_rows_exact(&cluster, &run);
    wait_until("the executor to be back", || cluster.executors().contains(&victim));
}

#[test]
fn a_leader_that_was_paused_leads_no_longer_when_it_wakes_up() {
    let mut moments = Moments::random("leader paused");
    let scenario = Scenario::new();
    let cluster = scenario.up();
    let run = submitted_and_met_in_the_middle(&cluster, &mut moments);
    let leader = cluster.leader();
    cluster.pause(&leader);
    wait_until("another leader", || cluster.leader() != leader);
    cluster.resume(&leader);
    assert_taken_up_again(&cluster.wait(&run));
    scenario.assert_rows_exact(&cluster, &run);
}

#[test]
fn a_cancelled_run_stops_and_goes_on_when_it_is_retried() {
    let mut moments = Moments::random("cancelled");
    let scenario = Scenario::new();
    let cluster = scenario.up();
    let run = submitted_and_met_in_the_middle(&cluster, &mut moments);
    cluster.run(&["cancel", &run]).expect_code(0);
    wait_until("the run to stop", || cluster.show(&run)["summary"]["status"] == "failed");
    assert_eq!(cluster.working_on(&run), Vec::<String>::new());
    let written = cluster.rows_written(&run);
    let output = cluster.run(&["retry", &run, "--wait"]).expect_code(0);
    assert!(output.stdout.contains("succeeded in"), "{}", output.all());
    assert!(cluster.rows_written(&run) > written, "it had been stopped before its end");
    scenario.assert_exact(&cluster, &run);
    // It is over: neither can be asked for any more.
    cluster.run(&["retry", &run]).expect_code(2);
    cluster.run(&["cancel", &run]).expect_code(2);
}

/// Files, PostgreSQL, and a replaced folder, while one process after the other is killed or paused. The
/// command that has started the run watches it to its end.
#[test]
fn a_run_is_exact_though_processes_are_killed_and_paused_again_and_again() {
    let mut moments = Moments::random("again and again");
    let scenario = Scenario::with(|path| {
        [
            targets::postgres_named("cluster_lake", "append", "batch"),
            targets::files_at(path, "report/out", "json", "append", "batch"),
            targets::files_at(path, "copied/out", "csv", "replace", "run"),
        ]
    });
    let cluster = scenario.up();
    let watching = cluster.begin(&["submit", "pipeline.yaml", "--request-id", REQUEST, "--wait"]);
    let run = cluster.submit("pipeline.yaml", REQUEST);
    for _ in 0..8 {
        std::thread::sleep(moments.below(Duration::from_secs(3)));
        let victim = match moments.below(Duration::from_secs(4)).as_secs() {
            0 => cluster.leader(),
            number => format!("executor-{number}"),
        };
        if moments.fraction() < 0.5 {
            println!("{victim} is killed");
            cluster.kill(&victim);
            cluster.start(&victim);
        } else {
            println!("{victim} is paused");
            cluster.pause(&victim);
            std::thread::sleep(moments.below(PAUSE));
            cluster.resume(&victim);
        }
        if cluster.show(&run)["summary"]["status"] != "running" {
            break;
        }
    }
    cluster.wait(&run);
    watching.wait().expect_code(0);
    scenario.assert_rows_exact(&cluster, &run);
}

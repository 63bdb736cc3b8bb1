//! Backfills on a cluster of real processes: every window exactly once, whatever is killed, paused or
//! mended meanwhile. `WEIR_TEST_WINDOWS` makes the first of them longer.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::dataset::{Checker, write_parquet};
use weir_tests::moments::Moments;

use crate::targets::{self, Target};

/// Of the backfill that every test run goes through.
const WINDOWS: i64 = 200;
const ROWS_PER_WINDOW: i64 = 20;
const REQUEST: &str = "the-only-one";
/// For a long backfill.
const LONG_PATIENCE: Duration = Duration::from_secs(3_600);

/// One Parquet file for each hour from the first of January 2024 on, loaded into a table of PostgreSQL.
struct Scenario {
    folder: tempfile::TempDir,
    target: Box<dyn Target>,
    windows: i64,
}

impl Scenario {
    fn new(name: &str, windows: i64, commit: &str, batch_rows: i64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let target = targets::postgres_named(name, "append", commit);
        let text = format!(
            "pipeline: hourly\n\
             params: {{ part: {{ type: string, default: old }} }}\n\
             sources:\n  rows: {{ type: parquet, path: \"data/{{{{ params.part }}}}/hour={{{{ \
             window.start[:13] }}}}/*.parquet\" }}\n\
             transforms:\n  kept:\n    sql: \"SELECT id, grp, amount, name FROM rows\"\n\
             retry: {{ max_attempts: 1 }}\n\
             sinks:\n  target:\n    input: kept\n{}",
            target.yaml(batch_rows)
        );
        std::fs::write(folder.path().join("pipeline.yaml"), text).expect("the disk has room");
        let scenario = Self { folder, target, windows };
        for window in 0..windows {
            write_parquet(&scenario.file("old", window), ids(window));
        }
        scenario
    }

    fn file(&self, part: &str, window: i64) -> PathBuf {
        let hour = hour(window).format("%Y-%m-%dT%H");
        self.folder.path().join(format!("data/{part}/hour={hour}/part-0.parquet"))
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The same request each time.
    fn start<'a>(&self, to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let from = ["backfill", "start", "pipeline.yaml", "--from", "2024-01-01T00:00:00Z"];
        let rest = ["--to", to, "--step", "1h", "--parallel", "8", "--request-id", REQUEST];
        [&from[..], &rest, more].concat()
    }

    #[track_caller]
    fn assert_exact(&self, cluster: &Cluster, backfill: &str) {
        let rows = self.windows * ROWS_PER_WINDOW;
        let mut checker = Checker::default();
        self.target.read(&mut checker);
        assert_eq!(checker.problem(rows), None, "{}", cluster.logs());
        assert_eq!(self.target.leftovers(), None, "staging is left behind");
        let report = cluster.run(&["audit", backfill, "--output", "json"]).expect_code(0).json();
        assert_eq!(report["clean"], true, "{report:#}");
        assert_eq!(report["windows"].as_i64(), Some(self.windows));
        assert_eq!(report["sinks"][0]["rows_in_target"].as_i64(), Some(rows));
    }
}

fn ids(window: i64) -> std::ops::Range<i64> {
    window * ROWS_PER_WINDOW..(window + 1) * ROWS_PER_WINDOW
}

fn hour(window: i64) -> DateTime<Utc> {
    let first = DateTime::parse_from_rfc3339("2024-01-01T00:00:00Z").expect("a time");
    first.with_timezone(&Utc) + TimeDelta::hours(window)
}

fn shown(cluster: &Cluster, backfill: &str) -> Value {
    cluster.run(&["backfill", "show", backfill, "--output", "json"]).expect_code(0).json()
}

fn number(shown: &Value, key: &str) -> i64 {
    shown[key].as_i64().unwrap_or_else(|| panic!("{key} is a number: {shown:#}"))
}

/// Waits until so many windows are finished.
fn wait_for(cluster: &Cluster, backfill: &str, finished: i64) {
    let start = Instant::now();
    loop {
        let shown = shown(cluster, backfill);
        if number(&shown, "finished") >= finished {
            return;
        }
        let is_over = start.elapsed() > LONG_PATIENCE || shown["status"] == "finished";
        assert!(!is_over, "{shown:#}\n{}", cluster.logs());
        // Each look is a process and a handshake.
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn kill_the_leader(cluster: &Cluster) {
    let leader = cluster.leader();
    println!("{leader} is killed");
    cluster.kill(&leader);
    wait_until("another leader", || cluster.leader() != leader);
    cluster.start(&leader);
}

/// Resident memory of a process, in MiB.
fn memory_mib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or_default() / 1024
}

/// Paused, resumed, its leader killed twice, and one window made to fail and retried.
#[test]
fn every_window_is_loaded_exactly_once() {
    let windows = std::env::var("WEIR_TEST_WINDOWS").ok().and_then(|text| text.parse().ok());
    let windows: i64 = windows.unwrap_or(WINDOWS);
    let scenario = Scenario::new("backfill_exact", windows, "batch", 5_000);
    let bad = windows * 2 / 3;
    let good = std::fs::read(scenario.file("old", bad)).expect("the file is there");
    std::fs::write(scenario.file("old", bad), "no Parquet at all").expect("the disk has room");
    let cluster = Cluster::up(scenario.path());
    let to = hour(windows).to_rfc3339();
    let begun = Instant::now();
    let started = cluster.run(&scenario.start(&to, &["--output", "json"])).expect_code(0).json();
    assert_eq!((&started["is_new"], number(&started, "windows")), (&Value::Bool(true), windows));
    let backfill = started["backfill"].as_str().expect("it has an id").to_owned();
    let again = cluster.run(&scenario.start(&to, &["--output", "json"])).expect_code(0).json();
    assert_eq!(
        (again["is_new"].as_bool(), &again["backfill"]),
        (Some(false), &started["backfill"])
    );
    let watching = cluster.begin(&scenario.start(&to, &["--wait"]));

    wait_for(&cluster, &backfill, windows / 5);
    cluster.run(&["backfill", "pause", &backfill]).expect_code(0);
    wait_until("windows at work to end", || number(&shown(&cluster, &backfill), "running") == 0);
    let paused = shown(&cluster, &backfill);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(shown(&cluster, &backfill), paused, "nothing begins");
    cluster.run(&["backfill", "resume", &backfill]).expect_code(0);
    for part in [2, 3] {
        wait_for(&cluster, &backfill, windows * part / 5);
        kill_the_leader(&cluster);
    }
    cluster.run(&["backfill", "prioritise", &backfill, "7"]).expect_code(0);
    wait_for(&cluster, &backfill, windows - 1);
    let output = watching.wait().expect_code(1);
    assert!(output.stderr.contains("finished with 1 window failed"), "{}", output.all());
    let finished = shown(&cluster, &backfill);
    assert_eq!(finished["status"], "finished", "{finished:#}");
    assert_eq!(number(&finished, "priority"), 7);
    let took = begun.elapsed();

    let failed = ["backfill", "windows", &backfill, "--status", "failed", "--output", "json"];
    let failed = cluster.run(&failed).expect_code(0).json();
    assert_eq!(failed.as_array().map(Vec::len), Some(1), "{failed:#}");
    assert_eq!(number(&failed[0], "window"), bad);
    assert!(failed[0]["error"].as_str().is_some_and(|error| error.contains("parquet")), "{failed}");
    std::fs::write(scenario.file("old", bad), good).expect("the disk has room");
    let bad = bad.to_string();
    cluster.run(&["backfill", "retry", &backfill, "--window", &bad, "--wait"]).expect_code(0);
    let refused = cluster.run(&["backfill", "retry", &backfill, "--window", &bad]).expect_code(2);
    assert!(refused.stderr.contains("is finished"), "{}", refused.all());
    scenario.assert_exact(&cluster, &backfill);

    let leader = cluster.leader();
    let ended = shown(&cluster, &backfill);
    println!(
        "{windows} windows in {took:.1?}, {:.1} a second; the leader has {} MiB",
        windows as f64 / took.as_secs_f64(),
        memory_mib(cluster.pid(&leader)),
    );
    assert_eq!(number(&ended["rows_written"], "target"), windows * ROWS_PER_WINDOW);
    // The ledger has forgotten the runs of finished windows; their folders have not.
    let runs = cluster.run(&["runs", "--output", "json"]).expect_code(0).json();
    assert_eq!(runs.as_array().map(Vec::len), Some(0), "{runs:#}");
    let windows = ["backfill", "windows", &backfill, "--limit", "1", "--output", "json"];
    let first = cluster.run(&windows).expect_code(0).json();
    let run = first[0]["run"].as_str().expect("it has had a run");
    assert_eq!(cluster.rows_written(run), u64::try_from(ROWS_PER_WINDOW).expect("few"));
    cluster.assert_audit_clean(run);
}

/// Executors are killed and paused beyond their lease while windows of several batches are written, and a
/// run of the same pipeline goes on beside them.
#[test]
fn windows_and_other_runs_do_not_disturb_each_other() {
    let mut moments = Moments::random("windows and executors");
    let mut scenario = Scenario::new("backfill_executors", 60, "batch", 4);
    let to = hour(scenario.windows).to_rfc3339();
    // What the other run reads follows the windows' rows.
    let ids = scenario.windows * ROWS_PER_WINDOW..scenario.windows * ROWS_PER_WINDOW + 600;
    write_parquet(&scenario.file("new", 0), ids);
    let cluster = Cluster::up(scenario.path());
    let started = cluster.run(&scenario.start(&to, &["--output", "json"])).expect_code(0).json();
    let backfill = started["backfill"].as_str().expect("it has an id").to_owned();
    wait_for(&cluster, &backfill, 5);
    let live = ["submit", "pipeline.yaml", "--run", "--param", "part=new", "--output", "json"];
    let live = [&live[..], &["--from", "2024-01-01", "--to", "2024-01-02"]].concat();
    let run = cluster.run(&live).expect_code(0).json();
    let run = run["run"].as_str().expect("it has an id").to_owned();
    for victim in ["executor-1", "executor-2", "executor-3"] {
        std::thread::sleep(moments.below(Duration::from_millis(1_500)));
        if moments.fraction() < 0.5 {
            println!("{victim} is killed");
            cluster.kill(victim);
            cluster.start(victim);
        } else {
            println!("{victim} is paused");
            cluster.pause(victim);
            std::thread::sleep(Duration::from_secs(4));
            cluster.resume(victim);
        }
    }
    cluster.wait(&run);
    let ended = cluster.run(&scenario.start(&to, &["--wait", "--output", "json"])).expect_code(0);
    assert_eq!(number(&ended.json(), "finished"), scenario.windows, "{}", cluster.logs());
    cluster.assert_audit_clean(&run);
    let windows = std::mem::replace(&mut scenario.windows, 90);
    let mut checker = Checker::default();
    scenario.target.read(&mut checker);
    assert_eq!(checker.problem(90 * ROWS_PER_WINDOW), None, "{}", cluster.logs());
    scenario.windows = windows;
    let report = cluster.run(&["audit", &backfill, "--output", "json"]).expect_code(0).json();
    assert_eq!(report["clean"], true, "{report:#}");
}

/// Its windows show all their rows at their end.
#[test]
fn a_cancelled_backfill_goes_on_when_it_is_resumed() {
    let scenario = Scenario::new("backfill_cancelled", 40, "run", 4);
    let cluster = Cluster::up(scenario.path());
    let to = hour(scenario.windows).to_rfc3339();
    let started = cluster.run(&scenario.start(&to, &["--output", "json"])).expect_code(0).json();
    let backfill = started["backfill"].as_str().expect("it has an id").to_owned();
    wait_for(&cluster, &backfill, 4);
    cluster.run(&["backfill", "cancel", &backfill]).expect_code(0);
    let cancelled = shown(&cluster, &backfill);
    assert_eq!((&cancelled["status"], number(&cancelled, "running")), (&"cancelled".into(), 0));
    assert_eq!(number(&cancelled, "failed"), 0, "{cancelled:#}");
    let watched = cluster.run(&scenario.start(&to, &["--wait"])).expect_code(1);
    assert!(watched.stderr.contains("was cancelled"), "{}", watched.all());
    cluster.run(&["backfill", "resume", &backfill]).expect_code(0);
    cluster.run(&scenario.start(&to, &["--wait"])).expect_code(0);
    scenario.assert_exact(&cluster, &backfill);
    // It is over.
    cluster.run(&["backfill", "pause", &backfill]).expect_code(2);
    cluster.run(&["backfill", "show", "bf-never"]).expect_code(2);
    let listed = cluster.run(&["backfills", "--output", "json"]).expect_code(0).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed:#}");
}

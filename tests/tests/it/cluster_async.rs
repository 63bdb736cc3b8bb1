//! `checkpoint.exchange: async`: executors keep rows and take them to the storage meanwhile. What is lost with an
//! executor is what was not there yet, and no more.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::dataset::{self, Checker};
use weir_tests::s3::S3Server;
use weir_tests::weir::Weir;

use crate::cluster_faults::{BATCH_ROWS, ROWS, files_below};
use crate::cluster_storage::{url, weir_with};
use crate::targets::{self, Target};

/// Of a hash for each row, in the last part of the join: it takes several seconds.
const ROUNDS: usize = 2;

/// The cluster ends before its folder goes.
struct Scenario {
    cluster: Cluster,
    target: Box<dyn Target>,
    run: String,
    _folder: tempfile::TempDir,
}

/// Tasks as `weir tasks` shows them.
type Tasks = Vec<Value>;

/// Each file `NAME` becomes `NAME.gz`.
fn compress(folder: &Path) {
    for file in std::fs::read_dir(folder).expect("it is there") {
        let path = file.expect("it can be listed").path();
        let text = std::fs::read(&path).expect("it is there");
        let mut to = path.clone().into_os_string();
        to.push(".gz");
        let to = std::fs::File::create(to).expect("room");
        let mut to = flate2::write::GzEncoder::new(to, flate2::Compression::fast());
        to.write_all(&text).expect("room");
        to.finish().expect("room");
        std::fs::remove_file(path).expect("it is there");
    }
}

impl Scenario {
    /// A join whose last part has more tasks than there are places, and takes its time.
    fn begin(name: &str) -> Self {
        Self::begin_with(name, Weir::new, &[])
    }

    /// With a cluster of other options and variables.
    fn begin_with(name: &str, weir: impl FnOnce(&Path) -> Weir, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let target = targets::postgres_named(name, "append", "batch");
        dataset::write_csv(&folder.path().join("data"), ROWS, 4);
        // Of compressed files nobody knows how many rows they have: neither side is taken for one that all tasks can read.
        compress(&folder.path().join("data"));
        let hash = (0..ROUNDS).fold("o.grp || r.name".to_owned(), |text, _| {
            format!("encode(sha512('' || {text}), 'hex')")
        });
        let source =
            format!("{{ type: csv, path: \"data/*.csv.gz\", columns: {} }}", dataset::COLUMNS);
        let text = format!(
            "pipeline: joined\n\
             checkpoint: {{ exchange: async }}\n\
             sources:\n  rows: {source}\n  others: {source}\n\
             transforms:\n  joined:\n    sql: \"SELECT r.id, r.grp, r.amount, r.name FROM rows r \
             JOIN others o ON r.id = o.id WHERE {hash} <> ''\"\n\
             sinks:\n  target:\n    input: joined\n{}",
            target.yaml(BATCH_ROWS)
        );
        std::fs::write(folder.path().join("pipeline.yaml"), text).expect("room");
        let options = [&["--slots", "1"], options].concat();
        let cluster = Cluster::up_with(weir(folder.path()), &options);
        let run = cluster.submit("pipeline.yaml", "one");
        Self { cluster, target, run, _folder: folder }
    }

    fn tasks(&self) -> Tasks {
        let shown = self.cluster.run(&["tasks", &self.run, "--output", "json"]).expect_code(0);
        shown.json().as_array().cloned().unwrap_or_default()
    }

    fn stages(&self) -> Vec<Value> {
        let shown = self.cluster.show(&self.run);
        shown["stages"].as_array().cloned().unwrap_or_default()
    }

    /// Of all parts of the join but the last.
    fn parts(&self) -> Tasks {
        let is_part =
            |stage: &&Value| stage["name"].as_str().is_some_and(|name| name.contains(", part "));
        let parts: Vec<Value> =
            self.stages().iter().filter(is_part).map(|stage| stage["stage"].clone()).collect();
        self.tasks().into_iter().filter(|task| parts.contains(&task["stage"])).collect()
    }

    /// Waits until the parts are finished, and so far as is said.
    fn wait_for_parts(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Tasks {
        let mut parts = Vec::new();
        wait_until(what, || {
            parts = self.parts();
            let is_so = |task: &Value| task["state"] == "finished" && is_so(task);
            !parts.is_empty() && parts.iter().all(is_so)
        });
        parts
    }

    /// The run's exchanges in the storage's folder or an executor's.
    fn exchanges_in(&self, root: &str) -> PathBuf {
        self.cluster.dir.join(root).join(format!("joined/runs/{}/exchange", self.run))
    }

    /// Executors that keep rows.
    fn holders(&self) -> Vec<String> {
        let names = (1..=3).map(|number| format!("executor-{number}"));
        let keeps =
            |name: &String| files_below(&self.exchanges_in(&format!("{name}/exchange"))) > 0;
        names.filter(keeps).collect()
    }

    fn assert_rows_are_still_read(&self) {
        let stages = self.stages();
        let last = stages.iter().rfind(|stage| stage["name"] == "joined").expect("the last part");
        assert!(last["slices_done"].as_u64() < last["slices"].as_u64(), "it is over: {last:#}");
    }

    /// The run ends as if nothing had happened; the parts' tasks.
    fn ends_exactly(&self) -> Tasks {
        self.cluster.wait(&self.run);
        let mut checker = Checker::default();
        self.target.read(&mut checker);
        assert_eq!(checker.problem(ROWS), None, "{}", self.cluster.logs());
        self.cluster.assert_audit_clean(&self.run);
        wait_until("the storage to have no rows any more", || {
            files_below(&self.exchanges_in("storage")) == 0
        });
        self.parts()
    }
}

#[test]
fn what_is_in_the_storage_is_computed_once_though_executors_that_keep_it_are_killed_or_leave() {
    let scenario = Scenario::begin("async_stored");
    let before =
        scenario.wait_for_parts("the storage to have all rows", |task| task["kept_by"].is_null());
    assert!(files_below(&scenario.exchanges_in("storage")) > 0, "{before:#?}");
    let holders = scenario.holders();
    let [killed, drained, ..] = &holders[..] else { panic!("{holders:?} keep rows") };
    scenario.cluster.kill(killed);
    // It is not needed any more, though what it keeps has not been read by all.
    scenario.cluster.run(&["cluster", "drain", drained]).expect_code(0);
    assert!(!scenario.cluster.is_alive(scenario.cluster.pid(drained)));
    scenario.assert_rows_are_still_read();
    // As a leader leaves it that is killed while it removes rows.
    let removed = scenario.cluster.dir.join("storage/.to-remove");
    std::fs::create_dir_all(removed.join("earlier-1/0")).expect("room");
    assert_computed_once(&before, &scenario.ends_exactly(), &scenario);
    wait_until("nothing to be left of what is removed", || !removed.exists());
}

#[track_caller]
fn assert_computed_once(before: &Tasks, after: &Tasks, scenario: &Scenario) {
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(after) {
        assert_eq!(before["attempts"], after["attempts"], "{}", scenario.cluster.logs());
    }
}

#[test]
fn what_is_in_a_bucket_is_computed_once_and_removed_when_the_run_is_over() {
    let server = S3Server::start();
    let weir = |folder: &Path| weir_with(&server, folder);
    let scenario = Scenario::begin_with("async_bucket", weir, &["--storage", &url("async")]);
    let before =
        scenario.wait_for_parts("the bucket to have all rows", |task| task["kept_by"].is_null());
    let stored = || server.objects(&format!("async/joined/runs/{}/exchange/", scenario.run));
    assert!(stored().len() >= before.len(), "{:?}", stored());
    let holders = scenario.holders();
    scenario.cluster.kill(&holders[0]);
    scenario.assert_rows_are_still_read();
    assert_computed_once(&before, &scenario.ends_exactly(), &scenario);
    wait_until("the bucket to have no rows any more", || stored().is_empty());
}

#[test]
fn what_is_not_in_the_storage_yet_is_computed_again_when_its_executor_is_killed_and_nothing_else() {
    let scenario = Scenario::begin("async_lost");
    // The storage takes no rows of the parts; behind them there is the last part, whose rows it takes.
    let exchanges = scenario.exchanges_in("storage");
    std::fs::create_dir_all(&exchanges).expect("room");
    for part in ["0", "1"] {
        std::fs::write(exchanges.join(part), "").expect("nothing is there yet");
    }
    let before =
        scenario.wait_for_parts("executors to keep rows", |task| task["kept_by"].is_string());
    assert!(before.iter().all(|task| task["stage"].as_u64() < Some(2)), "{before:#?}");
    let killed = &before[0]["kept_by"];
    scenario.cluster.kill(killed.as_str().expect("a name"));
    scenario.assert_rows_are_still_read();
    let after = scenario.ends_exactly();
    for (before, after) in before.iter().zip(&after) {
        let (is_lost, again) =
            (&before["kept_by"] == killed, before["attempts"] != after["attempts"]);
        assert_eq!(is_lost, again, "{before:#} {after:#}\n{}", scenario.cluster.logs());
    }
}

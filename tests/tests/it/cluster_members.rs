//! Coordinators come and go while runs go on: none of those that a cluster began with is there at the end, and
//! nothing else has changed.

use std::path::Path;

use serde_json::Value;
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::dataset::{self, Checker};
use weir_tests::weir::{Running, Weir};

use crate::targets::{self, Target};

const ROWS: i64 = 100_000;
const BATCH_ROWS: i64 = 2_000;

/// Runs of one pipeline, one after the other, while something happens to the cluster.
struct Runs<'cluster> {
    cluster: &'cluster Cluster,
    target: Box<dyn Target>,
    count: usize,
    /// The run that is going on, and somebody who watches it from its beginning on.
    now: Option<(String, Running)>,
}

impl<'cluster> Runs<'cluster> {
    fn of(cluster: &'cluster Cluster, folder: &Path) -> Self {
        let target = targets::files_at(folder, "lake/out", "parquet", "append", "batch");
        write_pipeline(folder, &target.yaml(BATCH_ROWS));
        Self { cluster, target, count: 0, now: None }
    }

    /// Returns while a run is at work.
    fn meet(&mut self) {
        while let Some((run, _)) = &self.now {
            if !self.cluster.working_on(run).is_empty() {
                return;
            }
            if self.cluster.show(run)["summary"]["status"] != "running" {
                self.end();
            }
        }
        self.count += 1;
        self.target.reset();
        let request = format!("run-{}", self.count);
        let run = self.cluster.submit("pipeline.yaml", &request);
        let watching = ["submit", "pipeline.yaml", "--wait", "--request-id", &request];
        let watching = self.cluster.begin(&watching);
        wait_until("an executor works on the run", || !self.cluster.working_on(&run).is_empty());
        self.now = Some((run, watching));
    }

    /// The run ends, is seen to, and has every row once.
    fn end(&mut self) {
        let Some((run, watching)) = self.now.take() else { return };
        self.cluster.wait(&run);
        watching.wait().expect_code(0);
        let mut checker = Checker::default();
        self.target.read(&mut checker);
        assert_eq!(checker.problem(ROWS), None, "{}", self.cluster.logs());
        assert_eq!(self.target.leftovers(), None, "staging is left behind");
        self.cluster.assert_audit_clean(&run);
    }
}

fn members(cluster: &Cluster) -> Vec<(u64, bool)> {
    let listed = cluster.run(&["cluster", "members", "--output", "json"]).expect_code(0).json();
    let listed = listed.as_array().cloned().unwrap_or_default();
    let one = |member: &Value| {
        assert_ne!(member["role"], "learner", "{member}");
        (member["id"].as_u64().expect("it has one"), member["answers"] == true)
    };
    listed.iter().map(one).collect()
}

fn add(cluster: &Cluster) -> u64 {
    let added = cluster.run(&["cluster", "add-coordinator", "--output", "json"]).expect_code(0);
    let added = added.json();
    assert_eq!(added["changed"], true, "{added}");
    added["id"].as_u64().expect("it has a number")
}

#[test]
fn all_coordinators_are_replaced_one_by_one_while_runs_go_on() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up(folder.path());
    let mut runs = Runs::of(&cluster, folder.path());
    for old in 1..=3 {
        runs.meet();
        let pid = cluster.pid(&format!("coordinator-{old}"));
        assert_eq!(add(&cluster), old + 3);
        let remove = ["cluster", "remove-coordinator", &format!("coordinator-{old}")];
        cluster.run(&remove).expect_code(0);
        assert!(!cluster.is_alive(pid), "its process has ended");
    }
    runs.end();
    assert_eq!(members(&cluster), [(4, true), (5, true), (6, true)]);
    let status = cluster.status();
    assert_eq!(status["coordinators"].as_array().map(Vec::len), Some(3), "{status:#}");

    // An executor that starts with the command line of old, and a leader that dies.
    cluster.kill("executor-1");
    cluster.start("executor-1");
    runs.meet();
    let leader = cluster.leader();
    cluster.kill(&leader);
    cluster.start(&leader);
    runs.end();

    // The cluster as it is now can be stopped and started.
    cluster.down();
    cluster.up_again();
    runs.meet();
    runs.end();
    assert_eq!(members(&cluster), [(4, true), (5, true), (6, true)]);
}

#[test]
fn a_coordinator_that_lost_its_disk_is_replaced_and_no_change_loses_the_quorum() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up(folder.path());
    let mut runs = Runs::of(&cluster, folder.path());
    runs.meet();
    let leader = cluster.leader();
    let names = (1..=3).map(|id| format!("coordinator-{id}"));
    let followers: Vec<String> = names.filter(|name| *name != leader).collect();
    let (lost, other) = (&followers[0], &followers[1]);
    cluster.kill(lost);
    std::fs::remove_dir_all(cluster.dir.join(lost)).expect("it was there");
    cluster.start(lost);
    let id: u64 = lost.trim_start_matches("coordinator-").parse().expect("it has a number");
    wait_until("it says that its disk is another", || {
        members(&cluster).contains(&(id, false)) && cluster.log(lost).contains("is not the one")
    });
    // Of the two that would be left one could decide nothing.
    for name in [other, &leader] {
        let refused = cluster.run(&["cluster", "remove-coordinator", name]).expect_code(2);
        assert!(refused.stderr.contains("nothing could be decided"), "{}", refused.stderr);
    }
    cluster.run(&["cluster", "remove-coordinator", lost]).expect_code(0);
    assert_eq!(add(&cluster), 4);
    let again = cluster.run(&["cluster", "remove-coordinator", lost, "--output", "json"]);
    assert_eq!(again.expect_code(0).json()["changed"], false);
    assert_eq!(members(&cluster).len(), 3);
    runs.end();

    let unknown = cluster.run(&["cluster", "remove-coordinator", "executor-1"]).expect_code(2);
    assert!(unknown.stderr.contains("coordinator-N"), "{}", unknown.stderr);
}

/// A coordinator that was once alone decides alone, with an empty disk as well.
#[test]
fn a_coordinator_that_lost_its_disk_founds_no_second_cluster_that_is_led() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let cluster = Cluster::up_with(Weir::new(folder.path()), &["--coordinators", "1"]);
    let mut runs = Runs::of(&cluster, folder.path());
    let file = std::fs::read(cluster.dir.join("cluster.json")).expect("it is up");
    let file: Value = serde_json::from_slice(&file).expect("JSON");
    let founding = file["coordinators"][0]["arguments"].as_array().expect("a list").clone();
    let founding: Vec<&str> = founding.iter().filter_map(Value::as_str).collect();
    assert!(founding.contains(&"--members"), "{founding:?}");
    assert_eq!([add(&cluster), add(&cluster)], [2, 3]);
    runs.meet();
    cluster.kill("coordinator-1");
    std::fs::remove_dir_all(cluster.dir.join("coordinator-1")).expect("it was there");
    let leads = || cluster.leader() != "coordinator-1";
    wait_until("one of the others leads", leads);

    // As the first time: it leads a ledger of its own, by its own vote, and must not.
    let alone = cluster.weir.start(&founding);
    wait_until("it says why it does not lead", || {
        let printed = alone.printed();
        printed.contains("cannot lead") && printed.contains(".ledger-id")
    });
    assert!(leads(), "{:#}", cluster.status());
    runs.meet();
    runs.end();
    drop(alone);

    // `start` founds nothing, so it has nothing to lead.
    std::fs::remove_dir_all(cluster.dir.join("coordinator-1")).expect("it was there");
    cluster.start("coordinator-1");
    wait_until("it says that its disk is another", || {
        cluster.log("coordinator-1").contains("is not the one")
    });
    assert!(leads() && !cluster.log("coordinator-1").contains("cannot lead"));
    cluster.run(&["cluster", "remove-coordinator", "coordinator-1"]).expect_code(0);
    assert_eq!(add(&cluster), 4);
    runs.meet();
    runs.end();
    assert_eq!(members(&cluster), [(2, true), (3, true), (4, true)]);
}

fn write_pipeline(folder: &Path, target: &str) {
    dataset::write_csv(&folder.join("data"), ROWS, 4);
    let groups: String = (0..97).map(|group| format!("{group}\n")).collect();
    std::fs::write(folder.join("data/groups.txt"), format!("grp\n{groups}")).expect("room");
    let columns = dataset::COLUMNS;
    let text = format!(
        "pipeline: joined\n\
         sources:\n  rows: {{ type: csv, path: \"data/*.csv\", columns: {columns} }}\n\
         \x20 groups: {{ type: csv, path: data/groups.txt, columns: {{ grp: int64 }} }}\n\
         transforms:\n  joined:\n    sql: \"SELECT r.id, r.grp, r.amount, r.name FROM rows r \
         JOIN groups g ON r.grp = g.grp\"\n\
         sinks:\n  target:\n    input: joined\n{target}"
    );
    std::fs::write(folder.join("pipeline.yaml"), text).expect("room");
}

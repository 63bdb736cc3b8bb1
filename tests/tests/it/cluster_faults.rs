//! A schedule of faults, one after the other, while a cluster joins two inputs into PostgreSQL.
//! `WEIR_TEST_SEED` repeats a schedule, `WEIR_TEST_FAULTS` and `WEIR_TEST_FAILOVERS` make it longer.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tonic::Status;
use weir_executor::tls::TlsFiles;
use weir_proto::v1::runs_client::RunsClient;
use weir_proto::v1::{GetRunRequest, RunStatus};
use weir_tests::cluster::{Cluster, PATIENCE, wait_until};
use weir_tests::dataset::{self, Checker};
use weir_tests::moments::Moments;

use crate::cluster_access::{connect, with};
use crate::targets::{self, Target};

pub(crate) const ROWS: i64 = 400_000;
pub(crate) const BATCH_ROWS: i64 = 5_000;
/// Of the schedules that every test run goes through.
const FAULTS: usize = 20;
const FAILOVERS: usize = 3;
/// Longer than an executor's lease (3 s).
const PAUSE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    LeaderKilled,
    FollowerKilled,
    ExecutorKilled,
    LeaderAndExecutorKilled,
    ExecutorPaused,
    LeaderPaused,
    CoordinatorsKilled,
}

impl Fault {
    /// Those of the promise's first line come most often.
    const SCHEDULE: [Fault; 10] = [
        Fault::LeaderKilled,
        Fault::ExecutorKilled,
        Fault::LeaderAndExecutorKilled,
        Fault::ExecutorPaused,
        Fault::LeaderKilled,
        Fault::ExecutorKilled,
        Fault::LeaderPaused,
        Fault::FollowerKilled,
        Fault::LeaderAndExecutorKilled,
        Fault::CoordinatorsKilled,
    ];
}

/// What the faults have cost.
#[derive(Debug, Default)]
struct Costs {
    /// From the kill of a leader to the next assignment, or to the end of the run.
    failovers: Vec<Duration>,
    runs: usize,
}

struct Scenario<'cluster> {
    cluster: &'cluster Cluster,
    target: Box<dyn Target>,
    moments: Moments,
    costs: Costs,
}

impl Scenario<'_> {
    /// Until so many faults have been; the run that is going on then may end undisturbed.
    fn play(&mut self, schedule: &[Fault], faults: usize) {
        let mut schedule = schedule.iter().copied().cycle().take(faults).peekable();
        while schedule.peek().is_some() {
            self.target.reset();
            let request = format!("run-{}", self.costs.runs);
            self.costs.runs += 1;
            let run = self.cluster.submit("pipeline.yaml", &request);
            while schedule.peek().is_some() {
                std::thread::sleep(self.moments.below(Duration::from_millis(2_500)));
                if self.is_over(&run) {
                    break;
                }
                let fault = schedule.next().expect("looked at before");
                println!("run {run}: {fault:?}");
                self.disturb(&run, fault);
            }
            self.cluster.wait(&run);
            self.assert_exact(&run);
        }
    }

    fn is_over(&self, run: &str) -> bool {
        self.cluster.show(run)["summary"]["status"] != "running"
    }

    fn disturb(&mut self, run: &str, fault: Fault) {
        let cluster = self.cluster;
        match fault {
            Fault::LeaderKilled => {
                let leader = cluster.leader();
                self.kill_leader(run, &leader);
                cluster.start(&leader);
            }
            Fault::FollowerKilled => {
                let leader = cluster.leader();
                let follower = (1..=3).map(|id| format!("coordinator-{id}"));
                let follower = follower.into_iter().find(|name| *name != leader);
                let follower = follower.expect("two of three follow");
                cluster.kill(&follower);
                cluster.start(&follower);
            }
            Fault::ExecutorKilled => {
                let Some(victim) = self.victim(run) else { return };
                cluster.kill(&victim);
                std::thread::sleep(self.moments.below(Duration::from_secs(2)));
                cluster.start(&victim);
            }
            Fault::LeaderAndExecutorKilled => {
                let Some(victim) = self.victim(run) else { return };
                let leader = cluster.leader();
                cluster.kill(&victim);
                self.kill_leader(run, &leader);
                cluster.start(&victim);
                cluster.start(&leader);
            }
            Fault::ExecutorPaused => {
                let Some(victim) = self.victim(run) else { return };
                cluster.pause(&victim);
                std::thread::sleep(PAUSE);
                cluster.resume(&victim);
            }
            Fault::LeaderPaused => {
                let leader = cluster.leader();
                cluster.pause(&leader);
                std::thread::sleep(PAUSE);
                cluster.resume(&leader);
            }
            Fault::CoordinatorsKilled => {
                for id in 1..=3 {
                    cluster.kill(&format!("coordinator-{id}"));
                }
                for id in 1..=3 {
                    cluster.start(&format!("coordinator-{id}"));
                }
            }
        }
    }

    /// An executor that works on the run, if any does now.
    fn victim(&self, run: &str) -> Option<String> {
        self.cluster.working_on(run).into_iter().next()
    }

    fn kill_leader(&mut self, run: &str, leader: &str) {
        let killed_at = Instant::now();
        self.cluster.kill(leader);
        wait_for_assignment(self.cluster, run, leader);
        self.costs.failovers.push(killed_at.elapsed());
    }

    #[track_caller]
    fn assert_exact(&self, run: &str) {
        let mut checker = Checker::default();
        self.target.read(&mut checker);
        assert_eq!(checker.problem(ROWS), None, "{}", self.cluster.logs());
        assert_eq!(self.target.leftovers(), None, "staging is left behind");
        self.cluster.assert_audit_clean(run);
    }
}

/// Until one of the other coordinators says that an executor works on the run, or that the run is over. Asked
/// every few milliseconds, which a command each time could not do.
fn wait_for_assignment(cluster: &Cluster, run: &str, dead: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let token = std::fs::read_to_string(cluster.dir.join("admin.token")).expect("it is there");
    let tls = TlsFiles { authority: cluster.dir.join("tls/authority.pem"), identity: None };
    let number: usize = dead.trim_start_matches("coordinator-").parse().expect("it has a number");
    let mut urls = cluster.urls();
    urls.remove(number - 1);
    let is_assigned = async |runs: &mut RunsClient<_>| -> Result<bool, Status> {
        let request = with(Some(token.trim()), GetRunRequest { run: run.to_owned() });
        let run = runs.get(request).await?.into_inner();
        let is_at_work = run.stages.iter().any(|stage| !stage.running.is_empty());
        Ok(is_at_work || run.status != RunStatus::Running as i32)
    };
    runtime.expect("a runtime starts").block_on(async {
        let mut clients = Vec::new();
        for url in urls {
            clients.push(RunsClient::new(connect(url, tls.clone()).await.expect("it lives")));
        }
        let start = Instant::now();
        loop {
            for runs in &mut clients {
                // Whoever does not lead refuses.
                if is_assigned(runs).await.unwrap_or(false) {
                    return;
                }
            }
            assert!(start.elapsed() < PATIENCE, "nobody works on it\n{}", cluster.logs());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

/// Plays a schedule on a new cluster, and prints what it has cost.
fn play(name: &str, schedule: &[Fault], faults: usize) -> Costs {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let target = targets::postgres_named(&format!("cluster_{name}"), "append", "batch");
    write_pipeline(folder.path(), "sync", &target.yaml(BATCH_ROWS));
    let cluster = Cluster::up(folder.path());
    let moments = Moments::random(name);
    let mut scenario = Scenario { cluster: &cluster, target, moments, costs: Costs::default() };
    scenario.play(schedule, faults);
    let mut costs = scenario.costs;
    costs.failovers.sort();
    println!(
        "{} runs; from the leader's kill to the next assignment: {:.2?}",
        costs.runs, costs.failovers
    );
    costs
}

fn number_from(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn a_join_into_postgres_survives_a_schedule_of_faults() {
    let faults = number_from("WEIR_TEST_FAULTS").unwrap_or(FAULTS);
    let costs = play("faults", &Fault::SCHEDULE, faults);
    assert!(!costs.failovers.is_empty());
}

/// Measured with `WEIR_TEST_FAILOVERS=100` for `benches/report.md`.
#[test]
fn a_leader_that_is_killed_again_and_again_is_replaced_each_time() {
    let failovers = number_from("WEIR_TEST_FAILOVERS").unwrap_or(FAILOVERS);
    let Costs { failovers: taken, .. } = play("failovers", &[Fault::LeaderKilled], failovers);
    let at = |share: f64| taken[((taken.len() - 1) as f64 * share).round() as usize];
    println!("p50 {:.2?}, p99 {:.2?}, longest {:.2?}", at(0.5), at(0.99), at(1.0));
    assert_eq!(taken.len(), failovers);
}

/// Rows between the parts of the join are with the executors alone, and are lost with them.
#[test]
fn a_join_whose_rows_executors_keep_survives_their_loss() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let target = targets::postgres_named("cluster_kept", "append", "batch");
    write_pipeline(folder.path(), "off", &target.yaml(BATCH_ROWS));
    let cluster = Cluster::up(folder.path());
    let moments = Moments::random("loss of kept rows");
    let mut scenario = Scenario { cluster: &cluster, target, moments, costs: Costs::default() };
    let schedule = [
        Fault::ExecutorKilled,
        Fault::LeaderKilled,
        Fault::ExecutorPaused,
        Fault::ExecutorKilled,
        Fault::LeaderAndExecutorKilled,
        Fault::ExecutorKilled,
    ];
    let faults = number_from("WEIR_TEST_FAULTS").unwrap_or(schedule.len());
    scenario.play(&schedule, faults);

    scenario.target.reset();
    let run = cluster.submit("pipeline.yaml", "watched");
    let kept = || kept_files(&cluster);
    wait_until("an executor keeps rows", || kept() > 0 || scenario.is_over(&run));
    let were_kept = kept();
    cluster.wait(&run);
    scenario.assert_exact(&run);
    assert!(were_kept > 0, "no executor has kept anything");
    let stages = cluster.show(&run)["stages"].as_array().cloned().unwrap_or_default();
    let is_part =
        |stage: &&Value| stage["name"].as_str().is_some_and(|name| name.contains(", part "));
    assert!(stages.iter().filter(is_part).count() > 1, "no rows were dealt out: {stages:#?}");
    wait_until("what is not needed any more is removed", || kept() == 0);
}

/// Files of exchanges in the executors' own folders.
fn kept_files(cluster: &Cluster) -> usize {
    let executors = (1..=3).map(|id| cluster.dir.join(format!("executor-{id}/exchange")));
    executors.map(|folder| files_below(&folder)).sum()
}

pub(crate) fn files_below(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.map(|path| if path.is_dir() { files_below(&path) } else { 1 }).sum()
}

/// An outer join, though each row has its group: otherwise every task would read the groups, and no rows would be dealt out.
pub(crate) fn write_pipeline(folder: &Path, exchange: &str, target: &str) {
    dataset::write_csv(&folder.join("data"), ROWS, 4);
    let groups: String = (0..97).map(|group| format!("{group}\n")).collect();
    std::fs::write(folder.join("data/groups.txt"), format!("grp\n{groups}")).expect("room");
    let columns = dataset::COLUMNS;
    let text = format!(
        "pipeline: joined\n\
         checkpoint: {{ exchange: {exchange} }}\n\
         sources:\n  rows: {{ type: csv, path: \"data/*.csv\", columns: {columns} }}\n\
         \x20 groups: {{ type: csv, path: data/groups.txt, columns: {{ grp: int64 }} }}\n\
         transforms:\n  joined:\n    sql: \"SELECT r.id, r.grp, r.amount, r.name FROM rows r \
         FULL JOIN groups g ON r.grp = g.grp\"\n\
         sinks:\n  target:\n    input: joined\n{target}"
    );
    std::fs::write(folder.join("pipeline.yaml"), text).expect("room");
}

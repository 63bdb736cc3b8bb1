//! The promise's first line, at moments spread over the whole run: orders and lines of TPC-H are joined into
//! PostgreSQL, and the leader, an executor, or both at once are killed when a part of the run is done that a
//! seed draws. The result is that of a single process, and the ledger says that nothing was done again but
//! what was lost.
//! `WEIR_TEST_SEED` repeats the moments, `WEIR_TEST_MOMENTS` sets how many there are for each kind of kill.

use std::time::{Duration, Instant};

use weir_proto::v1::RunStatus;
use weir_tests::cluster::{Cluster, PATIENCE, wait_until};
use weir_tests::faults::history::{Exchange, facts_agree, nothing_is_taken_back};
use weir_tests::faults::observer::{Member, Observer, Seen};
use weir_tests::faults::rows::{Rows, are_accounted_for, are_exact, every_slice_counts_once};
use weir_tests::faults::work::{Cost, Disturbance, only_lost_work_is_done_again};
use weir_tests::moments::Moments;
use weir_tests::weir::Weir;

use crate::cluster_tpch::generate;
use crate::examples::copied;
use crate::targets;

/// 60,000 lines of 15,000 orders.
const SCALE: &str = "0.01";
const MOMENTS: usize = 10;
/// With `checkpoint.exchange: off` and `async`, of each kind.
const MOMENTS_KEPT: usize = 2;
/// A run may be over before the moment that was meant: then it is run again.
const TRIES: usize = 10;
const TABLE: &str = "public.order_lines";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kill {
    Leader,
    Executor,
    Both,
}

struct Job<'cluster> {
    cluster: &'cluster Cluster,
    observer: Observer,
    moments: Moments,
    url: String,
    expected: Rows,
    runs: usize,
    members: Vec<Member>,
}

#[test]
fn a_join_of_tpch_is_exact_and_nothing_finished_runs_again_at_whatever_moment_who_is_killed() {
    let moments = Moments::random("kills over TPC-H");
    let count = std::env::var("WEIR_TEST_MOMENTS").ok().and_then(|text| text.parse().ok());
    let (_guard, folder) = copied("tpch-join");
    // Several files a table: the stages that read them have several slices, between which a moment can fall.
    generate(&folder, SCALE, &["--parts", "6"]);
    let file = folder.join("pipeline.yaml");
    let text = std::fs::read_to_string(&file).expect("the example is there");
    let text = dealing_out(&text);
    for exchange in [Exchange::Sync, Exchange::Off, Exchange::Async].map(Exchange::name) {
        let head = format!("pipeline: tpch_{exchange}\ncheckpoint: {{ exchange: {exchange} }}");
        let text = text.replace("pipeline: tpch_join", &head) + "    batch_rows: 1000\n";
        let text = text.replace("s.parquet", "s/*.parquet").replace("m.parquet", "m/*.parquet");
        std::fs::write(folder.join(format!("{exchange}.yaml")), text).expect("the disk has room");
    }

    let alone = targets::database("tpch_faults_alone");
    let embedded = Weir::new(&folder).env("DATABASE_URL", &alone);
    embedded.run(&["run", "sync.yaml"]).expect_code(0);
    embedded.assert_audit_clean();
    let expected = targets::row_hashes(&alone, TABLE);

    let url = targets::database("tpch_faults");
    let cluster = Cluster::up_with(Weir::new(&folder).env("DATABASE_URL", &url), &["--slots", "2"]);
    let observer = Observer::of(&cluster);
    let (runs, members) = (0, Vec::new());
    let mut job = Job { cluster: &cluster, observer, moments, url, expected, runs, members };
    for kill in [Kill::Leader, Kill::Executor, Kill::Both] {
        job.disturb_all_over(Exchange::Sync, kill, count.unwrap_or(MOMENTS));
    }
    for exchange in [Exchange::Off, Exchange::Async] {
        for kill in [Kill::Leader, Kill::Executor, Kill::Both] {
            job.disturb_all_over(exchange, kill, count.unwrap_or(MOMENTS_KEPT));
        }
    }
    job.assert_that_checkers_see_what_is_wrong();
}

/// The example with an outer join, though each line has its order and each order has lines: otherwise every task would read
/// the orders of such a small data set, and no rows would be dealt out.
pub(crate) fn dealing_out(text: &str) -> String {
    let dealing_out = text.replace(" JOIN orders", " FULL JOIN orders");
    assert_ne!(text, dealing_out, "the example has another join");
    dealing_out
}

impl Job<'_> {
    /// At a random moment of each of so many equal parts of the run.
    fn disturb_all_over(&mut self, exchange: Exchange, kill: Kill, count: usize) {
        for part in 0..count {
            let at = (part as f64 + self.moments.fraction()) / count as f64;
            let began = Instant::now();
            let (reached, cost) = self.disturb(exchange, kill, at);
            println!(
                "{exchange:?}, {kill:?} killed at {:.0} % ({:.0} % were meant): {} of {} lost tasks were \
                 done again, in {:.1?}",
                reached * 100.0,
                at * 100.0,
                cost.again,
                cost.lost,
                began.elapsed()
            );
        }
    }

    fn disturb(&mut self, exchange: Exchange, kill: Kill, at: f64) -> (f64, Cost) {
        for _ in 0..TRIES {
            self.empty_target();
            self.runs += 1;
            let request = format!("kill-{}", self.runs);
            let leader = self.observer.leader();
            let run = self.cluster.submit(&format!("{}.yaml", exchange.name()), &request);
            let mut history = Vec::new();
            let rows = self.expected.count();
            let before = self.watch(&run, &mut history, |seen| seen.progress(rows) >= at);
            if before.is_over() {
                continue;
            }
            let victim = self.victim(&before);
            let killed = match kill {
                Kill::Leader => vec![leader],
                Kill::Executor => vec![victim.clone()],
                Kill::Both => vec![leader, victim.clone()],
            };
            self.cluster.kill_each(&killed);
            // Half of them are back at once, and take part in what follows.
            let is_back_at_once = self.moments.fraction() < 0.5;
            if is_back_at_once {
                self.start(&killed);
            }
            let after = self.watch(&run, &mut history, Seen::is_over);
            if !is_back_at_once {
                self.start(&killed);
            }
            self.members.extend(self.observer.members());
            let lost = if kill == Kill::Leader { Vec::new() } else { vec![victim] };
            let reached = before.progress(rows);
            let (until, any_task_may_fail) = (after.clone(), false);
            let fault = Disturbance { before, until, lost, any_task_may_fail };
            let cost = self.check(exchange, &run, &fault, &history).unwrap_or_else(|problem| {
                panic!(
                    "{exchange:?}, {kill:?} {killed:?} killed at {at:.3}: {problem}\n{fault:#?}\n{}",
                    self.cluster.logs()
                )
            });
            return (reached, cost);
        }
        panic!("the run was over {TRIES} times before {at:.3} of it could be met");
    }

    /// Until the run is over, or what is waited for.
    fn watch(
        &mut self,
        run: &str,
        history: &mut Vec<Seen>,
        is_time: impl Fn(&Seen) -> bool,
    ) -> Seen {
        let start = Instant::now();
        loop {
            let seen = self.observer.see(run);
            history.push(seen.clone());
            if seen.is_over() || is_time(&seen) {
                return seen;
            }
            assert!(start.elapsed() < PATIENCE, "{seen:#?}\n{}", self.cluster.logs());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One that works on the run, if any does.
    fn victim(&mut self, seen: &Seen) -> String {
        let mut candidates = seen.at_work();
        if candidates.is_empty() {
            candidates = (1..=3).map(|number| format!("executor-{number}")).collect();
        }
        self.moments.one_of(&candidates).clone()
    }

    fn start(&self, names: &[String]) {
        names.iter().for_each(|name| self.cluster.start(name));
        wait_until("all executors to be there", || self.observer.executors().len() == 3);
    }

    fn check(
        &self,
        exchange: Exchange,
        run: &str,
        fault: &Disturbance,
        history: &[Seen],
    ) -> Result<Cost, String> {
        let after = &fault.until;
        if after.run.status() != RunStatus::Succeeded {
            return Err(format!("the run has failed: {}", after.run.error));
        }
        let parts = after.run.stages.iter().filter(|stage| stage.name.contains(", part "));
        if parts.count() < 2 {
            return Err("rows were to be dealt out".to_owned());
        }
        are_exact(&self.expected, &targets::row_hashes(&self.url, TABLE))?;
        every_slice_counts_once(after, &targets::booked(&self.url, run))?;
        let audit = self.cluster.run(&["audit", run, "--output", "json"]).json();
        are_accounted_for(&audit, self.expected.count())?;
        nothing_is_taken_back(history, exchange)?;
        facts_agree(&self.members)?;
        only_lost_work_is_done_again(std::slice::from_ref(fault), after)
    }

    fn empty_target(&self) {
        targets::execute(&self.url, &format!("DROP TABLE IF EXISTS {TABLE}"));
    }

    /// On the real target: the last run's, with a row too many, a row too few, and a batch that is not booked.
    fn assert_that_checkers_see_what_is_wrong(&mut self) {
        self.empty_target();
        let run = self.cluster.submit("sync.yaml", "undisturbed");
        let after = self.watch(&run, &mut Vec::new(), Seen::is_over);
        let exact = || are_exact(&self.expected, &targets::row_hashes(&self.url, TABLE));
        assert_eq!(exact(), Ok(()));
        targets::execute(&self.url, &format!("INSERT INTO {TABLE} SELECT * FROM {TABLE} LIMIT 1"));
        assert!(exact().is_err(), "a row is there twice");
        targets::execute(
            &self.url,
            &format!(
                "DELETE FROM {TABLE} WHERE (order_key, line_number) IN \
                      (SELECT order_key, line_number FROM {TABLE} LIMIT 1)"
            ),
        );
        assert!(exact().is_err(), "a row is missing");

        let booked = targets::booked(&self.url, &run);
        assert_eq!(every_slice_counts_once(&after, &booked), Ok(()));
        targets::execute(
            &self.url,
            &format!("DELETE FROM _weir_ledger WHERE run = '{run}' AND sequence = 0"),
        );
        assert!(every_slice_counts_once(&after, &targets::booked(&self.url, &run)).is_err());
        let audit = self.cluster.run(&["audit", &run, "--output", "json"]).json();
        assert!(are_accounted_for(&audit, self.expected.count()).is_err(), "{audit:#}");
    }
}

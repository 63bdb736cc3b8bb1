//! One schedule over all kinds of faults that a machine, a network, a disk, a clock and a target can have, while
//! orders and lines of TPC-H are joined into PostgreSQL, run after run. After every fault the checkers look.
//! `WEIR_TEST_SEED` draws another schedule, `WEIR_TEST_FAULTS` makes it longer, `WEIR_TEST_PAUSE` sets the longest pause of
//! an executor in seconds; `WEIR_TEST_NETWORK` is `namespaces` or `proxies` (decision 0015).

use std::time::{Duration, Instant};

use weir_proto::v1::RunStatus;
use weir_tests::cluster::{PATIENCE, wait_until};
use weir_tests::faults::history::{
    Exchange, a_zombie_changes_nothing, facts_agree, nothing_is_taken_back,
};
use weir_tests::faults::machines::Machines;
use weir_tests::faults::network::Trouble;
use weir_tests::faults::observer::{Member, Observer, Seen};
use weir_tests::faults::proxy::Behaviour;
use weir_tests::faults::rows::{
    Rows, are_a_part, are_accounted_for, are_exact, every_slice_counts_once,
};
use weir_tests::faults::schedule::{Disk, Fault, Planned, Whom, draw};
use weir_tests::faults::work::{Disturbance, only_lost_work_is_done_again};
use weir_tests::moments::Moments;
use weir_tests::postgres::PostgresServer;
use weir_tests::weir::Weir;

use crate::cluster_tpch::generate;
use crate::cluster_tpch_faults::dealing_out;
use crate::examples::copied;
use crate::targets;

/// 60,000 lines of 15,000 orders.
const SCALE: &str = "0.01";
/// Most kinds once; 29 are every kind.
const FAULTS: usize = 24;
/// An executor's lease is 3 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
const TABLE: &str = "public.order_lines";
const EXPECTED: &str = "public.expected";

/// Each batch takes a while, so that a run is long enough for several faults, and this machine does not work
/// for it.
const SLOW_TABLE: &str = "DROP TABLE IF EXISTS public.order_lines;
    CREATE TABLE public.order_lines (LIKE public.expected);
    CREATE OR REPLACE FUNCTION public.take_time() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END';
    CREATE TRIGGER slow AFTER INSERT ON public.order_lines
    FOR EACH STATEMENT EXECUTE FUNCTION public.take_time();";

struct Play<'play> {
    machines: &'play Machines,
    server: &'play PostgresServer,
    observer: Observer,
    moments: Moments,
    url: String,
    expected: Rows,
    members: Vec<Member>,
    retries: usize,
    again: u32,
    lost: u32,
}

/// A run that is being disturbed.
struct Disturbed {
    run: String,
    exchange: Exchange,
    faults: Vec<Disturbance>,
    history: Vec<Seen>,
}

#[test]
fn a_join_survives_a_schedule_of_every_kind_of_fault() {
    let number = |variable: &str| std::env::var(variable).ok()?.parse().ok();
    let faults = number("WEIR_TEST_FAULTS").unwrap_or(FAULTS as u64);
    let pause = number("WEIR_TEST_PAUSE").map_or(LONGEST_PAUSE, Duration::from_secs);
    let mut moments = Moments::seeded("schedule");
    let faults = usize::try_from(faults).expect("a small number");
    let schedule = draw(&mut moments, faults, pause);

    let (_guard, folder) = copied("tpch-join");
    generate(&folder, SCALE, &["--parts", "6"]);
    let text = std::fs::read_to_string(folder.join("pipeline.yaml")).expect("the example is there");
    let text = dealing_out(&text);
    for exchange in [Exchange::Sync, Exchange::Off, Exchange::Async].map(Exchange::name) {
        let head = format!(
            "pipeline: tpch_{exchange}\ncheckpoint: {{ exchange: {exchange} }}\n\
             retry: {{ max_attempts: 30, delay: 200ms, backoff: constant }}"
        );
        let text = text.replace("pipeline: tpch_join", &head) + "    batch_rows: 500\n";
        let text = text.replace("s.parquet", "s/*.parquet").replace("m.parquet", "m/*.parquet");
        std::fs::write(folder.join(format!("{exchange}.yaml")), text).expect("the disk has room");
    }
    // Of its own: it crashes.
    let server = PostgresServer::start();
    let url = server.database_url("postgres");
    let embedded = Weir::new(&folder).env("DATABASE_URL", &url);
    embedded.run(&["run", "sync.yaml"]).expect_code(0);
    embedded.assert_audit_clean();
    targets::execute(&url, &format!("ALTER TABLE {TABLE} RENAME TO expected"));
    let expected = targets::row_hashes(&url, EXPECTED);

    let machines = Machines::up(server.port(), |target| {
        let url = format!("postgres://postgres@{target}/postgres");
        Weir::new(&folder).env("DATABASE_URL", &url)
    });
    println!("{}", machines.description());
    let mut play = Play {
        machines: &machines,
        server: &server,
        observer: Observer::of(&machines.cluster),
        moments,
        url,
        expected,
        members: Vec::new(),
        retries: 0,
        again: 0,
        lost: 0,
    };
    play.all(&schedule);
    println!(
        "{} faults: {} of {} lost tasks were done again, {} runs were retried by hand",
        schedule.len(),
        play.again,
        play.lost,
        play.retries
    );
}

impl Play<'_> {
    fn all(&mut self, schedule: &[Planned]) {
        let mut left = schedule.iter().enumerate().peekable();
        for round in 0.. {
            if left.peek().is_none() {
                return;
            }
            let exchange = [Exchange::Sync, Exchange::Off, Exchange::Async][round % 3];
            let mut disturbed = self.begin(round, exchange);
            while let Some((number, planned)) = left.peek().copied() {
                let before = self.before(&mut disturbed, planned.after);
                if before.is_over() {
                    break;
                }
                left.next();
                println!(
                    "{:>3}. {:?}, exchange {exchange:?}, {:.0} % of the run",
                    number + 1,
                    planned.fault,
                    before.progress(self.expected.count()) * 100.0
                );
                let began = Instant::now();
                self.inflict(&mut disturbed, before, planned.fault);
                self.check_meanwhile(&disturbed);
                println!("     {:.1?}", began.elapsed());
            }
            self.check_end(&mut disturbed);
        }
    }

    fn begin(&mut self, round: usize, exchange: Exchange) -> Disturbed {
        targets::execute(&self.url, SLOW_TABLE);
        let file = format!("{}.yaml", exchange.name());
        let run = self.machines.cluster.submit(&file, &format!("round-{round}"));
        Disturbed { run, exchange, faults: Vec::new(), history: Vec::new() }
    }

    /// The run when this share of what is left of it is done; or at its end.
    fn before(&mut self, disturbed: &mut Disturbed, share: f64) -> Seen {
        let rows = self.expected.count();
        let now = self.observer.see(&disturbed.run).progress(rows);
        let at = now + (1.0 - now) * share;
        self.watch(disturbed, |seen| seen.progress(rows) >= at)
    }

    fn watch(&mut self, disturbed: &mut Disturbed, is_time: impl Fn(&Seen) -> bool) -> Seen {
        let start = Instant::now();
        loop {
            let seen = self.observer.see(&disturbed.run);
            disturbed.history.push(seen.clone());
            if seen.is_over() || is_time(&seen) {
                return seen;
            }
            let is_late = start.elapsed() > PATIENCE;
            assert!(!is_late, "the run stands still: {seen:#?}\n{}", self.machines.cluster.logs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn inflict(&mut self, disturbed: &mut Disturbed, before: Seen, fault: Fault) {
        let (lost, any_task_may_fail) = match fault {
            Fault::Killed(whom) => self.kill(whom, &before),
            Fault::Paused(whom, length) => {
                let name = self.one(whom, &before);
                self.machines.cluster.pause(&name);
                std::thread::sleep(length);
                self.machines.cluster.resume(&name);
                self.machines.start_dead();
                // It had a lease, or was the one who gives them.
                (vec![name], false)
            }
            Fault::PausedBeyondTheEnd => {
                let name = self.one(Whom::Executor, &before);
                self.machines.cluster.pause(&name);
                self.watch(disturbed, Seen::is_over);
                self.wake(disturbed, &name);
                (vec![name], false)
            }
            Fault::Links(whom, trouble, length) => self.links(whom, trouble, length, &before),
            Fault::TargetReset => {
                self.machines.target.reset_connections(|_| true);
                (Vec::new(), true)
            }
            Fault::TargetSilent(length) => {
                let holds =
                    Behaviour { holds_requests: true, holds_answers: true, ..Behaviour::default() };
                self.behave(holds, length);
                (Vec::new(), true)
            }
            Fault::TargetDelayed(delay, length) => {
                self.behave(Behaviour { delay, ..Behaviour::default() }, length);
                (Vec::new(), false)
            }
            Fault::TargetCrashed => {
                self.server.restart_after_crash();
                (Vec::new(), true)
            }
            Fault::DiskFull(disk, length) => self.fill(disk, length, &before),
            Fault::ClockJump(whom, seconds) => {
                let name = self.one(whom, &before);
                let is_done = self.machines.set_clock(&name, seconds);
                // The library looks at its file once a second.
                std::thread::sleep(Duration::from_secs(2));
                if !is_done {
                    println!("     not inflicted: clocks cannot be shifted here");
                }
                // And stays there: the next fault meets it so.
                (Vec::new(), false)
            }
        };
        let until = self.observer.see(&disturbed.run);
        disturbed.history.push(until.clone());
        disturbed.faults.push(Disturbance { before, until, lost, any_task_may_fail });
    }

    fn kill(&mut self, whom: Whom, before: &Seen) -> (Vec<String>, bool) {
        let all = || self.machines.cluster.processes().into_iter().map(|(name, _)| name);
        let names: Vec<String> = match whom {
            Whom::Everybody => all().collect(),
            Whom::Coordinators => all().filter(|name| name.starts_with("coordinator-")).collect(),
            Whom::LeaderAndExecutor => {
                vec![self.one(Whom::Leader, before), self.one(Whom::Executor, before)]
            }
            Whom::Leader | Whom::Follower | Whom::Executor => vec![self.one(whom, before)],
        };
        self.machines.cluster.kill_each(&names);
        std::thread::sleep(self.moments.below(Duration::from_secs(2)));
        self.machines.start_dead();
        (names, false)
    }

    fn links(
        &mut self,
        whom: Whom,
        trouble: Trouble,
        length: Duration,
        before: &Seen,
    ) -> (Vec<String>, bool) {
        let name = self.one(whom, before);
        let others = self.machines.all_but(&name);
        self.machines.network.trouble(&name, &others, trouble);
        std::thread::sleep(length);
        self.machines.network.mend(&name);
        self.machines.start_dead();
        // Whom a leader does not hear has lost his lease; and who reads rows of others may not get them.
        (self.machines.all_but(""), true)
    }

    fn fill(&mut self, disk: Disk, length: Duration, before: &Seen) -> (Vec<String>, bool) {
        let name = match disk {
            Disk::Leader => self.one(Whom::Leader, before),
            Disk::Executor => self.one(Whom::Executor, before),
            Disk::Storage => "storage".to_owned(),
        };
        match self.machines.disk(&name) {
            None => println!("     not inflicted: there are no small disks here"),
            Some(disk) => {
                disk.fill();
                std::thread::sleep(length);
                disk.free();
            }
        }
        self.machines.start_dead();
        (vec![name], true)
    }

    fn behave(&self, behaviour: Behaviour, length: Duration) {
        self.machines.target.behave(behaviour);
        std::thread::sleep(length);
        self.machines.target.behave(Behaviour::default());
    }

    /// Somebody of this kind: an executor that has work, if any has.
    fn one(&mut self, whom: Whom, before: &Seen) -> String {
        let leader = self.observer.leader();
        let all = self.machines.cluster.processes().into_iter().map(|(name, _)| name);
        let candidates: Vec<String> = match whom {
            Whom::Follower => {
                all.filter(|name| name.starts_with("coordinator-") && *name != leader).collect()
            }
            Whom::Executor => match before.at_work() {
                busy if !busy.is_empty() => busy,
                _ => all.filter(|name| name.starts_with("executor-")).collect(),
            },
            _ => vec![leader],
        };
        self.moments.one_of(&candidates).clone()
    }

    /// Others have done its work, and the run is over: whatever it still does changes nothing.
    fn wake(&mut self, disturbed: &Disturbed, zombie: &str) {
        let mut snapshot = || {
            let rows = targets::row_hashes(&self.url, TABLE);
            let booked = targets::booked(&self.url, &disturbed.run);
            (rows, booked, self.observer.see(&disturbed.run))
        };
        let before = snapshot();
        self.machines.cluster.resume(zombie);
        self.machines.start_dead();
        // It has heard that it has lost its tasks, and given them up: what it was writing has ended.
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'weir %' \
                        AND state <> 'idle'";
        wait_until("its sessions to end", || targets::numbers(&self.url, sessions) == [0]);
        let after = snapshot();
        self.no_problem(disturbed, a_zombie_changes_nothing(&before, &after));
    }

    /// While the run goes on.
    fn check_meanwhile(&mut self, disturbed: &Disturbed) {
        self.members.extend(self.observer.members());
        let rows = targets::row_hashes(&self.url, TABLE);
        let checked = are_a_part(&self.expected, &rows)
            .and_then(|()| nothing_is_taken_back(&disturbed.history, disturbed.exchange))
            .and_then(|()| facts_agree(&self.members));
        self.no_problem(disturbed, checked);
    }

    fn check_end(&mut self, disturbed: &mut Disturbed) {
        self.machines.start_dead();
        let mut end = self.watch(disturbed, Seen::is_over);
        while end.run.status() != RunStatus::Succeeded {
            self.retry(disturbed, end);
            end = self.watch(disturbed, Seen::is_over);
        }
        self.members.extend(self.observer.members());
        let checked = self.check_all(disturbed, &end);
        self.no_problem(disturbed, checked);
        for (name, _) in self.machines.cluster.processes() {
            self.machines.set_clock(&name, 0);
        }
    }

    /// As an operator does who reads why it has failed. Only some faults may make a run fail.
    fn retry(&mut self, disturbed: &mut Disturbed, failed: Seen) {
        println!("     retried by hand: {}", failed.run.error);
        let is_explained = disturbed.faults.iter().any(|fault| fault.any_task_may_fail);
        let checked = if is_explained { Ok(()) } else { Err("the run has failed".to_owned()) };
        self.no_problem(disturbed, checked);
        self.retries += 1;
        self.machines.cluster.run(&["retry", &disturbed.run]).expect_code(0);
        let until =
            self.watch(&mut Disturbed::of(disturbed), |seen| seen.attempts() > failed.attempts());
        // A run that was over goes on: its history begins anew.
        disturbed.history = vec![until.clone()];
        let (before, lost) = (failed, Vec::new());
        disturbed.faults.push(Disturbance { before, until, lost, any_task_may_fail: true });
    }

    fn check_all(&mut self, disturbed: &Disturbed, end: &Seen) -> Result<(), String> {
        let cluster = &self.machines.cluster;
        are_exact(&self.expected, &targets::row_hashes(&self.url, TABLE))?;
        every_slice_counts_once(end, &targets::booked(&self.url, &disturbed.run))?;
        let audit = cluster.run(&["audit", &disturbed.run, "--output", "json"]).json();
        are_accounted_for(&audit, self.expected.count())?;
        nothing_is_taken_back(&disturbed.history, disturbed.exchange)?;
        facts_agree(&self.members)?;
        let cost = only_lost_work_is_done_again(&disturbed.faults, end)?;
        self.again += cost.again;
        self.lost += cost.lost;
        Ok(())
    }

    #[track_caller]
    fn no_problem(&self, disturbed: &Disturbed, checked: Result<(), String>) {
        if let Err(problem) = checked {
            panic!("{problem}\n{:#?}\n{}", disturbed.faults, self.machines.cluster.logs());
        }
    }
}

impl Disturbed {
    /// The same run, without what it has met.
    fn of(other: &Self) -> Self {
        let (run, exchange) = (other.run.clone(), other.exchange);
        Self { run, exchange, faults: Vec::new(), history: Vec::new() }
    }
}

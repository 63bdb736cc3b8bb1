//! Three coordinators, some executors and a client on a simulated network under a simulated clock, and what goes
//! wrong with them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::TimeDelta;
use futures::FutureExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;
use turmoil::Sim;
use weir_executor::storage::Storage;
use weir_ledger::RunId;

use super::super::ended_runs::read_ended;
use super::Control;
use super::client::Client;
use super::coordinator::Coordinator;
use super::executor::Executor;
use super::faults::{self, Fault, Host, Planned};
use super::pipelines::Pipeline;
use super::shared::Shared;
use crate::raft::MemberId;
use crate::raft::simulation::{
    DISK_DELAY_MS, Disk, MEMBERS, Machine, host, memory_folder, observe, panics, seed, watch_panics,
};
use crate::surroundings::simulated::shift_clocks;

const TICK: Duration = Duration::from_millis(10);
const LATENCY: Duration = Duration::from_millis(5);
/// After the last fault, for all runs to come to their ends.
const RECOVERY: Duration = Duration::from_secs(90);
/// For what has been paused or is on its way to do its worst.
const AFTERMATH: Duration = Duration::from_secs(3);

pub(super) struct World<'sim> {
    sim: Sim<'sim>,
    random: StdRng,
    /// Names, by place.
    hosts: Vec<String>,
    machines: Vec<Machine>,
    planned: Vec<Planned>,
    /// Those that have begun and not ended.
    present: Vec<Planned>,
    down: BTreeSet<Host>,
    control: Control,
    shared: Arc<Shared>,
    _folder: TempDir,
}

/// What has come of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) violations: Vec<String>,
    pub(super) story: Vec<String>,
    pub(super) leaderships: usize,
    pub(super) attempts: usize,
    /// Runs that have left the ledger.
    pub(super) left: usize,
}

impl World<'_> {
    pub(super) fn new(number: u64, control: Control) -> Self {
        seed(number);
        watch_panics();
        shift_clocks(TimeDelta::zero());
        let mut random = StdRng::seed_from_u64(number);
        let folder = memory_folder();
        let mut sim = turmoil::Builder::new()
            .rng_seed(number)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3_600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(LATENCY)
            .repair_rate(0.05)
            .tcp_capacity(4_096)
            .build();
        let is_calm = random.gen_bool(0.08) && control != Control::FaultsNeverEnd;
        let count = if random.gen_bool(0.25) { 2 } else { 1 };
        let pipelines = (0..count).map(|number| Pipeline::random(number, &mut random)).collect();
        let error_percent = match !is_calm && random.gen_bool(0.3) {
            true => random.gen_range(1..6),
            false => 0,
        };
        let storage = Storage::folder(folder.path().join("storage")).inline();
        let shared = Arc::new(Shared::new(control, storage, pipelines, error_percent, is_calm));
        let mut machines = Vec::new();
        for id in MEMBERS {
            let disk = match control {
                Control::DisksLie => Disk::lying(),
                _ => Disk::default(),
            };
            let clock = random.gen_range(0.85..1.2);
            let machine = Machine::new(id, disk, folder.path().join(id.to_string()), clock);
            let process = Coordinator { machine: machine.clone(), shared: Arc::clone(&shared) };
            sim.host(host(id), move || process.clone().run());
            machines.push(machine);
        }
        let mut hosts: Vec<String> = MEMBERS.map(host).into();
        let executors = random.gen_range(1..=3);
        for number in 0..executors {
            let name = format!("executor-{number}");
            let process = Executor {
                host: name.clone(),
                slots: random.gen_range(1..=3),
                shared: Arc::clone(&shared),
            };
            sim.host(name.as_str(), move || process.clone().run());
            hosts.push(name);
        }
        let client = Client { shared: Arc::clone(&shared) };
        sim.host("client", move || client.clone().run());
        hosts.push("client".to_owned());
        let seen_by = Arc::clone(&shared);
        observe(move |seen| {
            let at = turmoil::sim_elapsed().unwrap_or_default();
            let state = &mut *seen_by.state();
            state.trace.sees(seen, at, &state.targets);
        });
        let planned = if is_calm { Vec::new() } else { faults::plan(executors, &mut random) };
        let (present, down) = (Vec::new(), BTreeSet::new());
        let _folder = folder;
        Self { sim, random, hosts, machines, planned, present, down, control, shared, _folder }
    }

    pub(super) fn run(mut self) -> Outcome {
        let result = self.play();
        let storage = &self.shared.storage;
        let kept = |run: &RunId| {
            let read = read_ended(storage, run).now_or_never().expect("its storage is inline");
            read.expect("the disk of the test can be read")
        };
        let state = &mut *self.shared.state();
        match result {
            Ok(()) => state.trace.check_end(&state.targets, kept),
            Err(what) => state.trace.violated(what),
        }
        Outcome {
            violations: state.trace.violations.iter().cloned().collect(),
            story: std::mem::take(&mut state.trace.story),
            leaderships: state.trace.leaderships,
            left: state.trace.left.len(),
            attempts: state.trace.attempts,
        }
    }

    fn play(&mut self) -> Result<(), String> {
        let mut planned = std::mem::take(&mut self.planned).into_iter().peekable();
        while self.sim.elapsed() < faults::LAST && !self.is_over() {
            while let Some(next) = planned.next_if(|next| next.begin <= self.sim.elapsed()) {
                self.tell(&format!("{:?}, until {:.1?}", next.fault, next.end));
                for fault in self.meant(next.fault) {
                    self.begin(fault, next.end);
                    self.present.push(Planned { fault, ..next });
                }
            }
            self.end_those_that_are_over();
            self.step()?;
        }
        if self.control == Control::FaultsNeverEnd {
            for host in 0..3 {
                self.begin(Fault::Isolate(host), Duration::MAX);
            }
        } else {
            self.mend_all();
            self.tell("all is mended");
        }
        self.until("all runs to come to their ends", Self::is_over)?;
        let quiet = self.sim.elapsed() + AFTERMATH;
        while self.sim.elapsed() < quiet {
            self.step()?;
        }
        let have_all_applied = |world: &Self| world.shared.state().trace.all_have_applied(3);
        self.until("all members to have the same facts", have_all_applied)
    }

    /// All that clients want is done, or something is wrong.
    fn is_over(&self) -> bool {
        let state = self.shared.state();
        state.clients_at_work == 0 || !state.trace.violations.is_empty()
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        let start = self.sim.elapsed();
        while !holds(self) {
            if self.sim.elapsed() > start + RECOVERY {
                return Err(format!("waited {RECOVERY:?} for {what}"));
            }
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.sim.step().map_err(|error| error.to_string())?;
        let now = self.sim.elapsed();
        let state = &mut *self.shared.state();
        for what in panics() {
            state.trace.violated(format!("a task has panicked: {what}"));
        }
        state.targets.deliver(now);
        for (key, target) in &mut state.targets.all {
            for what in target.violations.drain(..) {
                state.trace.violated(format!("{key:?}: {what}"));
            }
        }
        Ok(())
    }

    fn tell(&self, what: &str) {
        let line = format!("{:6} ms: {what}", self.sim.elapsed().as_millis());
        self.shared.state().trace.story.push(line);
    }

    /// Whom a fault of the leader strikes.
    fn meant(&self, fault: Fault) -> Vec<Fault> {
        let leader = self.shared.state().leader.unwrap_or(MEMBERS[0]);
        match fault {
            Fault::CrashLeader => vec![Fault::CrashMember(leader)],
            Fault::IsolateLeader => vec![Fault::Isolate(place(leader))],
            Fault::PauseWhileLeaderFalls(host) => {
                vec![Fault::Pause(host), Fault::CrashMember(leader)]
            }
            fault => vec![fault],
        }
    }

    fn crash(&mut self, host: Host) {
        if !self.down.insert(host) {
            return;
        }
        let name = self.hosts[host].as_str();
        match self.machines.get(host) {
            Some(machine) => machine.disk.lose_power(&mut self.random),
            None => {
                let mut state = self.shared.state();
                state.exchanges.lose(name);
                state.paused_until.remove(name);
            }
        }
        self.sim.crash(name);
    }

    fn start(&mut self, host: Host) {
        if let Some(machine) = self.machines.get(host) {
            // A transaction that has never come has not failed either.
            machine.disk.fail_after(u32::MAX);
        }
        if self.down.remove(&host) {
            self.tell(&format!("{} starts again", self.hosts[host]));
            self.sim.bounce(self.hosts[host].as_str());
        }
    }

    /// Without the client.
    fn processes(&self) -> std::ops::Range<Host> {
        0..self.hosts.len() - 1
    }

    fn others(&self, host: Host) -> Vec<&str> {
        let others = self.hosts.iter().enumerate().filter(|(other, _)| *other != host);
        others.map(|(_, name)| name.as_str()).collect()
    }

    fn begin(&mut self, fault: Fault, end: Duration) {
        let name = |host: Host| self.hosts[host].as_str();
        match fault {
            Fault::CrashMember(id) => self.crash(place(id)),
            Fault::CrashIn(id, writes) => self.machines[place(id)].disk.fail_after(writes),
            Fault::CrashMembers => (0..3).for_each(|host| self.crash(host)),
            Fault::CrashExecutor(host) => self.crash(host),
            Fault::CrashAll => self.processes().for_each(|host| self.crash(host)),
            Fault::CrashLeader | Fault::IsolateLeader | Fault::PauseWhileLeaderFalls(_) => {
                unreachable!("somebody is meant")
            }
            Fault::Leave(host) => {
                self.shared.state().leaving.insert(name(host).to_owned());
            }
            Fault::Pause(host) => {
                self.shared.state().paused_until.insert(name(host).to_owned(), end);
                for other in self.others(host) {
                    self.sim.hold(name(host), other);
                }
            }
            Fault::Cut(one, other) => self.sim.partition(name(one), name(other)),
            Fault::CutOneWay(from, to) => self.sim.partition_oneway(name(from), name(to)),
            Fault::Isolate(host) => {
                for other in self.others(host) {
                    self.sim.partition(name(host), other);
                }
            }
            Fault::Deafen(host) => {
                for other in self.others(host) {
                    self.sim.partition_oneway(other, name(host));
                }
            }
            Fault::Hold(one, other) => self.sim.hold(name(one), name(other)),
            Fault::Slow(one, other, millis) => {
                let longest = Duration::from_millis(millis);
                self.sim.set_link_max_message_latency(
                    self.hosts[one].as_str(),
                    self.hosts[other].as_str(),
                    longest,
                );
            }
            Fault::Lossy(one, other, percent) => {
                let share = f64::from(percent) / 100.0;
                let (one, other) = (self.hosts[one].as_str(), self.hosts[other].as_str());
                self.sim.set_link_fail_rate(one, other, share);
            }
            Fault::SlowDisk(id, millis) => {
                self.machines[place(id)].disk_delay.store(millis, Ordering::Relaxed);
            }
            Fault::NoTargets(host) => {
                self.shared.state().targets.cut_off.insert(name(host).to_owned());
            }
            Fault::ClocksJump(millis) => shift_clocks(TimeDelta::milliseconds(millis)),
            Fault::Cancel => {
                let names = self.shared.pipelines.iter().map(|pipeline| pipeline.name.clone());
                self.shared.state().to_cancel.extend(names.take(1));
            }
        }
    }

    fn end_those_that_are_over(&mut self) {
        let now = self.sim.elapsed();
        let (over, present) = self.present.iter().partition(|planned| planned.end <= now);
        self.present = present;
        for Planned { fault, .. } in over {
            self.end(fault);
        }
        // The power has failed, and takes the process with it.
        for host in 0..3 {
            if self.machines[host].disk.is_dead() {
                self.crash(host);
            }
        }
    }

    /// Of two faults of one link the first that ends mends it.
    fn end(&mut self, fault: Fault) {
        let name = |host: Host| self.hosts[host].as_str();
        match fault {
            Fault::CrashMember(id) | Fault::CrashIn(id, _) => self.start(place(id)),
            Fault::CrashMembers => (0..3).for_each(|host| self.start(host)),
            Fault::CrashExecutor(host) => self.start(host),
            Fault::CrashAll => self.processes().for_each(|host| self.start(host)),
            Fault::CrashLeader | Fault::IsolateLeader | Fault::PauseWhileLeaderFalls(_) => {
                unreachable!("somebody is meant")
            }
            // They end by themselves, or stay.
            Fault::Leave(_) | Fault::ClocksJump(_) | Fault::Cancel => {}
            Fault::Pause(host) => {
                for other in self.others(host) {
                    self.sim.release(name(host), other);
                }
            }
            Fault::Cut(one, other) | Fault::CutOneWay(one, other) => {
                self.sim.repair(name(one), name(other));
            }
            Fault::Isolate(host) | Fault::Deafen(host) => {
                for other in self.others(host) {
                    self.sim.repair(name(host), other);
                }
            }
            Fault::Hold(one, other) => self.sim.release(name(one), name(other)),
            Fault::Slow(one, other, _) => {
                let (one, other) = (self.hosts[one].as_str(), self.hosts[other].as_str());
                self.sim.set_link_max_message_latency(one, other, LATENCY);
            }
            Fault::Lossy(one, other, _) => {
                let (one, other) = (self.hosts[one].as_str(), self.hosts[other].as_str());
                self.sim.set_link_fail_rate(one, other, 0.0);
                self.sim.release(one, other);
            }
            Fault::SlowDisk(id, _) => {
                let delay = &self.machines[place(id)].disk_delay;
                delay.store(DISK_DELAY_MS, Ordering::Relaxed);
            }
            Fault::NoTargets(host) => {
                self.shared.state().targets.cut_off.remove(name(host));
            }
        }
    }

    fn mend_all(&mut self) {
        for planned in std::mem::take(&mut self.present) {
            self.end(planned.fault);
        }
        {
            let mut state = self.shared.state();
            state.paused_until.clear();
            state.targets.cut_off.clear();
        }
        for one in 0..self.hosts.len() {
            for other in 0..one {
                self.end(Fault::Cut(one, other));
                self.end(Fault::Slow(one, other, 0));
                self.end(Fault::Lossy(one, other, 0));
            }
        }
        for id in MEMBERS {
            if self.machines[place(id)].disk.is_dead() {
                self.crash(place(id));
            }
            self.end(Fault::SlowDisk(id, 0));
        }
        self.processes().for_each(|host| self.start(host));
    }
}

/// In the list of hosts.
fn place(member: MemberId) -> Host {
    usize::try_from(member - 1).expect("there are three")
}

//! Three or four coordinators on a simulated network under a simulated clock, and what goes wrong with them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;
use turmoil::Sim;
use weir_ledger::Ledger;

use super::changes::{self, Change};
use super::disk::Disk;
use super::faults::{self, Fault, Planned};
use super::machine::{DISK_DELAY_MS, Machine, host, memory_folder};
use super::panics::{panics, watch_panics};
use super::process::{Place, Shared, knows};
use super::{Control, runtime};
use crate::raft::MemberId;

const TICK: Duration = Duration::from_millis(10);
const LATENCY: Duration = Duration::from_millis(5);
/// After the last fault, for somebody to lead and for all to agree.
const RECOVERY: Duration = Duration::from_secs(60);
/// What must be started after the last fault.
const PROGRESS: usize = 5;

pub(super) struct World<'sim> {
    sim: Sim<'sim>,
    random: StdRng,
    places: BTreeMap<MemberId, Place>,
    planned: Vec<Planned>,
    /// Of the members, in those worlds in which they change.
    changes: Vec<(Duration, Change)>,
    /// Those that have begun and not ended.
    present: Vec<Planned>,
    down: BTreeMap<MemberId, bool>,
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
    pub(super) started: usize,
}

impl World<'_> {
    pub(super) fn new(seed: u64, control: Control) -> Self {
        runtime::seed(seed);
        watch_panics();
        let mut random = StdRng::seed_from_u64(seed);
        let folder = memory_folder();
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3_600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(LATENCY)
            .repair_rate(0.05)
            .tcp_capacity(4_096)
            .build();
        let shared = Arc::new(Shared::default());
        let mut places = BTreeMap::new();
        let changes = match random.gen_bool(0.5) {
            true => changes::plan(&mut random),
            false => Vec::new(),
        };
        let members = if changes.is_empty() { 3 } else { changes::NEW };
        for id in 1..=members {
            let disk = if control == Control::DisksLie { Disk::lying() } else { Disk::default() };
            let clock = random.gen_range(0.85..1.2);
            let place = Place {
                machine: Machine::new(id, disk, folder.path().join(id.to_string()), clock),
                control,
                shared: Arc::clone(&shared),
                applied: Arc::new(Mutex::default()),
                boots: Arc::default(),
            };
            let process = place.clone();
            sim.host(host(id), move || process.clone().run());
            places.insert(id, place);
        }
        let planned = faults::plan(&mut random, members);
        let (present, down) = (Vec::new(), BTreeMap::new());
        Self {
            sim,
            random,
            places,
            planned,
            changes,
            present,
            down,
            control,
            shared,
            _folder: folder,
        }
    }

    pub(super) fn run(mut self) -> Outcome {
        let result = self.play();
        let mut history = self.shared.history();
        if let Err(what) = result {
            history.violated(what);
        }
        Outcome {
            violations: history.violations.iter().cloned().collect(),
            story: std::mem::take(&mut history.story),
            leaderships: history.leaderships(),
            started: history.started(),
        }
    }

    fn play(&mut self) -> Result<(), String> {
        let mut planned = std::mem::take(&mut self.planned).into_iter().peekable();
        let mut wanted = std::mem::take(&mut self.changes).into_iter().peekable();
        let mut removed = None;
        while self.sim.elapsed() < faults::LAST {
            while let Some(next) = planned.next_if(|next| next.begin <= self.sim.elapsed()) {
                self.tell(&format!("{:?}, until {:.1?}", next.fault, next.end));
                self.begin(next.fault);
                self.present.push(next);
            }
            while let Some((_, change)) =
                wanted.next_if(|(moment, _)| *moment <= self.sim.elapsed())
            {
                self.tell(&format!("{change:?} is wanted"));
                self.shared.wanted.want(change);
                if let Change::Remove(id) = change {
                    removed = Some(id);
                }
            }
            self.end_those_that_are_over();
            self.step()?;
        }
        if self.control == Control::FaultsNeverEnd {
            for id in self.ids() {
                self.begin(Fault::Isolate(id));
            }
        } else {
            self.mend_all();
            self.tell("all is mended");
        }
        self.until("the members to be changed", |world| world.shared.wanted.is_settled())?;
        let before = self.shared.history().started();
        self.until("a leader that starts runs", |world| {
            world.shared.history().started() >= before + PROGRESS
        })?;
        self.shared.is_quiet.store(true, Ordering::Relaxed);
        // Nobody tells it anything any more.
        let stays = |id: &MemberId| Some(*id) != removed;
        self.until("all members to have the same facts", |world| {
            let places = world.places.iter().filter(|(id, _)| stays(id));
            let applied: Vec<_> = places.map(|(_, place)| applied(place)).collect();
            applied.iter().all(|(index, hash, _)| (index, hash) == (&applied[0].0, &applied[0].1))
        })?;
        for (id, place) in self.places.iter().filter(|(id, _)| stays(id)) {
            let (_, _, ledger) = applied(place);
            let mut history = self.shared.history();
            let asked = history.asked();
            history.has_read(asked, *id, |run| knows(&ledger, run));
        }
        Ok(())
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        let start = self.sim.elapsed();
        // What is said to be so must stay so for a moment.
        let mut since = None;
        while since.is_none_or(|since| self.sim.elapsed() < since + Duration::from_secs(1)) {
            if self.sim.elapsed() > start + RECOVERY {
                return Err(format!("waited {RECOVERY:?} for {what}"));
            }
            self.step()?;
            since = holds(self).then(|| since.unwrap_or(self.sim.elapsed()));
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        self.sim.step().map_err(|error| error.to_string())?;
        for what in panics() {
            self.shared.history().violated(format!("a task has panicked: {what}"));
        }
        Ok(())
    }

    fn tell(&self, what: &str) {
        self.shared.history().story.push(format!("{:.2?}: {what}", self.sim.elapsed()));
    }

    fn ids(&self) -> impl Iterator<Item = MemberId> + use<> {
        1..=self.places.len() as MemberId
    }

    fn others(&self, id: MemberId) -> impl Iterator<Item = MemberId> + use<> {
        self.ids().filter(move |other| *other != id)
    }

    fn crash(&mut self, id: MemberId) {
        if self.down.insert(id, true) != Some(true) {
            self.places[&id].machine.disk.lose_power(&mut self.random);
            self.sim.crash(host(id));
        }
    }

    fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::Crash(id) => self.crash(id),
            Fault::CrashIn(id, writes) => self.places[&id].machine.disk.fail_after(writes),
            Fault::CrashAll => self.ids().for_each(|id| self.crash(id)),
            Fault::Cut(one, other) => self.sim.partition(host(one), host(other)),
            Fault::CutOneWay(from, to) => self.sim.partition_oneway(host(from), host(to)),
            Fault::Isolate(id) => {
                self.others(id).for_each(|other| self.sim.partition(host(id), host(other)));
            }
            Fault::Deafen(id) => {
                self.others(id).for_each(|other| self.sim.partition_oneway(host(other), host(id)));
            }
            Fault::Hold(one, other) => self.sim.hold(host(one), host(other)),
            Fault::Slow(one, other, millis) => {
                let longest = Duration::from_millis(millis);
                self.sim.set_link_max_message_latency(host(one), host(other), longest);
            }
            Fault::Lossy(one, other, percent) => {
                let share = f64::from(percent) / 100.0;
                self.sim.set_link_fail_rate(host(one), host(other), share);
            }
            Fault::SlowDisk(id, millis) => {
                self.places[&id].machine.disk_delay.store(millis, Ordering::Relaxed);
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
        for id in self.ids() {
            if self.places[&id].machine.disk.is_dead() {
                self.crash(id);
            }
        }
    }

    /// Of two faults of one link the first that ends mends it.
    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::Crash(id) | Fault::CrashIn(id, _) => self.start(id),
            Fault::CrashAll => self.ids().for_each(|id| self.start(id)),
            Fault::Cut(one, other) | Fault::CutOneWay(one, other) => {
                self.sim.repair(host(one), host(other));
            }
            Fault::Isolate(id) | Fault::Deafen(id) => {
                self.others(id).for_each(|other| self.sim.repair(host(id), host(other)));
            }
            Fault::Hold(one, other) => self.sim.release(host(one), host(other)),
            Fault::Slow(one, other, _) => {
                self.sim.set_link_max_message_latency(host(one), host(other), LATENCY);
            }
            Fault::Lossy(one, other, _) => {
                self.sim.set_link_fail_rate(host(one), host(other), 0.0);
                self.sim.release(host(one), host(other));
            }
            Fault::SlowDisk(id, _) => {
                self.places[&id].machine.disk_delay.store(DISK_DELAY_MS, Ordering::Relaxed);
            }
        }
    }

    fn start(&mut self, id: MemberId) {
        // A transaction that has never come has not failed either.
        self.places[&id].machine.disk.fail_after(u32::MAX);
        if self.down.insert(id, false) == Some(true) {
            self.tell(&format!("member {id} starts again"));
            self.sim.bounce(host(id));
        }
    }

    fn mend_all(&mut self) {
        for planned in std::mem::take(&mut self.present) {
            self.end(planned.fault);
        }
        for one in self.ids() {
            for other in self.ids().filter(|other| one < *other) {
                self.end(Fault::Slow(one, other, 0));
                self.end(Fault::Lossy(one, other, 0));
            }
        }
        for id in self.ids() {
            if self.places[&id].machine.disk.is_dead() {
                self.crash(id);
            }
            self.end(Fault::SlowDisk(id, 0));
            self.start(id);
        }
    }
}

fn applied(place: &Place) -> (u64, String, Arc<Ledger>) {
    place.applied.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

//! A leader: its epoch, and the executors that have come to it. As `cluster::pool` does it.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_ledger::{Command, NewEpoch, ResumeRun, RunState, SliceAttempt};
use weir_proto::internal::to_executor::Message;
use weir_proto::internal::{Answer, Assign, TaskId};

use super::driver::{Driver, WorkEnd};
use super::log::{Log, Waiter};
use super::network::{assign, stop, welcome};
use super::world::{Event, World};
use crate::cluster::place::{Candidate, Standing, place};

/// Without a word from it, an executor has lost its tasks.
const LEASE: u64 = 3_000;
/// How long a wish for a place counts.
const WISH: u64 = 600;

#[derive(Debug, Default)]
pub(super) struct Leader {
    pub(super) epoch: u64,
    pub(super) is_alive: bool,
    /// Another one has been elected, or will be: nothing can be appended any more.
    pub(super) is_deposed: bool,
    pub(super) executors: BTreeMap<usize, Known>,
    pub(super) tasks: Vec<Assigned>,
    wishes: BTreeMap<usize, u64>,
    pub(super) drivers: BTreeMap<usize, Driver>,
    /// Where attempts that are not in the ledger yet will start.
    pub(super) starts: BTreeMap<u64, usize>,
    pub(super) log: Log,
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) boot: u64,
    /// The stream with which it has joined.
    registration: usize,
    slots: u32,
    is_draining: bool,
    heard: u64,
    stream: Option<usize>,
    /// By run.
    taken: BTreeMap<usize, u32>,
}

#[derive(Debug)]
pub(super) struct Assigned {
    pub(super) key: SliceAttempt,
    pub(super) process: usize,
    pub(super) run: usize,
    pub(super) job: u64,
    pub(super) assign: Assign,
    pub(super) is_stopping: bool,
    pub(super) last: Option<(u64, Option<Answer>)>,
}

/// A place at an executor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) process: usize,
    registration: usize,
}

impl Known {
    fn free(&self) -> u32 {
        match self.is_draining || self.stream.is_none() {
            true => 0,
            false => self.slots.saturating_sub(self.taken.values().sum()),
        }
    }
}

impl Leader {
    /// Its epoch has begun, and it does not know of its end.
    pub(super) fn leads(&self) -> bool {
        self.is_alive && self.epoch > 0
    }

    /// With what the run still has where nothing begins any more.
    pub(super) fn capacity_for(&self, run: usize) -> usize {
        let places = self.executors.values().map(|executor| match executor.is_draining {
            true => executor.taken.get(&run).copied().unwrap_or(0),
            false => executor.slots,
        });
        places.map(|places| places as usize).sum()
    }

    pub(super) fn take_place(&mut self, run: usize, now: u64) -> Option<Place> {
        self.wishes.retain(|_, since| now - *since < WISH);
        let of_run = |known: &Known, run: usize| known.taken.get(&run).copied().unwrap_or(0);
        let busy = |run: usize| self.executors.values().map(|known| of_run(known, run)).sum();
        let others = self.wishes.keys().filter(|other| **other != run);
        // Each run is of a pipeline of its own.
        let standing = |run: usize| Standing { of_pipeline: busy(run), of_share: busy(run) };
        let waiting: Vec<Standing> = others.map(|other| standing(*other)).collect();
        let candidates: Vec<Candidate> = (self.executors.iter())
            .map(|(process, known)| Candidate {
                name: process.to_string(),
                free: known.free(),
                of_run: of_run(known, run),
                stays: !known.is_draining,
                ..Candidate::default()
            })
            .collect();
        let found = place(&candidates, standing(run), &waiting, 0, Duration::ZERO);
        let Ok(index) = found else {
            self.wishes.insert(run, now);
            return None;
        };
        self.wishes.remove(&run);
        let (process, known) = self.executors.iter_mut().nth(index).expect("a candidate");
        *known.taken.entry(run).or_default() += 1;
        Some(Place { process: *process, registration: known.registration })
    }

    pub(super) fn free_place(&mut self, run: usize, place: Place) {
        if let Some(known) = self.executors.get_mut(&place.process)
            && known.registration == place.registration
            && let Some(taken) = known.taken.get_mut(&run)
        {
            *taken -= 1;
        }
    }

    fn stream_of(&self, process: usize) -> Option<usize> {
        self.executors.get(&process)?.stream
    }
}

impl World {
    /// The last leader, unless it is gone.
    fn current(&self) -> Option<usize> {
        let last = self.leaders.len().checked_sub(1)?;
        (self.leaders[last].is_alive && !self.leaders[last].is_deposed).then_some(last)
    }

    pub(super) fn elect(&mut self) {
        if self.current().is_some() || self.is_over() {
            return;
        }
        self.leaders.push(Leader { is_alive: true, ..Leader::default() });
        let command = Command::NewEpoch(NewEpoch {
            ledger_id: "ledger".to_owned(),
            boot_id: self.leaders.len().to_string(),
            pid: 1,
            host: String::new(),
            at: self.time(),
        });
        self.append(self.leaders.len() - 1, command, Waiter::Epoch);
    }

    /// It ends, or somebody else may lead: everything that it knows is gone.
    pub(super) fn lose_leader(&mut self, leader: usize) {
        if !std::mem::replace(&mut self.leaders[leader].is_alive, false) {
            return;
        }
        for stream in 0..self.streams.len() {
            if self.streams[stream].leader == leader {
                self.break_stream(stream);
            }
        }
        self.soon(50, 1_500, Event::Elect);
    }

    /// Goes on with the runs that the leader before has left.
    pub(super) fn take_up(&mut self, leader: usize) {
        self.leaders[leader].epoch = self.ledger.current_epoch();
        for run in 0..self.plans.len() {
            if self.ledger.runs[&self.plans[run].id].state == RunState::Running {
                self.resume(leader, run);
            }
        }
        self.after(500, Event::LeaderTick { leader });
    }

    fn resume(&mut self, leader: usize, run: usize) {
        let (id, at) = (self.plans[run].id.clone(), self.time());
        let epoch = self.leaders[leader].epoch;
        let command = ResumeRun { epoch, run: id, request_id: None, at };
        self.append(leader, Command::ResumeRun(command), Waiter::Resumed { run });
    }

    /// `weir retry`.
    pub(super) fn retry(&mut self, run: usize) {
        let state = &self.ledger.runs[&self.plans[run].id].state;
        match self.current().filter(|leader| self.leaders[*leader].leads()) {
            _ if state.is_terminal() || *state == RunState::Running => return,
            Some(leader) if !self.leaders[leader].drivers.contains_key(&run) => {
                self.resume(leader, run);
            }
            _ => {}
        }
        // Until it has begun.
        self.after(2_000, Event::Retry { run });
    }

    pub(super) fn leader_tick(&mut self, leader: usize) {
        if !self.leaders[leader].is_alive || self.is_over() {
            return;
        }
        let late: Vec<usize> = (self.leaders[leader].executors.iter())
            .filter(|(_, known)| self.now - known.heard > LEASE)
            .map(|(process, _)| *process)
            .collect();
        for process in late {
            self.lose_executor(leader, process);
        }
        self.after(500, Event::LeaderTick { leader });
    }

    fn lose_executor(&mut self, leader: usize, process: usize) {
        let Some(known) = self.leaders[leader].executors.remove(&process) else { return };
        if let Some(stream) = known.stream {
            self.close_stream(stream);
        }
        let (lost, kept) = std::mem::take(&mut self.leaders[leader].tasks)
            .into_iter()
            .partition(|assigned: &Assigned| assigned.process == process);
        self.leaders[leader].tasks = kept;
        for Assigned { run, job, .. } in lost {
            self.work_ended(leader, run, job, WorkEnd::Lost);
        }
    }

    pub(super) fn join(&mut self, stream: usize) {
        let (leader, process) = (self.streams[stream].leader, self.streams[stream].process);
        let boot = self.streams[stream].boot;
        let known = self.leaders[leader].executors.get(&process);
        let is_known = known.is_some_and(|known| known.boot == boot);
        if !is_known {
            let is_taken =
                known.is_some_and(|known| known.stream.is_some() && self.now - known.heard < LEASE);
            if is_taken {
                return self.close_stream(stream);
            }
            self.lose_executor(leader, process);
        }
        let (slots, heard) = (self.processes[process].slots, self.now);
        let fresh = || Known {
            boot,
            registration: stream,
            slots,
            is_draining: false,
            heard,
            stream: None,
            taken: BTreeMap::new(),
        };
        let at = &mut self.leaders[leader];
        let known = at.executors.entry(process).or_insert_with(fresh);
        known.heard = heard;
        known.stream = Some(stream);
        let of_it = at.tasks.iter().filter(|assigned| assigned.process == process);
        let tasks = of_it.map(|assigned| task_id(&assigned.key)).collect();
        let mut messages = vec![welcome(at.epoch, is_known, tasks)];
        for assigned in at.tasks.iter().filter(|assigned| assigned.process == process) {
            messages.push(assign(&assigned.assign));
            if assigned.is_stopping {
                messages.push(stop(task_id(&assigned.key)));
            }
        }
        for message in messages {
            self.send_to_executor(stream, message);
        }
    }

    pub(super) fn heard(&mut self, stream: usize, is_draining: Option<bool>) {
        let (leader, process) = (self.streams[stream].leader, self.streams[stream].process);
        let now = self.now;
        let known = self.leaders[leader].executors.get_mut(&process);
        if let Some(known) = known.filter(|known| known.stream == Some(stream)) {
            known.heard = now;
            known.is_draining = is_draining.unwrap_or(known.is_draining);
        }
    }

    /// The leader has noticed that a stream has ended.
    pub(super) fn leave(&mut self, stream: usize) {
        let (leader, process) = (self.streams[stream].leader, self.streams[stream].process);
        let Some(known) = self.leaders[leader].executors.get_mut(&process) else { return };
        if known.stream != Some(stream) {
            return;
        }
        known.stream = None;
        if known.is_draining && known.taken.values().sum::<u32>() == 0 {
            self.lose_executor(leader, process);
        }
    }

    /// Hands a task to the executor of its place.
    pub(super) fn assign(&mut self, leader: usize, at: Place, assigned: Assigned) {
        let known = self.leaders[leader].executors.get(&at.process);
        if known.is_none_or(|known| known.registration != at.registration) {
            return self.work_ended(leader, assigned.run, assigned.job, WorkEnd::Lost);
        }
        self.send(leader, at.process, assign(&assigned.assign));
        self.leaders[leader].tasks.push(assigned);
    }

    pub(super) fn stop_tasks(&mut self, leader: usize, run: usize) {
        let mut stopping = Vec::new();
        for assigned in &mut self.leaders[leader].tasks {
            if assigned.run == run && !std::mem::replace(&mut assigned.is_stopping, true) {
                stopping.push((assigned.process, task_id(&assigned.key)));
            }
        }
        for (process, task) in stopping {
            self.send(leader, process, stop(task));
        }
    }

    pub(super) fn send(&mut self, leader: usize, process: usize, message: Message) {
        if let Some(stream) = self.leaders[leader].stream_of(process) {
            self.send_to_executor(stream, message);
        }
    }
}

impl Assigned {
    pub(super) fn new(
        key: SliceAttempt,
        process: usize,
        run: usize,
        job: u64,
        assign: Assign,
    ) -> Self {
        Self { key, process, run, job, assign, is_stopping: false, last: None }
    }
}

pub(super) fn task_id(task: &SliceAttempt) -> TaskId {
    TaskId {
        run: task.run.0.clone(),
        stage: task.stage.0,
        slice: task.slice,
        attempt: task.attempt,
        epoch: task.epoch,
    }
}

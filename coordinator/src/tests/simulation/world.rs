//! Everything there is, and the time in which it happens.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use weir_connectors::Manifest;
use weir_executor::{Commit, SliceStart};
use weir_ledger::{Command, Ledger, SliceAttempt};
use weir_plan::StageId;
use weir_proto::internal::{TaskId, ToExecutor};

use super::checkers::Trace;
use super::executors::{End, Process};
use super::faults::Fault;
use super::leader::Leader;
use super::log::Group;
use super::network::{FromExecutor, Stream};
use super::plan::RunPlan;
use super::random::Random;
use crate::tests::target::{Refusal, Rows, Rules, Target, Writer};

/// After so many events the run counts as stuck.
const MOST_EVENTS: u64 = 60_000;

/// What is broken on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    Nothing,
    NoTombstones,
    PositionsIgnored,
    DoneTwice,
    IntentsIgnored,
}

/// A run's stage.
pub(super) type StageKey = (usize, usize);

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there are few at a time")]
pub(super) enum Event {
    /// The leader with this number goes on with a run.
    Drive {
        leader: usize,
        run: usize,
    },
    Poll {
        leader: usize,
        run: usize,
    },
    LeaderTick {
        leader: usize,
    },
    Elect,
    Broken {
        leader: usize,
    },
    /// Somebody asks for a failed run to go on.
    Retry {
        run: usize,
    },
    Write {
        leader: usize,
    },
    Landed {
        leader: usize,
        group: Group,
    },
    Answered {
        leader: usize,
        group: Group,
    },
    Append {
        leader: usize,
        command: Box<Command>,
        waiter: super::log::Waiter,
    },
    Recover {
        leader: usize,
        run: usize,
        job: u64,
        task: SliceAttempt,
        manifest: Box<Manifest>,
    },
    CommitRun {
        leader: usize,
        run: usize,
        job: u64,
        stage: usize,
        manifests: Vec<Manifest>,
    },
    JobEnded {
        leader: usize,
        run: usize,
        job: u64,
        end: super::driver::JobEnd,
    },
    ToLeader {
        stream: usize,
        number: u64,
        message: FromExecutor,
    },
    ToExecutor {
        stream: usize,
        message: Box<ToExecutor>,
    },
    StreamEnded {
        stream: usize,
    },
    Closed {
        stream: usize,
    },
    Connect {
        process: usize,
        boot: u64,
    },
    Tick {
        process: usize,
        boot: u64,
    },
    Step {
        process: usize,
        boot: u64,
        task: u64,
    },
    /// A transaction's COMMIT on its way to the target, whatever becomes of who has sent it.
    Publish {
        process: usize,
        boot: u64,
        task: u64,
        stage: StageKey,
        writer: Writer,
        batch: Batch,
    },
    Published {
        process: usize,
        boot: u64,
        task: u64,
        result: Result<(), Refusal>,
    },
    Start {
        process: usize,
    },
    Fault(Fault),
}

#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) manifest: Manifest,
    pub(super) rows: Rows,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) random: Random,
    pub(super) control: Control,
    pub(super) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    last_event: u64,
    last_number: u64,
    pub(super) plans: Vec<RunPlan>,
    pub(super) targets: BTreeMap<StageKey, Target>,
    /// The storage's checkpoints: by stage, slice, sequence and attempt.
    pub(super) checkpoints: BTreeMap<(StageKey, u32, u64, u32), Commit>,
    /// What is sent as an opaque number.
    pub(super) commits: Vec<Commit>,
    pub(super) ends: Vec<End>,
    pub(super) starts: Vec<SliceStart>,
    pub(super) processes: Vec<Process>,
    pub(super) streams: Vec<Stream>,
    pub(super) leaders: Vec<Leader>,
    pub(super) ledger: Ledger,
    pub(super) trace: Trace,
    /// Of one read of a slice, that it fails.
    pub(super) error_percent: u64,
    pub(super) has_faults: bool,
    pub(super) violations: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64, control: Control) -> Self {
        let mut random = Random::new(seed);
        let runs = if random.percent(25) { 2 } else { 1 };
        let plans: Vec<RunPlan> =
            (0..runs).map(|number| RunPlan::random(number, &mut random)).collect();
        let rules = Rules { tombstones: control != Control::NoTombstones, ..Rules::ALL };
        let targets = (plans.iter().enumerate())
            .flat_map(|(run, plan)| {
                (plan.stages.iter().enumerate()).filter_map(move |(stage, plan)| {
                    let (kind, commit) = plan.target?;
                    Some(((run, stage), Target::new(kind, commit, rules)))
                })
            })
            .collect();
        let processes = random.between(1, 4);
        let has_faults = random.percent(90);
        let error_percent = if has_faults && random.percent(40) { random.between(1, 8) } else { 0 };
        let mut world = Self {
            random,
            control,
            now: 0,
            events: BTreeMap::new(),
            last_event: 0,
            last_number: 0,
            plans,
            targets,
            checkpoints: BTreeMap::new(),
            commits: Vec::new(),
            ends: Vec::new(),
            starts: Vec::new(),
            processes: Vec::new(),
            streams: Vec::new(),
            leaders: Vec::new(),
            ledger: Ledger::default(),
            trace: Trace::default(),
            error_percent,
            has_faults,
            violations: Vec::new(),
        };
        world.submit_runs();
        world.after(0, Event::Elect);
        for process in 0..processes {
            let process = usize::try_from(process).expect("few");
            let slots = u32::try_from(world.random.between(1, 3)).expect("few");
            world.processes.push(Process::new(slots));
            world.after(process as u64, Event::Start { process });
        }
        if has_faults {
            world.schedule_faults();
        }
        world
    }

    /// Until all runs have succeeded and nothing is on its way any more; or something is wrong.
    pub(super) fn run(&mut self) -> Vec<String> {
        let mut handled = 0;
        while let Some(((time, order), event)) = self.events.pop_first() {
            if let Some(until) = self.paused_until(&event).filter(|until| *until > time) {
                // In the order of arrival.
                self.events.insert((until, order), event);
                continue;
            }
            self.now = self.now.max(time);
            handled += 1;
            self.handle(event);
            self.check_step();
            if !self.violations.is_empty() {
                return std::mem::take(&mut self.violations);
            }
            if handled > MOST_EVENTS {
                return vec![format!("stuck at {} ms: {}", self.now, self.describe())];
            }
        }
        self.check_end();
        std::mem::take(&mut self.violations)
    }

    pub(super) fn is_over(&self) -> bool {
        self.ledger.runs.values().all(|run| run.state.is_terminal())
    }

    pub(super) fn after(&mut self, delay: u64, event: Event) {
        self.last_event += 1;
        self.events.insert((self.now + delay, self.last_event), event);
    }

    /// After `from..=to` milliseconds.
    pub(super) fn soon(&mut self, from: u64, to: u64, event: Event) {
        let delay = self.random.between(from, to);
        self.after(delay, event);
    }

    /// That nothing else in this world has.
    pub(super) fn new_number(&mut self) -> u64 {
        self.last_number += 10;
        self.last_number
    }

    pub(super) fn time(&self) -> DateTime<Utc> {
        let now = i64::try_from(self.now).expect("not for ever");
        DateTime::from_timestamp_millis(1_700_000_000_000 + now).expect("a time of this century")
    }

    pub(super) fn run_number(&self, task: &TaskId) -> usize {
        let is_its = |plan: &RunPlan| plan.id.0 == task.run;
        self.plans.iter().position(is_its).expect("tasks are of these runs")
    }

    pub(super) fn target(&mut self, run: usize, stage: usize) -> &mut Target {
        self.targets.get_mut(&(run, stage)).expect("the stage ends in a sink")
    }

    fn paused_until(&self, event: &Event) -> Option<u64> {
        let (Event::Tick { process, .. }
        | Event::Connect { process, .. }
        | Event::Step { process, .. }
        | Event::Published { process, .. }) = event
        else {
            return match event {
                Event::ToExecutor { stream, .. } | Event::Closed { stream } => {
                    let process = self.streams[*stream].process;
                    Some(self.processes[process].paused_until)
                }
                _ => None,
            };
        };
        Some(self.processes[*process].paused_until)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Drive { leader, run } => self.drive(leader, run),
            Event::Poll { leader, run } => self.poll(leader, run),
            Event::LeaderTick { leader } => self.leader_tick(leader),
            Event::Elect => self.elect(),
            Event::Broken { leader } => self.lose_leader(leader),
            Event::Retry { run } => self.retry(run),
            Event::Write { leader } => self.write(leader),
            Event::Landed { leader, group } => self.landed(leader, group),
            Event::Answered { leader, group } => self.answered(leader, group),
            Event::Append { leader, command, waiter } => self.append(leader, *command, waiter),
            Event::Recover { leader, run, job, task, manifest } => {
                self.recover(leader, run, job, task, *manifest);
            }
            Event::CommitRun { leader, run, job, stage, manifests } => {
                self.commit_run(leader, run, job, stage, manifests);
            }
            Event::JobEnded { leader, run, job, end } => self.job_ended(leader, run, job, end),
            Event::ToLeader { stream, number, message } => self.arrived(stream, number, message),
            Event::ToExecutor { stream, message } => self.received(stream, *message),
            Event::StreamEnded { stream } => self.stream_ended(stream),
            Event::Closed { stream } => self.closed(stream),
            Event::Connect { process, boot } => self.connect(process, boot),
            Event::Tick { process, boot } => self.tick(process, boot),
            Event::Step { process, boot, task } => self.step(process, boot, task),
            Event::Publish { process, boot, task, stage, writer, batch } => {
                let target = self.target(stage.0, stage.1);
                let result = target.publish(writer, &batch.manifest, &batch.rows);
                self.soon(1, 10, Event::Published { process, boot, task, result });
            }
            Event::Published { process, boot, task, result } => {
                self.published(process, boot, task, result);
            }
            Event::Start { process } => self.start(process),
            Event::Fault(fault) => self.strike(fault),
        }
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for (id, run) in &self.ledger.runs {
            text += &format!("{id} is {:?}", run.state);
            for (stage, number) in run.stages.iter().zip(0..) {
                let open =
                    (stage.slices.iter().zip(0u32..)).filter(|(slice, _)| !slice.is_finished());
                for (slice, slice_number) in open {
                    text += &format!(
                        "; stage {}, slice {slice_number}: attempt {} {:?}, intent {}",
                        StageId(number),
                        slice.attempts,
                        slice.state,
                        slice.intent.is_some()
                    );
                }
            }
        }
        text
    }
}

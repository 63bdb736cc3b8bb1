//! A driver's jobs: how each begins, and what its end means.

use chrono::TimeDelta;
use weir_connectors::{Manifest, Recovery};
use weir_ledger::{
    Command, CommitDone, CommitLost, FailAttempt, FinishExchange, LoseAttempt, RunCommitIntent,
    RunFacts, SliceAttempt, SliceFacts, StartAttempt,
};
use weir_plan::{ExchangeOutput, InStorage, StageId};
use weir_proto::internal::Assign;

use super::driver::{Active, Failure, JobEnd, WorkEnd};
use super::executors::{End, bytes_of};
use super::leader::{Assigned, task_id};
use super::log::Waiter;
use super::world::{Control, Event, World};
use crate::decide::Job;
use crate::tests::target::Refusal;

/// As the policy of a pipeline says.
const MOST_FAILURES: u32 = 4;
const RETRY_AFTER: i64 = 200;
const MOST_LOSSES: u32 = 20;

impl World {
    pub(super) fn begin(&mut self, leader: usize, run: usize, job: Job) {
        let number = self.new_number();
        let facts = &self.ledger.runs[&self.plans[run].id];
        match job {
            Job::Attempt { stage, slice } => {
                let now = self.now;
                let Some(place) = self.leaders[leader].take_place(run, now) else {
                    if let Some(driver) = self.driver(leader, run) {
                        driver.is_waiting = true;
                    }
                    return;
                };
                let attempt = slice_of(facts, stage, slice).attempts + 1;
                let epoch = self.leaders[leader].epoch;
                let task =
                    SliceAttempt { epoch, run: self.plans[run].id.clone(), stage, slice, attempt };
                let (place, key) = (Some(place), Some(task.clone()));
                self.activate(leader, run, number, Active { job, place, task: key });
                let start = slice_of(&self.ledger.runs[&task.run], stage, slice).start();
                self.starts.push(match self.control {
                    Control::PositionsIgnored => weir_plan::SliceStart { position: None, ..start },
                    _ => start,
                });
                // The start is read now, and assigned once the attempt is in the ledger.
                let assigned = self.starts.len() - 1;
                self.leaders[leader].starts.insert(number, assigned);
                let waiter = Waiter::Started { run, job: number };
                self.append(leader, Command::StartAttempt(StartAttempt { task }), waiter);
            }
            Job::Recover { stage, slice } => {
                let Some(intent) = slice_of(facts, stage, slice).intent.clone() else { return };
                let task = SliceAttempt {
                    epoch: self.leaders[leader].epoch,
                    run: self.plans[run].id.clone(),
                    stage,
                    slice,
                    attempt: intent.attempt,
                };
                self.activate(leader, run, number, Active { job, place: None, task: None });
                let manifest = Box::new(intent.commit.manifest);
                self.ask(Event::Recover { leader, run, job: number, task, manifest });
            }
            Job::CommitRun { stage } => {
                let epoch = self.leaders[leader].epoch;
                let intent = RunCommitIntent { epoch, run: self.plans[run].id.clone(), stage };
                if let Some(driver) = self.driver(leader, run) {
                    driver.is_blocked = true;
                }
                self.activate(leader, run, number, Active { job, place: None, task: None });
                let waiter = Waiter::RunIntent { run, job: number, stage: stage.0 as usize };
                self.append(leader, Command::RunCommitIntent(intent), waiter);
            }
            Job::Copy { .. } => unreachable!("`decide` does not ask for copies"),
        }
    }

    pub(super) fn activate(&mut self, leader: usize, run: usize, number: u64, active: Active) {
        if let Some(driver) = self.driver(leader, run) {
            driver.jobs.insert(number, active);
        }
    }

    /// A target may take its time.
    pub(super) fn ask(&mut self, event: Event) {
        let longest = if self.random.percent(5) { 5_000 } else { 20 };
        self.soon(1, longest, event);
    }

    pub(super) fn started(&mut self, leader: usize, run: usize, job: u64) {
        let start = self.leaders[leader].starts.remove(&job);
        let Some(active) = self.driver(leader, run).and_then(|driver| driver.jobs.get(&job)) else {
            return;
        };
        let (Some(place), Some(key), Some(start)) = (active.place, active.task.clone(), start)
        else {
            return;
        };
        let is_ending = self.leaders[leader].drivers[&run].ending.is_some();
        let task = Some(task_id(&key));
        let assign = Assign { task, start: bytes_of(start), ..Assign::default() };
        self.assign(leader, place, Assigned::new(key, place.process, run, job, assign));
        if is_ending {
            self.stop_tasks(leader, run);
        }
    }

    pub(super) fn work_ended(&mut self, leader: usize, run: usize, job: u64, end: WorkEnd) {
        let Some(driver) = self.driver(leader, run) else { return };
        let Some(active) = driver.jobs.get_mut(&job) else { return };
        let (place, task) = (active.place.take(), active.task.clone());
        if let Some(place) = place {
            self.leaders[leader].free_place(run, place);
        }
        let task = task.expect("it was assigned");
        let WorkEnd::Task(End::Exchanged { file_id, account }) = end else {
            return self.job_ended(leader, run, job, JobEnd::Attempt(task, end));
        };
        let partitions = self.plans[run].stages[task.stage.0 as usize].rows.len();
        let partitions = u32::try_from(partitions).expect("few");
        let output = ExchangeOutput {
            file_id,
            first: 0,
            partitions,
            holder: None,
            in_storage: InStorage::No,
        };
        let finish = FinishExchange { task, output, account: *account };
        self.append(leader, Command::FinishExchange(finish), Waiter::Exchanged { run, job });
    }

    pub(super) fn settle_attempt(
        &mut self,
        leader: usize,
        run: usize,
        task: SliceAttempt,
        end: WorkEnd,
    ) -> Option<Command> {
        let slice = slice_of(&self.ledger.runs[&task.run], task.stage, task.slice);
        let (is_finished, failures, losses) =
            (slice.is_finished(), slice.failures + 1, slice.losses + 1);
        let is_ending = self.leaders[leader].drivers[&run].ending.is_some();
        let epoch = task.epoch;
        let error = String::new();
        match end {
            WorkEnd::Lost => {
                self.check_loss();
                let is_last = losses >= MOST_LOSSES;
                Some(Command::LoseAttempt(LoseAttempt { task, error, is_last }))
            }
            WorkEnd::Task(End::Stopped) if is_ending => None,
            // Its process leaves.
            WorkEnd::Task(End::Stopped) => {
                Some(Command::LoseAttempt(LoseAttempt { task, error, is_last: false }))
            }
            WorkEnd::Task(End::Committed) => {
                if !is_finished {
                    self.violations.push(format!("{task:?} has ended too early"));
                }
                None
            }
            WorkEnd::Task(End::LogRefused) => {
                self.fail(leader, run, Failure::Engine);
                None
            }
            WorkEnd::Task(End::Exchanged { .. }) => None,
            WorkEnd::Task(end @ (End::Failed | End::Fenced | End::Broken(_))) => {
                match &end {
                    End::Fenced => self.check_refusal(epoch, &Refusal::Fenced),
                    End::Broken(message) => {
                        self.check_refusal(epoch, &Refusal::Changed(message.clone()));
                    }
                    _ => {}
                }
                let is_last = failures >= MOST_FAILURES || !matches!(end, End::Failed);
                let retry_at =
                    (!is_last).then(|| self.time() + TimeDelta::milliseconds(RETRY_AFTER));
                if is_last {
                    self.fail(leader, run, Failure::Run(format!("{end:?}")));
                }
                Some(Command::FailAttempt(FailAttempt { task, error, retry_at }))
            }
        }
    }

    /// A target refuses only those whose epoch is over.
    pub(super) fn check_refusal(&mut self, epoch: u64, refusal: &Refusal) {
        if epoch == self.ledger.current_epoch() {
            self.violations.push(format!("refused in the current epoch: {refusal:?}"));
        }
    }

    pub(super) fn recover(
        &mut self,
        leader: usize,
        run: usize,
        job: u64,
        task: SliceAttempt,
        manifest: Manifest,
    ) {
        let (attempt, epoch, sequence) = (task.attempt, task.epoch, manifest.sequence);
        let target = self.target(run, task.stage.0 as usize);
        let answer = target.recover(&manifest, attempt, epoch);
        if answer == Err(Refusal::Busy) {
            let manifest = Box::new(manifest);
            return self.after(50, Event::Recover { leader, run, job, task, manifest });
        }
        let command = answer.map(|answer| match answer {
            Recovery::Published => Command::CommitDone(CommitDone { task, sequence }),
            Recovery::Lost => Command::CommitLost(CommitLost { task, sequence }),
        });
        let end = JobEnd::Recover(command);
        self.soon(1, 10, Event::JobEnded { leader, run, job, end });
    }

    pub(super) fn commit_run(
        &mut self,
        leader: usize,
        run: usize,
        job: u64,
        stage: usize,
        manifests: Vec<Manifest>,
    ) {
        let Leadership { epoch, is_alive } = self.leadership(leader);
        // Whoever has died meanwhile may have died in the middle.
        let is_whole = is_alive || self.random.percent(50);
        let result = self.target(run, stage).commit_run(&manifests, epoch, is_whole);
        if result == Err(Refusal::Busy) && is_alive {
            return self.after(50, Event::CommitRun { leader, run, job, stage, manifests });
        }
        let end = JobEnd::CommitRun(stage, result);
        self.soon(1, 10, Event::JobEnded { leader, run, job, end });
    }

    fn leadership(&self, leader: usize) -> Leadership {
        let leader = &self.leaders[leader];
        Leadership { epoch: leader.epoch, is_alive: leader.is_alive }
    }

    /// As the storage's checkpoints say.
    pub(super) fn manifests(&self, run: usize, stage: usize) -> Vec<Manifest> {
        let facts = &self.ledger.runs[&self.plans[run].id].stages[stage];
        let mut manifests = Vec::new();
        for (slice, number) in facts.slices.iter().zip(0u32..) {
            for sequence in 0..slice.next_sequence {
                let attempt = slice.attempt_of(sequence).expect("it is committed");
                let key = ((run, stage), number, sequence, attempt);
                manifests.push(self.checkpoints[&key].manifest.clone());
            }
        }
        manifests
    }
}

struct Leadership {
    epoch: u64,
    is_alive: bool,
}

fn slice_of(facts: &RunFacts, stage: StageId, slice: u32) -> &SliceFacts {
    facts.slice(stage, slice).expect("decided from these facts")
}

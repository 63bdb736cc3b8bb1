//! A leader's work on one run, around the real `decide`. As `crate::driver` does it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weir_ledger::{Command, FinishRun, RunCommitDone, RunOutcome, SliceAttempt};
use weir_plan::StageId;

use super::executors::End;
use super::leader::Place;
use super::log::{Appended, Waiter};
use super::world::{Control, Event, World};
use crate::decide::{Job, decide};
use crate::tests::target::Refusal;

/// Tasks that were asked to stop are dropped after this time.
const LONGEST_STOP: u64 = 15_000;

#[derive(Debug, Default)]
pub(super) struct Driver {
    pub(super) jobs: BTreeMap<u64, Active>,
    /// Decided and not begun: the ledger may change in between.
    to_begin: VecDeque<Job>,
    pub(super) ended: VecDeque<(u64, JobEnd)>,
    /// Waits for the ledger, and does nothing else meanwhile.
    pub(super) is_blocked: bool,
    /// There is a reason to decide again.
    is_woken: bool,
    pub(super) is_waiting: bool,
    wake_at: Option<u64>,
    pub(super) ending: Option<Ending>,
}

#[derive(Clone, Debug)]
pub(super) struct Ending {
    failure: Failure,
    drop_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Run(String),
    /// The leadership begins anew.
    Engine,
}

#[derive(Debug)]
pub(super) struct Active {
    pub(super) job: Job,
    pub(super) place: Option<Place>,
    pub(super) task: Option<SliceAttempt>,
}

/// How the work of an executor on a task has ended.
#[derive(Clone, Debug)]
pub(super) enum WorkEnd {
    Lost,
    Task(End),
}

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there are few at a time")]
pub(super) enum JobEnd {
    Attempt(SliceAttempt, WorkEnd),
    Exchanged,
    NotAppended,
    Recover(Result<Command, Refusal>),
    CommitRun(usize, Result<(), Refusal>),
}

impl World {
    pub(super) fn begin_session(&mut self, leader: usize, run: usize) {
        let driver = Driver { is_woken: true, ..Driver::default() };
        self.leaders[leader].drivers.insert(run, driver);
        self.after(0, Event::Poll { leader, run });
    }

    pub(super) fn driver(&mut self, leader: usize, run: usize) -> Option<&mut Driver> {
        let leader = &mut self.leaders[leader];
        leader.drivers.get_mut(&run).filter(|_| leader.is_alive)
    }

    /// A driver that found no place looks again; so does one whose time has come.
    pub(super) fn poll(&mut self, leader: usize, run: usize) {
        let Some(driver) = self.driver(leader, run) else { return };
        driver.is_woken = true;
        self.drive(leader, run);
        if self.driver(leader, run).is_some() {
            self.after(200, Event::Poll { leader, run });
        }
    }

    pub(super) fn drive(&mut self, leader: usize, run: usize) {
        let now = self.now;
        let Some(driver) = self.driver(leader, run) else { return };
        if driver.is_blocked {
            return;
        }
        if let Some((job, end)) = driver.ended.pop_front() {
            driver.is_woken = true;
            driver.jobs.remove(&job);
            self.settle(leader, run, end);
            return self.soon(0, 1, Event::Drive { leader, run });
        }
        if driver.ending.is_some() {
            driver.to_begin.clear();
        } else if let Some(job) = driver.to_begin.pop_front() {
            self.begin(leader, run, job);
            return self.soon(0, 1, Event::Drive { leader, run });
        } else if std::mem::take(&mut driver.is_woken) && self.decide(leader, run) {
            return self.soon(0, 1, Event::Drive { leader, run });
        }
        let Some(driver) = self.driver(leader, run).filter(|driver| !driver.is_blocked) else {
            return;
        };
        if let Some(ending) = driver.ending.clone() {
            if now >= ending.drop_at {
                self.shut_down(leader, run);
            } else if !driver.jobs.is_empty() {
                return;
            }
            self.end_session(leader, run, ending.failure);
        } else if driver.jobs.is_empty() && driver.wake_at.is_none() && !driver.is_waiting {
            let message =
                format!("nothing is left to be done for run {run}, which is not complete");
            if self.leaders[leader].epoch == self.ledger.current_epoch() {
                self.violations.push(message);
            } else {
                self.fail(leader, run, Failure::Run(message));
            }
        }
    }

    /// Whether there is something to begin.
    fn decide(&mut self, leader: usize, run: usize) -> bool {
        let at = &self.leaders[leader];
        let driver = &at.drivers[&run];
        let busy: BTreeSet<Job> = driver.jobs.values().map(|active| active.job).collect();
        let facts = &self.ledger.runs[&self.plans[run].id];
        let capacity = at.capacity_for(run);
        let decision = decide(facts, at.epoch, capacity, &busy, &|_| usize::MAX, self.time());
        let ignores = self.control == Control::IntentsIgnored;
        let Some(driver) = self.driver(leader, run) else { return false };
        if decision.is_complete && busy.is_empty() {
            driver.is_blocked = true;
            self.finish(leader, run, RunOutcome::Succeeded, Waiter::Succeeded { run });
            return false;
        }
        driver.is_waiting = capacity == 0;
        driver.wake_at = decision.wake_at.map(|_| 0);
        driver.to_begin = (decision.jobs.into_iter())
            .map(|job| match job {
                Job::Recover { stage, slice } if ignores => Job::Attempt { stage, slice },
                job => job,
            })
            .collect();
        !driver.to_begin.is_empty()
    }

    fn finish(&mut self, leader: usize, run: usize, outcome: RunOutcome, waiter: Waiter) {
        let (epoch, id, at) = (self.leaders[leader].epoch, self.plans[run].id.clone(), self.time());
        let finish = FinishRun { epoch, run: id, outcome, at };
        self.append(leader, Command::FinishRun(finish), waiter);
    }

    /// Drops everything, as a crash would: what is on its way to targets gets there all the same.
    fn shut_down(&mut self, leader: usize, run: usize) {
        let at = &mut self.leaders[leader];
        at.tasks.retain(|assigned| assigned.run != run);
        let jobs = at.drivers.get_mut(&run).map(|driver| std::mem::take(&mut driver.jobs));
        for place in jobs.into_iter().flatten().filter_map(|(_, active)| active.place) {
            self.leaders[leader].free_place(run, place);
        }
    }

    fn end_session(&mut self, leader: usize, run: usize, failure: Failure) {
        match failure {
            Failure::Engine => self.lose_leader(leader),
            Failure::Run(error) => {
                if let Some(driver) = self.driver(leader, run) {
                    driver.is_blocked = true;
                }
                self.finish(leader, run, RunOutcome::Failed { error }, Waiter::Failed { run });
            }
        }
    }

    /// `weir cancel`.
    pub(super) fn cancel(&mut self, leader: usize, run: usize) {
        self.fail(leader, run, Failure::Run("cancelled".to_owned()));
    }

    /// The first reason counts; tasks stop at their next commit.
    pub(super) fn fail(&mut self, leader: usize, run: usize, failure: Failure) {
        let drop_at = self.now + LONGEST_STOP;
        let Some(driver) = self.driver(leader, run) else { return };
        if driver.ending.is_none() {
            driver.ending = Some(Ending { failure, drop_at });
        }
        self.stop_tasks(leader, run);
        self.after(0, Event::Drive { leader, run });
    }

    pub(super) fn driver_appended(&mut self, leader: usize, waiter: Waiter, result: Appended) {
        match waiter {
            Waiter::Started { run, job } if result.is_ok() => self.started(leader, run, job),
            Waiter::Exchanged { run, job } if result.is_ok() => {
                self.job_ended(leader, run, job, JobEnd::Exchanged);
            }
            Waiter::Started { run, job } | Waiter::Exchanged { run, job } => {
                self.note_rejection(&result);
                self.job_ended(leader, run, job, JobEnd::NotAppended);
            }
            Waiter::Settled { run } => self.unblock(leader, run, &result),
            Waiter::RunIntent { run, job, stage } => {
                self.unblock(leader, run, &result);
                if result.is_err() {
                    return self.job_ended(leader, run, job, JobEnd::NotAppended);
                }
                let manifests = self.manifests(run, stage);
                self.ask(Event::CommitRun { leader, run, job, stage, manifests });
            }
            Waiter::Failed { run } | Waiter::Succeeded { run } => {
                if result.is_err() {
                    return self.lose_leader(leader);
                }
                self.leaders[leader].drivers.remove(&run);
            }
            Waiter::Epoch | Waiter::Resumed { .. } | Waiter::Report { .. } => {
                unreachable!("not the driver's")
            }
        }
    }

    /// What a driver appends is never refused but for an epoch that is over.
    fn note_rejection(&mut self, result: &Appended) {
        use super::log::AppendError;
        if let Err(AppendError::Rejected(rejection)) = result
            && !matches!(rejection, weir_ledger::Rejection::OldEpoch { .. })
        {
            self.violations.push(format!("a driver's command was refused: {rejection}"));
        }
    }

    fn unblock(&mut self, leader: usize, run: usize, result: &Appended) {
        self.note_rejection(result);
        let Some(driver) = self.driver(leader, run) else { return };
        driver.is_blocked = false;
        if result.is_err() {
            self.fail(leader, run, Failure::Engine);
        }
        self.after(0, Event::Drive { leader, run });
    }

    pub(super) fn job_ended(&mut self, leader: usize, run: usize, job: u64, end: JobEnd) {
        let Some(driver) = self.driver(leader, run) else { return };
        if driver.jobs.contains_key(&job) {
            driver.ended.push_back((job, end));
            self.soon(0, 1, Event::Drive { leader, run });
        }
    }

    /// Puts the result of a job into the ledger.
    fn settle(&mut self, leader: usize, run: usize, end: JobEnd) {
        let (epoch, id) = (self.leaders[leader].epoch, self.plans[run].id.clone());
        let command = match end {
            JobEnd::Exchanged => return,
            JobEnd::NotAppended => return self.fail(leader, run, Failure::Engine),
            JobEnd::Attempt(task, end) => match self.settle_attempt(leader, run, task, end) {
                Some(command) => command,
                None => return,
            },
            JobEnd::Recover(Ok(command)) => command,
            JobEnd::CommitRun(stage, Ok(())) => {
                let stage = StageId(u32::try_from(stage).expect("few"));
                Command::RunCommitDone(RunCommitDone { epoch, run: id, stage })
            }
            JobEnd::Recover(Err(refusal)) | JobEnd::CommitRun(_, Err(refusal)) => {
                self.check_refusal(epoch, &refusal);
                return self.fail(leader, run, Failure::Run(format!("{refusal:?}")));
            }
        };
        if let Some(driver) = self.driver(leader, run) {
            driver.is_blocked = true;
        }
        self.append(leader, command, Waiter::Settled { run });
    }
}

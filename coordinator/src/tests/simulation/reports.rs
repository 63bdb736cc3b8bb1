//! What executors report, on its way into the ledger, and the answers. As `cluster::reports` does it.

use weir_ledger::{Command, CommitDone, CommitIntent, RunId, SliceAttempt};
use weir_plan::StageId;
use weir_proto::internal::answer::Outcome;
use weir_proto::internal::report::Fact;
use weir_proto::internal::to_executor::Message;
use weir_proto::internal::{Answer, Report, TaskId};

use super::driver::WorkEnd;
use super::executors::number_of;
use super::leader::Assigned;
use super::log::{AppendError, Appended, Waiter};
use super::network::answer;
use super::world::{Event, World};

impl World {
    /// To the process that has asked, not to another one that has its name now.
    pub(super) fn reply(&mut self, leader: usize, (process, boot): (usize, u64), message: Message) {
        let known = self.leaders[leader].executors.get(&process);
        if known.is_some_and(|known| known.boot == boot) {
            self.send(leader, process, message);
        }
    }

    pub(super) fn on_report(&mut self, stream: usize, report: Report) {
        let (leader, process) = (self.streams[stream].leader, self.streams[stream].process);
        let boot = self.streams[stream].boot;
        let Report { number, task, fact } = report;
        let (task, fact) = (task.expect("named"), fact.expect("said"));
        let key = slice_attempt(&task);
        let tasks = &mut self.leaders[leader].tasks;
        let known = tasks.iter().position(|assigned| assigned.key == key);
        let its = known.filter(|known| tasks[*known].process == process);
        if let Fact::End(end) = &fact {
            if let Some(its) = its {
                let Assigned { run, job, .. } = tasks.remove(its);
                let end = self.ends[number_of(end)].clone();
                self.work_ended(leader, run, job, WorkEnd::Task(end));
            }
            return self.reply(leader, (process, boot), accepted(number));
        }
        let Some(its) = its else {
            return self.reply(leader, (process, boot), answered(number, Outcome::Fenced));
        };
        if let Some((_, last)) = tasks[its].last.as_ref().filter(|(last, _)| *last == number) {
            if let Some(last) = last.clone() {
                self.reply(leader, (process, boot), answer(last));
            }
            return;
        }
        tasks[its].last = Some((number, None));
        let waiter = Waiter::Report { process, boot, task: key.clone(), number };
        let command = match fact {
            Fact::Intent(commit) => {
                let commit = self.commits[number_of(&commit)].clone();
                Command::CommitIntent(CommitIntent { task: key, commit })
            }
            Fact::Done(sequence) => Command::CommitDone(CommitDone { task: key, sequence }),
            Fact::End(_) => unreachable!("dealt with above"),
        };
        // Whoever appends it may be slower than what comes later.
        let delay = if self.random.percent(3) { self.random.between(50, 4_000) } else { 0 };
        self.after(delay, Event::Append { leader, command: Box::new(command), waiter });
    }

    pub(super) fn appended(&mut self, leader: usize, waiter: Waiter, result: Appended) {
        match (waiter, result) {
            (Waiter::Epoch, Ok(_)) => self.take_up(leader),
            (Waiter::Epoch | Waiter::Resumed { .. }, Err(_)) => self.lose_leader(leader),
            (Waiter::Resumed { run }, Ok(_)) => self.begin_session(leader, run),
            (Waiter::Report { process, boot, task, number }, result) => {
                let outcome = match result {
                    Ok(_) => Outcome::Accepted,
                    Err(AppendError::Rejected(_)) => Outcome::Fenced,
                    Err(AppendError::Unknown) => Outcome::Unavailable,
                };
                let said = Answer { number, outcome: outcome.into(), message: String::new() };
                let tasks = self.leaders[leader].tasks.iter_mut();
                for assigned in tasks.filter(|assigned| assigned.key == task) {
                    if let Some((_, last)) = assigned.last.as_mut().filter(|last| last.0 == number)
                    {
                        *last = Some(said.clone());
                    }
                }
                self.reply(leader, (process, boot), answer(said));
            }
            (waiter, result) => self.driver_appended(leader, waiter, result),
        }
    }
}

fn accepted(number: u64) -> Message {
    answered(number, Outcome::Accepted)
}

fn answered(number: u64, outcome: Outcome) -> Message {
    answer(Answer { number, outcome: outcome.into(), message: String::new() })
}

fn slice_attempt(task: &TaskId) -> SliceAttempt {
    SliceAttempt {
        epoch: task.epoch,
        run: RunId(task.run.clone()),
        stage: StageId(task.stage),
        slice: task.slice,
        attempt: task.attempt,
    }
}

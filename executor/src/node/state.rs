//! What an executor knows: the tasks it has, and what the leader has not answered yet. Pure: events
//! come in, and what is to be done about them goes out.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use weir_proto::internal::answer::Outcome;
use weir_proto::internal::report::Fact;
use weir_proto::internal::{Answer, Assign, Report, TaskId};

/// Of a process, from its start to its end.
#[derive(Debug, Default)]
pub struct State {
    /// Of the leader that was last heard of.
    epoch: u64,
    is_connected: bool,
    is_draining: bool,
    /// A task is known until its end has been answered.
    tasks: IndexMap<TaskId, Phase>,
    /// By number, which is also the order in which they were made.
    unanswered: BTreeMap<u64, Report>,
    last_number: u64,
    /// Ends that a leader has answered without taking them. Leaders take every end at once, before it is in the ledger: an
    /// end that is lost with a leader is lost with its epoch.
    put_off: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Ended,
}

#[derive(Debug)]
pub enum Event {
    /// A new stream; reports go there from now on.
    Welcomed {
        epoch: u64,
        keeps_tasks: bool,
        /// Those that it keeps.
        tasks: Vec<TaskId>,
    },
    Disconnected,
    Assigned(Box<Assign>),
    StopAsked(TaskId),
    Answered(Answer),
    /// A task has something to put down.
    Reported {
        task: TaskId,
        fact: Fact,
    },
    /// Some time has passed.
    Tick,
    /// The process has been asked to leave.
    Draining,
}

#[derive(Debug, PartialEq)]
pub enum Effect {
    Start(Box<Assign>),
    /// The task shall end at its next commit.
    Stop(TaskId),
    /// The task has no right to go on.
    Abort(TaskId),
    Send(Report),
    /// What the task waits for has been answered.
    Settle {
        task: TaskId,
        outcome: Outcome,
        message: String,
    },
}

impl State {
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Welcomed { epoch, keeps_tasks, tasks } => {
                self.welcomed(epoch, keeps_tasks, &tasks)
            }
            Event::Disconnected => {
                self.is_connected = false;
                Vec::new()
            }
            Event::Assigned(assign) => self.assigned(assign),
            Event::StopAsked(task) => match self.tasks.get(&task) {
                Some(Phase::Running) => vec![Effect::Stop(task)],
                Some(Phase::Ended) | None => Vec::new(),
            },
            Event::Answered(answer) => self.answered(answer),
            Event::Reported { task, fact } => self.reported(task, fact),
            Event::Tick => {
                let again = std::mem::take(&mut self.put_off);
                again.iter().filter_map(|number| self.send(*number)).collect()
            }
            Event::Draining => {
                self.is_draining = true;
                let running = self.tasks.iter().filter(|(_, phase)| **phase == Phase::Running);
                running.map(|(task, _)| Effect::Stop(task.clone())).collect()
            }
        }
    }

    /// Whether nothing keeps a draining process any longer.
    pub fn may_leave(&self) -> bool {
        self.is_draining && self.tasks.is_empty()
    }

    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// A task that the leader has given up while nothing could be told to this process is dropped as well.
    fn welcomed(&mut self, epoch: u64, keeps_tasks: bool, tasks: &[TaskId]) -> Vec<Effect> {
        self.epoch = epoch;
        self.is_connected = true;
        self.put_off.clear();
        let mut effects = Vec::new();
        self.tasks.retain(|task, phase| {
            let is_kept = keeps_tasks && task.epoch == epoch && tasks.contains(task);
            if !is_kept && *phase == Phase::Running {
                effects.push(Effect::Abort(task.clone()));
            }
            is_kept
        });
        self.forget_reports_without_task();
        effects.extend(self.unanswered.values().cloned().map(Effect::Send));
        effects
    }

    fn assigned(&mut self, assign: Box<Assign>) -> Vec<Effect> {
        let Some(task) = assign.task.clone() else { return Vec::new() };
        if task.epoch != self.epoch || self.tasks.contains_key(&task) {
            return Vec::new();
        }
        self.tasks.insert(task.clone(), Phase::Running);
        let mut effects = vec![Effect::Start(assign)];
        if self.is_draining {
            effects.push(Effect::Stop(task));
        }
        effects
    }

    fn reported(&mut self, task: TaskId, fact: Fact) -> Vec<Effect> {
        let Some(phase) = self.tasks.get_mut(&task) else {
            // The task has been given up meanwhile.
            let message = "the leader has given this attempt up".to_owned();
            return vec![Effect::Settle { task, outcome: Outcome::Fenced, message }];
        };
        if matches!(fact, Fact::End(_)) {
            *phase = Phase::Ended;
        }
        self.last_number += 1;
        let number = self.last_number;
        self.unanswered.insert(number, Report { number, task: Some(task), fact: Some(fact) });
        self.send(number).into_iter().collect()
    }

    fn answered(&mut self, answer: Answer) -> Vec<Effect> {
        let outcome = answer.outcome();
        let Answer { number, message, .. } = answer;
        let Some(Report { task: Some(task), fact, .. }) = self.unanswered.get(&number) else {
            return Vec::new();
        };
        let task = task.clone();
        if !matches!(fact, Some(Fact::End(_))) {
            self.unanswered.remove(&number);
            return vec![Effect::Settle { task, outcome, message }];
        }
        match outcome {
            Outcome::Unavailable | Outcome::Unspecified => {
                self.put_off.insert(number);
            }
            // Put down, or no longer wanted.
            Outcome::Accepted | Outcome::Fenced | Outcome::Refused => {
                self.tasks.shift_remove(&task);
                self.forget_reports_without_task();
            }
        }
        Vec::new()
    }

    fn forget_reports_without_task(&mut self) {
        let tasks = &self.tasks;
        self.unanswered
            .retain(|_, report| report.task.as_ref().is_some_and(|task| tasks.contains_key(task)));
    }

    fn send(&self, number: u64) -> Option<Effect> {
        let report = self.unanswered.get(&number).filter(|_| self.is_connected)?;
        Some(Effect::Send(report.clone()))
    }
}

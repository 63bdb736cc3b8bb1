//! Tasks of executors, which go through the commit protocol step by step.

use weir_connectors::Position;
use weir_executor::node::state::Event as NodeEvent;
use weir_executor::{Commit, SlicePosition};
use weir_ledger::StageOutputShape;
use weir_proto::internal::answer::Outcome;
use weir_proto::internal::report::Fact;
use weir_proto::internal::{Assign, TaskId};

use super::executors::{End, bytes_of, number_of};
use super::world::{Batch, Event, World};
use crate::tests::target::{Kind, Refusal, Rows, Writer};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Open,
    Read,
    Stage,
    Keep,
    Intend,
    AwaitIntent,
    Publish,
    AwaitPublished,
    Rename(usize),
    Done,
    AwaitDone,
}

#[derive(Debug)]
pub(super) struct Working {
    pub(super) number: u64,
    pub(super) id: TaskId,
    pub(super) run: usize,
    pub(super) stage: usize,
    step: Step,
    /// Rows read and committed so far.
    row: u64,
    /// Of the open batch.
    to: u64,
    /// Of the open batch, those that reach the sink.
    rows: Rows,
    is_last: bool,
    sequence: u64,
    commit: Option<Commit>,
    pub(super) is_stopping: bool,
}

impl Working {
    pub(super) fn writer(&self) -> Writer {
        Writer { epoch: self.id.epoch, slice: self.id.slice, attempt: self.id.attempt }
    }

    pub(super) fn batch(&self) -> Batch {
        let commit = self.commit.as_ref().expect("a batch is staged");
        Batch { manifest: commit.manifest.clone(), rows: self.rows.clone() }
    }
}

impl World {
    pub(super) fn begin_task(&mut self, process: usize, assign: &Assign) {
        let id = assign.task.clone().expect("the leader names it");
        let run = self.run_number(&id);
        let start = self.starts[number_of(&assign.start)].clone();
        let row = (start.position.and_then(|position| position.inner))
            .map_or(0, |position| position.0.parse().expect("a number of rows"));
        let number = self.new_number();
        self.processes[process].tasks.push(Working {
            number,
            run,
            stage: usize::try_from(id.stage).expect("few"),
            id,
            step: Step::Open,
            row,
            to: row,
            rows: Rows::new(),
            is_last: false,
            sequence: start.next_sequence,
            commit: None,
            is_stopping: false,
        });
        self.step_later(process, number);
    }

    pub(super) fn step_later(&mut self, process: usize, task: u64) {
        let boot = self.processes[process].boot;
        self.soon(1, 60, Event::Step { process, boot, task });
    }

    /// The task, out of its process until it is put back.
    pub(super) fn take_task(&mut self, process: usize, boot: u64, task: u64) -> Option<Working> {
        let node = &mut self.processes[process];
        if node.boot != boot || !node.is_alive {
            return None;
        }
        let place = node.tasks.iter().position(|known| known.number == task)?;
        Some(node.tasks.remove(place))
    }

    pub(super) fn step(&mut self, process: usize, boot: u64, number: u64) {
        let Some(mut task) = self.take_task(process, boot, number) else { return };
        let ended = match self.advance(process, boot, &mut task) {
            Ok(fact) => {
                let id = task.id.clone();
                let goes_on = !matches!(
                    task.step,
                    Step::AwaitIntent | Step::AwaitPublished | Step::AwaitDone
                );
                self.processes[process].tasks.push(task);
                if let Some(fact) = fact {
                    self.node_event(process, NodeEvent::Reported { task: id, fact });
                } else if goes_on {
                    self.step_later(process, number);
                }
                return;
            }
            Err(ended) => ended,
        };
        self.end_task(process, task, ended);
    }

    pub(super) fn end_task(&mut self, process: usize, task: Working, end: End) {
        self.drop_task(&task);
        self.ends.push(end);
        let fact = Fact::End(bytes_of(self.ends.len() - 1));
        self.node_event(process, NodeEvent::Reported { task: task.id, fact });
    }

    pub(super) fn advance(
        &mut self,
        process: usize,
        boot: u64,
        task: &mut Working,
    ) -> Result<Option<Fact>, End> {
        let writer = task.writer();
        let (run, stage, slice) = (task.run, task.stage, task.id.slice);
        let is_whole = self.plans[run].stages[stage].shape.output == StageOutputShape::Exchange;
        if matches!(task.step, Step::Open | Step::Read) && self.random.percent(self.error_percent) {
            return Err(End::Failed);
        }
        match task.step {
            Step::Open if is_whole => task.step = Step::Read,
            Step::Read if is_whole => {
                if task.is_stopping {
                    return Err(End::Stopped);
                }
                let account = Box::new(self.plans[run].stages[stage].exchange_account());
                let file_id = format!("{slice}-{}-{}", writer.epoch, writer.attempt);
                return Err(End::Exchanged { file_id, account });
            }
            Step::Open => match self.target(run, stage).open(writer) {
                Ok(()) => task.step = Step::Read,
                Err(Refusal::Busy) => {}
                Err(refusal) => return Err(refused(refusal)),
            },
            Step::Read => {
                if task.is_stopping {
                    return Err(End::Stopped);
                }
                let rows = self.plans[run].stages[stage].rows[slice as usize];
                task.to = rows.min(task.row + self.random.between(1, 4));
                // The end may be known only once nothing more comes.
                task.is_last = task.to == rows && (task.row == rows || self.random.percent(50));
                task.step = Step::Stage;
            }
            Step::Stage => {
                let (from, to) = (task.row, task.to);
                let account = self.plans[run].stages[stage].batch_account(slice, from, to);
                let plan = &self.plans[run].stages[stage];
                task.rows = (from..to).filter(|row| plan.accepts(slice, *row)).collect();
                let name = self.new_number();
                let target = self.target(run, stage);
                let manifest =
                    target.stage(writer, task.sequence, &task.rows, account.checksum, name);
                let resume_at = (!task.is_last)
                    .then(|| SlicePosition { split: 0, inner: Some(Position(to.to_string())) });
                task.commit = Some(Commit { manifest, account, resume_at });
                task.step = Step::Keep;
            }
            Step::Keep => {
                let commit = task.commit.clone().expect("a batch is staged");
                let key = ((run, stage), slice, task.sequence, writer.attempt);
                self.checkpoints.insert(key, commit);
                task.step = Step::Intend;
            }
            Step::Intend => {
                self.commits.push(task.commit.clone().expect("a batch is staged"));
                task.step = Step::AwaitIntent;
                return Ok(Some(Fact::Intent(bytes_of(self.commits.len() - 1))));
            }
            Step::Publish if self.target(run, stage).kind() == Kind::Files => {
                let held = self.target(run, stage).hold(task.number, writer.epoch);
                held.map_err(refused)?;
                task.step = Step::Rename(0);
            }
            Step::Publish => {
                task.step = Step::AwaitPublished;
                let (task, batch) = (task.number, task.batch());
                let stage = (run, stage);
                self.soon(1, 30, Event::Publish { process, boot, task, stage, writer, batch });
            }
            Step::Rename(file) => {
                let manifest = task.batch().manifest;
                let has_more =
                    self.target(run, stage).rename(writer, &manifest, file).map_err(refused)?;
                task.step = if has_more { Step::Rename(file + 1) } else { Step::Done };
                if !has_more {
                    self.target(run, stage).release(task.number);
                }
            }
            Step::Done => {
                task.step = Step::AwaitDone;
                return Ok(Some(Fact::Done(task.sequence)));
            }
            Step::AwaitIntent | Step::AwaitPublished | Step::AwaitDone => {}
        }
        Ok(None)
    }

    pub(super) fn published(
        &mut self,
        process: usize,
        boot: u64,
        number: u64,
        result: Result<(), Refusal>,
    ) {
        let Some(mut task) = self.take_task(process, boot, number) else { return };
        if let Err(refusal) = result {
            return self.end_task(process, task, refused(refusal));
        }
        task.step = Step::Done;
        self.processes[process].tasks.push(task);
        self.step_later(process, number);
    }

    pub(super) fn settle_call(&mut self, process: usize, id: &TaskId, outcome: Outcome) {
        let tasks = &mut self.processes[process].tasks;
        let Some(place) = tasks.iter().position(|known| known.id == *id) else { return };
        let mut task = tasks.remove(place);
        if outcome != Outcome::Accepted {
            return self.end_task(process, task, End::LogRefused);
        }
        match task.step {
            Step::AwaitIntent => task.step = Step::Publish,
            Step::AwaitDone if task.is_last => return self.end_task(process, task, End::Committed),
            Step::AwaitDone if task.is_stopping => {
                return self.end_task(process, task, End::Stopped);
            }
            Step::AwaitDone => {
                task.sequence += 1;
                task.row = task.to;
                task.commit = None;
                task.step = Step::Read;
            }
            // Nothing was asked.
            _ => {}
        }
        let number = task.number;
        self.processes[process].tasks.push(task);
        self.step_later(process, number);
    }
}

fn refused(refusal: Refusal) -> End {
    match refusal {
        Refusal::Fenced => End::Fenced,
        Refusal::Busy => End::Failed,
        Refusal::Changed(message) => End::Broken(message),
    }
}

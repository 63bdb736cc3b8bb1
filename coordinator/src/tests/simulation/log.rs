//! The log as its leaders append to it: what waits together becomes one entry, which lands or does
//! not, and whose answer may be lost.

use std::collections::VecDeque;

use weir_ledger::SliceAttempt;
use weir_ledger::{Command, Ledger, Rejection, Response, apply};

use super::world::{Control, Event, World};

/// Who goes on once a command is in the ledger.
#[derive(Clone, Debug)]
pub(super) enum Waiter {
    Epoch,
    Resumed {
        run: usize,
    },
    Started {
        run: usize,
        job: u64,
    },
    Exchanged {
        run: usize,
        job: u64,
    },
    /// The driver itself, between two jobs.
    Settled {
        run: usize,
    },
    RunIntent {
        run: usize,
        job: u64,
        stage: usize,
    },
    Failed {
        run: usize,
    },
    Succeeded {
        run: usize,
    },
    Report {
        process: usize,
        boot: u64,
        task: SliceAttempt,
        number: u64,
    },
}

#[derive(Clone, Debug)]
pub(super) enum AppendError {
    Rejected(Rejection),
    /// Not in the ledger, or nobody knows.
    Unknown,
}

pub(super) type Appended = Result<bool, AppendError>;

#[derive(Debug, Default)]
pub(super) struct Log {
    waiting: VecDeque<(Command, Waiter)>,
    is_writing: bool,
}

#[derive(Debug)]
pub(super) struct Group(Vec<(Command, Waiter, Appended)>);

impl World {
    pub(super) fn append(&mut self, leader: usize, command: Command, waiter: Waiter) {
        if !self.leaders[leader].is_alive {
            return;
        }
        let log = &mut self.leaders[leader].log;
        log.waiting.push_back((command, waiter));
        if !std::mem::replace(&mut log.is_writing, true) {
            self.soon(0, 2, Event::Write { leader });
        }
    }

    /// Everything that waits is sent to the other members as one entry.
    pub(super) fn write(&mut self, leader: usize) {
        if !self.leaders[leader].is_alive {
            return;
        }
        let waiting = std::mem::take(&mut self.leaders[leader].log.waiting);
        if waiting.is_empty() {
            self.leaders[leader].log.is_writing = false;
            return;
        }
        let unknown = |(command, waiter)| (command, waiter, Err(AppendError::Unknown));
        let group = Group(waiting.into_iter().map(unknown).collect());
        if self.leaders[leader].is_deposed {
            return self.soon(1, 1_500, Event::Answered { leader, group });
        }
        self.soon(1, 12, Event::Landed { leader, group });
    }

    pub(super) fn landed(&mut self, leader: usize, mut group: Group) {
        let is_current = self.leaders[leader].is_alive && !self.leaders[leader].is_deposed;
        // Of a leader that is gone an entry is in the log, or it never will be.
        if is_current || self.random.percent(50) {
            let index = self.trace.next_index();
            for (command, _, answer) in &mut group.0 {
                *answer = self.apply(index, command);
            }
        }
        if self.has_faults && self.trace.faults_go_on && self.random.next().is_multiple_of(400) {
            // Nobody will know.
            for (_, _, answer) in &mut group.0 {
                *answer = Err(AppendError::Unknown);
            }
            return self.soon(500, 1_500, Event::Answered { leader, group });
        }
        self.soon(0, 5, Event::Answered { leader, group });
    }

    pub(super) fn answered(&mut self, leader: usize, group: Group) {
        if !self.leaders[leader].is_alive {
            return;
        }
        for (_, waiter, answer) in group.0 {
            if self.leaders[leader].is_alive {
                self.appended(leader, waiter, answer);
            }
        }
        self.write(leader);
    }

    fn apply(&mut self, index: u64, command: &Command) -> Appended {
        let before = self.watched();
        match apply(&mut self.ledger, index, command) {
            Response::Accepted { changed: true } => {
                self.check_accepted(index, command, before);
                Ok(true)
            }
            Response::Accepted { changed: false } => {
                if self.control == Control::DoneTwice {
                    count_twice(&mut self.ledger, command);
                }
                Ok(false)
            }
            Response::Rejected(rejection) => Err(AppendError::Rejected(rejection)),
        }
    }
}

/// As a ledger would that does not look at the sequence.
fn count_twice(ledger: &mut Ledger, command: &Command) {
    let Command::CommitDone(done) = command else { return };
    let task = &done.task;
    let slice = (ledger.runs.get_mut(&task.run))
        .and_then(|run| run.stages.get_mut(task.stage.0 as usize))
        .and_then(|stage| stage.slices.get_mut(task.slice));
    if let Some(mut slice) = slice {
        slice.next_sequence += 1;
        slice.manifest_rows += 1;
    }
}

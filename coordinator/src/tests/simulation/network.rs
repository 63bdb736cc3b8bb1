//! The streams between executors and leaders: in order, delayed, and broken at any moment. What was
//! on its way to the leader may then still arrive, after the executor has come back on another one.

use weir_proto::internal::{
    Answer, Assign, Report, Stop, TaskId, ToExecutor, Welcome, to_executor,
};

use super::world::{Event, World};

#[derive(Clone, Debug)]
pub(super) enum FromExecutor {
    Hello,
    Heartbeat { is_draining: bool },
    Report(Report),
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) process: usize,
    pub(super) boot: u64,
    pub(super) leader: usize,
    /// Messages to the leader after this one are lost.
    last_kept: u64,
    sent: u64,
    delivered: u64,
    /// Later messages arrive later.
    to_leader_at: u64,
    to_executor_at: u64,
    is_broken: bool,
    /// Each end has noticed that it is over.
    pub(super) is_closed: bool,
    has_ended: bool,
}

impl World {
    pub(super) fn open_stream(&mut self, process: usize, leader: usize) -> usize {
        self.streams.push(Stream {
            process,
            boot: self.processes[process].boot,
            leader,
            last_kept: u64::MAX,
            sent: 0,
            delivered: 0,
            to_leader_at: 0,
            to_executor_at: 0,
            is_broken: false,
            is_closed: false,
            has_ended: false,
        });
        self.streams.len() - 1
    }

    fn delay(&mut self) -> u64 {
        if self.random.percent(5) {
            self.random.between(20, 400)
        } else {
            self.random.between(1, 8)
        }
    }

    pub(super) fn send_to_leader(&mut self, stream: usize, message: FromExecutor) {
        let at = self.now + self.delay();
        let open = &mut self.streams[stream];
        open.sent += 1;
        let number = open.sent;
        open.to_leader_at = open.to_leader_at.max(at);
        let delay = open.to_leader_at - self.now;
        if !open.is_broken {
            self.after(delay, Event::ToLeader { stream, number, message });
        }
    }

    pub(super) fn send_to_executor(&mut self, stream: usize, message: to_executor::Message) {
        let at = self.now + self.delay();
        let open = &mut self.streams[stream];
        open.to_executor_at = open.to_executor_at.max(at);
        let delay = open.to_executor_at - self.now;
        if !open.is_broken {
            let message = Box::new(ToExecutor { message: Some(message) });
            self.after(delay, Event::ToExecutor { stream, message });
        }
    }

    /// Whether the message has come through.
    fn is_delivered(&mut self, stream: usize, number: u64) -> bool {
        let open = &mut self.streams[stream];
        open.delivered = open.delivered.max(number);
        number <= open.last_kept
    }

    pub(super) fn arrived(&mut self, stream: usize, number: u64, message: FromExecutor) {
        if !self.is_delivered(stream, number) || !self.leaders[self.streams[stream].leader].leads()
        {
            return;
        }
        match message {
            FromExecutor::Hello => self.join(stream),
            FromExecutor::Heartbeat { is_draining } => self.heard(stream, Some(is_draining)),
            FromExecutor::Report(report) => {
                self.heard(stream, None);
                self.on_report(stream, report);
            }
        }
    }

    /// Neither end hears of it at once.
    pub(super) fn break_stream(&mut self, stream: usize) {
        let open = &self.streams[stream];
        if open.is_broken {
            return;
        }
        let kept = self.random.between(open.delivered, open.sent.max(open.delivered));
        let open = &mut self.streams[stream];
        open.is_broken = true;
        open.last_kept = kept;
        self.soon(0, 2_500, Event::StreamEnded { stream });
        self.soon(0, 2_500, Event::Closed { stream });
    }

    /// By the leader, in good order.
    pub(super) fn close_stream(&mut self, stream: usize) {
        let at = self.streams[stream].to_executor_at;
        let delay = at.saturating_sub(self.now) + 1;
        self.after(delay, Event::Closed { stream });
    }

    pub(super) fn received(&mut self, stream: usize, message: ToExecutor) {
        let Stream { process, boot, is_broken, is_closed, .. } = self.streams[stream];
        let receiver = &self.processes[process];
        if is_broken || is_closed || receiver.boot != boot || !receiver.is_alive {
            return;
        }
        let message = message.message.expect("the leader sends no empty messages");
        self.take_message(process, stream, message);
    }

    pub(super) fn closed(&mut self, stream: usize) {
        let open = &mut self.streams[stream];
        if std::mem::replace(&mut open.is_closed, true) {
            return;
        }
        let Stream { process, boot, .. } = *open;
        self.soon(1, 5, Event::StreamEnded { stream });
        self.disconnected(process, boot, stream);
    }

    pub(super) fn stream_ended(&mut self, stream: usize) {
        let open = &mut self.streams[stream];
        // What has been sent before is read first.
        if open.to_leader_at >= self.now && !open.is_broken {
            let delay = open.to_leader_at - self.now + 1;
            return self.after(delay, Event::StreamEnded { stream });
        }
        if !std::mem::replace(&mut open.has_ended, true) {
            self.leave(stream);
        }
    }
}

pub(super) fn welcome(epoch: u64, keeps_tasks: bool, tasks: Vec<TaskId>) -> to_executor::Message {
    to_executor::Message::Welcome(Welcome {
        epoch,
        keeps_tasks,
        lease_millis: 3_000,
        coordinators: Vec::new(),
        tasks,
    })
}

pub(super) fn assign(assign: &Assign) -> to_executor::Message {
    to_executor::Message::Assign(assign.clone())
}

pub(super) fn stop(task: TaskId) -> to_executor::Message {
    to_executor::Message::Stop(Stop { task: Some(task) })
}

pub(super) fn answer(answer: Answer) -> to_executor::Message {
    to_executor::Message::Answer(answer)
}

//! Executors: the real state of a node, started, killed and drained.

use weir_executor::RowAccount;
use weir_executor::node::state::{Effect, Event as NodeEvent, State};
use weir_proto::internal::{Welcome, to_executor};

use super::network::FromExecutor;
use super::tasks::Working;
use super::world::{Event, World};

/// How a task has ended, as its leader will hear of it.
#[derive(Clone, Debug)]
pub(super) enum End {
    Committed,
    Exchanged {
        file_id: String,
        account: Box<RowAccount>,
    },
    Stopped,
    /// Something that another attempt may not meet.
    Failed,
    /// By the target.
    Fenced,
    /// The target is not as it should be.
    Broken(String),
    /// The ledger has refused what the task had to put down.
    LogRefused,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) boot: u64,
    pub(super) is_alive: bool,
    pub(super) paused_until: u64,
    pub(super) slots: u32,
    pub(super) is_draining: bool,
    pub(super) state: State,
    pub(super) stream: Option<usize>,
    /// Of the last leader that it has listened to.
    epoch: u64,
    pub(super) tasks: Vec<Working>,
}

impl Process {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            boot: 0,
            is_alive: false,
            paused_until: 0,
            slots,
            is_draining: false,
            state: State::default(),
            stream: None,
            epoch: 0,
            tasks: Vec::new(),
        }
    }
}

impl World {
    pub(super) fn start(&mut self, process: usize) {
        if self.processes[process].is_alive {
            return;
        }
        let boot = self.new_number();
        let slots = self.processes[process].slots;
        self.processes[process] = Process { boot, is_alive: true, ..Process::new(slots) };
        self.soon(0, 50, Event::Connect { process, boot });
        self.soon(0, 700, Event::Tick { process, boot });
    }

    /// At any moment; what it has sent to a target may still get there.
    pub(super) fn kill(&mut self, process: usize) {
        let killed = &mut self.processes[process];
        if !std::mem::replace(&mut killed.is_alive, false) {
            return;
        }
        killed.paused_until = 0;
        let tasks = std::mem::take(&mut killed.tasks);
        let stream = killed.stream.take();
        for task in tasks {
            self.drop_task(&task);
        }
        if let Some(stream) = stream {
            self.break_stream(stream);
        }
        self.soon(50, 6_000, Event::Start { process });
    }

    pub(super) fn drop_task(&mut self, task: &Working) {
        if let Some(target) = self.targets.get_mut(&(task.run, task.stage)) {
            target.release(task.number);
        }
    }

    pub(super) fn connect(&mut self, process: usize, boot: u64) {
        let asking = &self.processes[process];
        if asking.boot != boot || !asking.is_alive || asking.stream.is_some() || self.is_over() {
            return;
        }
        // Mostly the last one; one that has been replaced may not know it yet.
        let leading: Vec<usize> =
            (0..self.leaders.len()).filter(|leader| self.leaders[*leader].leads()).collect();
        let chosen = match self.random.percent(70) {
            true => leading.last().copied(),
            false => self.random.pick(&leading),
        };
        match chosen {
            Some(leader) if self.leaders[leader].epoch >= self.processes[process].epoch => {
                let stream = self.open_stream(process, leader);
                self.processes[process].stream = Some(stream);
                self.send_to_leader(stream, FromExecutor::Hello);
            }
            _ => self.soon(50, 300, Event::Connect { process, boot }),
        }
    }

    pub(super) fn disconnected(&mut self, process: usize, boot: u64, stream: usize) {
        let node = &mut self.processes[process];
        if node.boot != boot || !node.is_alive || node.stream != Some(stream) {
            return;
        }
        node.stream = None;
        self.node_event(process, NodeEvent::Disconnected);
        self.soon(10, 300, Event::Connect { process, boot });
    }

    pub(super) fn tick(&mut self, process: usize, boot: u64) {
        let node = &self.processes[process];
        if node.boot != boot || !node.is_alive || self.is_over() {
            return;
        }
        if let Some(stream) = node.stream {
            let is_draining = node.is_draining;
            self.send_to_leader(stream, FromExecutor::Heartbeat { is_draining });
        }
        self.node_event(process, NodeEvent::Tick);
        self.after(700, Event::Tick { process, boot });
    }

    pub(super) fn drain(&mut self, process: usize) {
        let node = &mut self.processes[process];
        if !node.is_alive || node.is_draining {
            return;
        }
        node.is_draining = true;
        if let Some(stream) = node.stream {
            self.send_to_leader(stream, FromExecutor::Heartbeat { is_draining: true });
        }
        self.node_event(process, NodeEvent::Draining);
    }

    pub(super) fn take_message(
        &mut self,
        process: usize,
        stream: usize,
        message: to_executor::Message,
    ) {
        if self.processes[process].stream != Some(stream) {
            return;
        }
        let event = match message {
            to_executor::Message::Welcome(welcome) => {
                self.processes[process].epoch = welcome.epoch;
                let Welcome { epoch, keeps_tasks, tasks, .. } = welcome;
                NodeEvent::Welcomed { epoch, keeps_tasks, tasks }
            }
            to_executor::Message::Assign(assign) => NodeEvent::Assigned(Box::new(assign)),
            to_executor::Message::Stop(stop) => {
                NodeEvent::StopAsked(stop.task.expect("the leader names it"))
            }
            to_executor::Message::Answer(answer) => NodeEvent::Answered(answer),
            to_executor::Message::RunOver(_)
            | to_executor::Message::Coordinators(_)
            | to_executor::Message::StoredNoted(_)
            | to_executor::Message::Leave(_)
            | to_executor::Message::RunsInUse(_) => return,
        };
        self.node_event(process, event);
    }

    pub(super) fn node_event(&mut self, process: usize, event: NodeEvent) {
        for effect in self.processes[process].state.step(event) {
            match effect {
                Effect::Start(assign) => self.begin_task(process, &assign),
                Effect::Stop(task) => {
                    let tasks = self.processes[process].tasks.iter_mut();
                    tasks
                        .filter(|known| known.id == task)
                        .for_each(|known| known.is_stopping = true);
                }
                Effect::Abort(task) => {
                    let tasks = &mut self.processes[process].tasks;
                    let place = tasks.iter().position(|known| known.id == task);
                    if let Some(task) = place.map(|place| tasks.remove(place)) {
                        self.drop_task(&task);
                    }
                }
                Effect::Send(report) => {
                    if let Some(stream) = self.processes[process].stream {
                        self.send_to_leader(stream, FromExecutor::Report(report));
                    }
                }
                Effect::Settle { task, outcome, .. } => self.settle_call(process, &task, outcome),
            }
        }
        if self.processes[process].is_alive && self.processes[process].state.may_leave() {
            self.kill(process);
        }
    }
}

pub(super) fn bytes_of(number: usize) -> Vec<u8> {
    (number as u64).to_le_bytes().to_vec()
}

pub(super) fn number_of(bytes: &[u8]) -> usize {
    let bytes = bytes.try_into().expect("made by `bytes_of`");
    usize::try_from(u64::from_le_bytes(bytes)).expect("made by `bytes_of`")
}

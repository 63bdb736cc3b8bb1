//! The executors that a leader knows, and the tasks that they have.
//!
//! ```text
//!            join, heard, leave                    assign
//! streams ──────────────────────▶  Pool  ◀────────────────  runs' drivers
//!            reports                 │  ends, losses
//!         ──────────────────────▶    └────────────────────▶
//!                                    commit logs ─▶ ledger
//! ```
//!
//! Everything here is forgotten with the leadership: the next leader begins with an empty pool, and
//! executors come to it.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indexmap::IndexMap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use weir_executor::{ProgressEvent, Task, TaskOutcome};
use weir_ledger::{RunId, SliceAttempt};
use weir_plan::Holder;
use weir_proto::internal::to_executor::Message;
use weir_proto::internal::{Assign, Coordinators, Hello, RunOver, Stop, ToExecutor, Welcome};
use weir_proto::v1;

use super::place::{Candidate, Waiting, place};
use super::wire::task_id;
use crate::workers::{TaskContext, WorkError};

/// How long a wish for a place counts: a driver that still has it repeats it sooner.
const WISH: Duration = Duration::from_millis(600);

/// Executors find a new leader within this time, beyond their lease.
const LONGEST_ARRIVAL: Duration = Duration::from_secs(2);

/// Among whom places are shared out fairly: a run, or a backfill with all of its windows.
pub(super) type Share = String;

/// What a leader gives to an executor's stream; `Err` ends it.
pub(super) type Outgoing = Result<ToExecutor, tonic::Status>;

#[derive(Debug)]
pub(super) struct Pool {
    epoch: u64,
    lease: Duration,
    began: Instant,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    executors: BTreeMap<String, Executor>,
    tasks: IndexMap<SliceAttempt, Assigned>,
    wishes: BTreeMap<Share, Instant>,
    streams: u64,
    /// Their URLs.
    coordinators: Vec<String>,
}

#[derive(Debug)]
struct Executor {
    hello: Hello,
    /// A process that was given up and joins again has another one: its former places are gone.
    registration: u64,
    is_draining: bool,
    heard: Instant,
    /// Its present stream, if it has one.
    stream: Option<(u64, UnboundedSender<Outgoing>)>,
    taken: BTreeMap<Share, u32>,
}

#[derive(Debug)]
pub(super) struct Assigned {
    pub(super) task: Arc<Task>,
    pub(super) context: TaskContext,
    pub(super) executor: String,
    assign: Assign,
    is_stopping: bool,
    end: Option<oneshot::Sender<Result<TaskOutcome, WorkError>>>,
    /// Rows of the batch that is in the ledger as intended, with its sequence.
    pub(super) intended: Option<(u64, u64)>,
    /// Each task has one unanswered report at most.
    pub(super) last: Option<LastReport>,
}

#[derive(Debug)]
pub(super) struct LastReport {
    pub(super) number: u64,
    pub(super) answer: Option<Message>,
}

/// Why an executor has not joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotJoined {
    /// Nobody leads here any more.
    Closed,
    /// Another process of that name has a stream.
    NameTaken,
}

/// A place at an executor, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pool: Arc<Pool>,
    pub(super) executor: String,
    registration: u64,
    share: Share,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        if let Some(executor) = state.executors.get_mut(&self.executor)
            && executor.registration == self.registration
            && let Some(taken) = executor.taken.get_mut(&self.share)
        {
            *taken -= 1;
            if *taken == 0 {
                executor.taken.remove(&self.share);
            }
        }
        drop(state);
        self.pool.changed.notify_waiters();
    }
}

impl Executor {
    fn send(&self, message: Message) {
        if let Some((_, stream)) = &self.stream {
            // A stream that has ended is replaced by the executor's next.
            let _ = stream.send(Ok(ToExecutor { message: Some(message) }));
        }
    }

    fn busy(&self) -> u32 {
        self.taken.values().sum()
    }

    fn free(&self) -> u32 {
        match self.is_draining || self.stream.is_none() {
            true => 0,
            false => self.hello.slots.saturating_sub(self.busy()),
        }
    }
}

impl Pool {
    pub(super) fn new(epoch: u64, lease: Duration) -> Arc<Self> {
        let (state, changed) = (Mutex::default(), Notify::new());
        Arc::new(Self { epoch, lease, began: Instant::now(), state, changed })
    }

    pub(super) fn state_of<T>(
        &self,
        task: &SliceAttempt,
        with: impl FnOnce(&mut Assigned) -> T,
    ) -> Option<T> {
        self.state().tasks.get_mut(task).map(with)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns at the next change of places. Ask for it before looking.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// A new stream of an executor: its number, and what is to be sent on it.
    pub(super) fn join(
        &self,
        hello: Hello,
    ) -> Result<(u64, UnboundedReceiver<Outgoing>), NotJoined> {
        let (sender, receiver) = unbounded_channel();
        let mut state = self.state();
        if state.is_closed {
            return Err(NotJoined::Closed);
        }
        let name = hello.executor.clone();
        let is_known =
            (state.executors.get(&name)).is_some_and(|known| known.hello.boot_id == hello.boot_id);
        if let Some(other) = state.executors.get(&name)
            && !is_known
            && other.stream.is_some()
            && other.heard.elapsed() < self.lease
        {
            return Err(NotJoined::NameTaken);
        }
        if !is_known {
            // Another process has the name now: what the one before it had is lost.
            state.lose(&name);
        }
        state.streams += 1;
        let number = state.streams;
        let fresh = || Executor {
            hello: hello.clone(),
            registration: number,
            is_draining: false,
            heard: Instant::now(),
            stream: None,
            taken: BTreeMap::new(),
        };
        let coordinators = state.coordinators.clone();
        let executor = state.executors.entry(name.clone()).or_insert_with(fresh);
        executor.heard = Instant::now();
        executor.stream = Some((number, sender));
        executor.send(Message::Welcome(Welcome {
            epoch: self.epoch,
            keeps_tasks: is_known,
            lease_millis: u32::try_from(self.lease.as_millis()).unwrap_or(u32::MAX),
            coordinators,
        }));
        let executor = &state.executors[&name];
        for assigned in state.tasks.values().filter(|assigned| assigned.executor == name) {
            executor.send(Message::Assign(assigned.assign.clone()));
            if assigned.is_stopping {
                executor.send(Message::Stop(Stop { task: assigned.assign.task.clone() }));
            }
        }
        drop(state);
        tracing::info!(executor = name, slots = hello.slots, again = is_known, "executor joined");
        self.changed.notify_waiters();
        Ok((number, receiver))
    }

    /// Executors look for the next leader among those that they know.
    pub(super) fn set_coordinators(&self, urls: Vec<String>) {
        let mut state = self.state();
        if state.coordinators == urls {
            return;
        }
        state.coordinators.clone_from(&urls);
        for executor in state.executors.values() {
            executor.send(Message::Coordinators(Coordinators { urls: urls.clone() }));
        }
    }

    /// Something has come on a stream of the executor. What comes late on one that has been replaced says
    /// nothing of the process that has its name now.
    pub(super) fn heard(&self, name: &str, number: u64, is_draining: Option<bool>) {
        let mut state = self.state();
        let Some(executor) = state.executors.get_mut(name) else { return };
        if executor.stream.as_ref().is_none_or(|(current, _)| *current != number) {
            return;
        }
        executor.heard = Instant::now();
        if let Some(is_draining) = is_draining {
            executor.is_draining = is_draining;
        }
    }

    /// A stream has ended. The executor may come back within its lease, unless it has said that it
    /// leaves.
    pub(super) fn stream_ended(&self, name: &str, number: u64) {
        let mut state = self.state();
        let Some(executor) = state.executors.get_mut(name) else { return };
        if executor.stream.as_ref().is_none_or(|(current, _)| *current != number) {
            return;
        }
        executor.stream = None;
        if executor.is_draining && executor.busy() == 0 {
            tracing::info!(executor = name, "executor left");
            state.lose(name);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Gives up executors that have not been heard of for too long.
    pub(super) fn expire(&self) {
        let mut state = self.state();
        let now = Instant::now();
        let late: Vec<String> = (state.executors.iter())
            .filter(|(_, executor)| now.duration_since(executor.heard) > self.lease)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &late {
            tracing::warn!(executor = name, "executor lost: not heard of for its lease");
            state.lose(name);
        }
        drop(state);
        if !late.is_empty() {
            self.changed.notify_waiters();
        }
    }

    /// Ends all streams and all tasks: somebody else may lead.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let names: Vec<String> = state.executors.keys().cloned().collect();
        for name in names {
            state.lose(&name);
        }
    }

    /// Whether this process is known to be gone. One that has not come yet may be on its way.
    pub(super) fn is_lost(&self, holder: &Holder) -> bool {
        match self.state().executors.get(&holder.executor) {
            Some(executor) => executor.hello.boot_id != holder.boot_id,
            None => self.began.elapsed() > self.lease + LONGEST_ARRIVAL,
        }
    }

    /// Places of all executors that take tasks.
    pub(super) fn capacity(&self) -> usize {
        let state = self.state();
        let slots = (state.executors.values())
            .filter(|executor| !executor.is_draining)
            .map(|executor| usize::try_from(executor.hello.slots).unwrap_or(usize::MAX));
        slots.fold(0, usize::saturating_add)
    }

    pub(super) fn take_place(self: &Arc<Self>, share: &Share) -> Option<Place> {
        let mut state = self.state();
        let now = Instant::now();
        state.wishes.retain(|_, since| now.duration_since(*since) < WISH);
        let busy_of = |state: &State, share: &Share| -> u32 {
            let executors = state.executors.values();
            executors.map(|executor| executor.taken.get(share).copied().unwrap_or(0)).sum()
        };
        let waiting: Vec<Waiting> = (state.wishes.keys())
            .filter(|other| *other != share)
            .map(|other| Waiting { busy: busy_of(&state, other) })
            .collect();
        let candidates: Vec<Candidate> = (state.executors.iter())
            .map(|(name, executor)| Candidate {
                name: name.clone(),
                free: executor.free(),
                of_run: executor.taken.get(share).copied().unwrap_or(0),
            })
            .collect();
        let Some(index) = place(&candidates, busy_of(&state, share), &waiting) else {
            state.wishes.insert(share.clone(), now);
            return None;
        };
        state.wishes.remove(share);
        let name = &candidates[index].name;
        let executor = state.executors.get_mut(name).expect("a candidate is known");
        *executor.taken.entry(share.clone()).or_default() += 1;
        let registration = executor.registration;
        let place = Place {
            pool: Arc::clone(self),
            executor: name.clone(),
            registration,
            share: share.clone(),
        };
        Some(place)
    }

    /// Hands a task to the executor of its place. The receiver gets how it ended.
    pub(super) fn assign(
        &self,
        place: &Place,
        key: SliceAttempt,
        task: Arc<Task>,
        context: TaskContext,
        assign: Assign,
    ) -> oneshot::Receiver<Result<TaskOutcome, WorkError>> {
        let (end, ended) = oneshot::channel();
        let mut state = self.state();
        match state.executors.get(&place.executor) {
            Some(executor) if executor.registration == place.registration => {
                executor.send(Message::Assign(assign.clone()));
                let executor = place.executor.clone();
                let assigned = Assigned {
                    task,
                    context,
                    executor,
                    assign,
                    is_stopping: false,
                    end: Some(end),
                    intended: None,
                    last: None,
                };
                state.tasks.insert(key, assigned);
            }
            _ => {
                let _ = end.send(Err(WorkError::ExecutorLost(place.executor.clone())));
            }
        }
        ended
    }

    /// Asks a task to end at its next commit.
    pub(super) fn stop(&self, key: &SliceAttempt) {
        let mut state = self.state();
        let Some(assigned) = state.tasks.get_mut(key) else { return };
        assigned.is_stopping = true;
        let executor = assigned.executor.clone();
        if let Some(executor) = state.executors.get(&executor) {
            executor.send(Message::Stop(Stop { task: Some(task_id(key)) }));
        }
    }

    /// Nobody waits for the task any more. What it reports is refused from now on.
    pub(super) fn forget(&self, key: &SliceAttempt) {
        self.state().tasks.swap_remove(key);
    }

    /// The task is over.
    pub(super) fn end(&self, key: &SliceAttempt, result: Result<TaskOutcome, WorkError>) {
        if let Some(assigned) = self.state().tasks.swap_remove(key)
            && let Some(end) = assigned.end
        {
            let _ = end.send(result);
        }
    }

    /// To this process; another one that has its name now hears nothing of it.
    pub(super) fn send(&self, executor: &str, boot_id: &str, message: Message) {
        if let Some(executor) = self.state().executors.get(executor)
            && executor.hello.boot_id == boot_id
        {
            executor.send(message);
        }
    }

    /// Executors need not keep anything of the run.
    pub(super) fn run_over(&self, run_folder: &str) {
        for executor in self.state().executors.values() {
            executor.send(Message::RunOver(RunOver { run_folder: run_folder.to_owned() }));
        }
    }

    /// For people; lost if it cannot be read or nobody works on the run.
    pub(super) fn on_progress(&self, json: &[u8]) {
        let Ok(event) = serde_json::from_slice::<ProgressEvent>(json) else { return };
        // Commits are told when they are in the ledger, each once.
        let ProgressEvent::Rows { run, .. } = &event else { return };
        let state = self.state();
        let of_run = state.tasks.iter().find(|(task, _)| task.run.0 == *run);
        if let Some((_, assigned)) = of_run {
            let _ = assigned.context.progress.send(event);
        }
    }

    /// For people.
    pub(super) fn executors(&self) -> Vec<v1::Executor> {
        let state = self.state();
        (state.executors.iter())
            .map(|(name, executor)| v1::Executor {
                id: name.clone(),
                host: executor.hello.host.clone(),
                pid: executor.hello.pid,
                slots: executor.hello.slots,
                busy_slots: executor.busy(),
                draining: executor.is_draining,
                engine_version: executor.hello.engine_version.clone(),
            })
            .collect()
    }

    /// The attempts that are with executors now.
    pub(super) fn running(&self, run: &RunId) -> Vec<(SliceAttempt, String)> {
        let state = self.state();
        let tasks = state.tasks.iter().filter(|(task, _)| task.run == *run);
        tasks.map(|(task, assigned)| (task.clone(), assigned.executor.clone())).collect()
    }
}

impl State {
    fn lose(&mut self, name: &str) {
        if self.executors.remove(name).is_none() {
            return;
        }
        let lost: Vec<SliceAttempt> = (self.tasks.iter())
            .filter(|(_, assigned)| assigned.executor == name)
            .map(|(key, _)| key.clone())
            .collect();
        for key in lost {
            if let Some(Assigned { end: Some(end), .. }) = self.tasks.swap_remove(&key) {
                let _ = end.send(Err(WorkError::ExecutorLost(name.to_owned())));
            }
        }
    }
}

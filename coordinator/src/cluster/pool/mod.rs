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

mod draining;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
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
use weir_proto::internal::{
    Assign, Coordinators, Hello, RunOver, RunsInUse, Stop, ToExecutor, Welcome,
};
use weir_proto::v1;

use super::place::{Candidate, InUse, NoPlace, Standing, may_use, place};
use super::wire::task_id;
use crate::connection_limits::{ConnectionKey, ConnectionLimit};
use crate::workers::{TaskContext, Wanted, WorkError};

/// How long a wish for a place counts: a driver that still has it repeats it sooner.
const WISH: Duration = Duration::from_millis(600);

/// Executors find a new leader within this time, beyond their lease.
const LONGEST_ARRIVAL: Duration = Duration::from_secs(2);

/// Among whom places are shared out fairly: first pipelines; then, of one pipeline, runs and backfills, each with all
/// of its windows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Share {
    pub(super) pipeline: String,
    /// The run or backfill.
    pub(super) of: String,
}

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
    connections: BTreeMap<ConnectionKey, Users>,
    streams: u64,
    /// Their URLs.
    coordinators: Vec<String>,
    /// Executors that are to leave, whether they are here or not.
    to_leave: BTreeSet<String>,
}

/// Who uses a connection that not any number of tasks may use.
#[derive(Debug, Default)]
struct Users {
    taken: BTreeMap<Share, u32>,
    wishes: BTreeMap<Share, Instant>,
}

#[derive(Debug)]
struct Executor {
    hello: Hello,
    /// A process that was given up and joins again has another one: its former places are gone.
    registration: u64,
    /// Its process was asked to end, and says so.
    is_draining: bool,
    /// An admin wants it to leave (`Ledger::draining`); and it has been told that it can.
    is_to_leave: bool,
    may_leave: bool,
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
    connections: Arc<[ConnectionLimit]>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.leave_connections(&self.share, &self.connections);
        if let Some(executor) = state.executors.get_mut(&self.executor)
            && executor.registration == self.registration
        {
            take_one(&mut executor.taken, &self.share);
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

    fn takes_nothing(&self) -> bool {
        self.is_draining || self.is_to_leave
    }

    fn busy(&self) -> u32 {
        self.taken.values().sum()
    }

    /// As the place of a task of this share that reads `rows`.
    fn candidate(&self, name: &str, share: &Share, rows: &BTreeMap<Holder, u64>) -> Candidate {
        let own = rows
            .iter()
            .filter(|(holder, _)| holder.executor == name && holder.boot_id == self.hello.boot_id);
        let of_a_place = self.hello.memory_bytes / u64::from(self.hello.slots.max(1));
        let promised = of_a_place.saturating_mul(u64::from(self.busy()));
        Candidate {
            name: name.to_owned(),
            free: self.free(),
            free_memory: self.hello.memory_bytes.saturating_sub(promised),
            of_run: self.taken.get(share).copied().unwrap_or(0),
            rows: own.map(|(_, rows)| *rows).sum(),
            stays: !self.is_draining && self.stream.is_some(),
        }
    }

    fn free(&self) -> u32 {
        match self.takes_nothing() || self.stream.is_none() {
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
            is_to_leave: false,
            may_leave: false,
            heard: Instant::now(),
            stream: None,
            taken: BTreeMap::new(),
        };
        let (coordinators, is_to_leave) =
            (state.coordinators.clone(), state.to_leave.contains(&name));
        let of_it = state.tasks.iter().filter(|(_, assigned)| assigned.executor == name);
        let tasks = of_it.map(|(key, _)| task_id(key)).collect();
        let executor = state.executors.entry(name.clone()).or_insert_with(fresh);
        executor.heard = Instant::now();
        executor.is_to_leave = is_to_leave;
        executor.may_leave = false;
        executor.stream = Some((number, sender));
        executor.send(Message::Welcome(Welcome {
            epoch: self.epoch,
            keeps_tasks: is_known,
            lease_millis: u32::try_from(self.lease.as_millis()).unwrap_or(u32::MAX),
            coordinators,
            tasks,
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

    /// Whether this process is here, and has been asked to go.
    pub(super) fn is_leaving(&self, holder: &Holder) -> bool {
        let state = self.state();
        let executor = state.executors.get(&holder.executor);
        executor.is_some_and(|executor| {
            executor.hello.boot_id == holder.boot_id && executor.takes_nothing()
        })
    }

    /// Places of all executors that take tasks.
    pub(super) fn capacity(&self) -> usize {
        let state = self.state();
        let slots = (state.executors.values())
            .filter(|executor| !executor.takes_nothing())
            .map(|executor| usize::try_from(executor.hello.slots).unwrap_or(usize::MAX));
        slots.fold(0, usize::saturating_add)
    }

    /// As [`capacity`](Self::capacity), with the places that the share still has at executors that take no more tasks:
    /// what is at work there does not stand in the way of what the others could do.
    pub(super) fn capacity_for(&self, share: &Share) -> usize {
        let state = self.state();
        let places = state.executors.values().map(|executor| match executor.takes_nothing() {
            true => executor.taken.get(share).copied().unwrap_or(0),
            false => executor.hello.slots,
        });
        places
            .map(|places| usize::try_from(places).unwrap_or(usize::MAX))
            .fold(0, usize::saturating_add)
    }

    /// A place for a task of this share, or why there is none now.
    pub(super) fn take_place(
        self: &Arc<Self>,
        share: &Share,
        wanted: &Wanted,
    ) -> Result<Place, NoPlace> {
        let mut state = self.state();
        let now = Instant::now();
        // Not a wish for a place: free ones are for others meanwhile.
        let is_copy = wanted.not_with.is_some();
        if !state.may_use_all(share, &wanted.connections, is_copy, now) {
            return Err(NoPlace::Limited);
        }
        state.wishes.retain(|_, since| now.duration_since(*since) < WISH);
        let waiting: Vec<Standing> = (state.wishes.keys())
            .filter(|other| *other != share)
            .map(|other| state.standing(other))
            .collect();
        let own = match waiting.is_empty() {
            true => Standing::default(),
            false => state.standing(share),
        };
        if wanted.not_with.is_some() && !waiting.is_empty() {
            return Err(NoPlace::Full);
        }
        let candidates: Vec<Candidate> = (state.executors.iter())
            .filter(|(name, _)| wanted.not_with.as_ref() != Some(name))
            .map(|(name, executor)| executor.candidate(name, share, &wanted.rows))
            .collect();
        let rows = wanted.rows.values().sum();
        let index = match place(&candidates, own, &waiting, rows, wanted.waited) {
            Ok(index) => index,
            Err(why) => {
                // Who can do without a place for a while keeps nobody else from it.
                if why == NoPlace::Full && wanted.not_with.is_none() {
                    state.wishes.insert(share.clone(), now);
                }
                return Err(why);
            }
        };
        state.wishes.remove(share);
        for limit in wanted.connections.iter() {
            let users = state.connections.entry(limit.connection.clone()).or_default();
            *users.taken.entry(share.clone()).or_default() += 1;
            users.wishes.remove(share);
        }
        let name = &candidates[index].name;
        let executor = state.executors.get_mut(name).expect("a candidate is known");
        *executor.taken.entry(share.clone()).or_default() += 1;
        let registration = executor.registration;
        Ok(Place {
            pool: Arc::clone(self),
            executor: name.clone(),
            registration,
            share: share.clone(),
            connections: Arc::clone(&wanted.connections),
        })
    }

    /// How many more tasks may use all of these connections.
    pub(super) fn room(&self, connections: &[ConnectionLimit]) -> usize {
        if connections.is_empty() {
            return usize::MAX;
        }
        let state = self.state();
        let left = connections.iter().map(|limit| {
            let used = state.connections.get(&limit.connection).map_or(0, Users::count);
            limit.most.saturating_sub(used) as usize
        });
        left.min().unwrap_or(usize::MAX)
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

    /// Nobody waits for the task any more. What it reports is refused from now on, and its executor may end it.
    pub(super) fn forget(&self, key: &SliceAttempt) {
        let mut state = self.state();
        let Some(assigned) = state.tasks.swap_remove(key) else { return };
        if let Some(executor) = state.executors.get(&assigned.executor) {
            executor.send(Message::Stop(Stop { task: Some(task_id(key)) }));
        }
    }

    pub(super) fn executor_of(&self, key: &SliceAttempt) -> Option<String> {
        self.state().tasks.get(key).map(|assigned| assigned.executor.clone())
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

    /// Nor of runs that are not named.
    pub(super) fn set_in_use(&self, run_folders: &[String]) {
        for executor in self.state().executors.values() {
            let run_folders = run_folders.to_vec();
            executor.send(Message::RunsInUse(RunsInUse { run_folders }));
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
                draining: executor.takes_nothing(),
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

/// One task less.
fn take_one(taken: &mut BTreeMap<Share, u32>, share: &Share) {
    if let Some(count) = taken.get_mut(share) {
        *count -= 1;
        if *count == 0 {
            taken.remove(share);
        }
    }
}

/// What somebody has, of these tasks.
fn standing_in<'taken>(
    taken: impl Iterator<Item = (&'taken Share, &'taken u32)>,
    share: &Share,
) -> Standing {
    let mut standing = Standing::default();
    for (other, count) in taken.filter(|(other, _)| other.pipeline == share.pipeline) {
        standing.of_pipeline += count;
        standing.of_share += if other == share { *count } else { 0 };
    }
    standing
}

impl Users {
    fn count(&self) -> u32 {
        self.taken.values().sum()
    }
}

impl State {
    fn standing(&self, share: &Share) -> Standing {
        standing_in(self.executors.values().flat_map(|executor| &executor.taken), share)
    }

    /// Whether one more task of the share may use these connections. If not, it is known to wait for them, unless it is a copy,
    /// which takes what nobody else wants.
    fn may_use_all(
        &mut self,
        share: &Share,
        limits: &[ConnectionLimit],
        is_copy: bool,
        now: Instant,
    ) -> bool {
        let mut may = true;
        for ConnectionLimit { connection, most } in limits {
            let users = self.connections.entry(connection.clone()).or_default();
            users.wishes.retain(|_, since| now.duration_since(*since) < WISH);
            let waiting: Vec<Standing> = (users.wishes.keys())
                .filter(|other| *other != share)
                .map(|other| standing_in(users.taken.iter(), other))
                .collect();
            let own = standing_in(users.taken.iter(), share);
            let used = users.count();
            if !may_use(&InUse { most: *most, used, own, waiting: &waiting }) {
                if !is_copy {
                    users.wishes.insert(share.clone(), now);
                }
                may = false;
            }
        }
        may
    }

    fn leave_connections(&mut self, share: &Share, limits: &[ConnectionLimit]) {
        for limit in limits {
            let Some(users) = self.connections.get_mut(&limit.connection) else { continue };
            take_one(&mut users.taken, share);
            if users.taken.is_empty() && users.wishes.is_empty() {
                self.connections.remove(&limit.connection);
            }
        }
    }

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

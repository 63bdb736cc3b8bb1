//! The executor's process: takes tasks from the leader and reports to it.
//!
//! ```text
//!   leader ◀══ stream ══▶ Link ◀──▶ Node ◀── CommitLog calls ── tasks
//!                                    │ │
//!                              State ┘ └ Tasks ─▶ WorkThreads: run_task
//! ```
//!
//! [`State`] decides, and does nothing itself. A stream that breaks changes nothing for the tasks:
//! what they wait for is asked again on the next one. Tasks are dropped only when a leader says that
//! it has given them up.

mod commit_log;
mod known;
mod link;
mod peers;
mod progress;
mod runs;
pub mod state;
mod storing;
mod tasks;
#[cfg(test)]
mod tests;
mod work_threads;

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use weir_connectors::{ConnectorContext, Redactor};
use weir_plan::{Holder, StageGraph};
use weir_proto::internal::report::Fact;
use weir_proto::internal::{Hello, TaskId, Welcome, to_executor};

use self::commit_log::{Call, answer_result};
use self::known::Known;
use self::link::{Leaving, Link, LinkEvent, Outgoing, Tcp};
pub use self::link::{MAX_MESSAGE_BYTES, Network, with_waits};
use self::peers::Peers;
use self::progress::ProgressBuffer;
use self::runs::{Runs, SystemsMaker};
use self::state::{Effect, Event, State};
use self::storing::Storing;
use self::tasks::Tasks;
pub use self::tasks::{GivenTask, TaskRunner, assigned_task};
use self::work_threads::WorkThreads;
use crate::address;
use crate::durable::{empty_folder, state_error};
pub use crate::exchange::StoreJob;
use crate::exchange::{self, ExchangeCompression, FlightClients, Keeping};
use crate::storage::Storage;
use crate::tls::TlsFiles;
use crate::{CommitLogError, ProgressEvent, Registry, Resources, TaskEnd, TaskError};

/// Tasks of a process that leaves have this long to commit what they have, and the leader to put it
/// down.
const LONGEST_DRAIN: Duration = Duration::from_secs(20);
/// The leader has this long to take the last word and end the stream.
const LONGEST_GOODBYE: Duration = Duration::from_secs(1);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
const TICK_EVERY: Duration = Duration::from_secs(1);

/// How an executor is started.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// That no other executor of the cluster has.
    pub name: String,
    /// URLs; any of them leads to the leader.
    pub coordinators: Vec<String>,
    /// With an identity. Without TLS coordinators must be on this machine.
    pub tls: Option<TlsFiles>,
    /// This process's own folder: operators spill there, and rows are kept there for other executors.
    pub dir: PathBuf,
    /// Where other executors read what this one keeps.
    pub listen: SocketAddr,
    /// How they reach it; by default at the address that it listens on.
    pub url: Option<String>,
    /// The cluster's storage, the same for all processes.
    pub storage: Storage,
    /// Tasks at once.
    pub slots: NonZeroUsize,
    /// Of rows between stages.
    pub compression: ExchangeCompression,
    /// For all operators of all tasks together.
    pub memory_bytes: NonZeroU64,
    /// Its `base_dir` is not used: every assignment brings its own.
    pub context: ConnectorContext,
}

/// Why an executor cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("no coordinator is named")]
    NoCoordinators,
    #[error("coordinator {0}")]
    Coordinator(String),
    #[error("failed to listen on {listen}: {source}")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error("without TLS an executor listens on loopback addresses only, and {0} is none")]
    NotLoopback(SocketAddr),
    #[error("its own address: {0}")]
    Url(String),
    #[error("another executor uses {}; give each its own folder with `--dir`", .0.display())]
    InUse(PathBuf),
    #[error("failed to start the threads that tasks run on: {0}")]
    Threads(std::io::Error),
    #[error(transparent)]
    Folder(#[from] TaskError),
}

/// Works until `stop` is cancelled or the leader sends it away, and then leaves in good order: tasks commit what they have, and
/// the leader knows of it.
pub async fn serve(options: NodeOptions, stop: CancellationToken) -> Result<(), NodeError> {
    let context = options.context.clone();
    let systems: SystemsMaker = Arc::new(move |base_dir: &Path| {
        let base_dir = base_dir.to_owned();
        Arc::new(Registry { context: ConnectorContext { base_dir, ..context.clone() } })
    });
    serve_with(options, systems, stop).await
}

async fn serve_with(
    options: NodeOptions,
    systems: SystemsMaker,
    stop: CancellationToken,
) -> Result<(), NodeError> {
    if options.coordinators.is_empty() {
        return Err(NodeError::NoCoordinators);
    }
    for url in &options.coordinators {
        link::endpoint(url, options.tls.as_ref()).map_err(NodeError::Coordinator)?;
    }
    let _lock = lock(&options.dir)?;
    let spill = options.dir.join("spill");
    let resources = Arc::new(Resources::new(spill, options.memory_bytes, options.slots)?);
    let hello = hello(&options);
    let (keeping, serving) = keep(&options, &hello).await?;
    tell_if_missing(options.storage.clone());
    // Tasks wait for a store that does not answer; the leader knows how long.
    let threads = WorkThreads::start().map_err(NodeError::Threads)?;
    let runs = Runs::new(options.storage.clone().waiting(), resources, systems, keeping, threads);
    let process = Process {
        hello,
        coordinators: options.coordinators,
        network: Arc::new(Tcp {
            tls: options.tls,
            known: Arc::new(Known::in_folder(&options.dir)),
        }),
        runner: Box::new(runs),
        redactor: options.context.redactor,
    };
    process.work(stop, move || drop(serving)).await;
    Ok(())
}

/// What is left of an executor once its machine is taken away: it keeps a stream to the leader, has its tasks
/// carried out, and reports.
#[derive(Debug)]
pub struct Process {
    pub hello: Hello,
    /// URLs, at least one.
    pub coordinators: Vec<String>,
    pub network: Arc<dyn Network>,
    pub runner: Box<dyn TaskRunner>,
    pub redactor: Redactor,
}

impl Process {
    /// As [`serve`]. `on_leaving`: no task is left, and the stream is about to end.
    pub async fn work(self, stop: CancellationToken, on_leaving: impl FnOnce()) {
        // Each task waits for one call at a time.
        let (calls, called) = mpsc::channel(usize::try_from(self.hello.slots.max(1)).unwrap_or(1));
        let (progress, progressed) = mpsc::unbounded_channel();
        let (link_events, linked) = mpsc::channel(16);
        let (leaving, is_leaving) = watch::channel(Leaving::Not);
        let peers = Peers::new(self.coordinators, self.network.known_coordinators());
        let link = Link {
            hello: self.hello,
            peers,
            network: self.network,
            leaving: is_leaving,
            events: link_events,
        };
        let link = AbortOnDropHandle::new(tokio::spawn(link.run()));
        let node = Node {
            state: State::default(),
            tasks: Tasks::new(self.runner, self.redactor, calls, progress),
            outgoing: None,
            waiting: HashMap::new(),
            progress: ProgressBuffer::default(),
            may_leave: false,
            storing: Storing::new(),
        };
        let has_stream = node.work(Inputs { called, progressed, linked }, &leaving, &stop).await;
        leaving.send_replace(Leaving::Now);
        on_leaving();
        // The stream ends now that the node has dropped its part of it.
        let goodbye = if has_stream { LONGEST_GOODBYE } else { Duration::ZERO };
        if let Ok(Err(ended)) = tokio::time::timeout(goodbye, link).await
            && let Ok(panic) = ended.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// That nobody has to wait for: it may only be missing yet.
fn tell_if_missing(storage: Storage) {
    tokio::spawn(async move {
        if let Err(error) = storage.check().await {
            tracing::warn!(storage = storage.shown(""), %error, "the storage cannot be used");
        }
    });
}

/// Begins to serve what this process keeps; until the handle is dropped.
async fn keep(
    options: &NodeOptions,
    hello: &Hello,
) -> Result<(Keeping, AbortOnDropHandle<()>), NodeError> {
    let listen = options.listen;
    if options.tls.is_none() && !listen.ip().is_loopback() {
        return Err(NodeError::NotLoopback(listen));
    }
    let root = options.dir.join("exchange");
    // Of a process that was here before: it is known to be lost.
    empty_folder(&root).map_err(|cause| state_error("empty", &root, cause))?;
    let failed = |source| NodeError::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let url = match &options.url {
        Some(url) => url.clone(),
        None => format!("{scheme}://{}", listener.local_addr().map_err(failed)?),
    };
    address::check(&url, options.tls.is_some()).map_err(NodeError::Url)?;
    tracing::info!(url, "rows are served");
    let holder = Holder { executor: hello.executor.clone(), boot_id: hello.boot_id.clone(), url };
    let clients = Arc::new(FlightClients::new(options.tls.clone()));
    let (tls, served) = (options.tls.clone(), root.clone());
    let serving = tokio::spawn(async move {
        // Until it is dropped: who leaves serves to its end.
        if let Err(error) = exchange::serve(listener, tls, served, CancellationToken::new()).await {
            tracing::error!(%error, "rows are not served any more");
        }
    });
    let keeping = Keeping { root, holder, clients, compression: options.compression };
    Ok((keeping, AbortOnDropHandle::new(serving)))
}

fn hello(options: &NodeOptions) -> Hello {
    Hello {
        executor: options.name.clone(),
        boot_id: uuid::Uuid::new_v4().to_string(),
        engine_version: StageGraph::ENGINE_VERSION.to_owned(),
        slots: u32::try_from(options.slots.get()).unwrap_or(u32::MAX),
        memory_bytes: options.memory_bytes.get(),
        host: host_name(),
        pid: std::process::id(),
    }
}

/// For people.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Held as long as the file is open: two processes would empty each other's spill folder.
fn lock(dir: &Path) -> Result<File, NodeError> {
    let path = dir.join("lock");
    let open = || {
        std::fs::create_dir_all(dir)?;
        File::options().create(true).truncate(false).write(true).open(&path)
    };
    let file = open().map_err(|cause| state_error("open", &path, cause))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(NodeError::InUse(dir.to_owned())),
        Err(std::fs::TryLockError::Error(cause)) => Err(state_error("lock", &path, cause).into()),
    }
}

/// Where a node's events come from, besides its own tasks.
struct Inputs {
    called: mpsc::Receiver<Call>,
    progressed: mpsc::UnboundedReceiver<ProgressEvent>,
    linked: mpsc::Receiver<LinkEvent>,
}

/// Carries out what [`State`] decides.
struct Node {
    state: State,
    tasks: Tasks,
    /// While there is a stream.
    outgoing: Option<Outgoing>,
    /// Tasks that wait for an answer.
    waiting: HashMap<TaskId, oneshot::Sender<Result<(), CommitLogError>>>,
    progress: ProgressBuffer,
    /// The leader has nothing for it to do any more, and wants it to end.
    may_leave: bool,
    storing: Storing,
}

impl Node {
    /// Whether there is a stream at the end.
    async fn work(
        mut self,
        inputs: Inputs,
        leaving: &watch::Sender<Leaving>,
        stop: &CancellationToken,
    ) -> bool {
        let Inputs { mut called, mut progressed, mut linked } = inputs;
        let mut progress_ticks = tokio::time::interval(PROGRESS_EVERY);
        progress_ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = tokio::time::interval(TICK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leave_at = None;
        // What is not in the storage yet would be lost.
        while !self.state.may_leave() || !self.storing.is_empty() {
            // What comes seldom comes first; nothing of the rest can come without end.
            tokio::select! {
                biased;
                () = stop.cancelled(), if leave_at.is_none() => {
                    leave_at = Some(self.begin_to_leave(leaving));
                }
                () = tokio::time::sleep_until(leave_at.unwrap_or_else(Instant::now)),
                    if leave_at.is_some() =>
                {
                    let (tasks, outputs) = (self.state.task_count(), self.storing.count());
                    tracing::warn!(tasks, outputs, "what is not done yet is left behind");
                    break;
                }
                _ = progress_ticks.tick() => self.send_progress(),
                _ = ticks.tick() => {
                    self.tasks.runner.tick(Instant::now());
                    self.step(Event::Tick);
                    self.tell_stored();
                }
                event = linked.recv() => match event {
                    Some(event) => self.linked(event),
                    // It never ends by itself; its panic is the caller's.
                    None => break,
                },
                Some((task, end, kept)) = self.tasks.next_end() => {
                    self.ended(task, &end);
                    if let Some(job) = kept {
                        self.storing.start(job);
                    }
                }
                Some(stored) = self.storing.next_stored() => {
                    if let Some(outgoing) = &self.outgoing {
                        outgoing.send_stored(stored);
                    }
                }
                Some(call) = called.recv() => self.called(call),
                Some(event) = progressed.recv() => self.progress.add(event),
            }
            if self.may_leave && leave_at.is_none() {
                leave_at = Some(self.begin_to_leave(leaving));
            }
        }
        self.outgoing.is_some()
    }

    /// The moment at which it leaves at the latest.
    fn begin_to_leave(&mut self, leaving: &watch::Sender<Leaving>) -> Instant {
        tracing::info!(tasks = self.state.task_count(), "leaving");
        leaving.send_replace(Leaving::Soon);
        self.step(Event::Draining);
        Instant::now() + LONGEST_DRAIN
    }

    fn linked(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Opened { welcome, outgoing } => {
                let Welcome { epoch, keeps_tasks, tasks, .. } = welcome;
                self.outgoing = Some(outgoing);
                self.step(Event::Welcomed { epoch, keeps_tasks, tasks });
                self.tell_stored();
            }
            LinkEvent::Closed => {
                self.outgoing = None;
                self.step(Event::Disconnected);
            }
            LinkEvent::Received(message) => match *message {
                to_executor::Message::Assign(assign) => {
                    self.step(Event::Assigned(Box::new(assign)));
                }
                to_executor::Message::Stop(stop) => {
                    if let Some(task) = stop.task {
                        self.step(Event::StopAsked(task));
                    }
                }
                to_executor::Message::Answer(answer) => self.step(Event::Answered(answer)),
                to_executor::Message::RunOver(over) => {
                    self.storing.forget(&over.run_folder);
                    self.tasks.runner.run_over(&over.run_folder);
                }
                to_executor::Message::RunsInUse(in_use) => {
                    self.tasks.runner.keep_only(&in_use.run_folders);
                }
                to_executor::Message::Leave(_) => self.may_leave = true,
                to_executor::Message::StoredNoted(noted) => {
                    if let Some(output) = &noted.output {
                        self.storing.noted(output, noted.is_wanted);
                    }
                }
                // Only the first message of a stream means anything as a welcome, and the link itself looks for
                // the coordinators.
                to_executor::Message::Welcome(_) | to_executor::Message::Coordinators(_) => {}
            },
        }
    }

    /// Again, until the leader says that it knows.
    fn tell_stored(&self) {
        let Some(outgoing) = &self.outgoing else { return };
        self.storing.stored().for_each(|stored| outgoing.send_stored(stored.clone()));
    }

    fn called(&mut self, call: Call) {
        let Call { task, fact, answer } = call;
        self.waiting.insert(task.clone(), answer);
        self.step(Event::Reported { task, fact });
    }

    fn ended(&mut self, task: TaskId, end: &TaskEnd) {
        let json = serde_json::to_vec(end).expect("ends can be written as JSON");
        self.waiting.remove(&task);
        self.step(Event::Reported { task, fact: Fact::End(json) });
    }

    fn send_progress(&mut self) {
        let Some(outgoing) = &self.outgoing else { return };
        for event in self.progress.take() {
            outgoing.send_progress(serde_json::to_vec(&event).expect("progress can be JSON"));
        }
    }

    fn step(&mut self, event: Event) {
        for effect in self.state.step(event) {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Start(assign) => {
                if let Some(task) = assign.task.clone() {
                    self.tasks.start(task, *assign);
                }
            }
            Effect::Stop(task) => self.tasks.stop(&task),
            Effect::Abort(task) => {
                tracing::info!(
                    run = task.run,
                    stage = task.stage,
                    slice = task.slice,
                    "task dropped"
                );
                self.tasks.abort(&task);
                self.waiting.remove(&task);
            }
            Effect::Send(report) => {
                if let Some(outgoing) = &self.outgoing {
                    outgoing.send_report(report);
                }
            }
            Effect::Settle { task, outcome, message } => {
                if let Some(answer) = self.waiting.remove(&task) {
                    // The task may have ended without waiting.
                    let _ = answer.send(answer_result(outcome, message));
                }
            }
        }
    }
}

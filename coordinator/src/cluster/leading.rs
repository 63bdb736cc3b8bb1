//! What a coordinator does while it leads: one epoch, the executors that have come to it, and one
//! session for each run that is going on.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;
use weir_connectors::ConnectorContext;
use weir_executor::RunFolder;
use weir_executor::storage::Storage;
use weir_ledger::{
    BackfillId, Command, FinishRun, Ledger, ResumeRun, RunFacts, RunId, RunOutcome, RunState,
    WindowOf,
};
use weir_spec::PipelineSpec;

use super::ended_runs::KeptRuns;
use super::founding::{self, Owner};
use super::pool::{Pool, Share};
use super::queue::check_not_skipped;
use super::remote::{RemoteWorkers, RunPlace};
use super::removal::Removal;
use super::requests::Request;
use super::run_log::{Author, Entry, Level, Lines, RunLog, WRITE_EVERY};
use super::sizes::check_params;
use super::systems::SystemsMaker;
use super::ways::Ways;
use crate::choose::{Choice, find_run, resume_this};
use crate::engine::Engine;
use crate::frozen::read_frozen;
use crate::params::complete_params;
use crate::pipeline_files::PipelineFiles;
use crate::raft::RaftMember;
use crate::session::{Session, ledger_error};
use crate::store::LedgerStore;
use crate::surroundings::now;
use crate::workers::Workers;
use crate::{Again, AuditReport, EngineError, EngineOptions, Frozen, RunEvent, RunRequest};

/// Updates that a slow watcher may be behind; it then goes on with the present state.
const UPDATES: usize = 256;

/// The least number of slices into which a source is cut, however few executors there are now.
const FEWEST_SLICES: usize = 4;

/// Between two looks at a storage that has not said whose it is.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// Where and how runs of this cluster work.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Shared by all coordinators and executors.
    pub(super) storage: Storage,
    /// Its `base_dir` is replaced by that of each run.
    pub(super) context: ConnectorContext,
    pub(super) memory_bytes: u64,
    pub(super) systems: SystemsMaker,
    /// How many runs that are over stay in the ledger.
    pub(super) kept_runs: KeptRuns,
}

#[derive(Debug)]
pub(super) struct Leading {
    pub(super) epoch: u64,
    /// The storage has not said whose it is.
    is_unsure: bool,
    pub(super) store: Arc<LedgerStore>,
    pub(super) pool: Arc<Pool>,
    pub(super) removal: Arc<Removal>,
    pub(super) settings: Settings,
    sessions: Mutex<BTreeMap<RunId, Running>>,
    sessions_begun: AtomicU64,
    /// One request at a time decides what begins. Nobody asks a target, or waits for who does, while he has it.
    pub(super) beginning: tokio::sync::Mutex<()>,
    /// Pending ones of backfills that begin as soon as their last runs are given up, or have left.
    pub(super) windows_on_their_way: Mutex<BTreeSet<WindowOf>>,
    /// Of pipelines of which a run begins.
    pub(super) ways: Ways,
    /// One request at a time changes which versions of pipelines there are.
    pub(super) registering: tokio::sync::Mutex<()>,
    /// A run waits for its turn, or one has ended.
    pub(super) turns_changed: Notify,
    /// A window may begin, or has ended.
    pub(super) windows_changed: Notify,
    /// The ledger could not be written, and perhaps has what was to be written: the leadership begins anew,
    /// and looks.
    pub(super) broken: CancellationToken,
    has_ended: AtomicBool,
}

/// A run that this leader works on.
#[derive(Debug)]
pub(super) struct Running {
    stop: CancellationToken,
    /// Set before it is stopped.
    stopped: OnceLock<Stopped>,
    updates: broadcast::Sender<Update>,
    log: Arc<RunLog>,
    _work: AbortOnDropHandle<()>,
}

/// Why a run is stopped.
#[derive(Clone, Debug)]
pub(super) struct Stopped {
    why: String,
    /// The client's who has asked for it: answered by the run's end.
    request: Request,
}

impl Stopped {
    pub(super) fn because(why: &str) -> Self {
        Self { why: why.to_owned(), request: Request::unnamed() }
    }
}

/// Something has changed about a run.
#[derive(Clone, Debug)]
pub(super) enum Update {
    State,
    Note(String),
}

/// What has become of a client's request for a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Submitted {
    pub(super) run: RunId,
    /// The request has made the run: it was not answered before, and no unfinished run goes on.
    pub(super) is_new: bool,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Started,
    /// Or has ended, where the request was answered before.
    GoesOn,
    Queued {
        /// What goes on or waits before it.
        beside: RunId,
    },
    Skipped {
        beside: RunId,
    },
}

/// A run's way to the executors.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pool: Arc<Pool>,
    share: Share,
    removal: Arc<Removal>,
}

impl Cluster {
    /// Nothing of the run will be read again.
    pub(crate) fn run_over(&self, run: &RunId, frozen: &Frozen) {
        self.pool.run_over(&run_folder(run, &frozen.pipeline));
    }

    /// Takes what stages kept out of the folder of a run that is over, if that is quickly done.
    pub(crate) async fn take_kept_rows(&self, folder: &RunFolder, run: &RunId, epoch: u64) {
        self.removal.take(folder, run, epoch).await;
    }

    pub(crate) fn workers(
        &self,
        run: &RunId,
        frozen: &Frozen,
        graph_hash: String,
        events: UnboundedSender<RunEvent>,
    ) -> Arc<dyn Workers> {
        let place = RunPlace {
            run: run.clone(),
            share: self.share.clone(),
            pipeline: frozen.pipeline.clone(),
            folder: run_folder(run, &frozen.pipeline),
            graph_hash,
            base_dir: frozen.base_dir.clone(),
            checkpoint_every: frozen.spec.checkpoint.every,
            events,
        };
        Arc::new(RemoteWorkers { pool: Arc::clone(&self.pool), run: place })
    }
}

impl Leading {
    /// Begins an epoch, unless the storage is another ledger's. Runs go on with [`keep_taking_up`](Self::keep_taking_up).
    pub(super) async fn begin(
        member: &Arc<RaftMember>,
        settings: Settings,
        lease: Duration,
    ) -> Result<Self, EngineError> {
        let store = Arc::new(LedgerStore::replicated(Arc::clone(member)));
        let own = store.ledger().await.ledger_id.clone();
        let owner = founding::look(&settings.storage, own.as_deref()).await?;
        let epoch = engine(&settings, settings.context.base_dir.clone(), FEWEST_SLICES)
            .begin_epoch(&store)
            .await?;
        if owner == Owner::Nobody {
            let own = store.ledger().await.ledger_id.clone().expect("an epoch has begun");
            founding::claim(&settings.storage, &own).await?;
        }
        Ok(Self {
            epoch,
            is_unsure: owner == Owner::Unknown,
            store,
            pool: Pool::new(epoch, lease),
            removal: Arc::new(Removal::new(settings.storage.clone())),
            settings,
            sessions: Mutex::default(),
            sessions_begun: AtomicU64::new(0),
            beginning: tokio::sync::Mutex::default(),
            windows_on_their_way: Mutex::default(),
            ways: Ways::default(),
            registering: tokio::sync::Mutex::default(),
            turns_changed: Notify::new(),
            windows_changed: Notify::new(),
            broken: CancellationToken::new(),
            has_ended: AtomicBool::new(false),
        })
    }

    /// Until it is known whose the storage is. It leads no longer if that is another ledger.
    pub(super) async fn keep_looking_whose_storage(self: Arc<Self>) {
        let mut is_unsure = self.is_unsure;
        while is_unsure {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            let own = self.with_ledger(|ledger| ledger.ledger_id.clone()).await;
            let own = own.expect("an epoch has begun");
            let storage = &self.settings.storage;
            let seen = match founding::look(storage, Some(&own)).await {
                Ok(Owner::Nobody) => founding::claim(storage, &own).await,
                Ok(Owner::ThisLedger) => Ok(()),
                Ok(Owner::Unknown) => continue,
                Err(error) => Err(error),
            };
            match seen {
                Ok(()) => is_unsure = false,
                Err(error @ EngineError::Refused(_)) => {
                    tracing::error!(%error, "must not lead");
                    self.broken.cancel();
                    return;
                }
                Err(error) => tracing::debug!(%error, "whose the storage is will be seen later"),
            }
        }
    }

    /// Starts a run, or goes on with one that has failed half-way. Beside one that goes on it does what the
    /// pipeline's `concurrency` says.
    pub(super) async fn submit(
        self: &Arc<Self>,
        spec: &PipelineSpec,
        text: &str,
        base_dir: PathBuf,
        request: RunRequest,
    ) -> Result<Submitted, EngineError> {
        let params = complete_params(&spec.params, &request.params)?;
        check_params(&params)?;
        let request = RunRequest { params, ..request };
        if let Some(submitted) = self.unless_it_begins(spec, text, &base_dir, &request).await? {
            return Ok(submitted);
        }
        let _way = self.ways.take(&spec.pipeline).await?;
        // Who had it before may have begun a run.
        if let Some(submitted) = self.unless_it_begins(spec, text, &base_dir, &request).await? {
            return Ok(submitted);
        }
        let files = PipelineFiles::of(&self.settings.storage, &spec.pipeline);
        let engine = engine(&self.settings, base_dir, self.slices());
        let chosen = engine.choose(spec, &request, &files, &self.store).await?;
        let (is_new, outcome) = match &chosen.choice {
            // It has failed, and is about to leave.
            Choice::Resume(run) => {
                self.leave_off(run).await;
                (false, Outcome::GoesOn)
            }
            Choice::Start { abandon } => {
                let (pipeline, never) = (&spec.pipeline, std::future::pending());
                self.make_way(&engine, &files, pipeline, abandon.as_ref(), never).await?;
                (true, Outcome::Started)
            }
        };
        let _beginning = self.beginning.lock().await;
        let begun =
            engine.begin(chosen, spec, text, request, &files, &self.store, self.epoch).await;
        let (run, frozen) = self.unless_broken(begun)?;
        self.start(run.clone(), None, frozen);
        Ok(Submitted { run, is_new, outcome })
    }

    /// What a request for a run has come to, if it was answered before, or if another run of the pipeline goes on or
    /// waits.
    async fn unless_it_begins(
        &self,
        spec: &PipelineSpec,
        text: &str,
        base_dir: &std::path::Path,
        request: &RunRequest,
    ) -> Result<Option<Submitted>, EngineError> {
        let _beginning = self.beginning.lock().await;
        if let Some(id) = &request.request_id
            && let Some(submitted) = self.submitted_before(id).await
        {
            // Each time rows are sent to be replayed they are other files.
            if request.replay_of.is_none() {
                self.check_same_submit(id, &submitted.run, spec, request).await?;
            }
            return Ok(Some(submitted));
        }
        self.beside_another(spec, text, base_dir.to_owned(), request).await
    }

    /// Goes on with a failed run. A request that comes again changes nothing more.
    pub(super) async fn retry(
        self: &Arc<Self>,
        id: &str,
        request_id: &str,
    ) -> Result<RunId, EngineError> {
        let (run, facts) = self.find(id).await?;
        let request = Request::new(request_id, "Runs/Retry", run.0.clone());
        if self.is_answered(&request).await? {
            return Ok(run);
        }
        check_not_skipped(&run, &facts)?;
        let _way = self.ways.take(&facts.pipeline).await?;
        let _beginning = loop {
            let beginning = self.beginning.lock().await;
            // By the same request, which came twice at once.
            if self.is_answered(&request).await? {
                return Ok(run);
            }
            if self.with_ledger(|ledger| ledger.run(&run).is_none()).await {
                return Err(has_left(&run, facts));
            }
            self.with_ledger(|ledger| resume_this(ledger, &run.0)).await?;
            let is_going_on = self.with_ledger(|ledger| is_going_on(ledger, &run)).await;
            let has_session = self.sessions().contains_key(&run);
            match has_session {
                false => break beginning,
                true if is_going_on => {}
                // It has failed, and is about to leave.
                true => {
                    drop(beginning);
                    self.leave_off(&run).await;
                    continue;
                }
            }
            self.note(request).await?;
            return Ok(run);
        };
        let frozen = read_frozen(&self.files(&facts), &run).await?;
        let (epoch, at) = (self.epoch, now());
        let resume = ResumeRun { epoch, run: run.clone(), request_id: None, at };
        self.append(request.named(epoch, Command::ResumeRun(resume))).await?;
        self.start(run.clone(), None, frozen);
        Ok(run)
    }

    /// Stops a run and waits for its tasks. It has then failed. A request that comes again changes nothing more.
    pub(super) async fn cancel(&self, id: &str, request_id: &str) -> Result<RunId, EngineError> {
        let (run, _) = self.find(id).await?;
        let request = Request::new(request_id, "Runs/Cancel", run.0.clone());
        if self.is_answered(&request).await? {
            return Ok(run);
        }
        let stopped = Stopped { request: request.clone(), ..Stopped::because("cancelled") };
        let mut updates = self.stop_session(&run, stopped.clone());
        if updates.is_none() {
            // Unless it is just beginning.
            let _beginning = self.beginning.lock().await;
            updates = self.stop_session(&run, stopped.clone());
            if updates.is_none() {
                // By the same request, which came twice at once.
                if self.is_answered(&request).await? {
                    return Ok(run);
                }
                if !self.with_ledger(|ledger| may_end(ledger, &run)).await {
                    return Err(EngineError::Refused(format!("run {run} is over")));
                }
                self.finish_stopped(&run, stopped).await?;
            }
        }
        // They end with the session.
        if let Some(mut updates) = updates {
            while !matches!(updates.recv().await, Err(broadcast::error::RecvError::Closed)) {}
        }
        match self.find(&run.0).await?.1.state {
            RunState::Failed { .. } => {
                // Unless the run's end has noted it: another one may have stopped it.
                self.note(request).await?;
                Ok(run)
            }
            RunState::Succeeded { .. } | RunState::Abandoned { .. } | RunState::Skipped { .. } => {
                Err(EngineError::Refused(format!("run {run} has ended before it could be stopped")))
            }
            RunState::Queued | RunState::Running => Err(EngineError::Ledger {
                path: self.store.path().display().to_string(),
                message: format!("this coordinator leads no longer, and run {run} goes on"),
            }),
        }
    }

    /// Stops a run at its next commits; it has then failed. Who has stopped it first says why. `None`: nobody works
    /// on it.
    pub(super) fn stop_session(
        &self,
        run: &RunId,
        stopped: Stopped,
    ) -> Option<broadcast::Receiver<Update>> {
        self.sessions().get(run).map(|session| {
            let _ = session.stopped.set(stopped);
            session.stop.cancel();
            session.updates.subscribe()
        })
    }

    async fn finish_stopped(&self, run: &RunId, stopped: Stopped) -> Result<(), EngineError> {
        let Stopped { why, request } = stopped;
        let outcome = RunOutcome::Failed { error: why };
        let (epoch, run, at) = (self.epoch, run.clone(), now());
        let finish = Command::FinishRun(FinishRun { epoch, run, outcome, at });
        self.append(request.named(epoch, finish)).await
    }

    pub(super) async fn audit(&self, id: &str) -> Result<AuditReport, EngineError> {
        let (run, facts) = self.find(id).await?;
        check_not_skipped(&run, &facts)?;
        self.audit_run(&run, facts).await
    }

    pub(super) async fn audit_run(
        &self,
        run: &RunId,
        facts: RunFacts,
    ) -> Result<AuditReport, EngineError> {
        let files = self.files(&facts);
        let frozen = read_frozen(&files, run).await?;
        let context = context(&self.settings, frozen.base_dir);
        let systems = self.settings.systems.make(&context);
        // Of the ledger it needs this run only, which the ledger may have forgotten.
        let mut ledger = Ledger::default();
        ledger.runs.insert(run.clone(), facts.clone());
        crate::audit::audit_run(&files, &ledger, run, &facts, &context, systems.as_ref()).await
    }

    /// A run by its id or a unique beginning of it; of one that the ledger has no more, by the whole id.
    pub(super) async fn find(&self, id: &str) -> Result<(RunId, RunFacts), EngineError> {
        let (found, left) = {
            let ledger = self.store.ledger().await;
            let found = find_run(&ledger, id).map(|(run, facts)| (run.clone(), facts.clone()));
            (found, ledger.runs_left)
        };
        let Err(EngineError::NotFound(what)) = found else { return found };
        if let Some(found) = self.forgotten_run(id).await {
            return Ok(found);
        }
        if left == 0 {
            return Err(EngineError::NotFound(what));
        }
        self.run_that_left(id).await?.ok_or_else(|| {
            EngineError::NotFound(format!(
                "{what} (of {left} older runs, which have left the ledger, one is found by its whole id only)"
            ))
        })
    }

    pub(super) async fn with_ledger<T>(&self, read: impl FnOnce(&Ledger) -> T) -> T {
        read(&*self.store.ledger().await)
    }

    /// Those that an admin wants to leave, as far as nothing is left for them to do.
    pub(super) async fn let_executors_leave(&self) {
        let draining = self.with_ledger(|ledger| ledger.draining.clone()).await;
        if self.pool.set_to_leave(&draining) {
            let idle = self.pool.idle_to_leave();
            if idle.is_empty() {
                return;
            }
            // After the pool: what it has no place for any more is in the ledger.
            let needed = self.with_ledger(Ledger::holders_needed).await;
            self.pool.let_leave(&idle, &needed);
        }
    }

    /// Executors remove what they keep of runs that are over, however these have ended and whoever led then.
    pub(super) async fn tell_runs_in_use(&self) {
        let in_use: Vec<String> = self
            .with_ledger(|ledger| {
                let runs = ledger.runs.iter().filter(|(_, run)| may_go_on(run));
                runs.map(|(id, run)| run_folder(id, &run.pipeline.0)).collect()
            })
            .await;
        self.pool.set_in_use(&in_use);
    }

    /// `None` when nobody works on the run.
    pub(super) fn watch(&self, run: &RunId) -> Option<broadcast::Receiver<Update>> {
        self.sessions().get(run).map(|running| running.updates.subscribe())
    }

    /// `None` when nobody works on the run.
    pub(super) fn log(&self, run: &RunId) -> Option<Arc<RunLog>> {
        self.sessions().get(run).map(|running| Arc::clone(&running.log))
    }

    /// Whether this leadership is over.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Drops all work, as a crash would.
    pub(super) fn end(&self) {
        self.has_ended.store(true, std::sync::atomic::Ordering::Relaxed);
        self.sessions().clear();
        self.ways.end();
        self.pool.close();
    }

    pub(super) async fn session_gone(&self, run: &RunId) {
        while self.sessions().contains_key(run) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) fn sessions(&self) -> MutexGuard<'_, BTreeMap<RunId, Running>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn files(&self, facts: &RunFacts) -> PipelineFiles {
        PipelineFiles::of(&self.settings.storage, &facts.pipeline)
    }

    pub(super) fn slices(&self) -> usize {
        self.pool.capacity().max(FEWEST_SLICES)
    }

    pub(super) async fn append(&self, command: Command) -> Result<(), EngineError> {
        let appended = self.store.append(command).await;
        let appended = appended.map_err(|error| ledger_error(self.store.path(), &error));
        self.unless_broken(appended).map(|_| ())
    }

    pub(super) fn unless_broken<T>(
        &self,
        result: Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        if let Err(EngineError::Ledger { .. }) = &result {
            self.broken.cancel();
        }
        result
    }

    pub(super) async fn finish(&self, run: &RunId, error: &str) -> Result<(), EngineError> {
        let outcome = RunOutcome::Failed { error: error.to_owned() };
        let (epoch, run, at) = (self.epoch, run.clone(), now());
        self.append(Command::FinishRun(FinishRun { epoch, run, outcome, at })).await
    }

    /// Works on a run that has begun, of a backfill's window or for itself.
    pub(super) fn start(
        self: &Arc<Self>,
        run: RunId,
        backfill: Option<BackfillId>,
        frozen: Frozen,
    ) {
        let (events, mut received) = unbounded_channel();
        let (updates, _) = broadcast::channel(UPDATES);
        let stop = CancellationToken::new();
        let engine = engine(&self.settings, frozen.base_dir.clone(), self.slices());
        let span = tracing::info_span!("run", %run, pipeline = frozen.pipeline);
        let share = Share {
            pipeline: frozen.spec.pipeline.to_string(),
            of: backfill.map_or_else(|| run.0.clone(), |backfill| backfill.0),
        };
        let session = Session {
            // A run waits for a store that does not answer.
            files: PipelineFiles::of(
                &self.settings.storage.clone().waiting(),
                &frozen.spec.pipeline,
            ),
            store: Arc::clone(&self.store),
            epoch: self.epoch,
            run: run.clone(),
            frozen,
            options: engine.options.clone(),
            systems: Arc::clone(&engine.systems),
            events,
            stop: stop.clone(),
            cluster: Some(Cluster {
                pool: Arc::clone(&self.pool),
                share,
                removal: Arc::clone(&self.removal),
            }),
        };
        let log = session.files.run(&run).storage().clone();
        let redactor = self.settings.context.redactor.clone();
        let number = self.sessions_begun.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let author = Author { epoch: self.epoch, session: number };
        let log = Arc::new(RunLog::new(log, author, redactor));
        let began = format!("work begins, under the leader of epoch {}", self.epoch);
        log.add(Entry::new(Level::Info, began));
        let (telling, noting) = (updates.clone(), Arc::clone(&log));
        let telling = async move {
            let mut lines = Lines::default();
            while let Some(event) = received.recv().await {
                if let Some(entry) = lines.of(&event) {
                    noting.add(entry);
                }
                for update in updates_of(&event) {
                    // Nobody may be watching.
                    let _ = telling.send(update);
                }
            }
        };
        let writing = Arc::clone(&log);
        let writing = async move {
            loop {
                tokio::time::sleep(WRITE_EVERY).await;
                writing.write().await;
            }
        };
        let leading = Arc::downgrade(self);
        let ending = run.clone();
        let work = async move {
            let working = async move {
                let result = unless_it_panics(session.work()).await;
                drop(session);
                result
            };
            // The events end with the session.
            let working = async { tokio::join!(working, telling).0 };
            let result = tokio::select! {
                biased;
                result = working => result,
                () = writing => unreachable!("it goes on for ever"),
            };
            if let Some(leading) = leading.upgrade() {
                leading.session_ended(&ending, result).await;
            }
        };
        // Held until the session is in the list, which it takes itself out of.
        let mut sessions = self.sessions();
        let work = AbortOnDropHandle::new(tokio::spawn(work.instrument(span)));
        let stopped = OnceLock::new();
        sessions.insert(run, Running { stop, stopped, updates, log, _work: work });
    }

    /// Only a ledger that cannot be written is more than the affair of this run: under another leader it would
    /// fail again.
    async fn session_ended(&self, run: &RunId, result: Result<(), EngineError>) {
        let stopped = self.sessions().get(run).and_then(|session| session.stopped.get().cloned());
        let stopped = stopped.unwrap_or_else(|| Stopped::because("cancelled"));
        let log = self.log(run);
        if let Some(log) = &log {
            log.add_end(end_of(&result, &stopped.why));
        }
        let stopped = match result {
            Ok(()) => Stopped::because(""),
            Err(error @ EngineError::Ledger { .. }) => {
                tracing::error!(%error, "the session cannot go on");
                return self.broken.cancel();
            }
            Err(EngineError::Stopped { .. }) => stopped,
            Err(EngineError::RunFailed { message, .. }) => Stopped::because(&message),
            Err(error) => Stopped::because(&error.to_string()),
        };
        // As a rule the run's end is in the ledger.
        if self.with_ledger(|ledger| is_going_on(ledger, run)).await {
            let why = self.settings.context.redactor.redact(&stopped.why);
            let stopped = Stopped { why: why.clone(), ..stopped };
            let mut finished = self.finish_stopped(run, stopped).await;
            // Its name was used for something else meanwhile: that keeps no run from its end.
            if !matches!(finished, Err(EngineError::Ledger { .. }))
                && self.with_ledger(|ledger| is_going_on(ledger, run)).await
            {
                finished = self.finish(run, &why).await;
            }
            if let Err(error) = finished {
                tracing::error!(%error, "the run is not ended");
            }
        }
        self.windows_changed.notify_one();
        // Windows of backfills end often.
        if self.with_ledger(is_any_waiting).await {
            self.turns_changed.notify_one();
        }
        // Last, and not for ever: a storage that hangs keeps no run from its end.
        if let Some(log) = &log
            && tokio::time::timeout(LONGEST_LAST_WRITE, log.write()).await.is_err()
        {
            tracing::warn!("the last lines of the run's log are not written");
        }
        // Nothing may follow: this drops the task that it runs in.
        self.sessions().remove(run);
    }
}

/// The last lines of a run's log have this long to be written.
const LONGEST_LAST_WRITE: Duration = Duration::from_secs(5);

/// The last line of a session.
fn end_of(result: &Result<(), EngineError>, stopped: &str) -> Entry {
    match result {
        Ok(()) => Entry::new(Level::Info, "run succeeded"),
        Err(EngineError::Stopped { .. }) => {
            Entry::new(Level::Warn, format!("run stopped: {stopped}"))
        }
        Err(EngineError::RunFailed { message, .. }) => {
            Entry::new(Level::Error, format!("run failed: {message}"))
        }
        Err(error @ EngineError::Ledger { .. }) => Entry::new(
            Level::Warn,
            format!("work ends here, and goes on with the next leader: {error}"),
        ),
        Err(error) => Entry::new(Level::Error, format!("run failed: {error}")),
    }
}

/// In the storage, and where executors keep rows.
fn run_folder(run: &RunId, pipeline: &str) -> String {
    format!("{pipeline}/runs/{run}")
}

/// Whether somebody may still read what executors keep of a run.
fn may_go_on(run: &RunFacts) -> bool {
    match run.state {
        RunState::Queued | RunState::Running => true,
        RunState::Failed { .. } => !run.cleaned_up,
        RunState::Succeeded { .. } | RunState::Abandoned { .. } | RunState::Skipped { .. } => false,
    }
}

pub(super) async fn unless_it_panics(
    work: impl Future<Output = Result<(), EngineError>>,
) -> Result<(), EngineError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        Err(EngineError::RunFailed {
            run: String::new(),
            message: "the work on the run has panicked; this is a defect of Weir, please report it"
                .to_owned(),
            again: Again::GoesOn,
        })
    })
}

/// Why a run that the ledger has no more cannot be taken up.
fn has_left(run: &RunId, facts: RunFacts) -> EngineError {
    let mut ledger = Ledger::default();
    ledger.runs.insert(run.clone(), facts);
    match resume_this(&ledger, &run.0) {
        Err(error) => error,
        // It had nothing to go on with.
        Ok(_) => EngineError::Refused(format!(
            "run {run} cannot be taken up again: it has failed so long ago that it has left the ledger. Submit \
             a new one"
        )),
    }
}

fn is_going_on(ledger: &Ledger, run: &RunId) -> bool {
    ledger.run(run).is_some_and(|facts| facts.state == RunState::Running)
}

/// Whether a run waits for its turn.
fn is_any_waiting(ledger: &Ledger) -> bool {
    ledger.pipelines.values().any(|pipeline| !pipeline.queue.is_empty())
}

/// Whether the run has begun or waits for its turn.
fn may_end(ledger: &Ledger, run: &RunId) -> bool {
    let state = ledger.run(run).map(|facts| &facts.state);
    matches!(state, Some(RunState::Queued | RunState::Running))
}

fn context(settings: &Settings, base_dir: PathBuf) -> ConnectorContext {
    ConnectorContext { base_dir, ..settings.context.clone() }
}

pub(super) fn engine(settings: &Settings, base_dir: PathBuf, slices: usize) -> Engine {
    let context = context(settings, base_dir);
    let options = EngineOptions {
        // Where files are is said with every run.
        state_dir: PathBuf::new(),
        memory_bytes: settings.memory_bytes,
        slots: std::num::NonZeroUsize::new(slices).unwrap_or(std::num::NonZeroUsize::MIN),
        context: context.clone(),
    };
    Engine::with_systems(options, settings.systems.make(&context))
}

fn updates_of(event: &RunEvent) -> Vec<Update> {
    match event {
        RunEvent::Progress(weir_executor::ProgressEvent::Rows { .. })
        | RunEvent::AttemptEnded { .. } => Vec::new(),
        RunEvent::Waiting { .. }
        | RunEvent::Planned { .. }
        | RunEvent::Progress(_)
        | RunEvent::AttemptStarted { .. }
        | RunEvent::StageStarted { .. }
        | RunEvent::StageFinished { .. } => vec![Update::State],
        RunEvent::Resumed { slices_done, slices, rows_committed, .. } => vec![
            Update::Note(format!(
                "resumed: {slices_done} of {slices} slices done, {rows_committed} rows committed"
            )),
            Update::State,
        ],
        RunEvent::Retrying { stage, slice, attempt, delay, error, .. } => vec![
            Update::Note(format!(
                "{stage}: attempt {attempt} at slice {slice} has failed ({error}); next in {delay:?}"
            )),
            Update::State,
        ],
        RunEvent::Note { node, text, .. } => vec![Update::Note(format!("{node}: {text}"))],
    }
}

//! Carries out what [`decide`] decides, until the run is complete, fails or is stopped.
//!
//! ```text
//!      ┌──────────── ledger ◀─────────────┐
//!      ▼                                  │ facts
//!   decide ─▶ jobs ─▶ run_task, recover, commit_run
//! ```

mod begin;
mod clock;
mod copies;
mod locality;
mod settle;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use indexmap::IndexMap;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weir_connectors::ConnectorError;
use weir_executor::{CommitLog, RunFolder, TaskOutcome};
use weir_ledger::{Command, LoseOutputs, SliceAttempt};
use weir_plan::{Holder, Stage, StageGraph, StageId};

use self::clock::SteadyClock;
use crate::RunEvent;
use crate::cluster::place::NoPlace;
use crate::commit_log::LedgerCommitLog;
use crate::connection_limits::{ConnectionLimit, limits_of};
use crate::decide::{Job, decide};
use crate::session::{Failure, OpenSink, Session};
use crate::store::StoreError;
use crate::surroundings::now;
use crate::workers::{WorkError, Workers};

/// Tasks that were asked to stop commit what they have read; after this time they are dropped, which
/// costs them their open batch.
const LONGEST_STOP: Duration = Duration::from_secs(15);

/// Lost outputs in one entry of the ledger's log, which each member has to take at once.
const MOST_LOST_AT_ONCE: usize = 5_000;

/// Deciding takes at most the n-th part of the driver's time.
const SHARE_OF_DECIDING: u32 = 5;

/// The work on one run's jobs.
pub(crate) struct Driver<'session> {
    session: &'session Session,
    stages: Vec<Arc<Stage>>,
    sinks: &'session IndexMap<StageId, OpenSink>,
    folder: RunFolder,
    workers: Arc<dyn Workers>,
    log: Arc<dyn CommitLog>,
    progress: mpsc::UnboundedSender<weir_executor::ProgressEvent>,
    /// Stops the tasks, when the session is stopped or the run has failed.
    stop_tasks: CancellationToken,
    running: JoinSet<JobEnd>,
    ids: HashMap<tokio::task::Id, Job>,
    busy: BTreeSet<Job>,
    announced: BTreeSet<StageId>,
    /// By stage: connections that not any number of tasks may use.
    connections: Vec<Arc<[ConnectionLimit]>>,
    /// Attempts at whole stages that are at work.
    attempts: BTreeMap<Job, Attempting>,
    /// How long those have taken that have ended well.
    took: BTreeMap<StageId, Vec<Duration>>,
    /// Since when attempts have waited for a place near what they read.
    waits: HashMap<Job, Instant>,
    /// By which failed attempts wait for the next one.
    clock: SteadyClock,
    /// No decision before then.
    rest_until: Instant,
    /// Set once; nothing is begun afterwards.
    ending: Option<Ending>,
}

struct Attempting {
    began: Instant,
    handle: AbortHandle,
}

struct Ending {
    failure: Failure,
    drop_at: Instant,
}

/// Whether a job has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Yes,
    No(NoPlace),
    /// Something else has settled it since it was decided.
    NotNeeded,
}

/// What a job has come to. Facts that only the driver may put down are still open.
enum JobEnd {
    Attempt {
        task: SliceAttempt,
        result: Result<TaskOutcome, WorkError>,
    },
    /// Its exchange is in the ledger, or that of another attempt at the slice.
    Exchanged {
        stage: StageId,
        slice: u32,
    },
    /// The slice is to be computed again; nobody wants this attempt's result.
    Superseded,
    /// The ledger could not be written.
    NotAppended(StoreError),
    Recover {
        command: Result<Command, ConnectorError>,
        stage: StageId,
    },
    CommitRun {
        stage: StageId,
        result: Result<(), ConnectorError>,
    },
}

impl<'session> Driver<'session> {
    pub(crate) fn new(
        session: &'session Session,
        graph: &StageGraph,
        sinks: &'session IndexMap<StageId, OpenSink>,
        workers: Arc<dyn Workers>,
    ) -> Self {
        let folder = session.files.run(&session.run);
        let (progress, mut received) = mpsc::unbounded_channel();
        let events = session.events.clone();
        tokio::spawn(async move {
            while let Some(event) = received.recv().await {
                // Nobody may be watching.
                let _ = events.send(RunEvent::Progress(event));
            }
        });
        Self {
            session,
            stages: graph.stages.iter().cloned().map(Arc::new).collect(),
            sinks,
            log: Arc::new(LedgerCommitLog::new(
                Arc::clone(&session.store),
                &session.frozen.spec,
                &folder,
            )),
            folder,
            workers,
            progress,
            stop_tasks: session.stop.child_token(),
            running: JoinSet::new(),
            ids: HashMap::new(),
            busy: BTreeSet::new(),
            announced: BTreeSet::new(),
            connections: (graph.stages.iter())
                .map(|stage| limits_of(stage, &session.frozen).into())
                .collect(),
            attempts: BTreeMap::new(),
            took: BTreeMap::new(),
            waits: HashMap::new(),
            clock: SteadyClock::starting_at(now()),
            rest_until: Instant::now(),
            ending: None,
        }
    }

    /// Returns once every sink shows all rows; or with the first failure, after all tasks have
    /// stopped.
    pub(crate) async fn drive(mut self) -> Result<(), Failure> {
        loop {
            if self.ending.is_none()
                && let Err(failure) = self.give_up_lost_outputs().await
            {
                self.end(failure);
            }
            let mut wake_at = None;
            if self.session.stop.is_cancelled() {
                // Whatever else has ended meanwhile.
                self.end(Failure::Stopped);
            }
            // Looked at once: executors come and go.
            let slots = self.workers.capacity();
            let mut is_waiting = slots == 0;
            if self.ending.is_none() {
                let decision = {
                    let ledger = self.session.store.ledger().await;
                    let run = ledger.run(&self.session.run).expect("the run is in the ledger");
                    let started = Instant::now();
                    let room = |stage: StageId| self.workers.room(self.connections_of(stage));
                    let (epoch, now) = (self.session.epoch, self.clock.now());
                    let decision = decide(run, epoch, slots, &self.busy, &room, now);
                    self.rest_until = started + started.elapsed() * SHARE_OF_DECIDING;
                    decision
                };
                if decision.is_complete && self.busy.is_empty() {
                    return Ok(());
                }
                let (mut is_full, has_nothing_else) = (false, decision.jobs.is_empty());
                for job in decision.jobs {
                    if self.ending.is_some() {
                        break;
                    }
                    if is_full && matches!(job, Job::Attempt { .. }) {
                        continue;
                    }
                    match self.begin(job).await {
                        Ok(Begun::Yes) => {}
                        Ok(Begun::NotNeeded) => is_waiting = true,
                        Ok(Begun::No(why)) => {
                            is_waiting = true;
                            is_full |= why == NoPlace::Full;
                        }
                        Err(failure) => self.end(failure),
                    }
                }
                wake_at = decision.wake_at;
                if has_nothing_else && self.busy.len() < slots {
                    let next_look = self.begin_copies().await;
                    wake_at = [wake_at, next_look].into_iter().flatten().min();
                }
            }
            if self.busy.is_empty() {
                if let Some(ending) = self.ending {
                    return Err(ending.failure);
                }
                if wake_at.is_none() && !is_waiting {
                    return Err(Failure::Run(
                        "nothing is left to be done, and yet the run is not complete; this is a \
                         defect of Weir, please report it"
                            .to_owned(),
                    ));
                }
            }
            self.wait(wake_at).await;
            self.rest().await;
        }
    }

    /// What executors had kept is gone with them.
    async fn give_up_lost_outputs(&self) -> Result<(), Failure> {
        let session = self.session;
        let is_lost = |holder: &Holder| self.workers.is_lost(holder);
        // What is computed again needs its own inputs, which nobody had to read any more before.
        loop {
            let outputs = session.with_facts(|facts| facts.lost_outputs(&is_lost)).await;
            if outputs.is_empty() {
                return Ok(());
            }
            tracing::warn!(
                outputs = outputs.len(),
                "what lost executors had kept is computed again"
            );
            let run = session.run.clone();
            let outputs = outputs.into_iter().take(MOST_LOST_AT_ONCE).collect();
            let lose = LoseOutputs { epoch: session.epoch, run, outputs };
            session.append(Command::LoseOutputs(lose)).await?;
        }
    }

    /// Deals with what ends meanwhile. To decide about many slices takes its time; for every task that
    /// ends it would take most of it.
    async fn rest(&mut self) {
        while self.ending.is_none() && Instant::now() < self.rest_until {
            tokio::select! {
                biased;
                Some(ended) = self.running.join_next_with_id() => self.ended(ended).await,
                () = tokio::time::sleep_until(self.rest_until) => return,
                () = self.session.stop.cancelled() => return,
            }
        }
    }

    /// Waits for the next thing to happen, and deals with it.
    async fn wait(&mut self, wake_at: Option<DateTime<Utc>>) {
        let until_wake = wake_at.map(|at| (at - self.clock.now()).to_std().unwrap_or_default());
        let drop_at = self.ending.as_ref().map(|ending| ending.drop_at);
        tokio::select! {
            biased;
            Some(ended) = self.running.join_next_with_id() => {
                self.ended(ended).await;
                while let Some(ended) = self.running.try_join_next_with_id() {
                    self.ended(ended).await;
                }
            }
            () = tokio::time::sleep(until_wake.unwrap_or_default()), if until_wake.is_some() => {}
            () = self.workers.changed(), if drop_at.is_none() => {}
            () = self.session.stop.cancelled(), if drop_at.is_none() => self.end(Failure::Stopped),
            () = tokio::time::sleep_until(drop_at.unwrap_or_else(Instant::now)),
                if drop_at.is_some() =>
            {
                tracing::warn!(tasks = self.busy.len(), "tasks that did not stop are dropped");
                self.running.shutdown().await;
                self.busy.clear();
            }
        }
    }

    /// The first reason counts; tasks stop at their next commit.
    fn end(&mut self, failure: Failure) {
        self.stop_tasks.cancel();
        // Work that is cut short by a stop ends with errors of its own.
        let failure = if self.session.stop.is_cancelled() { Failure::Stopped } else { failure };
        if self.ending.is_none() {
            self.ending = Some(Ending { failure, drop_at: Instant::now() + LONGEST_STOP });
        }
    }

    async fn ended(&mut self, ended: Result<(tokio::task::Id, JobEnd), JoinError>) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        if let Some(job) = self.ids.remove(&id) {
            self.busy.remove(&job);
            let attempting = self.attempts.remove(&job);
            if let (Some(attempting), Ok((_, JobEnd::Exchanged { stage, .. }))) =
                (attempting, &ended)
            {
                self.took.entry(*stage).or_default().push(attempting.began.elapsed());
            }
        }
        let settled = match ended {
            Ok((_, end)) => self.settle(end).await,
            // Another attempt has been the first to end.
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(Failure::Run(format!(
                "a job ended without a result ({error}); this is a defect of Weir, please report it"
            ))),
        };
        if let Err(failure) = settled {
            self.end(failure);
        }
    }

    fn announce(&mut self, stage: &Stage) {
        if self.announced.insert(stage.id) {
            tracing::info!(stage = stage.name, slices = stage.slice_count(), "stage started");
            self.session.send(RunEvent::StageStarted {
                run: self.session.run.0.clone(),
                stage: stage.id.0,
                name: stage.name.clone(),
                slices: stage.slice_count(),
            });
        }
    }

    fn stage(&self, stage: StageId) -> &Arc<Stage> {
        (usize::try_from(stage.0).ok().and_then(|index| self.stages.get(index)))
            .expect("the ledger's stages are the plan's")
    }

    fn connections_of(&self, stage: StageId) -> &Arc<[ConnectionLimit]> {
        (usize::try_from(stage.0).ok().and_then(|index| self.connections.get(index)))
            .expect("the ledger's stages are the plan's")
    }

    fn sink(&self, stage: StageId) -> &OpenSink {
        self.sinks.get(&stage).expect("every stage with batches ends in a sink")
    }
}

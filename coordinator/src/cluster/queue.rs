//! Runs beside another run of their pipeline: they wait for their turn, or are skipped.
//!
//! ```text
//! Submit ─arrival─▶ QueueRun ─next_turns─▶ BeginRun ─▶ Session
//!            └────▶ SkipRun
//! ```
//!
//! Nothing is remembered here: who waits is in the ledger, and the next leader goes on from there.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use weir_ledger::{
    BeginRun, Command, QueueRun, QueuedRun, RunFacts, RunId, RunState, SkipRun, StartRun,
};
use weir_spec::{OnOverlap, PipelineName, PipelineSpec};

use super::leading::{Leading, Outcome, Stopped, Submitted, engine};
use super::next_turns::{Arrival, Turn, arrival, next_turns, run_before};
use crate::choose::unfinished_run;
use crate::engine::{left_in_staging, new_run_id};
use crate::frozen::{read_frozen, remove_frozen, spec_hash, write_frozen};
use crate::pipeline_files::PipelineFiles;
use crate::surroundings::now;
use crate::{EngineError, Frozen, RunRequest};

impl Leading {
    /// What becomes of a request for a new run while another one of the pipeline goes on, or waits; `None`:
    /// none does. To be asked with `beginning` held.
    pub(super) async fn beside_another(
        &self,
        spec: &PipelineSpec,
        text: &str,
        base_dir: PathBuf,
        request: &RunRequest,
    ) -> Result<Option<Submitted>, EngineError> {
        let on_overlap = match request.replay_of {
            // Somebody has asked for it by hand, and it is about other rows.
            Some(_) => OnOverlap::Queue,
            None => spec.concurrency.on_overlap,
        };
        let arrival = self
            .with_ledger(|ledger| arrival(ledger.pipelines.get(&spec.pipeline), on_overlap))
            .await;
        let (run, outcome) = match arrival {
            Arrival::Begin => return Ok(None),
            Arrival::Queue { beside, cancels_others } => {
                let run = self.queue(spec, text, base_dir, request, cancels_others).await?;
                (run, Outcome::Queued { beside })
            }
            Arrival::Skip { beside } => {
                let run = self.skip(spec, request, &beside).await?;
                (run, Outcome::Skipped { beside })
            }
        };
        Ok(Some(Submitted { run, is_new: true, outcome }))
    }

    /// What a request that was answered before has come to.
    pub(super) async fn submitted_before(&self, request_id: &str) -> Option<Submitted> {
        self.with_ledger(|ledger| {
            let run = ledger.run_of_request(request_id)?;
            let facts = ledger.run(run);
            let outcome = match facts.map(|facts| (&facts.state, &facts.pipeline)) {
                Some((RunState::Skipped { beside, .. }, _)) => {
                    Outcome::Skipped { beside: beside.clone() }
                }
                Some((RunState::Queued, pipeline)) => Outcome::Queued {
                    beside: (ledger.pipelines.get(pipeline).and_then(run_before))
                        .unwrap_or_else(|| run.clone()),
                },
                _ => Outcome::GoesOn,
            };
            Some(Submitted { run: run.clone(), is_new: false, outcome })
        })
        .await
    }

    /// The name of a request is for one run.
    pub(super) async fn check_same_submit(
        &self,
        request_id: &str,
        run: &RunId,
        spec: &PipelineSpec,
        request: &RunRequest,
    ) -> Result<(), EngineError> {
        let spec_hash = spec_hash(spec, request)?;
        let is_same = |facts: &RunFacts| {
            facts.pipeline == spec.pipeline
                && facts.spec_hash == spec_hash
                && facts.params == request.params
                && facts.window == request.window
        };
        match self.with_ledger(|ledger| ledger.run(run).is_none_or(is_same)).await {
            true => Ok(()),
            false => Err(EngineError::Refused(format!(
                "request {request_id} was for run {run}, which is of another pipeline, or another version, \
                 parameters or window of it: give a new request a new id"
            ))),
        }
    }

    async fn queue(
        &self,
        spec: &PipelineSpec,
        text: &str,
        base_dir: PathBuf,
        request: &RunRequest,
        cancels_others: bool,
    ) -> Result<RunId, EngineError> {
        let start = self.start_of(spec, request).await?;
        let run = start.run.clone();
        let frozen = Frozen {
            run: run.0.clone(),
            pipeline: spec.pipeline.to_string(),
            spec: spec.clone(),
            spec_text: text.to_owned(),
            base_dir,
            request: RunRequest { fresh: false, ..request.clone() },
        };
        let files = PipelineFiles::of(&self.settings.storage, &spec.pipeline);
        write_frozen(&files, &frozen).await?;
        let queue = QueueRun { start, is_fresh: request.fresh, cancels_others };
        if let Err(error) = self.append(Command::QueueRun(queue)).await {
            if matches!(error, EngineError::Refused(_)) {
                // Nobody will look for it.
                remove_frozen(&files, &run).await;
            }
            return Err(error);
        }
        tracing::info!(%run, cancels_others, "run waits for its turn");
        self.turns_changed.notify_one();
        Ok(run)
    }

    async fn skip(
        &self,
        spec: &PipelineSpec,
        request: &RunRequest,
        beside: &RunId,
    ) -> Result<RunId, EngineError> {
        let start = self.start_of(spec, request).await?;
        let run = start.run.clone();
        self.append(Command::SkipRun(SkipRun { start, beside: beside.clone() })).await?;
        tracing::info!(%run, %beside, "run is skipped");
        Ok(run)
    }

    async fn start_of(
        &self,
        spec: &PipelineSpec,
        request: &RunRequest,
    ) -> Result<StartRun, EngineError> {
        let at = now();
        Ok(StartRun {
            epoch: self.epoch,
            run: new_run_id(at),
            pipeline: spec.pipeline.clone(),
            spec_hash: spec_hash(spec, request)?,
            params: request.params.clone(),
            window: request.window,
            version: request.version,
            request_id: request.request_id.clone(),
            backfill: None,
            replay_of: request.replay_of.clone().map(RunId),
            at,
        })
    }

    /// Begins what waits and may begin, and stops what has to end for it.
    pub(super) async fn take_turns(self: &Arc<Self>) -> Result<(), EngineError> {
        // Nothing begins or is cancelled meanwhile.
        let _beginning = self.beginning.lock().await;
        for turn in self.with_ledger(next_turns).await {
            match turn {
                Turn::GiveUp { run, by } => self.finish(&run, &replaced(&by)).await?,
                Turn::Stop { run, by } => {
                    let why = replaced(&by);
                    if self.stop_session(&run, Stopped::because(&why)).is_none() {
                        // Nobody works on it yet, and nobody shall.
                        self.finish(&run, &why).await?;
                        self.turns_changed.notify_one();
                    }
                }
                Turn::Begin(queued) => {
                    let run = queued.run.clone();
                    if let Err(error) = self.begin_queued(queued).await {
                        self.not_begun(&run, error).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// To be called with `beginning`. Where targets have to be asked first, that goes on by itself.
    async fn begin_queued(self: &Arc<Self>, queued: QueuedRun) -> Result<(), EngineError> {
        let QueuedRun { run, is_fresh, cancels_others } = queued;
        let (_, facts) = self.find(&run.0).await?;
        let pipeline = facts.pipeline.clone();
        // Somebody asks them already.
        let Some(way) = self.ways.try_take(&pipeline) else { return Ok(()) };
        let frozen = read_frozen(&self.files(&facts), &run).await?;
        let (unfinished, replay_of, is_way_free) = self
            .with_ledger(|ledger| {
                let unfinished = unfinished_run(ledger, &pipeline);
                let replay_of = unfinished.and_then(|(_, run)| run.replay_of.clone());
                let is_way_free =
                    unfinished.is_none() && left_in_staging(ledger, &pipeline).next().is_none();
                (unfinished.map(|(run, _)| run.clone()), replay_of, is_way_free)
            })
            .await;
        if let Some(unfinished) = &unfinished
            && !is_fresh
            // What has been rejected is loaded by nobody else.
            && (!cancels_others || replay_of.is_some())
        {
            let what = replay_of
                .map_or_else(String::new, |of| format!(" and replays dead letters of run {of}"));
            return Err(EngineError::Refused(format!(
                "run {unfinished}, which was before it{what}, has failed half-way. Either finish that one \
                 (`weir retry {unfinished}`) and submit again; or submit with --fresh, which gives it \
                 up (rows that it has committed stay in their targets)"
            )));
        }
        if is_way_free {
            return self.begin_now(run, frozen).await;
        }
        let leading = Arc::clone(self);
        self.ways.spawn(async move {
            let _way = way;
            leading.begin_behind(&pipeline, run, unfinished.as_ref(), frozen).await;
        });
        Ok(())
    }

    /// With the pipeline's way.
    async fn begin_behind(
        self: &Arc<Self>,
        pipeline: &PipelineName,
        run: RunId,
        unfinished: Option<&RunId>,
        frozen: Frozen,
    ) {
        let files = PipelineFiles::of(&self.settings.storage, pipeline);
        let engine = engine(&self.settings, frozen.base_dir.clone(), self.slices());
        let lost = self.turn_lost(pipeline, &run);
        let made = self.make_way(&engine, &files, pipeline, unfinished, lost).await;
        let has_failed = made.is_err();
        let begun = {
            let _beginning = self.beginning.lock().await;
            // It may have been cancelled or replaced a moment ago.
            let is_next = self.is_next(pipeline, &run).await;
            let begun = match made {
                Ok(false) => Ok(()),
                _ if !is_next => Ok(()),
                Ok(true) => self.begin_now(run.clone(), frozen).await,
                Err(error) => Err(error),
            };
            match begun {
                Ok(()) => Ok(()),
                Err(error) => self.not_begun(&run, error).await,
            }
        };
        if let Err(error) = begun {
            tracing::error!(%run, %error, "the run cannot begin");
        }
        // A target is not asked as fast as it refuses.
        if has_failed {
            let lost = self.turn_lost(pipeline, &run);
            let _ = tokio::time::timeout(BETWEEN_TRIES, lost).await;
        }
    }

    /// To be called with `beginning`.
    async fn begin_now(self: &Arc<Self>, run: RunId, frozen: Frozen) -> Result<(), EngineError> {
        let (epoch, at) = (self.epoch, now());
        self.append(Command::BeginRun(BeginRun { epoch, run: run.clone(), at })).await?;
        self.start(run, None, frozen);
        Ok(())
    }

    /// A run whose turn it is stays where it is if it may begin later, and has failed otherwise.
    async fn not_begun(&self, run: &RunId, error: EngineError) -> Result<(), EngineError> {
        match error {
            error @ EngineError::Ledger { .. } => Err(error),
            error if error.is_unavailable() => {
                tracing::warn!(%run, %error, "the run cannot begin; tried again");
                Ok(())
            }
            // The others of its queue must not wait for it for ever.
            error => {
                let error = self.settings.context.redactor.redact(&error.to_string());
                self.finish(run, &error).await?;
                self.turns_changed.notify_one();
                Ok(())
            }
        }
    }
}

/// Between two tries to give up a run for another one.
const BETWEEN_TRIES: Duration = Duration::from_secs(2);

/// There is nothing of a skipped run.
pub(super) fn check_not_skipped(run: &RunId, facts: &RunFacts) -> Result<(), EngineError> {
    match &facts.state {
        RunState::Skipped { beside, .. } => Err(EngineError::Refused(format!(
            "run {run} was skipped, because run {beside} of the pipeline went on: it has done nothing, and \
             never will"
        ))),
        _ => Ok(()),
    }
}

/// Why a run has ended.
fn replaced(by: &RunId) -> String {
    format!("cancelled: run {by} was submitted, and `concurrency.on_overlap` is cancel_running")
}

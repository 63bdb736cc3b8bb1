//! What targets are asked before a run of a pipeline begins: which batches of an unfinished run they have, and to remove
//! what earlier runs have left in staging. A target may not answer for as long as its pipeline's `retry` says. So only the
//! pipeline's own way is held meanwhile, and never `Leading::beginning`: runs of other pipelines begin, are cancelled and
//! are taken up, and runs of this one are queued.
//!
//! Whoever begins or takes up a run of a pipeline takes its way first, then `beginning`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;
use weir_ledger::RunId;
use weir_spec::PipelineName;

use super::leading::{Leading, Stopped};
use crate::EngineError;
use crate::engine::Engine;
use crate::pipeline_files::PipelineFiles;

/// A client hears of it, before his own patience ends, that targets are still being asked.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How soon it is noticed that a run that waits for its turn has lost it.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// While it is held no run of the pipeline begins but by its holder.
pub(super) type Way = OwnedMutexGuard<()>;

#[derive(Debug)]
pub(super) struct Ways {
    of: Mutex<BTreeMap<PipelineName, Arc<tokio::sync::Mutex<()>>>>,
    /// What goes on while nobody waits for it; `None`: the leadership is over.
    work: Mutex<Option<JoinSet<()>>>,
}

impl Default for Ways {
    fn default() -> Self {
        Self { of: Mutex::default(), work: Mutex::new(Some(JoinSet::new())) }
    }
}

impl Ways {
    /// `None`: somebody has it.
    pub(super) fn try_take(&self, pipeline: &PipelineName) -> Option<Way> {
        self.of(pipeline).try_lock_owned().ok()
    }

    pub(super) async fn take(&self, pipeline: &PipelineName) -> Result<Way, EngineError> {
        let taking = self.of(pipeline).lock_owned();
        tokio::time::timeout(LONGEST_WAIT, taking).await.map_err(|_| {
            EngineError::Busy(format!(
                "a run of pipeline `{pipeline}` is about to begin, and waits for targets to say what they have of an \
                 earlier one: try again later, or cancel that run if it is queued (`weir runs`)"
            ))
        })
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(works) = &mut *self.work() {
            while works.try_join_next().is_some() {}
            works.spawn(work);
        }
    }

    /// Drops all work.
    pub(super) fn end(&self) {
        drop(self.work().take());
    }

    fn of(&self, pipeline: &PipelineName) -> Arc<tokio::sync::Mutex<()>> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(of.entry(pipeline.clone()).or_default())
    }

    fn work(&self) -> MutexGuard<'_, Option<JoinSet<()>>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leading {
    /// Gives up a run that has failed half-way, and removes what is left of it and of earlier ones. To be called with the
    /// pipeline's way and without `beginning`. `until`: ends the asking; what is half done then is done the next time.
    /// False: it has ended it.
    pub(super) async fn make_way(
        &self,
        engine: &Engine,
        files: &PipelineFiles,
        pipeline: &PipelineName,
        unfinished: Option<&RunId>,
        until: impl Future<Output = ()>,
    ) -> Result<bool, EngineError> {
        tokio::pin!(until);
        if let Some(run) = unfinished {
            self.leave_off(run).await;
            let settling = engine.settle(&self.store, files, self.epoch, run);
            let settled = tokio::select! {
                biased;
                () = &mut until => return Ok(false),
                settled = settling => self.unless_broken(settled)?,
            };
            if let Some(settled) = settled {
                // Nobody takes the run up while the ledger is told.
                let _beginning = self.beginning.lock().await;
                self.unless_broken(engine.give_up(&self.store, self.epoch, &settled).await)?;
            }
        }
        let cleaning = engine.clean_up_failed(&self.store, files, self.epoch, pipeline);
        tokio::select! {
            biased;
            () = until => Ok(false),
            cleaned = cleaning => self.unless_broken(cleaned).map(|()| true),
        }
    }

    /// Until the session of a run that has ended is gone: it may still be cleaning up, at a target that does not answer.
    /// Not to be called with `beginning`.
    pub(super) async fn leave_off(&self, run: &RunId) {
        drop(self.stop_session(run, Stopped::because("")));
        self.session_gone(run).await;
    }

    /// Until the run does not wait for its turn any more, or another one is before it.
    pub(super) async fn turn_lost(&self, pipeline: &PipelineName, run: &RunId) {
        while self.is_next(pipeline, run).await {
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Whether the run is the first of its pipeline's queue, and nothing else goes on.
    pub(super) async fn is_next(&self, pipeline: &PipelineName, run: &RunId) -> bool {
        self.with_ledger(|ledger| {
            ledger.pipelines.get(pipeline).is_some_and(|facts| {
                facts.active_run.is_none()
                    && facts.queue.first().is_some_and(|first| first.run == *run)
            })
        })
        .await
    }
}

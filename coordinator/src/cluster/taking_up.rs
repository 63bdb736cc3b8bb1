//! Runs that the ledger calls running and that nobody works on: the leader before has left them; or the
//! answer to what has begun them was lost, or their folder could not be read for a while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use weir_ledger::{Command, ResumeRun, RunFacts, RunId, RunState};

use super::leading::Leading;
use crate::EngineError;
use crate::frozen::read_frozen;
use crate::surroundings::now;

const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

impl Leading {
    /// Until the leadership ends.
    pub(super) async fn keep_taking_up(self: Arc<Self>) {
        let mut unreadable = BTreeSet::new();
        loop {
            // Asked for before the look, so that no change falls in between.
            let changed = self.turns_changed.notified();
            let looked = async {
                self.take_up(&mut unreadable).await?;
                self.take_turns().await
            };
            match looked.await {
                Ok(()) => {}
                Err(error @ EngineError::Ledger { .. }) => {
                    return tracing::error!(%error, "runs cannot be taken up");
                }
                Err(error) => tracing::error!(%error, "a run cannot be taken up"),
            }
            let _ = tokio::time::timeout(BETWEEN_LOOKS, changed).await;
        }
    }

    /// Goes on with runs that have no session. One whose folder cannot be read must not keep all others
    /// from going on; it is told once, and looked at again the next time.
    pub(super) async fn take_up(
        self: &Arc<Self>,
        unreadable: &mut BTreeSet<RunId>,
    ) -> Result<(), EngineError> {
        // Nothing begins or is cancelled meanwhile.
        let _beginning = self.beginning.lock().await;
        let left: Vec<(RunId, RunFacts)> = {
            let ledger = self.store.ledger().await;
            let sessions = self.sessions();
            (ledger.runs.iter())
                .filter(|(id, run)| run.state == RunState::Running && !sessions.contains_key(id))
                .map(|(id, run)| (id.clone(), run.clone()))
                .collect()
        };
        for (run, facts) in left {
            if self.is_cancelled(&facts).await {
                self.finish(&run, "cancelled").await?;
                continue;
            }
            let frozen = match read_frozen(&self.files(&facts), &run).await {
                Ok(frozen) => frozen,
                // Nothing can be read; the next look is soon.
                Err(error) if error.is_unavailable() => return Err(error),
                // The window can be retried, and the others go on meanwhile.
                Err(error) if facts.backfill.is_some() => {
                    self.finish(&run, &error.to_string()).await?;
                    continue;
                }
                Err(error) => {
                    if unreadable.insert(run.clone()) {
                        tracing::error!(%run, %error, "the run cannot be taken up; tried again");
                    }
                    continue;
                }
            };
            let (epoch, at) = (self.epoch, now());
            let resume = ResumeRun { epoch, run: run.clone(), request_id: None, at };
            self.append(Command::ResumeRun(resume)).await?;
            self.start(run, facts.backfill.map(|of| of.backfill), frozen);
        }
        Ok(())
    }
}

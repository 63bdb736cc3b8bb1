//! Second attempts beside those that take long.

use chrono::{DateTime, TimeDelta, Utc};
use weir_ledger::{SliceAttempt, SliceState};
use weir_plan::{StageId, StageOutput};

use super::{Begun, Driver};
use crate::cluster::place::NoPlace;
use crate::decide::Job;
use crate::stragglers::{AtWork, stragglers};
use crate::workers::{Slot, Wanted};

impl Driver<'_> {
    /// To be called when nothing else is left to be begun. When it is time to look again.
    pub(super) async fn begin_copies(&mut self) -> Option<DateTime<Utc>> {
        let whole: Vec<StageId> = (self.stages.iter())
            .filter(|stage| stage.output == StageOutput::Exchange && stage.slice_count() > 1)
            .map(|stage| stage.id)
            .filter(|stage| self.took.contains_key(stage))
            .collect();
        let mut next_look = None;
        let clock = self.clock;
        let earlier = |known, from_now| earlier(clock.now(), known, from_now);
        for stage in whole {
            let at_work: Vec<AtWork> = (self.attempts.iter())
                .filter_map(|(job, attempting)| match job {
                    Job::Attempt { stage: of, slice } if *of == stage => {
                        Some(AtWork { slice: *slice, running_for: attempting.began.elapsed() })
                    }
                    _ => None,
                })
                .filter(|at_work| !self.busy.contains(&Job::Copy { stage, slice: at_work.slice }))
                .collect();
            if at_work.is_empty() {
                continue;
            }
            let finished = self
                .session
                .with_facts(|facts| facts.stage(stage).map_or(0, |stage| stage.finished_slices));
            let (finished, took) = (finished.await, &self.took[&stage]);
            let slices = self.stage(stage).slice_count();
            let least = self.workers.copies_after();
            let found = stragglers(slices, finished, took, &at_work, least);
            for slice in found.slices {
                match self.begin(Job::Copy { stage, slice }).await {
                    Ok(Begun::Yes) => {
                        let name = &self.stage(stage).name;
                        tracing::info!(stage = name, slice, "takes long: begun a second time");
                    }
                    // Another time.
                    Ok(Begun::No(_) | Begun::NotNeeded) => {
                        next_look = earlier(next_look, LOOK_AGAIN)
                    }
                    Err(failure) => self.end(failure),
                }
            }
            let next_in = found.next_in.and_then(|next_in| TimeDelta::from_std(next_in).ok());
            if let Some(next_in) = next_in {
                next_look = earlier(next_look, next_in);
            }
        }
        next_look
    }

    /// A place that nobody else wants, with another executor.
    pub(super) async fn copy_place(
        &self,
        stage: StageId,
        slice: u32,
    ) -> Result<Box<dyn Slot>, NoPlace> {
        let session = self.session;
        let epoch = session.epoch;
        let attempt = session.with_facts(|facts| {
            let slice = facts.slice(stage, slice)?;
            (slice.state == SliceState::Running { epoch }).then_some(slice.attempts)
        });
        let Some(attempt) = attempt.await else { return Err(NoPlace::Full) };
        let first = SliceAttempt { epoch, run: session.run.clone(), stage, slice, attempt };
        let Some(executor) = self.workers.executor_of(&first) else { return Err(NoPlace::Full) };
        let wanted = self.wanted(Job::Copy { stage, slice }, stage, slice).await;
        self.workers.take_slot(&Wanted { not_with: Some(executor), ..wanted })
    }

    /// The slice is finished: what else is at work on it is given up.
    pub(super) fn end_others(&mut self, stage: StageId, slice: u32) {
        for job in [Job::Attempt { stage, slice }, Job::Copy { stage, slice }] {
            if let Some(attempting) = self.attempts.get(&job) {
                tracing::info!(stage = stage.0, slice, "another attempt was the first to end");
                attempting.handle.abort();
            }
        }
    }
}

/// When there was no place.
const LOOK_AGAIN: TimeDelta = TimeDelta::seconds(1);

fn earlier(
    now: DateTime<Utc>,
    known: Option<DateTime<Utc>>,
    from_now: TimeDelta,
) -> Option<DateTime<Utc>> {
    let at = now.checked_add_signed(from_now.max(TimeDelta::milliseconds(10)))?;
    Some(known.map_or(at, |known| known.min(at)))
}

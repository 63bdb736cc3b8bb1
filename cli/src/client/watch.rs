//! Sees a run through to its end, whoever leads the cluster meanwhile.

use std::time::Duration;

use weir_proto::v1::run_update::Update;
use weir_proto::v1::{Run, RunStatus, WatchRunRequest};

use super::members::LEARN_EVERY;
use super::{CallError, Client, Result, is_passing, runs};

/// Between a stream that broke and the next: an election takes longer.
const PAUSE: Duration = Duration::from_millis(200);

impl Client {
    /// The run as it ended. Every stream begins with the run's present state.
    pub(crate) async fn watch(&mut self, run: &str, mut show: impl FnMut(&Update)) -> Result<Run> {
        let request = WatchRunRequest { run: run.to_owned() };
        loop {
            let opened = self.call(|line| {
                let request = request.clone();
                async move { runs(line).watch(request).await }
            });
            let mut updates = opened.await?;
            let mut lessons = tokio::time::interval(LEARN_EVERY);
            loop {
                let message = tokio::select! {
                    message = updates.message() => message,
                    _ = lessons.tick() => {
                        self.learn().await;
                        continue;
                    }
                };
                let update = match message {
                    Ok(Some(update)) => update.update,
                    // Its leader has gone.
                    Ok(None) => break,
                    Err(status) if is_passing(&status) => break,
                    Err(status) => return Err(CallError::Refused { status, is_repeated: false }),
                };
                let Some(update) = update else { continue };
                show(&update);
                if let Update::Run(run) = update
                    && is_over(&run)
                {
                    return Ok(run);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn is_over(run: &Run) -> bool {
    match run.status() {
        RunStatus::Unspecified | RunStatus::Queued | RunStatus::Running => false,
        RunStatus::Succeeded | RunStatus::Failed | RunStatus::Abandoned | RunStatus::Skipped => {
            true
        }
    }
}

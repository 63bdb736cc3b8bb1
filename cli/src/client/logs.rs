//! Reads the log of a run, whoever leads the cluster meanwhile.

use std::time::Duration;

use weir_proto::v1::{LogLine, LogsRequest};

use super::{CallError, Client, Result, is_passing, runs};
use crate::failure::Failure;

/// Between a stream that broke and the next: an election takes longer.
const PAUSE: Duration = Duration::from_millis(200);

impl Client {
    /// Each line once: a stream that breaks begins again behind the last one.
    pub(crate) async fn logs(
        &mut self,
        run: &str,
        follow: bool,
        show: impl Fn(LogLine) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut request = LogsRequest { run: run.to_owned(), follow, after: String::new() };
        loop {
            let opened = self.call(|line| {
                let request = request.clone();
                async move { runs(line).logs(request).await }
            });
            let mut lines = opened.await?;
            loop {
                match lines.message().await {
                    Ok(Some(line)) => {
                        request.after.clone_from(&line.position);
                        show(line)?;
                    }
                    Ok(None) => return Ok(()),
                    // Its leader has gone.
                    Err(status) if is_passing(&status) => break,
                    Err(status) => {
                        return Err(CallError::Refused { status, is_repeated: false }.into());
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

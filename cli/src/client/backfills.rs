//! The backfills of a cluster.

use std::time::Duration;

use tonic::Code;
use weir_proto::v1::backfills_client::BackfillsClient;
use weir_proto::v1::{
    AuditBackfillRequest, Backfill, BackfillAudit, BackfillStatus, CancelBackfillRequest,
    CreateBackfillRequest, CreateBackfillResponse, GetBackfillRequest, ListBackfillsRequest,
    ListWindowsRequest, ListWindowsResponse, PauseBackfillRequest, ResumeBackfillRequest,
    RetryWindowsRequest, SetPriorityRequest, WatchBackfillRequest,
};

use super::access::Line;
use super::members::LEARN_EVERY;
use super::{CallError, Client, MAX_MESSAGE_BYTES, Result, is_passing, new_request_id};

/// Between a stream that broke and the next: an election takes longer.
const PAUSE: Duration = Duration::from_millis(200);

impl Client {
    /// Begins no second backfill when it is repeated: the request has an id.
    pub(crate) async fn create_backfill(
        &mut self,
        request: CreateBackfillRequest,
    ) -> Result<CreateBackfillResponse> {
        self.call(move |line| {
            let request = request.clone();
            async move { backfills(line).create(request).await }
        })
        .await
    }

    pub(crate) async fn backfill(&mut self, id: &str) -> Result<Backfill> {
        let request = GetBackfillRequest { backfill: id.to_owned() };
        self.call(move |line| {
            let request = request.clone();
            async move { backfills(line).get(request).await }
        })
        .await
    }

    pub(crate) async fn backfills(&mut self, pipeline: Option<&str>) -> Result<Vec<Backfill>> {
        let request = ListBackfillsRequest { pipeline: pipeline.unwrap_or_default().to_owned() };
        let answer = self.call(move |line| {
            let request = request.clone();
            async move { backfills(line).list(request).await }
        });
        Ok(answer.await?.backfills)
    }

    pub(crate) async fn windows(
        &mut self,
        request: ListWindowsRequest,
    ) -> Result<ListWindowsResponse> {
        self.call(move |line| {
            let request = request.clone();
            async move { backfills(line).list_windows(request).await }
        })
        .await
    }

    pub(crate) async fn pause_backfill(&mut self, id: &str) -> Result<Backfill> {
        let request =
            PauseBackfillRequest { backfill: id.to_owned(), request_id: new_request_id() };
        self.call(move |line| {
            let request = request.clone();
            async move { backfills(line).pause(request).await }
        })
        .await
    }

    pub(crate) async fn resume_backfill(&mut self, id: &str) -> Result<Backfill> {
        let request =
            ResumeBackfillRequest { backfill: id.to_owned(), request_id: new_request_id() };
        self.call(move |line| {
            let request = request.clone();
            async move { backfills(line).resume(request).await }
        })
        .await
    }

    pub(crate) async fn cancel_backfill(&mut self, id: &str) -> Result<Backfill> {
        let request =
            CancelBackfillRequest { backfill: id.to_owned(), request_id: new_request_id() };
        self.call(move |line| {
            let request = request.clone();
            async move { backfills(line).cancel(request).await }
        })
        .await
    }

    pub(crate) async fn prioritise_backfill(
        &mut self,
        id: &str,
        priority: i32,
    ) -> Result<Backfill> {
        let request =
            SetPriorityRequest { backfill: id.to_owned(), priority, request_id: new_request_id() };
        self.call(move |line| {
            let request = request.clone();
            async move { backfills(line).set_priority(request).await }
        })
        .await
    }

    pub(crate) async fn retry_windows(&mut self, request: RetryWindowsRequest) -> Result<Backfill> {
        let id = request.backfill.clone();
        let answer = self.call(move |line| {
            let request = request.clone();
            async move { backfills(line).retry_windows(request).await }
        });
        match answer.await {
            // By the first request, whose answer was lost.
            Err(CallError::Refused { status, is_repeated: true })
                if status.code() == Code::FailedPrecondition =>
            {
                self.backfill(&id).await
            }
            answer => answer,
        }
    }

    pub(crate) async fn audit_backfill(&mut self, id: &str) -> Result<BackfillAudit> {
        let request = AuditBackfillRequest { backfill: id.to_owned() };
        self.call(move |line| {
            let request = request.clone();
            async move { backfills(line).audit(request).await }
        })
        .await
    }

    /// The backfill as it ended, whoever leads the cluster meanwhile.
    pub(crate) async fn watch_backfill(
        &mut self,
        id: &str,
        mut show: impl FnMut(&Backfill),
    ) -> Result<Backfill> {
        let request = WatchBackfillRequest { backfill: id.to_owned() };
        loop {
            let opened = self.call(|line| {
                let request = request.clone();
                async move { backfills(line).watch(request).await }
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
                let backfill = match message {
                    Ok(Some(backfill)) => backfill,
                    // Its leader has gone.
                    Ok(None) => break,
                    Err(status) if is_passing(&status) => break,
                    Err(status) => return Err(CallError::Refused { status, is_repeated: false }),
                };
                show(&backfill);
                if is_over(&backfill) {
                    return Ok(backfill);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn backfills(line: Line) -> BackfillsClient<Line> {
    BackfillsClient::new(line).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn is_over(backfill: &Backfill) -> bool {
    match backfill.status() {
        BackfillStatus::Finished => true,
        BackfillStatus::Cancelled => backfill.running == 0,
        BackfillStatus::Running | BackfillStatus::Paused | BackfillStatus::Unspecified => false,
    }
}

//! `weir.v1.Backfills`: what clients ask of the leader about backfills.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weir_ledger::{Again, BackfillChange, BackfillFacts, BackfillId, WindowState};
use weir_proto::v1;
use weir_proto::v1::backfills_server::Backfills;

use super::backfills::{WantedBackfill, bounds};
use super::convert::{time, window_of};
use super::leading::Leading;
use super::runs_service::{self, RunsService};
use super::{audit_log, backfill_audit, convert};
use crate::RunRequest;

/// Windows at once, where the client does not say.
const PARALLEL: u32 = 4;
/// Of a list of windows.
const LONGEST_PAGE: u32 = 1_000;
/// Between two looks of a watcher.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

/// Finds the leader, and says what has failed, as the service of runs does.
#[derive(Clone, Debug)]
pub(super) struct BackfillsService(pub(super) RunsService);

type Answer<T> = Result<Response<T>, Status>;

impl BackfillsService {
    async fn shown(&self, leading: &Leading, id: &str) -> Result<v1::Backfill, Status> {
        let shown = leading.with_backfill(id, convert::backfill).await;
        shown.map_err(|error| self.0.failed(&error))
    }

    async fn change(
        &self,
        id: &str,
        change: BackfillChange,
        request_id: &str,
    ) -> Answer<v1::Backfill> {
        audit_log::about(id);
        runs_service::check_request_id(request_id)?;
        let leading = self.0.leading().await?;
        let changed = leading.change_backfill(id, change, request_id).await;
        let backfill = changed.map_err(|error| self.0.failed(&error))?;
        Ok(Response::new(self.shown(&leading, &backfill.0).await?))
    }
}

#[tonic::async_trait]
impl Backfills for BackfillsService {
    async fn create(
        &self,
        request: Request<v1::CreateBackfillRequest>,
    ) -> Answer<v1::CreateBackfillResponse> {
        let leading = self.0.leading().await?;
        let request = request.into_inner();
        let (from, to) =
            (runs_service::time("from", &request.from)?, runs_service::time("to", &request.to)?);
        let (step, parallel, priority) = (request.step, request.parallel, request.priority);
        let submit = v1::SubmitRequest {
            pipeline: request.pipeline,
            file_name: request.file_name,
            base_dir: request.base_dir,
            params: request.params,
            workspace: request.workspace,
            request_id: request.request_id,
            registered: request.registered,
            version: request.version,
            ..v1::SubmitRequest::default()
        };
        let (submit, version) = self.0.with_file(&leading, submit).await?;
        let (parsed, base_dir, request) = runs_service::read(&submit)?;
        let request = RunRequest { version, ..request };
        let parallel = if parallel == 0 { PARALLEL } else { parallel };
        let wanted = WantedBackfill { request, from, to, step, parallel, priority };
        // A client that goes away does not stop what has begun.
        let creating = {
            let leading = Arc::clone(&leading);
            tokio::spawn(async move {
                leading.create_backfill(&parsed.spec, &submit.pipeline, base_dir, wanted).await
            })
        };
        let created = creating.await.map_err(|error| Status::internal(error.to_string()))?;
        let (backfill, is_new) = created.map_err(|error| self.0.failed(&error))?;
        audit_log::about(&backfill.0);
        let backfill = Some(self.shown(&leading, &backfill.0).await?);
        Ok(Response::new(v1::CreateBackfillResponse { backfill, is_new }))
    }

    async fn get(&self, request: Request<v1::GetBackfillRequest>) -> Answer<v1::Backfill> {
        let leading = self.0.leading().await?;
        Ok(Response::new(self.shown(&leading, &request.into_inner().backfill).await?))
    }

    async fn list(
        &self,
        request: Request<v1::ListBackfillsRequest>,
    ) -> Answer<v1::ListBackfillsResponse> {
        let leading = self.0.leading().await?;
        let pipeline = request.into_inner().pipeline;
        let backfills = leading
            .with_ledger(|ledger| {
                (ledger.backfills.iter())
                    .filter(|(_, facts)| pipeline.is_empty() || facts.pipeline.0 == pipeline)
                    .map(|(id, facts)| convert::backfill(id, facts))
                    .collect()
            })
            .await;
        Ok(Response::new(v1::ListBackfillsResponse { backfills }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::Backfill, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchBackfillRequest>) -> Answer<Self::WatchStream> {
        let leading = self.0.leading().await?;
        let mut shown = self.shown(&leading, &request.into_inner().backfill).await?;
        // A watcher does not keep a leadership that is over.
        let leading = Arc::downgrade(&leading);
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let service = self.clone();
        tokio::spawn(async move {
            loop {
                let id = shown.backfill.clone();
                let is_over = is_over(&shown);
                if sender.send(Ok(shown.clone())).await.is_err() || is_over {
                    return;
                }
                shown = loop {
                    tokio::select! {
                        () = tokio::time::sleep(BETWEEN_LOOKS) => {}
                        () = sender.closed() => return,
                    }
                    let now = match (leading.upgrade(), service.0.node.is_leading()) {
                        (Some(leading), Some(_)) => service.shown(&leading, &id).await,
                        _ => Err(service.0.node.not_leading(Status::unavailable)),
                    };
                    match now {
                        Ok(now) if now == shown => {}
                        Ok(now) => break now,
                        Err(status) => {
                            let _ = sender.send(Err(status)).await;
                            return;
                        }
                    }
                };
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    async fn pause(&self, request: Request<v1::PauseBackfillRequest>) -> Answer<v1::Backfill> {
        let v1::PauseBackfillRequest { backfill, request_id } = request.into_inner();
        self.change(&backfill, BackfillChange::Pause, &request_id).await
    }

    async fn resume(&self, request: Request<v1::ResumeBackfillRequest>) -> Answer<v1::Backfill> {
        let v1::ResumeBackfillRequest { backfill, request_id } = request.into_inner();
        self.change(&backfill, BackfillChange::Resume, &request_id).await
    }

    async fn cancel(&self, request: Request<v1::CancelBackfillRequest>) -> Answer<v1::Backfill> {
        let v1::CancelBackfillRequest { backfill, request_id } = request.into_inner();
        self.change(&backfill, BackfillChange::Cancel, &request_id).await
    }

    async fn set_priority(&self, request: Request<v1::SetPriorityRequest>) -> Answer<v1::Backfill> {
        let v1::SetPriorityRequest { backfill, priority, request_id } = request.into_inner();
        self.change(&backfill, BackfillChange::SetPriority(priority), &request_id).await
    }

    async fn retry_windows(
        &self,
        request: Request<v1::RetryWindowsRequest>,
    ) -> Answer<v1::Backfill> {
        let v1::RetryWindowsRequest { backfill, windows, fresh, request_id } = request.into_inner();
        let windows = Some(windows).filter(|windows| !windows.is_empty());
        let again = if fresh { Again::Fresh } else { Again::GoOn };
        self.change(&backfill, BackfillChange::Retry { windows, again }, &request_id).await
    }

    async fn list_windows(
        &self,
        request: Request<v1::ListWindowsRequest>,
    ) -> Answer<v1::ListWindowsResponse> {
        let leading = self.0.leading().await?;
        let request = request.into_inner();
        let wanted = match request.status() {
            v1::WindowStatus::Unspecified => None,
            v1::WindowStatus::Pending => Some(WindowState::Pending),
            v1::WindowStatus::Running => Some(WindowState::Running),
            v1::WindowStatus::Finished => Some(WindowState::Finished),
            v1::WindowStatus::Failed => Some(WindowState::Failed),
        };
        let limit = match request.limit {
            0 => LONGEST_PAGE,
            limit => limit.min(LONGEST_PAGE),
        };
        let page = leading
            .with_backfill(&request.backfill, |id, facts| {
                page(id, facts, wanted, request.start, limit as usize)
            })
            .await;
        Ok(Response::new(page.map_err(|error| self.0.failed(&error))?))
    }

    async fn audit(&self, request: Request<v1::AuditBackfillRequest>) -> Answer<v1::BackfillAudit> {
        let leading = self.0.leading().await?;
        let audited = backfill_audit::audit(&leading, &request.into_inner().backfill).await;
        Ok(Response::new(audited.map_err(|error| self.0.failed(&error))?))
    }
}

/// Nothing changes any more by itself.
fn is_over(backfill: &v1::Backfill) -> bool {
    match backfill.status() {
        v1::BackfillStatus::Finished => true,
        v1::BackfillStatus::Cancelled => backfill.running == 0,
        v1::BackfillStatus::Running
        | v1::BackfillStatus::Paused
        | v1::BackfillStatus::Unspecified => false,
    }
}

fn page(
    id: &BackfillId,
    facts: &BackfillFacts,
    wanted: Option<WindowState>,
    start: u32,
    limit: usize,
) -> v1::ListWindowsResponse {
    let bounds = bounds(facts).ok();
    let is_wanted = |window: &u32| wanted.is_none_or(|state| facts.window(*window) == Some(state));
    let mut found = (start..facts.range.count).filter(is_wanted);
    let windows = (found.by_ref().take(limit))
        .map(|window| {
            let bounds = bounds.as_ref().and_then(|all| all.get(window));
            let (start, end) =
                bounds.map(|(start, end)| (time(start), time(end))).unwrap_or_default();
            v1::Window { start, end, ..window_of(id, facts, window) }
        })
        .collect();
    v1::ListWindowsResponse { windows, next: found.next() }
}

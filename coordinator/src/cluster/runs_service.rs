//! `weir.v1.Runs`: what clients ask of the leader.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt as _};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weir_connectors::Redactor;
use weir_ledger::{RunFacts, RunId, RunState};
use weir_proto::v1;
use weir_proto::v1::run_update::Update as Shown;
use weir_proto::v1::runs_server::Runs;
use weir_spec::{Parsed, PipelineName, SharedConnections, render_diagnostics};

use super::leading::{Leading, Update};
use super::node::Node;
use super::{audit_log, convert, logs};
use crate::choose::find_run;
use crate::frozen::Registered;
use crate::{EngineError, RunRequest};

/// Bytes of a pipeline file.
const LONGEST_PIPELINE: usize = 1 << 20;
const LONGEST_REQUEST_ID: usize = 128;

/// To look at a run for a watcher takes at most the n-th part of the time.
const SHARE_OF_LOOKING: u32 = 5;

#[derive(Clone, Debug)]
pub(super) struct RunsService {
    pub(super) node: Arc<Node>,
    pub(super) redactor: Redactor,
}

impl RunsService {
    pub(super) async fn leading(&self) -> Result<Arc<Leading>, Status> {
        self.node.sure_to_lead().await
    }

    pub(super) fn failed(&self, error: &EngineError) -> Status {
        match error {
            EngineError::Ledger { .. } if self.node.is_leading().is_none() => {
                convert::unknown(self.node.not_leading(Status::unavailable))
            }
            error => convert::status_of(error, &self.redactor),
        }
    }

    /// A request that names a registered pipeline gets its file, and the number of its version.
    pub(super) async fn with_file(
        &self,
        leading: &Leading,
        request: v1::SubmitRequest,
    ) -> Result<(v1::SubmitRequest, Option<u32>), Status> {
        if request.registered.is_empty() {
            return Ok((request, None));
        }
        if !request.pipeline.is_empty() {
            return Err(Status::invalid_argument(
                "a request has either a file or the name of a registered pipeline",
            ));
        }
        let pipeline = PipelineName(request.registered.clone());
        let version = match request.version {
            // The newest when it came for the first time.
            0 => leading.version_meant(&request.request_id, &pipeline).await,
            version => version,
        };
        let found = leading.registered(&pipeline, version).await;
        let (version, registered) = found.map_err(|error| self.failed(&error))?;
        let Registered { text, workspace, file_name, base_dir } = registered;
        let base_dir = base_dir.display().to_string();
        let request =
            v1::SubmitRequest { pipeline: text, workspace, file_name, base_dir, ..request };
        Ok((request, Some(version.version)))
    }

    async fn answer(&self, leading: &Leading, run: &str) -> Result<Response<v1::Run>, Status> {
        let (id, facts) = leading.find(run).await.map_err(|error| self.failed(&error))?;
        Ok(Response::new(convert::run(&id, &facts, &leading.pool.running(&id))))
    }
}

#[tonic::async_trait]
impl Runs for RunsService {
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let leading = self.leading().await?;
        let (request, version) = self.with_file(&leading, request.into_inner()).await?;
        let (parsed, base_dir, wanted) = read(&request)?;
        audit_log::about(&parsed.spec.pipeline.0);
        let wanted = RunRequest { version, ..wanted };
        // A client that goes away does not stop what has begun.
        let text = request.pipeline;
        let submitting =
            tokio::spawn(
                async move { leading.submit(&parsed.spec, &text, base_dir, wanted).await },
            );
        let submitted = submitting.await.map_err(|error| Status::internal(error.to_string()))?;
        let submitted = submitted.map_err(|error| self.failed(&error))?;
        audit_log::about(&submitted.run.0);
        Ok(Response::new(convert::submitted(submitted)))
    }

    async fn get(&self, request: Request<v1::GetRunRequest>) -> Result<Response<v1::Run>, Status> {
        let leading = self.leading().await?;
        self.answer(&leading, &request.into_inner().run).await
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        let leading = self.leading().await?;
        let request = request.into_inner();
        // A page only is copied while the ledger is held.
        let page = leading.with_ledger(|ledger| {
            let (id, facts) = find_run(ledger, &request.run)?;
            Ok(super::tasks::page(facts, &leading.pool.running(id), &request))
        });
        let (tasks, next_page_token) = match page.await {
            Ok(page) => page?,
            Err(EngineError::NotFound(_)) => {
                let found = leading.find(&request.run).await;
                let (_, facts) = found.map_err(|error| self.failed(&error))?;
                super::tasks::page(&facts, &[], &request)?
            }
            Err(error) => return Err(self.failed(&error)),
        };
        let epoch = leading.epoch;
        Ok(Response::new(v1::ListTasksResponse { tasks, next_page_token, epoch }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        let leading = self.leading().await?;
        let v1::ListRunsRequest { pipeline, limit } = request.into_inner();
        let limit = match usize::try_from(limit) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        };
        let (mut runs, left) = leading
            .with_ledger(|ledger| {
                let runs = (ledger.runs.iter().rev())
                    .filter(|(_, run)| pipeline.is_empty() || run.pipeline.0 == pipeline)
                    .take(limit)
                    .map(|(id, run)| convert::run(id, run, &[]));
                (runs.collect::<Vec<_>>(), ledger.runs_left)
            })
            .await;
        runs.reverse();
        Ok(Response::new(v1::ListRunsResponse { runs, left }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::RunUpdate, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchRunRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let leading = self.leading().await?;
        let (run, _) =
            (leading.find(&request.into_inner().run).await).map_err(|error| self.failed(&error))?;
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let service = self.clone();
        tokio::spawn(async move {
            let ended = tell(&leading, &run, &sender).await;
            if ended.is_err() {
                let _ = sender.send(Err(service.node.not_leading(Status::unavailable))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::Run>, Status> {
        let leading = self.leading().await?;
        audit_log::about(&request.get_ref().run);
        let v1::CancelRunRequest { run, request_id } = request.into_inner();
        check_request_id(&request_id)?;
        let cancelled = leading.cancel(&run, &request_id).await;
        let run = cancelled.map_err(|error| self.failed(&error))?;
        self.answer(&leading, &run.0).await
    }

    async fn retry(
        &self,
        request: Request<v1::RetryRunRequest>,
    ) -> Result<Response<v1::Run>, Status> {
        let leading = self.leading().await?;
        audit_log::about(&request.get_ref().run);
        // As in `submit`: what is in the ledger has a session.
        let v1::RetryRunRequest { run, request_id } = request.into_inner();
        check_request_id(&request_id)?;
        let retrying = tokio::spawn({
            let leading = Arc::clone(&leading);
            async move { leading.retry(&run, &request_id).await }
        });
        let retried = retrying.await.map_err(|error| Status::internal(error.to_string()))?;
        let run = retried.map_err(|error| self.failed(&error))?;
        self.answer(&leading, &run.0).await
    }

    type LogsStream = ReceiverStream<Result<v1::LogLine, Status>>;

    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let leading = self.leading().await?;
        let v1::LogsRequest { run, follow, after } = request.into_inner();
        let position = match after.is_empty() {
            true => None,
            false => Some(after.parse().map_err(Status::invalid_argument)?),
        };
        let (run, facts) = leading.find(&run).await.map_err(|error| self.failed(&error))?;
        let folder = leading.files(&facts).run(&run).storage().clone();
        let lines = logs::stream(Arc::clone(&self.node), &leading, run, folder, position, follow);
        Ok(Response::new(ReceiverStream::new(lines)))
    }

    type DeadLettersStream = ReceiverStream<Result<v1::DeadLetter, Status>>;

    async fn dead_letters(
        &self,
        request: Request<v1::DeadLettersRequest>,
    ) -> Result<Response<Self::DeadLettersStream>, Status> {
        let leading = self.leading().await?;
        let letters = leading.dead_letters(request.into_inner()).await;
        let letters = letters.map_err(|error| self.failed(&error))?;
        Ok(Response::new(ReceiverStream::new(letters)))
    }

    async fn audit(
        &self,
        request: Request<v1::AuditRunRequest>,
    ) -> Result<Response<v1::AuditReport>, Status> {
        let leading = self.leading().await?;
        let report = leading.audit(&request.into_inner().run).await;
        Ok(Response::new(convert::audit(report.map_err(|error| self.failed(&error))?)))
    }
}

/// Between two looks at a run that waits for its turn.
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);

/// The watcher is gone, or the run has ended; `Err`: this coordinator no longer knows.
async fn tell(
    leading: &Leading,
    run: &RunId,
    sender: &tokio::sync::mpsc::Sender<Result<v1::RunUpdate, Status>>,
) -> Result<(), ()> {
    // Asked for before the state is looked at, so that no change falls in between.
    let mut updates = leading.watch(run);
    loop {
        let looking = Instant::now();
        // One that has ended may have left the ledger.
        let (_, facts) = leading.find(&run.0).await.map_err(drop)?;
        let shown = convert::run(run, &facts, &leading.pool.running(run));
        // Of a run with very many slices that takes a while, and appends wait for some of it.
        let rest_until = looking + looking.elapsed() * SHARE_OF_LOOKING;
        if sender.send(Ok(update(Shown::Run(shown)))).await.is_err() || is_over(&facts) {
            return Ok(());
        }
        if facts.state == RunState::Queued {
            wait_for_turn(leading, run, sender).await?;
            updates = leading.watch(run);
            continue;
        }
        let Some(receiver) = &mut updates else { return Err(()) };
        loop {
            let received = tokio::select! {
                biased;
                received = receiver.recv() => received,
                () = sender.closed() => return Ok(()),
            };
            match received {
                Ok(Update::Note(note)) => {
                    if sender.send(Ok(update(Shown::Note(note)))).await.is_err() {
                        return Ok(());
                    }
                }
                // What has piled up meanwhile is one change.
                Ok(Update::State) if !receiver.is_empty() => {}
                Ok(Update::State) | Err(RecvError::Lagged(_)) => {
                    tokio::time::sleep_until(rest_until).await;
                    break;
                }
                Err(RecvError::Closed) => {
                    updates = None;
                    break;
                }
            }
        }
    }
}

/// Until the run waits no longer.
async fn wait_for_turn(
    leading: &Leading,
    run: &RunId,
    sender: &tokio::sync::mpsc::Sender<Result<v1::RunUpdate, Status>>,
) -> Result<(), ()> {
    loop {
        if leading.has_ended() {
            return Err(());
        }
        let state = leading.with_ledger(|ledger| ledger.run(run).map(|run| run.state.clone()));
        // One that has begun has a session soon.
        match state.await {
            Some(RunState::Queued) => {}
            Some(RunState::Running) if leading.watch(run).is_none() => {}
            _ => return Ok(()),
        }
        tokio::select! {
            () = tokio::time::sleep(BETWEEN_LOOKS) => {}
            () = sender.closed() => return Ok(()),
        }
    }
}

fn is_over(facts: &RunFacts) -> bool {
    !matches!(facts.state, RunState::Queued | RunState::Running)
}

fn update(update: Shown) -> v1::RunUpdate {
    v1::RunUpdate { update: Some(update) }
}

/// What a client wants, checked.
pub(super) fn read(request: &v1::SubmitRequest) -> Result<(Parsed, PathBuf, RunRequest), Status> {
    let invalid = |text: String| Status::invalid_argument(text);
    check_request_id(&request.request_id)?;
    let registered = Registered {
        text: request.pipeline.clone(),
        workspace: request.workspace.clone(),
        file_name: request.file_name.clone(),
        base_dir: PathBuf::from(&request.base_dir),
    };
    let parsed = parse(&registered)?;
    let base_dir = registered.base_dir;
    let mut params = BTreeMap::new();
    for (name, json) in &request.params {
        let value = serde_json::from_str(json)
            .map_err(|error| invalid(format!("parameter `{name}` is not JSON: {error}")))?;
        params.insert(name.clone(), value);
    }
    let window = match (request.window_start.as_str(), request.window_end.as_str()) {
        ("", "") => None,
        (start, end) => Some((time("window_start", start)?, time("window_end", end)?)),
    };
    if window.is_some_and(|(start, end)| start >= end) {
        return Err(invalid("the window ends before it starts".to_owned()));
    }
    let request = RunRequest {
        params,
        window,
        fresh: request.fresh,
        request_id: Some(request.request_id.clone()).filter(|id| !id.is_empty()),
        ..RunRequest::default()
    };
    Ok((parsed, base_dir, request))
}

pub(super) fn check_request_id(id: &str) -> Result<(), Status> {
    match id.len() > LONGEST_REQUEST_ID {
        true => Err(Status::invalid_argument(format!(
            "the request id has more than {LONGEST_REQUEST_ID} bytes"
        ))),
        false => Ok(()),
    }
}

/// A pipeline file that a client has sent; its mistakes are the answer.
pub(super) fn parse(sent: &Registered) -> Result<Parsed, Status> {
    let invalid = |text: String| Status::invalid_argument(text);
    if sent.text.len() > LONGEST_PIPELINE || sent.workspace.len() > LONGEST_PIPELINE {
        return Err(invalid(format!("the pipeline has more than {LONGEST_PIPELINE} bytes")));
    }
    if !sent.base_dir.is_absolute() {
        let base_dir = sent.base_dir.display();
        return Err(invalid(format!("base_dir `{base_dir}` is not an absolute path")));
    }
    let name = if sent.file_name.is_empty() { "pipeline.yaml" } else { &sent.file_name };
    let shared = match sent.workspace.is_empty() {
        true => SharedConnections::default(),
        false => weir_spec::parse_workspace("weir.yaml", &sent.workspace)
            .map_err(|mistakes| invalid(render_diagnostics(&mistakes, &sent.workspace)))?,
    };
    weir_spec::parse_with(name, &sent.text, &shared)
        .map_err(|mistakes| invalid(render_diagnostics(&mistakes, &sent.text)))
}

pub(super) fn time(name: &str, text: &str) -> Result<DateTime<Utc>, Status> {
    let parsed = DateTime::parse_from_rfc3339(text);
    parsed.map(|time| time.with_timezone(&Utc)).map_err(|error| {
        Status::invalid_argument(format!("{name} `{text}` is not a time of RFC 3339: {error}"))
    })
}

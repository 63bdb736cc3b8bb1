//! Asks a cluster: finds its leader among the coordinators, and goes on asking when one of them ends.
//!
//! ```text
//! ClusterArgs ─endpoints─▶ URLs ─search─▶ leader ─▶ answer ─convert─▶ what the embedded engine returns
//! ```

mod access;
mod backfills;
pub(crate) mod convert;
mod endpoints;
mod logs;
mod members;
mod pipelines;
mod replays;
mod search;
mod state;
mod status;
#[cfg(test)]
mod tests;
mod tokens;
mod watch;

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Response, Status};
use weir_proto::v1::runs_client::RunsClient;
use weir_proto::v1::{
    AuditReport, AuditRunRequest, CancelRunRequest, DeadLetter, DeadLettersRequest, GetRunRequest,
    ListRunsRequest, ListRunsResponse, ListTasksRequest, RetryRunRequest, Run, RunStatus,
    SubmitRequest, SubmitResponse, Task,
};

use crate::args::ClusterArgs;
use crate::failure::Failure;
use crate::token;

pub(crate) use access::Access;
use access::Line;
pub(crate) use endpoints::Endpoints;
use search::{Next, Search};
pub(crate) use status::{Standing, standings};

/// How long a leader is looked for, from the last answer on.
const PATIENCE: Duration = Duration::from_secs(30);
/// A list of all runs may be long.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// One cluster. Every method asks the leader, whichever coordinator that is by then.
#[derive(Debug)]
pub(crate) struct Client {
    search: Search,
    access: Access,
    lines: HashMap<String, Line>,
    patience: Duration,
}

/// Why the cluster did not do what was asked.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The leader's answer.
    Refused {
        status: Status,
        /// The request had been sent before, and its answer was lost: it may have been done.
        is_repeated: bool,
    },
    /// No leader in all that time. The message is complete.
    Unreachable(String),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable(message) => Failure::Unreachable(message),
            CallError::Refused { status, .. } => match status.code() {
                Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition => Failure::Usage(status.message().to_owned()),
                Code::Unauthenticated => Failure::Usage(format!(
                    "refused: {} (`--token-file FILE`, or the environment variable {})",
                    status.message(),
                    token::VARIABLE
                )),
                Code::PermissionDenied => {
                    Failure::Usage(format!("not allowed: {}", status.message()))
                }
                Code::Unimplemented => Failure::Run(format!(
                    "the cluster cannot do this: {} (is it of another version?)",
                    status.message()
                )),
                _ => Failure::Run(status.message().to_owned()),
            },
        }
    }
}

type Result<T, E = CallError> = std::result::Result<T, E>;

impl Client {
    /// `None` when no cluster is named: the state folder is meant.
    pub(crate) fn named(args: &ClusterArgs) -> Result<Option<Self>, Failure> {
        Ok(Endpoints::named(args)?.map(Self::of))
    }

    /// For commands that only a cluster understands.
    pub(crate) fn required(args: &ClusterArgs) -> Result<Self, Failure> {
        Ok(Self::of(Endpoints::required(args)?))
    }

    fn of(endpoints: Endpoints) -> Self {
        Self::new(endpoints.urls, endpoints.access)
    }

    pub(crate) fn new(urls: Vec<String>, access: Access) -> Self {
        Self { search: Search::new(urls), access, lines: HashMap::new(), patience: PATIENCE }
    }

    /// The answer to a request that starts no second run when it is repeated: it has an id.
    pub(crate) async fn submit(&mut self, request: SubmitRequest) -> Result<SubmitResponse> {
        self.call(move |line| {
            let request = request.clone();
            async move { runs(line).submit(request).await }
        })
        .await
    }

    pub(crate) async fn run(&mut self, run: &str) -> Result<Run> {
        let request = GetRunRequest { run: run.to_owned() };
        self.call(move |line| {
            let request = request.clone();
            async move { runs(line).get(request).await }
        })
        .await
    }

    /// All of them, by stage and slice.
    pub(crate) async fn tasks(&mut self, run: &str) -> Result<Vec<Task>> {
        let mut tasks = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListTasksRequest { run: run.to_owned(), page_token, page_size: 0 };
            let answer = self.call(move |line| {
                let request = request.clone();
                async move { runs(line).list_tasks(request).await }
            });
            let answer = answer.await?;
            tasks.extend(answer.tasks);
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                return Ok(tasks);
            }
        }
    }

    pub(crate) async fn runs(
        &mut self,
        pipeline: Option<&str>,
        limit: u32,
    ) -> Result<ListRunsResponse> {
        let pipeline = pipeline.unwrap_or_default().to_owned();
        let request = ListRunsRequest { pipeline, limit };
        let answer = self.call(move |line| {
            let request = request.clone();
            async move { runs(line).list(request).await }
        });
        answer.await
    }

    pub(crate) async fn cancel(&mut self, run: &str) -> Result<Run> {
        let request = CancelRunRequest { run: run.to_owned(), request_id: new_request_id() };
        let answer = self.call(move |line| {
            let request = request.clone();
            async move { runs(line).cancel(request).await }
        });
        let answer = answer.await;
        self.or_done_before(run, answer, &[RunStatus::Failed]).await
    }

    pub(crate) async fn retry(&mut self, run: &str) -> Result<Run> {
        let request = RetryRunRequest { run: run.to_owned(), request_id: new_request_id() };
        let answer = self.call(move |line| {
            let request = request.clone();
            async move { runs(line).retry(request).await }
        });
        let answer = answer.await;
        self.or_done_before(run, answer, &[RunStatus::Running, RunStatus::Succeeded]).await
    }

    pub(crate) async fn audit(&mut self, run: &str) -> Result<AuditReport> {
        let request = AuditRunRequest { run: run.to_owned() };
        self.call(move |line| {
            let request = request.clone();
            async move { runs(line).audit(request).await }
        })
        .await
    }

    /// With how many there are, if that is known: of all nodes.
    pub(crate) async fn dead_letters(
        &mut self,
        request: DeadLettersRequest,
    ) -> Result<(Vec<DeadLetter>, Option<u64>)> {
        let of_all = request.node.is_empty().then(|| request.run.clone());
        let opened = self.call(move |line| {
            let request = request.clone();
            async move { runs(line).dead_letters(request).await }
        });
        let mut stream = opened.await?;
        let mut letters = Vec::new();
        let refused = |status| CallError::Refused { status, is_repeated: false };
        while let Some(letter) = stream.message().await.map_err(refused)? {
            letters.push(letter);
        }
        let total = match of_all {
            Some(run) => Some(self.run(&run).await?.dead_letters),
            None => None,
        };
        Ok((letters, total))
    }

    /// The second of two equal requests finds the run as the first has made it, and is refused. A run that is
    /// otherwise is not the first one's work: the refusal stands.
    async fn or_done_before(
        &mut self,
        run: &str,
        answer: Result<Run>,
        done: &[RunStatus],
    ) -> Result<Run> {
        let refusal = match answer {
            Err(CallError::Refused { status, is_repeated: true })
                if status.code() == Code::FailedPrecondition =>
            {
                status
            }
            answer => return answer,
        };
        let run = self.run(run).await?;
        match done.contains(&run.status()) {
            true => Ok(run),
            false => Err(CallError::Refused { status: refusal, is_repeated: true }),
        }
    }

    /// Asks one coordinator after the other until the leader answers.
    async fn call<T, Answer>(&mut self, ask: impl Fn(Line) -> Answer) -> Result<T>
    where
        Answer: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let started = Instant::now();
        let mut is_repeated = false;
        self.search.begin();
        loop {
            let url = self.search.url().to_owned();
            let status = match self.line(&url) {
                Ok(line) => match ask(line).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) if !is_passing(&status) => {
                        return Err(CallError::Refused { status, is_repeated });
                    }
                    Err(status) => status,
                },
                Err(error) => Status::unavailable(error),
            };
            if let Some(pause) = pushback(&status) {
                if started.elapsed() >= self.patience {
                    return Err(CallError::Refused { status, is_repeated });
                }
                tokio::time::sleep(pause).await;
                continue;
            }
            is_repeated |= may_have_arrived(&status);
            let leader = leader_in(&status);
            let next = self.search.refused(said(&status), leader);
            if started.elapsed() >= self.patience {
                return Err(CallError::Unreachable(self.search.report(self.patience)));
            }
            if let Next::After(pause) = next {
                tokio::time::sleep(pause).await;
            }
        }
    }

    fn line(&mut self, url: &str) -> std::result::Result<Line, String> {
        if let Some(line) = self.lines.get(url) {
            return Ok(line.clone());
        }
        let line = self.access.line(url)?;
        self.lines.insert(url.to_owned(), line.clone());
        Ok(line)
    }
}

/// Of a command, which asks until it is answered: what it wants is done once.
pub(crate) fn new_request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn runs(line: Line) -> RunsClient<Line> {
    RunsClient::new(line).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// Another coordinator may answer, or the same one later.
fn is_passing(status: &Status) -> bool {
    status.code() == Code::Unavailable || is_from_transport(status) || pushback(status).is_some()
}

/// When to come again, after too much was asked for at once.
fn pushback(status: &Status) -> Option<Duration> {
    let hint = status.metadata().get("grpc-retry-pushback-ms")?.to_str().ok()?;
    let hint = (status.code() == Code::ResourceExhausted).then_some(hint)?;
    hint.parse().ok().map(Duration::from_millis)
}

/// Not said by a coordinator: the connection was not made, or broke.
fn is_from_transport(status: &Status) -> bool {
    status.source().is_some()
}

/// The connection broke before the answer, or the leader does not know either whether it has been done. A
/// connection that was never made has carried nothing.
fn may_have_arrived(status: &Status) -> bool {
    let is_broken =
        is_from_transport(status) && !chain(status).any(|text| text.contains("Connection refused"));
    is_broken || status.metadata().get("weir-outcome").is_some_and(|outcome| outcome == "unknown")
}

fn leader_in(status: &Status) -> Option<String> {
    let leader = status.metadata().get("weir-leader")?.to_str().ok()?;
    (!leader.is_empty()).then(|| leader.to_owned())
}

/// The last cause says most: `transport error` alone says nothing.
fn said(status: &Status) -> String {
    match chain(status).last() {
        Some(cause) => cause,
        None => status.message().to_owned(),
    }
}

fn chain(status: &Status) -> impl Iterator<Item = String> + '_ {
    std::iter::successors(status.source(), |error: &&dyn Error| (*error).source())
        .map(|error| error.to_string())
}

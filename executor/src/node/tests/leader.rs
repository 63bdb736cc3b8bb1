//! A leader whose every word the test chooses.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::internal::answer::Outcome;
use weir_proto::internal::executors_server::{Executors, ExecutorsServer};
use weir_proto::internal::report::Fact;
use weir_proto::internal::to_executor::Message;
use weir_proto::internal::{
    Answer, Assign, FromExecutor, Hello, Report, Stop, StoredNoted, StoredOutput, TaskId,
    ToExecutor, Welcome, from_executor,
};

use weir_spec::NodeName;

use crate::{ProgressEvent, TaskEnd};

/// Long enough for a busy machine; what is waited for comes within milliseconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it happens soon")
}

pub(super) struct FakeLeader {
    pub(super) url: String,
    streams: mpsc::Receiver<LeaderStream>,
    _server: AbortOnDropHandle<()>,
}

/// One executor's stream; dropped, it ends.
pub(super) struct LeaderStream {
    pub(super) hello: Hello,
    incoming: Streaming<FromExecutor>,
    outgoing: mpsc::Sender<Result<ToExecutor, Status>>,
    /// In progress events so far.
    rows: HashMap<NodeName, u64>,
    /// On any stream.
    assigned: Arc<Mutex<Vec<TaskId>>>,
}

struct Service {
    streams: mpsc::Sender<LeaderStream>,
    /// Refuses, and names this one.
    leader: Option<String>,
    assigned: Arc<Mutex<Vec<TaskId>>>,
}

#[tonic::async_trait]
impl Executors for Service {
    type WorkStream = Pin<Box<dyn Stream<Item = Result<ToExecutor, Status>> + Send>>;

    async fn work(
        &self,
        request: Request<Streaming<FromExecutor>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        if let Some(leader) = &self.leader {
            let mut status = Status::failed_precondition("this coordinator does not lead");
            status.metadata_mut().insert("weir-leader", leader.parse().expect("a header"));
            return Err(status);
        }
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|first| first.message);
        let Some(from_executor::Message::Hello(hello)) = first else {
            return Err(Status::invalid_argument("the first message is no hello"));
        };
        let (outgoing, sent) = mpsc::channel(64);
        let (rows, assigned) = (HashMap::new(), Arc::clone(&self.assigned));
        let stream = LeaderStream { hello, incoming, outgoing, rows, assigned };
        self.streams.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(sent))))
    }
}

impl FakeLeader {
    pub(super) async fn start() -> Self {
        Self::serve(None).await
    }

    /// One that names another.
    pub(super) async fn pointing_at(leader: &FakeLeader) -> Self {
        Self::serve(Some(leader.url.clone())).await
    }

    async fn serve(leader: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, streams) = mpsc::channel(16);
        let assigned = Arc::default();
        let service = ExecutorsServer::new(Service { streams: sender, leader, assigned });
        let server = tokio::spawn(async move {
            let incoming = TcpIncoming::from(listener);
            let serving = Server::builder().add_service(service).serve_with_incoming(incoming);
            serving.await.expect("it serves");
        });
        Self { url, streams, _server: AbortOnDropHandle::new(server) }
    }

    /// The next stream, still without a welcome.
    pub(super) async fn accept(&mut self) -> LeaderStream {
        soon(self.streams.recv()).await.expect("the server runs")
    }

    pub(super) async fn welcome(&mut self, epoch: u64, keeps_tasks: bool) -> LeaderStream {
        let stream = self.accept().await;
        stream.welcome(epoch, keeps_tasks).await;
        stream
    }
}

impl LeaderStream {
    async fn send(&self, message: Message) {
        let sent = self.outgoing.send(Ok(ToExecutor { message: Some(message) })).await;
        sent.expect("the executor listens");
    }

    pub(super) async fn welcome(&self, epoch: u64, keeps_tasks: bool) {
        let tasks = self.assigned.lock().expect("no panic").clone();
        let coordinators = Vec::new();
        let welcome = Welcome { epoch, keeps_tasks, lease_millis: 3000, coordinators, tasks };
        self.send(Message::Welcome(welcome)).await;
    }

    pub(super) async fn assign(&self, assign: &Assign) {
        self.assigned.lock().expect("no panic").extend(assign.task.clone());
        self.send(Message::Assign(assign.clone())).await;
    }

    pub(super) async fn stop(&self, task: &TaskId) {
        self.send(Message::Stop(Stop { task: Some(task.clone()) })).await;
    }

    pub(super) async fn answer(&self, number: u64, outcome: Outcome) {
        let message = "the leader's reason".to_owned();
        self.send(Message::Answer(Answer { number, outcome: outcome.into(), message })).await;
    }

    pub(super) async fn note_stored(&self, output: &StoredOutput, is_wanted: bool) {
        let output = Some(output.clone());
        self.send(Message::StoredNoted(StoredNoted { output, is_wanted })).await;
    }

    /// Waits until the executor says that the storage has what it keeps.
    pub(super) async fn stored(&mut self) -> StoredOutput {
        loop {
            if let from_executor::Message::Stored(stored) = self.next().await {
                return stored;
            }
        }
    }

    /// Breaks the stream as a network does.
    pub(super) async fn fail(self) {
        let failed = self.outgoing.send(Err(Status::unavailable("the network broke"))).await;
        failed.expect("the executor listens");
    }

    pub(super) async fn next(&mut self) -> from_executor::Message {
        let message = soon(self.incoming.message()).await.expect("the stream is whole");
        let message = message.expect("the stream goes on").message.expect("a known message");
        if let from_executor::Message::Progress(progress) = &message
            && let ProgressEvent::Rows { node, rows, .. } =
                serde_json::from_slice(&progress.json).expect("an event")
        {
            *self.rows.entry(node).or_default() += rows;
        }
        message
    }

    pub(super) async fn report(&mut self) -> Report {
        loop {
            if let from_executor::Message::Report(report) = self.next().await {
                return report;
            }
        }
    }

    /// Waits for a heartbeat that says whether the executor is leaving.
    pub(super) async fn heartbeat(&mut self, draining: bool) {
        loop {
            if let from_executor::Message::Heartbeat(heartbeat) = self.next().await
                && heartbeat.draining == draining
            {
                return;
            }
        }
    }

    /// Waits for progress of a node until there has been so much of it on this stream.
    pub(super) async fn progress(&mut self, node: &NodeName, rows: u64) {
        soon(async {
            while self.rows.get(node).is_none_or(|seen| *seen < rows) {
                self.next().await;
            }
        })
        .await;
        assert_eq!(self.rows[node], rows);
    }

    /// Accepts everything, twice, until a task has ended.
    pub(super) async fn accept_until_end(&mut self) -> TaskEnd {
        loop {
            let report = self.report().await;
            self.answer(report.number, Outcome::Accepted).await;
            self.answer(report.number, Outcome::Fenced).await;
            if let Some(end) = end_of(&report) {
                return end;
            }
        }
    }
}

/// Passes everything on to the leader until `frozen`; then nothing any more, and no end of it either:
/// what a network does when a machine is gone.
pub(super) async fn freezing_proxy(leader: &FakeLeader, frozen: CancellationToken) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let target = leader.url.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        loop {
            let (mut from, _) = listener.accept().await.expect("a connection");
            let mut to = TcpStream::connect(&target).await.expect("the leader listens");
            let frozen = frozen.clone();
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = frozen.cancelled() => std::future::pending().await,
                    _ = copy_bidirectional(&mut from, &mut to) => {}
                }
            });
        }
    });
    url
}

pub(super) fn end_of(report: &Report) -> Option<TaskEnd> {
    match &report.fact {
        Some(Fact::End(json)) => Some(serde_json::from_slice(json).expect("a task's end")),
        _ => None,
    }
}

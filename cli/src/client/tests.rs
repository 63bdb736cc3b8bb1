//! The client with coordinators that say what a test wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, async_trait};
use weir_proto::v1::dead_letters_server::{DeadLetters, DeadLettersServer};
use weir_proto::v1::replay_request::Part;
use weir_proto::v1::run_update::Update;
use weir_proto::v1::runs_server::{Runs, RunsServer};
use weir_proto::v1::{
    ListRunsResponse, ListTasksResponse, LogLine, LogsRequest, ReplayRequest, ReplayStart,
    RunStatus, RunUpdate, WatchRunRequest,
};

use super::*;

/// A coordinator of the tests.
#[derive(Clone, Default)]
struct Fake {
    /// `None`: it leads itself.
    follows: Option<String>,
    /// How `Watch` answers, one stream after the other; the last one for ever.
    streams: Vec<Vec<Result<RunUpdate, Status>>>,
    watched: Arc<AtomicUsize>,
    refuses_retries: bool,
    /// Whether a retry is in the ledger.
    does_not_know: bool,
}

impl Fake {
    fn leads<T>(&self, answer: Result<T, Status>) -> Result<Response<T>, Status> {
        let Some(leader) = &self.follows else { return answer.map(Response::new) };
        let mut status = Status::unavailable("not the leader");
        if !leader.is_empty() {
            status.metadata_mut().insert("weir-leader", leader.parse().expect("it is ASCII"));
        }
        Err(status)
    }
}

fn run(status: RunStatus) -> Run {
    Run { run: "r-1".to_owned(), status: status.into(), ..Run::default() }
}

fn state(status: RunStatus) -> Result<RunUpdate, Status> {
    Ok(RunUpdate { update: Some(Update::Run(run(status))) })
}

#[async_trait]
impl Runs for Fake {
    async fn submit(&self, _: Request<SubmitRequest>) -> Result<Response<SubmitResponse>, Status> {
        self.leads(Ok(SubmitResponse {
            run: "r-1".to_owned(),
            is_new: true,
            ..SubmitResponse::default()
        }))
    }

    async fn get(&self, request: Request<GetRunRequest>) -> Result<Response<Run>, Status> {
        self.leads(match request.into_inner().run.as_str() {
            "r" => Ok(run(RunStatus::Failed)),
            other => Err(Status::not_found(format!("run `{other}` does not exist"))),
        })
    }

    async fn list(
        &self,
        _: Request<ListRunsRequest>,
    ) -> Result<Response<ListRunsResponse>, Status> {
        self.leads(Ok(ListRunsResponse { runs: vec![run(RunStatus::Failed)], left: 0 }))
    }

    async fn list_tasks(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let (slice, next) = match request.into_inner().page_token.as_str() {
            "" => (0, "1"),
            _ => (1, ""),
        };
        let tasks = vec![Task { slice, ..Task::default() }];
        self.leads(Ok(ListTasksResponse { tasks, next_page_token: next.to_owned(), epoch: 1 }))
    }

    type WatchStream = tokio_stream::Iter<std::vec::IntoIter<Result<RunUpdate, Status>>>;

    async fn watch(
        &self,
        _: Request<WatchRunRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let number = self.watched.fetch_add(1, Ordering::SeqCst);
        let stream = self.streams[number.min(self.streams.len() - 1)].clone();
        self.leads(Ok(tokio_stream::iter(stream)))
    }

    async fn cancel(&self, _: Request<CancelRunRequest>) -> Result<Response<Run>, Status> {
        self.leads(Err(Status::failed_precondition("run r-1 is over")))
    }

    async fn retry(&self, _: Request<RetryRunRequest>) -> Result<Response<Run>, Status> {
        if self.does_not_know {
            let mut status = Status::unavailable("no majority");
            status.metadata_mut().insert("weir-outcome", "unknown".parse().expect("it is ASCII"));
            return Err(status);
        }
        if self.refuses_retries {
            return Err(Status::failed_precondition("run r-1 cannot be taken up again"));
        }
        self.leads(Ok(run(RunStatus::Running)))
    }

    type LogsStream = tokio_stream::Iter<std::vec::IntoIter<Result<LogLine, Status>>>;

    /// Three lines; each leader goes after the first that it has said.
    async fn logs(
        &self,
        request: Request<LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let after = request.into_inner().after;
        let mut lines: Vec<Result<LogLine, Status>> = ["1-0", "1-1", "2-0"]
            .into_iter()
            .filter(|position| *position > after.as_str())
            .map(|position| Ok(LogLine { position: position.to_owned(), ..LogLine::default() }))
            .collect();
        if lines.len() > 1 {
            lines.truncate(1);
            lines.push(Err(Status::unavailable("I lead no more")));
        }
        self.leads(Ok(tokio_stream::iter(lines)))
    }

    type DeadLettersStream = tokio_stream::Empty<Result<DeadLetter, Status>>;

    async fn dead_letters(
        &self,
        _: Request<DeadLettersRequest>,
    ) -> Result<Response<Self::DeadLettersStream>, Status> {
        self.leads(Ok(tokio_stream::empty()))
    }

    async fn audit(&self, _: Request<AuditRunRequest>) -> Result<Response<AuditReport>, Status> {
        self.leads(Ok(AuditReport { clean: true, ..AuditReport::default() }))
    }
}

#[async_trait]
impl DeadLetters for Fake {
    /// Its run is called after the number of bytes.
    async fn replay(
        &self,
        request: Request<tonic::Streaming<ReplayRequest>>,
    ) -> Result<Response<SubmitResponse>, Status> {
        let (mut parts, mut bytes) = (request.into_inner(), 0);
        while let Some(part) = parts.message().await? {
            if let Some(Part::Rows(rows)) = part.part {
                bytes += rows.len();
            }
        }
        self.leads(Ok(SubmitResponse { run: bytes.to_string(), ..SubmitResponse::default() }))
    }
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// Bound and closed again: nobody listens there.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    url(listener.local_addr().expect("it is bound"))
}

async fn serve(fake: Fake) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let server = Server::builder()
        .add_service(RunsServer::new(fake.clone()))
        .add_service(DeadLettersServer::new(fake));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    url(address)
}

/// Takes a request and hangs up.
async fn hangs_up() -> String {
    use tokio::io::AsyncReadExt as _;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut bytes = [0; 64];
            let _ = connection.read(&mut bytes).await;
        }
    });
    url(address)
}

async fn does_not_know() -> String {
    serve(Fake { does_not_know: true, ..Fake::default() }).await
}

fn client(urls: Vec<String>) -> Client {
    Client { patience: Duration::from_millis(500), ..Client::new(urls, Access::default()) }
}

#[tokio::test]
async fn the_leader_that_a_follower_names_is_asked() {
    let leader = serve(Fake::default()).await;
    let follower = serve(Fake { follows: Some(leader.clone()), ..Fake::default() }).await;
    let mut client = client(vec![nobody().await, follower]);
    let answer = client.submit(SubmitRequest::default()).await.expect("there is a leader");
    assert_eq!(answer.run, "r-1");
    assert_eq!(client.search.url(), leader, "it is asked first from now on");
}

#[tokio::test]
async fn tasks_are_asked_for_until_the_last_page() {
    let leader = serve(Fake::default()).await;
    let tasks = client(vec![leader]).tasks("r").await.expect("there is a leader");
    assert_eq!(tasks.iter().map(|task| task.slice).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn a_refusal_of_the_leader_is_final() {
    let leader = serve(Fake::default()).await;
    let error = client(vec![leader]).run("x").await.expect_err("there is no such run");
    let failure = Failure::from(error);
    assert!(matches!(&failure, Failure::Usage(_)), "{failure:?}");
    assert_eq!(failure.message(), "run `x` does not exist");
}

#[tokio::test]
async fn what_was_done_before_its_answer_was_lost_is_no_failure() {
    let leader = serve(Fake::default()).await;
    let done = client(vec![hangs_up().await, leader.clone()]).cancel("r").await;
    assert_eq!(done.expect("it was cancelled").status(), RunStatus::Failed);
    // Nobody can have done anything here: the refusal stands.
    let refused = client(vec![nobody().await, leader]).cancel("r").await;
    assert!(matches!(refused, Err(CallError::Refused { is_repeated: false, .. })), "{refused:?}");
    // Nor where the run is not as the first request would have made it.
    let leader = serve(Fake { refuses_retries: true, ..Fake::default() }).await;
    for urls in [vec![hangs_up().await, leader.clone()], vec![does_not_know().await, leader]] {
        let refused = client(urls).retry("r").await;
        let Err(CallError::Refused { status, is_repeated: true }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(status.message(), "run r-1 cannot be taken up again");
    }
}

#[tokio::test]
async fn a_watch_goes_on_when_its_stream_breaks_or_ends() {
    let streams = vec![
        vec![state(RunStatus::Running), Err(Status::unavailable("I lead no more"))],
        vec![state(RunStatus::Running)],
        vec![state(RunStatus::Running), state(RunStatus::Succeeded)],
    ];
    let leader = Fake { streams, ..Fake::default() };
    let watched = leader.watched.clone();
    let mut seen = 0;
    let mut client = client(vec![hangs_up().await, serve(leader).await]);
    let ended = client.watch("r-1", |_| seen += 1).await.expect("it ends");
    assert_eq!(ended.status(), RunStatus::Succeeded);
    assert_eq!((seen, watched.load(Ordering::SeqCst)), (4, 3));
}

#[tokio::test]
async fn each_line_of_a_log_is_shown_once_though_streams_break() {
    let seen = std::sync::Mutex::new(Vec::new());
    let show = |line: LogLine| {
        seen.lock().expect("nobody panics").push(line.position);
        Ok(())
    };
    let mut client = client(vec![serve(Fake::default()).await]);
    client.logs("r-1", true, show).await.expect("it ends");
    assert_eq!(*seen.lock().expect("nobody panics"), ["1-0", "1-1", "2-0"]);
}

#[tokio::test]
async fn rows_are_sent_whole_to_whoever_leads() {
    let rows = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(rows.path(), vec![b'x'; 700_000]).expect("the disk has room");
    let leader = serve(Fake::default()).await;
    let follower = serve(Fake { follows: Some(leader), ..Fake::default() }).await;
    let sent = client(vec![hangs_up().await, follower])
        .replay(ReplayStart::default(), Some(rows.path().to_owned()))
        .await;
    assert_eq!(sent.expect("there is a leader").run, "700000");
}

#[tokio::test]
async fn without_a_leader_each_coordinator_is_named_with_what_it_said() {
    let follower = serve(Fake { follows: Some(String::new()), ..Fake::default() }).await;
    let urls = vec![nobody().await, follower, hangs_up().await];
    let error = client(urls.clone()).run("r").await.expect_err("nobody leads");
    let CallError::Unreachable(message) = error else { panic!("{error:?}") };
    for url in urls {
        assert!(message.contains(&url), "{message}");
    }
    assert!(message.contains("Connection refused"), "{message}");
    assert!(message.contains("not the leader"), "{message}");
}

#[tokio::test]
async fn nobody_is_sent_where_nothing_is_encrypted() {
    for (leader, why) in
        [("http://192.0.2.1:4001", "another machine"), ("https://127.0.0.1:4001", "needs TLS")]
    {
        let follower = serve(Fake { follows: Some(leader.to_owned()), ..Fake::default() }).await;
        let error = client(vec![follower]).run("r").await.expect_err("nobody leads");
        let CallError::Unreachable(message) = error else { panic!("{error:?}") };
        assert!(message.contains(leader) && message.contains(why), "{message}");
    }
    let token = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    std::fs::write(token.path(), "weir_secret").expect("the disk has room");
    let token = crate::token::Token::from_file(token.path()).expect("it is a token");
    let access = Access::new(Some(std::path::Path::new("/no/authority.pem")), Some(token));
    let leader = serve(Fake::default()).await;
    let mut client = Client { access, ..client(vec![leader]) };
    let error = client.run("r").await.expect_err("it is without TLS");
    let CallError::Unreachable(message) = error else { panic!("{error:?}") };
    assert!(message.contains("is without TLS"), "{message}");
}

#[test]
fn broken_connections_and_leaders_that_leave_are_passing() {
    assert!(!is_passing(&Status::not_found("no such run")));
    assert!(!is_passing(&Status::failed_precondition("it is over")));
    assert!(is_passing(&Status::unavailable("no leader")));
    let broken = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset");
    let broken = Status::from_error(Box::new(broken));
    assert!(is_passing(&broken) && may_have_arrived(&broken));
    assert_eq!(said(&broken), "reset");
}

//! Who may do what on a cluster: everybody else is refused with a reason, and no secret is found
//! anywhere afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow_flight::Ticket;
use arrow_flight::flight_service_client::FlightServiceClient;
use base64::Engine as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use weir_executor::address;
use weir_executor::tls::{TlsFiles, accept};
use weir_proto::internal::executors_client::ExecutorsClient;
use weir_proto::internal::from_executor::Message;
use weir_proto::internal::raft_client::RaftClient;
use weir_proto::internal::{FromExecutor, Hello, RaftMessage};
use weir_proto::v1::cluster_client::ClusterClient;
use weir_proto::v1::runs_client::RunsClient;
use weir_proto::v1::{ListRunsRequest, ListTokensRequest, SubmitRequest};
use weir_tests::authority::{self, Authority};
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::weir::{Output, Weir};

/// The server takes messages up to 4 MiB from clients.
const TOO_LARGE: usize = 5 << 20;

/// A small cluster that logs all it can.
struct Guarded {
    // Before its folder, which says what there is to be stopped.
    cluster: Cluster,
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
}

impl Guarded {
    fn up() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let weir = Weir::new(folder.path()).env("WEIR_LOG", "trace,openraft=info");
        let cluster = Cluster::up_with(weir, &["--coordinators", "1", "--executors", "1"]);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
        Self { cluster, runtime, folder }
    }

    fn url(&self) -> String {
        self.cluster.urls().remove(0)
    }

    /// As a client has it.
    fn tls(&self) -> TlsFiles {
        TlsFiles { authority: self.cluster.dir.join("tls/authority.pem"), identity: None }
    }

    fn create_token(&self, name: &str, role: &str) -> String {
        let arguments = ["cluster", "token", "create", name, "--role", role, "--output", "json"];
        let made = self.cluster.run(&arguments).expect_code(0).json();
        made["token"].as_str().expect("it is printed").to_owned()
    }

    /// A command of somebody who has the cluster's address and authority, and this token.
    fn run_as(&self, token: &str, arguments: &[&str]) -> Output {
        let file = self.folder.path().join("a.token");
        std::fs::write(&file, token).expect("the disk has room");
        let (url, tls) = (self.url(), self.tls());
        let place = [
            "--coordinator",
            &url,
            "--tls-authority",
            tls.authority.to_str().expect("folders of tests are UTF-8"),
            "--token-file",
            file.to_str().expect("folders of tests are UTF-8"),
        ];
        self.cluster.weir.run(&[arguments, &place].concat())
    }

    /// The code and the words of a refusal.
    #[track_caller]
    fn refused<T: std::fmt::Debug>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> (Code, String) {
        let status = self.runtime.block_on(call).expect_err("it is refused");
        (status.code(), status.message().to_owned())
    }

    fn wait_for_log(&self, name: &str, text: &str) {
        wait_until(text, || self.cluster.log(name).contains(text));
    }
}

pub(crate) async fn connect(url: String, tls: TlsFiles) -> Result<Channel, Status> {
    let endpoint = address::endpoint(&url, Some(&tls)).map_err(Status::internal)?;
    let connected = endpoint.connect().await;
    connected.map_err(|error| Status::unavailable(format!("{error:?}")))
}

pub(crate) fn with<T>(token: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let header: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().expect("tokens are ASCII");
        request.metadata_mut().insert("authorization", header);
    }
    request
}

async fn list(url: String, tls: TlsFiles, token: Option<&str>) -> Result<(), Status> {
    let mut runs = RunsClient::new(connect(url, tls).await?);
    runs.list(with(token, ListRunsRequest::default())).await.map(drop)
}

async fn submit(url: String, tls: TlsFiles, token: &str, pipeline: String) -> Result<(), Status> {
    let mut runs = RunsClient::new(connect(url, tls).await?);
    let request = SubmitRequest { pipeline, ..SubmitRequest::default() };
    runs.submit(with(Some(token), request)).await.map(drop)
}

async fn list_tokens(url: String, tls: TlsFiles, token: &str) -> Result<(), Status> {
    let mut cluster = ClusterClient::new(connect(url, tls).await?);
    cluster.list_tokens(with(Some(token), ListTokensRequest {})).await.map(drop)
}

/// What an executor keeps, as another one asks for it.
async fn rows_of(
    url: String,
    tls: TlsFiles,
    run_folder: &str,
    token: Option<&str>,
) -> Result<(), Status> {
    let endpoint = address::node_endpoint(&url, Some(&tls)).map_err(Status::internal)?;
    let connected = endpoint.connect().await;
    let channel = connected.map_err(|error| Status::unavailable(format!("{error:?}")))?;
    let mut flight = FlightServiceClient::new(channel);
    let ticket = serde_json::json!({
        "run_folder": run_folder, "stage": 0, "file_id": "0-1-1", "partition": 0,
    });
    flight.do_get(with(token, Ticket::new(ticket.to_string()))).await.map(drop)
}

/// Names of the services, as any client finds them that knows no `.proto` file.
async fn services(url: String, tls: TlsFiles, token: Option<&str>) -> Result<Vec<String>, Status> {
    let mut reflection = ServerReflectionClient::new(connect(url, tls).await?);
    let request = MessageRequest::ListServices(String::new());
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = with(token, tokio_stream::once(request));
    let mut answers = reflection.server_reflection_info(requests).await?.into_inner();
    let answer = answers.message().await?.and_then(|answer| answer.message_response);
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("not a list: {answer:?}")
    };
    Ok(list.service.into_iter().map(|service| service.name).collect())
}

#[test]
fn who_has_no_right_is_refused_and_logged_and_no_secret_is_left_anywhere() {
    let guarded = Guarded::up();
    let (url, tls) = (guarded.url(), guarded.tls());
    let (viewer, operator) =
        (guarded.create_token("eve", "viewer"), guarded.create_token("olga", "operator"));
    let pipeline = || "pipeline: p\n".to_owned();

    // Without a token, with one that nobody knows, and with one that may not.
    for token in [None, Some("weir_unknown-canary")] {
        let (code, why) = guarded.refused(list(url.clone(), tls.clone(), token));
        assert_eq!(code, Code::Unauthenticated, "{why}");
        let (code, why) = guarded.refused(services(url.clone(), tls.clone(), token));
        assert_eq!(code, Code::Unauthenticated, "{why}");
    }
    let (code, why) = guarded.refused(submit(url.clone(), tls.clone(), &viewer, pipeline()));
    assert_eq!(code, Code::PermissionDenied);
    assert_eq!(why, "token `eve` has the role viewer, and this needs operator");
    for token in [&viewer, &operator] {
        let (code, why) = guarded.refused(list_tokens(url.clone(), tls.clone(), token));
        assert_eq!(code, Code::PermissionDenied, "{why}");
    }
    let (code, why) = guarded.refused(submit(url.clone(), tls.clone(), &operator, pipeline()));
    assert_eq!(code, Code::InvalidArgument, "an operator's file is looked at: {why}");
    let large = " ".repeat(TOO_LARGE);
    let (code, why) = guarded.refused(submit(url.clone(), tls.clone(), &operator, large));
    assert_eq!(code, Code::OutOfRange, "{why}");

    // What is for nodes is for no token, not even the first admin's.
    let admin = std::fs::read_to_string(guarded.cluster.dir.join("admin.token"));
    let admin = admin.expect("it is there").trim().to_owned();
    let work = async {
        let mut executors = ExecutorsClient::new(connect(url.clone(), tls.clone()).await?);
        let nothing = tokio_stream::empty::<FromExecutor>();
        executors.work(with(Some(&admin), nothing)).await.map(drop)
    };
    assert_eq!(guarded.refused(work).0, Code::Unauthenticated);
    let vote = async {
        let mut raft = RaftClient::new(connect(url.clone(), tls.clone()).await?);
        raft.vote(with(Some(&admin), RaftMessage::default())).await.map(drop)
    };
    assert_eq!(guarded.refused(vote).0, Code::Unauthenticated);

    // What is for everybody, and for a viewer.
    let health = guarded.runtime.block_on(async {
        let mut health = HealthClient::new(connect(url.clone(), tls.clone()).await?);
        health.check(HealthCheckRequest::default()).await
    });
    assert_eq!(health.expect("it answers").into_inner().status(), ServingStatus::Serving);
    let listed = guarded.runtime.block_on(services(url.clone(), tls.clone(), Some(&viewer)));
    let listed = listed.expect("a viewer may look");
    assert!(listed.iter().any(|service| service == "weir.v1.Runs"), "{listed:?}");
    guarded.run_as(&viewer, &["runs"]).expect_code(0);
    let refused = guarded.run_as(&viewer, &["cluster", "token", "list"]).expect_code(2);
    assert!(refused.stderr.contains("needs admin"), "{}", refused.all());

    let weir = (guarded.cluster.weir.clone())
        .env("WEIR_COORDINATOR", &url)
        .env("WEIR_TLS_AUTHORITY", tls.authority.to_str().expect("folders of tests are UTF-8"));
    weir.run(&["runs"]).expect_code(2);
    weir.env("WEIR_TOKEN", &viewer).run(&["runs"]).expect_code(0);

    // A token that is revoked is worth nothing at once.
    guarded.cluster.run(&["cluster", "token", "revoke", "eve"]).expect_code(0);
    let (code, _) = guarded.refused(list(url.clone(), tls.clone(), Some(&viewer)));
    assert_eq!(code, Code::Unauthenticated);
    let refused = guarded.run_as(&viewer, &["runs"]).expect_code(2);
    assert!(refused.stderr.contains("the token is not known"), "{}", refused.all());
    let tokens = guarded.cluster.run(&["cluster", "token", "list", "--output", "json"]);
    let tokens = tokens.expect_code(0).json();
    assert_eq!((tokens.as_array().map(Vec::len), &tokens[0]["name"]), (Some(1), &"olga".into()));

    for why in [
        "a token is missing",
        "the token is not known",
        "token `eve` has the role viewer, and this needs operator",
        "a certificate of its authority is missing",
        "decoded message length too large",
    ] {
        guarded.wait_for_log("coordinator-1", why);
    }
    guarded.cluster.down();
    let mut secrets = BTreeMap::from([
        ("the viewer's token", viewer),
        ("the operator's token", operator),
        ("the admin's token", admin),
        ("an unknown token", "weir_unknown-canary".to_owned()),
    ]);
    for (name, key) in [("a key", "coordinator-1.key"), ("the authority's key", "authority.key")] {
        let pem = std::fs::read_to_string(guarded.cluster.dir.join("tls").join(key));
        let line = pem.expect("it is there").lines().nth(1).expect("a body").to_owned();
        secrets.insert(name, line);
    }
    assert_nowhere(&secrets, &guarded.cluster.dir);
}

/// In no file but those that are made for it.
fn assert_nowhere(secrets: &BTreeMap<&str, String>, folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("the folder can be listed").flatten() {
        let path = entry.path();
        if path.ends_with("tls") || path.ends_with("admin.token") {
            continue;
        }
        if path.is_dir() {
            assert_nowhere(secrets, &path);
            continue;
        }
        let bytes = std::fs::read(&path).expect("the file can be read");
        for (name, secret) in secrets {
            let base64 = base64::engine::general_purpose::STANDARD.encode(secret);
            for form in [secret, &base64] {
                let at = bytes.windows(form.len()).position(|window| window == form.as_bytes());
                if let Some(at) = at {
                    let around = &bytes[at.saturating_sub(300)..at];
                    let around = String::from_utf8_lossy(around);
                    panic!("{name} is in {}: …{around}", path.display());
                }
            }
        }
    }
}

#[test]
fn who_has_a_certificate_of_another_authority_or_none_is_refused() {
    let guarded = Guarded::up();
    let (url, tls) = (guarded.url(), guarded.tls());
    let foreign = guarded.folder.path().join("foreign");
    std::fs::create_dir(&foreign).expect("the folder can be made");
    let stranger = Authority::default();
    stranger.write(&foreign);
    stranger.issue(&foreign, "executor-2");

    // The client refuses a coordinator that its authority does not know.
    let other = TlsFiles { authority: foreign.join("authority.pem"), identity: None };
    let (_, why) = guarded.refused(list(url.clone(), other, None));
    assert!(why.contains("UnknownIssuer") || why.contains("BadSignature"), "{why}");

    // The coordinator refuses a node that its authority does not know.
    let mixed = TlsFiles {
        authority: tls.authority.clone(),
        identity: authority::files(&foreign, "executor-2").identity,
    };
    let work = async {
        let mut executors = ExecutorsClient::new(connect(url.clone(), mixed).await?);
        executors.work(tokio_stream::empty::<FromExecutor>()).await.map(drop)
    };
    guarded.refused(work);
    guarded.wait_for_log("coordinator-1", "TLS handshake refused");

    // Executors serve rows to nodes, and to nobody else.
    let rows = guarded.cluster.executor_urls().remove(0);
    let mixed = TlsFiles {
        authority: tls.authority.clone(),
        identity: authority::files(&foreign, "executor-2").identity,
    };
    guarded.refused(rows_of(rows.clone(), mixed, "orders/runs/1", None));
    guarded.wait_for_log("executor-1", "TLS handshake refused");
    let admin = std::fs::read_to_string(guarded.cluster.dir.join("admin.token")).expect("written");
    for token in [None, Some(admin.trim())] {
        let without = rows_of(rows.clone(), tls.clone(), "orders/runs/1", token);
        assert_eq!(guarded.refused(without).0, Code::Unauthenticated);
    }
    guarded.wait_for_log("executor-1", "exchange refused: no certificate");
    let node = authority::files(&guarded.cluster.dir.join("tls"), "executor-1");
    for outside in ["../../storage/orders/runs/1", "/etc", "a/../../b"] {
        let from_node = rows_of(rows.clone(), node.clone(), outside, None);
        assert_eq!(guarded.refused(from_node).0, Code::InvalidArgument, "{outside}");
    }
    let missing = rows_of(rows, node, "orders/runs/1", None);
    assert_eq!(guarded.refused(missing).0, Code::NotFound);
    guarded.wait_for_log("executor-1", "is no folder of a run");

    // And so does a real executor fail that has come from elsewhere.
    let path = |path: PathBuf| path.to_str().expect("folders of tests are UTF-8").to_owned();
    let files = [path(tls.authority), path(foreign.join("executor-2.pem"))];
    let key = path(foreign.join("executor-2.key"));
    let storage = path(guarded.cluster.dir.join("storage"));
    let dir = path(foreign.join("executor-2"));
    let mut arguments = vec!["executor", "--id", "executor-2", "--coordinators", &url];
    arguments.extend(["--dir", &dir, "--storage", &storage, "--tls-authority", &files[0]]);
    arguments.extend(["--tls-certificate", &files[1], "--tls-key", &key]);
    let executor = guarded.cluster.weir.start(&arguments);
    wait_until("the executor to be refused", || executor.printed().contains("not connected"));
    assert_eq!(guarded.cluster.executors(), ["executor-1"]);
    drop(executor);

    // Nothing is answered without TLS.
    let plain = url.replace("https://", "http://");
    let spoken = async {
        let endpoint = Endpoint::from_shared(plain).expect("it is a URL");
        let endpoint = endpoint.timeout(Duration::from_secs(30));
        let channel = endpoint.connect().await;
        let channel = channel.map_err(|error| Status::unavailable(format!("{error:?}")))?;
        let mut health = HealthClient::new(channel);
        health.check(HealthCheckRequest::default()).await.map(drop)
    };
    let (code, why) = guarded.refused(spoken);
    // What a client makes of a connection that is closed; it may be closed while the call is on its way.
    let is_closed =
        matches!(code, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
    assert!(is_closed, "{code}: {why}");
    guarded.wait_for_log("coordinator-1", "InvalidContentType");
}

/// An executor's key may get about: pipelines can read what the executor can read.
#[test]
fn a_node_is_only_who_its_certificate_names() {
    let guarded = Guarded::up();
    let url = guarded.url();
    let tls = |name: &str| authority::files(&guarded.cluster.dir.join("tls"), name);
    let vote = |tls: TlsFiles| {
        let url = url.clone();
        async move {
            let mut raft = RaftClient::new(connect(url, tls).await?);
            raft.vote(RaftMessage::default()).await.map(drop)
        }
    };
    let (code, why) = guarded.refused(vote(tls("executor-1")));
    assert_eq!(code, Code::PermissionDenied, "{why}");
    let (code, why) = guarded.refused(vote(tls("coordinator-1")));
    assert_ne!(code, Code::PermissionDenied, "only the message means nothing: {why}");
    let work = |tls: TlsFiles, executor: &str| {
        let hello = Hello {
            executor: executor.to_owned(),
            boot_id: "boot".to_owned(),
            slots: 1,
            ..Hello::default()
        };
        let hello = FromExecutor { message: Some(Message::Hello(hello)) };
        let url = url.clone();
        async move {
            let mut executors = ExecutorsClient::new(connect(url, tls).await?);
            executors.work(tokio_stream::once(hello)).await.map(drop)
        }
    };
    let (code, why) = guarded.refused(work(tls("coordinator-1"), "executor-2"));
    assert_eq!(code, Code::PermissionDenied, "{why}");
    let (code, why) = guarded.refused(work(tls("executor-1"), "executor-2"));
    assert_eq!(code, Code::PermissionDenied, "{why}");
    let (code, why) = guarded.refused(work(tls("executor-1"), "executor-1"));
    assert_eq!(code, Code::InvalidArgument, "only its version is wrong: {why}");

    // Who listens where a coordinator has been is sent no token.
    let listening = tokio::net::TcpListener::bind("127.0.0.1:0");
    let listener = guarded.runtime.block_on(listening).expect("a port is free");
    let there = format!("https://{}", listener.local_addr().expect("it is bound"));
    let identity = tls("executor-1");
    let _serving = guarded.runtime.block_on(async { accept(listener, identity) });
    let (_, why) = guarded.refused(list(there, guarded.tls(), Some("weir_canary")));
    assert!(why.contains("NotValidForName"), "{why}");
}

#[test]
fn a_cluster_without_tls_has_to_be_asked_for() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let small = ["--coordinators", "1", "--executors", "1"];
    let insecure = [&small[..], &["--insecure"]].concat();
    let cluster = Cluster::up_with(Weir::new(folder.path()), &insecure);
    assert!(cluster.urls()[0].starts_with("http://127.0.0.1:"), "{:?}", cluster.urls());
    assert!(cluster.log("coordinator-1").contains("INSECURE"), "{}", cluster.logs());
    cluster.run(&["runs"]).expect_code(0);
    cluster.down();
    let refused = cluster.run(&["cluster", "up", "--detach"]).expect_code(2);
    assert!(refused.stderr.contains("give --insecure"), "{}", refused.all());

    let mut process = vec!["coordinator", "--id", "1", "--listen", "0.0.0.0:0", "--dir", "d"];
    process.extend(["--url", "http://127.0.0.1:1", "--members", "1=http://127.0.0.1:1"]);
    process.extend(["--storage", "s"]);
    let neither = cluster.weir.run(&process).expect_code(2);
    assert!(neither.stderr.contains("--tls-certificate"), "{}", neither.all());
    let elsewhere = cluster.weir.run(&[&process[..], &["--insecure"]].concat()).expect_code(2);
    assert!(elsewhere.stderr.contains("only listens on loopback"), "{}", elsewhere.all());
}

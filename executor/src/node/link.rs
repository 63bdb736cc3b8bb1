//! The stream to the leader: opened, kept alive, and opened again when it breaks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, Stream};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use weir_proto::internal::executors_client::ExecutorsClient;
use weir_proto::internal::{
    FromExecutor, Heartbeat, Hello, Progress, Report, StoredOutput, ToExecutor, Welcome,
    from_executor, to_executor,
};

use super::known::Known;
use super::peers::Peers;
use crate::address;
use crate::tls::TlsFiles;
use crate::wire::with_causes;

/// Bytes of one message, either way: a commit with its manifest, or an assignment. Both ends must allow
/// as much.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// A leader that is there answers within this time.
const LONGEST_WELCOME: Duration = Duration::from_secs(3);
const LONGEST_CONNECT: Duration = Duration::from_secs(1);
/// A peer that does not answer a ping within the timeout is gone, whatever the network says.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Progress events that wait for the network; more are lost.
const WAITING_PROGRESS: usize = 256;

/// What comes out of the link.
#[derive(Debug)]
pub(super) enum LinkEvent {
    Opened { welcome: Welcome, outgoing: Outgoing },
    Received(Box<to_executor::Message>),
    Closed,
}

/// What the process is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    Not,
    /// Once its tasks are over.
    Soon,
    /// It has said everything.
    Now,
}

/// The sending half of one stream. Nothing of it waits for the network.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// Not bounded here: a task has one report at a time, and each is sent once on a stream.
    reports: mpsc::UnboundedSender<FromExecutor>,
    progress: mpsc::Sender<FromExecutor>,
}

impl Outgoing {
    /// A stream that has ended takes nothing; the report is sent again on the next one.
    pub(super) fn send_report(&self, report: Report) {
        let _ = self.reports.send(message(from_executor::Message::Report(report)));
    }

    /// Said again until it is answered.
    pub(super) fn send_stored(&self, stored: StoredOutput) {
        let _ = self.reports.send(message(from_executor::Message::Stored(stored)));
    }

    /// Lost when the network is slow.
    pub(super) fn send_progress(&self, json: Vec<u8>) {
        let progress = from_executor::Message::Progress(Progress { json });
        let _ = self.progress.try_send(message(progress));
    }
}

fn message(message: from_executor::Message) -> FromExecutor {
    FromExecutor { message: Some(message) }
}

/// How a node reaches coordinators, and where its chance comes from: others in simulations.
#[async_trait]
pub trait Network: Send + Sync + fmt::Debug {
    /// A connection to the coordinator at this URL, with the waits of [`with_waits`]; or why there is none.
    async fn connect(&self, url: &str) -> Result<Channel, String>;

    /// Between 0 and 1.
    fn jitter(&self) -> f64;

    /// URLs of the coordinators that a process of this executor has last been told of.
    fn known_coordinators(&self) -> Vec<String> {
        Vec::new()
    }

    /// The next process will know them, too.
    fn keep_coordinators(&self, _urls: &[String]) {}
}

/// The network of this machine.
#[derive(Debug)]
pub(super) struct Tcp {
    /// Read again for each connection.
    pub(super) tls: Option<TlsFiles>,
    pub(super) known: Arc<Known>,
}

#[async_trait]
impl Network for Tcp {
    async fn connect(&self, url: &str) -> Result<Channel, String> {
        let endpoint = endpoint(url, self.tls.as_ref())?;
        endpoint.connect().await.map_err(|error| with_causes(&error))
    }

    fn jitter(&self) -> f64 {
        f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
    }

    fn known_coordinators(&self) -> Vec<String> {
        self.known.read()
    }

    fn keep_coordinators(&self, urls: &[String]) {
        // Written beside this; a failure is logged there.
        drop(self.known.keep(urls));
    }
}

/// Keeps a stream to the leader until the process leaves.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) hello: Hello,
    pub(super) peers: Peers,
    pub(super) network: Arc<dyn Network>,
    pub(super) leaving: watch::Receiver<Leaving>,
    pub(super) events: mpsc::Sender<LinkEvent>,
}

/// A stream that has been welcomed.
struct Opened {
    incoming: Streaming<ToExecutor>,
    welcome: Welcome,
    outgoing: Outgoing,
    heartbeats: mpsc::Sender<FromExecutor>,
}

/// Why a coordinator gives no stream.
#[derive(Debug)]
struct Refusal {
    message: String,
    /// Who leads, as far as it knows.
    leader: Option<String>,
}

impl Refusal {
    fn because(message: impl Into<String>) -> Self {
        Self { message: message.into(), leader: None }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let leader = (status.code() == tonic::Code::FailedPrecondition)
            .then(|| status.metadata().get("weir-leader")?.to_str().ok().map(str::to_owned))
            .flatten();
        let message = if status.message().is_empty() {
            status.code().description().to_owned()
        } else {
            status.message().to_owned()
        };
        Self { message, leader }
    }
}

impl Link {
    /// Ends, with its stream, when the process leaves.
    pub(super) async fn run(mut self) {
        let mut epoch = 0;
        let mut last_refusal = String::new();
        while *self.leaving.borrow() != Leaving::Now && !self.events.is_closed() {
            let (url, wait) = self.peers.next(self.network.jitter());
            tokio::time::sleep(wait).await;
            match self.open(&url, epoch).await {
                Ok(opened) => {
                    last_refusal.clear();
                    epoch = opened.welcome.epoch;
                    self.learn(&opened.welcome.coordinators);
                    tracing::info!(leader = url, epoch, "connected");
                    let reason = self.work(opened).await;
                    if *self.leaving.borrow() != Leaving::Now {
                        tracing::warn!(leader = url, reason, "the stream to the leader has ended");
                    }
                    self.peers.ended(url);
                }
                Err(Refusal { message, leader }) => {
                    if leader.is_some() || message == last_refusal {
                        tracing::debug!(coordinator = url, reason = message, "not connected");
                    } else {
                        tracing::warn!(coordinator = url, reason = message, "not connected");
                        last_refusal = message;
                    }
                    self.peers.failed(leader);
                }
            }
        }
    }

    fn learn(&mut self, coordinators: &[String]) {
        if self.peers.learn(coordinators) {
            tracing::info!(?coordinators, "the coordinators");
            self.network.keep_coordinators(coordinators);
        }
    }

    /// Calls one coordinator; returns once it has welcomed this executor.
    async fn open(&self, url: &str, last_epoch: u64) -> Result<Opened, Refusal> {
        let channel = self.network.connect(url).await.map_err(Refusal::because)?;
        let mut client = ExecutorsClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (reports, waiting_reports) = mpsc::unbounded_channel();
        let (heartbeats, waiting_heartbeats) = mpsc::channel(1);
        let (progress, waiting_progress) = mpsc::channel(WAITING_PROGRESS);
        let hello = message(from_executor::Message::Hello(self.hello.clone()));
        let messages =
            outgoing_messages(hello, waiting_reports, waiting_heartbeats, waiting_progress);
        let opening = async {
            let mut incoming = client.work(messages).await?.into_inner();
            let first = incoming.message().await?.and_then(|first| first.message);
            Ok((incoming, first))
        };
        let (incoming, first) = match tokio::time::timeout(LONGEST_WELCOME, opening).await {
            Ok(opened) => opened.map_err(|status: Status| Refusal::from(status))?,
            Err(_) => return Err(Refusal::because("no answer in time")),
        };
        let Some(to_executor::Message::Welcome(welcome)) = first else {
            return Err(Refusal::because("the first message is no welcome"));
        };
        if welcome.epoch < last_epoch {
            return Err(Refusal::because(format!(
                "it leads in epoch {}, and there has been a leader in epoch {last_epoch}",
                welcome.epoch
            )));
        }
        Ok(Opened { incoming, welcome, outgoing: Outgoing { reports, progress }, heartbeats })
    }

    /// Passes on what the leader says until the stream ends; why it has ended.
    async fn work(&mut self, opened: Opened) -> String {
        let Opened { mut incoming, welcome, outgoing, heartbeats } = opened;
        // Dropped to end this side of the stream.
        let mut heartbeats = Some(heartbeats);
        let lease = Duration::from_millis(u64::from(welcome.lease_millis));
        // A little more often than needed: a heartbeat on a busy machine is late.
        let mut ticks = tokio::time::interval((lease / 4).max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if self.events.send(LinkEvent::Opened { welcome, outgoing }).await.is_err() {
            return "the executor has ended".to_owned();
        }
        let reason = loop {
            tokio::select! {
                biased;
                Ok(()) = self.leaving.changed() => {
                    self.send_heartbeat(heartbeats.as_ref());
                    if *self.leaving.borrow() == Leaving::Now {
                        heartbeats = None;
                    }
                }
                _ = ticks.tick() => self.send_heartbeat(heartbeats.as_ref()),
                received = incoming.message() => match received {
                    Ok(Some(ToExecutor {
                        message: Some(to_executor::Message::Coordinators(coordinators)),
                    })) => self.learn(&coordinators.urls),
                    Ok(Some(ToExecutor { message: Some(message) })) => {
                        // Nobody listens to a leader's last words to a process that leaves.
                        let _ = self.events.send(LinkEvent::Received(Box::new(message))).await;
                    }
                    // A message of a kind that this version does not know.
                    Ok(Some(ToExecutor { message: None })) => {}
                    Ok(None) => break "the leader has closed it".to_owned(),
                    Err(status) => break Refusal::from(status).message,
                },
            }
        };
        let _ = self.events.send(LinkEvent::Closed).await;
        reason
    }

    fn send_heartbeat(&self, heartbeats: Option<&mpsc::Sender<FromExecutor>>) {
        let Some(heartbeats) = heartbeats else { return };
        let draining = *self.leaving.borrow() != Leaving::Not;
        // While another waits for the network, this one would say nothing new in time.
        let _ =
            heartbeats.try_send(message(from_executor::Message::Heartbeat(Heartbeat { draining })));
    }
}

fn outgoing_messages(
    hello: FromExecutor,
    reports: mpsc::UnboundedReceiver<FromExecutor>,
    heartbeats: mpsc::Receiver<FromExecutor>,
    progress: mpsc::Receiver<FromExecutor>,
) -> impl Stream<Item = FromExecutor> + Send + 'static {
    let others = stream::select_all([
        UnboundedReceiverStream::new(reports).boxed(),
        ReceiverStream::new(heartbeats).boxed(),
        ReceiverStream::new(progress).boxed(),
    ]);
    stream::iter([hello]).chain(others)
}

/// As [`address::endpoint`], with the waits of this module.
pub(super) fn endpoint(url: &str, tls: Option<&TlsFiles>) -> Result<Endpoint, String> {
    Ok(with_waits(address::endpoint(url, tls)?))
}

/// How long a node waits for a coordinator.
pub fn with_waits(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(LONGEST_CONNECT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
}

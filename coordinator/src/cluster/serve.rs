//! Starts a coordinator, and leads when it is elected.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use weir_connectors::ConnectorContext;
use weir_executor::node::MAX_MESSAGE_BYTES;
use weir_executor::storage::Storage;
use weir_executor::tls::TlsFiles;
use weir_proto::internal::executors_server::ExecutorsServer;
use weir_proto::v1::backfills_server::BackfillsServer;
use weir_proto::v1::cluster_server::ClusterServer;
use weir_proto::v1::dead_letters_server::DeadLettersServer;
use weir_proto::v1::pipelines_server::PipelinesServer;
use weir_proto::v1::runs_server::RunsServer;
use weir_proto::v1::state_server::StateServer;

use super::access::Bootstrap;
use super::access_layer::Access;
use super::audit_log::Refusals;
use super::backfills_service::BackfillsService;
use super::cluster_service::ClusterService;
use super::dead_letters_service::DeadLettersService;
use super::ended_runs::KeptRuns;
use super::errors::DescribeErrors;
use super::executors_service::ExecutorsService;
use super::leading::{Leading, Settings};
use super::node::Node;
use super::pipelines_service::PipelinesService;
use super::quota::{ClientLimits, Quotas};
use super::runs_service::RunsService;
use super::state_service::StateService;
use super::systems::SystemsMaker;
use crate::EngineError;
use crate::raft::{Address, MemberId, RaftMember, RaftOptions};

/// An executor that is not heard of for this long has lost its tasks.
const LEASE: Duration = Duration::from_secs(3);

/// A peer that does not answer for this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// After a leadership that could not begin.
const BEFORE_NEXT: Duration = Duration::from_millis(300);

/// After one that must not begin.
const AFTER_REFUSAL: Duration = Duration::from_secs(3);

/// Executors hear every so often of which runs something is still to be kept.
const BETWEEN_TELLING: Duration = Duration::from_secs(10);

/// A leader to whom no majority has answered for this long gives up: the others may have elected, and
/// executors stay with whom they hear.
const LONGEST_ALONE: Duration = Duration::from_secs(3);

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    pub id: MemberId,
    pub listen: SocketAddr,
    /// Where the others reach it.
    pub url: String,
    /// The first members of the cluster with their URLs, this one included. Without effect once the
    /// cluster exists. None: it waits until a cluster takes it in.
    pub members: Option<BTreeMap<MemberId, String>>,
    /// Its own log and snapshots.
    pub dir: PathBuf,
    /// Plans, checkpoints, exchanges and dead letters: shared by all coordinators and executors.
    pub storage: Storage,
    pub context: ConnectorContext,
    pub memory_bytes: u64,
    pub security: Security,
    /// Of each token.
    pub limits: ClientLimits,
    /// How many runs that are over stay in the ledger, while this coordinator leads.
    pub kept_runs: KeptRuns,
}

/// Who may reach a coordinator.
#[derive(Clone)]
pub enum Security {
    /// Anybody who can connect may do anything: for loopback addresses only.
    Insecure,
    Tls {
        /// With an identity.
        files: TlsFiles,
        /// A token with the role admin, besides those in the ledger.
        bootstrap_token: Option<String>,
    },
}

impl std::fmt::Debug for Security {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Security::Insecure => f.write_str("Insecure"),
            Security::Tls { files, .. } => {
                f.debug_struct("Tls").field("files", files).finish_non_exhaustive()
            }
        }
    }
}

/// Why a coordinator could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("failed to listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("failed to use {path}: {source}")]
    Folder { path: String, source: std::io::Error },
    #[error("coordinator {id} is not one of the first members, {members:?}")]
    NotAMember { id: MemberId, members: Vec<MemberId> },
    #[error("without TLS a coordinator listens on loopback addresses only, and {0} is none")]
    NotLoopback(SocketAddr),
    #[error("failed to use the certificates: {0}")]
    Tls(std::io::Error),
    #[error("failed to serve: {0}")]
    Serve(tonic::transport::Error),
    #[error("this coordinator's copy of the ledger can be written no longer: {0}")]
    Ledger(String),
}

/// Takes part in the cluster until it is stopped.
pub async fn serve(options: CoordinatorOptions, stop: CancellationToken) -> Result<(), ServeError> {
    let CoordinatorOptions {
        id,
        listen,
        url,
        members,
        dir,
        storage,
        context,
        memory_bytes,
        security,
        limits,
        kept_runs,
    } = options;
    let (tls, bootstrap) = match security {
        Security::Insecure if !listen.ip().is_loopback() => {
            return Err(ServeError::NotLoopback(listen));
        }
        Security::Insecure => {
            tracing::warn!("INSECURE: whoever can reach {listen} may do anything");
            (None, None)
        }
        Security::Tls { files, bootstrap_token } => (Some(files), bootstrap_token),
    };
    if let Some(members) = members.as_ref().filter(|members| !members.contains_key(&id)) {
        return Err(ServeError::NotAMember { id, members: members.keys().copied().collect() });
    }
    let at = |path: &PathBuf| {
        let path = path.display().to_string();
        move |source| ServeError::Folder { path, source }
    };
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|source| ServeError::Listen { address: listen, source })?;
    // Not made here: where it is a file system of its own, that may only be missing yet.
    let looked_at = storage.clone();
    tokio::spawn(async move {
        if let Err(error) = looked_at.check().await {
            tracing::warn!(storage = looked_at.shown(""), %error, "the storage cannot be used");
        }
    });
    let member = RaftMember::start(RaftOptions { tls: tls.clone(), ..RaftOptions::new(id, &dir) });
    let member = member.await.map_err(at(&dir))?;
    let member = Arc::new(member);
    let node = Arc::new(Node::new(id, Arc::clone(&member)));
    let redactor = context.redactor.clone();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(weir_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors are those of the build");
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ClusterServer<ClusterService>>().await;
    let access = Access {
        node: Arc::clone(&node),
        bootstrap: Bootstrap(bootstrap),
        quotas: Quotas::new(limits),
        refusals: Refusals::default(),
        is_open: tls.is_none(),
    };
    let runs = RunsService { node: Arc::clone(&node), redactor: redactor.clone() };
    let server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEP_ALIVE / 2))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .layer(DescribeErrors)
        .layer(access)
        .add_service(member.service().into_server())
        .add_service(
            ExecutorsServer::new(ExecutorsService { node: Arc::clone(&node) })
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(RunsServer::new(runs.clone()))
        .add_service(BackfillsServer::new(BackfillsService(runs.clone())))
        .add_service(PipelinesServer::new(PipelinesService(runs.clone())))
        .add_service(StateServer::new(StateService(runs.clone())))
        .add_service(DeadLettersServer::new(DeadLettersService(runs)))
        .add_service(ClusterServer::new(ClusterService { node: Arc::clone(&node), redactor }))
        .add_service(reflection)
        .add_service(health_service);
    let stopped = stop.clone();
    let stopped = async move { stopped.cancelled().await };
    let serving = async {
        let served = match tls {
            None => {
                let incoming = TcpListenerStream::new(listener);
                server.serve_with_incoming_shutdown(incoming, stopped).await
            }
            Some(files) => {
                let incoming = weir_executor::tls::accept(listener, files);
                let incoming = incoming.map_err(ServeError::Tls)?;
                server.serve_with_incoming_shutdown(incoming, stopped).await
            }
        };
        served.map_err(ServeError::Serve)
    };
    tracing::info!(id, %listen, url, "coordinator started");

    // The members agree on the first membership, whoever of them proposes it.
    if let Some(members) = members.filter(|members| members.keys().next() == Some(&id)) {
        let members = members.into_iter().map(|(id, url)| (id, Address::at(url))).collect();
        member.initialize(members).await.map_err(at(&dir))?;
    }
    let systems = SystemsMaker::registry();
    let settings = Settings { storage, context, memory_bytes, systems, kept_runs };
    let leading = lead_when_elected(&node, settings, &stop);
    let served = tokio::select! {
        served = serving => served,
        ended = leading => ended,
    };
    if let Some(leading) = node.is_leading() {
        leading.end();
        node.set_leading(None);
    }
    member.shut_down().await;
    served
}

/// Until it is stopped, or its member of the ledger has ended by itself.
pub(super) async fn lead_when_elected(
    node: &Arc<Node>,
    settings: Settings,
    stop: &CancellationToken,
) -> Result<(), ServeError> {
    let mut changes = node.member.changes();
    let mut last_error = String::new();
    while !stop.is_cancelled() {
        if node.member.leader() == Some(node.id) {
            let mut wait = BEFORE_NEXT;
            match lead(node, settings.clone(), stop).await {
                Ok(()) => {
                    last_error.clear();
                    tracing::info!(id = node.id, "leads no longer");
                }
                Err(error) => {
                    // It stays so until somebody mends it.
                    if matches!(error, EngineError::Refused(_)) {
                        wait = AFTER_REFUSAL;
                    }
                    let error = error.to_string();
                    if error == last_error {
                        tracing::debug!(id = node.id, error, "still cannot lead");
                    } else {
                        tracing::warn!(id = node.id, error, "cannot lead");
                    }
                    last_error = error;
                }
            }
            if changes.has_changed().is_err() {
                return Err(ended(node));
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
            continue;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return Err(ended(node));
                }
            }
        }
    }
    Ok(())
}

fn ended(node: &Node) -> ServeError {
    ServeError::Ledger(node.member.ended().unwrap_or_else(|| "its member has ended".to_owned()))
}

/// Between two looks there is time to read what executors have said, however late the first one is.
fn looks() -> Interval {
    let mut looks = tokio::time::interval(LEASE / 10);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// Until somebody else leads, or the ledger cannot be written.
async fn lead(
    node: &Arc<Node>,
    settings: Settings,
    stop: &CancellationToken,
) -> Result<(), EngineError> {
    let mut changes = node.member.changes();
    let caught_up = node.member.catch_up().await;
    caught_up.map_err(|error| EngineError::Busy(error.to_string()))?;
    let leading = Arc::new(Leading::begin(&node.member, settings, LEASE).await?);
    tracing::info!(id = node.id, epoch = leading.epoch, "leads");
    leading.pool.set_coordinators(node.urls());
    leading.let_executors_leave().await;
    node.set_leading(Some(Arc::clone(&leading)));
    let taking_up = tokio::spawn(Arc::clone(&leading).keep_taking_up());
    let _taking_up = AbortOnDropHandle::new(taking_up);
    let looking = tokio::spawn(Arc::clone(&leading).keep_looking_whose_storage());
    let _looking = AbortOnDropHandle::new(looking);
    let keeping = tokio::spawn(Leading::keep_backfills(Arc::downgrade(&leading)));
    let _keeping = AbortOnDropHandle::new(keeping);
    let removing = tokio::spawn(Arc::clone(&leading.removal).remove_what_is_left());
    let _removing = AbortOnDropHandle::new(removing);
    let leaving = tokio::spawn(Leading::keep_few_runs(Arc::downgrade(&leading)));
    let _leaving = AbortOnDropHandle::new(leaving);
    let mut expiry = looks();
    let mut looked_at = Instant::now();
    let mut told_at = looked_at;
    while node.member.leader() == Some(node.id) {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = leading.broken.cancelled() => break,
            _ = expiry.tick() => {
                // After a pause of this process, what executors have said is read first.
                if looked_at.elapsed() < LEASE / 2 {
                    leading.pool.expire();
                }
                looked_at = Instant::now();
                leading.pool.set_coordinators(node.urls());
                leading.let_executors_leave().await;
                if told_at.elapsed() > BETWEEN_TELLING {
                    leading.tell_runs_in_use().await;
                    told_at = Instant::now();
                }
                if node.member.since_majority().is_some_and(|since| since > LONGEST_ALONE) {
                    tracing::warn!(id = node.id, "no majority of the coordinators answers");
                    break;
                }
            }
            changed = changes.changed() => {
                if changed.is_err() {
                    break;
                }
            }
        }
    }
    node.set_leading(None);
    leading.end();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_pause_of_the_process_the_looks_that_were_missed_are_not_made_up_for() {
        let mut looks = looks();
        looks.tick().await;
        tokio::time::advance(LEASE).await;
        looks.tick().await;
        let next = std::pin::pin!(looks.tick());
        assert!(futures::poll!(next).is_pending());
    }
}

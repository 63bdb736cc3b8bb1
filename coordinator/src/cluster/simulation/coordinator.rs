//! A coordinator, whole but for TLS: its member of the replicated ledger, its services, and what it does when it
//! leads.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use turmoil::net::TcpListener;
use weir_connectors::{ConnectorContext, Redactor, Secrets};
use weir_executor::node::MAX_MESSAGE_BYTES;
use weir_proto::internal::executors_server::ExecutorsServer;
use weir_proto::v1::runs_server::RunsServer;

use super::super::ended_runs::KeptRuns;
use super::super::executors_service::ExecutorsService;
use super::super::leading::Settings;
use super::super::node::Node;
use super::super::runs_service::RunsService;
use super::super::serve::lead_when_elected;
use super::super::systems::SystemsMaker;
use super::shared::Shared;
use super::systems::SimulatedSystems;
use crate::raft::simulation::{MEMBERS, Machine, PORT, address, host, incoming};

const KEEP_ALIVE: Duration = Duration::from_secs(2);
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

#[derive(Clone, Debug)]
pub(super) struct Coordinator {
    pub(super) machine: Machine,
    pub(super) shared: Arc<Shared>,
}

impl Coordinator {
    /// Until it is crashed.
    pub(super) async fn run(self) -> turmoil::Result {
        let ended = self.take_part().await;
        if self.machine.disk.is_dead() {
            // It is waiting for the crash that the loss of power is.
            std::future::pending().await
        }
        ended.map_err(|error| format!("{}: {error}", host(self.machine.id)).into())
    }

    async fn take_part(&self) -> turmoil::Result {
        let id = self.machine.id;
        let member = Arc::new(self.machine.start().await?);
        let node = Arc::new(Node::new(id, Arc::clone(&member)));
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
        let redactor = Redactor::default();
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE / 2))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .add_service(member.service().into_server())
            .add_service(
                ExecutorsServer::new(ExecutorsService { node: Arc::clone(&node) })
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(RunsServer::new(RunsService {
                node: Arc::clone(&node),
                redactor: redactor.clone(),
            }))
            .serve_with_incoming(incoming(listener));
        if id == MEMBERS[0] {
            let members = MEMBERS.map(|member| (member, address(member)));
            member.initialize(members.into()).await?;
        }
        let stop = CancellationToken::new();
        let settings = self.settings(redactor);
        tokio::select! {
            biased;
            served = server => served?,
            led = lead_when_elected(&node, settings, &stop) => led?,
            () = self.observe(&node) => {}
        }
        Ok(())
    }

    fn settings(&self, redactor: Redactor) -> Settings {
        let systems =
            SimulatedSystems { host: host(self.machine.id), shared: Arc::clone(&self.shared) };
        Settings {
            storage: self.shared.storage.clone(),
            context: ConnectorContext::new("/", Secrets::default(), redactor),
            memory_bytes: 1 << 30,
            systems: SystemsMaker::of(Arc::new(systems)),
            // As few as can be: of each pipeline the newest stays.
            kept_runs: KeptRuns { runs: 0, tasks: 0 },
        }
    }

    /// For faults that are meant for the leader.
    async fn observe(&self, node: &Node) {
        loop {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            if node.is_leading().is_some() {
                self.shared.state().leader = Some(self.machine.id);
            }
        }
    }
}

//! An executor: the real process of a node, whose tasks are virtual.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::Rng as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use weir_connectors::Redactor;
use weir_executor::node::{Network, Process, with_waits};
use weir_plan::StageGraph;
use weir_proto::internal::Hello;

use super::runner::{Machine, VirtualRunner};
use super::shared::Shared;
use crate::raft::simulation::{self, MEMBERS, Seeded, simulated_uuid};

const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
/// One that has left in good order comes back.
const ABSENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(super) struct Executor {
    pub(super) host: String,
    pub(super) slots: u32,
    pub(super) shared: Arc<Shared>,
}

impl Executor {
    /// Until it is crashed.
    pub(super) async fn run(self) -> turmoil::Result {
        loop {
            let stop = CancellationToken::new();
            let process = self.process().work(stop.clone(), || ());
            tokio::pin!(process);
            loop {
                tokio::select! {
                    biased;
                    () = &mut process => break,
                    () = tokio::time::sleep(BETWEEN_LOOKS) => {
                        if self.shared.state().leaving.remove(&self.host) {
                            stop.cancel();
                        }
                    }
                }
            }
            self.shared.state().exchanges.lose(&self.host);
            tokio::time::sleep(ABSENCE).await;
        }
    }

    fn process(&self) -> Process {
        let boot_id = simulated_uuid().to_string();
        let machine = Machine {
            host: self.host.clone(),
            boot_id: boot_id.clone(),
            shared: Arc::clone(&self.shared),
        };
        Process {
            hello: Hello {
                executor: self.host.clone(),
                boot_id,
                engine_version: StageGraph::ENGINE_VERSION.to_owned(),
                slots: self.slots,
                memory_bytes: 1 << 30,
                host: self.host.clone(),
                pid: 1,
            },
            coordinators: MEMBERS.map(|member| simulation::address(member).url).into(),
            network: Arc::new(Simulated),
            runner: Box::new(VirtualRunner(Arc::new(machine))),
            redactor: Redactor::default(),
        }
    }
}

#[derive(Debug)]
struct Simulated;

#[async_trait]
impl Network for Simulated {
    async fn connect(&self, url: &str) -> Result<Channel, String> {
        let shown = |error: &dyn fmt::Display| error.to_string();
        let endpoint: Endpoint = url.parse().map_err(|error| shown(&error))?;
        simulation::connect(&with_waits(endpoint)).await.map_err(|error| shown(&error))
    }

    fn jitter(&self) -> f64 {
        Seeded.gen_range(0.0..1.0)
    }
}

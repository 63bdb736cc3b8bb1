//! `weir.v1.Cluster`: what a coordinator knows about the cluster.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weir_proto::v1;
use weir_proto::v1::cluster_server::Cluster;

use super::node::Node;

#[derive(Clone, Debug)]
pub(super) struct ClusterService {
    pub(super) node: Arc<Node>,
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let member = &self.node.member;
        let leader = member.leader();
        let coordinators = (member.members().into_iter())
            .map(|(id, address)| v1::Coordinator {
                id,
                url: address.url,
                role: match leader == Some(id) {
                    true => v1::Role::Leader,
                    false => v1::Role::Follower,
                }
                .into(),
            })
            .collect();
        let leading = self.node.is_leading();
        let (state_hash, applied_index, epoch) = {
            let ledger = member.ledger().await;
            let json = serde_json::to_vec(&*ledger).expect("a ledger can be written as JSON");
            let hash = blake3::hash(&json).to_hex()[..32].to_owned();
            (hash, member.applied_index(), ledger.current_epoch())
        };
        Ok(Response::new(v1::StatusResponse {
            answered_by: self.node.id,
            coordinators,
            executors: leading.map(|leading| leading.pool.executors()).unwrap_or_default(),
            epoch,
            applied_index,
            state_hash,
        }))
    }
}

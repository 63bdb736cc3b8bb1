//! Answers the calls of other members.

use openraft::error::RaftError;
use openraft::raft::{VoteRequest, VoteResponse};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status};
use weir_proto::internal::RaftMessage;
use weir_proto::internal::raft_server::{Raft as RaftCalls, RaftServer};

use super::MemberId;
use super::election::Elections;
use super::network::MAX_MESSAGE_BYTES;

/// The gRPC service of one member.
#[derive(Clone)]
pub struct RaftService {
    pub(super) elections: Elections,
}

impl RaftService {
    pub fn into_server(self) -> RaftServer<Self> {
        RaftServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Reads a message that is meant for this member.
    fn read<T: DeserializeOwned>(&self, message: Request<RaftMessage>) -> Result<T, Status> {
        let RaftMessage { target, json } = message.into_inner();
        if target != self.elections.member {
            return Err(Status::failed_precondition(format!(
                "this is member {}, not {target}: do two members have one address?",
                self.elections.member
            )));
        }
        serde_json::from_slice(&json)
            .map_err(|error| Status::invalid_argument(format!("not a message of raft: {error}")))
    }
}

fn ended() -> Status {
    Status::unavailable("this member has ended")
}

fn answer(result: &impl Serialize) -> Result<Response<RaftMessage>, Status> {
    let json = serde_json::to_vec(result).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(RaftMessage { target: 0, json }))
}

#[tonic::async_trait]
impl RaftCalls for RaftService {
    async fn append_entries(
        &self,
        message: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        answer(&self.elections.raft.append_entries(self.read(message)?).await)
    }

    async fn vote(&self, message: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let request: VoteRequest<MemberId> = self.read(message)?;
        if !self.elections.may_vote(request.last_log_id) {
            let (vote, own) = self.elections.vote().await.ok_or_else(ended)?;
            let refused = VoteResponse::new(vote, own, false);
            return answer(&Ok::<_, RaftError<MemberId>>(refused));
        }
        answer(&self.elections.raft.vote(request).await)
    }

    async fn pre_vote(
        &self,
        message: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        answer(&self.elections.would_vote(self.read(message)?).await)
    }

    async fn install_snapshot(
        &self,
        message: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        answer(&self.elections.raft.install_snapshot(self.read(message)?).await)
    }
}

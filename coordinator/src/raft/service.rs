//! Answers the calls of other members.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use openraft::error::RaftError;
use openraft::raft::{VoteRequest, VoteResponse};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status};
use weir_proto::internal::RaftMessage;
use weir_proto::internal::raft_server::{Raft as RaftCalls, RaftServer};

use super::MemberId;
use super::election::Elections;
use super::membership::Introduced;
use super::network::MAX_MESSAGE_BYTES;

/// The gRPC service of one member.
#[derive(Clone)]
pub struct RaftService {
    pub(super) elections: Elections,
    /// Whether it has been said already that this member's log is not the one that the others know.
    pub(super) has_complained: Arc<AtomicBool>,
}

impl RaftService {
    pub fn into_server(self) -> RaftServer<Self> {
        RaftServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Reads a message that is meant for this member.
    fn read<T: DeserializeOwned>(&self, message: Request<RaftMessage>) -> Result<T, Status> {
        serde_json::from_slice(&self.meant_for_it(message)?)
            .map_err(|error| Status::invalid_argument(format!("not a message of raft: {error}")))
    }

    /// Refuses what is meant for another member, or for this one with the log that it had: with that it has lost
    /// entries that it may have promised to keep, and it must not vote as if it had never had them.
    fn meant_for_it(&self, message: Request<RaftMessage>) -> Result<Vec<u8>, Status> {
        let RaftMessage { target, json, disk } = message.into_inner();
        if target != self.elections.member {
            return Err(Status::failed_precondition(format!(
                "this is member {}, not {target}: do two members have one address?",
                self.elections.member
            )));
        }
        if !disk.is_empty() && disk != self.elections.disk {
            if !self.has_complained.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    member = target,
                    "this coordinator's log is not the one that it has joined with: it takes part no longer. \
                     Remove it from the cluster, and add a new one under another number"
                );
            }
            return Err(Status::failed_precondition(format!(
                "coordinator {target} has lost its log: remove it, and add a new one"
            )));
        }
        Ok(json)
    }
}

fn ended() -> Status {
    Status::unavailable("this member has ended")
}

fn answer(result: &impl Serialize) -> Result<Response<RaftMessage>, Status> {
    let json = serde_json::to_vec(result).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(RaftMessage { target: 0, json, disk: String::new() }))
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

    async fn introduce(
        &self,
        message: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        self.meant_for_it(message)?;
        // Connections may outlive the member that they were made to.
        self.elections.vote().await.ok_or_else(ended)?;
        let Elections { disk, last, .. } = &self.elections;
        answer(&Introduced { disk: disk.clone(), has_entries: last.get().is_some() })
    }

    async fn install_snapshot(
        &self,
        message: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        answer(&self.elections.raft.install_snapshot(self.read(message)?).await)
    }
}

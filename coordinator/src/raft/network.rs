//! Calls to the other members. A connection is made when it is first needed, and again when it broke.

use std::time::Duration;

use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;
use weir_executor::address;
use weir_executor::tls::TlsFiles;
use weir_proto::internal::RaftMessage;
use weir_proto::internal::raft_client::RaftClient;

use super::{Address, MemberId, Types};

/// Bytes of one message: a group of commands with their manifests, or a chunk of a snapshot.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// The longest that a member may say nothing, not even to a ping.
const SILENCE: Duration = Duration::from_secs(4);

/// Makes connections.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) from: MemberId,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) way: Way,
}

/// How a connection is made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Tcp,
    #[cfg(test)]
    Simulated,
}

/// To one member.
#[derive(Debug)]
pub(crate) struct Peer {
    network: Network,
    target: MemberId,
    address: Address,
    channel: Result<Channel, Unreachable>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: MemberId, node: &Address) -> Peer {
        let channel = self.connect(node);
        Peer { network: self.clone(), target, address: node.clone(), channel }
    }
}

impl Network {
    fn connect(&self, node: &Address) -> Result<Channel, Unreachable> {
        let endpoint = match self.way {
            Way::Tcp => address::endpoint(&node.url, self.tls.as_ref()),
            #[cfg(test)]
            Way::Simulated => Ok(node.url.parse().expect("it is a URL")),
        };
        let endpoint = endpoint.map_err(|why| Unreachable::new(&std::io::Error::other(why)))?;
        // What is sent into a broken network is sent again later and later by TCP. A connection that is silent
        // for this long is given up instead, and the next one works as soon as the network does.
        let endpoint = endpoint
            .connect_timeout(SILENCE)
            .http2_keep_alive_interval(SILENCE / 2)
            .keep_alive_timeout(SILENCE / 2)
            .keep_alive_while_idle(true);
        Ok(match self.way {
            Way::Tcp => endpoint.connect_lazy(),
            #[cfg(test)]
            Way::Simulated => super::simulation::connect_lazy(&endpoint),
        })
    }
}

#[derive(Clone, Copy)]
enum Call {
    AppendEntries,
    Vote,
    InstallSnapshot,
}

type Failed<E> = RPCError<MemberId, Address, RaftError<MemberId, E>>;

impl Peer {
    /// With the certificates as they are now: a channel keeps those that it was made with.
    fn connect_again(&mut self) -> Result<Channel, Unreachable> {
        self.channel = self.network.connect(&self.address);
        self.channel.clone()
    }

    async fn call<Request, Response, E>(
        &mut self,
        call: Call,
        request: &Request,
        option: &RPCOption,
    ) -> Result<Response, Failed<E>>
    where
        Request: Serialize,
        Response: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let channel = match &self.channel {
            Ok(channel) => channel.clone(),
            Err(_) => self.connect_again().map_err(RPCError::Unreachable)?,
        };
        let mut client = RaftClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let json = serde_json::to_vec(request).map_err(|error| NetworkError::new(&error))?;
        let message = RaftMessage { target: self.target, json };
        let answering = async {
            match call {
                Call::AppendEntries => client.append_entries(message).await,
                Call::Vote => client.vote(message).await,
                Call::InstallSnapshot => client.install_snapshot(message).await,
            }
        };
        let limit = option.hard_ttl();
        let answer = match tokio::time::timeout(limit, answering).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) if status.code() == tonic::Code::Unavailable => {
                // The next call says why that does not succeed, if so.
                let _ = self.connect_again();
                return Err(RPCError::Unreachable(Unreachable::new(&status)));
            }
            Ok(Err(status)) => return Err(RPCError::Network(NetworkError::new(&status))),
            Err(_) => {
                let action = match call {
                    Call::AppendEntries => RPCTypes::AppendEntries,
                    Call::Vote => RPCTypes::Vote,
                    Call::InstallSnapshot => RPCTypes::InstallSnapshot,
                };
                let (id, target) = (self.network.from, self.target);
                return Err(RPCError::Timeout(Timeout { action, id, target, timeout: limit }));
            }
        };
        let result: Result<Response, RaftError<MemberId, E>> =
            serde_json::from_slice(&answer.json).map_err(|error| NetworkError::new(&error))?;
        result.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, RPCError<MemberId, Address, RaftError<MemberId>>>
    {
        self.call(Call::AppendEntries, &request, &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<MemberId>, Failed<InstallSnapshotError>> {
        self.call(Call::InstallSnapshot, &request, &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<MemberId>,
        option: RPCOption,
    ) -> Result<VoteResponse<MemberId>, RPCError<MemberId, Address, RaftError<MemberId>>> {
        self.call(Call::Vote, &request, &option).await
    }
}

//! Calls to the other members. A connection to a member is made when it is first needed, and again when it broke.

mod large;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
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

pub(crate) use self::large::time_for;
use self::large::{Carried, LARGE, Large};
use super::election::{PreVote, WouldVote};
use super::membership::Introduced;
use super::{Address, MemberId, Types};

/// Bytes of one message: a group of commands with their manifests, or a chunk of a snapshot.
pub(super) const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Bytes of one entry's commands. The rest of a message is for what is around them.
pub(crate) const MOST_ENTRY_BYTES: usize = MAX_MESSAGE_BYTES - (1 << 20);

/// The longest that a member may say nothing, not even to a ping.
const SILENCE: Duration = Duration::from_secs(4);

/// Before a member that has failed again and again is sent to once more.
const PAUSE: Duration = Duration::from_millis(500);

/// Makes connections, one to each member, and keeps them.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    from: MemberId,
    tls: Option<TlsFiles>,
    way: Way,
    channels: Arc<Mutex<BTreeMap<MemberId, (Address, Channel)>>>,
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
    /// Entries that take longer than one call for them.
    large: Option<Large>,
}

/// Why a member has not answered.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// Nobody listens there, or the connection broke.
    Gone,
    Silent,
    Other,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: MemberId, node: &Address) -> Peer {
        self.peer(target, node)
    }
}

impl Network {
    pub(super) fn new(from: MemberId, tls: Option<TlsFiles>, way: Way) -> Self {
        Self { from, tls, way, channels: Arc::default() }
    }

    pub(super) fn peer(&self, target: MemberId, address: &Address) -> Peer {
        Peer { network: self.clone(), target, address: address.clone(), large: None }
    }

    fn channels(&self) -> MutexGuard<'_, BTreeMap<MemberId, (Address, Channel)>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
    PreVote,
    InstallSnapshot,
    Introduce,
}

type Failed<E> = RPCError<MemberId, Address, RaftError<MemberId, E>>;

enum Failure {
    Unreachable(Unreachable),
    Network(NetworkError),
    Timeout,
}

impl Peer {
    /// For calls beside those of this one.
    fn again(&self) -> Self {
        self.network.peer(self.target, &self.address)
    }

    /// The connection that there is, or a new one with the certificates as they are now.
    fn channel(&self) -> Result<Channel, Unreachable> {
        let mut channels = self.network.channels();
        match channels.get(&self.target) {
            Some((address, channel)) if *address == self.address => Ok(channel.clone()),
            _ => {
                let channel = self.network.connect(&self.address)?;
                channels.insert(self.target, (self.address.clone(), channel.clone()));
                Ok(channel)
            }
        }
    }

    /// The next call says why a new connection does not succeed, if so.
    fn forget_channel(&self) {
        self.network.channels().remove(&self.target);
    }

    async fn send(&self, call: Call, json: Vec<u8>, limit: Duration) -> Result<Vec<u8>, Failure> {
        let channel = self.channel().map_err(Failure::Unreachable)?;
        let mut client = RaftClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let disk = self.address.disk.clone().unwrap_or_default();
        let message = RaftMessage { target: self.target, json, disk };
        let answering = async {
            match call {
                Call::AppendEntries => client.append_entries(message).await,
                Call::Vote => client.vote(message).await,
                Call::PreVote => client.pre_vote(message).await,
                Call::InstallSnapshot => client.install_snapshot(message).await,
                Call::Introduce => client.introduce(message).await,
            }
        };
        match tokio::time::timeout(limit, answering).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().json),
            Ok(Err(status)) if status.code() == tonic::Code::Unavailable => {
                self.forget_channel();
                Err(Failure::Unreachable(Unreachable::new(&status)))
            }
            Ok(Err(status)) => Err(Failure::Network(NetworkError::new(&status))),
            Err(_) => Err(Failure::Timeout),
        }
    }

    pub(super) async fn pre_vote(
        &self,
        request: PreVote,
        limit: Duration,
    ) -> Result<WouldVote, NoAnswer> {
        let json = serde_json::to_vec(&request).map_err(|_| NoAnswer::Other)?;
        let answer = self.send(Call::PreVote, json, limit).await.map_err(|why| match why {
            Failure::Unreachable(_) => NoAnswer::Gone,
            Failure::Timeout => NoAnswer::Silent,
            Failure::Network(_) => NoAnswer::Other,
        })?;
        serde_json::from_slice(&answer).map_err(|_| NoAnswer::Other)
    }

    /// Who answers at the address; or why not, for people.
    pub(super) async fn introduce(&self, limit: Duration) -> Result<Introduced, String> {
        let answer = self.send(Call::Introduce, Vec::new(), limit).await;
        let answer = answer.map_err(|why| match why {
            Failure::Unreachable(error) => error.to_string(),
            Failure::Network(error) => error.to_string(),
            Failure::Timeout => format!("no answer within {} ms", limit.as_millis()),
        })?;
        serde_json::from_slice(&answer).map_err(|error| error.to_string())
    }

    async fn call<Request, Response, E>(
        &self,
        call: Call,
        request: &Request,
        limit: Duration,
    ) -> Result<Response, Failed<E>>
    where
        Request: Serialize,
        Response: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let json = serde_json::to_vec(request).map_err(|error| NetworkError::new(&error))?;
        self.call_with(call, json, limit).await
    }

    async fn call_with<Response, E>(
        &self,
        call: Call,
        json: Vec<u8>,
        limit: Duration,
    ) -> Result<Response, Failed<E>>
    where
        Response: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let answer = self.send(call, json, limit).await.map_err(|why| match why {
            Failure::Unreachable(error) => RPCError::Unreachable(error),
            // For openraft only an unreachable member is worth a pause; to any other it sends again at once, and one
            // that refuses everything would be sent to without end.
            Failure::Network(error) => RPCError::Unreachable(Unreachable::new(&error)),
            Failure::Timeout => {
                let action = match call {
                    Call::AppendEntries => RPCTypes::AppendEntries,
                    Call::Vote | Call::PreVote | Call::Introduce => RPCTypes::Vote,
                    Call::InstallSnapshot => RPCTypes::InstallSnapshot,
                };
                let (id, target) = (self.network.from, self.target);
                RPCError::Timeout(Timeout { action, id, target, timeout: limit })
            }
        })?;
        let result: Result<Response, RaftError<MemberId, E>> =
            serde_json::from_slice(&answer).map_err(|error| NetworkError::new(&error))?;
        result.map_err(|error| match error {
            // It has ended, and its connection has not yet. Another process may be there now.
            RaftError::Fatal(fatal) => {
                self.forget_channel();
                RPCError::Unreachable(Unreachable::new(&fatal))
            }
            error => RPCError::RemoteError(RemoteError::new(self.target, error)),
        })
    }
}

impl RaftNetwork<Types> for Peer {
    /// Short at first: most often a connection broke, and the next one works.
    fn backoff(&self) -> Backoff {
        let shorter = (0..4).map(|step| PAUSE / (16 >> step));
        Backoff::new(shorter.chain(std::iter::repeat(PAUSE)))
    }

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<MemberId>, RPCError<MemberId, Address, RaftError<MemberId>>>
    {
        let carried = Carried::by(&request);
        let Some(carried) = carried else {
            return self.call(Call::AppendEntries, &request, option.hard_ttl()).await;
        };
        let mut large = self.large.take().filter(|large| large.carries(&carried));
        if large.is_none() {
            let json = serde_json::to_vec(&request).map_err(|error| NetworkError::new(&error))?;
            if json.len() <= LARGE {
                return self.call_with(Call::AppendEntries, json, option.hard_ttl()).await;
            }
            large = Some(Large::send(self, carried, &request, json, option.hard_ttl()));
        }
        // Kept in its place: openraft may drop this call at any time.
        let peer = self.again();
        let large = self.large.insert(large.expect("it has just been sent"));
        let (is_answered, answer) = large.wait(&peer, &option).await;
        if is_answered {
            self.large = None;
        }
        answer
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<MemberId>, Failed<InstallSnapshotError>> {
        self.call(Call::InstallSnapshot, &request, option.hard_ttl()).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<MemberId>,
        option: RPCOption,
    ) -> Result<VoteResponse<MemberId>, RPCError<MemberId, Address, RaftError<MemberId>>> {
        self.call(Call::Vote, &request, option.hard_ttl()).await
    }
}

//! Entries that take longer to reach a member than a heartbeat. openraft gives up every call after that time, sends the
//! same again from its beginning, and says nothing else meanwhile: on a slow network the entry would never arrive, and the
//! members would elect.
//!
//! ```text
//! openraft ─▶ append_entries ──────────┐ waits for a while, and the next time for the same
//!                                      ▼
//!             one message, with the time that its bytes take ─────▶ member
//!             heartbeats beside it ───────────────────────────────▶ member
//! ```
//!
//! As long as the heartbeats are answered, openraft is told that the member has what was before the entry, which is what
//! the answers say.

use std::time::Duration;

use openraft::error::{Infallible, RPCError, RaftError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use openraft::{LogId, RaftLogId as _, Vote};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::super::{Address, MemberId, Types};
use super::{Call, Peer};

/// A message with more bytes is on its way while openraft's calls for it come and go.
pub(super) const LARGE: usize = 256 << 10;

/// The slowest network that members are expected to have between them.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// Behind a large message a heartbeat takes its time as well.
const LONGEST_BEAT: Duration = Duration::from_secs(1);

pub(super) type Answer =
    Result<AppendEntriesResponse<MemberId>, RPCError<MemberId, Address, RaftError<MemberId>>>;

/// Which entries a message carries, and for which leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Carried {
    vote: Vote<MemberId>,
    prev: Option<LogId<MemberId>>,
    last: LogId<MemberId>,
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Large {
    carried: Carried,
    answer: AbortOnDropHandle<Answer>,
    /// How many heartbeats have been answered.
    beats: watch::Receiver<u64>,
    _beating: AbortOnDropHandle<()>,
}

impl Carried {
    /// `None` for a heartbeat.
    pub(super) fn by(request: &AppendEntriesRequest<Types>) -> Option<Self> {
        let last = *request.entries.last()?.get_log_id();
        Some(Self { vote: request.vote, prev: request.prev_log_id, last })
    }
}

/// How long so many bytes may take, to a member or to all of them.
pub(crate) fn time_for(bytes: usize, least: Duration) -> Duration {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    least + Duration::from_millis(bytes.saturating_mul(1_000) / BYTES_PER_SECOND)
}

impl Large {
    pub(super) fn send(
        peer: &Peer,
        carried: Carried,
        request: &AppendEntriesRequest<Types>,
        json: Vec<u8>,
        every: Duration,
    ) -> Self {
        let (sending, beating) = (peer.again(), peer.again());
        let limit = time_for(json.len(), every);
        let answer = async move { sending.call_with(Call::AppendEntries, json, limit).await };
        let heartbeat = AppendEntriesRequest::<Types> {
            vote: request.vote,
            prev_log_id: request.prev_log_id,
            entries: Vec::new(),
            leader_commit: request.leader_commit,
        };
        let (answered, beats) = watch::channel(0);
        let beating = async move {
            loop {
                tokio::time::sleep(every / 2).await;
                let beat =
                    beating.call::<_, _, Infallible>(Call::AppendEntries, &heartbeat, LONGEST_BEAT);
                // What else there is to be said is said to the message itself.
                if let Ok(AppendEntriesResponse::<MemberId>::Success) = beat.await {
                    answered.send_modify(|beats| *beats += 1);
                }
            }
        };
        Self {
            carried,
            answer: AbortOnDropHandle::new(tokio::spawn(answer)),
            beats,
            _beating: AbortOnDropHandle::new(tokio::spawn(beating)),
        }
    }

    pub(super) fn carries(&self, carried: &Carried) -> bool {
        self.carried == *carried
    }

    /// Until it has been answered, or the time of the call is nearly over. Whether it has been answered, with what openraft
    /// is told.
    pub(super) async fn wait(&mut self, peer: &Peer, option: &RPCOption) -> (bool, Answer) {
        let limit = option.hard_ttl();
        tokio::select! {
            biased;
            answer = &mut self.answer => {
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(error) => Err(RPCError::Unreachable(Unreachable::new(&error))),
                };
                return (true, answer);
            }
            () = tokio::time::sleep(limit * 9 / 10) => {}
        }
        let is_heard = self.beats.has_changed().unwrap_or(false);
        self.beats.mark_unchanged();
        match self.carried.prev {
            Some(prev) if is_heard => {
                (false, Ok(AppendEntriesResponse::PartialSuccess(Some(prev))))
            }
            // Nothing is before the first entry of a log.
            _ => (false, Err(timeout(peer, limit))),
        }
    }
}

fn timeout(peer: &Peer, limit: Duration) -> RPCError<MemberId, Address, RaftError<MemberId>> {
    let (id, target) = (peer.network.from, peer.target);
    RPCError::Timeout(Timeout { action: RPCTypes::AppendEntries, id, target, timeout: limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_longer_to_arrive_the_more_bytes_it_has() {
        let least = Duration::from_millis(500);
        assert_eq!(time_for(0, least), least);
        assert_eq!(time_for(3 << 20, least), Duration::from_millis(3_500));
    }
}

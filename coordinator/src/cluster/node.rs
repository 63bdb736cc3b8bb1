//! What the services of one coordinator share.

use std::sync::{Arc, PoisonError, RwLock};

use tonic::Status;
use tonic::metadata::MetadataValue;

use super::errors::described;
use super::leading::Leading;
use crate::raft::{MemberId, RaftMember};
use crate::surroundings::beside;

/// The metadata in which a coordinator that does not lead names the one that does.
const LEADER: &str = "weir-leader";

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: MemberId,
    pub(super) member: Arc<RaftMember>,
    leading: RwLock<Option<Arc<Leading>>>,
    /// Of the facts at an index. Held while it is made: who comes meanwhile waits for it, and most often takes it.
    hash: tokio::sync::Mutex<Option<(u64, String)>>,
}

impl Node {
    pub(super) fn new(id: MemberId, member: Arc<RaftMember>) -> Self {
        Self { id, member, leading: RwLock::default(), hash: tokio::sync::Mutex::default() }
    }

    /// Of the facts, with the index that they are at and their epoch. Neither the ledger nor a thread that others wait
    /// for is held while it is written out, and it is not even copied as long as nothing changes.
    pub(super) async fn facts(&self) -> (String, u64, u64) {
        let mut known = self.hash.lock().await;
        let (ledger, applied, epoch) = {
            let (ledger, applied) = self.member.ledger_at().await;
            let epoch = ledger.current_epoch();
            if let Some((_, hash)) = known.as_ref().filter(|(index, _)| *index == ledger.last_index)
            {
                return (hash.clone(), applied, epoch);
            }
            (ledger.clone(), applied, epoch)
        };
        let written = beside(move || {
            let json = serde_json::to_vec(&ledger).expect("a ledger can be written as JSON");
            (ledger.last_index, blake3::hash(&json).to_hex()[..32].to_owned())
        });
        let (index, hash) = written.await;
        *known = Some((index, hash.clone()));
        (hash, applied, epoch)
    }

    /// Of the coordinators.
    pub(super) fn urls(&self) -> Vec<String> {
        self.member.members().into_values().map(|address| address.url).collect()
    }

    pub(super) fn set_leading(&self, leading: Option<Arc<Leading>>) {
        *self.leading.write().unwrap_or_else(PoisonError::into_inner) = leading;
    }

    pub(super) fn is_leading(&self) -> Option<Arc<Leading>> {
        self.leading.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Or the refusal of a coordinator that does not lead, of the kind that the caller knows.
    pub(super) fn leading(&self, kind: fn(String) -> Status) -> Result<Arc<Leading>, Status> {
        self.is_leading().ok_or_else(|| self.not_leading(kind))
    }

    /// The leader, sure to be it: what it knows now is all that there is.
    pub(super) async fn sure_to_lead(&self) -> Result<Arc<Leading>, Status> {
        let leading = self.leading(Status::unavailable)?;
        match self.member.catch_up().await {
            Ok(()) => Ok(leading),
            Err(_) => Err(self.not_leading(Status::unavailable)),
        }
    }

    pub(super) fn not_leading(&self, kind: fn(String) -> Status) -> Status {
        let leader = self.member.leader().filter(|leader| *leader != self.id);
        let url = leader.and_then(|leader| self.member.members().remove(&leader));
        let Some(url) = url else {
            let text = format!("coordinator {} does not lead, and knows no leader yet", self.id);
            return described(kind(text));
        };
        let mut status = kind(format!("coordinator {} does not lead; {url} does", self.id));
        if let Ok(value) = MetadataValue::try_from(url.url) {
            status.metadata_mut().insert(LEADER, value);
        }
        described(status)
    }
}

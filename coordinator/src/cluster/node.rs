//! What the services of one coordinator share.

use std::sync::{Arc, PoisonError, RwLock};

use tonic::Status;
use tonic::metadata::MetadataValue;

use super::leading::Leading;
use crate::raft::{MemberId, RaftMember};

/// The metadata in which a coordinator that does not lead names the one that does.
const LEADER: &str = "weir-leader";

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: MemberId,
    pub(super) member: Arc<RaftMember>,
    leading: RwLock<Option<Arc<Leading>>>,
}

impl Node {
    pub(super) fn new(id: MemberId, member: Arc<RaftMember>) -> Self {
        Self { id, member, leading: RwLock::default() }
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
            return kind(format!("coordinator {} does not lead, and knows no leader yet", self.id));
        };
        let mut status = kind(format!("coordinator {} does not lead; {url} does", self.id));
        if let Ok(value) = MetadataValue::try_from(url.url) {
            status.metadata_mut().insert(LEADER, value);
        }
        status
    }
}

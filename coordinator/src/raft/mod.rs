//! The ledger, replicated: openraft keeps one log on every member, and each applies it to its own copy
//! of the facts. No other module knows openraft.
//!
//! ```text
//! append ─▶ leader: log store ─▶ AppendEntries ─▶ members' log stores
//!                │ a majority has it
//!                ▼
//!             machine: apply ─▶ Ledger ─▶ answer
//! ```

mod election;
mod log_store;
mod machine;
mod member;
mod membership;
mod network;
mod service;
#[cfg(test)]
pub(crate) mod simulation;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[cfg(not(test))]
use openraft::TokioRuntime as Runtime;
use serde::{Deserialize, Serialize};
use weir_ledger::{Command, Response};

pub use member::{AppendError, RaftMember, RaftOptions};
pub use membership::{ChangeError, MemberState, Refusal};
pub(crate) use network::{MOST_ENTRY_BYTES, time_for};
pub use service::RaftService;
#[cfg(test)]
use simulation::Runtime;

/// A member's number, given to it once and never used for another.
pub type MemberId = u64;

openraft::declare_raft_types!(
    /// The types of this log.
    pub(crate) Types:
        D = Commands,
        R = Applied,
        NodeId = MemberId,
        Node = Address,
        Entry = openraft::Entry<Types>,
        SnapshotData = std::io::Cursor<Vec<u8>>,
        AsyncRuntime = Runtime,
);

/// Where a member listens for the others, and on which disk it keeps what it has promised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// `https://host:port` or `http://host:port`.
    pub url: String,
    /// What its log is called, once that is known. A process that answers at the URL with another log has lost
    /// what the member has promised to keep, and is not listened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

impl Address {
    /// Of a member whose disk is not known yet.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), disk: None }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// One entry of the log: commands that were appended at about the same time.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Commands {
    commands: Vec<Command>,
    /// Set once the log of the member that is asked to append them has them: from then on they may come into the ledger,
    /// whatever that member is told later. Other members' copies of the entry have none of their own.
    #[serde(skip)]
    is_logged: Arc<AtomicBool>,
}

impl Commands {
    pub(crate) fn new(commands: Vec<Command>) -> Self {
        Self { commands, is_logged: Arc::default() }
    }
}

/// What the commands of an entry did. Only the member that appended them looks at it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Applied {
    #[serde(skip)]
    responses: Vec<Response>,
}

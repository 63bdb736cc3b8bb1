//! Who has changed what: for people, and nothing else follows from it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// So many are kept, the newest ones.
pub const MOST_CLIENT_CHANGES: usize = 10_000;

/// A change that a client has asked for. No part of a request but the name of what it was about is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientChange {
    pub at: DateTime<Utc>,
    /// The name of its token.
    pub who: String,
    /// The method, `Runs/Submit`.
    pub what: String,
    /// The run, backfill, token, coordinator or executor; empty when it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// Why it was refused: a gRPC code's name. None: it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

//! Who has changed what, `weir cluster audit-log`: for people, and nothing else follows from it.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// So many are kept, the newest ones.
pub const MOST_CLIENT_CHANGES: usize = 10_000;

/// So many kinds of refusals are kept.
pub const MOST_REFUSALS: usize = 1_000;

/// A change that a client has asked for, or refusals that are alike: of one client, one method and one code. No part of a request but the name of what it was about is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientChange {
    /// Of refusals the last one.
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
    /// 1, but for refusals.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub times: u32,
    /// When the first of several was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
}

impl ClientChange {
    fn is_like(&self, other: &Self) -> bool {
        (&self.who, &self.what, &self.refused) == (&other.who, &other.what, &other.refused)
    }
}

/// Adds refusals to those that are alike, so that nobody who may change nothing gets more than a few entries.
pub(crate) fn add_refusal(refusals: &mut VecDeque<ClientChange>, mut refusal: ClientChange) {
    if let Some(known) = refusals.iter().position(|known| known.is_like(&refusal)) {
        let known = refusals.remove(known).expect("it was found");
        refusal.times = refusal.times.saturating_add(known.times);
        refusal.since = known.since.or(Some(known.at));
    }
    while refusals.len() >= MOST_REFUSALS {
        refusals.pop_front();
    }
    refusals.push_back(refusal);
}

fn once() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
fn is_once(times: &u32) -> bool {
    *times == 1
}

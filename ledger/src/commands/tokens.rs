//! Tokens of clients. Only their hashes are known here.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::facts::{Ledger, Role, TokenFacts};
use crate::rejection::Rejection;

/// A client may use a token from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateToken {
    pub epoch: u64,
    /// For people; no other token has it.
    pub name: String,
    pub role: Role,
    /// BLAKE3 of the token, hex.
    pub hash: String,
    pub at: DateTime<Utc>,
}

impl CreateToken {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        if ledger.tokens.contains_key(&self.name) {
            return Err(Rejection::TokenExists(self.name.clone()));
        }
        let facts = TokenFacts { role: self.role, hash: self.hash.clone(), created_at: self.at };
        ledger.tokens.insert(self.name.clone(), facts);
        Ok(true)
    }
}

/// A token opens nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeToken {
    pub epoch: u64,
    pub name: String,
}

impl RevokeToken {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        match ledger.tokens.remove(&self.name) {
            Some(_) => Ok(true),
            None => Err(Rejection::UnknownToken(self.name.clone())),
        }
    }
}

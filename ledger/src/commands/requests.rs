//! Changes that are made once, however often a client asks for them.

use serde::{Deserialize, Serialize};

use super::Command;
use crate::facts::Ledger;
use crate::pipelines::RequestFacts;
use crate::rejection::Rejection;

/// What a client has asked for under a name of its own. Asked for again it changes nothing; the same name
/// for something else is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requested {
    pub epoch: u64,
    pub request_id: String,
    pub facts: RequestFacts,
    /// `None`: it has been done by other commands before.
    pub command: Option<Box<Command>>,
}

impl Requested {
    /// `Ok(true)`: it was done before.
    pub(crate) fn is_known(&self, ledger: &Ledger) -> Result<bool, Rejection> {
        match ledger.answered.get(&self.request_id) {
            None => Ok(false),
            Some(known) if *known == self.facts => Ok(true),
            Some(known) => Err(Rejection::RequestUsed {
                request: self.request_id.clone(),
                method: known.method.clone(),
                subject: known.subject.clone(),
            }),
        }
    }

    pub(crate) fn note(&self, ledger: &mut Ledger) {
        ledger.answered.note(&self.request_id, self.facts.clone());
    }
}

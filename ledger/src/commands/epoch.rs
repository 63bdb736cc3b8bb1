//! A process takes the ledger over.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::facts::{EpochFacts, Ledger};
use crate::rejection::Rejection;

/// Begins an epoch: all attempts of earlier ones are over, and their writers are fenced off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEpoch {
    /// A fresh id is taken by an empty ledger; later ones must repeat it.
    pub ledger_id: String,
    pub boot_id: String,
    pub pid: u32,
    pub host: String,
    pub at: DateTime<Utc>,
}

impl NewEpoch {
    pub(crate) fn apply(&self, ledger: &mut Ledger, index: u64) -> Result<bool, Rejection> {
        match &ledger.ledger_id {
            Some(known) if *known != self.ledger_id => {
                return Err(Rejection::OtherLedger {
                    known: known.clone(),
                    given: self.ledger_id.clone(),
                });
            }
            Some(_) => {}
            None => ledger.ledger_id = Some(self.ledger_id.clone()),
        }
        ledger.epoch = Some(EpochFacts {
            epoch: index,
            boot_id: self.boot_id.clone(),
            pid: self.pid,
            host: self.host.clone(),
            at: self.at,
        });
        Ok(true)
    }
}

//! What clients have changed, or wanted to.

use serde::{Deserialize, Serialize};

use crate::client_changes::{ClientChange, MOST_CLIENT_CHANGES, add_refusal};
use crate::facts::Ledger;
use crate::rejection::Rejection;

/// A client has asked for a change, and has got its answer. The oldest such notes make place, each kind for itself: who is
/// refused pushes out no change that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteClientChange {
    pub epoch: u64,
    pub change: ClientChange,
}

impl NoteClientChange {
    #[expect(clippy::unnecessary_wraps, reason = "as all commands")]
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        if self.change.refused.is_some() {
            add_refusal(&mut ledger.client_refusals, self.change.clone());
            return Ok(true);
        }
        let changes = &mut ledger.client_changes;
        while changes.len() >= MOST_CLIENT_CHANGES {
            changes.pop_front();
        }
        changes.push_back(self.change.clone());
        Ok(true)
    }
}

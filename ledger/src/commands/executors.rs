//! Which executors are to take no tasks any more.

use serde::{Deserialize, Serialize};

use crate::facts::Ledger;
use crate::rejection::Rejection;

/// An executor takes no more tasks and leaves once nothing is left for it to do; or takes tasks again. It outlives
/// leaders and the executor's own processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDraining {
    pub epoch: u64,
    pub executor: String,
    pub is_draining: bool,
}

impl SetDraining {
    #[expect(clippy::unnecessary_wraps, reason = "as all commands")]
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        Ok(match self.is_draining {
            true => ledger.draining.insert(self.executor.clone()),
            false => ledger.draining.remove(&self.executor),
        })
    }
}

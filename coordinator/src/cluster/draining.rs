//! Executors that an admin sends away, or wants back: what he asks for, as a fact. What follows for those that are here is
//! in `pool::draining`.

use tonic::Status;
use weir_ledger::{Command, SetDraining};

use super::node::Node;
use super::{audit_log, convert};
use crate::store::StoreError;

/// Whether that is new.
pub(super) async fn set(node: &Node, executor: String, is_draining: bool) -> Result<bool, Status> {
    audit_log::about(&executor);
    let leading = node.sure_to_lead().await?;
    let is_known = leading.with_ledger(|ledger| ledger.draining.contains(&executor)).await
        || leading.pool.executors().iter().any(|known| known.id == executor);
    if !is_known {
        return Err(Status::not_found(format!(
            "no executor `{executor}` is here: `weir cluster status` lists them"
        )));
    }
    let set = SetDraining { epoch: leading.epoch, executor, is_draining };
    match leading.store.append(Command::SetDraining(set)).await {
        Ok(changed) => {
            leading.let_executors_leave().await;
            Ok(changed)
        }
        Err(StoreError::NotLeader(_)) => Err(node.not_leading(Status::unavailable)),
        Err(error) => {
            leading.broken.cancel();
            Err(convert::unknown(Status::unavailable(error.to_string())))
        }
    }
}

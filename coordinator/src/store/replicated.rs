//! Appends to the replicated log: what waits together becomes one entry.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use super::{Append, GROUP, StoreError};
use crate::raft::{AppendError, RaftMember};

/// Without a majority an entry may wait for ever. Whoever appended it then gives up, and asks the
/// ledger again once somebody leads.
const LONGEST_APPEND: Duration = Duration::from_secs(10);

/// Until the store is closed.
pub(super) async fn write(member: Arc<RaftMember>, mut appends: Receiver<Append>) {
    let mut group = Vec::new();
    while appends.recv_many(&mut group, GROUP).await > 0 {
        let (commands, replies): (Vec<_>, Vec<_>) =
            group.drain(..).map(|Append { command, reply }| (command, reply)).unzip();
        let appending = tokio::time::timeout(LONGEST_APPEND, member.append(commands));
        let appended = match appending.await {
            Ok(Ok(responses)) => Ok(responses),
            Ok(Err(error @ AppendError::NotLeader { .. })) => {
                Err(StoreError::NotLeader(error.to_string()))
            }
            Ok(Err(error @ AppendError::Unknown(_))) => Err(StoreError::Unknown(error.to_string())),
            Err(_) => Err(StoreError::Unknown(format!(
                "the replicated ledger has not answered for {} s",
                LONGEST_APPEND.as_secs()
            ))),
        };
        // Who no longer waits does not need the answer.
        match appended {
            Ok(responses) => {
                for (reply, response) in replies.into_iter().zip(responses) {
                    let _ = reply.send(Ok(response));
                }
            }
            Err(error) => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }
}

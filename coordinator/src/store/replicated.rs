//! Appends to the replicated log: what waits together becomes one entry.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use weir_ledger::{Command, Response};

use super::{Append, StoreError};
use crate::raft::{AppendError, RaftMember};

/// Without a majority an entry may wait for ever. Whoever appended it then gives up, and asks the
/// ledger again once somebody leads.
const LONGEST_APPEND: Duration = Duration::from_secs(10);

/// The most appends that share one entry. Larger ones were slower: while one is read and applied the members
/// hear nothing else, and elect.
pub(super) const GROUP: usize = 512;

/// About how many bytes an entry may have; what is larger goes alone.
const ENTRY_BYTES: usize = 4 << 20;

/// Until the store is closed.
pub(super) async fn write(member: Arc<RaftMember>, mut appends: Receiver<Append>) {
    let mut group = Vec::new();
    while appends.recv_many(&mut group, GROUP).await > 0 {
        // The tasks that begin together send one after the other: without this the first would have an entry
        // of its own, for which all others wait.
        tokio::task::yield_now().await;
        while group.len() < GROUP
            && let Ok(next) = appends.try_recv()
        {
            group.push(next);
        }
        let mut waiting = group.drain(..).peekable();
        while waiting.peek().is_some() {
            let (mut commands, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
            while let Some(Append { command, reply }) = waiting.next_if(|next| {
                bytes += weight(&next.command);
                bytes <= ENTRY_BYTES || commands.is_empty()
            }) {
                commands.push(command);
                replies.push(reply);
            }
            append(&member, commands, replies).await;
        }
    }
}

/// About how large a command is in the log.
fn weight(command: &Command) -> usize {
    match command {
        Command::CommitIntent(_) | Command::PlanRun(_) | Command::PrepareSink(_) => {
            serde_json::to_vec(command).map_or(0, |json| json.len())
        }
        _ => 512,
    }
}

async fn append(
    member: &RaftMember,
    commands: Vec<Command>,
    replies: Vec<oneshot::Sender<Result<Response, StoreError>>>,
) {
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

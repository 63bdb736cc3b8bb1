//! Appends to the replicated log: what waits together becomes one entry.

use std::io;
use std::iter::Peekable;
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

/// How many bytes of commands an entry may have; what is larger goes alone.
const ENTRY_BYTES: usize = 1 << 20;

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
            let (commands, replies) = next_entry(&mut waiting).into_iter().unzip();
            append(&member, commands, replies).await;
        }
    }
}

type Waiting = (Command, oneshot::Sender<Result<Response, StoreError>>);

/// What goes into one entry; one command at least.
fn next_entry(waiting: &mut Peekable<impl Iterator<Item = Append>>) -> Vec<Waiting> {
    let (mut entry, mut bytes) = (Vec::new(), 0);
    while let Some(Append { command, reply }) = waiting.next_if(|next| {
        bytes += json_bytes(&next.command);
        bytes <= ENTRY_BYTES || entry.is_empty()
    }) {
        entry.push((command, reply));
    }
    entry
}

/// What a command takes in the log, and on its way to the others.
fn json_bytes(command: &Command) -> usize {
    let mut counted = Counted(0);
    // Nothing is written, so that nothing can fail.
    let _ = serde_json::to_writer(&mut counted, command);
    counted.0
}

struct Counted(usize);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

#[cfg(test)]
mod tests {
    use weir_ledger::SetWatermark;
    use weir_spec::{NodeName, PipelineName};

    use super::*;

    fn watermark(bytes: usize) -> Append {
        let (reply, _) = oneshot::channel();
        let set = SetWatermark {
            epoch: 1,
            pipeline: PipelineName("p".into()),
            source: NodeName::new("s"),
            value: "x".repeat(bytes),
        };
        Append { command: Command::SetWatermark(set), reply }
    }

    #[test]
    fn an_entry_has_as_many_commands_as_its_bytes_allow_whatever_they_are() {
        let sizes = [10, 300 << 10, 300 << 10, 300 << 10, 300 << 10, 5 << 20, 10, 10];
        let mut waiting = sizes.into_iter().map(watermark).peekable();
        let mut entries = Vec::new();
        while waiting.peek().is_some() {
            let entry = next_entry(&mut waiting);
            let bytes: usize = entry.iter().map(|(command, _)| json_bytes(command)).sum();
            assert!(bytes <= ENTRY_BYTES || entry.len() == 1, "{bytes}");
            entries.push(entry.len());
        }
        assert_eq!(entries, [4, 1, 1, 2]);
    }
}

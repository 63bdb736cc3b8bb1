//! Appends to the replicated log: what waits together becomes one entry.

use std::io;
use std::iter::Peekable;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use weir_ledger::{Command, Response};

use super::{Append, StoreError};
use crate::raft::{AppendError, MOST_ENTRY_BYTES, RaftMember, time_for};

/// Without a majority an entry may wait for ever. Whoever appended it then gives up, and asks the
/// ledger again once somebody leads. A large one has the time besides that its bytes take.
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
            let Next { entry, bytes } = next_entry(&mut waiting);
            let (commands, replies) = entry.into_iter().unzip();
            append(&member, commands, bytes, replies).await;
        }
    }
}

type Waiting = (Command, oneshot::Sender<Result<Response, StoreError>>);

struct Next {
    entry: Vec<Waiting>,
    /// Of its commands.
    bytes: usize,
}

/// What goes into one entry; one command at least.
fn next_entry(waiting: &mut Peekable<impl Iterator<Item = Append>>) -> Next {
    let mut next = Next { entry: Vec::new(), bytes: 0 };
    while let Some(append) = waiting.peek() {
        let bytes = json_bytes(&append.command);
        if next.bytes + bytes > ENTRY_BYTES && !next.entry.is_empty() {
            break;
        }
        next.bytes += bytes;
        next.entry.extend(waiting.next().map(|Append { command, reply }| (command, reply)));
    }
    next
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
    bytes: usize,
    replies: Vec<oneshot::Sender<Result<Response, StoreError>>>,
) {
    if bytes > MOST_ENTRY_BYTES {
        // It is one command. In the log no message to another member could hold it.
        for reply in replies {
            let _ = reply.send(Err(StoreError::TooLarge { bytes, most: MOST_ENTRY_BYTES }));
        }
        return;
    }
    let limit = time_for(bytes, LONGEST_APPEND);
    let appended = match tokio::time::timeout(limit, member.append(commands)).await {
        Ok(Ok(responses)) => Ok(responses),
        Ok(Err(error @ AppendError::NotLeader { .. })) => {
            Err(StoreError::NotLeader(error.to_string()))
        }
        Ok(Err(error @ AppendError::Unknown(_))) => Err(StoreError::Unknown(error.to_string())),
        Err(_) => Err(StoreError::Unknown(format!(
            "the replicated ledger has not answered for {} s",
            limit.as_secs()
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

    use super::super::LedgerStore;
    use super::*;
    use crate::raft::tests::Cluster;

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
            let Next { entry, bytes } = next_entry(&mut waiting);
            let all: usize = entry.iter().map(|(command, _)| json_bytes(command)).sum();
            assert_eq!(bytes, all);
            assert!(bytes <= ENTRY_BYTES || entry.len() == 1, "{bytes}");
            entries.push(entry.len());
        }
        assert_eq!(entries, [4, 1, 1, 2]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_no_message_could_hold_is_refused_before_it_is_in_the_log() {
        let cluster = Cluster::start(1).await;
        cluster.leader().await;
        let member = &cluster.running[&1].member;
        // Nothing else is appended then.
        while member.members().values().any(|address| address.disk.is_none()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let before = member.applied_index();
        let store = LedgerStore::replicated(Arc::clone(member));
        let Append { command, .. } = watermark(MOST_ENTRY_BYTES);
        let refused = store.append(command).await;
        let Err(error @ StoreError::TooLarge { .. }) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("66060288"), "{error}");
        assert_eq!(member.applied_index(), before);
        let Append { command, .. } = watermark(10);
        let answer = store.append(command).await;
        assert!(
            matches!(answer, Err(StoreError::Rejected(_))),
            "the next one is asked: {answer:?}"
        );
        store.close().await;
    }
}

//! The log of a run as a stream: what is stored, then what is in memory, then what comes.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Status;
use weir_executor::storage::Storage;
use weir_ledger::{RunId, RunState};
use weir_proto::v1;

use super::convert::time;
use super::leading::Leading;
use super::node::Node;
use super::run_log::{Level, LogLine, Position, read_after};

/// Lines that wait for the network.
const READ_AHEAD: usize = 64;

/// Between two looks at a run that nobody works on now.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

pub(super) type Lines = mpsc::Receiver<Result<v1::LogLine, Status>>;

/// From behind a position to the end that there is now, or with `follow` until the run ends.
pub(super) fn stream(
    node: Arc<Node>,
    leading: &Arc<Leading>,
    run: RunId,
    folder: Storage,
    position: Option<Position>,
    follow: bool,
) -> Lines {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    // A reader does not keep a leadership that is over.
    let leading = Arc::downgrade(leading);
    let reader = Reader { leading, run, folder, position, follow };
    tokio::spawn(async move {
        if let Err(problem) = reader.send_all(&sender).await {
            let status = match problem {
                Problem::NotLeading => node.not_leading(Status::unavailable),
                Problem::Unreadable(text) => Status::unavailable(text),
                Problem::Gone => return,
            };
            let _ = sender.send(Err(status)).await;
        }
    });
    receiver
}

enum Problem {
    /// Nobody reads any more.
    Gone,
    NotLeading,
    Unreadable(String),
}

struct Reader {
    leading: Weak<Leading>,
    run: RunId,
    folder: Storage,
    position: Option<Position>,
    follow: bool,
}

impl Reader {
    async fn send_all(
        mut self,
        sender: &mpsc::Sender<Result<v1::LogLine, Status>>,
    ) -> Result<(), Problem> {
        loop {
            // Looked at before the lines: a run that is over, and whose session is gone, has no more of them.
            let is_over = self.is_over().await?;
            // Asked for before the lines are read, so that none falls in between.
            let log = self.leading.upgrade().and_then(|leading| leading.log(&self.run));
            let changes = log.as_ref().map(|log| log.changes());
            let in_memory = log.as_ref().map(|log| log.after(self.position));
            drop(log);
            let lines = match in_memory {
                Some((lines, true)) => lines,
                // What had left the memory by then is in the storage now, and comes first.
                in_memory => {
                    let stored = self.stored().await?;
                    match stored.is_empty() {
                        true => in_memory.map(|(lines, _)| lines).unwrap_or_default(),
                        false => stored,
                    }
                }
            };
            let is_any = !lines.is_empty();
            for line in lines {
                self.position = Some(line.position);
                sender.send(Ok(message(line))).await.map_err(|_| Problem::Gone)?;
            }
            if is_any {
                continue;
            }
            if is_over || !self.follow {
                return Ok(());
            }
            let changed = async {
                match changes {
                    Some(mut changes) => {
                        // Its end is a change as well.
                        let _ = tokio::time::timeout(BETWEEN_LOOKS, changes.changed()).await;
                    }
                    None => tokio::time::sleep(BETWEEN_LOOKS).await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = sender.closed() => return Err(Problem::Gone),
            }
        }
    }

    async fn is_over(&self) -> Result<bool, Problem> {
        let leading = self.leading.upgrade().filter(|leading| !leading.has_ended());
        let leading = leading.ok_or(Problem::NotLeading)?;
        // A window's run that has ended is in its folder only.
        let state =
            leading.with_ledger(|ledger| ledger.run(&self.run).map(|run| run.state.clone()));
        let is_over = match state.await {
            Some(RunState::Queued | RunState::Running) => false,
            Some(_) | None => true,
        };
        Ok(is_over && leading.log(&self.run).is_none())
    }

    async fn stored(&self) -> Result<Vec<LogLine>, Problem> {
        read_after(&self.folder, self.position).await.map_err(|error| {
            Problem::Unreadable(format!("the log of run {} cannot be read: {error}", self.run))
        })
    }
}

fn message(line: LogLine) -> v1::LogLine {
    let LogLine { position, at, level, entry } = line;
    v1::LogLine {
        position: position.to_string(),
        at: time(at),
        level: match level {
            Level::Info => v1::LogLevel::Info,
            Level::Warn => v1::LogLevel::Warn,
            Level::Error => v1::LogLevel::Error,
        }
        .into(),
        message: entry.message,
        stage: entry.stage.unwrap_or_default(),
        slice: entry.slice,
        attempt: entry.attempt,
        executor: entry.executor.unwrap_or_default(),
        node: entry.node.unwrap_or_default(),
        rows: entry.rows,
    }
}

//! The ledger, as tasks see it.

use std::sync::Arc;

use async_trait::async_trait;
use weir_executor::{Commit, CommitLog, CommitLogError, Task};
use weir_ledger::{Command, CommitDone, CommitIntent, RunId, SliceAttempt};

use crate::store::{LedgerStore, StoreError};

/// Appends the intents and completions of tasks to the log.
#[derive(Debug)]
pub(crate) struct LedgerCommitLog {
    pub(crate) store: Arc<LedgerStore>,
}

#[async_trait]
impl CommitLog for LedgerCommitLog {
    async fn intent(&self, task: &Task, commit: &Commit) -> Result<(), CommitLogError> {
        self.append(Command::CommitIntent(CommitIntent {
            task: slice_attempt(task),
            commit: commit.clone(),
        }))
        .await
    }

    async fn done(&self, task: &Task, sequence: u64) -> Result<(), CommitLogError> {
        self.append(Command::CommitDone(CommitDone { task: slice_attempt(task), sequence })).await
    }
}

impl LedgerCommitLog {
    async fn append(&self, command: Command) -> Result<(), CommitLogError> {
        match self.store.append(command).await {
            Ok(_) => Ok(()),
            Err(StoreError::Rejected(rejection)) => {
                Err(CommitLogError::Fenced(rejection.to_string()))
            }
            Err(error) => Err(CommitLogError::Unavailable(error.to_string())),
        }
    }
}

fn slice_attempt(task: &Task) -> SliceAttempt {
    SliceAttempt {
        epoch: task.epoch,
        run: RunId(task.run.clone()),
        stage: task.stage.id,
        slice: task.slice,
        attempt: task.attempt,
    }
}

//! The ledger, as tasks see it.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;
use weir_executor::{Commit, CommitLog, CommitLogError, RunFolder, Task};
use weir_ledger::{Command, CommitDone, CommitIntent, RunId, SliceAttempt};
use weir_spec::PipelineSpec;

use crate::limits::{ExceededLimit, Moment, exceeded_limit, has_row_limit};
use crate::store::{LedgerStore, StoreError};

/// Appends the intents and completions of tasks to the log. Refuses the intent of a batch with which
/// `max_errors` would be exceeded.
#[derive(Debug)]
pub(crate) struct LedgerCommitLog {
    store: Arc<LedgerStore>,
    /// With a limit of rows in it; intents are then judged and appended one by one.
    limited: Option<PipelineSpec>,
    judging: Mutex<()>,
    folder: RunFolder,
}

impl LedgerCommitLog {
    pub(crate) fn new(store: Arc<LedgerStore>, spec: &PipelineSpec, folder: &RunFolder) -> Self {
        Self {
            store,
            limited: has_row_limit(spec).then(|| spec.clone()),
            judging: Mutex::default(),
            folder: folder.clone(),
        }
    }

    async fn judge(
        &self,
        spec: &PipelineSpec,
        task: &Task,
        commit: &Commit,
    ) -> Result<(), CommitLogError> {
        let exceeded = {
            let ledger = self.store.ledger().await;
            let run =
                ledger.run(&RunId(task.run.clone())).expect("the task's run is in the ledger");
            exceeded_limit(spec, run, Moment::BeforeCommit(&commit.account))
        };
        let Some(ExceededLimit { node, mut message }) = exceeded else { return Ok(()) };
        if commit.account.nodes.get(&node).is_some_and(|counts| counts.dead_lettered > 0) {
            let sequence = commit.manifest.sequence;
            let Task { stage, slice, attempt, .. } = task;
            let name = RunFolder::dead_letter_file(&node, stage.id, *slice, sequence, *attempt);
            message.push_str(&format!(
                ". The batch with the last of them is not committed; its rejected rows are in {}",
                self.folder.storage().shown(&name)
            ));
        }
        Err(CommitLogError::Refused(message))
    }
}

#[async_trait]
impl CommitLog for LedgerCommitLog {
    async fn intent(&self, task: &Task, commit: &Commit) -> Result<(), CommitLogError> {
        let _judging = match &self.limited {
            None => None,
            Some(spec) => {
                let judging = self.judging.lock().await;
                self.judge(spec, task, commit).await?;
                Some(judging)
            }
        };
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
            Err(error @ StoreError::TooLarge { .. }) => {
                Err(CommitLogError::Refused(error.to_string()))
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

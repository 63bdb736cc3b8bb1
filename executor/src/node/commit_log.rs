//! The ledger, as tasks of this process see it: behind the stream to the leader.

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use weir_proto::internal::TaskId;
use weir_proto::internal::answer::Outcome;
use weir_proto::internal::report::Fact;

use crate::{Commit, CommitLog, CommitLogError, Task};

/// A fact that a task waits to have put down.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) task: TaskId,
    pub(super) fact: Fact,
    /// Dropped when the task has no right to go on.
    pub(super) answer: oneshot::Sender<Result<(), CommitLogError>>,
}

/// Of one task.
#[derive(Debug)]
pub(super) struct RemoteCommitLog {
    pub(super) task: TaskId,
    pub(super) calls: mpsc::Sender<Call>,
}

#[async_trait]
impl CommitLog for RemoteCommitLog {
    async fn intent(&self, _task: &Task, commit: &Commit) -> Result<(), CommitLogError> {
        let json = serde_json::to_vec(commit).expect("commits can be written as JSON");
        self.call(Fact::Intent(json)).await
    }

    async fn done(&self, _task: &Task, sequence: u64) -> Result<(), CommitLogError> {
        self.call(Fact::Done(sequence)).await
    }
}

impl RemoteCommitLog {
    async fn call(&self, fact: Fact) -> Result<(), CommitLogError> {
        let given_up = || CommitLogError::Fenced("the leader has given this attempt up".to_owned());
        let (answer, answered) = oneshot::channel();
        let call = Call { task: self.task.clone(), fact, answer };
        self.calls.send(call).await.map_err(|_| given_up())?;
        answered.await.map_err(|_| given_up())?
    }
}

/// What an answer means to the task.
pub(super) fn answer_result(outcome: Outcome, message: String) -> Result<(), CommitLogError> {
    match outcome {
        Outcome::Accepted => Ok(()),
        Outcome::Fenced => Err(CommitLogError::Fenced(message)),
        Outcome::Refused => Err(CommitLogError::Refused(message)),
        Outcome::Unavailable => Err(CommitLogError::Unavailable(message)),
        Outcome::Unspecified => Err(CommitLogError::Unavailable(format!(
            "the leader has answered what this version does not understand ({message})"
        ))),
    }
}

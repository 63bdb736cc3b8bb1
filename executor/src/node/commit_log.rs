//! The ledger, as tasks of this process see it: behind the stream to the leader.

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use weir_proto::internal::TaskId;
use weir_proto::internal::answer::Outcome;
use weir_proto::internal::report::Fact;

use super::link::MAX_MESSAGE_BYTES;
use crate::{Commit, CommitLog, CommitLogError, Task};

/// Half of what a message may have, which leaves room for what the ledger adds to it.
const MAX_INTENT_BYTES: usize = MAX_MESSAGE_BYTES / 2;

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
        check_size(json.len())?;
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

/// A message that nobody takes would be sent again for ever.
fn check_size(bytes: usize) -> Result<(), CommitLogError> {
    if bytes <= MAX_INTENT_BYTES {
        return Ok(());
    }
    Err(CommitLogError::Refused(format!(
        "the description of a batch has {} MiB, and may have {}: a batch must write fewer files; \
         lower `batch_rows` or partition by a column with fewer values",
        bytes >> 20,
        MAX_INTENT_BYTES >> 20
    )))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_no_message_can_hold_is_refused_with_a_way_out() {
        check_size(MAX_INTENT_BYTES).expect("it fits");
        let error = check_size(MAX_INTENT_BYTES + 1).expect_err("it does not");
        assert!(matches!(error, CommitLogError::Refused(_)));
        assert!(error.to_string().contains("lower `batch_rows`"), "{error}");
    }
}

//! The result of a task, as it travels from the executor to the leader.

use std::error::Error;

use serde::{Deserialize, Serialize};
use weir_connectors::{ConnectorError, ErrorKind, Redactor};
use weir_plan::{ExchangeOutput, RowAccount};
use weir_spec::NodeName;

use crate::{CommitLogError, TaskError, TaskOutcome};

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskEnd {
    /// See [`TaskOutcome::Committed`].
    Committed(RowAccount),
    /// See [`TaskOutcome::Exchanged`].
    Exchanged {
        output: ExchangeOutput,
        account: RowAccount,
    },
    /// See [`TaskOutcome::Stopped`].
    Stopped,
    Failed(TaskFailure),
}

/// A [`TaskError`] without its chain of causes: their texts are in the messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskFailure {
    Connector { node: NodeName, kind: ErrorKind, message: String },
    Operator { stage: String, message: String },
    InputLost { stage: String, message: String },
    State { attempt: String, path: String, message: String },
    Fenced(String),
    Refused(String),
    Unavailable(String),
}

impl TaskEnd {
    /// What `redactor` knows is hidden in what people will read.
    pub fn from_result(result: &Result<TaskOutcome, TaskError>, redactor: &Redactor) -> Self {
        match result {
            Ok(TaskOutcome::Committed(account)) => TaskEnd::Committed(account.clone()),
            Ok(TaskOutcome::Exchanged { output, account }) => {
                TaskEnd::Exchanged { output: output.clone(), account: account.clone() }
            }
            Ok(TaskOutcome::Stopped) => TaskEnd::Stopped,
            Err(error) => TaskEnd::Failed(TaskFailure::from_error(error, redactor)),
        }
    }

    pub fn into_result(self) -> Result<TaskOutcome, TaskError> {
        match self {
            TaskEnd::Committed(account) => Ok(TaskOutcome::Committed(account)),
            TaskEnd::Exchanged { output, account } => {
                Ok(TaskOutcome::Exchanged { output, account })
            }
            TaskEnd::Stopped => Ok(TaskOutcome::Stopped),
            TaskEnd::Failed(failure) => Err(failure.into_error()),
        }
    }
}

impl TaskFailure {
    fn from_error(error: &TaskError, redactor: &Redactor) -> Self {
        let shown = |error: &(dyn Error + 'static)| redactor.redact(&with_causes(error));
        match error {
            TaskError::Connector { node, source } => TaskFailure::Connector {
                node: node.clone(),
                kind: source.kind,
                message: shown(source),
            },
            TaskError::Operator { stage, message } => {
                TaskFailure::Operator { stage: stage.clone(), message: redactor.redact(message) }
            }
            TaskError::InputLost { stage, message } => {
                TaskFailure::InputLost { stage: stage.clone(), message: redactor.redact(message) }
            }
            TaskError::State { attempt, path, source } => TaskFailure::State {
                attempt: attempt.to_string(),
                path: path.clone(),
                message: shown(source),
            },
            TaskError::CommitLog(CommitLogError::Fenced(message)) => {
                TaskFailure::Fenced(message.clone())
            }
            TaskError::CommitLog(CommitLogError::Refused(message)) => {
                TaskFailure::Refused(message.clone())
            }
            TaskError::CommitLog(CommitLogError::Unavailable(message)) => {
                TaskFailure::Unavailable(message.clone())
            }
        }
    }

    fn into_error(self) -> TaskError {
        match self {
            TaskFailure::Connector { node, kind, message } => {
                TaskError::Connector { node, source: ConnectorError::new(kind, message) }
            }
            TaskFailure::Operator { stage, message } => TaskError::Operator { stage, message },
            TaskFailure::InputLost { stage, message } => TaskError::InputLost { stage, message },
            TaskFailure::State { attempt, path, message } => TaskError::State {
                attempt: attempt.into(),
                path,
                source: std::io::Error::other(message),
            },
            TaskFailure::Fenced(message) => CommitLogError::Fenced(message).into(),
            TaskFailure::Refused(message) => CommitLogError::Refused(message).into(),
            TaskFailure::Unavailable(message) => CommitLogError::Unavailable(message).into(),
        }
    }
}

/// The error's text, with the texts of those causes that it does not show itself.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        let shown = current.to_string();
        if !text.contains(&shown) {
            text.push_str(": ");
            text.push_str(&shown);
        }
        cause = current.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use weir_plan::{Holder, InStorage};

    use super::*;

    fn travel(result: &Result<TaskOutcome, TaskError>) -> Result<TaskOutcome, TaskError> {
        let end = TaskEnd::from_result(result, &Redactor::default());
        let json = serde_json::to_vec(&end).expect("ends are JSON");
        let arrived: TaskEnd = serde_json::from_slice(&json).expect("ends are read again");
        assert_eq!(arrived, end);
        arrived.into_result()
    }

    fn connector(source: ConnectorError) -> TaskError {
        TaskError::Connector { node: NodeName::new("orders"), source }
    }

    fn account() -> RowAccount {
        let mut account =
            RowAccount { rows_written: 7, checksum: u64::MAX, ..RowAccount::default() };
        account.cursors.insert(NodeName::new("orders"), "2024-01-01".to_owned());
        account
    }

    #[test]
    fn outcomes_arrive_as_they_were() {
        let holder = Holder {
            executor: "e".to_owned(),
            boot_id: "b".to_owned(),
            url: "https://10.0.0.1:4002".to_owned(),
        };
        let file_id = "2-3-1".to_owned();
        let output = ExchangeOutput {
            file_id,
            first: 2,
            partitions: 1,
            holder: Some(holder),
            in_storage: InStorage::No,
        };
        for outcome in [
            TaskOutcome::Committed(account()),
            TaskOutcome::Exchanged { output, account: account() },
            TaskOutcome::Stopped,
        ] {
            assert_eq!(travel(&Ok(outcome.clone())).expect("it ended well"), outcome);
        }
    }

    #[test]
    fn connector_errors_keep_what_decides_about_retries() {
        let second = Some(Duration::from_millis(1500));
        for kind in [
            ErrorKind::Unavailable { retry_after: second, status: Some(429) },
            ErrorKind::Unavailable { retry_after: None, status: None },
            ErrorKind::Timeout,
            ErrorKind::Locked,
            ErrorKind::Denied,
            ErrorKind::NotFound,
            ErrorKind::Config,
            ErrorKind::Data,
            ErrorKind::Changed,
            ErrorKind::Fenced,
            ErrorKind::Exhausted,
            ErrorKind::Internal,
        ] {
            let sent = connector(ConnectorError::new(kind, "the server says no"));
            let arrived = travel(&Err(connector(ConnectorError::new(kind, "the server says no"))))
                .expect_err("it failed");
            assert_eq!(arrived.to_string(), sent.to_string());
            assert_eq!(arrived.is_retryable(), sent.is_retryable(), "{kind:?}");
            let TaskError::Connector { source, .. } = arrived else { panic!("{arrived:?}") };
            assert_eq!(source.kind, kind);
        }
    }

    #[test]
    fn other_errors_keep_their_variant_and_their_text() {
        let full = || TaskError::State {
            attempt: "write".into(),
            path: "/state/7.json".to_owned(),
            source: io::Error::from_raw_os_error(28),
        };
        let operator = || TaskError::Operator { stage: "s".to_owned(), message: "1/0".to_owned() };
        type Case = (fn(&TaskError) -> bool, TaskError, TaskError);
        let twice = |text: &str, make: fn(String) -> CommitLogError| {
            (TaskError::from(make(text.to_owned())), TaskError::from(make(text.to_owned())))
        };
        let (fenced, fenced_too) = twice("newer epoch", CommitLogError::Fenced);
        let (refused, refused_too) = twice("too many errors", CommitLogError::Refused);
        let (unavailable, unavailable_too) = twice("disk full", CommitLogError::Unavailable);
        let cases: [Case; 5] = [
            (|error| matches!(error, TaskError::State { .. }), full(), full()),
            (|error| matches!(error, TaskError::Operator { .. }), operator(), operator()),
            (
                |error| matches!(error, TaskError::CommitLog(CommitLogError::Fenced(_))),
                fenced,
                fenced_too,
            ),
            (
                |error| matches!(error, TaskError::CommitLog(CommitLogError::Refused(_))),
                refused,
                refused_too,
            ),
            (
                |error| matches!(error, TaskError::CommitLog(CommitLogError::Unavailable(_))),
                unavailable,
                unavailable_too,
            ),
        ];
        for (is_same_variant, sent, same) in cases {
            let arrived = travel(&Err(sent)).expect_err("it failed");
            assert!(is_same_variant(&arrived), "{arrived:?}");
            assert_eq!(arrived.to_string(), same.to_string());
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("request failed")]
    struct Outer(#[source] io::Error);

    #[test]
    fn causes_are_shown_once() {
        let reset = || io::Error::new(io::ErrorKind::ConnectionReset, "reset by peer");
        let kind = ErrorKind::Timeout;
        let error = ConnectorError::caused(kind, "failed to read page 3", Outer(reset()));
        let arrived = travel(&Err(connector(error))).expect_err("it failed");
        let text = "node `orders`: failed to read page 3: request failed: reset by peer";
        assert_eq!(arrived.to_string(), text);
        let error = ConnectorError::caused(kind, "failed to read page 3", reset());
        let arrived = travel(&Err(connector(error))).expect_err("it failed");
        assert_eq!(arrived.to_string(), "node `orders`: failed to read page 3: reset by peer");
    }

    #[test]
    fn secrets_stay_where_they_are_known() {
        let redactor = Redactor::default();
        redactor.register("hunter22");
        let error = connector(ConnectorError::config("no user x with hunter22"));
        let end = TaskEnd::from_result(&Err(error), &redactor);
        let arrived = end.into_result().expect_err("it failed");
        assert_eq!(arrived.to_string(), "node `orders`: no user x with [secret]");
    }
}

//! What can go wrong with a system, classified by what the caller can do about it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a failure means to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The same request may succeed later: network, restart of a server, 429, 503, lock timeout.
    /// `retry_after` is what the system asked for.
    Unavailable { retry_after: Option<Duration>, status: Option<u16> },
    /// No answer in time.
    Timeout,
    /// Another process of Weir holds the lock of a target, and is perhaps paused: nothing has been tried.
    Locked,
    /// Credentials are wrong or missing, or a right is missing.
    Denied,
    /// File, table, column or page does not exist.
    NotFound,
    /// The configuration of the node is wrong.
    Config,
    /// The data cannot be read or written: broken file, type that does not fit, constraint.
    Data,
    /// Source files or target tables are not what they were when the run was planned.
    Changed,
    /// A newer owner has fenced this writer off.
    Fenced,
    /// No space or no memory.
    Exhausted,
    /// A defect of Weir.
    Internal,
}

/// A failure at a system. The message says what was attempted, on what, and how to mend it where
/// that is known; it never holds a secret (see [`crate::Redactor`]).
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ConnectorError {
    pub kind: ErrorKind,
    pub message: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl ConnectorError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Keeps the cause, and shows it: the message becomes `message: cause`.
    pub fn caused(
        kind: ErrorKind,
        message: impl std::fmt::Display,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self { kind, message: format!("{message}: {cause}"), source: Some(Box::new(cause)) }
    }

    pub fn config(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, message)
    }
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, message)
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The same error, saying which source node it is about.
    pub(crate) fn at_source(self, name: &str) -> Self {
        Self { message: format!("source `{name}`: {}", self.message), ..self }
    }

    /// An I/O error at `path`, classified.
    pub fn io(attempt: &str, path: &std::path::Path, cause: std::io::Error) -> Self {
        let kind = match cause.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => ErrorKind::Exhausted,
            std::io::ErrorKind::TimedOut => ErrorKind::Timeout,
            _ => ErrorKind::Unavailable { retry_after: None, status: None },
        };
        Self::caused(kind, format!("failed to {attempt} {}", path.display()), cause)
    }

    /// Whether the same attempt may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable { .. } | ErrorKind::Timeout | ErrorKind::Locked)
    }
}

impl From<arrow::error::ArrowError> for ConnectorError {
    fn from(cause: arrow::error::ArrowError) -> Self {
        Self::caused(ErrorKind::Data, "failed to convert rows", cause)
    }
}

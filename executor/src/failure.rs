//! Makes a task's error out of what operators, connectors and the disk report through DataFusion.

use std::any::Any;
use std::error::Error;
use std::path::Path;

use datafusion::error::DataFusionError;
use weir_connectors::ConnectorError;
use weir_plan::operators::NodeFailure;

use crate::{ExecutorEnv, TaskError};

/// What a stage is called and may use, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailureSite<'task> {
    pub(crate) stage: &'task str,
    pub(crate) spill: &'task Path,
    pub(crate) memory_bytes: u64,
}

impl<'task> FailureSite<'task> {
    pub(crate) fn new(stage: &'task str, env: &'task ExecutorEnv) -> Self {
        let resources = &env.resources;
        Self { stage, spill: &resources.spill, memory_bytes: resources.memory_bytes.get() }
    }

    /// Finds the cause behind DataFusion's wrapping: a connector (which decides about retries), the
    /// state directory, too little memory, or the rows themselves.
    pub(crate) fn classify(&self, error: DataFusionError) -> TaskError {
        let mut operator_message = None;
        let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            if let Some(failure) = current.downcast_ref::<NodeFailure>() {
                return TaskError::Connector {
                    node: failure.node.clone(),
                    source: same_error(&failure.error),
                };
            }
            if let Some(TaskError::InputLost { message, .. }) = current.downcast_ref::<TaskError>()
            {
                let message = message.clone();
                return TaskError::InputLost { stage: self.stage.to_owned(), message };
            }
            if let Some(TaskError::State { attempt, path, source }) =
                current.downcast_ref::<TaskError>()
            {
                return TaskError::State {
                    attempt: attempt.clone(),
                    path: path.clone(),
                    source: same_io(source),
                };
            }
            if let Some(io) = current.downcast_ref::<std::io::Error>() {
                return TaskError::State {
                    attempt: "spill rows of operators to".into(),
                    path: self.spill.display().to_string(),
                    source: same_io(io),
                };
            }
            if let Some(DataFusionError::ResourcesExhausted(message)) =
                current.downcast_ref::<DataFusionError>()
            {
                operator_message = Some(self.out_of_memory(message));
            }
            cause = current.source();
        }
        let message = operator_message.unwrap_or_else(|| error.strip_backtrace());
        TaskError::Operator { stage: self.stage.to_owned(), message }
    }

    fn out_of_memory(&self, message: &str) -> String {
        format!(
            "not enough memory: operators may use {} MiB together; raise it with `--memory` \
             ({message})",
            self.memory_bytes.div_ceil(1024 * 1024),
        )
    }

    /// An error for something that planning should have excluded.
    pub(crate) fn internal(&self, message: impl std::fmt::Display) -> TaskError {
        TaskError::Operator {
            stage: self.stage.to_owned(),
            message: format!("{message}; this is a defect of Weir, please report it"),
        }
    }

    /// An error for a task of the runtime that ended without a result.
    pub(crate) fn ended(&self, error: tokio::task::JoinError) -> TaskError {
        if error.is_cancelled() {
            return self.internal("a part of the task was cancelled");
        }
        self.internal(format!("an operator panicked: {}", panic_message(&*error.into_panic())))
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    (panic.downcast_ref::<&str>().copied())
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The message already shows the cause; the cause itself cannot be cloned out of a shared error.
fn same_error(error: &ConnectorError) -> ConnectorError {
    ConnectorError::new(error.kind, error.message.clone())
}

fn same_io(error: &std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::new(error.kind(), error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::error::ArrowError;
    use weir_connectors::ErrorKind;
    use weir_spec::NodeName;

    use super::*;

    fn classify(error: DataFusionError) -> TaskError {
        FailureSite {
            stage: "loaded",
            spill: Path::new("/state/spill"),
            memory_bytes: 64 * 1024 * 1024,
        }
        .classify(error)
    }

    #[test]
    fn connector_error_is_found_behind_any_wrapping_and_keeps_its_kind() {
        let kind = ErrorKind::Unavailable { retry_after: None, status: Some(503) };
        let wrapped = DataFusionError::Shared(Arc::new(
            NodeFailure::wrap(
                &NodeName::new("orders"),
                ConnectorError::new(kind, "server says 503"),
            )
            .context("while reading"),
        ));
        let wrapped = DataFusionError::from(ArrowError::ExternalError(Box::new(wrapped)));
        let error = classify(wrapped);
        assert!(error.is_retryable());
        assert_eq!(error.to_string(), "node `orders`: server says 503");
    }

    #[test]
    fn too_little_memory_names_the_option_to_raise() {
        let error = classify(DataFusionError::ResourcesExhausted("sort wants 1 MB".to_owned()));
        assert!(!error.is_retryable());
        assert_eq!(
            error.to_string(),
            "stage `loaded`: not enough memory: operators may use 64 MiB together; raise it with \
             `--memory` (sort wants 1 MB)"
        );
    }

    #[test]
    fn full_disk_names_the_folder() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = classify(DataFusionError::from(ArrowError::IoError("write".to_owned(), full)));
        let TaskError::State { path, source, .. } = error else { panic!("not a state error") };
        assert_eq!(path, "/state/spill");
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    }

    #[test]
    fn operator_error_keeps_its_message() {
        let error = classify(DataFusionError::from(ArrowError::DivideByZero));
        assert_eq!(error.to_string(), "stage `loaded`: Arrow error: Divide by zero error");
    }
}

//! How a command ends badly, and with which exit code.

use std::process::ExitCode;

use weir_coordinator::EngineError;

/// A failed command. Codes: 1 the run failed, 2 the file or the command is wrong, 3 the cluster
/// could not be reached.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The run (or test, or audit) failed. The message is complete.
    Run(String),
    /// The file or the command is wrong.
    Usage(String),
    /// No leader of the cluster answered.
    Unreachable(String),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Run(_) => ExitCode::from(1),
            Failure::Usage(_) => ExitCode::from(2),
            Failure::Unreachable(_) => ExitCode::from(3),
        }
    }

    pub(crate) fn message(&self) -> &str {
        match self {
            Failure::Run(message) | Failure::Usage(message) | Failure::Unreachable(message) => {
                message
            }
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Invalid(_)
            | EngineError::NotFound(_)
            | EngineError::Refused(_)
            | EngineError::NoAnswer(_) => Failure::Usage(error.to_string()),
            EngineError::RunFailed { .. }
            | EngineError::Stopped { .. }
            | EngineError::Busy(_)
            | EngineError::State { .. }
            | EngineError::Ledger { .. } => Failure::Run(error.to_string()),
        }
    }
}

//! Why a pipeline cannot be planned.

use datafusion::error::DataFusionError;
use weir_spec::NodeName;

/// A pipeline that cannot run as it is written, or an engine that cannot plan it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The user's mistake: the message names what is wrong and what to write instead.
    #[error("node `{node}`: {message}")]
    Node { node: NodeName, message: String },
    /// A defect of Weir, or a plan of another version.
    #[error("{attempt}: {message}")]
    Engine { attempt: String, message: String },
}

impl PlanError {
    pub(crate) fn node(node: &NodeName, message: impl Into<String>) -> Self {
        Self::Node { node: node.clone(), message: message.into() }
    }

    pub(crate) fn engine(attempt: impl Into<String>, message: impl std::fmt::Display) -> Self {
        Self::Engine { attempt: attempt.into(), message: message.to_string() }
    }

    /// What DataFusion says about the node's text, without its own prefixes and back traces, and
    /// with the remedy for the most frequent mistake: columns that are not lower case.
    pub(crate) fn datafusion(node: &NodeName, error: &DataFusionError) -> Self {
        let message = error.strip_backtrace();
        let message = message
            .strip_prefix("Schema error: ")
            .or_else(|| message.strip_prefix("Error during planning: "))
            .unwrap_or(&message)
            .trim()
            .to_owned();
        let remedy = match unknown_column(error) {
            Some((wanted, known)) => match known
                .iter()
                .find(|name| name.to_lowercase() == wanted.to_lowercase() && **name != wanted)
            {
                Some(name) => format!(
                    "; SQL reads unquoted names in lower case: write \"{name}\" in double quotes"
                ),
                None => crate::names::did_you_mean(&wanted, known.iter().map(String::as_str)),
            },
            None => String::new(),
        };
        Self::node(node, format!("{message}{remedy}"))
    }
}

fn unknown_column(error: &DataFusionError) -> Option<(String, Vec<String>)> {
    use datafusion::common::SchemaError;
    match error.find_root() {
        DataFusionError::SchemaError(schema_error, _) => match schema_error.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => Some((
                field.name.clone(),
                valid_fields.iter().map(|column| column.name.clone()).collect(),
            )),
            _ => None,
        },
        DataFusionError::Diagnostic(_, inner) => unknown_column(inner),
        _ => None,
    }
}

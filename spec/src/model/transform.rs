//! Transforms: SQL and record operators between sources and sinks.

use serde::{Deserialize, Serialize};

use super::{InputRef, MaxErrors, OnError, TemplateText, UnsupportedNode};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transform {
    /// Written inputs, unioned by column name. For SQL: the nodes that `spec` found in the text,
    /// each once, in order of appearance; where a name was unclear, DataFusion has the last word.
    pub inputs: Vec<InputRef>,
    pub operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    Sql(TemplateText),
    Validate(Validate),
    Deduplicate(Deduplicate),
    Unsupported(UnsupportedNode),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validate {
    pub rules: Vec<Rule>,
    pub on_error: OnError,
    pub max_errors: Option<MaxErrors>,
}

/// One rule of a `validate`. A row fails when the condition is false *or null*, except that null
/// passes `matches`, `between`, `one_of`, `min_length` and `max_length` (say `not_null` as well).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Named in the reason of a rejected row; default: described from the condition.
    pub name: Option<String>,
    pub condition: Condition,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    NotNull {
        column: String,
    },
    Matches {
        column: String,
        pattern: String,
    },
    /// Inclusive bounds.
    Between {
        column: String,
        low: serde_json::Value,
        high: serde_json::Value,
    },
    OneOf {
        column: String,
        values: Vec<serde_json::Value>,
    },
    MinLength {
        column: String,
        length: u64,
    },
    MaxLength {
        column: String,
        length: u64,
    },
    /// Any SQL boolean expression over the input's columns.
    Check {
        expression: TemplateText,
    },
}

impl Rule {
    /// The reason written to a dead letter: `email does not match`, `id is null`, or the name.
    pub fn reason(&self) -> String {
        if let Some(name) = &self.name {
            return name.clone();
        }
        match &self.condition {
            Condition::NotNull { column } => format!("{column} is null"),
            Condition::Matches { column, .. } => format!("{column} does not match"),
            Condition::Between { column, low, high } => {
                format!("{column} is not between {low} and {high}")
            }
            Condition::OneOf { column, .. } => format!("{column} is not one of the allowed values"),
            Condition::MinLength { column, length } => format!("{column} is shorter than {length}"),
            Condition::MaxLength { column, length } => format!("{column} is longer than {length}"),
            Condition::Check { expression } => format!("check failed: {}", expression.as_str()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deduplicate {
    pub key: Vec<String>,
    pub keep: Keep,
    /// Columns, most significant first. Ties are broken by all other columns, so that the result
    /// does not depend on the order of arrival.
    pub order_by: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    First,
    #[default]
    Last,
}

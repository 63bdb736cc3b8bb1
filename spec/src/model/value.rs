//! Names, templates, column types and other small values used all over the file.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a source, transform or sink; also its table name in SQL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub String);

impl NodeName {
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PipelineName(pub String);

impl fmt::Display for PipelineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that may hold `{{ … }}` expressions, kept as written.
///
/// Never holds a resolved `env` or `secret` value: those are rendered on the machine that opens the
/// connection, into values that are not serialisable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TemplateText(pub String);

impl TemplateText {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The rejected or the accepted side of a node, as an input: `valid` or `valid.errors`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InputRef {
    pub node: NodeName,
    /// True for `node.errors`.
    pub errors: bool,
}

impl fmt::Display for InputRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.node, if self.errors { ".errors" } else { "" })
    }
}

/// A declared column type, written as one word: `int64`, `decimal(12,2)`, `list<string>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    UInt8,
    UInt16,
    UInt32,
    UInt64,
    Float32,
    Float64,
    /// `decimal(precision,scale)`, precision 1 to 38.
    Decimal {
        precision: u8,
        scale: i8,
    },
    String,
    Binary,
    Date,
    /// Time of day in microseconds.
    Time,
    /// Microseconds without a time zone.
    Timestamp,
    /// Microseconds in UTC.
    TimestampTz,
    /// JSON text, kept as a string and written as `json` where the target has such a type.
    Json,
    List(Box<ColumnType>),
    /// `struct<name: type, …>`.
    Struct(Vec<(String, ColumnType)>),
}

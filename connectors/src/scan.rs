//! What a plan asks of a source: which columns, which rows.

use serde::{Deserialize, Serialize};

/// One reading of a source, frozen with the plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScanRequest {
    /// Columns by name, in output order; `None` is all of them in the described order.
    pub columns: Option<Vec<String>>,
    /// All must hold. The source applies those it has accepted in
    /// [`crate::SourceDescription::exact_predicates`] exactly; the planner keeps the others.
    pub predicates: Vec<Predicate>,
    /// Rows beyond this many are not needed. Per split.
    pub limit: Option<u64>,
    /// Incremental sources: rows whose cursor is greater than this (lag already subtracted), as text.
    pub since: Option<String>,
}

/// `column op literal`. Null compares as in SQL: a row for which it is null does not qualify.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Predicate {
    pub column: String,
    pub comparison: Comparison,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    Equal(Literal),
    NotEqual(Literal),
    Less(Literal),
    LessOrEqual(Literal),
    Greater(Literal),
    GreaterOrEqual(Literal),
    In(Vec<Literal>),
    IsNull,
    IsNotNull,
}

/// A constant with its type. Text is always quoted by the connector, never spliced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Literal {
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    /// Unscaled value with its scale.
    Decimal {
        unscaled: i128,
        scale: i8,
    },
    String(String),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since 1970-01-01T00:00:00; with `utc` an instant, without a wall-clock time.
    Timestamp {
        micros: i64,
        utc: bool,
    },
}

//! Types of columns, in both directions.
//!
//! | Arrow | created as | stored as |
//! | --- | --- | --- |
//! | bool | `BOOLEAN` | 0, 1 |
//! | integers | `INTEGER` | integer; above 2⁶³−1 an error |
//! | floats | `REAL` | real; NaN is NULL, for SQLite has none |
//! | decimal up to 15 digits | `DECIMAL(p,s)` | integer or real, exact to 15 digits |
//! | longer decimals | `TEXT` | text, exact |
//! | date | `DATE` | `2024-05-31` |
//! | time | `TIME` | `13:45:00.000000` |
//! | timestamp | `TIMESTAMP` | `2024-05-31 13:45:00.000000` |
//! | timestamp with zone | `TIMESTAMPTZ` | the same in UTC with `+00:00`; sorts as text |
//! | string, JSON | `TEXT` | text |
//! | binary | `BLOB` | blob |
//! | lists, structs | `TEXT` | JSON text |
//!
//! Reading goes by the declared type: the names above, else SQLite's affinity rules (`INT` →
//! int64, `CHAR` `CLOB` `TEXT` → string, `REAL` `FLOA` `DOUB` → float64, `BLOB` → binary, numeric or
//! none → string). A value that does not fit its column's declared type is an error.

use arrow::datatypes::{DataType, TimeUnit};
use serde::{Deserialize, Serialize};

/// Greatest precision of decimals that a double keeps.
pub(super) const EXACT_DIGITS: u8 = 15;

/// SQLite's column affinities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Affinity {
    Integer,
    Real,
    Text,
    Numeric,
    Blob,
}

impl Affinity {
    /// By the rules of <https://www.sqlite.org/datatype3.html#affname>, in their order.
    pub(super) fn of(declared: &str) -> Self {
        let declared = declared.to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        if has("INT") {
            Affinity::Integer
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Affinity::Text
        } else if has("BLOB") || declared.is_empty() || declared == "ANY" {
            Affinity::Blob
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Affinity::Real
        } else {
            Affinity::Numeric
        }
    }

    /// Whether every value of the type is stored in such a column as it is.
    pub(super) fn keeps(self, data_type: &DataType) -> bool {
        match self {
            Affinity::Blob => true,
            Affinity::Integer => data_type.is_integer() || *data_type == DataType::Boolean,
            Affinity::Real => matches!(
                data_type,
                DataType::Float16
                    | DataType::Float32
                    | DataType::Float64
                    | DataType::Int8
                    | DataType::Int16
                    | DataType::Int32
                    | DataType::UInt8
                    | DataType::UInt16
                    | DataType::UInt32
            ),
            Affinity::Numeric => {
                // Text of dates and times does not look like a number and stays text.
                data_type.is_integer()
                    || data_type.is_floating()
                    || data_type.is_temporal()
                    || *data_type == DataType::Boolean
                    || is_short_decimal(data_type)
            }
            Affinity::Text => {
                matches!(
                    data_type,
                    DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null
                ) || data_type.is_temporal()
                    || data_type.is_nested()
                    || (is_decimal(data_type) && !is_short_decimal(data_type))
            }
        }
    }

    /// The Arrow type to which `type_changes: cast` casts.
    pub(super) fn cast_type(self) -> DataType {
        match self {
            Affinity::Integer => DataType::Int64,
            Affinity::Real | Affinity::Numeric => DataType::Float64,
            Affinity::Text | Affinity::Blob => DataType::Utf8,
        }
    }
}

fn is_decimal(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Decimal32(..)
            | DataType::Decimal64(..)
            | DataType::Decimal128(..)
            | DataType::Decimal256(..)
    )
}

pub(super) fn is_short_decimal(data_type: &DataType) -> bool {
    match data_type {
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => *precision <= EXACT_DIGITS && *scale >= 0,
        _ => false,
    }
}

/// The declared type of a created column.
pub(super) fn declared_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Dictionary(_, value) => declared_type(value),
        DataType::Date32 | DataType::Date64 => "DATE".to_owned(),
        DataType::Time32(_) | DataType::Time64(_) => "TIME".to_owned(),
        DataType::Timestamp(_, None) => "TIMESTAMP".to_owned(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMPTZ".to_owned(),
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => "BLOB".to_owned(),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale)
            if is_short_decimal(data_type) =>
        {
            format!("DECIMAL({precision},{scale})")
        }
        integer if integer.is_integer() => "INTEGER".to_owned(),
        float if float.is_floating() => "REAL".to_owned(),
        _ => "TEXT".to_owned(),
    }
}

/// The Arrow type as which a column of this declared type is read.
pub(super) fn read_type(declared: &str) -> DataType {
    let upper = declared.trim().to_ascii_uppercase();
    let (name, arguments) = match upper.split_once('(') {
        Some((name, arguments)) => (name.trim(), arguments.trim_end_matches(')')),
        None => (upper.as_str(), ""),
    };
    match name {
        "BOOLEAN" | "BOOL" => return DataType::Boolean,
        "DATE" => return DataType::Date32,
        "TIME" => return DataType::Time64(TimeUnit::Microsecond),
        "TIMESTAMP" | "DATETIME" => return DataType::Timestamp(TimeUnit::Microsecond, None),
        "TIMESTAMPTZ" | "TIMESTAMP WITH TIME ZONE" => {
            return DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        }
        "DECIMAL" | "NUMERIC" => {
            let mut numbers = arguments.split(',').map(|number| number.trim().parse::<u8>());
            let (precision, scale) = (numbers.next(), numbers.next());
            if let Some(Ok(precision @ 1..=EXACT_DIGITS)) = precision {
                let scale = scale.and_then(Result::ok).unwrap_or(0);
                if scale <= precision {
                    return DataType::Decimal128(precision, scale as i8);
                }
            }
        }
        _ => {}
    }
    match Affinity::of(declared) {
        Affinity::Integer => DataType::Int64,
        Affinity::Real => DataType::Float64,
        Affinity::Text | Affinity::Numeric => DataType::Utf8,
        Affinity::Blob if declared.is_empty() || upper == "ANY" => DataType::Utf8,
        Affinity::Blob => DataType::Binary,
    }
}

//! Whether a written value is of a declared type.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};

use crate::ColumnType;
use crate::syntax::{Node, Scalar};

/// Says why not.
pub(super) fn value_fits(node: &Node, column_type: &ColumnType) -> Result<(), String> {
    if let ColumnType::List(item) = column_type {
        let items = node.as_list().ok_or_else(|| format!("found {}", node.kind_name()))?;
        return items.iter().try_for_each(|node| value_fits(node, item));
    }
    if matches!(column_type, ColumnType::Struct(_) | ColumnType::Json) {
        return Ok(());
    }
    let scalar = node.as_scalar().ok_or_else(|| format!("found {}", node.kind_name()))?;
    let text = scalar.text.as_str();
    let fits = match (column_type, scalar.scalar) {
        (ColumnType::Bool, Scalar::Bool(_)) => true,
        (ColumnType::String | ColumnType::Binary, Scalar::Text) => true,
        (ColumnType::String, Scalar::Integer(_) | Scalar::Float(_) | Scalar::Bool(_)) => {
            return Err(format!("found {}; put it in quotes: `\"{text}\"`", node.kind_name()));
        }
        (ColumnType::Date, Scalar::Text) => text.parse::<NaiveDate>().is_ok(),
        (ColumnType::Time, Scalar::Text) => text.parse::<NaiveTime>().is_ok(),
        (ColumnType::Timestamp | ColumnType::TimestampTz, Scalar::Text) => is_timestamp(text),
        (ColumnType::Float32 | ColumnType::Float64, Scalar::Integer(_) | Scalar::Float(_)) => true,
        (ColumnType::Decimal { .. }, Scalar::Integer(_) | Scalar::Float(_)) => true,
        (_, Scalar::Integer(value)) => {
            let Some((low, high)) = integer_range(column_type) else {
                return Err(String::from("found a number"));
            };
            if value < low || value > high {
                return Err(format!("{value} does not fit"));
            }
            true
        }
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("found {} `{text}`", node.kind_name())) }
}

fn is_timestamp(text: &str) -> bool {
    DateTime::parse_from_rfc3339(text).is_ok()
        || text.parse::<NaiveDateTime>().is_ok()
        || NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").is_ok()
        || text.parse::<NaiveDate>().is_ok()
}

fn integer_range(column_type: &ColumnType) -> Option<(i128, i128)> {
    Some(match column_type {
        ColumnType::Int8 => (i8::MIN.into(), i8::MAX.into()),
        ColumnType::Int16 => (i16::MIN.into(), i16::MAX.into()),
        ColumnType::Int32 => (i32::MIN.into(), i32::MAX.into()),
        ColumnType::Int64 => (i64::MIN.into(), i64::MAX.into()),
        ColumnType::UInt8 => (0, u8::MAX.into()),
        ColumnType::UInt16 => (0, u16::MAX.into()),
        ColumnType::UInt32 => (0, u32::MAX.into()),
        ColumnType::UInt64 => (0, u64::MAX.into()),
        _ => return None,
    })
}

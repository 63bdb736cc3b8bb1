//! Whether a cell can be read into a column: the slow check that names what is wrong.

use arrow::array::ArrowPrimitiveType;
use arrow::compute::kernels::cast_utils::{Parser, string_to_datetime};
use arrow::datatypes::{
    DataType, Date32Type, Field, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, Time64MicrosecondType, TimeUnit, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};

use crate::records;
use crate::records::{column_from_text, is_number_too_large, quoted};

/// Why `cell` is no value of `field`. Agrees with Arrow's decoder, and for the types that it does
/// not know with [`column_from_text`].
pub(crate) fn misfit(field: &Field, cell: &str) -> Option<String> {
    let fits = match field.data_type() {
        DataType::Boolean => {
            cell.eq_ignore_ascii_case("true") || cell.eq_ignore_ascii_case("false")
        }
        DataType::Int8 => parses::<Int8Type>(cell),
        DataType::Int16 => parses::<Int16Type>(cell),
        DataType::Int32 => parses::<Int32Type>(cell),
        DataType::Int64 => parses::<Int64Type>(cell),
        DataType::UInt8 => parses::<UInt8Type>(cell),
        DataType::UInt16 => parses::<UInt16Type>(cell),
        DataType::UInt32 => parses::<UInt32Type>(cell),
        DataType::UInt64 => parses::<UInt64Type>(cell),
        DataType::Float32 => Float32Type::parse(cell)
            .is_some_and(|value| !is_number_too_large(cell, f64::from(value))),
        DataType::Float64 => {
            Float64Type::parse(cell).is_some_and(|value| !is_number_too_large(cell, value))
        }
        DataType::Date32 => parses::<Date32Type>(cell),
        DataType::Time64(TimeUnit::Microsecond) => parses::<Time64MicrosecondType>(cell),
        DataType::Timestamp(_, _) => string_to_datetime(&chrono::Utc, cell).is_ok(),
        _ if is_read_as_text(field) => match column_from_text(&[Some(cell)], field) {
            Ok(_) => true,
            Err((_, reason)) => return Some(reason),
        },
        _ => true,
    };
    (!fits).then(|| {
        format!("column {}: {}", field.name(), records::misfit(cell, &quoted(cell), field))
    })
}

/// Columns that are decoded as strings and converted afterwards.
pub(crate) fn is_read_as_text(field: &Field) -> bool {
    matches!(
        field.data_type(),
        DataType::Binary | DataType::Decimal128(_, _) | DataType::List(_) | DataType::Struct(_)
    )
}

fn parses<T: ArrowPrimitiveType + Parser>(cell: &str) -> bool {
    T::parse(cell).is_some()
}

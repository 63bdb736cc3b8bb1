//! Columns of rows as SQLite's storage classes.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Float64Array, Int64Array, RecordBatch, StringArray,
    StringBuilder,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Decimal128Type, FieldRef, Float64Type, Int64Type, TimeUnit};
use arrow::temporal_conversions::{date32_to_datetime, time64us_to_time};
use arrow::util::display::FormatOptions;
use sqlx::Arguments as _;
use sqlx::sqlite::SqliteArguments;

use super::table::WrittenColumn;
use super::types::{Affinity, is_short_decimal};
use crate::files_out::json::as_text;
use crate::{ConnectorError, ErrorKind};

/// One column, ready to be bound.
#[derive(Debug)]
pub(super) enum Cells {
    Integer(Int64Array),
    Real(Float64Array),
    Text(StringArray),
    Blob(BinaryArray),
}

impl Cells {
    pub(super) fn bind(&self, row: usize, arguments: &mut SqliteArguments) {
        let bound = match self {
            Cells::Integer(array) if array.is_valid(row) => arguments.add(array.value(row)),
            Cells::Real(array) if array.is_valid(row) => arguments.add(array.value(row)),
            Cells::Text(array) if array.is_valid(row) => arguments.add(array.value(row)),
            Cells::Blob(array) if array.is_valid(row) => arguments.add(array.value(row)),
            _ => arguments.add(None::<i64>),
        };
        bound.expect("numbers, text and bytes can always be bound");
    }
}

/// The written columns of some rows, in their order. Errors name the column.
pub(super) fn cells(
    rows: &RecordBatch,
    columns: &[WrittenColumn],
) -> Result<Vec<Cells>, ConnectorError> {
    let schema = rows.schema();
    columns
        .iter()
        .map(|column| {
            let (index, _) = schema.column_with_name(&column.source).ok_or_else(|| {
                ConnectorError::internal(format!("the rows have lost column `{}`", column.source))
            })?;
            let field = &schema.fields()[index];
            let array = rows.column(index).clone();
            let converted = match column.cast {
                Some(affinity) => cast_to(&array, affinity),
                None => Ok(array),
            };
            converted.and_then(|array| storage(field, &array)).map_err(|error| {
                ConnectorError::new(
                    ErrorKind::Data,
                    format!("column `{}`: {}", column.source, error),
                )
            })
        })
        .collect()
}

fn strict(array: &dyn Array, data_type: &DataType) -> Result<ArrayRef, arrow::error::ArrowError> {
    let options = CastOptions { safe: false, format_options: FormatOptions::default() };
    cast_with_options(array, data_type, &options)
}

/// `type_changes: cast`: a value that changes on the way is an error.
fn cast_to(array: &ArrayRef, affinity: Affinity) -> Result<ArrayRef, arrow::error::ArrowError> {
    let cast = strict(array, &affinity.cast_type())?;
    if array.data_type().is_floating() && affinity == Affinity::Integer {
        let floats = strict(array, &DataType::Float64)?;
        let back = strict(&cast, &DataType::Float64)?;
        let (floats, back) =
            (floats.as_primitive::<Float64Type>(), back.as_primitive::<Float64Type>());
        if let Some(row) = (0..floats.len())
            .find(|row| floats.is_valid(*row) && floats.value(*row) != back.value(*row))
        {
            return Err(arrow::error::ArrowError::CastError(format!(
                "{} is not an integer",
                floats.value(row)
            )));
        }
    }
    Ok(cast)
}

fn storage(field: &FieldRef, array: &ArrayRef) -> Result<Cells, arrow::error::ArrowError> {
    let data_type = array.data_type();
    Ok(match data_type {
        DataType::Dictionary(_, value) => return storage(field, &strict(array, value)?),
        DataType::Boolean | DataType::Null => {
            Cells::Integer(strict(array, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
        }
        integer if integer.is_integer() => {
            Cells::Integer(strict(array, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
        }
        float if float.is_floating() => {
            Cells::Real(strict(array, &DataType::Float64)?.as_primitive::<Float64Type>().clone())
        }
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale)
            if is_short_decimal(data_type) =>
        {
            let wide = strict(array, &DataType::Decimal128(*precision, *scale))?;
            // Both operands are exact doubles, so the quotient is the double nearest to the decimal.
            let divisor = 10f64.powi(i32::from(*scale));
            Cells::Real(wide.as_primitive::<Decimal128Type>().unary(|value| value as f64 / divisor))
        }
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => {
            Cells::Blob(strict(array, &DataType::Binary)?.as_binary::<i32>().clone())
        }
        DataType::Timestamp(_, zone) => timestamps(array, zone.is_some())?,
        DataType::Date32 | DataType::Date64 => {
            let dates = strict(array, &DataType::Date32)?;
            let dates = dates.as_primitive::<arrow::datatypes::Date32Type>();
            texts(
                dates.len(),
                |row, text| {
                    let date = dates.is_valid(row).then(|| date32_to_datetime(dates.value(row)))?;
                    write!(text, "{}", date?.date()).ok()
                },
                dates,
            )?
        }
        DataType::Time32(_) | DataType::Time64(_) => {
            let times = strict(array, &DataType::Time64(TimeUnit::Microsecond))?;
            let times = times.as_primitive::<arrow::datatypes::Time64MicrosecondType>();
            texts(
                times.len(),
                |row, text| {
                    write!(text, "{}", time64us_to_time(times.value(row))?.format("%H:%M:%S%.6f"))
                        .ok()
                },
                times,
            )?
        }
        nested if nested.is_nested() => {
            Cells::Text(as_text(field, array)?.as_string::<i32>().clone())
        }
        _ => Cells::Text(strict(array, &DataType::Utf8)?.as_string::<i32>().clone()),
    })
}

/// Fixed width, so that text compares as time does.
fn timestamps(array: &ArrayRef, is_zoned: bool) -> Result<Cells, arrow::error::ArrowError> {
    let zone = is_zoned.then(|| Arc::from("UTC"));
    let micros = strict(array, &DataType::Timestamp(TimeUnit::Microsecond, zone))?;
    let micros = micros.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
    let suffix = if is_zoned { "+00:00" } else { "" };
    texts(
        micros.len(),
        |row, text| {
            let time = chrono::DateTime::from_timestamp_micros(micros.value(row))?;
            write!(text, "{}{suffix}", time.naive_utc().format("%Y-%m-%d %H:%M:%S%.6f")).ok()
        },
        micros,
    )
}

fn texts(
    length: usize,
    format: impl Fn(usize, &mut String) -> Option<()>,
    array: &dyn Array,
) -> Result<Cells, arrow::error::ArrowError> {
    let mut builder = StringBuilder::with_capacity(length, length * 26);
    let mut text = String::new();
    for row in 0..length {
        if array.is_null(row) {
            builder.append_null();
            continue;
        }
        text.clear();
        format(row, &mut text).ok_or_else(|| {
            arrow::error::ArrowError::CastError(
                "a date or time is outside the years that can be written".to_owned(),
            )
        })?;
        builder.append_value(&text);
    }
    Ok(Cells::Text(builder.finish()))
}

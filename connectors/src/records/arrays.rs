//! Columns built from JSON values, with every reason against a record.

use std::sync::Arc;

use crate::records::Json;
use crate::records::quoted::{self, shorten};
use crate::records::values::{
    parse_binary, parse_bool, parse_date, parse_decimal, parse_float, parse_hexadecimal,
    parse_integer, parse_timestamp,
};
use crate::types::{is_json, type_name};
use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanArray, BooleanBufferBuilder, ListArray, NullArray,
    PrimitiveArray, StringBuilder, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::kernels::cast_utils::Parser;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Field, Fields, Float32Type,
    Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Time64MicrosecondType, TimeUnit,
    TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};

/// Who has written the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notation {
    /// Someone else's JSON.
    Source,
    /// Rows as Weir writes them: a string in a `json` column is JSON text, binary is hexadecimal.
    Given,
}

/// Every reason against a record, by row.
pub(super) struct Reasons {
    pub(super) by_row: Vec<Option<String>>,
}

impl Reasons {
    pub(super) fn add(&mut self, row: usize, path: &str, reason: String) {
        let reason = if path.is_empty() { reason } else { format!("column {path}: {reason}") };
        match &mut self.by_row[row] {
            Some(before) => {
                before.push_str("; ");
                before.push_str(&reason);
            }
            empty => *empty = Some(reason),
        }
    }
}

/// Where the values of one array come from: `rows[i]` is the record of value `i`.
pub(super) struct Cells<'a> {
    pub(super) path: &'a str,
    pub(super) rows: &'a [usize],
    pub(super) reasons: &'a mut Reasons,
    pub(super) notation: Notation,
}

impl Cells<'_> {
    fn reject(&mut self, index: usize, reason: String) {
        self.reasons.add(self.rows[index], self.path, reason);
    }
}

pub(super) fn present(value: Option<&Json>) -> Option<&Json> {
    value.filter(|value| !value.is_null())
}

pub(super) fn build_array(
    values: &[Option<&Json>],
    field: &Field,
    cells: &mut Cells<'_>,
) -> ArrayRef {
    match field.data_type() {
        DataType::Null => Arc::new(NullArray::new(values.len())),
        DataType::Boolean => Arc::new(
            collect(values, field, cells, parse_bool).into_iter().collect::<BooleanArray>(),
        ),
        DataType::Int8 => primitive::<Int8Type>(values, field, cells, parse_integer),
        DataType::Int16 => primitive::<Int16Type>(values, field, cells, parse_integer),
        DataType::Int32 => primitive::<Int32Type>(values, field, cells, parse_integer),
        DataType::Int64 => primitive::<Int64Type>(values, field, cells, parse_integer),
        DataType::UInt8 => primitive::<UInt8Type>(values, field, cells, parse_integer),
        DataType::UInt16 => primitive::<UInt16Type>(values, field, cells, parse_integer),
        DataType::UInt32 => primitive::<UInt32Type>(values, field, cells, parse_integer),
        DataType::UInt64 => primitive::<UInt64Type>(values, field, cells, parse_integer),
        DataType::Float32 => primitive::<Float32Type>(values, field, cells, |value| {
            #[expect(clippy::cast_possible_truncation, reason = "float32 is what was declared")]
            let (wide, narrow) = parse_float(value).map(|wide| (wide, wide as f32))?;
            (narrow.is_finite() || !wide.is_finite()).then_some(narrow)
        }),
        DataType::Float64 => primitive::<Float64Type>(values, field, cells, parse_float),
        DataType::Decimal128(precision, scale) => {
            let (precision, scale) = (*precision, *scale);
            let parsed =
                collect(values, field, cells, |value| parse_decimal(value, precision, scale));
            let array: PrimitiveArray<Decimal128Type> = parsed.into_iter().collect();
            Arc::new(array.with_data_type(field.data_type().clone()))
        }
        DataType::Date32 => primitive::<Date32Type>(values, field, cells, parse_date),
        DataType::Time64(TimeUnit::Microsecond) => {
            primitive::<Time64MicrosecondType>(values, field, cells, |value| {
                Time64MicrosecondType::parse(value.as_str()?)
            })
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let parsed = collect(values, field, cells, parse_timestamp);
            let array: PrimitiveArray<TimestampMicrosecondType> = parsed.into_iter().collect();
            Arc::new(array.with_timezone_opt(zone.clone()))
        }
        DataType::Utf8 => {
            build_strings(values, is_json(field) && cells.notation == Notation::Source)
        }
        DataType::Binary => {
            let parse = match cells.notation {
                Notation::Source => parse_binary,
                Notation::Given => parse_hexadecimal,
            };
            let parsed = collect(values, field, cells, |value| parse(value.as_str()?));
            let mut builder = BinaryBuilder::new();
            for bytes in parsed {
                builder.append_option(bytes);
            }
            Arc::new(builder.finish())
        }
        DataType::List(item) => build_list(values, field, item, cells),
        DataType::Struct(fields) => build_struct(values, field, fields, cells),
        other => {
            for (index, value) in values.iter().enumerate() {
                if value.is_some() {
                    cells.reject(
                        index,
                        format!("JSON cannot be read into {}", type_name(other, false)),
                    );
                }
            }
            arrow::array::new_null_array(other, values.len())
        }
    }
}

/// Values parsed one by one; those that do not fit are null and rejected.
fn collect<T>(
    values: &[Option<&Json>],
    field: &Field,
    cells: &mut Cells<'_>,
    parse: impl Fn(&Json) -> Option<T>,
) -> Vec<Option<T>> {
    values
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let value = (*value)?;
            let parsed = parse(value);
            if parsed.is_none() {
                cells.reject(index, misfit(value, field));
            }
            parsed
        })
        .collect()
}

fn primitive<T: ArrowPrimitiveType>(
    values: &[Option<&Json>],
    field: &Field,
    cells: &mut Cells<'_>,
    parse: impl Fn(&Json) -> Option<T::Native>,
) -> ArrayRef {
    Arc::new(collect(values, field, cells, parse).into_iter().collect::<PrimitiveArray<T>>())
}

fn build_strings(values: &[Option<&Json>], json: bool) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(values.len(), values.len() * 16);
    for value in values {
        match value {
            None => builder.append_null(),
            Some(Json::String(text)) if !json => builder.append_value(text),
            Some(value) => builder.append_value(value.to_string()),
        }
    }
    Arc::new(builder.finish())
}

fn build_list(
    values: &[Option<&Json>],
    field: &Field,
    item: &Arc<Field>,
    cells: &mut Cells<'_>,
) -> ArrayRef {
    let mut lengths = Vec::with_capacity(values.len());
    let mut valid = BooleanBufferBuilder::new(values.len());
    let mut children = Vec::new();
    let mut child_rows = Vec::new();
    for (index, value) in values.iter().enumerate() {
        match value {
            Some(Json::Array(items)) => {
                lengths.push(items.len());
                valid.append(true);
                for item in items {
                    children.push(present(Some(item)));
                    child_rows.push(cells.rows[index]);
                }
            }
            other => {
                if let Some(value) = other {
                    cells.reject(index, misfit(value, field));
                }
                lengths.push(0);
                valid.append(false);
            }
        }
    }
    let path = format!("{}[]", cells.path);
    let mut below =
        Cells { path: &path, rows: &child_rows, reasons: cells.reasons, notation: cells.notation };
    let items = build_array(&children, item, &mut below);
    Arc::new(ListArray::new(
        Arc::clone(item),
        OffsetBuffer::from_lengths(lengths),
        items,
        Some(NullBuffer::new(valid.finish())),
    ))
}

fn build_struct(
    values: &[Option<&Json>],
    field: &Field,
    fields: &Fields,
    cells: &mut Cells<'_>,
) -> ArrayRef {
    let mut valid = BooleanBufferBuilder::new(values.len());
    for (index, value) in values.iter().enumerate() {
        valid.append(value.is_some_and(Json::is_object));
        if let Some(value) = value.filter(|value| !value.is_object()) {
            cells.reject(index, misfit(value, field));
        }
    }
    let children: Vec<ArrayRef> = fields
        .iter()
        .map(|child| {
            let below: Vec<Option<&Json>> = values
                .iter()
                .map(|value| present(value.and_then(|value| value.get(child.name()))))
                .collect();
            let path = format!("{}.{}", cells.path, child.name());
            let mut cells = Cells {
                path: &path,
                rows: cells.rows,
                reasons: cells.reasons,
                notation: cells.notation,
            };
            build_array(&below, child, &mut cells)
        })
        .collect();
    let nulls = NullBuffer::new(valid.finish());
    if fields.is_empty() {
        return Arc::new(StructArray::new_empty_fields(values.len(), Some(nulls)));
    }
    Arc::new(StructArray::new(fields.clone(), children, Some(nulls)))
}

fn misfit(value: &Json, field: &Field) -> String {
    let shown = shorten(&value.to_string());
    let text = match value {
        Json::Number(text) => text,
        Json::String(text) => text.trim_ascii(),
        _ => "",
    };
    quoted::misfit(text, &shown, field)
}

//! JSON records as Arrow rows: one set of rules for JSON files, REST pages and anything else that
//! speaks JSON.
//!
//! | JSON | into | becomes |
//! | --- | --- | --- |
//! | `null`, missing key | anything | null |
//! | number, boolean, object, array | string | its JSON text, compact, numbers as they are written |
//! | anything | `json` column | the same |
//! | number, string | integer, decimal | parsed digit by digit; rejected when it does not fit exactly |
//! | number, string | float | the nearest float |
//! | string | bool | parsed; rejected when it does not fit |
//! | string | timestamp | RFC 3339 (converted to UTC) or `YYYY-MM-DD[ T]HH:MM:SS[.f]` |
//! | string | date | `YYYY-MM-DD` |
//! | string | binary | `\x` and hexadecimal digits, or base64 |
//!
//! Keys that the schema does not name are ignored.

mod arrays;
mod decimal;
mod given;
mod infer;
mod json;
mod quoted;
#[cfg(test)]
mod tests;
mod values;

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Decimal128Builder, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, SchemaRef};

use crate::RejectedRow;
use arrays::{Cells, Notation, Reasons, build_array, present};
pub(crate) use decimal::decimal_from_text;
pub use decimal::same_number;
pub use given::decode_given;
pub use infer::infer_schema;
pub use json::Json;
use quoted::shorten;
pub(crate) use quoted::{misfit, quoted};
pub(crate) use values::is_number_too_large;

/// Records as rows of `schema`. A record with a value that does not fit is left out and returned
/// with every reason; the caller prefixes where it came from and adds offsets.
///
/// Fields inside lists and structs must be nullable, as [`crate::types::arrow_type`] and
/// [`infer_schema`] make them.
pub fn decode_records(schema: &SchemaRef, records: Vec<Json>) -> (RecordBatch, Vec<RejectedRow>) {
    let references: Vec<&Json> = records.iter().collect();
    let decoded = decode_slice(schema, &references);
    let rejected = decoded
        .rejected
        .into_iter()
        .map(|(index, reason)| RejectedRow {
            raw: records[index].to_string(),
            reason,
            offset: None,
        })
        .collect();
    (decoded.rows, rejected)
}

/// What [`decode_slice`] made of its records.
#[derive(Debug)]
pub struct DecodedRecords {
    pub rows: RecordBatch,
    /// Index of a record that is not in `rows`, and why; ascending.
    pub rejected: Vec<(usize, String)>,
}

/// [`decode_records`] for borrowed records, naming rejected ones by index.
pub fn decode_slice(schema: &SchemaRef, records: &[&Json]) -> DecodedRecords {
    decode(schema, records, Notation::Source)
}

fn decode(schema: &SchemaRef, records: &[&Json], notation: Notation) -> DecodedRecords {
    let mut reasons = Reasons { by_row: vec![None; records.len()] };
    let rows: Vec<usize> = (0..records.len()).collect();
    for (row, record) in records.iter().enumerate() {
        if !record.is_object() {
            reasons.add(row, "", format!("{} is not a JSON object", shorten(&record.to_string())));
        }
    }
    let arrays: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|field| {
            let values: Vec<Option<&Json>> =
                records.iter().map(|record| present(record.get(field.name()))).collect();
            if !field.is_nullable() {
                for (row, value) in values.iter().enumerate() {
                    if value.is_none() {
                        reasons.add(row, field.name(), "is missing or null".to_owned());
                    }
                }
            }
            build_array(
                &values,
                field,
                &mut Cells { path: field.name(), rows: &rows, reasons: &mut reasons, notation },
            )
        })
        .collect();
    let keep: BooleanArray = reasons.by_row.iter().map(|reason| Some(reason.is_none())).collect();
    let kept = keep.true_count();
    let arrays = if kept == records.len() {
        arrays
    } else {
        arrays
            .iter()
            .map(|array| {
                arrow::compute::filter(array, &keep).expect("the mask is as long as every column")
            })
            .collect()
    };
    let options = RecordBatchOptions::new().with_row_count(Some(kept));
    let rows = RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)
        .expect("columns are built from the schema's own fields");
    let rejected = reasons
        .by_row
        .into_iter()
        .enumerate()
        .filter_map(|(row, reason)| reason.map(|reason| (row, reason)))
        .collect();
    DecodedRecords { rows, rejected }
}

/// One column from the text of its cells, for types that only JSON can write (lists, structs), for
/// binary and for decimals, which Arrow would round. The error names the first row that does not fit.
pub(crate) fn column_from_text(
    cells: &[Option<&str>],
    field: &Field,
) -> Result<ArrayRef, (usize, String)> {
    if let DataType::Decimal128(precision, scale) = field.data_type() {
        return decimals_from_text(cells, field, *precision, *scale);
    }
    let mut values = Vec::with_capacity(cells.len());
    for (row, cell) in cells.iter().enumerate() {
        values.push(match cell {
            None => None,
            Some(text) if *field.data_type() == DataType::Binary => {
                Some(Json::String((*text).to_owned()))
            }
            Some(text) => Some(Json::parse(text.as_bytes()).map_err(|error| {
                (row, format!("column {}: {} is not JSON: {error}", field.name(), quoted(text)))
            })?),
        });
    }
    let references: Vec<Option<&Json>> =
        values.iter().map(|value| present(value.as_ref())).collect();
    let rows: Vec<usize> = (0..cells.len()).collect();
    let mut reasons = Reasons { by_row: vec![None; cells.len()] };
    let array = build_array(
        &references,
        field,
        &mut Cells {
            path: field.name(),
            rows: &rows,
            reasons: &mut reasons,
            notation: Notation::Source,
        },
    );
    match reasons.by_row.into_iter().enumerate().find_map(|(row, reason)| Some((row, reason?))) {
        None => Ok(array),
        Some(bad) => Err(bad),
    }
}

fn decimals_from_text(
    cells: &[Option<&str>],
    field: &Field,
    precision: u8,
    scale: i8,
) -> Result<ArrayRef, (usize, String)> {
    let mut builder =
        Decimal128Builder::with_capacity(cells.len()).with_data_type(field.data_type().clone());
    for (row, cell) in cells.iter().enumerate() {
        match cell {
            None => builder.append_null(),
            Some(text) => match decimal_from_text(text, precision, scale) {
                Some(unscaled) => builder.append_value(unscaled),
                None => {
                    let reason = misfit(text, &quoted(text), field);
                    return Err((row, format!("column {}: {reason}", field.name())));
                }
            },
        }
    }
    Ok(Arc::new(builder.finish()))
}

//! JSON records as Arrow rows: one set of rules for JSON files, REST pages and anything else that
//! speaks JSON.
//!
//! | JSON | into | becomes |
//! | --- | --- | --- |
//! | `null`, missing key | anything | null |
//! | number, boolean, object, array | string | its JSON text, compact |
//! | anything | `json` column | its JSON text, compact |
//! | string | number, decimal, bool | parsed; rejected when it does not fit |
//! | number with a fraction | integer | rejected |
//! | string | timestamp | RFC 3339 (converted to UTC) or `YYYY-MM-DD[ T]HH:MM:SS[.f]` |
//! | string | date | `YYYY-MM-DD` |
//! | string | binary | `\x` and hexadecimal digits, or base64 |
//!
//! Keys that the schema does not name are ignored.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, ListArray, PrimitiveArray, RecordBatch,
    RecordBatchOptions, StringBuilder, StructArray,
};
use arrow::array::{BinaryBuilder, NullArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::kernels::cast_utils::{Parser, parse_decimal, string_to_datetime};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Field, Fields, Float32Type,
    Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema, SchemaRef,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use indexmap::IndexMap;
use serde_json::Value;

use crate::RejectedRow;
use crate::types::{is_json, type_name};

/// Records as rows of `schema`. A record with a value that does not fit is left out and returned
/// with every reason; the caller prefixes where it came from and adds offsets.
///
/// Fields inside lists and structs must be nullable, as [`crate::types::arrow_type`] and
/// [`infer_schema`] make them.
pub fn decode_records(schema: &SchemaRef, records: Vec<Value>) -> (RecordBatch, Vec<RejectedRow>) {
    let references: Vec<&Value> = records.iter().collect();
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
pub fn decode_slice(schema: &SchemaRef, records: &[&Value]) -> DecodedRecords {
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
            let values: Vec<Option<&Value>> =
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
                &mut Cells { path: field.name(), rows: &rows, reasons: &mut reasons },
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

/// One column from the text of its cells, for types that only JSON can write (lists, structs) and
/// for binary. The error names the first row that does not fit.
pub(crate) fn column_from_text(
    cells: &[Option<&str>],
    field: &Field,
) -> Result<ArrayRef, (usize, String)> {
    let mut values = Vec::with_capacity(cells.len());
    for (row, cell) in cells.iter().enumerate() {
        values.push(match cell {
            None => None,
            Some(text) if *field.data_type() == DataType::Binary => {
                Some(Value::String((*text).to_owned()))
            }
            Some(text) => Some(serde_json::from_str::<Value>(text).map_err(|error| {
                (row, format!("column {}: {} is not JSON: {error}", field.name(), quoted(text)))
            })?),
        });
    }
    let references: Vec<Option<&Value>> =
        values.iter().map(|value| present(value.as_ref())).collect();
    let rows: Vec<usize> = (0..cells.len()).collect();
    let mut reasons = Reasons { by_row: vec![None; cells.len()] };
    let array = build_array(
        &references,
        field,
        &mut Cells { path: field.name(), rows: &rows, reasons: &mut reasons },
    );
    match reasons.by_row.into_iter().enumerate().find_map(|(row, reason)| Some((row, reason?))) {
        None => Ok(array),
        Some(bad) => Err(bad),
    }
}

/// A schema that holds all of `records`: the union of their keys in order of appearance, all
/// nullable. Integers and floats meet as `float64`; other mixed columns are strings (JSON text).
/// A column without any value is a string.
pub fn infer_schema(records: &[Value]) -> Schema {
    let mut columns: IndexMap<String, Inferred> = IndexMap::new();
    for record in records {
        if let Value::Object(object) = record {
            for (key, value) in object {
                let seen = columns.entry(key.clone()).or_insert(Inferred::Nothing);
                *seen = std::mem::replace(seen, Inferred::Nothing).with(value);
            }
        }
    }
    Schema::new(
        columns
            .into_iter()
            .map(|(name, inferred)| Field::new(name, inferred.data_type(), true))
            .collect::<Fields>(),
    )
}

/// What the values of a column have in common so far.
#[derive(Clone, Debug, PartialEq)]
enum Inferred {
    Nothing,
    Bool,
    Int,
    /// Integers beyond `int64`, none of them negative.
    UInt,
    Float,
    String,
    List(Box<Inferred>),
    Struct(IndexMap<String, Inferred>),
    Mixed,
}

impl Inferred {
    fn with(self, value: &Value) -> Inferred {
        let next = match value {
            Value::Null => return self,
            Value::Bool(_) => Inferred::Bool,
            Value::Number(number) if number.is_i64() => Inferred::Int,
            Value::Number(number) if number.is_u64() => Inferred::UInt,
            Value::Number(_) => Inferred::Float,
            Value::String(_) => Inferred::String,
            Value::Array(items) => {
                let before = match self {
                    Inferred::Nothing => Inferred::Nothing,
                    Inferred::List(item) => *item,
                    _ => return Inferred::Mixed,
                };
                return Inferred::List(Box::new(items.iter().fold(before, Inferred::with)));
            }
            Value::Object(object) => {
                let mut fields = match self {
                    Inferred::Nothing => IndexMap::new(),
                    Inferred::Struct(fields) => fields,
                    _ => return Inferred::Mixed,
                };
                for (key, value) in object {
                    let seen = fields.entry(key.clone()).or_insert(Inferred::Nothing);
                    *seen = std::mem::replace(seen, Inferred::Nothing).with(value);
                }
                return Inferred::Struct(fields);
            }
        };
        match (self, next) {
            (Inferred::Nothing, next) => next,
            (seen, next) if seen == next => seen,
            (Inferred::Int | Inferred::UInt | Inferred::Float, Inferred::Float)
            | (Inferred::Float, Inferred::Int | Inferred::UInt) => Inferred::Float,
            // Neither type holds all of both without loss; a string does.
            _ => Inferred::Mixed,
        }
    }

    fn data_type(&self) -> DataType {
        match self {
            Inferred::Nothing | Inferred::String | Inferred::Mixed => DataType::Utf8,
            Inferred::Bool => DataType::Boolean,
            Inferred::Int => DataType::Int64,
            Inferred::UInt => DataType::UInt64,
            Inferred::Float => DataType::Float64,
            Inferred::List(item) => {
                DataType::List(Arc::new(Field::new_list_field(item.data_type(), true)))
            }
            // Few systems can hold a struct without fields.
            Inferred::Struct(fields) if fields.is_empty() => DataType::Utf8,
            Inferred::Struct(fields) => DataType::Struct(
                fields
                    .iter()
                    .map(|(name, inferred)| Field::new(name, inferred.data_type(), true))
                    .collect(),
            ),
        }
    }
}

/// Every reason against a record, by row.
struct Reasons {
    by_row: Vec<Option<String>>,
}

impl Reasons {
    fn add(&mut self, row: usize, path: &str, reason: String) {
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
struct Cells<'a> {
    path: &'a str,
    rows: &'a [usize],
    reasons: &'a mut Reasons,
}

impl Cells<'_> {
    fn reject(&mut self, index: usize, reason: String) {
        self.reasons.add(self.rows[index], self.path, reason);
    }
}

fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

fn build_array(values: &[Option<&Value>], field: &Field, cells: &mut Cells<'_>) -> ArrayRef {
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
                collect(values, field, cells, |value| parse_decimal_value(value, precision, scale));
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
        DataType::Utf8 => build_strings(values, is_json(field)),
        DataType::Binary => {
            let parsed = collect(values, field, cells, |value| parse_binary(value.as_str()?));
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
    values: &[Option<&Value>],
    field: &Field,
    cells: &mut Cells<'_>,
    parse: impl Fn(&Value) -> Option<T>,
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
    values: &[Option<&Value>],
    field: &Field,
    cells: &mut Cells<'_>,
    parse: impl Fn(&Value) -> Option<T::Native>,
) -> ArrayRef {
    Arc::new(collect(values, field, cells, parse).into_iter().collect::<PrimitiveArray<T>>())
}

fn build_strings(values: &[Option<&Value>], json: bool) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(values.len(), values.len() * 16);
    for value in values {
        match value {
            None => builder.append_null(),
            Some(Value::String(text)) if !json => builder.append_value(text),
            Some(value) => builder.append_value(value.to_string()),
        }
    }
    Arc::new(builder.finish())
}

fn build_list(
    values: &[Option<&Value>],
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
            Some(Value::Array(items)) => {
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
    let mut below = Cells { path: &path, rows: &child_rows, reasons: cells.reasons };
    let items = build_array(&children, item, &mut below);
    Arc::new(ListArray::new(
        Arc::clone(item),
        OffsetBuffer::from_lengths(lengths),
        items,
        Some(NullBuffer::new(valid.finish())),
    ))
}

fn build_struct(
    values: &[Option<&Value>],
    field: &Field,
    fields: &Fields,
    cells: &mut Cells<'_>,
) -> ArrayRef {
    let mut valid = BooleanBufferBuilder::new(values.len());
    for (index, value) in values.iter().enumerate() {
        valid.append(value.is_some_and(Value::is_object));
        if let Some(value) = value.filter(|value| !value.is_object()) {
            cells.reject(index, misfit(value, field));
        }
    }
    let children: Vec<ArrayRef> = fields
        .iter()
        .map(|child| {
            let below: Vec<Option<&Value>> = values
                .iter()
                .map(|value| present(value.and_then(|value| value.get(child.name()))))
                .collect();
            let path = format!("{}.{}", cells.path, child.name());
            let mut cells = Cells { path: &path, rows: cells.rows, reasons: cells.reasons };
            build_array(&below, child, &mut cells)
        })
        .collect();
    let nulls = NullBuffer::new(valid.finish());
    if fields.is_empty() {
        return Arc::new(StructArray::new_empty_fields(values.len(), Some(nulls)));
    }
    Arc::new(StructArray::new(fields.clone(), children, Some(nulls)))
}

fn misfit(value: &Value, field: &Field) -> String {
    let name = type_name(field.data_type(), is_json(field));
    let article = if name.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" };
    format!("{} is not {article} {name}", shorten(&value.to_string()))
}

/// `text` in quotes, short enough for a message.
pub(crate) fn quoted(text: &str) -> String {
    shorten(&Value::String(text.to_owned()).to_string())
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn parse_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

fn parse_integer<T: TryFrom<i128>>(value: &Value) -> Option<T> {
    let wide = match value {
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), _, _) => i128::from(value),
            (_, Some(value), _) => i128::from(value),
            // Every whole f64 below 2^64 is exact.
            (_, _, Some(value))
                if value.fract() == 0.0 && value.abs() < 18_446_744_073_709_551_616.0 =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
                let whole = value as i128;
                whole
            }
            _ => return None,
        },
        Value::String(text) => text.trim_ascii().parse::<i128>().ok()?,
        _ => return None,
    };
    T::try_from(wide).ok()
}

fn parse_float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => {
            Float64Type::parse(text).filter(|value| !is_number_too_large(text, *value))
        }
        _ => None,
    }
}

/// Whether `text` is a number that became infinite because its type is too small for it, and not the
/// word `inf`.
pub(crate) fn is_number_too_large(text: &str, parsed: f64) -> bool {
    parsed.is_infinite() && text.bytes().any(|byte| byte.is_ascii_digit())
}

fn parse_decimal_value(value: &Value, precision: u8, scale: i8) -> Option<i128> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim_ascii().to_owned(),
        _ => return None,
    };
    decimal_from_text(&text, precision, scale)
}

/// A decimal from its text; `None` also when it has more digits before the point than fit.
pub(crate) fn decimal_from_text(text: &str, precision: u8, scale: i8) -> Option<i128> {
    // Arrow's parser counts digits in a byte.
    if text.len() > 200 {
        return None;
    }
    parse_decimal::<Decimal128Type>(text, precision, scale).ok()
}

fn parse_date(value: &Value) -> Option<i32> {
    let text = value.as_str()?;
    if text.len() == 10 { Date32Type::parse(text) } else { None }
}

fn parse_timestamp(value: &Value) -> Option<i64> {
    let text = value.as_str()?;
    string_to_datetime(&chrono::Utc, text).ok().map(|time| time.timestamp_micros())
}

/// `\x` and hexadecimal digits, or base64.
fn parse_binary(text: &str) -> Option<Vec<u8>> {
    if let Some(digits) = text.strip_prefix("\\x") {
        let nibbles: Option<Vec<u8>> = digits
            .bytes()
            .map(|digit| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let nibbles = nibbles.filter(|nibbles| nibbles.len() % 2 == 0)?;
        return Some(nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect());
    }
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use serde_json::json;

    use super::*;

    fn schema(fields: Vec<Field>) -> SchemaRef {
        Arc::new(Schema::new(fields))
    }

    #[test]
    fn values_are_coerced_as_the_table_says() {
        let timestamp = DataType::Timestamp(TimeUnit::Microsecond, None);
        let schema = schema(vec![
            Field::new("text", DataType::Utf8, true),
            Field::new("int", DataType::Int32, true),
            Field::new("price", DataType::Decimal128(10, 2), true),
            Field::new("at", timestamp, true),
            Field::new("day", DataType::Date32, true),
        ]);
        let (rows, rejected) = decode_records(
            &schema,
            vec![
                json!({"text": 1.5, "int": "7", "price": 0.1, "at": "2024-01-01T02:00:00+02:00", "day": "1970-01-02"}),
                json!({"text": {"a": [1]}, "int": 3.0, "price": "12.34", "at": "2024-01-01 00:00:00.5", "other": 1}),
            ],
        );
        assert!(rejected.is_empty(), "{rejected:?}");
        assert_eq!(rows.column(0).as_string::<i32>().value(0), "1.5");
        assert_eq!(rows.column(0).as_string::<i32>().value(1), r#"{"a":[1]}"#);
        assert_eq!(rows.column(1).as_primitive::<Int32Type>().values(), &[7, 3]);
        assert_eq!(rows.column(2).as_primitive::<Decimal128Type>().values(), &[10, 1234]);
        let at = rows.column(3).as_primitive::<TimestampMicrosecondType>();
        assert_eq!(at.value(0), 1_704_067_200_000_000);
        assert_eq!(at.value(1), 1_704_067_200_500_000);
        assert_eq!(rows.column(4).as_primitive::<Date32Type>().value(0), 1);
        assert!(rows.column(4).is_null(1));
    }

    #[test]
    fn record_that_does_not_fit_is_rejected_with_every_reason() {
        let schema = schema(vec![
            Field::new("id", DataType::Int32, true),
            Field::new("day", DataType::Date32, true),
        ]);
        let (rows, rejected) = decode_records(
            &schema,
            vec![
                json!({"id": 3_000_000_000_u64, "day": "yesterday"}),
                json!({"id": 1.5}),
                json!({"id": 1}),
                json!([1]),
            ],
        );
        assert_eq!(rows.num_rows(), 1);
        assert_eq!(rejected.len(), 3);
        assert_eq!(
            rejected[0].reason,
            "column id: 3000000000 is not an int32; column day: \"yesterday\" is not a date"
        );
        assert_eq!(rejected[1].reason, "column id: 1.5 is not an int32");
        assert_eq!(rejected[2].reason, "[1] is not a JSON object");
    }

    #[test]
    fn nested_values_are_inferred_and_decoded() {
        let records = vec![
            json!({"id": 1, "tags": ["a"], "address": {"zip": 1, "city": "X"}, "mixed": 1}),
            json!({"id": 2.5, "tags": [], "address": {"zip": "01", "more": true}, "mixed": [2]}),
            json!({"id": null}),
        ];
        let schema = Arc::new(infer_schema(&records));
        assert_eq!(schema.field(0).data_type(), &DataType::Float64);
        assert_eq!(schema.field(3).data_type(), &DataType::Utf8);
        let (rows, rejected) = decode_records(&schema, records);
        assert!(rejected.is_empty(), "{rejected:?}");
        let address = rows.column(2).as_struct();
        assert_eq!(address.column(0).as_string::<i32>().value(0), "1");
        assert_eq!(address.column(0).as_string::<i32>().value(1), "01");
        assert!(rows.column(2).is_null(2));
        assert_eq!(rows.column(1).as_list::<i32>().value(0).len(), 1);
        assert_eq!(rows.column(3).as_string::<i32>().value(1), "[2]");
    }

    #[test]
    fn bad_value_inside_a_list_names_its_path_and_rejects_the_record() {
        let item = Arc::new(Field::new_list_field(DataType::Int64, true));
        let schema = schema(vec![Field::new("points", DataType::List(item), true)]);
        let (rows, rejected) =
            decode_records(&schema, vec![json!({"points": [1, "x"]}), json!({"points": [1]})]);
        assert_eq!(rows.num_rows(), 1);
        assert_eq!(rejected[0].reason, "column points[]: \"x\" is not an int64");
    }

    #[test]
    fn json_column_keeps_valid_json_text() {
        let field = crate::types::arrow_field("raw", &weir_spec::ColumnType::Json);
        let (rows, _) = decode_records(
            &schema(vec![field]),
            vec![json!({"raw": "text"}), json!({"raw": {"a": 1}}), json!({"raw": null})],
        );
        let raw = rows.column(0).as_string::<i32>();
        assert_eq!((raw.value(0), raw.value(1)), ("\"text\"", "{\"a\":1}"));
        assert!(raw.is_null(2));
    }
}

//! Rows in place of a source's own: dead letters that are replayed, rows of a pipeline's tests.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use serde_json::{Map, Value};

use crate::records::arrays::Notation;
use crate::records::{Json, decode};

/// All of `rows`, or which row does not fit and why. Keys that the schema does not name are ignored.
///
/// Reads what Arrow writes: a string in a `json` column is JSON text, binary is hexadecimal.
pub fn decode_given(schema: &SchemaRef, rows: &[Json]) -> Result<RecordBatch, (usize, String)> {
    let (exact, others): (Vec<FieldRef>, Vec<FieldRef>) =
        schema.fields().iter().cloned().partition(|field| is_known(field.data_type()));
    let references: Vec<&Json> = rows.iter().collect();
    let decoded = decode(&Arc::new(Schema::new(exact)), &references, Notation::Given);
    if let Some(rejected) = decoded.rejected.into_iter().next() {
        return Err(rejected);
    }
    let mut others = others.iter().map(|field| decode_with_arrow(field, rows));
    let mut exact = decoded.rows.columns().iter().cloned();
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|field| match is_known(field.data_type()) {
            true => Ok(exact.next().expect("a column for each field")),
            false => others.next().expect("a column for each field"),
        })
        .collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|error| (0, error.to_string()))
}

/// Whether [`decode`] has a rule for the type. Others come from Parquet files only.
fn is_known(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) => is_known(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_known(field.data_type())),
        DataType::Time64(unit) | DataType::Timestamp(unit, _) => *unit == TimeUnit::Microsecond,
        DataType::Float16 => false,
        DataType::Null
        | DataType::Boolean
        | DataType::Decimal128(_, _)
        | DataType::Date32
        | DataType::Utf8
        | DataType::Binary => true,
        other => other.is_numeric() && other.is_primitive() && !is_decimal(other),
    }
}

fn is_decimal(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Decimal32(_, _) | DataType::Decimal64(_, _) | DataType::Decimal256(_, _)
    )
}

fn decode_with_arrow(field: &Field, rows: &[Json]) -> Result<ArrayRef, (usize, String)> {
    // As text, numbers keep their digits.
    let values: Vec<Map<String, Value>> = rows
        .iter()
        .map(|row| {
            let value = row.get(field.name()).map_or(Value::Null, Json::with_numbers_as_text);
            Map::from_iter([(field.name().clone(), value)])
        })
        .collect();
    let schema = Arc::new(Schema::new(vec![field.clone()]));
    let column = |rows: &[Map<String, Value>]| -> Result<ArrayRef, ArrowError> {
        let mut decoder = arrow::json::ReaderBuilder::new(Arc::clone(&schema))
            .with_batch_size(rows.len().max(1))
            .with_coerce_primitive(true)
            .build_decoder()?;
        decoder.serialize(rows)?;
        let decoded = decoder.flush()?;
        Ok(decoded.map_or_else(
            || arrow::array::new_empty_array(field.data_type()),
            |batch| Arc::clone(batch.column(0)),
        ))
    };
    column(&values).map_err(|error| {
        let bad = values.iter().position(|row| column(std::slice::from_ref(row)).is_err());
        (bad.unwrap_or_default(), format!("column {}: {error}", field.name()))
    })
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray as _;

    use super::*;

    #[test]
    fn what_arrow_writes_is_read_back() {
        let json = crate::types::arrow_field("raw", &weir_spec::ColumnType::Json);
        let nanoseconds = DataType::Timestamp(TimeUnit::Nanosecond, None);
        let schema = Arc::new(Schema::new(vec![
            Field::new("at", nanoseconds, true),
            Field::new("id", DataType::Decimal128(38, 20), true),
            json,
            Field::new("wide", DataType::Decimal256(60, 20), true),
            Field::new("bytes", DataType::Binary, true),
        ]));
        let text = r#"{"at":"2024-01-01T00:00:00.123456789","id":123456789012345678.12345678901234567891,"raw":"{\"a\":1}","wide":123456789012345678901234567890.12345678901234567891,"bytes":"00ff"}"#;
        let row = Json::parse(text.as_bytes()).expect("JSON");
        let batch = decode_given(&schema, &[row.clone(), Json::Object([].into_iter().collect())])
            .expect("it fits");
        assert_eq!(batch.num_rows(), 2);
        assert_eq!(batch.column(2).as_string::<i32>().value(0), "{\"a\":1}");
        let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
        writer.write(&batch.slice(0, 1)).expect("written");
        writer.finish().expect("written");
        assert_eq!(String::from_utf8(writer.into_inner()).expect("text").trim_end(), text);

        let bad = Json::parse(br#"{"wide": "x"}"#).expect("JSON");
        let (index, reason) = decode_given(&schema, &[row, bad]).expect_err("no number");
        assert_eq!(index, 1);
        assert!(reason.starts_with("column wide: "), "{reason}");
    }
}

//! JSON records as Arrow rows.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use arrow::json::reader::infer_json_schema_from_iterator;
use serde_json::Value;

use crate::{ConnectorError, ErrorKind, RejectedRow};

/// The columns of `records`: keys in order of appearance, types that fit all values.
pub(super) fn infer_schema(records: &[Value]) -> Result<Schema, ConnectorError> {
    infer_json_schema_from_iterator(records.iter().map(Ok)).map_err(|cause| {
        ConnectorError::caused(
            ErrorKind::Data,
            "the columns cannot be inferred, declare them under `columns`",
            cause,
        )
    })
}

/// Decodes what fits `schema`; unknown keys are left out, missing ones are null. The others are
/// rejected one by one.
pub(super) fn decode_records(
    schema: &SchemaRef,
    mut records: Vec<Value>,
) -> Result<(RecordBatch, Vec<RejectedRow>), ConnectorError> {
    if let Ok(rows) = decode(schema, &records) {
        return Ok((rows, Vec::new()));
    }
    let mut rejected = Vec::new();
    records.retain(|record| match decode(schema, std::slice::from_ref(record)) {
        Ok(_) => true,
        Err(cause) => {
            rejected.push(RejectedRow {
                raw: record.to_string(),
                reason: cause.to_string(),
                offset: None,
            });
            false
        }
    });
    Ok((decode(schema, &records)?, rejected))
}

fn decode(schema: &SchemaRef, records: &[Value]) -> Result<RecordBatch, ArrowError> {
    let mut decoder = ReaderBuilder::new(Arc::clone(schema))
        .with_batch_size(records.len().max(1))
        .build_decoder()?;
    decoder.serialize(records)?;
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(Arc::clone(schema))))
}

//! Rows as JSON objects, for dead letters and messages.

use arrow::array::RecordBatch;
use arrow::json::writer::{LineDelimited, WriterBuilder};
use datafusion::error::{DataFusionError, Result};
use weir_connectors::records::Json;

/// One object a row, in the order of the columns, nulls written out.
pub(crate) fn rows_to_json(batch: &RecordBatch) -> Result<Vec<Json>> {
    let mut bytes = Vec::new();
    let mut writer =
        WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut bytes);
    writer.write(batch)?;
    writer.finish()?;
    drop(writer);
    serde_json::Deserializer::from_slice(&bytes)
        .into_iter::<Json>()
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| DataFusionError::External(Box::new(error)))
}

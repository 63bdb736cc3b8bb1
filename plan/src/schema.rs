//! Schemas as they are frozen, and the plain types that leave a stage.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::error::DataFusionError;
use weir_connectors::types::JSON_METADATA;

use crate::{EncodedSchema, PlanError};

impl EncodedSchema {
    /// As an IPC stream without batches. Same schema, same bytes, for schemas of this crate's plans.
    pub fn encode(schema: &Schema) -> Result<Self, PlanError> {
        let failed = |error| PlanError::engine("failed to encode a schema", error);
        let mut bytes = Vec::new();
        StreamWriter::try_new(&mut bytes, schema)
            .and_then(|mut writer| writer.finish())
            .map_err(failed)?;
        Ok(Self(bytes))
    }

    pub fn decode(&self) -> Result<SchemaRef, PlanError> {
        let reader = StreamReader::try_new(self.0.as_slice(), None)
            .map_err(|error| PlanError::engine("failed to decode a schema", error))?;
        Ok(reader.schema())
    }
}

/// The schema with only the metadata that Weir knows. Metadata are hash maps: more than one entry
/// would be encoded in another order each time, and file formats leave much in them.
pub(crate) fn without_foreign_metadata(schema: &Schema) -> SchemaRef {
    let fields: Fields = schema.fields().iter().map(|field| clean_field(field)).collect();
    Arc::new(Schema::new(fields))
}

fn clean_field(field: &Field) -> FieldRef {
    let (key, _) = JSON_METADATA;
    let metadata = field
        .metadata()
        .iter()
        .filter(|(name, _)| name.as_str() == key)
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let data_type = map_children(field.data_type(), &clean_field);
    Arc::new(Field::new(field.name(), data_type, field.is_nullable()).with_metadata(metadata))
}

/// The type that sinks know for a type that only engines use: no views, dictionaries or run ends.
pub(crate) fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, values) => plain_type(values),
        DataType::RunEndEncoded(_, values) => plain_type(values.data_type()),
        DataType::LargeList(item) | DataType::ListView(item) | DataType::LargeListView(item) => {
            plain_type(&DataType::List(Arc::clone(item)))
        }
        other => map_children(other, &|field: &Field| {
            Arc::new(field.clone().with_data_type(plain_type(field.data_type())))
        }),
    }
}

fn map_children(data_type: &DataType, change: &dyn Fn(&Field) -> FieldRef) -> DataType {
    match data_type {
        DataType::List(item) => DataType::List(change(item)),
        DataType::FixedSizeList(item, length) => DataType::FixedSizeList(change(item), *length),
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|field| change(field)).collect())
        }
        DataType::Map(entries, sorted) => DataType::Map(change(entries), *sorted),
        other => other.clone(),
    }
}

/// The batch under the schema that the plan expects: picks columns by position, replaces metadata.
pub(crate) fn conform(
    batch: &RecordBatch,
    columns: Option<&[usize]>,
    schema: &SchemaRef,
) -> Result<RecordBatch, DataFusionError> {
    let arrays = match columns {
        Some(columns) => columns
            .iter()
            .map(|index| batch.columns().get(*index).cloned())
            .collect::<Option<Vec<_>>>()
            .unwrap_or_default(),
        None => batch.columns().to_vec(),
    };
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)
        .map_err(DataFusionError::from)
}

//! One schema for all Parquet files of a source.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use indexmap::IndexMap;

use crate::ConnectorError;
use crate::types::{JSON_METADATA, is_json};

/// The union of the columns of some files, by name; each from the file that first had it.
#[derive(Debug, Default)]
pub(crate) struct UnifiedSchema {
    columns: IndexMap<String, (FieldRef, String)>,
}

impl UnifiedSchema {
    /// Fails when the file has a column with another type than an earlier file.
    pub(crate) fn add(&mut self, file: &str, schema: &Schema) -> Result<(), ConnectorError> {
        for field in schema.fields() {
            let field = Arc::new(plain_field(field).with_nullable(true));
            match self.columns.get(field.name()) {
                None => {
                    self.columns.insert(field.name().clone(), (field, file.to_owned()));
                }
                Some((seen, _)) if seen.data_type() == field.data_type() => {}
                Some((seen, first_file)) => {
                    return Err(ConnectorError::data(format!(
                        "column `{}` is {} in {first_file} and {} in {file}: read the files with \
                         two sources, or write one of them again",
                        field.name(),
                        seen.data_type(),
                        field.data_type()
                    )));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn into_schema(self) -> SchemaRef {
        Arc::new(Schema::new(
            self.columns.into_values().map(|(field, _)| field).collect::<Fields>(),
        ))
    }
}

/// Without views, large offsets and dictionaries, whatever wrote the file; keeps of the metadata
/// only what marks JSON.
fn plain_field(field: &Field) -> Field {
    let plain = Field::new(field.name(), plain_type(field.data_type()), field.is_nullable());
    if is_json(field) {
        let (key, value) = JSON_METADATA;
        plain.with_metadata([(key.to_owned(), value.to_owned())].into())
    } else {
        plain
    }
}

pub(super) fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, value) => plain_type(value),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => DataType::List(Arc::new(plain_field(item))),
        DataType::FixedSizeList(item, size) => {
            DataType::FixedSizeList(Arc::new(plain_field(item)), *size)
        }
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|field| plain_field(field)).collect())
        }
        DataType::Map(entries, sorted) => DataType::Map(Arc::new(plain_field(entries)), *sorted),
        other => other.clone(),
    }
}

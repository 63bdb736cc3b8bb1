//! Cuts rows by the values of partition columns: `region=EU/day=2024-01-01`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::ConnectorError;

/// The folder value that stands for null, in Hive's convention.
const NULL_VALUE: &str = "__HIVE_DEFAULT_PARTITION__";
/// Longest file name that common file systems accept.
const NAME_BYTES: usize = 255;

/// Which columns name folders, and which stay in the files.
#[derive(Debug)]
pub(super) struct Partitioning {
    folders: Vec<usize>,
    kept: Vec<usize>,
    input: SchemaRef,
    /// The schema of the files.
    pub file_schema: SchemaRef,
}

impl Partitioning {
    /// For people-only errors: unknown columns, types that cannot name a folder, nothing left.
    pub(super) fn new(schema: &SchemaRef, columns: &[String]) -> Result<Self, ConnectorError> {
        let mut folders = Vec::with_capacity(columns.len());
        for column in columns {
            let Some((index, field)) = schema.column_with_name(column) else {
                return Err(ConnectorError::config(format!(
                    "partition_by names the column {column}, which the rows do not have: they have {}",
                    names(schema)
                )));
            };
            let data_type = field.data_type();
            let binary = matches!(
                data_type,
                DataType::Binary
                    | DataType::LargeBinary
                    | DataType::BinaryView
                    | DataType::FixedSizeBinary(_)
            );
            if data_type.is_nested() || binary {
                return Err(ConnectorError::config(format!(
                    "partition_by: column {column} of type {data_type} cannot name a folder"
                )));
            }
            folders.push(index);
        }
        let kept: Vec<usize> =
            (0..schema.fields().len()).filter(|index| !folders.contains(index)).collect();
        if kept.is_empty() {
            return Err(ConnectorError::config(
                "partition_by names all columns: the files would have none",
            ));
        }
        let file_schema = Arc::new(schema.project(&kept)?);
        Ok(Self { folders, kept, input: schema.clone(), file_schema })
    }

    /// The rows of each folder (relative path, empty without partitions), in order of appearance.
    pub(super) fn split(
        &self,
        rows: &RecordBatch,
    ) -> Result<Vec<(String, RecordBatch)>, ConnectorError> {
        // Under the sink's own schema: batches may come without its metadata.
        let rows = RecordBatch::try_new(self.input.clone(), rows.columns().to_vec())?;
        let kept = rows.project(&self.kept)?;
        let kept = RecordBatch::try_new(self.file_schema.clone(), kept.columns().to_vec())?;
        if self.folders.is_empty() {
            return Ok(vec![(String::new(), kept)]);
        }
        let columns: Vec<_> =
            self.folders.iter().map(|index| rows.column(*index).clone()).collect();
        let converter = RowConverter::new(
            columns.iter().map(|column| SortField::new(column.data_type().clone())).collect(),
        )?;
        let keys = converter.convert_columns(&columns)?;
        let mut places: HashMap<&[u8], usize> = HashMap::new();
        let mut groups: Vec<Vec<u32>> = Vec::new();
        for row in 0..rows.num_rows() {
            let group = *places.entry(keys.row(row).data()).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[group].push(u32::try_from(row).expect("a batch has fewer than 2^32 rows"));
        }
        let options = FormatOptions::new().with_display_error(false);
        let formatters = columns
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
            .collect::<Result<Vec<_>, _>>()?;
        let nulls: Vec<_> = columns.iter().map(|column| column.logical_nulls()).collect();
        let is_single = groups.len() == 1;
        let mut parts = Vec::with_capacity(groups.len());
        for group in groups {
            let first = group[0] as usize;
            let mut path = String::new();
            for ((index, formatter), nulls) in self.folders.iter().zip(&formatters).zip(&nulls) {
                let column = self.input.field(*index).name();
                let value = if nulls.as_ref().is_some_and(|nulls| nulls.is_null(first)) {
                    NULL_VALUE.to_owned()
                } else {
                    encode(&formatter.value(first).to_string())
                };
                let folder = format!("{}={value}", encode(column));
                if folder.len() > NAME_BYTES {
                    return Err(ConnectorError::data(format!(
                        "partition_by: a value of column {column} makes a folder name of {} bytes, \
                         file systems accept {NAME_BYTES}: {}…",
                        folder.len(),
                        folder.chars().take(60).collect::<String>()
                    )));
                }
                if !path.is_empty() {
                    path.push('/');
                }
                path.push_str(&folder);
            }
            let part = if is_single {
                kept.clone()
            } else {
                take_record_batch(&kept, &UInt32Array::from(group))?
            };
            parts.push((path, part));
        }
        Ok(parts)
    }
}

fn names(schema: &Schema) -> String {
    schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join(", ")
}

/// Percent-encodes what Hive, Spark and file systems cannot have in a folder name.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || "\"#%'*/:<>=?\\{}[]^|".contains(character) {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        } else {
            encoded.push(character);
        }
    }
    encoded
}

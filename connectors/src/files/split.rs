//! A split of a file, as it is frozen with the plan.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::files::listing::{SourceFile, stamp};
use crate::{ConnectorContext, ConnectorError, ErrorKind, Split};

/// What a file source keeps in [`Split::payload`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileSplit {
    /// Relative to the pipeline's folder where the file is below it.
    pub path: String,
    pub size: u64,
    pub modified_ns: i64,
    /// Byte range, or range of row groups for Parquet. A compressed file is always whole.
    pub start: u64,
    pub end: u64,
    pub partitions: Vec<(String, Option<String>)>,
    /// The file columns that were inferred at planning, as an Arrow IPC stream in base64; `None`
    /// where they are declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
}

impl FileSplit {
    pub(crate) fn new(file: &SourceFile, start: u64, end: u64, schema: Option<String>) -> Self {
        Self {
            path: file.name.clone(),
            size: file.size,
            modified_ns: file.modified_ns,
            start,
            end,
            partitions: file.partitions.clone(),
            schema,
        }
    }

    pub(crate) fn into_split(self, label: String, weight: u64, rows: Option<u64>) -> Split {
        Split {
            label,
            payload: serde_json::to_value(self).expect("a file split is plain JSON"),
            weight,
            estimated_rows: rows,
        }
    }

    pub(crate) fn from_split(split: &Split) -> Result<Self, ConnectorError> {
        serde_json::from_value(split.payload.clone()).map_err(|error| {
            ConnectorError::internal(format!(
                "split `{}` is not a split of files: {error}",
                split.label
            ))
        })
    }

    /// The file's path, if it is still the file that was planned. Blocking.
    pub(crate) fn verify(&self, context: &ConnectorContext) -> Result<PathBuf, ConnectorError> {
        let path = context.path(&self.path);
        let now = match stamp(&path) {
            Ok(now) => now,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ConnectorError::new(
                    ErrorKind::Changed,
                    format!("{} was there when this run was planned and is gone now", self.path),
                ));
            }
            Err(error) => return Err(ConnectorError::io("look at", &path, error)),
        };
        if now != (self.size, self.modified_ns) {
            let what = if now.0 == self.size {
                "was written again".to_owned()
            } else {
                format!("had {} bytes and has {}", self.size, now.0)
            };
            return Err(ConnectorError::new(
                ErrorKind::Changed,
                format!(
                    "{} has changed since this run was planned: it {what}; start a new run",
                    self.path
                ),
            ));
        }
        Ok(path)
    }

    pub(crate) fn decode_schema(&self) -> Result<Option<SchemaRef>, ConnectorError> {
        let Some(text) = &self.schema else { return Ok(None) };
        let broken = |error: String| {
            ConnectorError::internal(format!(
                "the schema in a split of {} is broken: {error}",
                self.path
            ))
        };
        let bytes = STANDARD.decode(text).map_err(|error| broken(error.to_string()))?;
        let reader = arrow::ipc::reader::StreamReader::try_new(bytes.as_slice(), None)
            .map_err(|error| broken(error.to_string()))?;
        Ok(Some(reader.schema()))
    }
}

/// For [`FileSplit::schema`].
pub(crate) fn encode_schema(schema: &SchemaRef) -> Result<String, ConnectorError> {
    let schema = Arc::clone(schema);
    let writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &schema)?;
    Ok(STANDARD.encode(writer.into_inner()?))
}

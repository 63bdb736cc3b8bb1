//! A split of a file, as it is frozen with the plan.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::files::listing::SourceFile;
use crate::files::opened::OpenFile;
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

    /// Opens the file, if it is still the file that was planned. Blocking.
    pub(crate) fn open(
        &self,
        context: &ConnectorContext,
    ) -> Result<(OpenFile, FileWatch), ConnectorError> {
        let path = context.path(&self.path);
        // A pipe that has taken the file's place would be waited for.
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ConnectorError::io("look at", &path, error));
            }
            Ok(_) | Err(_) => {
                return Err(ConnectorError::new(
                    ErrorKind::Changed,
                    format!("{} was there when this run was planned and is gone now", self.path),
                ));
            }
        }
        let file = OpenFile::open(&path)?;
        let watch = FileWatch {
            file: file.clone(),
            name: self.path.clone(),
            planned: (self.size, self.modified_ns),
        };
        watch.check()?;
        Ok((file, watch))
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

/// Tells whether an open file is as it was when the run was planned.
#[derive(Clone, Debug)]
pub(crate) struct FileWatch {
    file: OpenFile,
    name: String,
    /// Size and modification time.
    planned: (u64, i64),
}

impl FileWatch {
    /// What has been read before this is of the planned file if it succeeds. Blocking, and quick.
    pub(crate) fn check(&self) -> Result<(), ConnectorError> {
        let now = self
            .file
            .stamp()
            .map_err(|error| ConnectorError::io("look at", self.file.path(), error))?;
        if now == self.planned {
            return Ok(());
        }
        let what = if now.0 == self.planned.0 {
            "was written again".to_owned()
        } else {
            format!("had {} bytes and has {}", self.planned.0, now.0)
        };
        Err(ConnectorError::new(
            ErrorKind::Changed,
            format!(
                "{} has changed since this run was planned: it {what}; start a new run",
                self.name
            ),
        ))
    }
}

/// For [`FileSplit::schema`].
pub(crate) fn encode_schema(schema: &SchemaRef) -> Result<String, ConnectorError> {
    let schema = Arc::clone(schema);
    let writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &schema)?;
    Ok(STANDARD.encode(writer.into_inner()?))
}

//! Sinks: where rows go, and how they become visible.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::{Compression, ConnectionRef, InputRef, TemplateText, UnsupportedNode};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sink {
    /// Unioned by column name.
    pub inputs: Vec<InputRef>,
    pub target: SinkTarget,
    pub mode: WriteMode,
    /// Columns that identify a row; required by upsert.
    pub key: Vec<String>,
    pub commit: CommitMode,
    /// Rows that become visible together. Default 50,000 for databases, 1,000,000 for files.
    pub batch_rows: NonZeroU64,
    pub schema: SchemaPolicy,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
#[expect(clippy::large_enum_variant, reason = "one value a node: a box would save nothing")]
pub enum SinkTarget {
    Files(FileTarget),
    Table(TableTarget),
    Unsupported(UnsupportedNode),
}

/// A folder of files, relative to the pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileTarget {
    pub path: TemplateText,
    pub format: FileFormat,
    /// Hive folders `column=value/`; these columns are not repeated inside the files.
    pub partition_by: Vec<String>,
    /// A file is closed once it has about this many bytes. Default 128 MiB.
    pub target_file_size_bytes: NonZeroU64,
    pub compression: Compression,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "format")]
pub enum FileFormat {
    Csv {
        delimiter: u8,
        quote: u8,
        header: bool,
    },
    /// One JSON object a line.
    Json,
    Parquet,
}

/// A table of PostgreSQL or SQLite, as the connection says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableTarget {
    pub connection: ConnectionRef,
    /// `schema.table` or `table`.
    pub table: TemplateText,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteMode {
    Append,
    Upsert,
    Replace,
}

/// When written rows become visible. `replace` is always `Run`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommitMode {
    #[default]
    Batch,
    Run,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaPolicy {
    pub new_columns: NewColumns,
    pub type_changes: TypeChanges,
    pub missing_columns: MissingColumns,
}

impl Default for SchemaPolicy {
    fn default() -> Self {
        Self {
            new_columns: NewColumns::Fail,
            type_changes: TypeChanges::Fail,
            missing_columns: MissingColumns::FillNull,
        }
    }
}

/// A column that the rows have and the table lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewColumns {
    Add,
    Ignore,
    Fail,
}

/// A column whose type differs from the table's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TypeChanges {
    /// Cast each value to the table's type; a value that does not fit fails the run.
    Cast,
    /// Only lossless casts (int32 into bigint); anything else is an error before the first row.
    Fail,
}

/// A column that the table has and the rows lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissingColumns {
    FillNull,
    Fail,
}

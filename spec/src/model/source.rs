//! Sources: where rows come from.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::{ColumnType, ConnectionRef, TemplateText, UnsupportedNode};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
#[expect(clippy::large_enum_variant, reason = "one value a node: a box would save nothing")]
pub enum Source {
    Csv(CsvSource),
    Json(JsonSource),
    Parquet(ParquetSource),
    /// A table or query of PostgreSQL or SQLite, as the connection says.
    Database(DatabaseSource),
    Http(HttpSource),
    Unsupported(UnsupportedNode),
}

/// Declared columns, in file order. Where absent, the connector infers them once, at planning.
pub type DeclaredColumns = IndexMap<String, ColumnType>;

/// What happens to a row that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    #[default]
    DeadLetter,
    Drop,
    Fail,
}

/// How many rejected rows a run may have: `100` or `5%`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxErrors {
    Rows(u64),
    /// 0 to 100.
    Percent(f64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// By the file's suffix: `.gz`, `.zst`, else none.
    #[default]
    Auto,
    None,
    Gzip,
    Zstd,
}

/// `type: csv`. `path` is one file, a folder or a glob, relative to the pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CsvSource {
    pub path: TemplateText,
    /// First line names the columns. Default true.
    pub header: bool,
    /// One byte. Default `,`.
    pub delimiter: u8,
    /// One byte. Default `"`.
    pub quote: u8,
    pub escape: Option<u8>,
    pub comment: Option<u8>,
    /// Cells that mean null. Default: the empty cell.
    pub null_values: Vec<String>,
    /// Whether quoted cells may hold line breaks. Default true.
    pub multiline: bool,
    pub compression: Compression,
    pub columns: Option<DeclaredColumns>,
    /// `key=value` folders become string columns. Default true when the path holds such folders.
    pub hive_partitions: Option<bool>,
    pub on_error: OnError,
    pub max_errors: Option<MaxErrors>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JsonFormat {
    /// An array when the first non-blank byte is `[`, else lines.
    #[default]
    Auto,
    Array,
    Lines,
}

/// `type: json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JsonSource {
    pub path: TemplateText,
    pub format: JsonFormat,
    /// JSONPath (RFC 9535) of the records inside a document; for one document a file.
    pub records: Option<String>,
    pub compression: Compression,
    pub columns: Option<DeclaredColumns>,
    pub hive_partitions: Option<bool>,
    pub on_error: OnError,
    pub max_errors: Option<MaxErrors>,
}

/// `type: parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParquetSource {
    pub path: TemplateText,
    pub hive_partitions: Option<bool>,
}

/// A table or a query. Exactly one of `table` and `query` is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatabaseSource {
    pub connection: ConnectionRef,
    pub table: Option<TemplateText>,
    pub query: Option<TemplateText>,
    pub incremental: Option<Incremental>,
}

/// Read only what is new since the last committed cursor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incremental {
    /// The column whose greatest committed value is the watermark.
    pub cursor: String,
    /// HTTP only: the query parameter that carries the watermark.
    pub param: Option<String>,
    /// The watermark before the first run, as written.
    pub initial: Option<String>,
    /// Subtracted from a time watermark when reading, to catch late rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<std::time::Duration>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpSource {
    pub connection: ConnectionRef,
    pub path: TemplateText,
    pub method: HttpMethod,
    pub query: IndexMap<String, TemplateText>,
    pub headers: IndexMap<String, TemplateText>,
    /// Request body for POST, sent as JSON.
    pub body: Option<serde_json::Value>,
    pub pagination: Pagination,
    /// JSONPath of the records in a page. Default: `$[*]` for an array, `$` for an object.
    pub records: Option<String>,
    /// JSONPath that, when it matches a page answered with status 200, makes it an error.
    pub error_path: Option<String>,
    pub incremental: Option<Incremental>,
    pub columns: Option<DeclaredColumns>,
    pub on_error: OnError,
    pub max_errors: Option<MaxErrors>,
    /// A bound against endless pagination. Default 100,000.
    pub max_pages: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    #[default]
    Get,
    Post,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Pagination {
    #[default]
    None,
    /// A cursor in the body, sent back as a query parameter.
    Cursor { cursor_path: String, cursor_param: String },
    /// A cursor in a response header, sent back as a query parameter.
    HeaderCursor { header: String, cursor_param: String },
    /// The next page's URL in the body.
    NextLink { next_path: String },
    /// The next page's URL in the `Link` header, `rel="next"`.
    LinkHeader,
    /// `?page=1`, `?page=2`, … until a page has no records (or fewer than `page_size`).
    PageNumber {
        page_param: String,
        start: u64,
        size_param: Option<String>,
        page_size: Option<u64>,
    },
    /// `?offset=0&limit=100`, … until a page has fewer than `limit` records.
    Offset { offset_param: String, limit_param: String, limit: u64 },
}

impl Source {
    pub fn connection(&self) -> Option<&ConnectionRef> {
        match self {
            Source::Database(database) => Some(&database.connection),
            Source::Http(http) => Some(&http.connection),
            Source::Csv(_) | Source::Json(_) | Source::Parquet(_) | Source::Unsupported(_) => None,
        }
    }

    pub fn incremental(&self) -> Option<&Incremental> {
        match self {
            Source::Database(database) => database.incremental.as_ref(),
            Source::Http(http) => http.incremental.as_ref(),
            Source::Csv(_) | Source::Json(_) | Source::Parquet(_) | Source::Unsupported(_) => None,
        }
    }

    /// What happens to unreadable rows, and how many a run may have.
    pub fn error_policy(&self) -> (OnError, Option<MaxErrors>) {
        match self {
            Source::Csv(csv) => (csv.on_error, csv.max_errors),
            Source::Json(json) => (json.on_error, json.max_errors),
            Source::Http(http) => (http.on_error, http.max_errors),
            Source::Parquet(_) | Source::Database(_) | Source::Unsupported(_) => {
                (OnError::Fail, None)
            }
        }
    }
}

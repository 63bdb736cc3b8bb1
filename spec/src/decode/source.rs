//! Sources.

use indexmap::IndexMap;

use super::connection::templates;
use super::{Decoder, Fields};
use crate::shape::check::{TagResult, shape_of};
use crate::shape::{Kind, PAGINATION, SOURCE, Shape, format};
use crate::syntax::{Entry, Node};
use crate::{
    ColumnType, Connection, CsvSource, DatabaseSource, DeclaredColumns, HttpSource, Incremental,
    JsonFormat, JsonSource, NodeName, OnError, Pagination, ParquetSource, Source, UnsupportedNode,
};

impl Decoder<'_, '_> {
    pub(super) fn sources(
        &mut self,
        section: Option<&Node>,
        connections: &IndexMap<String, Connection>,
    ) -> IndexMap<NodeName, Source> {
        let map = section.and_then(Node::as_map);
        let entries = map.map_or(&[][..], |map| map.entries.as_slice());
        entries
            .iter()
            .filter_map(|entry| Some((NodeName::new(&entry.key), self.source(entry, connections)?)))
            .collect()
    }

    fn source(
        &mut self,
        entry: &Entry,
        connections: &IndexMap<String, Connection>,
    ) -> Option<Source> {
        let map = entry.value.as_map()?;
        let TagResult::Shape(shape) = shape_of(map, entry.value.span, &SOURCE, self.names) else {
            let type_name = map.get("type").and_then(Node::text).unwrap_or("unknown").to_owned();
            return Some(Source::Unsupported(UnsupportedNode { type_name }));
        };
        let type_name = SOURCE.name_of(shape);
        let fields = &Fields::new(map, entry.value.span, shape);
        Some(match type_name {
            "csv" => Source::Csv(self.csv(fields)?),
            "json" => Source::Json(self.json(fields)?),
            "parquet" => {
                self.local_path(fields);
                Source::Parquet(ParquetSource {
                    path: fields.template("path")?,
                    hive_partitions: fields.bool("hive_partitions"),
                })
            }
            "http" => Source::Http(self.http(fields, connections)?),
            _ => Source::Database(self.database(type_name, fields, connections)?),
        })
    }

    fn csv(&mut self, fields: &Fields<'_>) -> Option<CsvSource> {
        self.local_path(fields);
        self.error_limit(fields);
        self.cells_can_be_told_apart(fields);
        let null_values = match fields.has("null_values") {
            true => fields.items("null_values").iter().filter_map(written).collect(),
            false => vec![String::new()],
        };
        Some(CsvSource {
            path: fields.template("path")?,
            header: fields.bool("header")?,
            delimiter: fields.byte("delimiter")?,
            quote: fields.byte("quote")?,
            escape: fields.byte("escape"),
            comment: fields.byte("comment"),
            null_values,
            multiline: fields.bool("multiline")?,
            compression: fields.choice("compression")?,
            columns: columns(fields),
            hive_partitions: fields.bool("hive_partitions"),
            on_error: fields.choice("on_error")?,
            max_errors: fields.parse("max_errors", format::max_errors),
        })
    }

    fn json(&mut self, fields: &Fields<'_>) -> Option<JsonSource> {
        self.local_path(fields);
        self.error_limit(fields);
        let format = fields.choice("format")?;
        if let Some(entry) = fields.entry("records")
            && format == JsonFormat::Lines
        {
            self.report.error_help(
                "conflicting-keys",
                entry.key_span,
                "`records` searches one document a file, `format: lines` has a document a line",
                "remove `records`, or remove `format: lines`",
            );
        }
        Some(JsonSource {
            path: fields.template("path")?,
            format,
            records: fields.text("records"),
            compression: fields.choice("compression")?,
            columns: columns(fields),
            hive_partitions: fields.bool("hive_partitions"),
            on_error: fields.choice("on_error")?,
            max_errors: fields.parse("max_errors", format::max_errors),
        })
    }

    fn database(
        &mut self,
        type_name: &str,
        fields: &Fields<'_>,
        connections: &IndexMap<String, Connection>,
    ) -> Option<DatabaseSource> {
        let shape = object_shape(fields, "incremental", SOURCE.shape(type_name)?);
        Some(DatabaseSource {
            connection: self.connection_of(type_name, fields, connections)?,
            table: fields.template("table"),
            query: fields.template("query"),
            incremental: shape.and_then(|(node, shape)| incremental(node, shape, false)),
        })
    }

    fn http(
        &mut self,
        fields: &Fields<'_>,
        connections: &IndexMap<String, Connection>,
    ) -> Option<HttpSource> {
        if let Some(connection) = fields.node("connection").and_then(Node::text) {
            for key in ["auth", "rate_limit", "timeout"] {
                if let Some(entry) = fields.entry(key) {
                    self.report.error_help(
                        "conflicting-keys",
                        entry.key_span,
                        format!("`{key}` belongs to the connection, and this node uses the connection `{connection}`"),
                        format!("move `{key}` to `connections.{connection}`"),
                    );
                }
            }
        }
        let method = fields.choice("method")?;
        if let Some(entry) = fields.entry("body")
            && method == crate::HttpMethod::Get
        {
            self.report.error_help(
                "conflicting-keys",
                entry.key_span,
                "a GET request has no body",
                "add `method: POST`, or use `query`",
            );
        }
        self.error_limit(fields);
        let columns = columns(fields);
        if let Some(columns) = &columns {
            self.lag_fits(fields, columns);
        }
        let incremental = object_shape(fields, "incremental", SOURCE.shape("http")?);
        Some(HttpSource {
            connection: self.connection_of("http", fields, connections)?,
            path: fields.template("path")?,
            method,
            query: templates(fields, "query"),
            headers: templates(fields, "headers"),
            body: fields.node("body").map(Node::to_json),
            pagination: match fields.node("pagination") {
                Some(node) => self.pagination(node)?,
                None => Pagination::None,
            },
            records: fields.text("records"),
            error_path: fields.text("error_path"),
            incremental: incremental.and_then(|(node, shape)| self::incremental(node, shape, true)),
            columns,
            on_error: fields.choice("on_error")?,
            max_errors: fields.parse("max_errors", format::max_errors),
            max_pages: fields.integer("max_pages")?,
        })
    }

    /// Of CSV sources and sinks.
    pub(super) fn cells_can_be_told_apart(&mut self, fields: &Fields<'_>) {
        if let (Some(delimiter), Some(quote)) = (fields.byte("delimiter"), fields.byte("quote"))
            && delimiter == quote
            && let Some(node) = fields.node("delimiter").or(fields.node("quote"))
        {
            self.report.error_help(
                "conflicting-keys",
                node.span,
                "`delimiter` and `quote` are the same character",
                "change one of them",
            );
        }
    }

    /// `max_errors` limits what `on_error: fail` does not allow at all.
    pub(super) fn error_limit(&mut self, fields: &Fields<'_>) {
        if let Some(entry) = fields.entry("max_errors")
            && fields.choice("on_error") == Some(OnError::Fail)
        {
            self.report.error_help(
                "conflicting-keys",
                entry.key_span,
                "`on_error: fail` allows no rejected row, so `max_errors` has no effect",
                "remove `max_errors`, or write `on_error: dead_letter`",
            );
        }
    }

    /// A lag is a time; a cursor that is known to be a number cannot be moved back by it.
    fn lag_fits(&mut self, fields: &Fields<'_>, columns: &DeclaredColumns) {
        let Some(incremental) = fields.node("incremental").and_then(Node::as_map) else { return };
        let (Some(lag), Some(cursor)) = (incremental.entry("lag"), incremental.get("cursor"))
        else {
            return;
        };
        let declared = cursor.text().and_then(|cursor| columns.get(cursor));
        if let (Some(cursor), Some(declared)) = (cursor.text(), declared)
            && !matches!(
                declared,
                ColumnType::Timestamp
                    | ColumnType::TimestampTz
                    | ColumnType::Date
                    | ColumnType::String
            )
        {
            self.report.error_help(
                "conflicting-keys",
                lag.key_span,
                format!("`lag` is a time, and the cursor `{cursor}` is declared as no time"),
                "remove `lag`, or name a cursor of type timestamp_tz, timestamp or date",
            );
        }
    }

    fn pagination(&mut self, node: &Node) -> Option<Pagination> {
        let map = node.as_map()?;
        let TagResult::Shape(shape) = shape_of(map, node.span, &PAGINATION, self.names) else {
            return None;
        };
        let fields = Fields::new(map, node.span, shape);
        Some(match PAGINATION.name_of(shape) {
            "cursor" => Pagination::Cursor {
                cursor_path: fields.text("cursor_path")?,
                cursor_param: fields.text("cursor_param")?,
            },
            "header_cursor" => Pagination::HeaderCursor {
                header: fields.text("header")?,
                cursor_param: fields.text("cursor_param")?,
            },
            "next_link" => Pagination::NextLink { next_path: fields.text("next_path")? },
            "link_header" => Pagination::LinkHeader,
            "page_number" => {
                if let Some(entry) = fields.entry("size_param")
                    && !fields.has("page_size")
                {
                    self.report.error_help(
                        "missing-key",
                        entry.key_span,
                        "`size_param` has no effect without `page_size`",
                        "add `page_size: 100`, or remove `size_param`",
                    );
                }
                Pagination::PageNumber {
                    page_param: fields.text("page_param")?,
                    start: fields.integer("start")?,
                    size_param: fields.text("size_param"),
                    page_size: fields.integer("page_size"),
                }
            }
            "offset" => Pagination::Offset {
                offset_param: fields.text("offset_param")?,
                limit_param: fields.text("limit_param")?,
                limit: fields.integer("limit")?,
            },
            _ => Pagination::None,
        })
    }

    /// Files are local in this version.
    pub(super) fn local_path(&mut self, fields: &Fields<'_>) {
        let Some(node) = fields.node("path") else { return };
        let Some(text) = node.text() else { return };
        let Some((scheme, _)) = text.split_once("://") else { return };
        let is_scheme = scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c));
        if scheme == "file" || scheme.is_empty() || !is_scheme {
            return;
        }
        self.report.error_help(
            "not-supported-yet",
            node.span,
            format!("paths of `{scheme}://` are not supported yet by this version"),
            "use a local path, relative to the pipeline file",
        );
    }
}

/// A scalar as written; `null_values: [null, NA]` means the text `null`.
fn written(node: &Node) -> Option<String> {
    node.as_scalar().map(|scalar| scalar.text.clone())
}

fn columns(fields: &Fields<'_>) -> Option<DeclaredColumns> {
    fields.node("columns").filter(|node| !node.is_null())?;
    let entries = fields.entries("columns").iter();
    entries
        .map(|entry| Some((entry.key.clone(), format::column_type(entry.value.text()?).ok()?)))
        .collect()
}

fn incremental(node: &Node, shape: &'static Shape, is_http: bool) -> Option<Incremental> {
    let fields = Fields::of(Some(node), shape);
    Some(Incremental {
        cursor: fields.text("cursor")?,
        param: if is_http { fields.text("param") } else { None },
        initial: fields.text("initial"),
        lag: fields.duration("lag"),
    })
}

/// A written object below `name`, with its table.
fn object_shape<'n>(
    fields: &Fields<'n>,
    name: &str,
    shape: &'static Shape,
) -> Option<(&'n Node, &'static Shape)> {
    let node = fields.node(name)?;
    match shape.key(name)?.kind {
        Kind::Object(inner) => Some((node, inner)),
        _ => None,
    }
}

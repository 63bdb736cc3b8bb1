//! Sinks.

use indexmap::IndexMap;

use super::{Decoder, Fields};
use crate::shape::check::{TagResult, shape_of};
use crate::shape::{SCHEMA_POLICY, SINK, format};
use crate::syntax::{Entry, Node};
use crate::{
    CommitMode, Connection, FileFormat, FileTarget, NodeName, SchemaPolicy, Sink, SinkTarget,
    TableTarget, WriteMode,
};

impl Decoder<'_, '_> {
    pub(super) fn sinks(
        &mut self,
        section: Option<&Node>,
        connections: &IndexMap<String, Connection>,
    ) -> IndexMap<NodeName, Sink> {
        let map = section.and_then(Node::as_map);
        let entries = map.map_or(&[][..], |map| map.entries.as_slice());
        entries
            .iter()
            .filter_map(|entry| Some((NodeName::new(&entry.key), self.sink(entry, connections)?)))
            .collect()
    }

    fn sink(&mut self, entry: &Entry, connections: &IndexMap<String, Connection>) -> Option<Sink> {
        let map = entry.value.as_map()?;
        let TagResult::Shape(shape) = shape_of(map, entry.value.span, &SINK, self.names) else {
            return None;
        };
        let type_name = SINK.name_of(shape);
        let fields = &Fields::new(map, entry.value.span, shape);
        let is_table = matches!(type_name, "postgres" | "sqlite");
        let mode: Option<WriteMode> = fields.choice("mode");
        let written_commit = fields.entry("commit").and_then(|_| fields.choice("commit"));
        if let Some(mode) = mode {
            self.mode_fits(fields, mode, written_commit, is_table);
        }
        let target = if is_table {
            SinkTarget::Table(self.table_target(type_name, fields, connections)?)
        } else {
            SinkTarget::Files(self.file_target(type_name, fields)?)
        };
        let mode = mode?;
        Some(Sink {
            inputs: self.inputs(fields, "a sink")?,
            target,
            mode,
            key: fields.texts("key"),
            commit: match mode {
                WriteMode::Replace => CommitMode::Run,
                WriteMode::Append | WriteMode::Upsert => fields.choice("commit")?,
            },
            batch_rows: fields.non_zero("batch_rows")?,
            schema: match is_table {
                true => schema_policy(fields.node("schema"))?,
                false => SchemaPolicy::default(),
            },
        })
    }

    fn mode_fits(
        &mut self,
        fields: &Fields<'_>,
        mode: WriteMode,
        commit: Option<CommitMode>,
        is_table: bool,
    ) {
        let mode_span = fields.node("mode").map_or(fields.span, |node| node.span);
        if mode == WriteMode::Upsert && !is_table {
            self.report.error_help(
                "mode-not-possible",
                mode_span,
                "files cannot be upserted",
                "write `mode: append` or `mode: replace`, or use a database sink",
            );
        } else if mode == WriteMode::Upsert && fields.items("key").is_empty() {
            self.report.error_help(
                "missing-key",
                mode_span,
                "`mode: upsert` needs the key `key`",
                "write `key: [COLUMN]` with the columns that identify a row",
            );
        }
        if let Some(entry) = fields.entry("key")
            && mode != WriteMode::Upsert
        {
            self.report.error_help(
                "conflicting-keys",
                entry.key_span,
                "`key` is about `mode: upsert`; the other modes do not look at keys",
                if is_table {
                    "remove `key`, or write `mode: upsert`"
                } else {
                    "remove `key`; to keep one row of each key, add a `deduplicate` transform"
                },
            );
        }
        if mode == WriteMode::Replace && commit == Some(CommitMode::Batch) {
            let span = fields.node("commit").map_or(fields.span, |node| node.span);
            self.report.error_help(
                "conflicting-keys",
                span,
                "`mode: replace` becomes visible all at once, `commit: batch` contradicts it",
                "remove `commit`",
            );
        }
    }

    fn table_target(
        &mut self,
        type_name: &str,
        fields: &Fields<'_>,
        connections: &IndexMap<String, Connection>,
    ) -> Option<TableTarget> {
        let table = fields.template("table")?;
        if let Some(node) = fields.node("table")
            && has_table_placeholder(table.as_str())
        {
            self.report.error_help(
                "not-supported-yet",
                node.span,
                "`{table}` (many tables at once) is not supported yet by this version",
                "write one sink a table",
            );
        }
        Some(TableTarget { connection: self.connection_of(type_name, fields, connections)?, table })
    }

    fn file_target(&mut self, type_name: &str, fields: &Fields<'_>) -> Option<FileTarget> {
        self.local_path(fields);
        if type_name == "csv" {
            self.cells_can_be_told_apart(fields);
        }
        let path = fields.template("path")?;
        if let Some(node) = fields.node("path")
            && !path.as_str().contains("{{")
            && path.as_str().contains(['*', '?'])
        {
            self.report.error_help(
                "bad-path",
                node.span,
                "the path of a sink is a folder, not a pattern",
                "write the folder; files in it are named by Weir",
            );
        }
        Some(FileTarget {
            path,
            format: match type_name {
                "csv" => FileFormat::Csv {
                    delimiter: fields.byte("delimiter")?,
                    quote: fields.byte("quote")?,
                    header: fields.bool("header")?,
                },
                "json" => FileFormat::Json,
                _ => FileFormat::Parquet,
            },
            partition_by: fields.texts("partition_by"),
            target_file_size_bytes: fields.parse("target_file_size", format::size)?,
            compression: fields.choice("compression")?,
        })
    }
}

fn has_table_placeholder(text: &str) -> bool {
    text.replace("{{", "").contains("{table}")
}

fn schema_policy(node: Option<&Node>) -> Option<SchemaPolicy> {
    let fields = Fields::of(node, &SCHEMA_POLICY);
    Some(SchemaPolicy {
        new_columns: fields.choice("new_columns")?,
        type_changes: fields.choice("type_changes")?,
        missing_columns: fields.choice("missing_columns")?,
    })
}

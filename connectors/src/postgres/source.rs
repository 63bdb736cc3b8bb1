//! A table or query of PostgreSQL as a source.
//!
//! A stored table is cut into ranges of its blocks, read in steps; the position is the number of the
//! next block. All splits are read under one snapshot while the source object lives. After a crash
//! a new snapshot is taken: rows that were inserted or updated meanwhile may then be read into a
//! later block a second time, or be missed if they moved into an earlier one, exactly as if the
//! table had been read in two parts. Pipelines that need one instant restart the run instead.
//!
//! Everything else (views, foreign tables, queries, servers before version 14) is one split that
//! starts over.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use tokio::sync::OnceCell;
use weir_spec::{DatabaseSource, Incremental, PostgresConnection};

use super::catalog::{
    Column, Relation, RelationKind, arrow_schema, describe_query, find_relation, run,
};
use super::connect::Server;
use super::cursor::Cursor;
use super::decode::Decoder;
use super::error::classify;
use super::quote::{self, TableName};
use super::read::{self, Blocks, Reading};
use super::snapshot::{self, SharedSnapshot};
use super::types::Wire;
use crate::{
    ConnectorContext, ConnectorError, ErrorKind, Position, ScanRequest, Source, SourceDescription,
    SourceStream, Split,
};

/// A split has at least this many blocks (4 MiB), so that small tables are not cut up.
const SPLIT_BLOCKS_MIN: u64 = 512;
/// The first version whose planner reads a range of `ctid` without scanning the whole table.
const RANGE_SCAN_VERSION: u32 = 140_000;

/// One opened source node.
#[derive(Debug)]
pub(super) struct PostgresSource {
    name: String,
    server: Server,
    subject: Subject,
    incremental: Option<Incremental>,
    described: OnceCell<Arc<Described>>,
    snapshot: SharedSnapshot,
}

#[derive(Debug)]
enum Subject {
    Table(TableName),
    Query(String),
}

/// What was found out when the source was first used.
#[derive(Debug)]
struct Described {
    columns: Vec<Column>,
    /// Tables that are read block by block: the table itself, or its partitions.
    stored: Vec<Stored>,
    note: String,
}

#[derive(Clone, Debug)]
struct Stored {
    name: TableName,
    blocks: u64,
    block_size_bytes: u64,
    rows: Option<u64>,
    rows_per_block: f64,
    file: Option<i64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "read", rename_all = "snake_case")]
enum SplitPayload {
    /// All of it, by one statement.
    Whole { columns: String },
    /// Blocks `start..end` of a table; without `end` all that follow.
    Blocks {
        schema: Option<String>,
        table: String,
        start: u64,
        end: Option<u64>,
        /// Other splits are read under the same snapshot.
        is_shared: bool,
        rows_per_block: f64,
        columns: String,
        /// The greatest cursor that belongs to the run; only of an incremental source.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<String>,
        /// The file that the blocks are in. A table that is rewritten gets another.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<i64>,
    },
}

impl PostgresSource {
    pub(super) fn new(
        name: &str,
        source: &DatabaseSource,
        postgres: &PostgresConnection,
        context: &ConnectorContext,
    ) -> Result<Self, ConnectorError> {
        let server = Server::new(&source.connection, postgres, context)?;
        let subject = match (&source.table, &source.query) {
            (Some(table), None) => {
                let text = context.resolve(table)?;
                Subject::Table(TableName::parse(&text).ok_or_else(|| {
                    ConnectorError::config(format!(
                        "source `{name}`: `{text}` is not a table name; write table or schema.table"
                    ))
                })?)
            }
            (None, Some(query)) => {
                let query = context.resolve(query)?;
                Subject::Query(query.trim().trim_end_matches(';').trim_end().to_owned())
            }
            _ => {
                return Err(ConnectorError::config(format!(
                    "source `{name}`: give either a table or a query"
                )));
            }
        };
        Ok(Self {
            name: name.to_owned(),
            server,
            subject,
            incremental: source.incremental.clone(),
            described: OnceCell::new(),
            snapshot: SharedSnapshot::default(),
        })
    }

    fn label(&self) -> String {
        match &self.subject {
            Subject::Table(table) => format!("{table} at {}", self.server),
            Subject::Query(_) => format!("the query of source `{}` at {}", self.name, self.server),
        }
    }

    async fn described(&self) -> Result<Arc<Described>, ConnectorError> {
        let described = self.described.get_or_try_init(|| async {
            let mut connection = self.server.connect().await?;
            self.look_up(&mut connection).await.map(Arc::new)
        });
        described.await.cloned()
    }

    async fn look_up(&self, connection: &mut PgConnection) -> Result<Described, ConnectorError> {
        let described = match &self.subject {
            Subject::Query(query) => Described {
                columns: describe_query(connection, &self.server, query).await?,
                stored: Vec::new(),
                note: "query: read by one reader, from its start".to_owned(),
            },
            Subject::Table(name) => {
                let relation =
                    find_relation(connection, &self.server, name).await?.ok_or_else(|| {
                        ConnectorError::new(
                            ErrorKind::NotFound,
                            format!(
                                "source `{}`: there is no table {name} at {}, or {} may not see its \
                                 schema; check spelling and case, and write schema.table",
                                self.name,
                                self.server,
                                self.server.user()
                            ),
                        )
                    })?;
                self.check_right(connection, &relation).await?;
                self.look_up_storage(connection, relation).await?
            }
        };
        if described.columns.is_empty() {
            return Err(ConnectorError::config(format!("{} has no columns", self.label())));
        }
        self.cursor(&described.columns)?;
        Ok(described)
    }

    /// The cursor of an incremental source.
    fn cursor<'a>(&self, columns: &'a [Column]) -> Result<Option<Cursor<'a>>, ConnectorError> {
        let Some(incremental) = &self.incremental else { return Ok(None) };
        let column = columns.iter().find(|column| column.name == incremental.cursor);
        let reason = match column.map(Cursor::of) {
            Some(Ok(cursor)) => return Ok(Some(cursor)),
            Some(Err(reason)) => reason,
            None => "there is no such column".to_owned(),
        };
        Err(ConnectorError::config(format!(
            "source `{}`: column \"{}\" of {} cannot be the cursor: {reason}",
            self.name,
            incremental.cursor,
            self.label()
        )))
    }

    /// The greatest cursor now, where a run reads up to it; `None` if there is nothing behind `since`.
    async fn greatest_cursor(
        &self,
        cursor: &Cursor<'_>,
        table: &TableName,
        since: Option<&str>,
    ) -> Result<Option<String>, ConnectorError> {
        let mut connection = snapshot::own(&self.server).await?;
        cursor.greatest(&mut connection, &table.quoted(), since).await.map_err(|cause| {
            classify(format!("find the greatest cursor of {}", self.label()), cause)
        })
    }

    /// An empty table would not be asked for, and its missing right not be noticed.
    async fn check_right(
        &self,
        connection: &mut PgConnection,
        relation: &Relation,
    ) -> Result<(), ConnectorError> {
        let may_read: bool =
            sqlx::query_scalar("SELECT has_any_column_privilege($1::int8::oid, 'SELECT')")
                .bind(relation.oid)
                .persistent(false)
                .fetch_one(connection)
                .await
                .map_err(|cause| {
                    classify(format!("look up the rights on {}", self.label()), cause)
                })?;
        if may_read {
            return Ok(());
        }
        let user = self.server.user();
        Err(ConnectorError::new(
            ErrorKind::Denied,
            format!(
                "{user} may not read {}: the right SELECT is missing; run GRANT SELECT ON \
                 {} TO {}",
                self.label(),
                relation.name.quoted(),
                quote::identifier(user)
            ),
        ))
    }

    async fn look_up_storage(
        &self,
        connection: &mut PgConnection,
        relation: Relation,
    ) -> Result<Described, ConnectorError> {
        let version = connection.server_version_num().unwrap_or(0);
        let mut stored = Vec::new();
        let note = match relation.kind {
            _ if version < RANGE_SCAN_VERSION => {
                "table: read by one reader, from its start (block ranges need PostgreSQL 14)"
            }
            RelationKind::Stored if self.has_children(connection, &relation).await? => {
                "table with tables that inherit from it: read by one reader, from its start"
            }
            RelationKind::Stored => {
                stored.push(stored_table(&relation));
                "table: read by ranges of blocks under one snapshot"
            }
            RelationKind::Partitioned => {
                stored = self.leaves(connection, &relation).await?;
                if stored.is_empty() {
                    "partitioned table whose partitions cannot be read one by one (there is none, or a \
                     foreign one, or policies, or the right SELECT is on the whole only): read by one \
                     reader, from its start"
                } else {
                    "partitioned table: read by ranges of its partitions' blocks under one snapshot"
                }
            }
            RelationKind::Other => "view or foreign table: read by one reader, from its start",
        };
        Ok(Described { columns: relation.columns, stored, note: note.to_owned() })
    }

    /// Whether reading the table reads other tables too, whose blocks have numbers of their own.
    async fn has_children(
        &self,
        connection: &mut PgConnection,
        relation: &Relation,
    ) -> Result<bool, ConnectorError> {
        sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = $1::int8::oid)",
        )
        .bind(relation.oid)
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(|cause| classify(format!("look up heirs of {}", self.label()), cause))
    }

    /// The leaf partitions, if all of them are stored tables that may be read by themselves: rights and
    /// policies of the whole do not count for them.
    async fn leaves(
        &self,
        connection: &mut PgConnection,
        relation: &Relation,
    ) -> Result<Vec<Stored>, ConnectorError> {
        let failed = |cause| classify(format!("look up the partitions of {}", self.label()), cause);
        let rows = sqlx::query(
            "SELECT n.nspname::text AS schema, c.relname::text AS name, c.relkind = 'r' \
             AND has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') \
             AND NOT EXISTS (SELECT FROM pg_class p WHERE p.oid = $1::int8::oid AND p.relrowsecurity) \
             AS is_readable FROM pg_partition_tree($1::int8::oid::regclass) t JOIN pg_class c ON c.oid = t.relid \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.isleaf ORDER BY 1, 2",
        )
        .bind(relation.oid)
        .persistent(false)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
        let mut leaves = Vec::new();
        for row in rows {
            if !row.get::<bool, _>("is_readable") {
                return Ok(Vec::new());
            }
            let name = TableName { schema: Some(row.get("schema")), table: row.get("name") };
            if let Some(leaf) = find_relation(connection, &self.server, &name).await? {
                leaves.push(stored_table(&leaf));
            }
        }
        Ok(leaves)
    }

    /// The numbers of its blocks mean other rows now.
    fn rewritten(&self, table: &TableName) -> ConnectorError {
        ConnectorError::new(
            ErrorKind::Changed,
            format!(
                "table {table} at {} was rewritten since the run was planned (by VACUUM \
                 FULL, CLUSTER, TRUNCATE, REFRESH or ALTER TABLE), so that reading cannot go on where it \
                 was; start anew with `weir run --fresh`",
                self.server
            ),
        )
    }

    /// Columns of a reading, in its order.
    fn selected<'a>(
        &self,
        described: &'a Described,
        request: &ScanRequest,
    ) -> Result<Vec<&'a Column>, ConnectorError> {
        let Some(names) = &request.columns else { return Ok(described.columns.iter().collect()) };
        names
            .iter()
            .map(|name| {
                described.columns.iter().find(|column| column.name == *name).ok_or_else(|| {
                    ConnectorError::new(
                        ErrorKind::Changed,
                        format!("{} no longer has a column \"{name}\"", self.label()),
                    )
                })
            })
            .collect()
    }

    /// Conditions that the database applies, and whether those are all.
    fn conditions(
        &self,
        described: &Described,
        request: &ScanRequest,
        until: Option<&str>,
    ) -> Result<(Vec<String>, bool), ConnectorError> {
        let mut conditions = Vec::new();
        let mut are_all = true;
        for predicate in &request.predicates {
            let column = described.columns.iter().find(|column| column.name == predicate.column);
            match column {
                Some(column) if column.compares_alike => {
                    conditions.push(quote::predicate(predicate, column.is_text()));
                }
                _ => are_all = false,
            }
        }
        if let Some(cursor) = self.cursor(&described.columns)? {
            let since = request.since.as_deref();
            conditions.extend(since.map(|since| cursor.after(since)));
            conditions.extend(until.map(|until| cursor.until(until, since.is_some())));
        }
        Ok((conditions, are_all))
    }
}

fn stored_table(relation: &Relation) -> Stored {
    let rows_per_block = match relation.rows {
        Some(rows) if relation.estimated_blocks > 0 && rows > 0 => {
            rows as f64 / relation.estimated_blocks as f64
        }
        _ => 64.0,
    };
    Stored {
        name: relation.name.clone(),
        blocks: relation.blocks,
        block_size_bytes: relation.block_size_bytes,
        rows: relation.rows.map(|_| (rows_per_block * relation.blocks as f64) as u64),
        rows_per_block,
        file: relation.file,
    }
}

/// Names and types of all columns: a split made for other columns must not be read.
fn fingerprint(columns: &[Column]) -> String {
    let mut hasher = blake3::Hasher::new();
    for column in columns {
        hasher.update(column.name.as_bytes());
        hasher.update(&[0]);
        hasher.update(column.declared.as_bytes());
        hasher.update(&[0]);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

#[async_trait]
impl Source for PostgresSource {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        let described = self.described().await?;
        let exact_predicates = described
            .columns
            .iter()
            .filter(|column| column.compares_alike)
            .map(|column| column.name.clone())
            .collect();
        let mut notes = vec![described.note.clone()];
        let mut by_text = Vec::new();
        for column in &described.columns {
            if column.mapping.is_unconstrained && column.mapping.cast.is_none() {
                notes.push(format!(
                    "column \"{}\" is numeric without a precision: read as decimal(38,9), and a \
                     value with more digits is an error",
                    column.name
                ));
            }
            if column.mapping.cast.is_some() {
                by_text.push(format!("\"{}\" ({})", column.name, column.declared));
            }
        }
        if !by_text.is_empty() {
            notes.push(format!("read as text: {}", by_text.join(", ")));
        }
        Ok(SourceDescription {
            schema: arrow_schema(&described.columns),
            resumable: !described.stored.is_empty(),
            exact_predicates,
            repeatable: false,
            notes,
        })
    }

    async fn splits(
        &self,
        request: &ScanRequest,
        parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError> {
        let described = self.described().await?;
        self.selected(&described, request)?;
        let columns = fingerprint(&described.columns);
        if described.stored.is_empty() {
            let label = match &self.subject {
                Subject::Table(table) => table.to_string(),
                Subject::Query(_) => "query".to_owned(),
            };
            let payload = to_value(&SplitPayload::Whole { columns });
            return Ok(vec![Split { label, payload, weight: 1, estimated_rows: None }]);
        }
        let until = match (self.cursor(&described.columns)?, &self.subject) {
            (Some(cursor), Subject::Table(table)) => {
                let since = request.since.as_deref();
                let Some(until) = self.greatest_cursor(&cursor, table, since).await? else {
                    return Ok(Vec::new());
                };
                Some(until)
            }
            _ => None,
        };
        let total: u64 = described.stored.iter().map(|stored| stored.blocks).sum();
        let wanted = u64::try_from(parallelism.max(1)).unwrap_or(u64::MAX);
        let size = total.div_ceil(wanted).max(SPLIT_BLOCKS_MIN);
        let ranges: Vec<_> = described
            .stored
            .iter()
            .flat_map(|stored| {
                let count = stored.blocks.div_ceil(size).max(1);
                let size = stored.blocks.div_ceil(count);
                (0..count).map(move |index| {
                    let start = index * size;
                    // The last range is open: rows may be added before the snapshot is taken.
                    let end = (index + 1 < count).then_some(start + size);
                    (stored, start, end)
                })
            })
            .collect();
        let is_shared = ranges.len() > 1;
        let split = |(stored, start, end): &(&Stored, u64, Option<u64>)| {
            let blocks = end.unwrap_or(stored.blocks) - start;
            Split {
                label: match end {
                    Some(end) => format!("{} blocks {start}–{}", stored.name, end - 1),
                    None => format!("{} blocks from {start}", stored.name),
                },
                payload: to_value(&SplitPayload::Blocks {
                    schema: stored.name.schema.clone(),
                    table: stored.name.table.clone(),
                    start: *start,
                    end: *end,
                    is_shared,
                    rows_per_block: stored.rows_per_block,
                    columns: columns.clone(),
                    until: until.clone(),
                    file: stored.file,
                }),
                weight: (blocks * stored.block_size_bytes).max(1),
                estimated_rows: stored.rows.map(|_| (stored.rows_per_block * blocks as f64) as u64),
            }
        };
        Ok(ranges.iter().map(split).collect())
    }

    async fn open(
        &self,
        split: &Split,
        request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError> {
        let described = self.described().await?;
        let payload: SplitPayload = serde_json::from_value(split.payload.clone())
            .map_err(|cause| ConnectorError::caused(ErrorKind::Internal, "bad split", cause))?;
        let (SplitPayload::Whole { columns } | SplitPayload::Blocks { columns, .. }) = &payload;
        if *columns != fingerprint(&described.columns) {
            return Err(ConnectorError::new(
                ErrorKind::Changed,
                format!(
                    "the columns of {} are not what they were when the run was planned; start a \
                     fresh run",
                    self.label()
                ),
            ));
        }
        let selected = self.selected(&described, request)?;
        let until = match &payload {
            SplitPayload::Blocks { until, .. } => until.as_deref(),
            SplitPayload::Whole { .. } => None,
        };
        let (conditions, are_all) = self.conditions(&described, request, until)?;
        let list = selected
            .iter()
            .map(|column| {
                let name = quote::identifier(&column.name);
                match column.mapping.cast {
                    Some(cast) => format!("{name}::{cast} AS {name}"),
                    None => name,
                }
            })
            .collect::<Vec<_>>()
            .join(", ");
        let from_clause = match (&payload, &self.subject) {
            (SplitPayload::Blocks { schema, table, .. }, _) => {
                TableName { schema: schema.clone(), table: table.clone() }.quoted()
            }
            (SplitPayload::Whole { .. }, Subject::Table(table)) => table.quoted(),
            // The line break ends a comment at the end of the query.
            (SplitPayload::Whole { .. }, Subject::Query(query)) => {
                format!("(\n{query}\n) AS weir_query")
            }
        };
        let mut reading = Reading {
            subject: self.label(),
            select: format!("SELECT {list} FROM {from_clause}"),
            conditions,
            // Rows that the caller filters out afterwards must not use up the limit.
            limit: request.limit.filter(|_| are_all),
            blocks: None,
        };
        let connection = match payload {
            SplitPayload::Whole { .. } => snapshot::own(&self.server).await?,
            SplitPayload::Blocks {
                schema,
                table,
                start,
                end,
                is_shared,
                rows_per_block,
                file,
                ..
            } => {
                let mut connection = if is_shared {
                    self.snapshot.reader(&self.server).await?
                } else {
                    snapshot::own(&self.server).await?
                };
                let failed = |cause| classify(format!("read {}", self.label()), cause);
                // Asks for the rights, which an empty table would not be asked for, and keeps others
                // from rewriting the table.
                run(&mut connection, &format!("{} LIMIT 0", reading.select))
                    .await
                    .map_err(failed)?;
                let name = TableName { schema, table };
                let found = blocks_now(&mut connection, &name).await.map_err(failed)?;
                if file.is_some() && file != found.file {
                    return Err(self.rewritten(&name));
                }
                // A range of blocks is not worth a whole scan, whatever the statistics say.
                run(&mut connection, "SET LOCAL enable_seqscan = off").await.map_err(failed)?;
                let end = end.unwrap_or(found.blocks);
                let next = match from {
                    Some(position) => parse_position(position)?,
                    None => start,
                };
                reading.blocks = Some(Blocks { next, end, rows_per_block });
                connection
            }
        };
        let fields: Vec<_> = selected
            .iter()
            .map(|column| column.mapping.arrow_field(&column.name, !column.not_null))
            .collect();
        let wires: Vec<Wire> = selected.iter().map(|column| column.mapping.wire.clone()).collect();
        let schema = Arc::new(arrow::datatypes::Schema::new(fields));
        let decoder = Decoder::new(schema, &wires, self.label());
        Ok(read::stream(connection, reading, decoder))
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        self.server.check().await
    }
}

struct BlocksNow {
    blocks: u64,
    file: Option<i64>,
}

/// Not of the snapshot: as they are on disk.
async fn blocks_now(
    connection: &mut PgConnection,
    name: &TableName,
) -> Result<BlocksNow, sqlx::Error> {
    let row = sqlx::query(
        "SELECT pg_relation_size($1::regclass) / current_setting('block_size')::int8 AS blocks, \
         pg_relation_filenode($1::regclass)::int8 AS file",
    )
    .bind(name.quoted())
    .persistent(false)
    .fetch_one(connection)
    .await?;
    Ok(BlocksNow {
        blocks: u64::try_from(row.get::<i64, _>("blocks")).unwrap_or(0),
        file: row.get("file"),
    })
}

fn parse_position(position: &Position) -> Result<u64, ConnectorError> {
    position.0.parse().map_err(|_| {
        ConnectorError::internal(format!("`{}` is not the number of a block", position.0))
    })
}

fn to_value(payload: &SplitPayload) -> serde_json::Value {
    serde_json::to_value(payload).expect("a split payload is plain data")
}

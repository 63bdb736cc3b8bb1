//! What the catalogue says about a table, or about the columns of a query.

use arrow::datatypes::{Schema, SchemaRef};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _, Row as _, SqlSafeStr as _};
use std::sync::Arc;

use super::connect::Server;
use super::error::{classify, sql_state};
use super::quote::TableName;
use super::types::{CatalogType, Mapping, Wire, compares_alike, mapping, orders_alike};
use crate::{ConnectorError, ErrorKind};

/// A column of a table or query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub name: String,
    pub not_null: bool,
    /// As PostgreSQL writes it: `numeric(12,2)`.
    pub declared: String,
    pub mapping: Mapping,
    /// Predicates on it mean the same here and in the database.
    pub compares_alike: bool,
    /// Its greatest value is the same here and in the database (text: by bytes).
    pub orders_alike: bool,
    /// `GENERATED ALWAYS AS (…)`: computed by the table, cannot be written.
    pub is_generated: bool,
    /// Identity or default: may be left out when writing, even if not null.
    pub has_default: bool,
}

impl Column {
    pub(super) fn is_text(&self) -> bool {
        self.mapping.wire == Wire::Text
    }
}

/// A relation that exists.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Relation {
    pub oid: i64,
    pub name: TableName,
    pub kind: RelationKind,
    pub columns: Vec<Column>,
    /// Blocks now on disk.
    pub blocks: u64,
    pub block_size_bytes: u64,
    /// The planner's estimate; `None` before the first analyze.
    pub rows: Option<u64>,
    /// Blocks at the time of that estimate.
    pub estimated_blocks: u64,
    /// The file that its blocks are in.
    pub file: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RelationKind {
    /// Tables and materialised views: stored in blocks.
    Stored,
    Partitioned,
    /// Views, foreign tables.
    Other,
}

/// The Arrow schema of columns.
pub(super) fn arrow_schema(columns: &[Column]) -> SchemaRef {
    Arc::new(Schema::new(
        columns
            .iter()
            .map(|column| column.mapping.arrow_field(&column.name, !column.not_null))
            .collect::<Vec<_>>(),
    ))
}

/// Finds a table, view or other relation; `None` if there is none of that name.
pub(super) async fn find_relation(
    connection: &mut PgConnection,
    server: &Server,
    name: &TableName,
) -> Result<Option<Relation>, ConnectorError> {
    let failed = |cause| classify(format!("look up {name} at {server}"), cause);
    let row = sqlx::query(
        "SELECT c.oid::int8 AS oid, n.nspname::text AS schema, c.relname::text AS name, \
         c.relkind::text AS kind, c.reltuples::float8 AS rows, c.relpages::int8 AS pages, \
         CASE WHEN c.relkind IN ('r', 'm') \
              THEN pg_relation_size(c.oid) / current_setting('block_size')::int8 ELSE 0 END AS blocks, \
         current_setting('block_size')::int8 AS block_size, \
         pg_relation_filenode(c.oid)::int8 AS file \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'm', 'p', 'v', 'f')",
    )
    .bind(name.quoted())
    .persistent(false)
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed)?;
    let Some(row) = row else { return Ok(None) };
    let kind: String = row.get("kind");
    let oid: i64 = row.get("oid");
    let rows: f64 = row.get("rows");
    Ok(Some(Relation {
        oid,
        name: TableName { schema: Some(row.get("schema")), table: row.get("name") },
        kind: match kind.as_str() {
            "r" | "m" => RelationKind::Stored,
            "p" => RelationKind::Partitioned,
            _ => RelationKind::Other,
        },
        columns: columns_of(connection, oid).await.map_err(failed)?,
        blocks: unsigned(row.get("blocks")),
        block_size_bytes: unsigned(row.get("block_size")),
        // Truncation is meant: an estimate.
        rows: (rows >= 0.0).then_some(rows as u64),
        estimated_blocks: unsigned(row.get("pages")),
        file: row.get("file"),
    }))
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Columns of a relation in order. Domains are followed to their base types.
async fn columns_of(connection: &mut PgConnection, oid: i64) -> Result<Vec<Column>, sqlx::Error> {
    let rows = sqlx::query(
        "WITH RECURSIVE written AS ( \
           SELECT attnum::int4 AS position, attname::text AS name, attnotnull AS not_null, \
             format_type(atttypid, atttypmod) AS declared, atttypid AS type, atttypmod AS modifier, \
             attgenerated <> '' AS generated, \
             (atthasdef AND attgenerated = '') OR attidentity <> '' AS has_default, attcollation \
           FROM pg_attribute WHERE attrelid = $1::int8::oid AND attnum > 0 AND NOT attisdropped \
         ), base AS ( \
           SELECT position, type, modifier FROM written \
           UNION ALL \
           SELECT base.position, t.typbasetype, t.typtypmod \
           FROM base JOIN pg_type t ON t.oid = base.type WHERE t.typtype = 'd' \
         ) \
         SELECT written.*, base.type::int8 AS base_type, base.modifier AS base_modifier, \
           t.typtype::text AS kind, coalesce(e.oid, 0)::int8 AS element, \
           coalesce(e.typtype, ' ')::text AS element_kind, \
           coalesce(co.collisdeterministic, true) AS deterministic \
         FROM written JOIN base USING (position) \
         JOIN pg_type t ON t.oid = base.type AND t.typtype <> 'd' \
         LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid \
         LEFT JOIN pg_collation co ON co.oid = written.attcollation \
         ORDER BY position",
    )
    .bind(oid)
    .persistent(false)
    .fetch_all(&mut *connection)
    .await?;
    Ok(rows.iter().map(column).collect())
}

fn column(row: &sqlx::postgres::PgRow) -> Column {
    let first = |text: String| text.chars().next().unwrap_or(' ');
    let of = CatalogType {
        oid: oid(row.get("base_type")),
        type_modifier: row.get("base_modifier"),
        kind: first(row.get("kind")),
        element_oid: oid(row.get("element")),
        element_kind: first(row.get("element_kind")),
    };
    let mapping = mapping(&of);
    Column {
        name: row.get("name"),
        not_null: row.get("not_null"),
        declared: row.get("declared"),
        compares_alike: compares_alike(&of, &mapping) && row.get::<bool, _>("deterministic"),
        orders_alike: orders_alike(&of, &mapping),
        mapping,
        is_generated: row.get("generated"),
        has_default: row.get("has_default"),
    }
}

fn oid(value: i64) -> u32 {
    u32::try_from(value).expect("an OID has 32 bits")
}

/// Columns of a query. A temporary view, rolled back at once, tells every type with its precision;
/// where none may be made (a read replica, a missing right) the columns of the prepared statement
/// are used, which know no precision.
pub(super) async fn describe_query(
    connection: &mut PgConnection,
    server: &Server,
    query: &str,
) -> Result<Vec<Column>, ConnectorError> {
    let failed = |cause| classify(format!("describe the query at {server}"), cause);
    run(connection, "BEGIN").await.map_err(failed)?;
    let viewed = view_columns(connection, query).await;
    run(connection, "ROLLBACK").await.map_err(failed)?;
    match viewed {
        Ok(columns) => Ok(columns),
        Err(cause) if matches!(sql_state(&cause), Some("25006" | "42501" | "0A000")) => {
            prepared_columns(connection, query).await.map_err(failed)
        }
        Err(cause) if sql_state(&cause) == Some("42701") => Err(ConnectorError::new(
            ErrorKind::Config,
            format!("{}; give one of them another name with AS", failed(cause).message),
        )),
        Err(cause) => Err(failed(cause)),
    }
}

async fn view_columns(
    connection: &mut PgConnection,
    query: &str,
) -> Result<Vec<Column>, sqlx::Error> {
    run(connection, &format!("CREATE TEMPORARY VIEW weir_described_query AS\n{query}\n")).await?;
    let oid: i64 = sqlx::query_scalar("SELECT 'pg_temp.weir_described_query'::regclass::oid::int8")
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    columns_of(connection, oid).await
}

async fn prepared_columns(
    connection: &mut PgConnection,
    query: &str,
) -> Result<Vec<Column>, sqlx::Error> {
    use sqlx::{Column as _, Statement as _};
    let statement = connection.prepare(AssertSqlSafe(query.to_owned()).into_sql_str()).await?;
    let mut names = Vec::new();
    let mut types = Vec::new();
    for column in statement.columns() {
        names.push(column.name().to_owned());
        types.push(column.type_info().oid().map_or(25, |oid| i64::from(oid.0)));
    }
    let rows = sqlx::query(
        "WITH RECURSIVE written AS ( \
           SELECT position::int4, name, type::oid AS type \
           FROM unnest($1::text[], $2::int8[]) WITH ORDINALITY AS u (name, type, position) \
         ), base AS ( \
           SELECT position, type, -1 AS modifier FROM written UNION ALL \
           SELECT base.position, t.typbasetype, t.typtypmod \
           FROM base JOIN pg_type t ON t.oid = base.type WHERE t.typtype = 'd' \
         ) \
         SELECT name, false AS not_null, format_type(written.type, -1) AS declared, \
           false AS generated, false AS has_default, true AS deterministic, \
           base.type::int8 AS base_type, base.modifier AS base_modifier, t.typtype::text AS kind, \
           coalesce(e.oid, 0)::int8 AS element, coalesce(e.typtype, ' ')::text AS element_kind \
         FROM written JOIN base USING (position) \
         JOIN pg_type t ON t.oid = base.type AND t.typtype <> 'd' \
         LEFT JOIN pg_type e ON e.oid = t.typelem AND e.typarray = t.oid \
         ORDER BY position",
    )
    .bind(names)
    .bind(types)
    .persistent(false)
    .fetch_all(&mut *connection)
    .await?;
    Ok(rows.iter().map(column).collect())
}

/// Runs statements by the simple protocol: no prepared statement stays behind.
pub(super) async fn run(connection: &mut PgConnection, sql: &str) -> Result<u64, sqlx::Error> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await?;
    Ok(done.rows_affected())
}

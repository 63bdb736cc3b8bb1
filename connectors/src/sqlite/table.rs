//! Tables as they are, and as they are made to fit the rows.

use arrow::datatypes::Schema;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use weir_spec::{MissingColumns, NewColumns, SchemaPolicy, TypeChanges};

use super::connect::{Session, arguments, quote, quote_all};
use super::types::{Affinity, declared_type};
use crate::{ConnectorError, ErrorKind};

/// A column of an existing table. Generated columns are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableColumn {
    pub name: String,
    pub declared: String,
    pub is_required: bool,
    pub has_default: bool,
    /// 1-based place in the primary key.
    pub key_place: Option<i64>,
}

/// A column of the rows, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WrittenColumn {
    /// Its name in the rows.
    pub source: String,
    /// Its name in the table.
    pub target: String,
    /// To which affinity its values are cast; `None` where they are kept as they are.
    pub cast: Option<Affinity>,
}

/// The table's columns, or `None` when it does not exist. A view is an error.
pub(super) async fn columns(
    session: &mut Session,
    table: &str,
) -> Result<Option<Vec<TableColumn>>, ConnectorError> {
    let rows = session
        .fetch(
            "read the columns of a table in",
            "SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden \
             FROM pragma_table_xinfo(?)",
            arguments![table],
        )
        .await?;
    let mut columns = Vec::with_capacity(rows.len());
    for row in rows {
        let hidden: i64 = row.get(5);
        if hidden != 0 {
            continue;
        }
        let key_place: i64 = row.get(4);
        columns.push(TableColumn {
            name: row.get(0),
            declared: row.get(1),
            is_required: row.get::<i64, _>(2) != 0,
            has_default: row.get::<i64, _>(3) != 0,
            key_place: (key_place > 0).then_some(key_place),
        });
    }
    Ok((!columns.is_empty()).then_some(columns))
}

/// `CREATE TABLE` for rows of `schema`. A key becomes the primary key.
pub(super) fn create_sql(table: &str, schema: &Schema, key: &[String]) -> String {
    let mut parts = Vec::new();
    for field in schema.fields() {
        let is_key = key.contains(field.name());
        let is_required = is_key || !field.is_nullable();
        let mut part = format!("{} {}", quote(field.name()), declared_type(field.data_type()));
        if is_required {
            part.push_str(" NOT NULL");
        }
        parts.push(part);
    }
    if !key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", quote_all(key.iter().map(String::as_str))));
    }
    format!("CREATE TABLE {} ({})", quote(table), parts.join(", "))
}

/// `CREATE TABLE` of an existing table under another name, with all its constraints.
pub(super) async fn clone_sql(
    session: &mut Session,
    table: &str,
    clone: &str,
) -> Result<String, ConnectorError> {
    let rows = session
        .fetch(
            "read the definition of a table in",
            "SELECT sql FROM sqlite_schema WHERE type = 'table' AND lower(name) = lower(?)",
            arguments![table],
        )
        .await?;
    let sql: Option<String> = rows.first().and_then(|row| row.get(0));
    let body = sql.as_deref().and_then(body_of);
    match body {
        Some(body) => Ok(format!("CREATE TABLE {} {body}", quote(clone))),
        None => Err(ConnectorError::config(format!(
            "`{table}` in {} is no ordinary table and cannot be replaced",
            session.database.path.display()
        ))),
    }
}

/// What follows the name in `CREATE TABLE name (…)`, as SQLite stores it.
fn body_of(sql: &str) -> Option<&str> {
    let prefix = "CREATE TABLE ";
    let rest = sql.get(..prefix.len()).filter(|start| start.eq_ignore_ascii_case(prefix));
    let rest = sql[rest?.len()..].trim_start();
    let first = rest.chars().next()?;
    let close = match first {
        '"' | '`' | '\'' => first,
        '[' => ']',
        _ => return rest.find('(').map(|start| &rest[start..]),
    };
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((index, character)) = characters.next() {
        if character == close {
            // A doubled quote is a part of the name.
            if close != ']' && characters.peek().is_some_and(|(_, next)| *next == close) {
                characters.next();
                continue;
            }
            let after = &rest[index + close.len_utf8()..];
            return after.find('(').map(|start| &after[start..]);
        }
    }
    None
}

/// Statements that make indexes and triggers of a table.
pub(super) async fn dependent_sql(
    session: &mut Session,
    table: &str,
) -> Result<Vec<String>, ConnectorError> {
    let rows = session
        .fetch(
            "read the indexes of a table in",
            "SELECT sql FROM sqlite_schema \
             WHERE type IN ('index', 'trigger') AND lower(tbl_name) = lower(?) AND sql IS NOT NULL",
            arguments![table],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Makes `table`, which exists, fit the rows as the policy says. `name` is what people call it.
pub(super) async fn align(
    session: &mut Session,
    table: &str,
    name: &str,
    schema: &Schema,
    policy: SchemaPolicy,
    notes: &mut Vec<String>,
) -> Result<Vec<WrittenColumn>, ConnectorError> {
    let present = columns(session, table).await?.unwrap_or_default();
    let place = session.database.path.display().to_string();
    let mut written = Vec::new();
    for field in schema.fields() {
        let found = present.iter().find(|column| column.name.eq_ignore_ascii_case(field.name()));
        let Some(column) = found else {
            match policy.new_columns {
                NewColumns::Ignore => continue,
                NewColumns::Fail => {
                    return Err(ConnectorError::config(format!(
                        "table `{name}` in {place} has no column `{}`: say `schema: {{ new_columns: \
                         add }}` (or `ignore`), or do not select it",
                        field.name()
                    )));
                }
                NewColumns::Add => {}
            }
            let declared = declared_type(field.data_type());
            let sql = format!(
                "ALTER TABLE {} ADD COLUMN {} {declared}",
                quote(table),
                quote(field.name())
            );
            session.execute("add a column to a table in", &sql).await?;
            notes.push(format!("added column {} {declared} to {name}", field.name()));
            written.push(WrittenColumn {
                source: field.name().clone(),
                target: field.name().clone(),
                cast: None,
            });
            continue;
        };
        let affinity = Affinity::of(&column.declared);
        let is_kept = affinity.keeps(field.data_type());
        if !is_kept && policy.type_changes == TypeChanges::Fail {
            return Err(ConnectorError::config(format!(
                "column `{}` of table `{name}` in {place} is declared {}, and the rows have {}: cast \
                 it in a transform, or say `schema: {{ type_changes: cast }}`",
                column.name,
                if column.declared.is_empty() { "without a type" } else { &column.declared },
                field.data_type()
            )));
        }
        written.push(WrittenColumn {
            source: field.name().clone(),
            target: column.name.clone(),
            cast: (!is_kept).then_some(affinity),
        });
    }
    for column in &present {
        if written.iter().any(|written| written.target == column.name) {
            continue;
        }
        let is_rowid =
            column.key_place.is_some() && column.declared.eq_ignore_ascii_case("INTEGER");
        if policy.missing_columns == MissingColumns::Fail {
            return Err(ConnectorError::config(format!(
                "the rows have no column `{}`, which table `{name}` in {place} has: select it, or \
                 say `schema: {{ missing_columns: fill_null }}`",
                column.name
            )));
        }
        if column.is_required && !column.has_default && !is_rowid {
            return Err(ConnectorError::config(format!(
                "the rows have no column `{}`, which may not be null in table `{name}` in {place}",
                column.name
            )));
        }
    }
    if written.is_empty() {
        return Err(ConnectorError::config(format!(
            "no column of the rows is a column of table `{name}` in {place}"
        )));
    }
    Ok(written)
}

/// Makes sure that the key identifies at most one row of the table.
pub(super) async fn ensure_unique(
    session: &mut Session,
    table: &str,
    key: &[String],
    notes: &mut Vec<String>,
) -> Result<(), ConnectorError> {
    let is_key = |names: &[String]| {
        names.len() == key.len()
            && key.iter().all(|column| names.iter().any(|name| name.eq_ignore_ascii_case(column)))
    };
    let primary: Vec<String> = columns(session, table)
        .await?
        .unwrap_or_default()
        .into_iter()
        .filter(|column| column.key_place.is_some())
        .map(|column| column.name)
        .collect();
    if is_key(&primary) {
        return Ok(());
    }
    let rows = session
        .fetch(
            "read the indexes of a table in",
            "SELECT l.name, i.name FROM pragma_index_list(?) l, pragma_index_info(l.name) i \
             WHERE l.\"unique\" AND NOT l.partial AND i.name IS NOT NULL ORDER BY l.name",
            arguments![table],
        )
        .await?;
    let mut indexes: Vec<(String, Vec<String>)> = Vec::new();
    for row in rows {
        let (index, column): (String, String) = (row.get(0), row.get(1));
        match indexes.last_mut() {
            Some((last, columns)) if *last == index => columns.push(column),
            _ => indexes.push((index, vec![column])),
        }
    }
    if indexes.iter().any(|(_, columns)| is_key(columns)) {
        return Ok(());
    }
    let columns = quote_all(key.iter().map(String::as_str));
    let sql = format!(
        "CREATE UNIQUE INDEX {} ON {} ({columns})",
        quote(&format!("{table}_weir_key")),
        quote(table)
    );
    session.execute("create the unique index of the key in", &sql).await.map_err(|error| {
        match error.kind {
            ErrorKind::Data => ConnectorError {
                message: format!(
                    "table `{table}` has several rows with the same key ({}), so it cannot be \
                     upserted: remove them, or choose another key ({})",
                    key.join(", "),
                    error.message
                ),
                ..error
            },
            _ => error,
        }
    })?;
    notes.push(format!("created a unique index on {table} ({})", key.join(", ")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::body_of;

    #[test]
    fn the_body_of_a_definition_starts_behind_its_name() {
        for sql in [
            "CREATE TABLE t (a)",
            "create table \"a (\"\" b\" (a)",
            "CREATE TABLE [x(y](a)",
            "CREATE TABLE `x``(`\n(a)",
        ] {
            assert_eq!(body_of(sql), Some("(a)"), "{sql}");
        }
        assert_eq!(body_of("CREATE VIRTUAL TABLE t USING fts5(a)"), None);
    }
}

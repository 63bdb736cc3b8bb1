//! A table, view or query as a source.
//!
//! Ordinary tables are read by ranges of their rowid: resumable, and in parallel. Views, queries and
//! `WITHOUT ROWID` tables have no such number: they are one split and start again from their start.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteArguments;
use sqlx::{Row as _, TypeInfo as _, ValueRef as _};
use weir_spec as spec;

use super::connect::{Database, Session, arguments, quote};
use super::cursor::Cursor;
use super::read::Reading;
use super::table;
use super::types::{Affinity, read_type};
use crate::{
    ConnectorContext, ConnectorError, ErrorKind, Position, ScanRequest, Source, SourceDescription,
    SourceStream, Split,
};

/// Fewer rowids than this are not worth a split of their own.
const SPLIT_ROWS: i64 = 50_000;
/// Rows that are looked at where a view or query declares no type.
const SAMPLE_ROWS: u32 = 1000;
/// The temporary view through which a query is read.
const QUERY_VIEW: &str = "_weir_query";

/// Opens a table or query of a SQLite database. `name` is the node's name, for messages.
pub(crate) fn open_source(
    name: &str,
    source: &spec::DatabaseSource,
    config: &spec::SqliteConnection,
    context: &ConnectorContext,
) -> Result<Arc<dyn Source>, ConnectorError> {
    let in_node = |error: ConnectorError| ConnectorError {
        message: format!("source `{name}`: {}", error.message),
        ..error
    };
    let relation = match (&source.table, &source.query) {
        (Some(table), None) => {
            let table = context.resolve(table).map_err(in_node)?;
            Relation::Table(table.strip_prefix("main.").unwrap_or(&table).to_owned())
        }
        (None, Some(query)) => {
            let query = context.resolve(query).map_err(in_node)?;
            Relation::Query(query.trim().trim_end_matches(';').trim_end().to_owned())
        }
        _ => {
            return Err(ConnectorError::config(format!(
                "source `{name}`: say either `table` or `query`"
            )));
        }
    };
    Ok(Arc::new(SqliteSource {
        database: Database::new(config, context).map_err(in_node)?,
        relation,
        cursor: source.incremental.as_ref().map(|incremental| incremental.cursor.clone()),
    }))
}

/// What is read.
#[derive(Clone, Debug)]
pub(super) enum Relation {
    Table(String),
    Query(String),
}

impl Relation {
    /// For people.
    pub(super) fn label(&self) -> String {
        match self {
            Relation::Table(table) => format!("table `{table}`"),
            Relation::Query(_) => "the query".to_owned(),
        }
    }

    /// The name in SQL, once [`open`] has been called.
    fn name(&self) -> &str {
        match self {
            Relation::Table(table) => table,
            Relation::Query(_) => QUERY_VIEW,
        }
    }

    pub(super) fn sql(&self) -> String {
        match self {
            Relation::Table(table) => format!("main.{}", quote(table)),
            Relation::Query(_) => format!("temp.{QUERY_VIEW}"),
        }
    }
}

#[derive(Debug)]
struct SqliteSource {
    database: Database,
    relation: Relation,
    cursor: Option<String>,
}

/// A relation with its columns.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub relation: Relation,
    pub schema: SchemaRef,
    /// The name under which SQL reaches the row's number; `None` where rows have none.
    pub rowid: Option<&'static str>,
    /// Columns whose comparisons SQLite makes as Arrow does.
    pub comparable: Vec<String>,
}

/// The payload of a split; `None` for a relation that is read whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TablePart {
    #[serde(flatten)]
    pub range: RowRange,
    /// The greatest cursor that belongs to the run; only of an incremental source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// Rowids, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RowRange {
    pub first: i64,
    pub last: i64,
}

/// Opens the database and makes the relation readable.
async fn open(database: &Database, relation: &Relation) -> Result<Session, ConnectorError> {
    let mut session = database.read().await?;
    if let Relation::Query(query) = relation {
        // As a view the query can only be one SELECT, and its columns have declared types.
        let sql = format!("CREATE TEMP VIEW {QUERY_VIEW} AS {query}");
        session.execute("prepare the query on", &sql).await?;
    }
    Ok(session)
}

async fn shape(session: &mut Session, relation: &Relation) -> Result<Shape, ConnectorError> {
    let place = session.database.path.display().to_string();
    let Some(columns) = table::columns(session, relation.name()).await? else {
        let tables = session
            .fetch(
                "list the tables of",
                "SELECT coalesce(group_concat(name, ', '), 'none') FROM sqlite_schema \
                 WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
                SqliteArguments::default(),
            )
            .await?;
        let names: String = tables.first().map(|row| row.get(0)).unwrap_or_default();
        return Err(ConnectorError::new(
            ErrorKind::NotFound,
            format!("{} does not exist in {place}, which has: {names}", relation.label()),
        ));
    };
    let kinds = session
        .fetch(
            "look at a table of",
            "SELECT type = 'table' AND NOT wr FROM pragma_table_list WHERE lower(name) = lower(?)",
            arguments![relation.name()],
        )
        .await?;
    let is_rowid_table = kinds.first().is_some_and(|row| row.get::<i64, _>(0) != 0);
    let is_table = matches!(relation, Relation::Table(_)) && is_rowid_table;
    // A column may be called like the row's number, and then hides it.
    let rowid = ["rowid", "_rowid_", "oid"]
        .into_iter()
        .find(|name| !columns.iter().any(|column| column.name.eq_ignore_ascii_case(name)))
        .filter(|_| is_table);

    let mut fields = Vec::with_capacity(columns.len());
    let mut comparable = Vec::new();
    for column in &columns {
        let upper = column.declared.to_ascii_uppercase();
        let is_declared = is_table || !matches!(upper.as_str(), "" | "NUM");
        let data_type = match is_declared {
            true => read_type(&column.declared),
            false => sampled_type(session, relation, &column.name).await?,
        };
        let is_comparable = match data_type {
            DataType::Int64 | DataType::Float64 => true,
            DataType::Utf8 => Affinity::of(&column.declared) == Affinity::Text,
            _ => false,
        };
        if is_comparable {
            comparable.push(column.name.clone());
        }
        fields.push(Field::new(&column.name, data_type, !(is_table && column.is_required)));
    }
    Ok(Shape {
        relation: relation.clone(),
        schema: Arc::new(Schema::new(fields)),
        rowid,
        comparable,
    })
}

/// The type of an expression, from the values of its first rows.
async fn sampled_type(
    session: &mut Session,
    relation: &Relation,
    column: &str,
) -> Result<DataType, ConnectorError> {
    let sql = format!(
        "SELECT DISTINCT typeof(v) FROM (SELECT {} AS v FROM {} LIMIT {SAMPLE_ROWS})",
        quote(column),
        relation.sql()
    );
    let rows = session.fetch("look at the first rows of", &sql, SqliteArguments::default()).await?;
    let types: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let has = |name: &str| types.iter().any(|found| found == name);
    Ok(match (has("text"), has("blob"), has("real"), has("integer")) {
        (false, false, true, _) => DataType::Float64,
        (false, false, false, true) => DataType::Int64,
        (false, true, false, false) => DataType::Binary,
        _ => DataType::Utf8,
    })
}

#[async_trait]
impl Source for SqliteSource {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        let mut session = open(&self.database, &self.relation).await?;
        let shape = shape(&mut session, &self.relation).await?;
        if let Some(cursor) = &self.cursor {
            Cursor::of(&shape, cursor)?;
        }
        let how = match shape.rowid {
            Some(_) => "read by ranges of its rowid",
            None => "read whole: it has no rowid to go on from",
        };
        let mut notes = vec![format!("{} {how}", self.relation.label())];
        if !shape.comparable.is_empty() {
            notes.push(format!("filters pushed down on {}", shape.comparable.join(", ")));
        }
        Ok(SourceDescription {
            resumable: shape.rowid.is_some(),
            schema: shape.schema,
            exact_predicates: shape.comparable,
            repeatable: false,
            notes,
        })
    }

    async fn splits(
        &self,
        request: &ScanRequest,
        parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError> {
        let mut session = open(&self.database, &self.relation).await?;
        let shape = shape(&mut session, &self.relation).await?;
        let Some(rowid) = shape.rowid else {
            return Ok(vec![Split {
                label: self.relation.label(),
                payload: serde_json::Value::Null,
                weight: 1,
                estimated_rows: None,
            }]);
        };
        // Before the rowids: a row with a cursor up to it must lie between them.
        let until = match &self.cursor {
            None => None,
            Some(cursor) => {
                let cursor = Cursor::of(&shape, cursor)?;
                // A watermark that is none is refused before anything is read.
                request.since.as_deref().map(|since| cursor.after(since)).transpose()?;
                match cursor.greatest(&mut session, &shape).await? {
                    Some(until) => Some(until),
                    None => return Ok(Vec::new()),
                }
            }
        };
        let sql = format!(
            "SELECT (SELECT min({rowid}) FROM {0}), (SELECT max({rowid}) FROM {0})",
            self.relation.sql()
        );
        let rows = session
            .fetch("find the rowids of a table in", &sql, SqliteArguments::default())
            .await?;
        let bounds = rows.first().and_then(|row| {
            let is_empty = row.try_get_raw(0).is_ok_and(|value| value.type_info().name() == "NULL");
            (!is_empty).then(|| (row.get::<i64, _>(0), row.get::<i64, _>(1)))
        });
        let Some((first, last)) = bounds else { return Ok(Vec::new()) };
        Ok(ranges(first, last, parallelism)
            .into_iter()
            .map(|range| Split {
                label: format!("rowids {}–{}", range.first, range.last),
                payload: serde_json::to_value(TablePart { range, until: until.clone() })
                    .expect("numbers and text are always JSON"),
                weight: 1,
                estimated_rows: u64::try_from(i128::from(range.last) - i128::from(range.first) + 1)
                    .ok(),
            })
            .collect())
    }

    async fn open(
        &self,
        split: &Split,
        request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError> {
        let mut session = open(&self.database, &self.relation).await?;
        let shape = shape(&mut session, &self.relation).await?;
        let part: Option<TablePart> =
            serde_json::from_value(split.payload.clone()).map_err(|error| {
                ConnectorError::caused(
                    ErrorKind::Internal,
                    format!("split `{}` is not one of a SQLite table", split.label),
                    error,
                )
            })?;
        if part.is_some() && shape.rowid.is_none() {
            return Err(ConnectorError::new(
                ErrorKind::Changed,
                format!(
                    "{} in {} had rowids when the run was planned, and has none now",
                    self.relation.label(),
                    self.database.path.display()
                ),
            ));
        }
        let cursor = self.cursor.as_deref().map(|cursor| Cursor::of(&shape, cursor)).transpose()?;
        let reading = Reading::new(&shape, request, cursor.as_ref(), part.as_ref(), from)?;
        Ok(reading.stream(session))
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        let mut session = open(&self.database, &self.relation).await?;
        let shape = shape(&mut session, &self.relation).await?;
        Ok(format!(
            "{}: {} has {} columns",
            self.database.path.display(),
            self.relation.label(),
            shape.schema.fields().len()
        ))
    }
}

/// Cuts `first..=last` into at most `parallelism` ranges of about equal width.
fn ranges(first: i64, last: i64, parallelism: usize) -> Vec<RowRange> {
    let width = i128::from(last) - i128::from(first) + 1;
    let most = width.div_euclid(i128::from(SPLIT_ROWS)).max(1);
    let count = most.min(parallelism.max(1) as i128);
    let bound = |index: i128| i128::from(first) + width * index / count;
    (0..count)
        .map(|index| RowRange {
            first: i64::try_from(bound(index)).expect("lies between the first and last rowid"),
            last: i64::try_from(bound(index + 1) - 1).expect("lies between both rowids"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{RowRange, ranges};

    #[test]
    fn ranges_cover_all_rowids_once() {
        for (first, last, parallelism) in [
            (1, 1, 8),
            (1, 99_999, 8),
            (-5, 1_000_000, 3),
            (i64::MIN, i64::MAX, 7),
            (i64::MAX, i64::MAX, 2),
        ] {
            let found = ranges(first, last, parallelism);
            assert!(!found.is_empty() && found.len() <= parallelism);
            let mut next = Some(first);
            for RowRange { first, last } in &found {
                assert_eq!(next, Some(*first));
                assert!(first <= last);
                next = last.checked_add(1);
            }
            assert_eq!(found.last().map(|range| range.last), Some(last));
        }
        assert_eq!(ranges(1, 100_000, 8).len(), 2);
    }
}

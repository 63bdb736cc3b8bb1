//! The cursor of an incremental source: which rows belong to a run.
//!
//! A run reads `since < cursor <= until`. `until` is the greatest cursor at the time when the run is
//! planned, and travels with each split: a run reads in many statements, without a common snapshot, and
//! a row that comes behind its reader must not be passed by the watermark that a later row sets.
//!
//! SQLite compares what is stored. Times are stored as text in several notations: they are compared by
//! their microseconds.

use arrow::datatypes::DataType;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row as _, ValueRef as _};

use super::connect::{Session, quote};
use super::read::{Bound, Condition, Stored, column, parse_timestamp};
use super::source::Shape;
use crate::ConnectorError;

/// A column whose values SQLite can order as Weir does.
#[derive(Debug)]
pub(super) struct Cursor {
    column: String,
    data_type: DataType,
    /// What is compared, as SQL.
    key: String,
}

impl Cursor {
    pub(super) fn of(shape: &Shape, name: &str) -> Result<Self, ConnectorError> {
        let field = column(shape, name)?;
        let quoted = quote(name);
        let key = match field.data_type() {
            DataType::Int64 | DataType::Float64 | DataType::Decimal128(..) => quoted,
            // Other columns that are read as text hold numbers as well, and order them as such.
            DataType::Utf8 if shape.comparable.iter().any(|column| column == name) => {
                format!("{quoted} COLLATE BINARY")
            }
            DataType::Date32 => format!("{quoted} COLLATE BINARY"),
            DataType::Timestamp(..) => micros(&quoted),
            other => {
                return Err(ConnectorError::config(format!(
                    "incremental: column `{name}`, read as {other}, cannot be a cursor: name a column \
                     that is declared as a number, a time or TEXT, or read a query with CAST({quoted} AS \
                     TEXT) AS {quoted}"
                )));
            }
        };
        Ok(Self { column: name.to_owned(), data_type: field.data_type().clone(), key })
    }

    pub(super) fn after(&self, since: &str) -> Result<Condition, ConnectorError> {
        let mut sql = format!("{} > ?", self.key);
        if self.is_time() {
            // What SQLite does not know as a time is read, and refused when it is decoded.
            let name = quote(&self.column);
            sql = format!("({sql} OR ({name} IS NOT NULL AND {} IS NULL))", self.key);
        }
        Ok(Condition { sql, values: vec![self.bound(since)?] })
    }

    /// Rows without a cursor come with the run that has no lower bound, and never again.
    pub(super) fn until(&self, until: &str, has_since: bool) -> Result<Condition, ConnectorError> {
        let mut sql = format!("{} <= ?", self.key);
        if !has_since {
            sql = format!("({sql} OR {} IS NULL)", quote(&self.column));
        }
        Ok(Condition { sql, values: vec![self.bound(until)?] })
    }

    /// The greatest value of a table, as text; `None` if there is none. Refuses values that SQLite
    /// orders otherwise than the column's type does: they would be passed over.
    pub(super) async fn greatest(
        &self,
        session: &mut Session,
        shape: &Shape,
    ) -> Result<Option<String>, ConnectorError> {
        let (name, key, table) = (quote(&self.column), &self.key, shape.relation.sql());
        let sql = if self.is_time() {
            format!(
                "SELECT {name}, NULL, typeof({name}) = 'text' AND {key} IS NOT NULL AS is_known \
                 FROM {table} WHERE {name} IS NOT NULL ORDER BY is_known, {key} DESC LIMIT 1"
            )
        } else {
            // Numbers come before text, and text before blobs: both ends show what lies between.
            format!(
                "SELECT (SELECT max({key}) FROM {table}), (SELECT min({key}) FROM {table}), true"
            )
        };
        let rows =
            session.fetch("find the greatest cursor in", &sql, SqliteArguments::default()).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let greatest = self.text_of(row, 0, shape)?;
        self.text_of(row, 1, shape)?;
        Ok(greatest)
    }

    fn text_of(
        &self,
        row: &SqliteRow,
        index: usize,
        shape: &Shape,
    ) -> Result<Option<String>, ConnectorError> {
        let is_known = row.get::<bool, _>(2);
        let wrong = |found: String| {
            ConnectorError::data(format!(
                "{}: column `{}`, the cursor, holds {found}, which is no {}: correct the row",
                shape.relation.label(),
                self.column,
                match self.is_time() {
                    true => "time such as 2024-05-31 13:45:00.123456+01:00".to_owned(),
                    false => self.data_type.to_string(),
                }
            ))
        };
        let value = row.try_get_raw(index).map_err(|error| wrong(error.to_string()))?;
        if value.is_null() {
            return Ok(None);
        }
        let stored = Stored::of(value).map_err(wrong)?;
        let text = match (&stored, &self.data_type) {
            (
                Stored::Int(number),
                DataType::Int64 | DataType::Float64 | DataType::Decimal128(..),
            ) => number.to_string(),
            (Stored::Real(number), DataType::Float64 | DataType::Decimal128(..)) => {
                number.to_string()
            }
            (Stored::Text(text), DataType::Utf8 | DataType::Date32 | DataType::Timestamp(..)) => {
                (*text).to_owned()
            }
            _ => return Err(wrong(stored.text())),
        };
        match self.bound(&text) {
            Ok(_) if is_known => Ok(Some(text)),
            Ok(_) | Err(_) => Err(wrong(stored.text())),
        }
    }

    fn is_time(&self) -> bool {
        matches!(self.data_type, DataType::Timestamp(..))
    }

    /// What `key` is compared with.
    fn bound(&self, text: &str) -> Result<Bound, ConnectorError> {
        let trimmed = text.trim();
        let bound = match self.data_type {
            DataType::Int64 => trimmed.parse().ok().map(Bound::Int),
            // A whole number as an integer: a real has fewer digits.
            DataType::Float64 | DataType::Decimal128(..) => match whole(trimmed) {
                Some(number) => Some(Bound::Int(number)),
                None => trimmed.parse().ok().map(Bound::Real),
            },
            DataType::Timestamp(..) => parse_timestamp(text).map(Bound::Int),
            _ => Some(Bound::Text(text.to_owned())),
        };
        bound.ok_or_else(|| {
            ConnectorError::config(format!(
                "incremental: the cursor `{text}` is no {} as column `{}` has it",
                self.data_type, self.column
            ))
        })
    }
}

fn whole(text: &str) -> Option<i64> {
    let (number, fraction) = text.split_once('.').unwrap_or((text, ""));
    fraction.bytes().all(|digit| digit == b'0').then(|| number.parse().ok()).flatten()
}

/// Microseconds since 1970 of a time that is stored as text, as SQL; NULL for what is none. SQLite's
/// own functions round to milliseconds, so the fraction is taken apart.
fn micros(name: &str) -> String {
    let (point, behind) =
        (format!("instr({name}, '.')"), format!("substr({name}, instr({name}, '.') + 1)"));
    format!(
        "(CASE {point} WHEN 0 THEN CAST(strftime('%s', {name}) AS INTEGER) * 1000000 \
         ELSE CAST(strftime('%s', substr({name}, 1, {point} - 1) || ltrim({behind}, '0123456789')) \
         AS INTEGER) * 1000000 + CAST(round(CAST('0.' || substr({behind}, 1, 6) AS REAL) * 1000000) AS \
         INTEGER) END)"
    )
}

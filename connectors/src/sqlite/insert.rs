//! Inserts rows with prepared statements of many rows each.

use arrow::array::RecordBatch;
use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteArguments;

use super::connect::{Session, quote, quote_all};
use super::convert::cells;
use super::table::WrittenColumn;
use crate::{ConnectorError, ErrorKind};

/// SQLite's bound on parameters of a statement.
const PARAMETERS: usize = 32_766;
/// More rows a statement gain nothing.
const ROWS: usize = 128;

/// Where and how rows are inserted.
#[derive(Clone, Debug)]
pub(super) struct Insert {
    pub table: String,
    pub columns: Vec<WrittenColumn>,
    /// Upsert: the columns that identify a row.
    pub key: Vec<String>,
    /// Integers that follow the columns in every row: names with values.
    pub constants: Vec<(&'static str, i64)>,
}

/// `ON CONFLICT …` of an upsert; empty without a key.
pub(super) fn on_conflict(columns: &[WrittenColumn], key: &[String]) -> String {
    if key.is_empty() {
        return String::new();
    }
    let updates: Vec<String> = columns
        .iter()
        .filter(|column| !key.contains(&column.source))
        .map(|column| format!("{0} = excluded.{0}", quote(&column.target)))
        .collect();
    let key = quote_all(key.iter().map(String::as_str));
    match updates.is_empty() {
        true => format!(" ON CONFLICT ({key}) DO NOTHING"),
        false => format!(" ON CONFLICT ({key}) DO UPDATE SET {}", updates.join(", ")),
    }
}

impl Insert {
    fn sql(&self, rows: usize) -> String {
        let width = self.columns.len() + self.constants.len();
        let row = format!("({})", vec!["?"; width].join(","));
        let names = self
            .columns
            .iter()
            .map(|column| column.target.as_str())
            .chain(self.constants.iter().map(|(name, _)| *name));
        format!(
            "INSERT INTO {} ({}) VALUES {}{}",
            quote(&self.table),
            quote_all(names),
            vec![row; rows].join(","),
            on_conflict(&self.columns, &self.key)
        )
    }

    /// Inserts in order: of rows with one key, the last stays.
    pub(super) async fn run(
        &self,
        session: &mut Session,
        rows: &RecordBatch,
    ) -> Result<(), ConnectorError> {
        let cells = cells(rows, &self.columns)?;
        let width = cells.len() + self.constants.len();
        let step = (PARAMETERS / width.max(1)).clamp(1, ROWS);
        let full_sql = self.sql(step);
        let mut start = 0;
        while start < rows.num_rows() {
            let count = step.min(rows.num_rows() - start);
            let mut arguments = SqliteArguments::default();
            sqlx::Arguments::reserve(&mut arguments, width * count, 0);
            for row in start..start + count {
                for column in &cells {
                    column.bind(row, &mut arguments);
                }
                for (_, value) in &self.constants {
                    sqlx::Arguments::add(&mut arguments, *value)
                        .expect("an integer can always be bound");
                }
            }
            let (sql, is_full) = match count == step {
                true => (full_sql.clone(), true),
                false => (self.sql(count), false),
            };
            sqlx::query_with(AssertSqlSafe(sql), arguments)
                .persistent(is_full)
                .execute(&mut session.connection)
                .await
                .map_err(|error| self.explain(session, error))?;
            start += count;
        }
        Ok(())
    }

    fn explain(&self, session: &Session, error: sqlx::Error) -> ConnectorError {
        let attempt = format!("write rows into table `{}` of", self.table);
        let error = session.database.error(&attempt, error);
        match error.kind {
            ErrorKind::Data if error.message.contains("constraint") => ConnectorError {
                message: format!(
                    "{} (a row breaks a constraint of the table: reject it with `validate`, or use \
                     `mode: upsert`)",
                    error.message
                ),
                ..error
            },
            _ => error,
        }
    }
}

//! The cursor of an incremental source: which rows belong to a run.
//!
//! ```text
//!      run 1          run 2: since < cursor ≤ until
//! ───────────────┤├─────────────────────────────────┤  rows that come later: run 3
//!              since                              until
//! ```
//! `until` is found once, when the run is planned, and travels with each split. Readings of one run
//! may happen under different snapshots (a resumed run takes a new one): without it a row that comes
//! into blocks that are read already would fall behind the watermark that a later row sets.

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::catalog::Column;
use super::quote;

/// A column by which rows are told apart into read and new ones.
pub(super) struct Cursor<'column> {
    column: &'column Column,
}

impl<'column> Cursor<'column> {
    /// The error is why the column cannot be a cursor.
    pub(super) fn of(column: &'column Column) -> Result<Self, String> {
        if column.orders_alike {
            return Ok(Self { column });
        }
        Err(format!(
            "it is {}, which the database orders in another way than Weir: name another column, or read \
             a query that casts it to text, bigint or a time",
            column.declared
        ))
    }

    fn name(&self) -> String {
        quote::identifier(&self.column.name)
    }

    /// Text goes by bytes, as the watermark does; the language of the column orders otherwise.
    fn ordered(&self) -> String {
        let collate = if self.column.is_text() { " COLLATE \"C\"" } else { "" };
        format!("{}{collate}", self.name())
    }

    fn value(&self, text: &str) -> String {
        format!("{}::{}", quote::text(text), self.column.declared)
    }

    pub(super) fn after(&self, since: &str) -> String {
        format!("{} > {}", self.ordered(), self.value(since))
    }

    /// Rows without a cursor come with the run that has no lower bound, and never again.
    pub(super) fn until(&self, until: &str, has_since: bool) -> String {
        let until = format!("{} <= {}", self.ordered(), self.value(until));
        if has_since { until } else { format!("({until} OR {} IS NULL)", self.name()) }
    }

    /// The greatest value behind `since`, as PostgreSQL writes it; `None` if there is none.
    pub(super) async fn greatest(
        &self,
        connection: &mut PgConnection,
        from: &str,
        since: Option<&str>,
    ) -> Result<Option<String>, sqlx::Error> {
        let (name, ordered) = (self.name(), self.ordered());
        let since = since.map(|since| format!(" AND {}", self.after(since))).unwrap_or_default();
        // As `max` does it, and for types without a `max` too: by the end of an index. The inner name
        // keeps ORDER BY from taking the text for the column.
        let sql = format!(
            "SELECT weir_greatest::text FROM (SELECT {name} AS weir_greatest FROM {from} \
             WHERE {name} IS NOT NULL{since} ORDER BY {ordered} DESC LIMIT 1) AS weir_last"
        );
        sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false).fetch_optional(connection).await
    }
}

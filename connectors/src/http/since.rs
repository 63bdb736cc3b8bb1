//! Incremental reading: which rows are newer than the watermark.

use std::cmp::Ordering;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::kernels::cmp;
use arrow::compute::{CastOptions, cast_with_options, filter_record_batch};
use arrow::datatypes::{DataType, Schema};
use chrono::{DateTime, NaiveDate, NaiveDateTime};

use crate::{ConnectorError, ErrorKind};

/// Keeps rows whose cursor is greater than the watermark, by the meaning of its type.
#[derive(Debug)]
pub(super) struct SinceFilter {
    column: usize,
    name: String,
    since: String,
    /// Whether the API has filtered already (`incremental.param`). Rows without a cursor are then
    /// its own choice, and are kept; otherwise null is not greater than anything, as in SQL.
    keep_null: bool,
}

impl SinceFilter {
    pub(super) fn new(
        schema: &Schema,
        cursor: &str,
        since: &str,
        api_filters: bool,
    ) -> Result<Self, ConnectorError> {
        let column = cursor_column(schema, cursor)?;
        Ok(Self {
            column,
            name: cursor.to_owned(),
            since: since.to_owned(),
            keep_null: api_filters,
        })
    }

    pub(super) fn apply(&self, rows: &RecordBatch) -> Result<RecordBatch, ConnectorError> {
        let cursors = rows.column(self.column);
        let later = if cursors.data_type() == &DataType::Utf8 {
            cursors
                .as_string::<i32>()
                .iter()
                .map(|cursor| cursor.map(|cursor| is_later(cursor, &self.since)))
                .collect::<BooleanArray>()
        } else {
            let text = StringArray::from(vec![self.since.as_str()]);
            let options = CastOptions { safe: false, ..CastOptions::default() };
            let since =
                cast_with_options(&text, cursors.data_type(), &options).map_err(|cause| {
                    ConnectorError::caused(
                        ErrorKind::Config,
                        format!(
                            "the watermark `{}` cannot be compared with cursor column {} of type \
                             {}: reset it, or declare the column's type under `columns`",
                            self.since,
                            self.name,
                            cursors.data_type()
                        ),
                        cause,
                    )
                })?;
            cmp::gt(cursors, &arrow::array::Scalar::new(since))?
        };
        let keep: BooleanArray =
            later.iter().map(|later| Some(later.unwrap_or(self.keep_null))).collect();
        if keep.true_count() == keep.len() {
            return Ok(rows.clone());
        }
        Ok(filter_record_batch(rows, &keep)?)
    }
}

/// The index of the cursor column, or an error that names the columns there are.
pub(super) fn cursor_column(schema: &Schema, cursor: &str) -> Result<usize, ConnectorError> {
    schema.index_of(cursor).map_err(|_| {
        let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        ConnectorError::config(format!(
            "the incremental cursor `{cursor}` is not a column: the records have {}",
            names.join(", ")
        ))
    })
}

/// Texts compare as numbers or instants where both are such.
fn is_later(cursor: &str, since: &str) -> bool {
    let number = |text: &str| text.trim().parse::<i128>().ok();
    let order = match (number(cursor), number(since)) {
        (Some(cursor), Some(since)) => cursor.cmp(&since),
        _ => match (instant(cursor), instant(since)) {
            (Some(cursor), Some(since)) => cursor.cmp(&since),
            _ => cursor.cmp(since),
        },
    };
    order == Ordering::Greater
}

/// A time without a zone counts as UTC, a date as its midnight.
fn instant(text: &str) -> Option<NaiveDateTime> {
    let text = text.trim();
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Some(instant.naive_utc());
    }
    ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_compare_by_meaning() {
        assert!(is_later("10", "9"));
        assert!(is_later("2024-01-01T01:00:00+02:00", "2023-12-31T22:59:59Z"));
        assert!(!is_later("2024-01-01T00:00:00Z", "2024-01-01"));
        assert!(is_later("b", "a"));
    }
}

//! Reads pages of a relation and decodes their values by the declared types.

use std::sync::Arc;

use arrow::array::{
    ArrayBuilder, ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder,
    Float64Builder, Int64Builder, RecordBatch, RecordBatchOptions, StringBuilder,
    Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use futures::{StreamExt as _, TryStreamExt as _};
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteRow, SqliteValueRef};
use sqlx::{Arguments as _, AssertSqlSafe, Decode, Row as _, TypeInfo as _, ValueRef as _};

use super::connect::{Session, quote};
use super::cursor::Cursor;
use super::source::{RowRange, Shape, TablePart};
use crate::{
    Comparison, ConnectorError, ErrorKind, Literal, Position, Predicate, ScanRequest, SourceBatch,
    SourceStream,
};

/// Rows of a batch.
const PAGE_ROWS: u64 = 8192;

/// One reading of one split.
#[derive(Debug)]
pub(super) struct Reading {
    label: String,
    schema: SchemaRef,
    /// `SELECT … FROM … WHERE …` without the bounds of the page.
    sql: String,
    conditions: Vec<Condition>,
    rowid: Option<&'static str>,
    range: Option<RowRange>,
    /// The last rowid that has been read.
    after: Option<i64>,
    /// Rows that have been yielded, by earlier attempts too.
    yielded: u64,
    limit: Option<u64>,
    is_done: bool,
}

/// SQL with its parameters.
#[derive(Debug)]
pub(super) struct Condition {
    pub sql: String,
    pub values: Vec<Bound>,
}

#[derive(Clone, Debug)]
pub(super) enum Bound {
    Int(i64),
    Real(f64),
    Text(String),
}

impl Reading {
    pub(super) fn new(
        shape: &Shape,
        request: &ScanRequest,
        cursor: Option<&Cursor>,
        part: Option<&TablePart>,
        from: Option<&Position>,
    ) -> Result<Self, ConnectorError> {
        let schema = match &request.columns {
            None => shape.schema.clone(),
            Some(names) => {
                let fields = names
                    .iter()
                    .map(|name| column(shape, name).cloned())
                    .collect::<Result<Vec<FieldRef>, _>>()?;
                Arc::new(Schema::new(fields))
            }
        };
        let mut conditions = Vec::new();
        for predicate in &request.predicates {
            // The planner keeps the others.
            if shape.comparable.contains(&predicate.column) {
                conditions.push(condition(predicate)?);
            }
        }
        if let Some(cursor) = cursor {
            if let Some(since) = &request.since {
                conditions.push(cursor.after(since)?);
            }
            if let Some(until) = part.and_then(|part| part.until.as_deref()) {
                conditions.push(cursor.until(until, request.since.is_some())?);
            }
        }
        let range = part.map(|part| part.range);
        let rowid = range.and(shape.rowid);
        let mut names: Vec<String> =
            schema.fields().iter().map(|field| quote(field.name())).collect();
        names.insert(0, rowid.unwrap_or("NULL").to_owned());
        let mut sql = format!("SELECT {} FROM {}", names.join(", "), shape.relation.sql());
        sql.push_str(" WHERE true");
        for condition in &conditions {
            sql.push_str(" AND ");
            sql.push_str(&condition.sql);
        }
        let (after, yielded) = match from {
            Some(position) => parse_position(position)?,
            None => (None, 0),
        };
        Ok(Self {
            label: shape.relation.label(),
            schema,
            sql,
            conditions,
            rowid,
            range,
            after,
            yielded,
            limit: request.limit,
            is_done: false,
        })
    }

    pub(super) fn stream(self, session: Session) -> SourceStream {
        match (self.rowid, self.range) {
            (Some(rowid), Some(range)) => self.pages(session, rowid, range),
            _ => self.whole(session),
        }
    }

    /// One statement a page, so that nothing is held between batches.
    fn pages(self, session: Session, rowid: &'static str, range: RowRange) -> SourceStream {
        futures::stream::try_unfold((self, session), move |(mut reading, mut session)| async move {
            if reading.is_done {
                return Ok(None);
            }
            let left =
                reading.limit.map_or(u64::MAX, |limit| limit.saturating_sub(reading.yielded));
            let page = PAGE_ROWS.min(left);
            let rows = if page == 0 {
                Vec::new()
            } else {
                let (sql, arguments) = reading.page_sql(rowid, range, page);
                session.fetch("read", &sql, arguments).await?
            };
            let batch = decode(&rows, &reading.schema, &reading.label, true)?;
            reading.yielded += rows.len() as u64;
            reading.is_done = (rows.len() as u64) < page || page == 0 || page == left;
            // Behind the last row of a finished split there is nothing up to its bound.
            let last = rows.last().map(|row| row.get::<i64, _>(0));
            let is_exhausted = (rows.len() as u64) < page;
            reading.after = if is_exhausted { Some(range.last) } else { last.or(reading.after) };
            let position = reading.after.map(|after| write_position(after, reading.yielded));
            let batch = SourceBatch { rows: batch, rejected: Vec::new(), position };
            Ok(Some((batch, (reading, session))))
        })
        .boxed()
    }

    fn page_sql(&self, rowid: &str, range: RowRange, page: u64) -> (String, SqliteArguments) {
        let mut arguments = self.arguments();
        let (comparison, first) = match self.after {
            Some(after) => (">", after),
            None => (">=", range.first),
        };
        for value in [first, range.last, page.cast_signed()] {
            arguments.add(value).expect("an integer can always be bound");
        }
        let sql = format!(
            "{} AND {rowid} {comparison} ? AND {rowid} <= ? ORDER BY {rowid} LIMIT ?",
            self.sql
        );
        (sql, arguments)
    }

    fn arguments(&self) -> SqliteArguments {
        let mut arguments = SqliteArguments::default();
        for value in self.conditions.iter().flat_map(|condition| &condition.values) {
            match value {
                Bound::Int(value) => arguments.add(*value),
                Bound::Real(value) => arguments.add(*value),
                Bound::Text(value) => arguments.add(value.as_str()),
            }
            .expect("numbers and text can always be bound");
        }
        arguments
    }

    /// One statement whose rows are streamed by a task of their own.
    fn whole(self, mut session: Session) -> SourceStream {
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        tokio::spawn(async move {
            if let Err(error) = self.send_whole(&mut session, &sender).await {
                // A receiver that is gone does not want the error either.
                let _ = sender.send(Err(error)).await;
            }
        });
        futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|batch| (batch, receiver))
        })
        .boxed()
    }

    async fn send_whole(
        &self,
        session: &mut Session,
        sender: &tokio::sync::mpsc::Sender<Result<SourceBatch, ConnectorError>>,
    ) -> Result<(), ConnectorError> {
        let mut sql = self.sql.clone();
        let mut arguments = self.arguments();
        if let Some(limit) = self.limit {
            sql.push_str(" LIMIT ?");
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            arguments.add(limit).expect("an integer can always be bound");
        }
        let database = session.database.clone();
        let mut rows = sqlx::query_with(AssertSqlSafe(sql), arguments)
            .fetch(&mut session.connection)
            .map_err(|error| database.error("read", error));
        let mut page: Vec<SqliteRow> = Vec::new();
        loop {
            let row = rows.try_next().await?;
            let is_end = row.is_none();
            page.extend(row);
            if page.len() as u64 >= PAGE_ROWS || (is_end && !page.is_empty()) {
                let rows = decode(&page, &self.schema, &self.label, false)?;
                page.clear();
                let batch = SourceBatch { rows, rejected: Vec::new(), position: None };
                if sender.send(Ok(batch)).await.is_err() {
                    return Ok(());
                }
            }
            if is_end {
                return Ok(());
            }
        }
    }
}

fn write_position(after: i64, yielded: u64) -> Position {
    Position(format!("{after}:{yielded}"))
}

fn parse_position(position: &Position) -> Result<(Option<i64>, u64), ConnectorError> {
    position
        .0
        .split_once(':')
        .and_then(|(after, yielded)| Some((Some(after.parse().ok()?), yielded.parse().ok()?)))
        .ok_or_else(|| {
            ConnectorError::internal(format!("`{}` is no position in a SQLite table", position.0))
        })
}

pub(super) fn column<'a>(shape: &'a Shape, name: &str) -> Result<&'a FieldRef, ConnectorError> {
    let fields = shape.schema.fields();
    fields.iter().find(|field| field.name() == name).ok_or_else(|| {
        let names: Vec<_> = fields.iter().map(|field| field.name().as_str()).collect();
        ConnectorError::new(
            ErrorKind::NotFound,
            format!(
                "{} has no column `{name}`: it has {}",
                shape.relation.label(),
                names.join(", ")
            ),
        )
    })
}

/// A predicate on a column of type Int64, Float64 or text.
fn condition(predicate: &Predicate) -> Result<Condition, ConnectorError> {
    let name = quote(&predicate.column);
    let compare = |operator: &str, literal: &Literal| {
        let value = bound(&predicate.column, literal)?;
        Ok(match value {
            // Nothing equals NaN, and it is greater than every number; binding it would be NULL.
            Bound::Real(number) if number.is_nan() => {
                let always = matches!(operator, "<" | "<=" | "<>");
                let sql = if always { format!("{name} IS NOT NULL") } else { "false".to_owned() };
                Condition { sql, values: Vec::new() }
            }
            value => Condition {
                sql: format!("{name} {operator} ? COLLATE BINARY"),
                values: vec![value],
            },
        })
    };
    match &predicate.comparison {
        Comparison::Equal(literal) => compare("=", literal),
        Comparison::NotEqual(literal) => compare("<>", literal),
        Comparison::Less(literal) => compare("<", literal),
        Comparison::LessOrEqual(literal) => compare("<=", literal),
        Comparison::Greater(literal) => compare(">", literal),
        Comparison::GreaterOrEqual(literal) => compare(">=", literal),
        Comparison::In(literals) => {
            let alternatives = literals
                .iter()
                .map(|literal| compare("=", literal))
                .collect::<Result<Vec<Condition>, ConnectorError>>()?;
            let sql: Vec<&str> = alternatives.iter().map(|one| one.sql.as_str()).collect();
            let sql = if sql.is_empty() { "false".to_owned() } else { sql.join(" OR ") };
            Ok(Condition {
                sql: format!("({sql})"),
                values: alternatives.into_iter().flat_map(|one| one.values).collect(),
            })
        }
        Comparison::IsNull => Ok(Condition { sql: format!("{name} IS NULL"), values: Vec::new() }),
        Comparison::IsNotNull => {
            Ok(Condition { sql: format!("{name} IS NOT NULL"), values: Vec::new() })
        }
    }
}

fn bound(column: &str, literal: &Literal) -> Result<Bound, ConnectorError> {
    match literal {
        Literal::Int(value) => Ok(Bound::Int(*value)),
        // Greater than every integer that SQLite has, also when rounded.
        Literal::UInt(value) => {
            Ok(i64::try_from(*value).map_or(Bound::Real(*value as f64), Bound::Int))
        }
        Literal::Float(value) => Ok(Bound::Real(*value)),
        Literal::String(value) => Ok(Bound::Text(value.clone())),
        Literal::Bool(_)
        | Literal::Decimal { .. }
        | Literal::Date(_)
        | Literal::Timestamp { .. } => Err(ConnectorError::internal(format!(
            "a filter on column `{column}` compares it with {literal:?}, a different type"
        ))),
    }
}

/// Rows whose first column is the rowid, as Arrow.
fn decode(
    rows: &[SqliteRow],
    schema: &SchemaRef,
    label: &str,
    has_rowid: bool,
) -> Result<RecordBatch, ConnectorError> {
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
    for (index, field) in schema.fields().iter().enumerate() {
        let mut builder = Builder::new(field.data_type(), rows.len())?;
        for row in rows {
            let value = row.try_get_raw(index + 1).map_err(|error| {
                ConnectorError::caused(ErrorKind::Internal, "a row is too short", error)
            })?;
            builder.push(value).map_err(|found| {
                let place = match has_rowid {
                    true => format!(", rowid {}", row.get::<i64, _>(0)),
                    false => String::new(),
                };
                ConnectorError::data(format!(
                    "{label}{place}: column `{}` holds {found}, which is no {}: correct the row, or \
                     read it by a query with CAST",
                    field.name(),
                    field.data_type()
                ))
            })?;
        }
        arrays.push(builder.finish());
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), arrays, &options)?)
}

/// A builder by the type of its column.
enum Builder {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Real(Float64Builder),
    Decimal(Decimal128Builder, u8, i8),
    Text(StringBuilder),
    Blob(BinaryBuilder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
}

impl Builder {
    fn new(data_type: &DataType, rows: usize) -> Result<Self, ConnectorError> {
        Ok(match data_type {
            DataType::Boolean => Builder::Bool(BooleanBuilder::with_capacity(rows)),
            DataType::Int64 => Builder::Int(Int64Builder::with_capacity(rows)),
            DataType::Float64 => Builder::Real(Float64Builder::with_capacity(rows)),
            DataType::Decimal128(precision, scale) => Builder::Decimal(
                Decimal128Builder::with_capacity(rows).with_data_type(data_type.clone()),
                *precision,
                *scale,
            ),
            DataType::Utf8 => Builder::Text(StringBuilder::with_capacity(rows, rows * 16)),
            DataType::Binary => Builder::Blob(BinaryBuilder::with_capacity(rows, rows * 16)),
            DataType::Date32 => Builder::Date(Date32Builder::with_capacity(rows)),
            DataType::Time64(_) => Builder::Time(Time64MicrosecondBuilder::with_capacity(rows)),
            DataType::Timestamp(_, zone) => Builder::Timestamp(
                TimestampMicrosecondBuilder::with_capacity(rows).with_timezone_opt(zone.clone()),
            ),
            other => {
                return Err(ConnectorError::internal(format!(
                    "no SQLite column is read as {other}"
                )));
            }
        })
    }

    /// The error is the value, for people.
    fn push(&mut self, value: SqliteValueRef<'_>) -> Result<(), String> {
        let value = Stored::of(value)?;
        match (&mut *self, &value) {
            (Builder::Bool(builder), Stored::Null) => builder.append_null(),
            (Builder::Int(builder), Stored::Null) => builder.append_null(),
            (Builder::Real(builder), Stored::Null) => builder.append_null(),
            (Builder::Decimal(builder, ..), Stored::Null) => builder.append_null(),
            (Builder::Text(builder), Stored::Null) => builder.append_null(),
            (Builder::Blob(builder), Stored::Null) => builder.append_null(),
            (Builder::Date(builder), Stored::Null) => builder.append_null(),
            (Builder::Time(builder), Stored::Null) => builder.append_null(),
            (Builder::Timestamp(builder), Stored::Null) => builder.append_null(),
            (Builder::Bool(builder), Stored::Int(number @ (0 | 1))) => {
                builder.append_value(*number == 1);
            }
            (Builder::Int(builder), Stored::Int(number)) => builder.append_value(*number),
            (Builder::Real(builder), Stored::Real(number)) => builder.append_value(*number),
            // SQLite stores whole reals as integers where that is shorter.
            (Builder::Real(builder), Stored::Int(number)) if number.abs() <= 1 << 53 => {
                builder.append_value(*number as f64);
            }
            (Builder::Decimal(builder, precision, scale), stored) => {
                let unscaled = decimal(stored, *precision, *scale).ok_or_else(|| value.text())?;
                builder.append_value(unscaled);
            }
            (Builder::Text(builder), Stored::Text(text)) => builder.append_value(text),
            (Builder::Text(builder), Stored::Int(_) | Stored::Real(_)) => {
                builder.append_value(value.text());
            }
            (Builder::Blob(builder), Stored::Blob(bytes)) => builder.append_value(bytes),
            (Builder::Blob(builder), Stored::Text(text)) => builder.append_value(text.as_bytes()),
            (Builder::Date(builder), Stored::Text(text)) => {
                let date = text.parse::<chrono::NaiveDate>().map_err(|_| value.text())?;
                let days = date.signed_duration_since(chrono::NaiveDate::default()).num_days();
                builder.append_value(i32::try_from(days).map_err(|_| value.text())?);
            }
            (Builder::Time(builder), Stored::Text(text)) => {
                let time = text.parse::<chrono::NaiveTime>().map_err(|_| value.text())?;
                let since = time.signed_duration_since(chrono::NaiveTime::MIN);
                builder.append_value(since.num_microseconds().ok_or_else(|| value.text())?);
            }
            (Builder::Timestamp(builder), Stored::Text(text)) => {
                builder.append_value(parse_timestamp(text).ok_or_else(|| value.text())?);
            }
            _ => return Err(value.text()),
        }
        Ok(())
    }

    fn finish(self) -> ArrayRef {
        match self {
            Builder::Bool(mut builder) => ArrayBuilder::finish(&mut builder),
            Builder::Int(mut builder) => ArrayBuilder::finish(&mut builder),
            Builder::Real(mut builder) => ArrayBuilder::finish(&mut builder),
            Builder::Decimal(mut builder, ..) => ArrayBuilder::finish(&mut builder),
            Builder::Text(mut builder) => ArrayBuilder::finish(&mut builder),
            Builder::Blob(mut builder) => ArrayBuilder::finish(&mut builder),
            Builder::Date(mut builder) => ArrayBuilder::finish(&mut builder),
            Builder::Time(mut builder) => ArrayBuilder::finish(&mut builder),
            Builder::Timestamp(mut builder) => ArrayBuilder::finish(&mut builder),
        }
    }
}

/// A value by its storage class.
#[derive(Debug)]
pub(super) enum Stored<'a> {
    Null,
    Int(i64),
    Real(f64),
    Text(&'a str),
    Blob(&'a [u8]),
}

impl<'a> Stored<'a> {
    pub(super) fn of(value: SqliteValueRef<'a>) -> Result<Self, String> {
        if value.is_null() {
            return Ok(Stored::Null);
        }
        let name = value.type_info().name().to_owned();
        match name.as_str() {
            "INTEGER" => <i64 as Decode<Sqlite>>::decode(value).map(Stored::Int),
            "REAL" => <f64 as Decode<Sqlite>>::decode(value).map(Stored::Real),
            "TEXT" => <&str as Decode<Sqlite>>::decode(value).map(Stored::Text),
            _ => <&[u8] as Decode<Sqlite>>::decode(value).map(Stored::Blob),
        }
        .map_err(|error| format!("text that cannot be read ({error})"))
    }

    /// As people see it, and as numbers are kept in string columns.
    pub(super) fn text(&self) -> String {
        match self {
            Stored::Null => "null".to_owned(),
            Stored::Int(number) => number.to_string(),
            Stored::Real(number) => format!("{number:?}"),
            Stored::Text(text) => match text.char_indices().nth(100) {
                Some((end, _)) => format!("\"{}…\"", &text[..end]),
                None => format!("\"{text}\""),
            },
            Stored::Blob(bytes) => format!("a blob of {} bytes", bytes.len()),
        }
    }
}

/// The unscaled decimal, if the number has no more digits than the type.
fn decimal(stored: &Stored<'_>, precision: u8, scale: i8) -> Option<i128> {
    let factor = 10f64.powi(i32::from(scale));
    let unscaled = match stored {
        Stored::Int(number) => {
            i128::from(*number).checked_mul(10i128.pow(u32::from(scale.unsigned_abs())))?
        }
        Stored::Real(number) => {
            let scaled = (number * factor).round();
            // The nearest decimal must be the number itself: 1.005 is none with two digits.
            let is_exact = scaled.abs() < 1e15 && (scaled / factor) == *number;
            is_exact.then_some(scaled as i128)?
        }
        _ => return None,
    };
    (unscaled.unsigned_abs() < 10u128.pow(u32::from(precision))).then_some(unscaled)
}

/// Microseconds of `2024-05-31[ T]13:45[:00[.123456]][Z|+01:00]` or of a date, in UTC.
pub(super) fn parse_timestamp(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(time) = chrono::DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_micros());
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"] {
        if let Ok(time) = chrono::DateTime::parse_from_str(text, format) {
            return Some(time.timestamp_micros());
        }
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M"] {
        if let Ok(time) = chrono::NaiveDateTime::parse_from_str(text, format) {
            return Some(time.and_utc().timestamp_micros());
        }
    }
    let date = text.parse::<chrono::NaiveDate>().ok()?;
    Some(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())
}

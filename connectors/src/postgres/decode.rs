//! Rows of binary `COPY … TO STDOUT` as Arrow arrays.
//!
//! ```text
//! "PGCOPY\n\xff\r\n\0" flags extension │ int16 columns (int32 length, value)… │ … │ int16 -1
//! ```
//! The protocol promises that a message of the server holds whole rows. Values go straight into
//! column buffers: no value is allocated by itself.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array,
    Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, ListArray, RecordBatch,
    RecordBatchOptions, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, SchemaRef};

use super::numeric;
use super::types::Wire;
use crate::ConnectorError;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// From 1970-01-01 to 2000-01-01, where PostgreSQL counts from.
pub(super) const EPOCH_DAYS: i32 = 10_957;
pub(super) const EPOCH_MICROS: i64 = 946_684_800_000_000;
const DAY_MICROS: i64 = 86_400_000_000;

/// Collects rows of one `COPY` until they are taken as a batch.
pub(super) struct Decoder {
    schema: SchemaRef,
    columns: Vec<ColumnBuffer>,
    rows: usize,
    bytes: usize,
    /// Whether this `COPY`'s header has been read.
    is_started: bool,
    /// For messages: table and server.
    subject: String,
}

impl Decoder {
    /// `schema` has one field for each form in `wires`.
    pub(super) fn new(schema: SchemaRef, wires: &[Wire], subject: String) -> Self {
        let columns = wires.iter().map(ColumnBuffer::new).collect();
        Self { schema, columns, rows: 0, bytes: 0, is_started: false, subject }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes received for the rows collected so far.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Expects the header of a new `COPY` next; rows collected so far stay.
    pub(super) fn start(&mut self) {
        self.is_started = false;
    }

    /// Takes the rows of one message.
    pub(super) fn push(&mut self, message: &[u8]) -> Result<(), ConnectorError> {
        let mut rest = message;
        if !self.is_started {
            rest = self.header(rest)?;
            self.is_started = true;
        }
        self.bytes += rest.len();
        while !rest.is_empty() {
            let Some((count, after)) = rest.split_first_chunk::<2>() else {
                return Err(self.broken());
            };
            let count = i16::from_be_bytes(*count);
            if count == -1 {
                return Ok(());
            }
            if usize::try_from(count) != Ok(self.columns.len()) {
                return Err(ConnectorError::internal(format!(
                    "{}: a row has {count} columns instead of {}",
                    self.subject,
                    self.columns.len()
                )));
            }
            rest = self.row(after)?;
            self.rows += 1;
        }
        Ok(())
    }

    fn row<'a>(&mut self, mut rest: &'a [u8]) -> Result<&'a [u8], ConnectorError> {
        for (index, column) in self.columns.iter_mut().enumerate() {
            let taken = match rest.split_first_chunk::<4>() {
                None => None,
                Some((length, after)) => match i32::from_be_bytes(*length) {
                    -1 => {
                        column.push_null();
                        rest = after;
                        continue;
                    }
                    length => usize::try_from(length)
                        .ok()
                        .and_then(|length| after.split_at_checked(length)),
                },
            };
            let Some((value, after)) = taken else { return Err(self.broken()) };
            if let Err(reason) = column.push(value) {
                return Err(value_error(&self.subject, self.schema.field(index), &reason));
            }
            rest = after;
        }
        Ok(rest)
    }

    fn header<'a>(&self, message: &'a [u8]) -> Result<&'a [u8], ConnectorError> {
        let rest = message.strip_prefix(SIGNATURE).ok_or_else(|| self.broken())?;
        let (_flags, rest) = rest.split_first_chunk::<4>().ok_or_else(|| self.broken())?;
        let (extension, rest) = rest.split_first_chunk::<4>().ok_or_else(|| self.broken())?;
        let extension = usize::try_from(u32::from_be_bytes(*extension)).unwrap_or(usize::MAX);
        rest.get(extension..).ok_or_else(|| self.broken())
    }

    fn broken(&self) -> ConnectorError {
        ConnectorError::internal(format!("{}: the server sent a broken COPY stream", self.subject))
    }

    /// The rows collected so far, and an empty decoder.
    pub(super) fn take(&mut self) -> Result<RecordBatch, ConnectorError> {
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let mut arrays = Vec::with_capacity(self.columns.len());
        for (column, field) in self.columns.iter_mut().zip(self.schema.fields()) {
            let array = column
                .take(field.data_type())
                .map_err(|reason| value_error(&self.subject, field, &reason))?;
            arrays.push(array);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)?)
    }
}

fn value_error(subject: &str, field: &Field, reason: &str) -> ConnectorError {
    let name = field.name();
    ConnectorError::data(format!(
        "{subject}: column \"{name}\": {reason}; read it with a query that mends the value, such as \
         SELECT nullif(…) or \"{name}\"::text AS \"{name}\""
    ))
}

/// The values of one column.
struct ColumnBuffer {
    values: Values,
    validity: Validity,
}

/// Null flags, made only once there is a null.
#[derive(Default)]
struct Validity {
    bits: Option<BooleanBufferBuilder>,
    length: usize,
}

impl Validity {
    fn push(&mut self, is_valid: bool) {
        if let Some(bits) = &mut self.bits {
            bits.append(is_valid);
        } else if !is_valid {
            let mut bits = BooleanBufferBuilder::new(self.length + 64);
            bits.append_n(self.length, true);
            bits.append(false);
            self.bits = Some(bits);
        }
        self.length += 1;
    }

    fn take(&mut self) -> Option<NullBuffer> {
        self.length = 0;
        self.bits.take().map(|mut bits| NullBuffer::new(bits.finish()))
    }
}

enum Values {
    Bool(BooleanBufferBuilder),
    Int2(Vec<i16>),
    Int4(Vec<i32>),
    Int8(Vec<i64>),
    Oid(Vec<i64>),
    Float4(Vec<f32>),
    Float8(Vec<f64>),
    Numeric { values: Vec<i128>, scale: i8 },
    Text(Bytes),
    Jsonb(Bytes),
    Bytea(Bytes),
    Uuid(Bytes),
    Date(Vec<i32>),
    Time(Vec<i64>),
    Timestamp(Vec<i64>),
    List { offsets: Vec<i32>, item: Box<ColumnBuffer>, item_oid: u32 },
}

/// Values of varying length, one behind the other.
struct Bytes {
    data: Vec<u8>,
    offsets: Vec<i32>,
}

impl Bytes {
    fn new() -> Self {
        Self { data: Vec::new(), offsets: vec![0] }
    }

    fn push(&mut self, value: &[u8]) -> Result<(), String> {
        self.data.extend_from_slice(value);
        self.end()
    }

    fn end(&mut self) -> Result<(), String> {
        let end = i32::try_from(self.data.len())
            .map_err(|_| "its values in one batch exceed 2 GiB".to_owned())?;
        self.offsets.push(end);
        Ok(())
    }

    fn repeat_end(&mut self) {
        self.offsets.push(*self.offsets.last().expect("starts with one offset"));
    }

    fn take(&mut self) -> (OffsetBuffer<i32>, arrow::buffer::Buffer) {
        let data = Vec::with_capacity(self.data.len());
        let data = std::mem::replace(&mut self.data, data);
        let mut offsets = Vec::with_capacity(self.offsets.len());
        offsets.push(0);
        let offsets = std::mem::replace(&mut self.offsets, offsets);
        (OffsetBuffer::new(offsets.into()), data.into())
    }
}

fn fixed<const LENGTH: usize>(value: &[u8]) -> Result<[u8; LENGTH], String> {
    value.try_into().map_err(|_| format!("a value has {} bytes instead of {LENGTH}", value.len()))
}

fn day(value: &[u8]) -> Result<i32, String> {
    match i32::from_be_bytes(fixed(value)?) {
        i32::MAX => Err("the date infinity has no Arrow value".to_owned()),
        i32::MIN => Err("the date -infinity has no Arrow value".to_owned()),
        days => {
            days.checked_add(EPOCH_DAYS).ok_or_else(|| "a date is too far in the future".to_owned())
        }
    }
}

fn instant(value: &[u8]) -> Result<i64, String> {
    match i64::from_be_bytes(fixed(value)?) {
        i64::MAX => Err("the timestamp infinity has no Arrow value".to_owned()),
        i64::MIN => Err("the timestamp -infinity has no Arrow value".to_owned()),
        micros => micros.checked_add(EPOCH_MICROS).ok_or_else(|| {
            "a timestamp is too far in the future for 64-bit microseconds".to_owned()
        }),
    }
}

impl ColumnBuffer {
    fn new(wire: &Wire) -> Self {
        let values = match wire {
            Wire::Bool => Values::Bool(BooleanBufferBuilder::new(0)),
            Wire::Int2 => Values::Int2(Vec::new()),
            Wire::Int4 => Values::Int4(Vec::new()),
            Wire::Int8 => Values::Int8(Vec::new()),
            Wire::Oid => Values::Oid(Vec::new()),
            Wire::Float4 => Values::Float4(Vec::new()),
            Wire::Float8 => Values::Float8(Vec::new()),
            Wire::Numeric { scale, .. } => Values::Numeric { values: Vec::new(), scale: *scale },
            Wire::Text => Values::Text(Bytes::new()),
            Wire::Jsonb => Values::Jsonb(Bytes::new()),
            Wire::Bytea => Values::Bytea(Bytes::new()),
            Wire::Uuid => Values::Uuid(Bytes::new()),
            Wire::Date => Values::Date(Vec::new()),
            Wire::Time => Values::Time(Vec::new()),
            Wire::Timestamp | Wire::TimestampTz => Values::Timestamp(Vec::new()),
            Wire::List { item, item_oid } => Values::List {
                offsets: vec![0],
                item: Box::new(ColumnBuffer::new(item)),
                item_oid: *item_oid,
            },
        };
        Self { values, validity: Validity::default() }
    }

    fn push_null(&mut self) {
        self.validity.push(false);
        match &mut self.values {
            Values::Bool(bits) => bits.append(false),
            Values::Int2(values) => values.push(0),
            Values::Int4(values) | Values::Date(values) => values.push(0),
            Values::Int8(values)
            | Values::Oid(values)
            | Values::Time(values)
            | Values::Timestamp(values) => values.push(0),
            Values::Float4(values) => values.push(0.0),
            Values::Float8(values) => values.push(0.0),
            Values::Numeric { values, .. } => values.push(0),
            Values::Text(bytes)
            | Values::Jsonb(bytes)
            | Values::Bytea(bytes)
            | Values::Uuid(bytes) => bytes.repeat_end(),
            Values::List { offsets, .. } => {
                offsets.push(*offsets.last().expect("starts with one offset"));
            }
        }
    }

    fn push(&mut self, value: &[u8]) -> Result<(), String> {
        self.validity.push(true);
        match &mut self.values {
            Values::Bool(bits) => bits.append(fixed::<1>(value)?[0] != 0),
            Values::Int2(values) => values.push(i16::from_be_bytes(fixed(value)?)),
            Values::Int4(values) => values.push(i32::from_be_bytes(fixed(value)?)),
            Values::Int8(values) => values.push(i64::from_be_bytes(fixed(value)?)),
            Values::Oid(values) => values.push(i64::from(u32::from_be_bytes(fixed(value)?))),
            Values::Float4(values) => values.push(f32::from_be_bytes(fixed(value)?)),
            Values::Float8(values) => values.push(f64::from_be_bytes(fixed(value)?)),
            Values::Numeric { values, scale } => values.push(numeric::decode(value, *scale)?),
            Values::Text(bytes) | Values::Bytea(bytes) => bytes.push(value)?,
            Values::Jsonb(bytes) => match value.split_first() {
                Some((1, text)) => bytes.push(text)?,
                _ => return Err("its jsonb has an unknown version".to_owned()),
            },
            Values::Uuid(bytes) => {
                push_uuid(&fixed(value)?, &mut bytes.data);
                bytes.end()?;
            }
            Values::Date(values) => values.push(day(value)?),
            Values::Time(values) => match i64::from_be_bytes(fixed(value)?) {
                DAY_MICROS => return Err("the time 24:00:00 has no Arrow value".to_owned()),
                micros => values.push(micros),
            },
            Values::Timestamp(values) => values.push(instant(value)?),
            Values::List { offsets, item, item_oid } => {
                item.push_items(value, *item_oid)?;
                let end = i32::try_from(item.validity.length)
                    .map_err(|_| "its arrays in one batch have too many items".to_owned())?;
                offsets.push(end);
            }
        }
        Ok(())
    }

    /// The items of one array value: dimensions, flags, item type, then length and value of each.
    fn push_items(&mut self, value: &[u8], item_oid: u32) -> Result<(), String> {
        let cut = || "an array is cut short".to_owned();
        let mut words = value;
        let mut word = || -> Result<i32, String> {
            let (word, rest) = words.split_first_chunk::<4>().ok_or_else(cut)?;
            words = rest;
            Ok(i32::from_be_bytes(*word))
        };
        let dimensions = word()?;
        let _has_nulls = word()?;
        let oid = word()?.cast_unsigned();
        if dimensions == 0 {
            return Ok(());
        }
        if dimensions != 1 {
            return Err(format!("an array has {dimensions} dimensions; only one can be read"));
        }
        if oid != item_oid {
            return Err(format!("an array has items of type {oid} instead of {item_oid}"));
        }
        let count = word()?;
        let _lower_bound = word()?;
        let mut rest = words;
        for _ in 0..count {
            let (length, after) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
            match usize::try_from(i32::from_be_bytes(*length)) {
                Ok(length) => {
                    let (value, after) = after.split_at_checked(length).ok_or_else(cut)?;
                    self.push(value)?;
                    rest = after;
                }
                Err(_) => {
                    self.push_null();
                    rest = after;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, data_type: &DataType) -> Result<ArrayRef, String> {
        let nulls = self.validity.take();
        fn fresh<T>(values: &mut Vec<T>) -> ScalarBuffer<T>
        where
            T: arrow::datatypes::ArrowNativeType,
        {
            let next = Vec::with_capacity(values.len());
            std::mem::replace(values, next).into()
        }
        Ok(match &mut self.values {
            Values::Bool(bits) => Arc::new(BooleanArray::new(bits.finish(), nulls)),
            Values::Int2(values) => Arc::new(Int16Array::new(fresh(values), nulls)),
            Values::Int4(values) => Arc::new(Int32Array::new(fresh(values), nulls)),
            Values::Int8(values) | Values::Oid(values) => {
                Arc::new(Int64Array::new(fresh(values), nulls))
            }
            Values::Float4(values) => Arc::new(Float32Array::new(fresh(values), nulls)),
            Values::Float8(values) => Arc::new(Float64Array::new(fresh(values), nulls)),
            Values::Numeric { values, .. } => Arc::new(
                Decimal128Array::new(fresh(values), nulls).with_data_type(data_type.clone()),
            ),
            Values::Text(bytes) | Values::Jsonb(bytes) | Values::Uuid(bytes) => {
                let (offsets, data) = bytes.take();
                let array = StringArray::try_new(offsets, data, nulls).map_err(|_| {
                    "holds bytes that are not UTF-8 (the database's encoding is SQL_ASCII)"
                        .to_owned()
                })?;
                Arc::new(array)
            }
            Values::Bytea(bytes) => {
                let (offsets, data) = bytes.take();
                Arc::new(BinaryArray::new(offsets, data, nulls))
            }
            Values::Date(values) => Arc::new(Date32Array::new(fresh(values), nulls)),
            Values::Time(values) => Arc::new(Time64MicrosecondArray::new(fresh(values), nulls)),
            Values::Timestamp(values) => Arc::new(
                TimestampMicrosecondArray::new(fresh(values), nulls)
                    .with_data_type(data_type.clone()),
            ),
            Values::List { offsets, item, .. } => {
                let DataType::List(field) = data_type else {
                    return Err(format!("is {data_type} instead of a list"));
                };
                let next = vec![0];
                let offsets = OffsetBuffer::new(std::mem::replace(offsets, next).into());
                let items = item.take(field.data_type())?;
                Arc::new(ListArray::new(field.clone(), offsets, items, nulls))
            }
        })
    }
}

fn push_uuid(value: &[u8; 16], out: &mut Vec<u8>) {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    uuid::Uuid::from_bytes(*value).hyphenated().encode_lower(&mut text);
    out.extend_from_slice(&text);
}

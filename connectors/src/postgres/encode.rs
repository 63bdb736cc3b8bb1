//! Arrow arrays as rows of binary `COPY … FROM STDIN`.
//!
//! Every column is brought to one typed array first; then rows are appended value by value, without
//! an allocation or a virtual call for each.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray as _, BinaryArray, BinaryViewArray, BooleanArray, Date32Array,
    Decimal128Array, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array,
    LargeBinaryArray, LargeStringArray, ListArray, StringArray, StringBuilder, StringViewArray,
    Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field};

use super::decode::{EPOCH_DAYS, EPOCH_MICROS};
use super::numeric;
use super::types::Wire;
use crate::ConnectorError;

/// Begins every binary `COPY`.
pub(super) const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Ends it.
pub(super) const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// A column ready to be written.
pub(super) struct Encoder {
    name: String,
    values: Values,
    nulls: Option<NullBuffer>,
}

enum Values {
    Bool(BooleanArray),
    Int2(Int16Array),
    Int4(Int32Array),
    Int8(Int64Array),
    Oid(Int64Array),
    Float4(Float32Array),
    Float8(Float64Array),
    Numeric {
        values: Decimal128Array,
        scale: i8,
    },
    Text(StringArray),
    LargeText(LargeStringArray),
    TextView(StringViewArray),
    Jsonb(StringArray),
    Uuid(StringArray),
    Bytea(BinaryArray),
    LargeBytea(LargeBinaryArray),
    ByteaView(BinaryViewArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp(TimestampMicrosecondArray),
    List {
        lists: ListArray,
        items: Box<Encoder>,
        item_oid: u32,
    },
    /// Counts up from here: the order of arrival.
    Order(i64),
}

impl Encoder {
    /// Casts `array` to what `wire` needs. A value that does not fit is an error that names the
    /// column and `declared`, its type in the table.
    pub(super) fn new(
        field: &Field,
        array: &ArrayRef,
        wire: &Wire,
        declared: &str,
    ) -> Result<Self, ConnectorError> {
        let fits = |cause: arrow::error::ArrowError| {
            ConnectorError::data(format!(
                "column \"{}\": a value of type {} does not fit into {declared}; filter such values \
                 out or `validate` them before the sink, or give the column a wider type: {cause}",
                field.name(),
                field.data_type()
            ))
        };
        let array = unpacked(field, array).map_err(fits)?;
        let values = Self::values(field, &array, wire, declared, &fits)?;
        Ok(Self { name: field.name().clone(), values, nulls: array.logical_nulls() })
    }

    /// A bigint column that counts the rows from `first`.
    pub(super) fn order(first: i64) -> Self {
        Self { name: "order".to_owned(), values: Values::Order(first), nulls: None }
    }

    fn values(
        field: &Field,
        array: &ArrayRef,
        wire: &Wire,
        declared: &str,
        fits: &dyn Fn(arrow::error::ArrowError) -> ConnectorError,
    ) -> Result<Values, ConnectorError> {
        let cast = |to: &DataType| -> Result<ArrayRef, ConnectorError> {
            if array.data_type() == to {
                return Ok(array.clone());
            }
            let options = CastOptions { safe: false, ..CastOptions::default() };
            cast_with_options(array, to, &options).map_err(fits)
        };
        let to = wire.arrow_type();
        Ok(match wire {
            Wire::Bool => Values::Bool(cast(&to)?.as_boolean().clone()),
            Wire::Int2 => Values::Int2(cast(&to)?.as_primitive().clone()),
            Wire::Int4 => Values::Int4(cast(&to)?.as_primitive().clone()),
            Wire::Int8 => Values::Int8(cast(&to)?.as_primitive().clone()),
            Wire::Oid => Values::Oid(cast(&to)?.as_primitive().clone()),
            Wire::Float4 => Values::Float4(cast(&to)?.as_primitive().clone()),
            Wire::Float8 => Values::Float8(cast(&to)?.as_primitive().clone()),
            Wire::Date => Values::Date(cast(&to)?.as_primitive().clone()),
            Wire::Time => Values::Time(cast(&to)?.as_primitive().clone()),
            Wire::Timestamp | Wire::TimestampTz => {
                Values::Timestamp(cast(&to)?.as_primitive().clone())
            }
            Wire::Numeric { .. } => {
                let to = match array.data_type() {
                    // Sent as it is: the server knows the column's own scale.
                    DataType::Decimal128(precision, scale)
                    | DataType::Decimal32(precision, scale)
                    | DataType::Decimal64(precision, scale) => {
                        DataType::Decimal128(*precision, *scale)
                    }
                    other if other.is_integer() => DataType::Decimal128(20, 0),
                    _ => to,
                };
                let DataType::Decimal128(_, scale) = to else {
                    return Err(ConnectorError::internal("numeric is decoded into a decimal"));
                };
                Values::Numeric { values: cast(&to)?.as_primitive().clone(), scale }
            }
            Wire::Text => match array.data_type() {
                DataType::LargeUtf8 => Values::LargeText(array.as_string().clone()),
                DataType::Utf8View => Values::TextView(array.as_string_view().clone()),
                _ => Values::Text(cast(&to)?.as_string().clone()),
            },
            Wire::Jsonb => Values::Jsonb(cast(&to)?.as_string().clone()),
            Wire::Uuid => Values::Uuid(cast(&to)?.as_string().clone()),
            Wire::Bytea => match array.data_type() {
                DataType::LargeBinary => Values::LargeBytea(array.as_binary().clone()),
                DataType::BinaryView => Values::ByteaView(array.as_binary_view().clone()),
                _ => Values::Bytea(cast(&to)?.as_binary().clone()),
            },
            Wire::List { item, item_oid } => {
                let item_field = match array.data_type() {
                    DataType::List(field)
                    | DataType::LargeList(field)
                    | DataType::FixedSizeList(field, _) => field.clone(),
                    _ => Arc::new(Field::new_list_field(item.arrow_type(), true)),
                };
                let lists = cast(&DataType::List(item_field.clone()))?;
                let lists: &ListArray = lists.as_list();
                let item_field = item_field.as_ref().clone().with_name(field.name());
                let items = Encoder::new(&item_field, lists.values(), item, declared)?;
                Values::List { lists: lists.clone(), items: Box::new(items), item_oid: *item_oid }
            }
        })
    }

    /// Appends length and value of one row.
    fn append(&self, row: usize, out: &mut Vec<u8>) -> Result<(), ConnectorError> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            return Ok(());
        }
        match &self.values {
            Values::Bool(array) => out.extend_from_slice(&[0, 0, 0, 1, u8::from(array.value(row))]),
            Values::Int2(array) => {
                let [high, low] = array.value(row).to_be_bytes();
                out.extend_from_slice(&[0, 0, 0, 2, high, low]);
            }
            Values::Int4(array) => four(out, array.value(row).to_be_bytes()),
            Values::Int8(array) => eight(out, array.value(row).to_be_bytes()),
            Values::Oid(array) => {
                let value = u32::try_from(array.value(row))
                    .map_err(|_| self.refuse("a value is no oid (0 to 4294967295)"))?;
                four(out, value.to_be_bytes());
            }
            Values::Float4(array) => four(out, array.value(row).to_be_bytes()),
            Values::Float8(array) => eight(out, array.value(row).to_be_bytes()),
            Values::Numeric { values, scale } => numeric::encode(values.value(row), *scale, out),
            Values::Text(array) => self.text(array.value(row), out)?,
            Values::LargeText(array) => self.text(array.value(row), out)?,
            Values::TextView(array) => self.text(array.value(row), out)?,
            Values::Jsonb(array) => {
                let text = array.value(row);
                self.length(text.len() + 1, out)?;
                out.push(1);
                self.no_nul(text)?;
                out.extend_from_slice(text.as_bytes());
            }
            Values::Uuid(array) => {
                let value = uuid::Uuid::try_parse(array.value(row)).map_err(|_| {
                    self.refuse(&format!("\"{}\" is not a uuid", shortened(array.value(row))))
                })?;
                out.extend_from_slice(&16_i32.to_be_bytes());
                out.extend_from_slice(value.as_bytes());
            }
            Values::Bytea(array) => self.bytes(array.value(row), out)?,
            Values::LargeBytea(array) => self.bytes(array.value(row), out)?,
            Values::ByteaView(array) => self.bytes(array.value(row), out)?,
            Values::Date(array) => match array.value(row).checked_sub(EPOCH_DAYS) {
                // The lowest value would mean -infinity.
                None | Some(i32::MIN) => return Err(self.refuse("a date is too far in the past")),
                Some(days) => four(out, days.to_be_bytes()),
            },
            Values::Time(array) => eight(out, array.value(row).to_be_bytes()),
            Values::Timestamp(array) => match array.value(row).checked_sub(EPOCH_MICROS) {
                None | Some(i64::MIN) => {
                    return Err(self.refuse("a timestamp is too far in the past"));
                }
                Some(micros) => eight(out, micros.to_be_bytes()),
            },
            Values::List { lists, items, item_oid } => {
                self.list(lists, items, *item_oid, row, out)?;
            }
            Values::Order(first) => {
                let row = i64::try_from(row).expect("a batch has fewer than 2^63 rows");
                eight(out, (first + row).to_be_bytes());
            }
        }
        Ok(())
    }

    fn list(
        &self,
        lists: &ListArray,
        items: &Encoder,
        item_oid: u32,
        row: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ConnectorError> {
        let offsets = lists.value_offsets();
        let (start, end) = (offsets[row], offsets[row + 1]);
        let begin = out.len();
        let has_nulls = items.nulls.as_ref().is_some_and(|nulls| nulls.null_count() > 0);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&i32::from(end > start).to_be_bytes());
        out.extend_from_slice(&i32::from(has_nulls).to_be_bytes());
        out.extend_from_slice(&item_oid.to_be_bytes());
        if end > start {
            out.extend_from_slice(&(end - start).to_be_bytes());
            out.extend_from_slice(&1_i32.to_be_bytes());
            for item in start..end {
                items.append(usize::try_from(item).expect("offsets are not negative"), out)?;
            }
        }
        let length = i32::try_from(out.len() - begin - 4)
            .map_err(|_| self.refuse("a value is longer than 1 GiB"))?;
        out[begin..begin + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn text(&self, text: &str, out: &mut Vec<u8>) -> Result<(), ConnectorError> {
        self.no_nul(text)?;
        self.bytes(text.as_bytes(), out)
    }

    fn bytes(&self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ConnectorError> {
        self.length(bytes.len(), out)?;
        out.extend_from_slice(bytes);
        Ok(())
    }

    fn length(&self, length: usize, out: &mut Vec<u8>) -> Result<(), ConnectorError> {
        let length = i32::try_from(length)
            .ok()
            .filter(|length| *length < 1 << 30)
            .ok_or_else(|| self.refuse("a value is longer than 1 GiB"))?;
        out.extend_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn no_nul(&self, text: &str) -> Result<(), ConnectorError> {
        if memchr::memchr(0, text.as_bytes()).is_some() {
            let name = &self.name;
            return Err(self.refuse(&format!(
                "a text holds a NUL character, which PostgreSQL cannot store; remove it in SQL with \
                 replace(\"{name}\", chr(0), '')"
            )));
        }
        Ok(())
    }

    fn refuse(&self, reason: &str) -> ConnectorError {
        ConnectorError::data(format!("column \"{}\": {reason}", self.name))
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

fn four(out: &mut Vec<u8>, value: [u8; 4]) {
    let [a, b, c, d] = value;
    out.extend_from_slice(&[0, 0, 0, 4, a, b, c, d]);
}

fn eight(out: &mut Vec<u8>, value: [u8; 8]) {
    let [a, b, c, d, e, f, g, h] = value;
    out.extend_from_slice(&[0, 0, 0, 8, a, b, c, d, e, f, g, h]);
}

/// Appends `rows` rows of equally long columns.
pub(super) fn encode_rows(
    columns: &[Encoder],
    rows: usize,
    out: &mut Vec<u8>,
) -> Result<(), ConnectorError> {
    let count = i16::try_from(columns.len())
        .map_err(|_| ConnectorError::config("a table cannot have more than 1600 columns"))?;
    for row in 0..rows {
        out.extend_from_slice(&count.to_be_bytes());
        for column in columns {
            column.append(row, out)?;
        }
    }
    Ok(())
}

/// Without dictionaries; structs, maps and lists of them become JSON text.
fn unpacked(field: &Field, array: &ArrayRef) -> Result<ArrayRef, arrow::error::ArrowError> {
    match array.data_type() {
        DataType::Dictionary(_, value) => arrow::compute::cast(array, value),
        other if is_nested(other) => json_text(field, array),
        _ => Ok(array.clone()),
    }
}

/// Written as one JSON value: PostgreSQL arrays hold scalars only.
pub(super) fn is_nested(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(_) | DataType::Map(_, _) => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            matches!(
                item.data_type(),
                DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _)
            ) || is_nested(item.data_type())
        }
        _ => false,
    }
}

fn json_text(field: &Field, array: &ArrayRef) -> Result<ArrayRef, arrow::error::ArrowError> {
    use arrow::json::writer::{EncoderOptions, make_encoder};
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let field = Arc::new(Field::new(field.name(), array.data_type().clone(), true));
    let mut encoder = make_encoder(&field, array.as_ref(), &options)?;
    let mut text = StringBuilder::with_capacity(array.len(), array.len() * 32);
    let mut buffer = Vec::new();
    for row in 0..array.len() {
        if array.is_null(row) {
            text.append_null();
            continue;
        }
        buffer.clear();
        encoder.encode(row, &mut buffer);
        text.append_value(std::str::from_utf8(&buffer).map_err(|cause| {
            arrow::error::ArrowError::JsonError(format!("JSON is not UTF-8: {cause}"))
        })?);
    }
    Ok(Arc::new(text.finish()))
}

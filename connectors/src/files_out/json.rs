//! Values as JSON: base64 for binary, JSON columns as the JSON they hold, decimals as numbers.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericStringBuilder, StringArray};
use arrow::datatypes::{DataType, FieldRef};
use arrow::error::ArrowError;
use arrow::json::writer::{NullableEncoder, make_encoder};
use arrow::json::{Encoder, EncoderFactory, EncoderOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

use crate::types::JSON_METADATA;

/// How this crate writes JSON. Explicit nulls; times in RFC 3339.
pub(super) fn json_options() -> EncoderOptions {
    EncoderOptions::default()
        .with_explicit_nulls(true)
        .with_encoder_factory(Arc::new(ValueEncoders))
}

/// Replaces Arrow's encoders for binary (hex) and for columns marked as JSON (quoted text).
#[derive(Debug)]
pub(super) struct ValueEncoders;

impl EncoderFactory for ValueEncoders {
    fn make_default_encoder<'a>(
        &self,
        field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                Box::new(Base64Encoder(move |row| array.value(row)))
            }
            DataType::LargeBinary => {
                let array = array.as_binary::<i64>();
                Box::new(Base64Encoder(move |row| array.value(row)))
            }
            DataType::BinaryView => {
                let array = array.as_binary_view();
                Box::new(Base64Encoder(move |row| array.value(row)))
            }
            DataType::FixedSizeBinary(_) => {
                let array = array.as_fixed_size_binary();
                Box::new(Base64Encoder(move |row| array.value(row)))
            }
            DataType::Utf8 if is_json(field) => {
                let array = array.as_string::<i32>();
                Box::new(RawJsonEncoder(move |row| array.value(row)))
            }
            DataType::Utf8View if is_json(field) => {
                let array = array.as_string_view();
                Box::new(RawJsonEncoder(move |row| array.value(row)))
            }
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

fn is_json(field: &FieldRef) -> bool {
    let (key, value) = JSON_METADATA;
    field.metadata().get(key).is_some_and(|found| found == value)
}

struct Base64Encoder<F>(F);

impl<'a, F: Fn(usize) -> &'a [u8]> Encoder for Base64Encoder<F> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(STANDARD.encode((self.0)(row)).as_bytes());
        out.push(b'"');
    }
}

/// Writes JSON text as it is, on one line; text that is not JSON as a string.
struct RawJsonEncoder<F>(F);

impl<'a, F: Fn(usize) -> &'a str> Encoder for RawJsonEncoder<F> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        let text = (self.0)(row);
        if serde_json::from_str::<&RawValue>(text).is_ok() {
            // A line break in valid JSON is white space between tokens.
            out.extend(text.trim().bytes().map(|byte| match byte {
                b'\n' | b'\r' => b' ',
                other => other,
            }));
        } else {
            let quoted = serde_json::Value::from(text).to_string();
            out.extend_from_slice(quoted.as_bytes());
        }
    }
}

/// A nested or binary column as text, for CSV: JSON text, binary as bare base64.
pub(crate) fn as_text(field: &FieldRef, array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = json_options();
    let mut encoder = make_encoder(field, array.as_ref(), &options)?;
    let is_bare = !array.data_type().is_nested();
    let mut texts = GenericStringBuilder::<i32>::with_capacity(array.len(), array.len() * 16);
    let mut bytes = Vec::new();
    let nulls = array.logical_nulls();
    for row in 0..array.len() {
        if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            texts.append_null();
            continue;
        }
        bytes.clear();
        encoder.encode(row, &mut bytes);
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| ArrowError::CsvError(format!("JSON is not UTF-8: {error}")))?;
        texts.append_value(if is_bare { text.trim_matches('"') } else { text });
    }
    let texts: StringArray = texts.finish();
    Ok(Arc::new(texts))
}

//! One JSON value as a value of a column type; `None` where it does not fit.

use arrow::compute::kernels::cast_utils::{Parser, string_to_datetime};
use arrow::datatypes::{Date32Type, Float64Type};

use crate::records::Json;
use crate::records::decimal::decimal_from_text;

pub(super) fn parse_bool(value: &Json) -> Option<bool> {
    match value {
        Json::Bool(value) => Some(*value),
        Json::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Json::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

pub(super) fn parse_integer<T: TryFrom<i128>>(value: &Json) -> Option<T> {
    let wide = match value {
        // 3.0 and 3e2 are whole numbers too.
        Json::Number(text) => decimal_from_text(text, 38, 0)?,
        Json::String(text) => text.trim_ascii().parse::<i128>().ok()?,
        _ => return None,
    };
    T::try_from(wide).ok()
}

/// The nearest float, as the type has it.
pub(super) fn parse_float(value: &Json) -> Option<f64> {
    match value {
        Json::Number(text) => text.parse().ok().filter(|value: &f64| value.is_finite()),
        Json::String(text) => {
            Float64Type::parse(text).filter(|value| !is_number_too_large(text, *value))
        }
        _ => None,
    }
}

/// Whether `text` is a number that became infinite because its type is too small for it, and not the
/// word `inf`.
pub(crate) fn is_number_too_large(text: &str, parsed: f64) -> bool {
    parsed.is_infinite() && text.bytes().any(|byte| byte.is_ascii_digit())
}

pub(super) fn parse_decimal(value: &Json, precision: u8, scale: i8) -> Option<i128> {
    match value {
        Json::Number(text) => decimal_from_text(text, precision, scale),
        Json::String(text) => decimal_from_text(text.trim_ascii(), precision, scale),
        _ => None,
    }
}

pub(super) fn parse_date(value: &Json) -> Option<i32> {
    let text = value.as_str()?;
    if text.len() == 10 { Date32Type::parse(text) } else { None }
}

pub(super) fn parse_timestamp(value: &Json) -> Option<i64> {
    let text = value.as_str()?;
    string_to_datetime(&chrono::Utc, text).ok().map(|time| time.timestamp_micros())
}

/// `\x` and hexadecimal digits, or base64.
pub(super) fn parse_binary(text: &str) -> Option<Vec<u8>> {
    if text.starts_with("\\x") {
        return parse_hexadecimal(text);
    }
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// Hexadecimal digits, with or without `\x` before them.
pub(super) fn parse_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x").unwrap_or(text);
    let nibbles: Option<Vec<u8>> = digits
        .bytes()
        .map(|digit| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect();
    let nibbles = nibbles.filter(|nibbles| nibbles.len() % 2 == 0)?;
    Some(nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

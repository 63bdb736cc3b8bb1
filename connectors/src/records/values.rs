//! One JSON value as a value of a column type; `None` where it does not fit.

use arrow::compute::kernels::cast_utils::{Parser, parse_decimal, string_to_datetime};
use arrow::datatypes::{Date32Type, Decimal128Type, Float64Type};
use serde_json::Value;

pub(super) fn parse_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

pub(super) fn parse_integer<T: TryFrom<i128>>(value: &Value) -> Option<T> {
    let wide = match value {
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), _, _) => i128::from(value),
            (_, Some(value), _) => i128::from(value),
            // Every whole f64 below 2^64 is exact.
            (_, _, Some(value))
                if value.fract() == 0.0 && value.abs() < 18_446_744_073_709_551_616.0 =>
            {
                #[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
                let whole = value as i128;
                whole
            }
            _ => return None,
        },
        Value::String(text) => text.trim_ascii().parse::<i128>().ok()?,
        _ => return None,
    };
    T::try_from(wide).ok()
}

pub(super) fn parse_float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => {
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

pub(super) fn parse_decimal_value(value: &Value, precision: u8, scale: i8) -> Option<i128> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim_ascii().to_owned(),
        _ => return None,
    };
    decimal_from_text(&text, precision, scale)
}

/// A decimal from its text; `None` also when it has more digits before the point than fit.
pub(crate) fn decimal_from_text(text: &str, precision: u8, scale: i8) -> Option<i128> {
    // Arrow's parser counts digits in a byte.
    if text.len() > 200 {
        return None;
    }
    parse_decimal::<Decimal128Type>(text, precision, scale).ok()
}

pub(super) fn parse_date(value: &Value) -> Option<i32> {
    let text = value.as_str()?;
    if text.len() == 10 { Date32Type::parse(text) } else { None }
}

pub(super) fn parse_timestamp(value: &Value) -> Option<i64> {
    let text = value.as_str()?;
    string_to_datetime(&chrono::Utc, text).ok().map(|time| time.timestamp_micros())
}

/// `\x` and hexadecimal digits, or base64.
pub(super) fn parse_binary(text: &str) -> Option<Vec<u8>> {
    if let Some(digits) = text.strip_prefix("\\x") {
        let nibbles: Option<Vec<u8>> = digits
            .bytes()
            .map(|digit| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let nibbles = nibbles.filter(|nibbles| nibbles.len() % 2 == 0)?;
        return Some(nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect());
    }
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

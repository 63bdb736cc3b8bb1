//! Values in messages.

use arrow::datatypes::{DataType, Field};
use serde_json::Value;

use crate::types::{is_json, type_name};

/// Why a value is none of `field`. `shown` stands for its `text` in the message.
pub(crate) fn misfit(text: &str, shown: &str, field: &Field) -> String {
    let name = type_name(field.data_type(), is_json(field));
    let is_number =
        || text.parse::<f64>().is_ok() && text.contains(|digit: char| digit.is_ascii_digit());
    if matches!(field.data_type(), DataType::Decimal128(_, _)) && is_number() {
        return format!("{shown} does not fit {name} exactly");
    }
    let article = if name.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" };
    format!("{shown} is not {article} {name}")
}

/// `text` in quotes, short enough for a message.
pub(crate) fn quoted(text: &str) -> String {
    shorten(&Value::String(text.to_owned()).to_string())
}

pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

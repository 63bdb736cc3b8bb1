//! Values in messages.

use serde_json::Value;

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

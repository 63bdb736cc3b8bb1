//! Pieces of error messages.

use crate::Redactor;

/// How much of an answer's body is shown.
const EXCERPT_CHARACTERS: usize = 500;

/// The start of a body, on one line, without secrets.
pub(super) fn excerpt(body: &[u8], redactor: &Redactor) -> String {
    // Redacted before it is cut, so that no half of a secret remains at the end.
    let window = &body[..body.len().min(16 * EXCERPT_CHARACTERS)];
    let text = redactor.redact(&String::from_utf8_lossy(window));
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        return "(empty body)".to_owned();
    }
    if let Some((end, _)) = line.char_indices().nth(EXCERPT_CHARACTERS) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// An error with everything below it: `error sending request: connection refused`. The URL of a
/// `reqwest` error is not shown, since its query may hold an API key.
pub(super) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut current = Some(error);
    while let Some(error) = current {
        let text = match error.downcast_ref::<reqwest::Error>() {
            Some(error) => without_url(error),
            None => error.to_string(),
        };
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
        current = error.source();
    }
    parts.join(": ")
}

fn without_url(error: &reqwest::Error) -> String {
    let text = error.to_string();
    match error.url() {
        Some(url) => text.replace(&format!(" for url ({url})"), "").replace(url.as_str(), "…"),
        None => text,
    }
}

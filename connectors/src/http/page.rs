//! One page: from the bytes of an answer to its records, or to the reason why it is none.

use reqwest::StatusCode;
use serde_json::error::Category;
use serde_json_path::JsonPath;

use super::connection::Api;
use super::fetch::{Answer, Failure};
use super::message::excerpt;
use crate::records::Json;
use crate::{ConnectorError, ErrorKind};

/// Where the records of a page are.
#[derive(Debug)]
pub(super) enum RecordsPath {
    /// The elements of an array, or the one object that the page is.
    Whole,
    /// `$.a.b[*]` or `$.a.b`: keys down to an array, whose elements are moved out, not copied.
    Array { keys: Vec<String>, written: String },
    /// Anything else. `container` is the path without a trailing `[*]`: it must match something,
    /// which tells a page without records from an answer that is no page.
    Query { path: JsonPath, container: Option<JsonPath>, written: String },
}

pub(super) fn json_path(field: &str, text: &str) -> Result<JsonPath, ConnectorError> {
    JsonPath::parse(text).map_err(|cause| {
        ConnectorError::config(format!(
            "{field}: `{text}` is not a JSONPath ({cause}): write it like $.data[*]"
        ))
    })
}

impl RecordsPath {
    pub(super) fn new(written: Option<&str>) -> Result<Self, ConnectorError> {
        let Some(written) = written.map(str::trim).filter(|path| !path.is_empty()) else {
            return Ok(RecordsPath::Whole);
        };
        let path = json_path("records", written)?;
        let written = written.to_owned();
        let container = written.strip_suffix("[*]").or_else(|| written.strip_suffix(".*"));
        let keys = container
            .unwrap_or(&written)
            .strip_prefix('$')
            .filter(|rest| rest.is_empty() || rest.starts_with('.'))
            .map(|rest| rest.split('.').skip(1).map(str::to_owned).collect::<Vec<_>>())
            .filter(|keys| !written.ends_with(".*") && keys.iter().all(|key| is_plain_key(key)));
        Ok(match (keys, container) {
            (Some(keys), _) if !(keys.is_empty() && container.is_none()) => {
                RecordsPath::Array { keys, written }
            }
            (Some(_), _) => RecordsPath::Whole,
            (None, Some(container)) => RecordsPath::Query {
                container: Some(json_path("records", container)?),
                path,
                written,
            },
            (None, None) => RecordsPath::Query { path, container: None, written },
        })
    }

    /// Takes the records out of a page. The error says what the page has instead.
    pub(super) fn take(&self, mut page: Json) -> Result<Vec<Json>, String> {
        match self {
            RecordsPath::Whole => match page {
                Json::Array(records) => Ok(records),
                Json::Object(_) => Ok(vec![page]),
                other => Err(format!("the page is {}, not an array or object", kind(&other))),
            },
            RecordsPath::Array { keys, written } => {
                let mut place = Some(&mut page);
                for key in keys {
                    place = place.and_then(|value| value.get_mut(key.as_str()));
                }
                match place.map(Json::take) {
                    Some(Json::Array(records)) => Ok(records),
                    // What some APIs answer instead of an empty array.
                    Some(Json::Null) => Ok(Vec::new()),
                    Some(record @ Json::Object(_)) if !written.ends_with("[*]") => Ok(vec![record]),
                    Some(other) => Err(format!(
                        "the records path {written} leads to {}, not to an array",
                        kind(&other)
                    )),
                    None => Err(no_match(written, &page)),
                }
            }
            RecordsPath::Query { path, container, written } => {
                let records = page.query(path);
                let is_page = match container {
                    Some(container) => !page.query(container).is_empty(),
                    None => !records.is_empty(),
                };
                if !is_page {
                    return Err(no_match(written, &page));
                }
                if let [Json::Array(records)] = records.as_slice() {
                    return Ok(records.clone());
                }
                Ok(records.into_iter().cloned().collect())
            }
        }
    }
}

fn is_plain_key(key: &str) -> bool {
    let mut characters = key.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|character| character.is_ascii_alphanumeric() || character == '_')
}

fn no_match(written: &str, page: &Json) -> String {
    let has = match page {
        Json::Object(fields) if fields.is_empty() => "the page is an empty object".to_owned(),
        Json::Object(fields) => {
            let keys: Vec<_> = fields.keys().take(20).map(String::as_str).collect();
            format!("the page is an object with {}", keys.join(", "))
        }
        Json::Array(items) => format!("the page is an array of {} elements", items.len()),
        other => format!("the page is {}", kind(other)),
    };
    format!("the records path {written} matches nothing: {has}")
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

impl Api {
    /// The JSON of a successful answer. An error page with status 200 is an error.
    pub(super) fn json(
        &self,
        answer: &Answer,
        label: &str,
        error_path: Option<&JsonPath>,
    ) -> Result<Json, Failure> {
        if answer.status == StatusCode::NO_CONTENT {
            return Ok(Json::Array(Vec::new()));
        }
        let status = answer.status;
        let said = || excerpt(&answer.body, &self.redactor);
        let fail = |text: String| self.error(ErrorKind::Data, text);
        let content_type = answer.content_type();
        if content_type.starts_with("text/html") {
            return Err(Failure::last(fail(format!(
                "{label} answered {status} with an HTML page instead of JSON (a login or error \
                 page?): check `base_url`, `path` and `auth`: {}",
                said()
            ))));
        }
        let text = answer.body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&answer.body);
        let page: Json = Json::parse(text).map_err(|cause| {
            if text.is_empty() {
                return Failure::transient(fail(format!(
                    "{label} answered {status} with an empty body instead of JSON"
                )));
            }
            if cause.classify() == Category::Eof {
                return Failure::transient(fail(format!(
                    "{label} answered {status} with JSON that ends too early, after {} bytes \
                     ({cause})",
                    answer.body.len()
                )));
            }
            let content_type =
                if content_type.is_empty() { "no content type" } else { content_type };
            Failure::last(fail(format!(
                "{label} answered {status} with something that is not JSON ({content_type}; \
                 {cause}): check `base_url` and `path`: {}",
                said()
            )))
        })?;
        if let Some(error_path) = error_path
            && let Some(error) = page.query(error_path).iter().find(|found| !found.is_null())
        {
            let error = excerpt(error.to_string().as_bytes(), &self.redactor);
            return Err(Failure::last(fail(format!(
                "{label} answered {status}, but the page holds an error (error_path): {error}"
            ))));
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn take(path: Option<&str>, page: Value) -> Result<Vec<Value>, String> {
        let records = RecordsPath::new(path).expect("a path").take(page.into())?;
        Ok(records
            .iter()
            .map(|record| serde_json::from_str(&record.to_string()).expect("JSON"))
            .collect())
    }

    #[test]
    fn records_and_cursors_keep_every_digit() {
        let text = r#"{"data": [{"id": 0.1234567890123456789}], "next": 123456789012345678901}"#;
        let page = Json::parse(text.as_bytes()).expect("JSON");
        for path in ["$.data[*]", "$.data[?@.id]"] {
            let records = RecordsPath::new(Some(path)).expect("a path").take(page.clone());
            assert_eq!(records.expect("records")[0].to_string(), r#"{"id":0.1234567890123456789}"#);
        }
        let pager = crate::http::pagination::Pager::new(&weir_spec::Pagination::Cursor {
            cursor_path: "$.next".to_owned(),
            cursor_param: "after".to_owned(),
        });
        let next = pager.expect("a pager").continuation(&page, &reqwest::header::HeaderMap::new());
        let cursor = "123456789012345678901".to_owned();
        assert_eq!(next, Ok(crate::http::pagination::Continuation::Cursor(cursor)));
    }

    #[test]
    fn records_are_found() {
        assert_eq!(take(None, json!([1, 2])).unwrap(), [1, 2]);
        assert_eq!(take(None, json!({"a": 1})).unwrap(), [json!({"a": 1})]);
        assert_eq!(take(Some("$"), json!([1, 2])).unwrap(), [1, 2]);
        assert_eq!(take(Some("$[*]"), json!([1, 2])).unwrap(), [1, 2]);
        assert_eq!(take(Some("$.data[*]"), json!({"data": [1, 2]})).unwrap(), [1, 2]);
        assert_eq!(take(Some("$.data"), json!({"data": [1, 2]})).unwrap(), [1, 2]);
        assert_eq!(take(Some("$.data"), json!({"data": {"a": 1}})).unwrap(), [json!({"a": 1})]);
        assert_eq!(take(Some("$.a.b[*]"), json!({"a": {"b": []}})).unwrap(), [0; 0]);
        assert_eq!(take(Some("$.data[*]"), json!({"data": null})).unwrap(), [0; 0]);
        assert_eq!(take(Some("$['a b'][*]"), json!({"a b": [3]})).unwrap(), [3]);
        assert_eq!(take(Some("$['a b'][*]"), json!({"a b": []})).unwrap(), [0; 0]);
        assert_eq!(
            take(Some("$.e[*].node"), json!({"e": [{"node": 1}, {"node": 2}]})).unwrap(),
            [1, 2]
        );
    }

    #[test]
    fn missing_records_are_an_error_that_names_what_came() {
        let error = take(Some("$.data[*]"), json!({"error": "x", "code": 3})).unwrap_err();
        assert_eq!(
            error,
            "the records path $.data[*] matches nothing: the page is an object with error, code"
        );
        assert!(take(Some("$.data[*]"), json!({"data": 3})).unwrap_err().contains("a number"));
        assert!(take(Some("$['d'][*]"), json!({})).unwrap_err().contains("empty object"));
        assert!(take(None, json!("x")).unwrap_err().contains("a text"));
    }
}

//! How one page leads to the next, and how far a reading has come.
//!
//! ```text
//! first ─▶ page ─▶ (cursor | link | number | offset) ─▶ page ─▶ … ─▶ End
//! ```

use reqwest::header::{HeaderMap, LINK};
use serde::{Deserialize, Serialize};
use serde_json_path::JsonPath;
use url::Url;
use weir_spec::Pagination;

use super::page::json_path;
use crate::records::Json;
use crate::{ConnectorError, Position};

/// What the next request asks for. Part of [`Progress`], so it holds no credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PageRequest {
    /// The request as the node describes it.
    First,
    Cursor(String),
    /// Path and query on the connection's own host, without an API key.
    Link(String),
    Number(u64),
    Offset(u64),
}

/// A position of the source: serialised as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// `None`: everything has been read.
    pub(super) next: Option<PageRequest>,
    /// Pages read so far.
    pub(super) pages: u64,
    /// Hash of the records of the page before `next`, to notice a page that repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_page: Option<String>,
}

impl Progress {
    pub(super) fn position(&self) -> Position {
        Position(serde_json::to_string(self).expect("a progress has only string keys"))
    }

    pub(super) fn parse(position: &Position) -> Result<Self, ConnectorError> {
        serde_json::from_str(&position.0).map_err(|cause| {
            ConnectorError::internal(format!(
                "the position `{}` is not one of an HTTP source: {cause}",
                position.0
            ))
        })
    }
}

impl std::fmt::Display for PageRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PageRequest::First => write!(f, "the first page"),
            PageRequest::Cursor(cursor) => write!(f, "cursor \"{cursor}\""),
            PageRequest::Link(link) => write!(f, "link {link}"),
            PageRequest::Number(number) => write!(f, "page number {number}"),
            PageRequest::Offset(offset) => write!(f, "offset {offset}"),
        }
    }
}

/// The pagination of a node, with its paths parsed.
#[derive(Debug)]
pub(super) enum Pager {
    None,
    Cursor { path: JsonPath, written: String, parameter: String },
    HeaderCursor { header: String, parameter: String },
    NextLink { path: JsonPath, written: String },
    LinkHeader,
    PageNumber { parameter: String, start: u64, size_parameter: Option<String>, size: Option<u64> },
    Offset { parameter: String, limit_parameter: String, limit: u64 },
}

/// What a page's body or headers say about the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Continuation {
    Cursor(String),
    Link(String),
    /// Nothing, or a style in which the page's size decides.
    None,
}

impl Pager {
    pub(super) fn new(pagination: &Pagination) -> Result<Self, ConnectorError> {
        Ok(match pagination {
            Pagination::None => Pager::None,
            Pagination::Cursor { cursor_path, cursor_param } => Pager::Cursor {
                path: json_path("cursor_path", cursor_path)?,
                written: cursor_path.clone(),
                parameter: cursor_param.clone(),
            },
            Pagination::HeaderCursor { header, cursor_param } => {
                Pager::HeaderCursor { header: header.clone(), parameter: cursor_param.clone() }
            }
            Pagination::NextLink { next_path } => Pager::NextLink {
                path: json_path("next_path", next_path)?,
                written: next_path.clone(),
            },
            Pagination::LinkHeader => Pager::LinkHeader,
            Pagination::PageNumber { page_param, start, size_param, page_size } => {
                Pager::PageNumber {
                    parameter: page_param.clone(),
                    start: *start,
                    size_parameter: size_param.clone(),
                    size: *page_size,
                }
            }
            Pagination::Offset { offset_param, limit_param, limit } => Pager::Offset {
                parameter: offset_param.clone(),
                limit_parameter: limit_param.clone(),
                limit: (*limit).max(1),
            },
        })
    }

    pub(super) fn first(&self) -> PageRequest {
        match self {
            Pager::PageNumber { start, .. } => PageRequest::Number(*start),
            Pager::Offset { .. } => PageRequest::Offset(0),
            _ => PageRequest::First,
        }
    }

    /// Query parameters that ask for `page`, besides the node's own.
    pub(super) fn parameters(&self, page: &PageRequest) -> Vec<(&str, String)> {
        match (self, page) {
            (
                Pager::Cursor { parameter, .. } | Pager::HeaderCursor { parameter, .. },
                PageRequest::Cursor(cursor),
            ) => vec![(parameter, cursor.clone())],
            (
                Pager::PageNumber { parameter, size_parameter, size, .. },
                PageRequest::Number(number),
            ) => {
                let mut parameters = vec![(parameter.as_str(), number.to_string())];
                if let (Some(size_parameter), Some(size)) = (size_parameter, size) {
                    parameters.push((size_parameter, size.to_string()));
                }
                parameters
            }
            (Pager::Offset { parameter, limit_parameter, limit }, PageRequest::Offset(offset)) => {
                vec![(parameter, offset.to_string()), (limit_parameter, limit.to_string())]
            }
            _ => Vec::new(),
        }
    }

    /// Finds the cursor or link of the next page. The error says what is there instead.
    pub(super) fn continuation(
        &self,
        body: &Json,
        headers: &HeaderMap,
    ) -> Result<Continuation, String> {
        Ok(match self {
            Pager::Cursor { path, written, .. } => match scalar(path, written, body)? {
                Some(cursor) => Continuation::Cursor(cursor),
                None => Continuation::None,
            },
            Pager::HeaderCursor { header, .. } => match headers.get(header) {
                Some(value) => match value.to_str() {
                    Ok("") => Continuation::None,
                    Ok(cursor) => Continuation::Cursor(cursor.to_owned()),
                    Err(_) => return Err(format!("header {header} is not plain text")),
                },
                None => Continuation::None,
            },
            Pager::NextLink { path, written } => match scalar(path, written, body)? {
                Some(link) => Continuation::Link(link),
                None => Continuation::None,
            },
            Pager::LinkHeader => {
                let mut links =
                    headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
                match links.find_map(next_of_link_header) {
                    Some(link) => Continuation::Link(link.to_owned()),
                    None => Continuation::None,
                }
            }
            Pager::None | Pager::PageNumber { .. } | Pager::Offset { .. } => Continuation::None,
        })
    }

    /// The request after a page that had `records` records. A link is already checked and
    /// stripped of credentials.
    pub(super) fn next(
        &self,
        page: &PageRequest,
        continuation: Continuation,
        records: u64,
    ) -> Option<PageRequest> {
        match (self, page, continuation) {
            (_, _, Continuation::Cursor(cursor)) => Some(PageRequest::Cursor(cursor)),
            (_, _, Continuation::Link(link)) => Some(PageRequest::Link(link)),
            (Pager::PageNumber { size, .. }, PageRequest::Number(number), _) => (records > 0
                && records >= size.unwrap_or(1))
            .then(|| PageRequest::Number(number + 1)),
            (Pager::Offset { limit, .. }, PageRequest::Offset(offset), _) => {
                (records >= *limit).then(|| PageRequest::Offset(offset + records))
            }
            _ => None,
        }
    }

    /// The size that a page was asked to have, where the end is told by a smaller one.
    pub(super) fn page_size(&self) -> Option<u64> {
        match self {
            Pager::PageNumber { size, .. } => *size,
            Pager::Offset { limit, .. } => Some(*limit),
            _ => None,
        }
    }

    /// The request that shows whether a short first page was really the last: an API that gives
    /// fewer records than were asked for would otherwise lose all others in silence.
    pub(super) fn probe(&self, page: &PageRequest, records: u64) -> Option<PageRequest> {
        let short = records > 0 && records < self.page_size()?;
        match page {
            PageRequest::Number(number) if short => Some(PageRequest::Number(number + 1)),
            PageRequest::Offset(offset) if short => Some(PageRequest::Offset(offset + records)),
            _ => None,
        }
    }

    /// For people.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Pager::None => "one page",
            Pager::Cursor { .. } => "pages by a cursor in the body",
            Pager::HeaderCursor { .. } => "pages by a cursor in a header",
            Pager::NextLink { .. } => "pages by a link in the body",
            Pager::LinkHeader => "pages by the Link header",
            Pager::PageNumber { .. } => "pages by number",
            Pager::Offset { .. } => "pages by offset",
        }
    }
}

/// A cursor or link in the body. Missing, `null`, `false` and the empty text mean the end.
fn scalar(path: &JsonPath, written: &str, body: &Json) -> Result<Option<String>, String> {
    let found = body.query(path);
    if found.len() > 1 {
        return Err(format!("{written} matches more than one value: it must match one"));
    }
    match found.first() {
        None | Some(Json::Null | Json::Bool(false)) => Ok(None),
        Some(Json::String(text)) => Ok((!text.is_empty()).then(|| text.clone())),
        Some(Json::Number(digits)) => Ok(Some(digits.to_string())),
        Some(Json::Bool(true)) => Err(format!("{written} is `true`, not a cursor or a link")),
        Some(Json::Array(_)) => Err(format!("{written} is an array, not a cursor or a link")),
        Some(Json::Object(_)) => Err(format!("{written} is an object, not a cursor or a link")),
    }
}

/// RFC 8288: `<https://…?page=2>; rel="next", <…>; rel="last"`.
fn next_of_link_header(mut header: &str) -> Option<&str> {
    while let Some(start) = header.find('<') {
        let end = start + header[start..].find('>')?;
        let target = &header[start + 1..end];
        // Parameters reach up to the next link, which begins with `<` behind a comma.
        let rest = &header[end + 1..];
        let parameters = &rest[..rest.find('<').unwrap_or(rest.len())];
        let is_next = parameters.split(';').filter_map(|part| part.split_once('=')).any(
            |(name, relations)| {
                name.trim().eq_ignore_ascii_case("rel")
                    && relations
                        .trim_matches([' ', '\t', ',', '"'])
                        .split_ascii_whitespace()
                        .any(|relation| relation.eq_ignore_ascii_case("next"))
            },
        );
        if is_next {
            return Some(target);
        }
        header = rest;
    }
    None
}

/// Checks that a link stays on the origin of `base`, and resolves it against the page it stood in.
///
/// A link to `http` on the host of an `https` connection is upgraded: APIs behind a proxy that ends
/// TLS write such links, and the upgrade sends nothing to anybody else.
pub(super) fn resolve_link(base: &Url, page: &Url, link: &str) -> Result<Url, String> {
    let mut next = page.join(link).map_err(|cause| format!("the next link is no URL: {cause}"))?;
    if next.host() == base.host()
        && base.scheme() == "https"
        && base.port().is_none()
        && next.scheme() == "http"
        && next.port().is_none()
    {
        next.set_scheme("https").expect("http and https are exchangeable");
    }
    if next.origin() != base.origin() {
        return Err(format!(
            "the next link leads to {}, away from {}: it is not followed, because it would be \
             sent the credentials; if that host belongs to the API, use it in `base_url`",
            next.origin().ascii_serialization(),
            base.origin().ascii_serialization()
        ));
    }
    next.set_fragment(None);
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_header_finds_next_among_others() {
        let header = r#"<https://a.example/?page=1>; rel="prev", <https://a.example/?q=a,b&page=3>; title="x; y"; rel="last next""#;
        assert_eq!(next_of_link_header(header), Some("https://a.example/?q=a,b&page=3"));
        assert_eq!(next_of_link_header("</items?page=2>; rel=next"), Some("/items?page=2"));
        assert_eq!(next_of_link_header(r#"<https://a.example/>; rel="last""#), None);
        assert_eq!(next_of_link_header("<broken"), None);
    }

    #[test]
    fn link_to_another_origin_is_refused() {
        let base = Url::parse("https://api.example.com/v1").expect("a URL");
        let page = Url::parse("https://api.example.com/v1/items?page=1").expect("a URL");
        let resolve = |link| resolve_link(&base, &page, link).map(|url| url.as_str().to_owned());
        assert_eq!(resolve("?page=2").unwrap(), "https://api.example.com/v1/items?page=2");
        assert_eq!(resolve("/v1/b#x").unwrap(), "https://api.example.com/v1/b");
        assert_eq!(resolve("http://api.example.com/v1/b").unwrap(), "https://api.example.com/v1/b");
        for link in ["https://evil.example/", "//evil.example/", "https://api.example.com:444/"] {
            assert!(resolve(link).unwrap_err().contains("away from https://api.example.com"));
        }
    }

    #[test]
    fn progress_round_trips() {
        for next in [
            None,
            Some(PageRequest::First),
            Some(PageRequest::Cursor("a\"b".to_owned())),
            Some(PageRequest::Link("/items?page=2".to_owned())),
            Some(PageRequest::Number(7)),
            Some(PageRequest::Offset(100)),
        ] {
            let progress = Progress { next, pages: 3, last_page: Some("ab".to_owned()) };
            assert_eq!(Progress::parse(&progress.position()).unwrap(), progress);
        }
    }
}

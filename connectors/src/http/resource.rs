//! What a node reads from an API: its request with templates rendered, page by page.

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;
use serde_json_path::JsonPath;
use url::Url;
use weir_spec::{HttpMethod, HttpSource, TemplateText};

use super::connection::{Api, header};
use super::fetch::{Answer, Body, Failure, Request};
use super::page::{RecordsPath, json_path};
use super::pagination::{Continuation, PageRequest, Pager, resolve_link};
use crate::records::Json;
use crate::{ConnectorContext, ConnectorError, ErrorKind};

/// Stands for the path of `base_url` in a link that is kept.
const BASE_PATH: &str = "{base}";

/// A node with its templates rendered. Does no I/O until the first page.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) api: Api,
    pub(super) pager: Pager,
    pub(super) max_pages: u64,
    method: Method,
    /// Path and the node's own query, without page parameters and credentials.
    url: Url,
    headers: HeaderMap,
    body: Option<Value>,
    records: RecordsPath,
    error_path: Option<JsonPath>,
    /// The query parameter that carries the watermark.
    since_parameter: Option<String>,
}

/// One page as it came.
pub(super) struct FetchedPage {
    pub(super) records: Vec<Json>,
    pub(super) next: Option<PageRequest>,
    /// For messages.
    pub(super) label: String,
}

impl Resource {
    pub(super) fn open(
        node: &HttpSource,
        context: &ConnectorContext,
    ) -> Result<Self, ConnectorError> {
        let api = Api::open(&node.connection, context)?;
        let mut url = join(&api.base_url, &context.resolve(&node.path)?)?;
        for (name, value) in &node.query {
            set_parameter(&mut url, name, &context.resolve(value)?);
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &node.headers {
            let (name, value) = header(name, &context.resolve(value)?)?;
            headers.insert(name, value);
        }
        let body = match &node.body {
            Some(body) => Some(resolve_json(body, context)?),
            None => None,
        };
        Ok(Self {
            pager: Pager::new(&node.pagination)?,
            max_pages: node.max_pages,
            method: match node.method {
                HttpMethod::Get => Method::GET,
                HttpMethod::Post => Method::POST,
            },
            url,
            headers,
            body,
            records: RecordsPath::new(node.records.as_deref())?,
            error_path: match &node.error_path {
                Some(path) => Some(json_path("error_path", path)?),
                None => None,
            },
            since_parameter: node.incremental.as_ref().and_then(|since| since.param.clone()),
            api,
        })
    }

    /// `GET https://api.example.com/v2/items`: without any query. For messages, not for the plan.
    pub(super) fn label(&self) -> String {
        format!("{} {}{}", self.method, self.url.origin().ascii_serialization(), self.url.path())
    }

    /// Reads one page. `number` counts from 1 and is for messages.
    pub(super) async fn fetch_page(
        &self,
        page: &PageRequest,
        number: u64,
        since: Option<&str>,
    ) -> Result<FetchedPage, ConnectorError> {
        let url = self.page_url(page, since)?;
        let label = match page {
            PageRequest::First => self.label(),
            page => format!("{}, page {number} ({page})", self.label()),
        };
        let request = Request {
            method: self.method.clone(),
            url: url.clone(),
            headers: self.headers.clone(),
            body: self.body.clone().map_or(Body::None, Body::Json),
            label: label.clone(),
        };
        self.api.fetch(&request, |answer| self.read(answer, page, &url, &label)).await
    }

    fn read(
        &self,
        answer: &Answer,
        page: &PageRequest,
        url: &Url,
        label: &str,
    ) -> Result<FetchedPage, Failure> {
        let body = self.api.json(answer, label, self.error_path.as_ref())?;
        let fail = |reason: String| {
            Failure::last(self.api.error(ErrorKind::Data, format!("{label}: {reason}")))
        };
        let continuation = match self.pager.continuation(&body, &answer.headers).map_err(fail)? {
            Continuation::Link(link) => {
                Continuation::Link(self.clean_link(url, &link).map_err(fail)?)
            }
            other => other,
        };
        let records = match answer.body.is_empty() {
            true => Vec::new(),
            false => self.records.take(body).map_err(fail)?,
        };
        let next = self.pager.next(page, continuation, records.len() as u64);
        Ok(FetchedPage { records, next, label: label.to_owned() })
    }

    fn page_url(&self, page: &PageRequest, since: Option<&str>) -> Result<Url, ConnectorError> {
        if let PageRequest::Link(link) = page {
            let link = match link.strip_prefix(BASE_PATH) {
                Some(rest) => format!("{}{rest}", self.base_path()),
                None => link.clone(),
            };
            return resolve_link(&self.api.base_url, &self.url, &link)
                .map_err(|reason| self.api.error(ErrorKind::Data, reason));
        }
        let mut url = self.url.clone();
        if let (Some(parameter), Some(since)) = (&self.since_parameter, since) {
            set_parameter(&mut url, parameter, since);
        }
        for (name, value) in self.pager.parameters(page) {
            set_parameter(&mut url, name, &value);
        }
        Ok(url)
    }

    fn base_path(&self) -> &str {
        self.api.base_url.path().trim_end_matches('/')
    }

    /// A link as it may be kept: on our host, without the API key and the path of `base_url`
    /// (which may hold a secret); they are added again when the link is followed.
    fn clean_link(&self, page: &Url, link: &str) -> Result<String, String> {
        let mut next = resolve_link(&self.api.base_url, page, link)?;
        if let Some(name) = self.api.auth.query_parameter() {
            remove_parameter(&mut next, name);
        }
        if let Some((name, _)) =
            next.query_pairs().find(|(_, value)| self.api.auth.is_secret(value))
        {
            return Err(format!(
                "the next link carries the credential in its parameter `{name}`, and positions \
                 are stored: use `auth: {{ api_key: {{ query: {name}, … }} }}`, so that it can be \
                 taken out, or another pagination type"
            ));
        }
        let link = &next[url::Position::BeforePath..];
        Ok(match link.strip_prefix(self.base_path()) {
            Some(rest) if rest.starts_with('/') => format!("{BASE_PATH}{rest}"),
            _ => link.to_owned(),
        })
    }
}

/// `path` below `base`, whose own path is kept. `path` may have a query.
fn join(base: &Url, path: &str) -> Result<Url, ConnectorError> {
    if path.contains("://") {
        return Err(ConnectorError::config(format!(
            "path `{path}` is a whole URL: write only the part behind the connection's base_url"
        )));
    }
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut url = base.clone();
    if !path.trim_matches('/').is_empty() {
        let joined =
            format!("{}/{}", base.path().trim_end_matches('/'), path.trim_start_matches('/'));
        url.set_path(&joined);
    }
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        set_parameter(&mut url, &name, &value);
    }
    Ok(url)
}

fn set_parameter(url: &mut Url, name: &str, value: &str) {
    remove_parameter(url, name);
    url.query_pairs_mut().append_pair(name, value);
}

fn remove_parameter(url: &mut Url, name: &str) {
    if url.query_pairs().all(|(other, _)| other != name) {
        return;
    }
    let kept: Vec<_> = url.query_pairs().into_owned().filter(|(other, _)| other != name).collect();
    if kept.is_empty() {
        url.set_query(None);
    } else {
        url.query_pairs_mut().clear().extend_pairs(kept);
    }
}

/// Renders the templates in all strings of a request body.
fn resolve_json(value: &Value, context: &ConnectorContext) -> Result<Value, ConnectorError> {
    Ok(match value {
        Value::String(text) => Value::String(context.resolve(&TemplateText::new(text))?),
        Value::Array(items) => Value::Array(
            items.iter().map(|item| resolve_json(item, context)).collect::<Result<_, _>>()?,
        ),
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, field)| Ok((key.clone(), resolve_json(field, context)?)))
                .collect::<Result<_, ConnectorError>>()?,
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_joined_below_the_base() {
        let join = |base: &str, path: &str| {
            super::join(&Url::parse(base).expect("a URL"), path).expect("a path").to_string()
        };
        assert_eq!(join("https://a.example/v1", "/items"), "https://a.example/v1/items");
        assert_eq!(join("https://a.example/v1/", "items?x=1"), "https://a.example/v1/items?x=1");
        assert_eq!(join("https://a.example", ""), "https://a.example/");
        assert_eq!(join("https://a.example/?k=1", "i?x=a b"), "https://a.example/i?k=1&x=a+b");
    }

    #[test]
    fn parameter_is_replaced_not_doubled() {
        let mut url = Url::parse("https://a.example/?page=1&x=2").expect("a URL");
        set_parameter(&mut url, "page", "2");
        assert_eq!(url.as_str(), "https://a.example/?x=2&page=2");
        remove_parameter(&mut url, "x");
        remove_parameter(&mut url, "page");
        assert_eq!(url.as_str(), "https://a.example/");
    }
}

//! A REST API for tests: every pagination style, every way of authentication, every misbehaviour.
//!
//! Each path serves the same records, 20 a page unless `size` says otherwise. Any path takes:
//!
//! - `auth=bearer|basic|header|query|oauth`: refuse requests without the credentials below;
//! - `fault=…`: misbehave (see `Fault`) the first `times` times (default 1, or `always`) that the
//!   very same request comes, and only for requests whose query contains `at`;
//! - `gzip=1`: compress; `updated_since=…`: only records whose `updated_at` is not before.
//!
//! `cargo run -p weir-tests --bin rest-test-server` starts it for use by hand.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub const BEARER_TOKEN: &str = "canary-bearer-token-7c1d";
pub const USERNAME: &str = "ada";
pub const PASSWORD: &str = "canary-password-55aa";
/// Sent as header `X-Api-Key` or query parameter `api_key`.
pub const API_KEY: &str = "canary-api-key-91fe";
pub const CLIENT_ID: &str = "client";
pub const CLIENT_SECRET: &str = "canary-client-secret-02bb";
/// Records without an end, in the paths that have none.
const PAGE: usize = 20;

/// A running server on a free port of 127.0.0.1. Dropping it stops it.
#[derive(Debug)]
pub struct RestServer {
    url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    url: String,
    state: Mutex<ServerState>,
}

#[derive(Debug, Default)]
struct ServerState {
    /// How many records there are.
    records: usize,
    /// Records with another name, in the order of their updates.
    updates: Vec<(usize, String)>,
    /// Path and query of every request, in order, with its time.
    requests: Vec<(Instant, String)>,
    /// How often each very same request has been answered with a fault.
    faults: HashMap<String, usize>,
    /// Issued tokens with the requests that they still admit.
    tokens: BTreeMap<String, usize>,
}

impl RestServer {
    /// Serves `records` records.
    pub async fn start(records: usize) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let state = Mutex::new(ServerState { records, ..ServerState::default() });
        let shared = Arc::new(Shared { url: url.clone(), state });
        let router = axum::Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serving ends only with the task");
        });
        Ok(Self { url, shared, task })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Adds new records behind those that are there.
    pub fn add(&self, records: usize) {
        self.shared.state.lock().expect("no holder of this lock panics").records += records;
    }

    /// Renames a record: it becomes one minute newer than all others.
    pub fn update(&self, index: usize, name: &str) {
        let mut state = self.shared.state.lock().expect("no holder of this lock panics");
        state.updates.push((index, name.to_owned()));
    }

    /// How many requests a path has had.
    pub fn calls(&self, path: &str) -> usize {
        let prefix = format!("{path}?");
        let matches = |uri: &str| uri == path || uri.starts_with(&prefix);
        self.requests().iter().filter(|uri| matches(uri)).count()
    }

    /// Path and query of every request so far.
    pub fn requests(&self) -> Vec<String> {
        let state = self.shared.state.lock().expect("no holder of this lock panics");
        state.requests.iter().map(|(_, uri)| uri.clone()).collect()
    }

    /// When each request so far came.
    pub fn request_times(&self) -> Vec<Instant> {
        let state = self.shared.state.lock().expect("no holder of this lock panics");
        state.requests.iter().map(|(time, _)| *time).collect()
    }
}

impl Drop for RestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Record `index` (from 0), as every path serves it.
pub fn record(index: usize) -> Value {
    json!({
        "id": index,
        "name": format!("record {index}"),
        "amount": index as f64 * 1.5,
        "updated_at": updated_at(index),
        "nested": { "even": index.is_multiple_of(2), "tags": ["a", format!("t{index}")] },
    })
}

/// One minute apart, from 2024-01-01T00:00:00Z.
pub fn updated_at(index: usize) -> String {
    let start = DateTime::parse_from_rfc3339("2024-01-01T00:00:00Z").expect("a time");
    let time = start + TimeDelta::minutes(i64::try_from(index).expect("few records"));
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The query of a request.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(uri: &Uri) -> Self {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        Self(pairs.map(|query| query.0).unwrap_or_default())
    }
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
    fn number(&self, name: &str) -> Option<usize> {
        self.get(name)?.parse().ok()
    }
    /// All parameters but `name`, which gets a new value: for links to the next page.
    fn with(&self, name: &str, value: impl std::fmt::Display) -> String {
        let encode = |text: &str| text.replace('%', "%25").replace('&', "%26").replace(' ', "%20");
        let mut pairs: Vec<String> = self
            .0
            .iter()
            .filter(|(key, _)| key != name)
            .map(|(key, value)| format!("{key}={}", encode(value)))
            .collect();
        pairs.push(format!("{name}={}", encode(&value.to_string())));
        pairs.join("&")
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let query = Query::parse(&uri);
    {
        let mut state = shared.state.lock().expect("no holder of this lock panics");
        state.requests.push((Instant::now(), uri.to_string()));
    }
    if let Some(response) = shared.refuse(&query, &headers) {
        return response;
    }
    if let Some(response) = shared.misbehave(&uri, &query).await {
        return response;
    }
    let response = shared.serve(&method, uri.path(), &query, &headers, &body);
    if query.get("gzip").is_some() { compress(response).await } else { response }
}

impl Shared {
    /// The records that the request asks for, of all pages.
    fn selected(&self, query: &Query) -> Vec<Value> {
        let since = query.get("updated_since").unwrap_or("");
        let state = self.state.lock().expect("no holder of this lock panics");
        let mut records: Vec<Value> = (0..state.records).map(record).collect();
        for (updates, (index, name)) in state.updates.iter().enumerate() {
            records[*index]["name"] = json!(name);
            records[*index]["updated_at"] = json!(updated_at(state.records + updates));
        }
        records.retain(|record| record["updated_at"].as_str().is_some_and(|time| time >= since));
        records
    }

    fn serve(
        &self,
        method: &Method,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Response {
        // `/key/<anything>/cursor` is `/cursor`, for APIs with a key in their base URL.
        let (prefix, path) = match path.strip_prefix("/key/").and_then(|rest| rest.find('/')) {
            Some(end) => path.split_at("/key/".len() + end),
            None => ("", path),
        };
        let records = self.selected(query);
        let size = query.number("size").unwrap_or(PAGE);
        let page = |start: usize, size: usize| -> Vec<Value> {
            records.iter().skip(start).take(size).cloned().collect()
        };
        let cursor = query.get("cursor").and_then(|cursor| cursor.strip_prefix('c'));
        let start = cursor.and_then(|start| start.parse().ok()).unwrap_or(0);
        let end = start + size;
        let next = (end < records.len()).then(|| format!("c{end}"));
        match path {
            "/" => json!({ "service": "test" }).into_json(),
            "/none" => Value::from(records).into_json(),
            "/object" => record(0).into_json(),
            "/empty" => json!({ "data": [], "next": null }).into_json(),
            "/cursor" => json!({ "data": page(start, size), "next": next }).into_json(),
            "/header-cursor" => {
                let response = Value::from(page(start, size)).into_json();
                match next {
                    Some(next) => ([("x-next-cursor", next)], response).into_response(),
                    None => response,
                }
            }
            "/next-link" | "/link-header" => {
                let start = query.number("start").unwrap_or(0);
                let host = if query.get("relative").is_some() { "" } else { &self.url };
                let link = (start + size < records.len())
                    .then(|| format!("{host}{prefix}{path}?{}", query.with("start", start + size)));
                if path == "/next-link" {
                    return json!({ "data": page(start, size), "links": { "next": link } })
                        .into_json();
                }
                let response = Value::from(page(start, size)).into_json();
                let first = format!("<{host}{prefix}{path}>; rel=\"first\"");
                let links = match link {
                    Some(link) => format!("{first}, <{link}>; rel=\"next\""),
                    None => first,
                };
                ([(header::LINK, links)], response).into_response()
            }
            "/pages" => {
                let number = query.number("page").unwrap_or(1).saturating_sub(1);
                Value::from(page(number * size, size)).into_json()
            }
            "/offset" => {
                let limit = query.number("limit").unwrap_or(PAGE);
                let limit = limit.min(query.number("cap").unwrap_or(usize::MAX));
                Value::from(page(query.number("offset").unwrap_or(0), limit)).into_json()
            }
            "/same-cursor" => json!({ "data": page(start, size), "next": "c20" }).into_json(),
            "/same-page" => json!({ "data": page(0, size), "next": format!("c{end}") }).into_json(),
            "/ignores-page" => Value::from(page(0, size)).into_json(),
            "/endless" => {
                let data: Vec<Value> = (start..end).map(record).collect();
                json!({ "data": data, "next": format!("c{end}") }).into_json()
            }
            "/other-host" => {
                json!({ "data": page(0, size), "links": { "next": "http://127.0.0.2:9/steal" } })
                    .into_json()
            }
            "/leaky-link" => {
                let start = query.number("start").unwrap_or(0);
                let key = query.get("api_key").unwrap_or("");
                let link = (start + size < records.len()).then(|| {
                    format!("/leaky-link?start={}&auth=query&api_key={key}", start + size)
                });
                json!({ "data": page(start, size), "links": { "next": link } }).into_json()
            }
            "/changing-schema" => {
                let mut data = page(start, size);
                for record in data.iter_mut().filter(|_| start > 0).take(3) {
                    record["id"] = json!("not a number");
                    record["surprise"] = json!(true);
                }
                json!({ "data": data, "next": next }).into_json()
            }
            "/huge" => huge(),
            "/search" => {
                let filter: Value = serde_json::from_slice(body).unwrap_or_default();
                if method != Method::POST || filter["filter"]["kind"] != "record" {
                    return (StatusCode::BAD_REQUEST, "expected a filter").into_response();
                }
                json!({ "data": page(start, size), "next": next }).into_json()
            }
            "/redirect" => redirect("/none"),
            "/redirect-away" => redirect("http://127.0.0.2:9/steal?token=x"),
            "/echo-headers" => {
                let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
                json!({
                    "user_agent": text("user-agent"),
                    "accept": text("accept"),
                    "custom": text("x-custom"),
                })
                .into_json()
            }
            "/token" => self.issue_token(query, headers, body),
            _ => (StatusCode::NOT_FOUND, "no such path").into_response(),
        }
    }

    fn refuse(&self, query: &Query, headers: &HeaderMap) -> Option<Response> {
        let authorization =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let admitted = match query.get("auth")? {
            "bearer" => authorization == Some(&format!("Bearer {BEARER_TOKEN}")),
            "basic" => {
                let credentials = STANDARD.encode(format!("{USERNAME}:{PASSWORD}"));
                authorization == Some(&format!("Basic {credentials}"))
            }
            "header" => headers.get("x-api-key").is_some_and(|key| key == API_KEY),
            "query" => query.get("api_key") == Some(API_KEY),
            "oauth" => {
                let mut state = self.state.lock().expect("no holder of this lock panics");
                let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
                match token.and_then(|token| state.tokens.get_mut(token)) {
                    Some(0) | None => false,
                    Some(uses) => {
                        *uses -= 1;
                        true
                    }
                }
            }
            _ => false,
        };
        // The answer repeats what was sent, as careless servers do.
        let sent = authorization.or(query.get("api_key")).unwrap_or("nothing");
        (!admitted)
            .then(|| (StatusCode::UNAUTHORIZED, format!("bad credentials: {sent}")).into_response())
    }

    /// `uses`: requests that a token admits; `expires_in`: seconds that it is said to live;
    /// `in_body=1`: credentials are accepted only in the body.
    fn issue_token(&self, query: &Query, headers: &HeaderMap, body: &[u8]) -> Response {
        let form = Query::parse(
            &format!("/?{}", String::from_utf8_lossy(body)).parse().expect("a form is a query"),
        );
        let credentials = STANDARD.encode(format!("{CLIENT_ID}:{CLIENT_SECRET}"));
        let admitted = if query.get("in_body").is_some() {
            form.get("client_id") == Some(CLIENT_ID)
                && form.get("client_secret") == Some(CLIENT_SECRET)
        } else {
            headers
                .get(header::AUTHORIZATION)
                .is_some_and(|value| *value == format!("Basic {credentials}"))
        };
        if !admitted || form.get("grant_type") != Some("client_credentials") {
            let error = json!({ "error": "invalid_client", "error_description": "unknown client" });
            return (StatusCode::UNAUTHORIZED, error.into_json()).into_response();
        }
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let token =
            format!("canary-token-{}-{}", state.tokens.len(), form.get("scope").unwrap_or(""));
        let token = token.replace(' ', "-");
        state.tokens.insert(token.clone(), query.number("uses").unwrap_or(usize::MAX));
        let expires_in = query.number("expires_in").unwrap_or(3600);
        json!({ "access_token": token, "token_type": "bearer", "expires_in": expires_in })
            .into_json()
    }

    async fn misbehave(&self, uri: &Uri, query: &Query) -> Option<Response> {
        let fault = query.get("fault")?;
        let times = match query.get("times") {
            Some("always") => usize::MAX,
            Some(times) => times.parse().ok()?,
            None => 1,
        };
        let asked = uri.query().unwrap_or("");
        if let Some(at) = query.get("at")
            && !asked.replacen(&format!("at={at}"), "", 1).contains(at)
        {
            return None;
        }
        {
            let mut state = self.state.lock().expect("no holder of this lock panics");
            let done = state.faults.entry(uri.to_string()).or_default();
            if *done >= times {
                return None;
            }
            *done += 1;
        }
        let text = |status: StatusCode| {
            (status, format!("{status} for {asked}, secret {API_KEY}")).into_response()
        };
        Some(match fault {
            "html" => (
                [(header::CONTENT_TYPE, "text/html; charset=utf-8")],
                "<html><body>Please log in</body></html>",
            )
                .into_response(),
            "error" => json!({ "error": "quota exceeded", "code": 17 }).into_json(),
            "error-with-data" => {
                json!({ "error": { "message": "half broken" }, "data": [] }).into_json()
            }
            "not-json" => "upstream says hello".into_response(),
            "empty" => Body::empty().into_response(),
            "cut" => ([(header::CONTENT_TYPE, "application/json")], r#"{"data": [{"id": 1}, {"id"#)
                .into_response(),
            "truncated" => truncated(),
            "slow" => {
                tokio::time::sleep(Duration::from_secs(30)).await;
                text(StatusCode::OK)
            }
            "429" => {
                ([(header::RETRY_AFTER, "1")], text(StatusCode::TOO_MANY_REQUESTS)).into_response()
            }
            "429-date" => {
                let date = Utc::now() + TimeDelta::seconds(2);
                let date = date.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
                ([(header::RETRY_AFTER, date)], text(StatusCode::TOO_MANY_REQUESTS)).into_response()
            }
            "403-limit" => {
                ([(header::RETRY_AFTER, "1")], text(StatusCode::FORBIDDEN)).into_response()
            }
            "429-long" => ([(header::RETRY_AFTER, "3600")], text(StatusCode::TOO_MANY_REQUESTS))
                .into_response(),
            status => text(StatusCode::from_bytes(status.as_bytes()).unwrap_or_default()),
        })
    }
}

trait IntoJson {
    fn into_json(self) -> Response;
}

impl IntoJson for Value {
    fn into_json(self) -> Response {
        axum::Json(self).into_response()
    }
}

fn redirect(target: &'static str) -> Response {
    (StatusCode::FOUND, [(header::LOCATION, target)]).into_response()
}

/// Promises 1,000 bytes and breaks off after a few, once those have been sent.
fn truncated() -> Response {
    let parts = futures::stream::unfold(0, async |part| match part {
        0 => Some((Ok(Bytes::from_static(b"{\"data\": [")), 1)),
        _ => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Err(std::io::Error::other("broken off")), part + 1))
        }
    });
    let mut response = Body::from_stream(parts).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, header::HeaderValue::from_static("1000"));
    response
}

/// More than 64 MiB of one page, as a stream.
fn huge() -> Response {
    let blank = Bytes::from(vec![b' '; 1 << 20]);
    let parts = futures::stream::iter((0..80).map(move |_| Ok::<_, std::io::Error>(blank.clone())));
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(parts)).into_response()
}

async fn compress(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("the body is in memory");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&body).expect("writing to memory does not fail");
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_ENCODING, header::HeaderValue::from_static("gzip"));
    Response::from_parts(head, encoder.finish().expect("writing to memory does not fail").into())
}

//! The HTTP source against a real server: right rows, or an error that says what is wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::AsArray as _;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt as _;
use indexmap::IndexMap;
use serde_json::json;
use weir_connectors::registry::open_source;
use weir_connectors::{
    ConnectorContext, ConnectorError, ErrorKind, Position, Redactor, RejectedRow, ScanRequest,
    Secrets, Source,
};
use weir_spec::{
    ColumnType, Connection, ConnectionRef, HttpAuth, HttpConnection, HttpMethod, HttpSource,
    Incremental, OnError, Pagination, RateLimit, TemplateText,
};

use crate::rest_server::{
    API_KEY, BEARER_TOKEN, CLIENT_ID, CLIENT_SECRET, PASSWORD, RestServer, USERNAME, updated_at,
};

const RECORDS: usize = 90;

async fn server() -> RestServer {
    RestServer::start(RECORDS).await.expect("a free port")
}

/// A node on `path`, which may have a query.
fn node(server: &RestServer, path: &str, pagination: Pagination) -> HttpSource {
    let wrapped = ["/cursor", "/next-link", "/same", "/endless", "/other", "/leaky", "/changing"];
    HttpSource {
        connection: ConnectionRef {
            name: None,
            config: Connection::Http(HttpConnection {
                base_url: TemplateText::new(server.url()),
                auth: None,
                headers: IndexMap::new(),
                rate_limit: None,
                timeout: Duration::from_secs(10),
                max_tasks: None,
            }),
        },
        path: TemplateText::new(path),
        method: HttpMethod::Get,
        query: IndexMap::new(),
        headers: IndexMap::new(),
        body: None,
        pagination,
        records: wrapped
            .iter()
            .any(|start| path.starts_with(start))
            .then(|| "$.data[*]".to_owned()),
        error_path: None,
        incremental: None,
        columns: Some(
            [("id", ColumnType::Int64), ("name", ColumnType::String)]
                .map(|(name, kind)| (name.to_owned(), kind))
                .into(),
        ),
        on_error: OnError::DeadLetter,
        max_errors: None,
        max_pages: 100_000,
    }
}

fn connection(node: &mut HttpSource) -> &mut HttpConnection {
    let Connection::Http(connection) = &mut node.connection.config else {
        panic!("the node has an HTTP connection")
    };
    connection
}

fn secret(name: &str) -> TemplateText {
    TemplateText::new(format!("{{{{ secret.{name} }}}}"))
}

fn context() -> ConnectorContext {
    let mut secrets = Secrets::default();
    for (name, value) in [
        ("TOKEN", BEARER_TOKEN),
        ("PASSWORD", PASSWORD),
        ("KEY", API_KEY),
        ("CLIENT", CLIENT_SECRET),
        ("WRONG", "canary-wrong-value-3e3e"),
    ] {
        secrets.file.insert(name.to_owned(), value.to_owned());
    }
    ConnectorContext::new(".", secrets, Redactor::default())
}

fn open(node: &HttpSource) -> Arc<dyn Source> {
    let source = weir_spec::Source::Http(node.clone());
    open_source("items", &source, &context()).expect("the node can be opened")
}

#[derive(Debug, Default)]
struct Reading {
    ids: Vec<i64>,
    rejected: Vec<RejectedRow>,
    /// Each position with the number of rows before it.
    positions: Vec<(Position, usize)>,
}

async fn read_from(
    node: &HttpSource,
    request: &ScanRequest,
    from: Option<&Position>,
) -> Result<Reading, ConnectorError> {
    let source = open(node);
    let splits = source.splits(request, 4).await?;
    assert_eq!(splits.len(), 1);
    let mut batches = source.open(&splits[0], request, from).await?;
    let mut reading = Reading::default();
    let mut ends_with_position = true;
    while let Some(batch) = batches.try_next().await? {
        assert!(batch.rows.num_rows() <= 8192);
        let ids = batch.rows.column_by_name("id").expect("column id");
        reading.ids.extend(ids.as_primitive::<Int64Type>().values());
        reading.rejected.extend(batch.rejected);
        ends_with_position = batch.position.is_some();
        reading.positions.extend(batch.position.map(|position| (position, reading.ids.len())));
    }
    assert!(ends_with_position || request.limit.is_some());
    Ok(reading)
}

async fn read(node: &HttpSource) -> Result<Reading, ConnectorError> {
    read_from(node, &ScanRequest::default(), None).await
}

async fn message(node: &HttpSource) -> String {
    let error = read(node).await.expect_err("this reading fails");
    let text = error.to_string();
    assert!(!text.contains("canary"), "a secret is in {text}");
    text
}

fn all() -> Vec<i64> {
    (0..RECORDS as i64).collect()
}

fn by_cursor() -> Pagination {
    Pagination::Cursor { cursor_path: "$.next".to_owned(), cursor_param: "cursor".to_owned() }
}

fn by_link() -> Pagination {
    Pagination::NextLink { next_path: "$.links.next".to_owned() }
}

fn by_number(page_size: Option<u64>) -> Pagination {
    Pagination::PageNumber {
        page_param: "page".to_owned(),
        start: 1,
        size_param: page_size.map(|_| "size".to_owned()),
        page_size,
    }
}

fn by_offset(limit: u64) -> Pagination {
    Pagination::Offset { offset_param: "offset".to_owned(), limit_param: "limit".to_owned(), limit }
}

fn styles(server: &RestServer) -> Vec<HttpSource> {
    let header = Pagination::HeaderCursor {
        header: "X-Next-Cursor".to_owned(),
        cursor_param: "cursor".to_owned(),
    };
    vec![
        node(server, "/none", Pagination::None),
        node(server, "/cursor", by_cursor()),
        node(server, "/header-cursor", header),
        node(server, "/next-link", by_link()),
        node(server, "/next-link?relative=1", by_link()),
        node(server, "/link-header", Pagination::LinkHeader),
        node(server, "/link-header?relative=1", Pagination::LinkHeader),
        node(server, "/pages", by_number(None)),
        node(server, "/pages", by_number(Some(20))),
        node(server, "/pages", by_number(Some(30))),
        node(server, "/offset", by_offset(20)),
        node(server, "/offset", by_offset(45)),
        node(server, "/cursor?gzip=1", by_cursor()),
    ]
}

#[tokio::test]
async fn every_pagination_style_reads_every_record_once() {
    let server = server().await;
    for node in styles(&server) {
        let reading = read(&node).await.unwrap_or_else(|error| panic!("{node:?}: {error}"));
        assert_eq!(reading.ids, all(), "{:?}", node.pagination);
        assert!(reading.rejected.is_empty());
    }
}

#[tokio::test]
async fn resuming_from_any_position_reads_exactly_the_rest() {
    let server = server().await;
    for node in styles(&server) {
        for (position, before) in read(&node).await.expect("rows").positions {
            let rest = read_from(&node, &ScanRequest::default(), Some(&position)).await;
            assert_eq!(rest.expect("rows").ids, all()[before..], "{position:?}");
        }
    }
}

#[tokio::test]
async fn a_page_of_more_than_a_batch_is_cut_and_has_one_position() {
    let server = RestServer::start(20_000).await.expect("a free port");
    let reading = read(&node(&server, "/none", Pagination::None)).await.expect("rows");
    assert_eq!(reading.ids, (0..20_000).collect::<Vec<i64>>());
    assert_eq!(reading.positions.len(), 1);
}

#[tokio::test]
async fn columns_are_inferred_and_frozen_with_the_split() {
    let server = server().await;
    let mut node = node(&server, "/cursor", by_cursor());
    node.columns = None;
    let description = open(&node).describe().await.expect("a description");
    let names: Vec<_> = description.schema.fields().iter().map(|field| field.name()).collect();
    assert_eq!(names, ["id", "name", "amount", "updated_at", "nested"]);
    assert!(description.resumable);
    assert!(description.notes.iter().any(|note| note.contains("inferred from the first 90")));
    let split = open(&node).splits(&ScanRequest::default(), 1).await.expect("a split").remove(0);
    let before = server.requests().len();
    let request = ScanRequest {
        columns: Some(vec!["name".to_owned(), "id".to_owned()]),
        ..ScanRequest::default()
    };
    let batches: Vec<_> = open(&node)
        .open(&split, &request, None)
        .await
        .expect("a stream")
        .try_collect()
        .await
        .expect("rows");
    assert_eq!(batches[0].rows.schema().field(0).name(), "name");
    assert_eq!(batches[0].rows.num_columns(), 2);
    // Nothing is inferred again.
    assert_eq!(server.requests().len() - before, 5);
}

#[tokio::test]
async fn nothing_to_infer_from_asks_for_columns() {
    let server = server().await;
    let mut node = node(&server, "/empty", by_cursor());
    node.records = Some("$.data[*]".to_owned());
    assert_eq!(read(&node).await.expect("no rows").ids, [0; 0]);
    node.columns = None;
    assert!(message(&node).await.contains("declare them under `columns`"));
}

#[tokio::test]
async fn limit_stops_the_paging() {
    let server = server().await;
    let node = node(&server, "/cursor", by_cursor());
    let request = ScanRequest { limit: Some(25), ..ScanRequest::default() };
    assert_eq!(read_from(&node, &request, None).await.expect("rows").ids, all()[..25]);
    assert_eq!(server.calls("/cursor"), 2);
}

#[tokio::test]
async fn one_object_is_one_record() {
    let server = server().await;
    assert_eq!(read(&node(&server, "/object", Pagination::None)).await.expect("a row").ids, [0]);
}

#[tokio::test]
async fn post_sends_its_body_with_templates_rendered() {
    let server = server().await;
    let mut node = node(&server, "/search", by_cursor());
    node.method = HttpMethod::Post;
    node.body = Some(json!({ "filter": { "kind": "record", "key": "{{ secret.KEY }}" } }));
    node.records = Some("$.data[*]".to_owned());
    assert_eq!(read(&node).await.expect("rows").ids, all());
}

#[tokio::test]
async fn headers_are_sent() {
    let server = server().await;
    let mut node = node(&server, "/echo-headers", Pagination::None);
    node.headers.insert("X-Custom".to_owned(), secret("KEY"));
    node.columns = None;
    let source = open(&node);
    let split = source.splits(&ScanRequest::default(), 1).await.expect("a split").remove(0);
    let stream = source.open(&split, &ScanRequest::default(), None).await.expect("a stream");
    let rows = stream.try_collect::<Vec<_>>().await.expect("a row").remove(0).rows;
    let value = |name: &str| {
        let column = rows.column_by_name(name).expect("the column");
        column.as_string::<i32>().value(0).to_owned()
    };
    assert_eq!(value("user_agent"), concat!("weir/", env!("CARGO_PKG_VERSION")));
    assert_eq!(value("accept"), "application/json");
    assert_eq!(value("custom"), API_KEY);
}

fn key_auth(header: Option<&str>, query: Option<&str>) -> HttpAuth {
    HttpAuth::ApiKey {
        header: header.map(str::to_owned),
        query: query.map(str::to_owned),
        value: secret("KEY"),
    }
}

#[tokio::test]
async fn every_way_of_authentication_is_admitted() {
    let server = server().await;
    let basic =
        HttpAuth::Basic { username: TemplateText::new(USERNAME), password: secret("PASSWORD") };
    for (way, auth) in [
        ("bearer", HttpAuth::Bearer(secret("TOKEN"))),
        ("basic", basic),
        ("header", key_auth(Some("X-Api-Key"), None)),
        ("query", key_auth(None, Some("api_key"))),
    ] {
        for (path, pagination) in [("/cursor", by_cursor()), ("/next-link", by_link())] {
            let mut node = node(&server, &format!("{path}?auth={way}"), pagination);
            connection(&mut node).auth = Some(auth.clone());
            assert_eq!(read(&node).await.expect(way).ids, all());
        }
    }
}

#[tokio::test]
async fn wrong_credentials_are_denied_at_once_and_not_shown() {
    let server = server().await;
    for (way, auth) in [
        ("bearer", Some(HttpAuth::Bearer(secret("WRONG")))),
        (
            "query",
            Some(HttpAuth::ApiKey {
                header: None,
                query: Some("api_key".to_owned()),
                value: secret("WRONG"),
            }),
        ),
        ("bearer", None),
    ] {
        let before = server.requests().len();
        let mut node = node(&server, &format!("/none?auth={way}"), Pagination::None);
        connection(&mut node).auth = auth;
        let error = read(&node).await.expect_err("denied");
        assert_eq!(error.kind, ErrorKind::Denied);
        assert!(error.message.contains("answered 401 Unauthorized: check the connection's `auth`"));
        assert!(!error.message.contains("canary"), "{error}");
        assert_eq!(server.requests().len() - before, 1);
    }
}

#[tokio::test]
async fn an_api_key_never_reaches_a_position() {
    let server = server().await;
    let mut node = node(&server, "/leaky-link?auth=query", by_link());
    connection(&mut node).auth = Some(key_auth(None, Some("api_key")));
    let reading = read(&node).await.expect("rows");
    assert_eq!(reading.ids, all());
    assert!(reading.positions.len() > 3);
    for (position, before) in reading.positions {
        assert!(!position.0.contains("canary") && !position.0.contains("api_key"), "{position:?}");
        let rest = read_from(&node, &ScanRequest::default(), Some(&position)).await;
        assert_eq!(rest.expect("rows").ids, all()[before..]);
    }
    // Under another name it cannot be told from what the link needs.
    node.path = TemplateText::new("/leaky-link?api_key={{ secret.KEY }}");
    connection(&mut node).auth = Some(key_auth(Some("X-Api-Key"), None));
    assert!(message(&node).await.contains("carries the credential in its parameter `api_key`"));
}

#[tokio::test]
async fn a_secret_in_the_base_url_reaches_no_position_and_no_plan() {
    let server = server().await;
    for path in ["/next-link", "/next-link?relative=1"] {
        let mut node = node(&server, path, by_link());
        let base_url = format!("{}/key/{{{{ secret.KEY }}}}/", server.url());
        connection(&mut node).base_url = TemplateText::new(base_url);
        let source = open(&node);
        let splits = source.splits(&ScanRequest::default(), 1).await.expect("a split");
        let plan = format!("{splits:?} {:?}", source.describe().await.expect("a description"));
        assert!(!plan.contains("canary") && !plan.contains(server.url()), "{plan}");
        for (position, before) in read(&node).await.expect("rows").positions {
            assert!(!position.0.contains("canary"), "{position:?}");
            let rest = read_from(&node, &ScanRequest::default(), Some(&position)).await;
            assert_eq!(rest.expect("rows").ids, all()[before..]);
        }
        node.path = TemplateText::new("/nowhere");
        assert!(message(&node).await.contains("/key/[secret]/nowhere answered 404"));
    }
}

fn oauth2(server: &RestServer, token_path: &str) -> HttpAuth {
    HttpAuth::Oauth2 {
        token_url: TemplateText::new(format!("{}{token_path}", server.url())),
        client_id: TemplateText::new(CLIENT_ID),
        client_secret: secret("CLIENT"),
        scopes: vec!["read".to_owned(), "list".to_owned()],
    }
}

#[tokio::test]
async fn an_oauth2_token_is_fetched_once_and_shared() {
    let server = server().await;
    let mut node = node(&server, "/cursor?auth=oauth", by_cursor());
    connection(&mut node).auth = Some(oauth2(&server, "/token"));
    assert_eq!(read(&node).await.expect("rows").ids, all());
    assert_eq!(read(&node).await.expect("rows").ids, all());
    assert_eq!(server.calls("/token"), 1);
}

#[tokio::test]
async fn an_oauth2_token_that_ends_early_is_fetched_again() {
    let server = server().await;
    let mut node = node(&server, "/cursor?auth=oauth", by_cursor());
    connection(&mut node).auth = Some(oauth2(&server, "/token?uses=2"));
    assert_eq!(read(&node).await.expect("rows").ids, all());
    // Five pages, two requests a token.
    assert_eq!(server.calls("/token"), 3);
    assert_eq!(server.calls("/cursor"), 7);
}

#[tokio::test]
async fn an_expired_oauth2_token_is_not_sent() {
    let server = server().await;
    let mut node = node(&server, "/cursor?auth=oauth", by_cursor());
    connection(&mut node).auth = Some(oauth2(&server, "/token?expires_in=0"));
    assert_eq!(read(&node).await.expect("rows").ids, all());
    assert_eq!((server.calls("/token"), server.calls("/cursor")), (5, 5));
}

#[tokio::test]
async fn oauth2_credentials_go_into_the_body_when_refused_in_the_header() {
    let server = server().await;
    let mut node = node(&server, "/cursor?auth=oauth", by_cursor());
    connection(&mut node).auth = Some(oauth2(&server, "/token?in_body=1"));
    assert_eq!(read(&node).await.expect("rows").ids, all());
    assert_eq!(server.calls("/token"), 2);
}

#[tokio::test]
async fn a_refused_oauth2_client_is_a_clear_error() {
    let server = server().await;
    let mut node = node(&server, "/cursor?auth=oauth", by_cursor());
    let HttpAuth::Oauth2 { token_url, client_id, scopes, .. } = oauth2(&server, "/token") else {
        panic!("this is OAuth2")
    };
    connection(&mut node).auth =
        Some(HttpAuth::Oauth2 { token_url, client_id, scopes, client_secret: secret("WRONG") });
    let error = read(&node).await.expect_err("denied");
    assert_eq!(error.kind, ErrorKind::Denied);
    let text = error.to_string();
    assert!(text.contains("(OAuth2 token) answered 401 Unauthorized: invalid_client (unknown client); check client_id"), "{text}");
    // A token endpoint that is no token endpoint.
    connection(&mut node).auth = Some(oauth2(&server, "/none"));
    assert!(message(&node).await.contains("without an access_token"));
    // A fresh token that is refused as well: no loop.
    connection(&mut node).auth = Some(oauth2(&server, "/token?uses=0"));
    assert!(message(&node).await.contains("401"));
}

#[tokio::test]
async fn faults_that_pass_are_retried() {
    let server = server().await;
    for fault in ["500", "502", "503", "504", "429", "429-date", "truncated", "cut", "empty"] {
        let path = format!("/cursor?fault={fault}&at=c40");
        let reading = read(&node(&server, &path, by_cursor())).await;
        assert_eq!(reading.expect(fault).ids, all(), "{fault}");
    }
    assert_eq!(server.calls("/cursor"), 9 * 6);
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let server = server().await;
    for fault in ["429", "429-date", "403-limit"] {
        let start = Instant::now();
        read(&node(&server, &format!("/none?fault={fault}"), Pagination::None))
            .await
            .expect("rows");
        assert!(start.elapsed() >= Duration::from_millis(950), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_long_retry_after_is_left_to_the_task() {
    let server = server().await;
    let node = node(&server, "/none?fault=429-long", Pagination::None);
    let error = read(&node).await.expect_err("an hour is too long");
    let retry_after = Some(Duration::from_secs(3600));
    assert_eq!(error.kind, ErrorKind::Unavailable { retry_after, status: Some(429) });
    assert!(error.is_retryable());
    assert_eq!(server.calls("/none"), 1);
}

#[tokio::test]
async fn a_burst_of_500_ends_as_unavailable_after_five_attempts() {
    let server = server().await;
    let node = node(&server, "/cursor?fault=500&times=always&at=c40", by_cursor());
    let error = read(&node).await.expect_err("it never recovers");
    assert_eq!(error.kind, ErrorKind::Unavailable { retry_after: None, status: Some(500) });
    let text = error.to_string();
    assert!(text.contains("page 3 (cursor \"c40\") answered 500 Internal Server Error"), "{text}");
    assert!(text.contains("(after 5 attempts)"), "{text}");
    assert_eq!(server.calls("/cursor"), 2 + 5);
}

#[tokio::test]
async fn a_body_shorter_than_promised_is_a_clear_error_with_its_page() {
    let server = server().await;
    let server = &server;
    let readings = [
        ("truncated", "the answer ended after 10 of 1000 bytes"),
        ("cut", "with JSON that ends too early, after 25 bytes"),
        ("empty", "with an empty body instead of JSON"),
    ]
    .map(async |(fault, expected)| {
        let path = format!("/cursor?fault={fault}&times=always&at=c40");
        let text = message(&node(server, &path, by_cursor())).await;
        assert!(text.contains(expected) && text.contains("page 3 (cursor \"c40\")"), "{text}");
    });
    futures::future::join_all(readings).await;
}

#[tokio::test]
async fn a_slow_answer_is_a_timeout() {
    let server = server().await;
    let mut node = node(&server, "/none?fault=slow&times=always", Pagination::None);
    connection(&mut node).timeout = Duration::from_millis(50);
    let error = read(&node).await.expect_err("a timeout");
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(
        error.message.contains("was not answered within 50ms: raise the connection's `timeout`")
    );
    assert_eq!(server.calls("/none"), 5);
}

#[tokio::test]
async fn an_unreachable_server_is_unavailable() {
    let server = server().await;
    let node = node(&server, "/none", Pagination::None);
    drop(server);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let error = read(&node).await.expect_err("nobody listens");
    assert_eq!(error.kind, ErrorKind::Unavailable { retry_after: None, status: None });
    assert!(error.message.contains("failed to connect"), "{error}");
}

#[tokio::test]
async fn other_statuses_fail_at_once_with_the_body_redacted() {
    let server = server().await;
    for (fault, kind, expected) in [
        ("403", ErrorKind::Denied, "the credentials lack a right"),
        ("404", ErrorKind::NotFound, "check `base_url` and `path`"),
        ("400", ErrorKind::Config, "answered 400 Bad Request: 400 Bad Request for"),
        ("422", ErrorKind::Config, "secret [secret]"),
    ] {
        let mut node = node(&server, &format!("/none?fault={fault}"), Pagination::None);
        connection(&mut node).auth = Some(key_auth(Some("X-Api-Key"), None));
        let before = server.requests().len();
        let error = read(&node).await.expect_err(fault);
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(expected), "{error}");
        assert!(!error.message.contains("canary"), "{error}");
        assert_eq!(server.requests().len() - before, 1);
    }
}

#[tokio::test]
async fn an_error_page_with_status_200_is_an_error() {
    let server = server().await;
    for (fault, expected) in [
        (
            "html",
            "answered 200 OK with an HTML page instead of JSON (a login or error page?): check `base_url`, `path` and `auth`: <html><body>Please log in",
        ),
        (
            "not-json",
            "with something that is not JSON (text/plain; charset=utf-8; expected value at line 1 column 1): check `base_url` and `path`: upstream says hello",
        ),
        (
            "error",
            "the records path $.data[*] matches nothing: the page is an object with error, code",
        ),
    ] {
        for at in ["fault", "c40"] {
            let path = format!("/cursor?fault={fault}&at={at}");
            let text = message(&node(&server, &path, by_cursor())).await;
            assert!(text.contains(expected), "{text}");
            assert!(text.contains("/cursor"), "{text}");
        }
    }
    let mut node = node(&server, "/cursor?fault=error-with-data", by_cursor());
    node.error_path = Some("$.error.message".to_owned());
    let text = message(&node).await;
    assert!(
        text.contains("answered 200 OK, but the page holds an error (error_path): \"half broken\""),
        "{text}"
    );
}

#[tokio::test]
async fn pages_that_repeat_for_ever_are_detected() {
    let server = server().await;
    for (path, pagination, expected) in [
        (
            "/same-cursor",
            by_cursor(),
            "the next page is cursor \"c20\", which has been read before",
        ),
        ("/same-page", by_cursor(), "this page has the same 20 records as the page before"),
        ("/ignores-page", by_number(None), "this page has the same 20 records as the page before"),
    ] {
        let mut node = node(&server, path, pagination);
        if path == "/ignores-page" {
            node.records = None;
        }
        let text = message(&node).await;
        assert!(text.contains(expected), "{text}");
        assert_eq!(server.calls(path), 2);
    }
}

#[tokio::test]
async fn a_repeated_page_is_detected_behind_a_resume() {
    let server = server().await;
    let mut node = node(&server, "/ignores-page", by_number(None));
    let source = open(&node);
    let request = ScanRequest::default();
    let split = source.splits(&request, 1).await.expect("a split").remove(0);
    let mut stream = source.open(&split, &request, None).await.expect("a stream");
    let position = stream.try_next().await.expect("rows").expect("a batch").position;
    node.records = None;
    let error = read_from(&node, &request, position.as_ref()).await.expect_err("it repeats");
    assert!(error.message.contains("page 2 (page number 2): this page has the same 20 records"));
}

#[tokio::test]
async fn an_endless_api_ends_at_max_pages() {
    let server = server().await;
    let mut node = node(&server, "/endless", by_cursor());
    node.max_pages = 7;
    let text = message(&node).await;
    assert!(text.contains("has more than 7 pages: raise `max_pages`"), "{text}");
    assert_eq!(server.calls("/endless"), 7);
}

#[tokio::test]
async fn a_link_to_another_host_is_not_followed() {
    let server = server().await;
    let text = message(&node(&server, "/other-host", by_link())).await;
    assert!(text.contains("the next link leads to http://127.0.0.2:9, away from http://127.0.0.1"));
}

#[tokio::test]
async fn redirects_are_followed_only_inside_the_host() {
    let server = server().await;
    let inside = read(&node(&server, "/redirect", Pagination::None)).await;
    assert_eq!(inside.expect("rows").ids, all());
    let text = message(&node(&server, "/redirect-away", Pagination::None)).await;
    assert!(
        text.contains("answered 302 Found and redirects to http://127.0.0.2:9/steal: "),
        "{text}"
    );
}

#[tokio::test]
async fn records_that_do_not_fit_are_rejected_one_by_one() {
    let server = server().await;
    let reading = read(&node(&server, "/changing-schema", by_cursor())).await.expect("rows");
    let broken = |id: &i64| *id >= 20 && id % 20 < 3;
    assert_eq!(reading.ids, all().into_iter().filter(|id| !broken(id)).collect::<Vec<_>>());
    assert_eq!(reading.rejected.len(), 12);
    let row = &reading.rejected[0];
    assert!(row.reason.contains("page 2 (cursor \"c20\"): "), "{}", row.reason);
    assert!(row.reason.contains("id") && row.raw.contains("not a number"), "{row:?}");
}

#[tokio::test]
async fn a_huge_page_is_refused() {
    let server = server().await;
    let text = message(&node(&server, "/huge", Pagination::None)).await;
    assert!(text.contains("more than 64 MiB in one page: ask for smaller pages"), "{text}");
}

#[tokio::test]
async fn an_api_that_limits_its_pages_loses_nothing_in_silence() {
    let server = server().await;
    let text = message(&node(&server, "/offset?cap=10", by_offset(50))).await;
    assert!(text.contains("gave 10 records where 50 were asked for, and has more"), "{text}");
    // A short page that is the last one is confirmed by one more request.
    let reading = read(&node(&server, "/offset", by_offset(1000))).await.expect("rows");
    assert_eq!(reading.ids, all());
}

fn incremental(param: Option<&str>, kind: ColumnType) -> impl Fn(&mut HttpSource) {
    let param = param.map(str::to_owned);
    move |node| {
        node.columns.as_mut().expect("declared").insert("updated_at".to_owned(), kind.clone());
        node.incremental = Some(Incremental {
            cursor: "updated_at".to_owned(),
            param: param.clone(),
            initial: None,
            lag: None,
        });
    }
}

#[tokio::test]
async fn rows_after_the_watermark_are_read() {
    let server = server().await;
    for kind in [ColumnType::Timestamp, ColumnType::TimestampTz, ColumnType::String] {
        for param in [None, Some("updated_since")] {
            let mut node = node(&server, "/cursor", by_cursor());
            incremental(param, kind.clone())(&mut node);
            let request = ScanRequest { since: Some(updated_at(49)), ..ScanRequest::default() };
            let before = server.calls("/cursor");
            let reading = read_from(&node, &request, None).await.expect("rows");
            assert_eq!(reading.ids, all()[50..], "{kind:?} {param:?}");
            // The API filters where it can.
            let expected = if param.is_some() { 3 } else { 5 };
            assert_eq!(server.calls("/cursor") - before, expected);
        }
    }
}

#[tokio::test]
async fn a_cursor_that_is_no_column_is_named() {
    let server = server().await;
    let mut node = node(&server, "/cursor", by_cursor());
    incremental(None, ColumnType::String)(&mut node);
    node.columns.as_mut().expect("declared").shift_remove("updated_at");
    let text = message(&node).await;
    assert_eq!(
        text,
        "the incremental cursor `updated_at` is not a column: the records have id, name"
    );
}

#[tokio::test]
async fn the_rate_limit_is_shared_by_all_users_of_a_connection() {
    let server = server().await;
    let mut node = node(&server, "/cursor", by_cursor());
    node.connection.name = Some("crm".to_owned());
    connection(&mut node).rate_limit =
        Some(RateLimit { requests: 20, per: Duration::from_secs(1) });
    let (first, second) = tokio::join!(read(&node), read(&node));
    assert_eq!((first.expect("rows").ids, second.expect("rows").ids), (all(), all()));
    let times = server.request_times();
    assert_eq!(times.len(), 10);
    // Ten requests, 50 ms apart.
    assert!(times[9] - times[0] >= Duration::from_millis(420), "{:?}", times[9] - times[0]);
}

#[tokio::test]
async fn a_missing_secret_is_named_when_the_source_is_used() {
    let server = server().await;
    let mut node = node(&server, "/none", Pagination::None);
    connection(&mut node).auth = Some(HttpAuth::Bearer(secret("NOBODY_KNOWS")));
    let text = message(&node).await;
    assert!(text.contains("secret.NOBODY_KNOWS is not set"), "{text}");
}

#[tokio::test]
async fn check_says_what_the_base_url_answers() {
    let server = server().await;
    let mut node = node(&server, "/none", Pagination::None);
    let said = open(&node).check().await.expect("reached");
    assert_eq!(said, format!("GET {}/ answered 200 OK", server.url()));
    connection(&mut node).base_url = TemplateText::new(format!("{}/nothing", server.url()));
    let said = open(&node).check().await.expect("reached");
    assert!(said.contains("answered 404 Not Found: the server is reached"), "{said}");
    connection(&mut node).base_url = TemplateText::new(format!("{}/?auth=bearer", server.url()));
    let error = open(&node).check().await.expect_err("no credentials");
    assert_eq!(error.kind, ErrorKind::Denied);
    connection(&mut node).auth = Some(HttpAuth::Bearer(secret("TOKEN")));
    open(&node).check().await.expect("admitted");
}

#[tokio::test]
async fn a_base_url_that_is_none_says_how_to_write_it() {
    let server = server().await;
    for (base_url, expected) in [
        ("api.example.com", "write it like https://api.example.com/v1"),
        ("ftp://api.example.com", "must start with https:// or http://, not ftp:"),
        ("https://ada:canary-secret@api.example.com", "base_url holds credentials"),
    ] {
        let mut node = node(&server, "/none", Pagination::None);
        connection(&mut node).base_url = TemplateText::new(base_url);
        let text = message(&node).await;
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn https_finds_its_crypto_provider() {
    let server = server().await;
    let mut node = node(&server, "/none", Pagination::None);
    // The server speaks plain HTTP: the handshake fails, which needs a provider to begin.
    connection(&mut node).base_url = TemplateText::new(server.url().replace("http://", "https://"));
    let text = message(&node).await;
    // The second: a machine without certificate roots.
    assert!(text.contains("failed to connect") || text.contains("ca-certificates"), "{text}");
}

//! Credentials of a connection, and the OAuth2 token that stands for them.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use url::Url;
use weir_spec::HttpAuth;

use super::connection::{Api, header, parse_url};
use super::fetch::{Answer, Body, Failure, Request};
use super::message::excerpt;
use crate::{ConnectorContext, ConnectorError, ErrorKind, Redactor};

/// How long a token is used when the endpoint does not say. A 401 ends it earlier.
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// Resolved credentials.
pub(super) enum Auth {
    None,
    Header(HeaderName, HeaderValue, Vec<String>),
    Query { name: String, value: String },
    Oauth2(Oauth2),
}

pub(super) struct Oauth2 {
    token_url: Url,
    client_id: String,
    client_secret: String,
    scopes: Vec<String>,
    cache: TokenCache,
}

/// Held while a token is fetched, so that many readers cause one request.
type TokenCache = Arc<tokio::sync::Mutex<Option<Token>>>;

#[derive(Clone)]
pub(super) struct Token {
    value: String,
    usable_until: Instant,
}

/// What one request is sent with.
#[derive(Clone)]
pub(super) enum Credential {
    None,
    Header(HeaderName, HeaderValue),
    Query { name: String, value: String },
    Token(String),
}

impl Auth {
    pub(super) fn open(
        auth: &HttpAuth,
        context: &ConnectorContext,
    ) -> Result<Self, ConnectorError> {
        // Registered even when they come from `env` or stand in the file: none is ever shown.
        let secret = |text| -> Result<String, ConnectorError> {
            let value = context.resolve(text)?.trim().to_owned();
            context.redactor.register(&value);
            Ok(value)
        };
        Ok(match auth {
            HttpAuth::Bearer(token) => {
                let token = secret(token)?;
                let (name, value) = header(AUTHORIZATION.as_str(), &format!("Bearer {token}"))?;
                Auth::Header(name, value, vec![token])
            }
            HttpAuth::Basic { username, password } => {
                let (username, password) = (context.resolve(username)?, secret(password)?);
                let (name, value) = basic(&username, &password, &context.redactor)?;
                Auth::Header(name, value, vec![password])
            }
            HttpAuth::ApiKey { header: Some(name), value, .. } => {
                let key = secret(value)?;
                let (name, value) = header(name, &key)?;
                Auth::Header(name, value, vec![key])
            }
            HttpAuth::ApiKey { query: Some(name), value, .. } => {
                Auth::Query { name: name.clone(), value: secret(value)? }
            }
            HttpAuth::ApiKey { .. } => {
                return Err(ConnectorError::config(
                    "api_key needs `header` or `query`: the name under which the key is sent",
                ));
            }
            HttpAuth::Oauth2 { token_url, client_id, client_secret, scopes } => {
                let token_url = parse_url("token_url", &context.resolve_url(token_url)?)?;
                let (client_id, client_secret) =
                    (context.resolve(client_id)?, secret(client_secret)?);
                Auth::Oauth2(Oauth2 {
                    cache: shared_cache(&token_url, &client_id, &client_secret, scopes),
                    token_url,
                    client_id,
                    client_secret,
                    scopes: scopes.clone(),
                })
            }
        })
    }

    pub(super) fn needs_tls(&self) -> bool {
        matches!(self, Auth::Oauth2(oauth2) if oauth2.token_url.scheme() == "https")
    }

    /// The query parameter that carries the key, if one does.
    pub(super) fn query_parameter(&self) -> Option<&str> {
        match self {
            Auth::Query { name, .. } => Some(name),
            Auth::None | Auth::Header(..) | Auth::Oauth2(_) => None,
        }
    }

    /// Whether `value` is one of the credentials.
    pub(super) fn is_secret(&self, value: &str) -> bool {
        match self {
            Auth::None => false,
            Auth::Header(_, _, secrets) => secrets.iter().any(|secret| secret == value),
            Auth::Query { value: key, .. } => key == value,
            Auth::Oauth2(oauth2) => {
                oauth2.client_secret == value
                    || oauth2
                        .cache
                        .try_lock()
                        .is_ok_and(|token| token.as_ref().is_some_and(|token| token.value == value))
            }
        }
    }

    /// What the next request is sent with; fetches a token when there is no usable one.
    pub(super) async fn credential(&self, api: &Api) -> Result<Credential, Failure> {
        Ok(match self {
            Auth::None => Credential::None,
            Auth::Header(name, value, _) => Credential::Header(name.clone(), value.clone()),
            Auth::Query { name, value } => {
                Credential::Query { name: name.clone(), value: value.clone() }
            }
            Auth::Oauth2(oauth2) => Credential::Token(oauth2.token(api).await?),
        })
    }

    /// Forgets a token that was answered with 401. True: another attempt gets a new one.
    pub(super) async fn renew(&self, refused: &Credential) -> bool {
        let (Auth::Oauth2(oauth2), Credential::Token(refused)) = (self, refused) else {
            return false;
        };
        let mut cached = oauth2.cache.lock().await;
        // Another reader may have renewed it meanwhile.
        if cached.as_ref().is_some_and(|token| token.value == *refused) {
            *cached = None;
        }
        true
    }
}

impl Credential {
    pub(super) fn apply(&self, url: &mut Url, headers: &mut HeaderMap) {
        match self {
            Credential::None => {}
            Credential::Header(name, value) => {
                headers.insert(name.clone(), value.clone());
            }
            Credential::Query { name, value } => {
                url.query_pairs_mut().append_pair(name, value);
            }
            Credential::Token(token) => {
                // Checked to be a header value when it was fetched.
                if let Ok((name, value)) =
                    header(AUTHORIZATION.as_str(), &format!("Bearer {token}"))
                {
                    headers.insert(name, value);
                }
            }
        }
    }
}

impl Oauth2 {
    async fn token(&self, api: &Api) -> Result<String, Failure> {
        let mut cached = self.cache.lock().await;
        if let Some(token) = cached.as_ref().filter(|token| Instant::now() < token.usable_until) {
            return Ok(token.value.clone());
        }
        *cached = None;
        let token = self.fetch(api).await?;
        api.redactor.register(&token.value);
        Ok(cached.insert(token).value.clone())
    }

    /// RFC 6749 section 4.4. Client credentials go into a Basic header, as every server must
    /// accept; one that refuses them there gets them in the body.
    async fn fetch(&self, api: &Api) -> Result<Token, Failure> {
        let encode =
            |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let (name, value) =
            basic(&encode(&self.client_id), &encode(&self.client_secret), &api.redactor)
                .map_err(Failure::last)?;
        let mut headers = HeaderMap::new();
        headers.insert(name, value);
        let answer = api.send_once(&self.request(headers, false)).await?;
        let refused = matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED);
        let answer = if refused {
            api.send_once(&self.request(HeaderMap::new(), true)).await?
        } else {
            answer
        };
        self.read(api, &answer)
    }

    fn request(&self, headers: HeaderMap, credentials_in_body: bool) -> Request {
        let mut form = vec![("grant_type".to_owned(), "client_credentials".to_owned())];
        if !self.scopes.is_empty() {
            form.push(("scope".to_owned(), self.scopes.join(" ")));
        }
        if credentials_in_body {
            form.push(("client_id".to_owned(), self.client_id.clone()));
            form.push(("client_secret".to_owned(), self.client_secret.clone()));
        }
        Request {
            method: Method::POST,
            url: self.token_url.clone(),
            headers,
            body: Body::Form(form),
            label: self.label(),
        }
    }

    fn label(&self) -> String {
        format!(
            "POST {}{} (OAuth2 token)",
            self.token_url.origin().ascii_serialization(),
            self.token_url.path()
        )
    }

    fn read(&self, api: &Api, answer: &Answer) -> Result<Token, Failure> {
        let label = self.label();
        let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
        if !answer.status.is_success() {
            let failure = answer.failure(api, &label);
            let said = body.as_ref().map(oauth2_error).unwrap_or_default();
            if failure.again || said.is_empty() {
                return Err(failure);
            }
            return Err(Failure::last(api.error(
                ErrorKind::Denied,
                format!(
                    "{label} answered {}: {said}; check client_id, client_secret and scopes",
                    answer.status
                ),
            )));
        }
        let unusable = |what: &str| {
            Failure::last(api.error(
                ErrorKind::Denied,
                format!("{label} answered {} {what}; check token_url", answer.status),
            ))
        };
        let Some(body) = body else {
            return Err(unusable(&format!(
                "with something that is not JSON: {}",
                excerpt(&answer.body, &api.redactor)
            )));
        };
        let Some(value) = body.get("access_token").and_then(Value::as_str) else {
            return Err(unusable(&format!("without an access_token {}", oauth2_error(&body))));
        };
        header(AUTHORIZATION.as_str(), &format!("Bearer {value}"))
            .map_err(|_| unusable("with an access_token that no header can carry"))?;
        let life = match body.get("expires_in") {
            Some(Value::Number(seconds)) => seconds.as_f64(),
            Some(Value::String(seconds)) => seconds.parse().ok(),
            _ => None,
        };
        let life = life
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .unwrap_or(DEFAULT_TOKEN_LIFE);
        let margin = (life / 10).min(Duration::from_secs(60));
        let usable_until = Instant::now()
            .checked_add(life - margin)
            .unwrap_or_else(|| Instant::now() + DEFAULT_TOKEN_LIFE);
        Ok(Token { value: value.to_owned(), usable_until })
    }
}

/// `invalid_client (no such client)`, from an error answer of RFC 6749 section 5.2.
fn oauth2_error(body: &Value) -> String {
    let text = |key| body.get(key).and_then(Value::as_str);
    match (text("error"), text("error_description")) {
        (Some(error), Some(description)) => format!("{error} ({description})"),
        (Some(error), None) => error.to_owned(),
        _ => String::new(),
    }
}

fn basic(
    username: &str,
    password: &str,
    redactor: &Redactor,
) -> Result<(HeaderName, HeaderValue), ConnectorError> {
    let encoded = STANDARD.encode(format!("{username}:{password}"));
    redactor.register(&encoded);
    header(AUTHORIZATION.as_str(), &format!("Basic {encoded}"))
}

/// One cache for all users of the same credentials in this process.
fn shared_cache(
    token_url: &Url,
    client_id: &str,
    client_secret: &str,
    scopes: &[String],
) -> TokenCache {
    type Key = (String, String, blake3::Hash, Vec<String>);
    static CACHES: LazyLock<Mutex<HashMap<Key, TokenCache>>> = LazyLock::new(Mutex::default);
    let key = (
        token_url.to_string(),
        client_id.to_owned(),
        blake3::hash(client_secret.as_bytes()),
        scopes.to_vec(),
    );
    let mut caches = CACHES.lock().expect("no holder of this lock panics");
    Arc::clone(caches.entry(key).or_default())
}

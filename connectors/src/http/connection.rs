//! A connection to an API with its templates rendered: client, credentials, headers, rate limit.
//!
//! Nothing here is serialisable, and nothing of it reaches a message unredacted.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock, Mutex, Once};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect;
use url::Url;
use weir_spec::{Connection, ConnectionRef, RateLimit};

use super::auth::Auth;
use super::message::causes;
use crate::{ConnectorContext, ConnectorError, ErrorKind, Redactor};

/// Redirects inside one origin that are followed before giving up.
const MAX_REDIRECTS: usize = 5;

/// An opened connection. Does no I/O until the first request.
pub(super) struct Api {
    pub(super) client: reqwest::Client,
    pub(super) base_url: Url,
    /// Sent with every request to the API (not to the token endpoint).
    pub(super) headers: HeaderMap,
    pub(super) auth: Auth,
    pub(super) limiter: Option<Arc<DefaultDirectRateLimiter>>,
    /// For one request, from connecting to the last byte.
    pub(super) timeout: Duration,
    pub(super) redactor: Redactor,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    pub(super) fn open(
        connection: &ConnectionRef,
        context: &ConnectorContext,
    ) -> Result<Self, ConnectorError> {
        let Connection::Http(config) = &connection.config else {
            return Err(ConnectorError::config(format!(
                "connection `{}` is not of type http",
                connection.name.as_deref().unwrap_or("(written in the node)")
            )));
        };
        let base_url = parse_url("base_url", &context.resolve_url(&config.base_url)?)?;
        let auth = match &config.auth {
            Some(auth) => Auth::open(auth, context)?,
            None => Auth::None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        for (name, value) in &config.headers {
            let (name, value) = header(name, &context.resolve(value)?)?;
            headers.insert(name, value);
        }
        let needs_tls = base_url.scheme() == "https" || auth.needs_tls();
        Ok(Self {
            client: client(needs_tls)?,
            limiter: config
                .rate_limit
                .map(|rate| shared_limiter(connection.name.as_deref(), &base_url, rate)),
            base_url,
            headers,
            auth,
            timeout: config.timeout,
            redactor: context.redactor.clone(),
        })
    }

    /// Waits until the connection's rate limit admits one more request.
    pub(super) async fn admit(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.until_ready().await;
        }
    }

    /// An error whose message holds no secret.
    pub(super) fn error(&self, kind: ErrorKind, message: impl AsRef<str>) -> ConnectorError {
        ConnectorError::new(kind, self.redactor.redact(message.as_ref()))
    }
}

/// An absolute `http` or `https` URL without credentials in it.
pub(super) fn parse_url(field: &str, text: &str) -> Result<Url, ConnectorError> {
    let url = Url::parse(text).map_err(|cause| {
        ConnectorError::config(format!(
            "{field} is not a URL ({cause}): write it like https://api.example.com/v1"
        ))
    })?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(ConnectorError::config(format!(
            "{field} must start with https:// or http://, not {}:",
            url.scheme()
        )));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ConnectorError::config(format!(
            "{field} holds credentials: write them under `auth: {{ basic: … }}` instead"
        )));
    }
    Ok(url)
}

/// A request header from the pipeline file. The value is treated as sensitive.
pub(super) fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), ConnectorError> {
    let header_name = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| ConnectorError::config(format!("`{name}` is not a header name")))?;
    let mut value = HeaderValue::from_str(value.trim()).map_err(|_| {
        ConnectorError::config(format!(
            "the value of header {name} has characters that a header cannot carry (line breaks?)"
        ))
    })?;
    value.set_sensitive(true);
    Ok((header_name, value))
}

/// Proxies of the environment are not used: what a pipeline talks to stands in its file.
fn client(needs_tls: bool) -> Result<reqwest::Client, ConnectorError> {
    static CRYPTO_PROVIDER: Once = Once::new();
    CRYPTO_PROVIDER.call_once(|| {
        // Fails only when the process has already installed one, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .referer(false)
        .connect_timeout(Duration::from_secs(10))
        .redirect(redirect::Policy::custom(follow_inside_origin));
    if !needs_tls {
        // Plain HTTP must work on machines without certificate roots.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|cause| {
        ConnectorError::config(format!(
            "failed to set up HTTPS: {}; install the system's certificate roots (Debian: \
             ca-certificates) or set SSL_CERT_FILE",
            causes(&cause)
        ))
    })
}

/// Another origin would be sent the connection's headers. The redirect itself then becomes the
/// answer, and an error.
fn follow_inside_origin(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let same_origin =
        attempt.previous().last().is_some_and(|from| from.origin() == attempt.url().origin());
    if same_origin && attempt.previous().len() <= MAX_REDIRECTS {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

/// The limiter of a connection, one for all its users in this process. Requests are evenly spaced
/// (no burst), so that no window of the API's own counting ever sees more than it allows.
fn shared_limiter(
    name: Option<&str>,
    base_url: &Url,
    rate: RateLimit,
) -> Arc<DefaultDirectRateLimiter> {
    type Key = (Option<String>, String, u32, Duration);
    static LIMITERS: LazyLock<Mutex<HashMap<Key, Arc<DefaultDirectRateLimiter>>>> =
        LazyLock::new(Mutex::default);
    let key = (name.map(str::to_owned), base_url.to_string(), rate.requests, rate.per);
    let mut limiters = LIMITERS.lock().expect("no holder of this lock panics");
    let limiter = limiters.entry(key).or_insert_with(|| {
        let interval = (rate.per / rate.requests.max(1)).max(Duration::from_nanos(1));
        let quota = Quota::with_period(interval)
            .expect("an interval of at least a nanosecond is not zero")
            .allow_burst(NonZeroU32::MIN);
        Arc::new(RateLimiter::direct(quota))
    });
    Arc::clone(limiter)
}

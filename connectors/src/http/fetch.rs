//! One request to an API: sent, retried where that can help, answered or a clear error.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use url::Url;

use super::connection::Api;
use super::message::{causes, excerpt};
use crate::{ConnectorError, ErrorKind};

/// Attempts of one request, the first included. The task's own retry policy comes on top.
const MAX_ATTEMPTS: usize = 5;
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// The longest `Retry-After` that is waited for here; a longer one is left to the task's policy.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// A page larger than this is refused, since it is held in memory whole.
const MAX_BODY_BYTES: usize = 64 * 1024 * 1024;

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Without credentials.
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// For messages: `GET https://api.example.com/items, page 3 (cursor "x")`. Holds no query.
    pub(super) label: String,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    None,
    Json(Value),
    Form(Vec<(String, String)>),
}

/// An answer with its whole body, of any status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why an attempt failed, and whether another one may succeed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: ConnectorError,
    pub(super) again: bool,
}

impl Failure {
    /// Another attempt would fail as well.
    pub(super) fn last(error: ConnectorError) -> Self {
        Self { error, again: false }
    }
    pub(super) fn transient(error: ConnectorError) -> Self {
        Self { error, again: true }
    }
}

impl Api {
    /// Sends `request` until an attempt is answered with a success that `read` accepts. Waits
    /// between attempts: exponentially with jitter from 200 ms, or as `Retry-After` says.
    pub(super) async fn fetch<T>(
        &self,
        request: &Request,
        read: impl Fn(&Answer) -> Result<T, Failure>,
    ) -> Result<T, ConnectorError> {
        let mut delays = ExponentialBuilder::new()
            .with_min_delay(FIRST_DELAY)
            .with_max_times(MAX_ATTEMPTS - 1)
            .with_jitter()
            .build();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let outcome = match self.send(request).await {
                Ok(answer) if answer.status.is_success() => read(&answer),
                Ok(answer) => Err(answer.failure(self, &request.label)),
                Err(failure) => Err(failure),
            };
            let mut failure = match outcome {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let asked = match failure.error.kind {
                ErrorKind::Unavailable { retry_after, .. } => retry_after,
                _ => None,
            };
            let patient = asked.is_none_or(|asked| asked <= MAX_RETRY_AFTER);
            let Some(delay) = delays.next().filter(|_| failure.again && patient) else {
                if attempts > 1 {
                    failure.error.message.push_str(&format!(" (after {attempts} attempts)"));
                }
                return Err(failure.error);
            };
            let delay = asked.unwrap_or_default().max(delay);
            tracing::debug!(request = %request.label, attempt = attempts, ?delay,
                reason = %failure.error, "request failed, trying again");
            tokio::time::sleep(delay).await;
        }
    }

    /// Sends with credentials; a token that is refused is fetched again once.
    async fn send(&self, request: &Request) -> Result<Answer, Failure> {
        let mut renewed = false;
        loop {
            let credential = self.auth.credential(self).await?;
            let mut sent = request.clone();
            for (name, value) in &self.headers {
                if !sent.headers.contains_key(name) {
                    sent.headers.insert(name.clone(), value.clone());
                }
            }
            credential.apply(&mut sent.url, &mut sent.headers);
            let answer = self.send_once(&sent).await?;
            let refused = answer.status == StatusCode::UNAUTHORIZED;
            if !refused || renewed || !self.auth.renew(&credential).await {
                return Ok(answer);
            }
            renewed = true;
        }
    }

    /// One exchange, exactly as written; counts against the rate limit.
    pub(super) async fn send_once(&self, request: &Request) -> Result<Answer, Failure> {
        self.admit().await;
        let builder = self
            .client
            .request(request.method.clone(), request.url.clone())
            .headers(request.headers.clone())
            .timeout(self.timeout);
        let builder = match &request.body {
            Body::None => builder,
            Body::Json(body) => builder.json(body),
            Body::Form(form) => builder.form(form),
        };
        let label = &request.label;
        let mut response =
            builder.send().await.map_err(|cause| self.transport_failure(label, 0, None, &cause))?;
        let (status, headers) = (response.status(), response.headers().clone());
        let declared = response.content_length();
        let mut body = BytesMut::new();
        loop {
            let chunk = response.chunk().await.map_err(|cause| {
                self.transport_failure(label, body.len(), Some(declared), &cause)
            })?;
            let Some(chunk) = chunk else { break };
            if body.len() + chunk.len() > MAX_BODY_BYTES {
                return Err(Failure::last(self.error(
                    ErrorKind::Data,
                    format!(
                        "{label} answered with more than {} MiB in one page: ask for smaller \
                         pages (`page_size`, `limit`, or the API's own parameter under `query`)",
                        MAX_BODY_BYTES >> 20
                    ),
                )));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body: body.freeze() })
    }

    /// `declared`: `None` before the answer's head has come, else the length it promises.
    fn transport_failure(
        &self,
        label: &str,
        received: usize,
        declared: Option<Option<u64>>,
        cause: &reqwest::Error,
    ) -> Failure {
        if cause.is_timeout() && !cause.is_connect() {
            return Failure::transient(self.error(
                ErrorKind::Timeout,
                format!(
                    "{label} was not answered within {:?}: raise the connection's `timeout` if \
                     the API needs longer",
                    self.timeout
                ),
            ));
        }
        let what = match declared {
            Some(Some(length)) => {
                format!("{label}: the answer ended after {received} of {length} bytes")
            }
            Some(None) => format!("{label}: the answer broke off after {received} bytes"),
            None if cause.is_connect() => format!("{label}: failed to connect"),
            None => format!("{label}: failed to send the request"),
        };
        if cause.is_builder() {
            return Failure::last(
                self.error(ErrorKind::Config, format!("{what}: {}", causes(cause))),
            );
        }
        let kind = ErrorKind::Unavailable { retry_after: None, status: None };
        Failure::transient(self.error(kind, format!("{what}: {}", causes(cause))))
    }
}

impl Answer {
    /// What a status other than success means.
    pub(super) fn failure(&self, api: &Api, label: &str) -> Failure {
        let status = self.status;
        let said = excerpt(&self.body, &api.redactor);
        let fail = |kind, text: String| api.error(kind, text);
        let retry_after = self.retry_after(Utc::now());
        // Some APIs say "too many requests" with 403.
        let is_limit = status == StatusCode::FORBIDDEN && retry_after.is_some();
        match status.as_u16() {
            code if is_limit || matches!(code, 408 | 429 | 500 | 502 | 503 | 504) => {
                let kind = ErrorKind::Unavailable { retry_after, status: Some(status.as_u16()) };
                let wait = match retry_after {
                    Some(wait) => format!(" (try again in {} s)", wait.as_secs()),
                    None => String::new(),
                };
                Failure::transient(fail(kind, format!("{label} answered {status}{wait}: {said}")))
            }
            401 => Failure::last(fail(
                ErrorKind::Denied,
                format!("{label} answered {status}: check the connection's `auth`: {said}"),
            )),
            403 => Failure::last(fail(
                ErrorKind::Denied,
                format!("{label} answered {status}: the credentials lack a right: {said}"),
            )),
            404 | 410 => Failure::last(fail(
                ErrorKind::NotFound,
                format!("{label} answered {status}: check `base_url` and `path`: {said}"),
            )),
            300..=399 => {
                let target = self.header(&LOCATION).unwrap_or("nowhere");
                let target = target.split(['?', '#']).next().unwrap_or_default();
                Failure::last(fail(
                    ErrorKind::Config,
                    format!(
                        "{label} answered {status} and redirects to {target}: redirects are \
                         followed only inside one host, since another would be sent the \
                         credentials; write the final address in `base_url`"
                    ),
                ))
            }
            500.. => Failure::last(fail(
                ErrorKind::Unavailable { retry_after: None, status: Some(status.as_u16()) },
                format!("{label} answered {status}: {said}"),
            )),
            _ => {
                Failure::last(fail(ErrorKind::Config, format!("{label} answered {status}: {said}")))
            }
        }
    }

    pub(super) fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn content_type(&self) -> &str {
        self.header(CONTENT_TYPE).unwrap_or("")
    }

    /// RFC 9110 section 10.2.3: seconds, or a date.
    fn retry_after(&self, now: DateTime<Utc>) -> Option<Duration> {
        let text = self.header(RETRY_AFTER)?.trim();
        if let Ok(seconds) = text.parse::<u64>() {
            return Some(Duration::from_secs(seconds));
        }
        let date = DateTime::parse_from_rfc2822(text).ok()?;
        Some((date.with_timezone(&Utc) - now).to_std().unwrap_or_default())
    }
}

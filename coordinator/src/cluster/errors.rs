//! What kind of error an answer is, and whether asking again helps: in the metadata of every refusal, so that a
//! client needs to read no text.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderValue, Request, Response};
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tower::{Layer, Service};

/// One word of the list in docs/cluster.md.
const KIND: &str = "weir-kind";
/// `never`, `later`, or `at_leader`.
const RETRY: &str = "weir-retry";
const LATER: &str = "later";
/// Of a coordinator that does not lead.
const LEADER: &str = "weir-leader";

fn kind(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "invalid",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "exists",
        Code::FailedPrecondition | Code::Aborted => "conflict",
        Code::Unauthenticated => "unauthenticated",
        Code::PermissionDenied => "forbidden",
        Code::OutOfRange => "too_large",
        Code::ResourceExhausted => "too_many",
        Code::Unavailable => "unavailable",
        Code::DeadlineExceeded | Code::Cancelled => "deadline",
        Code::Unimplemented => "unimplemented",
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => "internal",
    }
}

fn retry(code: Code, names_leader: bool) -> &'static str {
    match code {
        Code::Unavailable if names_leader => "at_leader",
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => LATER,
        _ => "never",
    }
}

/// A refusal that holds for now only, whatever its code says.
pub(super) fn for_now(mut status: Status) -> Status {
    status.metadata_mut().insert(RETRY, MetadataValue::from_static(LATER));
    status
}

/// For errors in the middle of a stream, which [`Described`] does not see.
pub(super) fn described(mut status: Status) -> Status {
    let code = status.code();
    let metadata = status.metadata_mut();
    let retry = retry(code, metadata.contains_key(LEADER));
    metadata.insert(KIND, MetadataValue::from_static(kind(code)));
    if !metadata.contains_key(RETRY) {
        metadata.insert(RETRY, MetadataValue::from_static(retry));
    }
    status
}

fn describe(headers: &mut HeaderMap) {
    let Some(status) = Status::from_header_map(headers) else { return };
    if status.code() == Code::Ok {
        return;
    }
    let retry = retry(status.code(), headers.contains_key(LEADER));
    headers.insert(KIND, HeaderValue::from_static(kind(status.code())));
    headers.entry(RETRY).or_insert(HeaderValue::from_static(retry));
}

/// Wraps all services of a coordinator, and what decides who may call them.
#[derive(Clone, Copy, Debug)]
pub(super) struct DescribeErrors;

impl<S> Layer<S> for DescribeErrors {
    type Service = Described<S>;

    fn layer(&self, inner: S) -> Described<S> {
        Described(inner)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Described<S>(S);

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Described<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answering = self.0.call(request);
        Box::pin(async move {
            let mut answer = answering.await?;
            describe(answer.headers_mut());
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::{Channel, Server};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    fn of(status: Status) -> (String, String) {
        let mut response: Response<Body> = status.into_http();
        describe(response.headers_mut());
        let text = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        (text(KIND), text(RETRY))
    }

    fn words(kind: &str, retry: &str) -> (String, String) {
        (kind.to_owned(), retry.to_owned())
    }

    #[test]
    fn a_refusal_says_what_kind_it_is_and_whether_asking_again_helps() {
        assert_eq!(of(Status::not_found("run x")), words("not_found", "never"));
        assert_eq!(of(Status::failed_precondition("it is over")), words("conflict", "never"));
        let waits = Status::failed_precondition("a target does not answer");
        assert_eq!(of(for_now(waits.clone())), words("conflict", "later"));
        let in_a_stream = described(for_now(waits));
        assert_eq!(
            in_a_stream.metadata().get(RETRY).map(|word| word.as_bytes()),
            Some(&b"later"[..])
        );
        assert_eq!(of(Status::resource_exhausted("too many")), words("too_many", "later"));
        assert_eq!(of(Status::unavailable("no leader yet")), words("unavailable", "later"));
        let mut elsewhere = Status::unavailable("not the leader");
        elsewhere.metadata_mut().insert(LEADER, MetadataValue::from_static("https://a:1"));
        assert_eq!(of(elsewhere.clone()), words("unavailable", "at_leader"));
        let in_a_stream = described(elsewhere);
        let said =
            |name: &str| in_a_stream.metadata().get(name).and_then(|value| value.to_str().ok());
        assert_eq!((said(KIND), said(RETRY)), (Some("unavailable"), Some("at_leader")));
    }

    #[tokio::test]
    async fn a_client_reads_the_words_out_of_the_metadata() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (_, health) = tonic_health::server::health_reporter();
        let server = Server::builder().layer(DescribeErrors).add_service(health);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let channel = Channel::from_shared(url).expect("a URL").connect().await;
        let mut client = HealthClient::new(channel.expect("it listens"));
        let asked = HealthCheckRequest { service: "nosuch".to_owned() };
        let refused = client.check(asked).await.expect_err("there is no such service");
        let said = |name: &str| refused.metadata().get(name).and_then(|value| value.to_str().ok());
        assert_eq!((said(KIND), said(RETRY)), (Some("not_found"), Some("never")), "{refused:?}");
        // What is answered is left as it is.
        let answer = client.check(HealthCheckRequest::default()).await.expect("it lives");
        assert!(answer.metadata().get(KIND).is_none());
    }
}

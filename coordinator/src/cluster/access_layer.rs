//! Asks for every call whether its caller may make it, and how much he may ask for; notes what is changed; and ends
//! at the deadline that a request sets itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::access::{ANYBODY, Bootstrap, Caller, Named, Needed, Refused, check, needed};
use super::audit_log::{self, Answered, Refusals};
use super::convert;
use super::deadline::{self, Bounded};
use super::node::Node;
use super::quota::{Call as HeldCall, Quotas};

/// Wraps all services of a coordinator.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) node: Arc<Node>,
    pub(super) bootstrap: Bootstrap,
    pub(super) quotas: Quotas,
    pub(super) refusals: Refusals,
    /// Everybody may do everything: on loopback only, and said in the log.
    pub(super) is_open: bool,
}

impl<S> Layer<S> for Access {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { access: self.clone(), inner }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Guarded<S> {
    access: Access,
    inner: S,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that is ready goes, a fresh one stays.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let (access, call) = (self.access.clone(), Call::of(&request));
        let Needed::Token(_) = needed(&call.path) else {
            return Box::pin(async move {
                match access.check(&call).await {
                    Ok(_) => inner.call(request).await,
                    Err(Refusal { status, .. }) => Ok(status.into_http()),
                }
            });
        };
        let began = Instant::now();
        let rest = deadline::of(request.headers());
        let answering = async move {
            let (who, refused) = match access.check(&call).await {
                Ok(who) => (who, None),
                Err(Refusal { who: Some(who), status }) => (who, Some(status)),
                Err(Refusal { who: None, status }) => return Ok(status.into_http()),
            };
            // Also who is refused may not ask as often as he likes.
            let held = match access.quotas.begin(&who) {
                Ok(held) => held,
                Err(status) => {
                    let why = status.message();
                    tracing::warn!(target: "weir::access", path = call.path, who, why, "refused");
                    return Ok(status.into_http());
                }
            };
            if let Some(status) = refused {
                if audit_log::is_change(&call.path) {
                    let code = status.code();
                    access.refusals.note(&access.node, who, &call.path, code);
                }
                return Ok(status.into_http());
            }
            let (answer, held) = match audit_log::is_change(&call.path) {
                true => access.change(who, &call.path, inner, request, held).await?,
                false => (inner.call(request).await?, Some(held)),
            };
            log_if_too_large(&call.path, call.peer, &answer);
            let rest = rest.map(|rest| rest.saturating_sub(began.elapsed()));
            Ok(answer.map(|body| Bounded::body(body, rest, held)))
        };
        let Some(rest) = rest else { return Box::pin(answering) };
        // Made now: tonic's own comes a moment later.
        let waiting = tokio::time::timeout(rest, answering);
        Box::pin(
            async move { waiting.await.unwrap_or_else(|_| Ok(deadline::exceeded().into_http())) },
        )
    }
}

/// Who sends too much is not served, and may mean harm.
fn log_if_too_large(path: &str, peer: Option<SocketAddr>, answer: &Response<Body>) {
    let status = Status::from_header_map(answer.headers());
    if let Some(status) = status.filter(|status| status.code() == Code::OutOfRange) {
        let why = status.message();
        tracing::warn!(target: "weir::access", path, ?peer, why, "refused");
    }
}

/// What the decision needs of a request.
struct Call {
    path: String,
    peer: Option<SocketAddr>,
    certificate: Option<Named>,
    authorization: Option<String>,
}

impl Call {
    fn of(request: &Request<Body>) -> Self {
        let tls = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let certificates = tls.and_then(TlsConnectInfo::peer_certs);
        let header = request.headers().get(http::header::AUTHORIZATION);
        Self {
            path: request.uri().path().to_owned(),
            peer: tls.and_then(|tls| tls.get_ref().remote_addr()),
            certificate: certificates.and_then(|certificates| certificates.first().map(Named::of)),
            authorization: header.and_then(|value| value.to_str().ok()).map(str::to_owned),
        }
    }
}

/// Why a call is not made.
struct Refusal {
    /// Who is known to have wanted it.
    who: Option<String>,
    status: Status,
}

impl Access {
    /// The name of who calls.
    async fn check(&self, call: &Call) -> Result<String, Refusal> {
        let Call { path, peer, certificate, authorization } = call;
        if self.is_open {
            return Ok(ANYBODY.to_owned());
        }
        let caller = Caller { certificate: *certificate, authorization: authorization.as_deref() };
        // A heartbeat of the ledger's leader does not wait for who reads the ledger.
        let (ledger, nobody);
        let tokens = match needed(path) {
            Needed::Token(_) => {
                ledger = self.node.member.ledger().await;
                &ledger.tokens
            }
            Needed::Nothing | Needed::Node(_) => {
                nobody = BTreeMap::new();
                &nobody
            }
        };
        match check(path, caller, tokens, &self.bootstrap) {
            Ok(who) => {
                if audit_log::is_change(path) {
                    tracing::info!(target: "weir::access", path, who, ?peer, "allowed");
                }
                Ok(who.to_owned())
            }
            Err(Refused { who, status }) => {
                let why = status.message();
                tracing::warn!(target: "weir::access", path, ?peer, why, "refused");
                Err(Refusal { who: who.map(str::to_owned), status })
            }
        }
    }

    /// A change that has begun is made and noted, also when its client goes away; until then it is one of his calls.
    async fn change<S>(
        &self,
        who: String,
        path: &str,
        mut inner: S,
        request: Request<Body>,
        held: HeldCall,
    ) -> Result<(Response<Body>, Option<HeldCall>), S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
    {
        let (node, path) = (Arc::clone(&self.node), path.to_owned());
        let changing = tokio::spawn(async move {
            let answered = |answer: &Result<Response<Body>, S::Error>| match answer {
                Ok(answer) => {
                    let status = Status::from_header_map(answer.headers());
                    let is_unknown = status.as_ref().is_some_and(convert::is_unknown);
                    Answered { code: status.map_or(Code::Ok, |status| status.code()), is_unknown }
                }
                Err(_) => Answered { code: Code::Unknown, is_unknown: true },
            };
            let answer = audit_log::noted(&node, who, &path, inner.call(request), answered).await;
            answer.map(|answer| (answer, Some(held)))
        });
        let panicked = |_| Ok((Status::internal("the change has panicked").into_http(), None));
        changing.await.unwrap_or_else(panicked)
    }
}

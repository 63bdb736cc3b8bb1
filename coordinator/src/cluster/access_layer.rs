//! Asks for every call whether its caller may make it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::sync::RwLock;
use tonic::body::Body;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Code, Status};
use tower::{Layer, Service};
use weir_ledger::{Ledger, Role};

use super::access::{Bootstrap, Caller, Named, Needed, check, needed};

/// Wraps all services of a coordinator.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) ledger: Arc<RwLock<Ledger>>,
    pub(super) bootstrap: Bootstrap,
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
        if self.access.is_open || needed(request.uri().path()) == Needed::Nothing {
            return Box::pin(inner.call(request));
        }
        let access = self.access.clone();
        let call = Call::of(&request);
        let (path, peer) = (call.path.clone(), call.peer);
        Box::pin(async move {
            match access.check(call).await {
                Ok(()) => {
                    let answer = inner.call(request).await?;
                    log_if_too_large(&path, peer, &answer);
                    Ok(answer)
                }
                Err(status) => Ok(status.into_http()),
            }
        })
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

impl Access {
    async fn check(&self, call: Call) -> Result<(), Status> {
        let Call { path, peer, certificate, authorization } = call;
        let caller = Caller { certificate, authorization: authorization.as_deref() };
        let is_change = matches!(needed(&path), Needed::Token(role) if role > Role::Viewer);
        // A heartbeat of the ledger's leader does not wait for who reads the ledger.
        let (ledger, nobody);
        let tokens = match needed(&path) {
            Needed::Token(_) => {
                ledger = self.ledger.read().await;
                &ledger.tokens
            }
            Needed::Nothing | Needed::Node(_) => {
                nobody = BTreeMap::new();
                &nobody
            }
        };
        match check(&path, caller, tokens, &self.bootstrap) {
            Ok(who) if is_change => {
                tracing::info!(target: "weir::access", path, who, ?peer, "allowed");
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(status) => {
                let why = status.message();
                tracing::warn!(target: "weir::access", path, ?peer, why, "refused");
                Err(status)
            }
        }
    }
}

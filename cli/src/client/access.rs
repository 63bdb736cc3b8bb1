//! How a command knows whom it asks, and shows who it is.

use std::path::Path;
use std::time::Duration;

use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};
use weir_executor::address;
use weir_executor::tls::TlsFiles;

use crate::cluster_file::{self, ClusterFile};
use crate::failure::Failure;
use crate::token::Token;

const CONNECT: Duration = Duration::from_secs(2);
/// Of a coordinator that holds the connection but says nothing: found out by a ping.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_ANSWERED: Duration = Duration::from_secs(3);

/// Without TLS by default: then only this machine is asked, and no token is sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    tls: Option<TlsFiles>,
    token: Option<Token>,
}

/// A connection to a coordinator, on which every request carries the token.
pub(super) type Line = InterceptedService<Channel, Bearer>;

#[derive(Clone, Debug)]
pub(super) struct Bearer(Option<Token>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.header());
        }
        Ok(request)
    }
}

impl Access {
    pub(crate) fn new(authority: Option<&Path>, token: Option<Token>) -> Self {
        let tls =
            authority.map(|authority| TlsFiles { authority: authority.to_owned(), identity: None });
        // What is not encrypted can be read on the way, and is not asked for either.
        Self { token: token.filter(|_| tls.is_some()), tls }
    }

    /// As whoever has started the cluster in this folder.
    pub(crate) fn of_cluster(dir: &Path, file: &ClusterFile) -> Result<Self, Failure> {
        if file.is_insecure() {
            return Ok(Self::default());
        }
        let token = Token::from_file(&cluster_file::admin_token(dir))?;
        Ok(Self::new(Some(&cluster_file::authority(dir)), Some(token)))
    }

    /// Whoever names the URL, the user or a coordinator: a token goes only to who has shown a
    /// certificate of the authority.
    pub(super) fn line(&self, url: &str) -> Result<Line, String> {
        let endpoint = address::endpoint(url, self.tls.as_ref())?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_ANSWERED)
            .keep_alive_while_idle(true);
        let bearer = Bearer(self.token.clone());
        Ok(InterceptedService::new(endpoint.connect_lazy(), bearer))
    }

    pub(super) fn check(&self, url: &str) -> Result<(), Failure> {
        address::check(url, self.tls.is_some()).map(drop).map_err(Failure::Usage)
    }
}

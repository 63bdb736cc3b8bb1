//! Serves what this process keeps to other executors: Arrow Flight, `DoGet` alone.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Response, Status, Streaming};

use super::files::read_ahead;
use super::messages::FileMessages;
use super::ticket::FileTicket;
use crate::tls::{self, TlsFiles};

/// Batches that are read ahead of the network.
const READ_AHEAD: usize = 2;
/// Of one read from the disk.
const READ_BYTES: usize = 256 * 1024;
/// A reader that does not answer a ping within the timeout is gone, and with it what was read ahead for it.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A ticket is small.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// Serves the files below `root` until it is stopped. With TLS, only to who shows a certificate of the
/// cluster's authority.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsFiles>,
    root: PathBuf,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let asks_for_certificates = tls.is_some();
    let check = move |request: Request<()>| check(request, asks_for_certificates);
    let service = FlightServiceServer::new(ExchangeService { root })
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    let service = tonic::service::interceptor::InterceptedService::new(service, check);
    let server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(service);
    let stopped = async move { stop.cancelled().await };
    match tls {
        None => {
            server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped).await
        }
        Some(files) => {
            let incoming = tls::accept(listener, files)?;
            server.serve_with_incoming_shutdown(incoming, stopped).await
        }
    }
    .map_err(std::io::Error::other)
}

fn check(request: Request<()>, asks_for_certificates: bool) -> Result<Request<()>, Status> {
    let tls = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
    let certificates = tls.and_then(TlsConnectInfo::peer_certs);
    if asks_for_certificates && certificates.is_none_or(|certificates| certificates.is_empty()) {
        let peer = tls.and_then(|tls| tls.get_ref().remote_addr());
        tracing::warn!(target: "weir::access", ?peer, "exchange refused: no certificate");
        return Err(Status::unauthenticated(
            "only processes of the cluster are served: show a certificate of its authority",
        ));
    }
    Ok(request)
}

#[derive(Debug)]
struct ExchangeService {
    root: PathBuf,
}

impl ExchangeService {
    fn file_of(&self, request: &Request<Ticket>) -> Result<PathBuf, Status> {
        let path = FileTicket::decode(request.get_ref()).and_then(|ticket| ticket.path(&self.root));
        path.map_err(|why| {
            let peer = request.remote_addr();
            tracing::warn!(target: "weir::access", ?peer, why, "exchange refused");
            Status::invalid_argument(why)
        })
    }
}

/// The file's own messages: its batches are compressed already. No thread waits for who reads slowly.
async fn stream_of(
    path: PathBuf,
) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
    let opened = path.clone();
    let file = tokio::task::spawn_blocking(move || File::open(opened))
        .await
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| not_served(&path, &error))?;
    let file = FileMessages::new(BufReader::with_capacity(READ_BYTES, file));
    let (sender, messages) = mpsc::channel(READ_AHEAD);
    tokio::spawn(async move {
        let read = read_ahead(file, FileMessages::next, |message| {
            let sender = sender.clone();
            async move { sender.send(Ok(message)).await.is_ok() }
        });
        if let Err(error) = read.await {
            // Who reads no more needs no reason.
            let _ = sender.send(Err(not_served(&path, &error))).await;
        }
    });
    Ok(ReceiverStream::new(messages).boxed())
}

fn not_served(path: &Path, error: &io::Error) -> Status {
    tracing::warn!(path = %path.display(), %error, "exchange not served");
    match path.exists() {
        true => Status::internal(error.to_string()),
        false => Status::not_found("this process does not have the rows that are asked for"),
    }
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("executors serve `DoGet` alone"))
}

#[tonic::async_trait]
impl FlightService for ExchangeService {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;

    async fn do_get(
        &self,
        request: Request<Ticket>,
    ) -> Result<Response<Self::DoGetStream>, Status> {
        let path = self.file_of(&request)?;
        Ok(Response::new(stream_of(path).await?))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        not_here()
    }
    async fn list_flights(
        &self,
        _: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        not_here()
    }
    async fn get_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        not_here()
    }
    async fn poll_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        not_here()
    }
    async fn get_schema(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        not_here()
    }
    async fn do_put(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        not_here()
    }
    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        not_here()
    }
    async fn do_action(
        &self,
        _: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        not_here()
    }
    async fn list_actions(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        not_here()
    }
}

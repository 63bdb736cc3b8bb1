//! Serves what this process keeps to other executors: Arrow Flight, `DoGet` alone.

use std::path::{Path, PathBuf};

use arrow::ipc::CompressionType;
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Response, Status, Streaming};

use super::files::{open, read_error};
use super::ticket::FileTicket;
use crate::tls::{self, TlsFiles};
use crate::wire::with_causes;

/// Batches that are read ahead of the network.
const READ_AHEAD: usize = 2;
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
    let server = Server::builder().tcp_nodelay(true).add_service(service);
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

async fn stream_of(
    path: PathBuf,
) -> Result<BoxStream<'static, Result<FlightData, Status>>, Status> {
    let opened = path.clone();
    let reader = tokio::task::spawn_blocking(move || open(&opened, 0))
        .await
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| not_served(&path, &error))?;
    let schema = reader.schema();
    let (sender, batches) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        for rows in reader {
            let rows = rows.map_err(|cause| {
                FlightError::from_external_error(Box::new(read_error(&path, cause)))
            });
            let is_last = rows.is_err();
            if sender.blocking_send(rows).is_err() || is_last {
                return;
            }
        }
    });
    let options = IpcWriteOptions::default()
        .try_with_compression(Some(CompressionType::LZ4_FRAME))
        .map_err(|error| Status::internal(error.to_string()))?;
    let data = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_options(options)
        .build(ReceiverStream::new(batches));
    Ok(data.map_err(|error| Status::internal(with_causes(&error))).boxed())
}

fn not_served(path: &Path, error: &crate::TaskError) -> Status {
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

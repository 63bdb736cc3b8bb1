//! The executors' streams.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::CertificateDer;
use tonic::{Request, Response, Status, Streaming};
use weir_executor::identity;
use weir_plan::StageGraph;
use weir_proto::internal::executors_server::Executors;
use weir_proto::internal::from_executor::Message;
use weir_proto::internal::{FromExecutor, Hello, ToExecutor};

use super::leading::Leading;
use super::node::Node;
use super::pool::{NotJoined, Pool};
use super::reports::on_report;

/// An executor introduces itself at once, or is cut off.
const LONGEST_HELLO: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(super) struct ExecutorsService {
    pub(super) node: Arc<Node>,
}

#[tonic::async_trait]
impl Executors for ExecutorsService {
    type WorkStream = Pin<Box<dyn Stream<Item = Result<ToExecutor, Status>> + Send>>;

    async fn work(
        &self,
        request: Request<Streaming<FromExecutor>>,
    ) -> Result<Response<Self::WorkStream>, Status> {
        let leading = self.node.leading(Status::failed_precondition)?;
        let certificates = request.peer_certs();
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(LONGEST_HELLO, incoming.message()).await;
        let hello = match first.map_err(|_| Status::deadline_exceeded("no Hello came"))?? {
            Some(FromExecutor { message: Some(Message::Hello(hello)) }) => {
                let certificate =
                    certificates.as_deref().and_then(|certificates| certificates.first());
                check(hello, certificate)?
            }
            _ => return Err(Status::invalid_argument("the first message must be Hello")),
        };
        let (name, boot_id) = (hello.executor.clone(), hello.boot_id.clone());
        let pool = Arc::clone(&leading.pool);
        let (number, outgoing) = match pool.join(hello) {
            Ok(joined) => joined,
            Err(NotJoined::Closed) => {
                return Err(self.node.not_leading(Status::failed_precondition));
            }
            Err(NotJoined::NameTaken) => {
                return Err(Status::already_exists(format!(
                    "another process is executor `{name}`: give each a name of its own"
                )));
            }
        };
        let leading = Arc::downgrade(&leading);
        tokio::spawn(async move {
            listen(&leading, &pool, (&name, &boot_id), number, incoming).await;
            pool.stream_ended(&name, number);
        });
        Ok(Response::new(UnboundedReceiverStream::new(outgoing).boxed()))
    }
}

/// Without TLS there are no certificates; with it, nobody has come so far without one.
fn check(hello: Hello, certificate: Option<&CertificateDer<'_>>) -> Result<Hello, Status> {
    if hello.executor.is_empty() || hello.boot_id.is_empty() || hello.slots == 0 {
        return Err(Status::invalid_argument(
            "an executor has a name, a boot id and at least one slot",
        ));
    }
    let [_, name] = identity::names(identity::EXECUTOR, &hello.executor);
    if certificate.is_some_and(|certificate| !identity::is_for(certificate, &name)) {
        let executor = &hello.executor;
        tracing::warn!(target: "weir::access", executor, why = "another one's certificate", "refused");
        return Err(Status::permission_denied(format!(
            "executor `{executor}` has a certificate that does not name `{name}`"
        )));
    }
    if hello.engine_version != StageGraph::ENGINE_VERSION {
        return Err(Status::invalid_argument(format!(
            "this cluster runs {}, and the executor {}: start one of the same version",
            StageGraph::ENGINE_VERSION,
            hello.engine_version
        )));
    }
    Ok(hello)
}

async fn listen(
    leading: &Weak<Leading>,
    pool: &Arc<Pool>,
    (name, boot_id): (&str, &str),
    number: u64,
    mut incoming: Streaming<FromExecutor>,
) {
    loop {
        let message = match incoming.message().await {
            Ok(Some(FromExecutor { message })) => message,
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(executor = name, stream = number, %status, "stream broke");
                return;
            }
        };
        let is_draining = match &message {
            Some(Message::Heartbeat(heartbeat)) => Some(heartbeat.draining),
            _ => None,
        };
        pool.heard(name, number, is_draining);
        match message {
            Some(Message::Report(report)) => on_report(pool, name, boot_id, report),
            Some(Message::Stored(stored)) => {
                let (leading, name, boot_id) =
                    (Weak::clone(leading), name.to_owned(), boot_id.to_owned());
                // The stream goes on meanwhile.
                tokio::spawn(async move {
                    if let Some(leading) = leading.upgrade() {
                        leading.note_stored(&name, &boot_id, stored).await;
                    }
                });
            }
            Some(Message::Progress(progress)) => pool.on_progress(&progress.json),
            Some(Message::Hello(_) | Message::Heartbeat(_)) | None => {}
        }
    }
}

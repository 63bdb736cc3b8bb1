//! `weir.v1.DeadLetters`: rejected rows that clients want to have loaded after all.

use std::path::PathBuf;

use tonic::{Request, Response, Status, Streaming};
use weir_proto::v1;
use weir_proto::v1::dead_letters_server::DeadLetters;
use weir_spec::NodeName;

use super::replays::{Rows, WantedReplay, start_of};
use super::runs_service::{RunsService, check_request_id, parse};
use super::{audit_log, convert};
use crate::frozen::Registered;

/// Finds the leader, and says what has failed, as the service of runs does.
#[derive(Clone, Debug)]
pub(super) struct DeadLettersService(pub(super) RunsService);

#[tonic::async_trait]
impl DeadLetters for DeadLettersService {
    async fn replay(
        &self,
        request: Request<Streaming<v1::ReplayRequest>>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let leading = self.0.leading().await?;
        let mut stream = request.into_inner();
        let start = start_of(&mut stream).await?;
        audit_log::about(&start.run);
        check_request_id(&start.request_id)?;
        let v1::ReplayStart { run, node, pipeline, file_name, base_dir, workspace, .. } = start;
        let mended = match pipeline.is_empty() {
            true => None,
            false => {
                let base_dir = PathBuf::from(base_dir);
                let sent = Registered { text: pipeline, workspace, file_name, base_dir };
                Some((parse(&sent)?.spec, sent.text, sent.base_dir))
            }
        };
        let wanted = WantedReplay {
            run,
            node: (!node.is_empty()).then(|| NodeName::new(node)),
            mended,
            request_id: Some(start.request_id).filter(|id| !id.is_empty()),
        };
        let rows = match start.rows_bytes {
            None => Rows::Rejected,
            Some(bytes) => Rows::Sent { bytes, stream: Box::new(stream) },
        };
        // A client that goes away does not stop what has begun: a change goes on without him (`Access`).
        let replayed = leading.replay(wanted, rows).await;
        let replayed = replayed.map_err(|error| self.0.failed(&error))?;
        if let Some(submitted) = &replayed {
            audit_log::about(&submitted.run.0);
        }
        Ok(Response::new(replayed.map(convert::submitted).unwrap_or_default()))
    }
}

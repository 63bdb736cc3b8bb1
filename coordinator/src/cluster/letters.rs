//! The rejected rows of a run, as a stream: they are read as fast as the client takes them.

use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::Status;
use weir_executor::RunFolder;
use weir_proto::v1;
use weir_spec::NodeName;

use super::leading::Leading;
use crate::{DeadLetter, EngineError};

/// Letters that wait for the network.
const READ_AHEAD: usize = 64;

impl Leading {
    /// At most `limit` letters, in the order of nodes, stages, slices and batches.
    pub(super) async fn dead_letters(
        self: &Arc<Self>,
        request: v1::DeadLettersRequest,
    ) -> Result<mpsc::Receiver<Result<v1::DeadLetter, Status>>, EngineError> {
        let (run, facts) = self.find(&request.run).await?;
        let folder = RunFolder::new(self.dir(&facts).run(&run));
        let v1::DeadLettersRequest { node, id, limit, .. } = request;
        let node = (!node.is_empty()).then(|| NodeName::new(node));
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        tokio::task::spawn_blocking(move || {
            let mut left = if limit == 0 { u64::MAX } else { limit };
            let mut each = |letter: DeadLetter| {
                if !id.is_empty() && letter.id != id {
                    return ControlFlow::Continue(());
                }
                left -= 1;
                let is_taken = sender.blocking_send(Ok(message(letter))).is_ok();
                if is_taken && left > 0 {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            };
            let pipeline = facts.pipeline.0.clone();
            let read = crate::dead_letters::read_dead_letters(
                &folder,
                &pipeline,
                &facts,
                node.as_ref(),
                &mut each,
            );
            if let Err(error) = read {
                tracing::warn!(%run, %error, "dead letters cannot be read");
                let _ = sender.blocking_send(Err(Status::internal(error.to_string())));
            }
        });
        Ok(receiver)
    }
}

fn message(letter: DeadLetter) -> v1::DeadLetter {
    let DeadLetter { id, run, pipeline, node, attempt, at, reasons, row, offset } = letter;
    v1::DeadLetter {
        id,
        run,
        pipeline,
        node: node.to_string(),
        attempt,
        at: at.to_rfc3339(),
        reasons,
        row: row.to_string(),
        offset,
    }
}

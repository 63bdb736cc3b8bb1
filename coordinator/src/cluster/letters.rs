//! The rejected rows of a run, as a stream: they are read as fast as the client takes them.

use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::Status;
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
        let folder = self.files(&facts).run(&run);
        let v1::DeadLettersRequest { node, id, limit, .. } = request;
        let node = (!node.is_empty()).then(|| NodeName::new(node));
        let pipeline = facts.pipeline.0.clone();
        let mut letters = crate::dead_letters::read_dead_letters(folder, pipeline, facts, node);
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        tokio::spawn(async move {
            let mut left = if limit == 0 { u64::MAX } else { limit };
            while left > 0
                && let Some(letter) = letters.recv().await
            {
                let letter = match letter {
                    Ok(letter) if id.is_empty() || letter.id == id => Ok(message(letter)),
                    Ok(_) => continue,
                    Err(error) => {
                        tracing::warn!(%run, %error, "dead letters cannot be read");
                        Err(Status::internal(error.to_string()))
                    }
                };
                left -= 1;
                if sender.send(letter).await.is_err() {
                    return;
                }
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

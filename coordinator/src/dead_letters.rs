//! Reads the rejected rows of a run.

use std::collections::BTreeSet;
use std::io;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use weir_executor::storage::Storage;
use weir_executor::{DeadLetterLine, RunFolder};
use weir_ledger::RunFacts;
use weir_plan::StageId;
use weir_spec::NodeName;

use crate::pipeline_files::storage_error;
use crate::{DeadLetter, EngineError};

/// Letters that wait for whoever asked for them.
const READ_AHEAD: usize = 64;

/// One letter after the other, by node, until the receiver is dropped; an error is the last. Only of
/// committed batches, as the attempt has written them that has committed them: rows of others have been, or
/// will be, read again.
pub(crate) fn read_dead_letters(
    folder: RunFolder,
    pipeline: String,
    run: RunFacts,
    wanted: Option<NodeName>,
) -> mpsc::Receiver<Result<DeadLetter, EngineError>> {
    let (letters, received) = mpsc::channel(READ_AHEAD);
    tokio::spawn(async move {
        let reading = Reading { folder, pipeline, letters };
        if let Err(error) = reading.all(&run, wanted.as_ref()).await {
            // Nobody may be waiting.
            let _ = reading.letters.send(Err(error)).await;
        }
    });
    received
}

struct Reading {
    folder: RunFolder,
    pipeline: String,
    letters: mpsc::Sender<Result<DeadLetter, EngineError>>,
}

impl Reading {
    async fn all(&self, run: &RunFacts, wanted: Option<&NodeName>) -> Result<(), EngineError> {
        for node in rejecting_nodes(run, wanted) {
            for (stage, id) in run.stages.iter().zip(0..) {
                let id = StageId(id);
                for (slice, number) in stage.slices.iter().zip(0..) {
                    let account = slice.account.unpack();
                    if account.nodes.get(&node).is_none_or(|counts| counts.dead_lettered == 0) {
                        continue;
                    }
                    let batches = match stage.sink() {
                        Some(_) => slice.next_sequence,
                        None => u64::from(slice.is_finished()),
                    };
                    for sequence in 0..batches {
                        let attempt = slice.attempt_of(sequence).unwrap_or_default();
                        let batch = format!("{id}-{number}-{sequence}");
                        // The attempt's own name, and that of earlier versions.
                        for attempt in [attempt, 0] {
                            let name =
                                RunFolder::dead_letter_file(&node, id, number, sequence, attempt);
                            match self.file(&name, &batch).await? {
                                Read::All => break,
                                Read::NotThere => {}
                                Read::NotWanted => return Ok(()),
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn file(&self, name: &str, batch: &str) -> Result<Read, EngineError> {
        let storage = self.folder.storage();
        let failed = |cause| storage_error("read", storage, name, cause);
        let mut lines = match Lines::open(storage, name).await {
            Ok(lines) => lines,
            // The node has rejected nothing in this batch.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Read::NotThere),
            Err(cause) => return Err(failed(cause)),
        };
        let mut number = 0;
        while let Some(line) = lines.next().await.map_err(failed)? {
            number += 1;
            let line: DeadLetterLine =
                serde_json::from_slice(&line).map_err(|error| failed(error.into()))?;
            let letter = DeadLetter {
                id: format!("{}/{}/{batch}/{number}", line.run, line.node),
                run: line.run,
                pipeline: self.pipeline.clone(),
                node: line.node,
                attempt: line.attempt,
                at: line.at,
                reasons: line.reasons,
                row: line.row,
                offset: line.offset,
            };
            if self.letters.send(Ok(letter)).await.is_err() {
                return Ok(Read::NotWanted);
            }
        }
        Ok(Read::All)
    }
}

enum Read {
    All,
    NotThere,
    /// Nobody listens any more.
    NotWanted,
}

/// The lines of a file. One at a time is in memory, and what has been read ahead.
struct Lines {
    pieces: BoxStream<'static, io::Result<Bytes>>,
    piece: Bytes,
    /// The beginning of a line, of pieces before.
    open: Vec<u8>,
}

impl Lines {
    async fn open(storage: &Storage, name: &str) -> io::Result<Self> {
        let pieces = storage.read(name).await?;
        Ok(Self { pieces, piece: Bytes::new(), open: Vec::new() })
    }

    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.piece.iter().position(|byte| *byte == b'\n') {
                let rest = self.piece.split_to(end + 1);
                self.open.extend_from_slice(&rest[..end]);
                return Ok(Some(std::mem::take(&mut self.open)));
            }
            self.open.extend_from_slice(&self.piece);
            match self.pieces.try_next().await? {
                Some(piece) => self.piece = piece,
                None => {
                    self.piece.clear();
                    let last = std::mem::take(&mut self.open);
                    return Ok(Some(last).filter(|line| !line.is_empty()));
                }
            }
        }
    }
}

/// How many letters there are, as the ledger has counted them.
pub(crate) fn count_dead_letters(run: &RunFacts, wanted: Option<&NodeName>) -> u64 {
    let slices = run.stages.iter().flat_map(|stage| &stage.slices);
    slices
        .flat_map(|slice| slice.account.unpack().nodes)
        .filter(|(node, _)| wanted.is_none_or(|wanted| wanted == node))
        .map(|(_, counts)| counts.dead_lettered)
        .sum()
}

fn rejecting_nodes(run: &RunFacts, wanted: Option<&NodeName>) -> BTreeSet<NodeName> {
    let slices = run.stages.iter().flat_map(|stage| &stage.slices);
    slices
        .flat_map(|slice| slice.account.unpack().nodes)
        .filter(|(node, counts)| {
            counts.dead_lettered > 0 && wanted.is_none_or(|wanted| wanted == node)
        })
        .map(|(node, _)| node)
        .collect()
}

//! Reads the rejected rows of a run.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use weir_executor::{DeadLetterLine, RunFolder};
use weir_ledger::RunFacts;
use weir_plan::StageId;
use weir_spec::NodeName;

use crate::state_dir::state_error;
use crate::{DeadLetter, EngineError};

/// Only of committed batches: rows of others have been, or will be, read again.
pub(crate) fn read_dead_letters(
    folder: &RunFolder,
    pipeline: &str,
    run: &RunFacts,
    wanted: Option<&NodeName>,
) -> Result<Vec<DeadLetter>, EngineError> {
    let mut letters = Vec::new();
    for (stage, id) in run.stages.iter().zip(0..) {
        let id = StageId(id);
        for (slice, number) in stage.slices.iter().zip(0..) {
            let batches = match stage.sink() {
                Some(_) => slice.next_sequence,
                None => u64::from(slice.is_finished()),
            };
            let nodes = (slice.account.nodes.iter())
                .filter(|(node, counts)| {
                    counts.dead_lettered > 0 && wanted.is_none_or(|wanted| wanted == *node)
                })
                .map(|(node, _)| node);
            for node in nodes {
                for sequence in 0..batches {
                    let path = folder.dead_letter_file(node, id, number, sequence);
                    let batch = format!("{id}-{number}-{sequence}");
                    read_file(&path, pipeline, &batch, &mut letters)?;
                }
            }
        }
    }
    letters.sort_by(|left, right| left.node.cmp(&right.node));
    Ok(letters)
}

fn read_file(
    path: &Path,
    pipeline: &str,
    batch: &str,
    letters: &mut Vec<DeadLetter>,
) -> Result<(), EngineError> {
    let failed = |cause| state_error("read", path, cause);
    let file = match File::open(path) {
        Ok(file) => file,
        // The node has rejected nothing in this batch.
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(failed(cause)),
    };
    for (line, number) in BufReader::new(file).lines().zip(1u64..) {
        let line: DeadLetterLine =
            serde_json::from_str(&line.map_err(failed)?).map_err(|error| failed(error.into()))?;
        letters.push(DeadLetter {
            id: format!("{}/{}/{batch}/{number}", line.run, line.node),
            run: line.run,
            pipeline: pipeline.to_owned(),
            node: line.node,
            attempt: line.attempt,
            at: line.at,
            reasons: line.reasons,
            row: line.row,
            offset: line.offset,
        });
    }
    Ok(())
}

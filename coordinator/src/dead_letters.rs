//! Reads the rejected rows of a run.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;

use weir_executor::{DeadLetterLine, RunFolder};
use weir_ledger::RunFacts;
use weir_plan::StageId;
use weir_spec::NodeName;

use crate::state_dir::state_error;
use crate::{DeadLetter, EngineError};

/// Hands on one letter after the other, by node, until `each` breaks off. Only of committed batches, as
/// the attempt has written them that has committed them: rows of others have been, or will be, read
/// again.
pub(crate) fn read_dead_letters(
    folder: &RunFolder,
    pipeline: &str,
    run: &RunFacts,
    wanted: Option<&NodeName>,
    each: &mut dyn FnMut(DeadLetter) -> ControlFlow<()>,
) -> Result<(), EngineError> {
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
                    let path = RunFolder::accepted(attempt, |attempt| {
                        folder.dead_letter_file(&node, id, number, sequence, attempt)
                    });
                    let batch = format!("{id}-{number}-{sequence}");
                    if read_file(&path, pipeline, &batch, each)?.is_break() {
                        return Ok(());
                    }
                }
            }
        }
    }
    Ok(())
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

fn read_file(
    path: &Path,
    pipeline: &str,
    batch: &str,
    each: &mut dyn FnMut(DeadLetter) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, EngineError> {
    let failed = |cause| state_error("read", path, cause);
    let file = match File::open(path) {
        Ok(file) => file,
        // The node has rejected nothing in this batch.
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            return Ok(ControlFlow::Continue(()));
        }
        Err(cause) => return Err(failed(cause)),
    };
    for (line, number) in BufReader::new(file).lines().zip(1u64..) {
        let line: DeadLetterLine =
            serde_json::from_str(&line.map_err(failed)?).map_err(|error| failed(error.into()))?;
        let letter = DeadLetter {
            id: format!("{}/{}/{batch}/{number}", line.run, line.node),
            run: line.run,
            pipeline: pipeline.to_owned(),
            node: line.node,
            attempt: line.attempt,
            at: line.at,
            reasons: line.reasons,
            row: line.row,
            offset: line.offset,
        };
        if each(letter).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

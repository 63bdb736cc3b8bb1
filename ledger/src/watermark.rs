//! When the watermark of an incremental source moves: in the same entry that completes the last
//! sink fed by it.

use std::collections::BTreeSet;

use weir_plan::{StageId, is_later_cursor};
use weir_spec::NodeName;

use crate::facts::{NodeRole, PipelineFacts, RunFacts, StageFacts};

/// To be called after `completed` has become complete. Moves the watermark of every source that
/// feeds it and feeds no sink that is still incomplete, to the greatest cursor that the run has
/// committed; never backwards.
pub(crate) fn advance_watermarks(pipeline: &mut PipelineFacts, run: &RunFacts, completed: StageId) {
    for source in incremental_sources_above(run, completed) {
        let are_all_sinks_complete = (run.stages.iter().zip(0..))
            .filter(|(stage, _)| stage.sink().is_some())
            .filter(|(_, id)| incremental_sources_above(run, StageId(*id)).contains(source))
            .all(|(stage, _)| stage.is_complete());
        if !are_all_sinks_complete {
            continue;
        }
        for cursor in run.stages.iter().flat_map(|stage| committed_cursors(stage, source)) {
            match pipeline.watermarks.get_mut(source) {
                Some(known) if !is_later_cursor(&cursor, known) => {}
                Some(known) => *known = cursor,
                None => {
                    pipeline.watermarks.insert(source.clone(), cursor);
                }
            }
        }
    }
}

fn committed_cursors(stage: &StageFacts, source: &NodeName) -> impl Iterator<Item = String> {
    stage.slices.iter().filter_map(move |slice| slice.account.unpack().cursors.swap_remove(source))
}

/// Incremental sources whose rows reach a stage, directly or through exchanges.
fn incremental_sources_above(run: &RunFacts, stage: StageId) -> BTreeSet<&NodeName> {
    let mut seen = BTreeSet::new();
    let mut open = vec![stage];
    let mut sources = BTreeSet::new();
    while let Some(id) = open.pop() {
        let Some(stage) = run.stage(id).filter(|_| seen.insert(id)) else { continue };
        open.extend(&stage.shape.inputs);
        sources.extend(
            (stage.shape.nodes.iter())
                .filter(|node| node.role == NodeRole::Source { incremental: true })
                .map(|node| &node.name),
        );
    }
    sources
}

//! Which rows that a failed run would load were loaded by others since: then it is not taken up again. Tested with what is
//! decided by it, in [`crate::choose`].

use chrono::{DateTime, Utc};
use weir_ledger::{
    BackfillFacts, BackfillId, Ledger, NodeRole, RunCommit, RunFacts, RunId, WindowRange,
};
use weir_spec::{CommitMode, Windows};

/// A run that has loaded rows since, which this run would load again. The plan of a run is frozen, and with it where its
/// incremental sources begin: what another run has loaded from them since lies behind that, whatever its
/// parameters. A run without incremental sources reads what another one with the same parameters and
/// window has read. A run without a plan may turn out to read in either way. (Whatever was to be loaded, a new run loads
/// it.)
fn loaded_since<'ledger>(
    ledger: &'ledger Ledger,
    id: &RunId,
    run: &RunFacts,
) -> Option<&'ledger RunId> {
    let is_incremental = reads_incrementally(run) || !run.is_planned();
    (ledger.runs.iter())
        .filter(|(other, facts)| *other != id && facts.pipeline == run.pipeline)
        .filter(|(_, facts)| facts.order() >= run.order() && may_show_rows(facts))
        .filter(|(_, facts)| {
            let reads_the_same = facts.params == run.params && reads_window_of(facts, run);
            (is_incremental && reads_incrementally(facts)) || reads_the_same
        })
        .max_by_key(|(_, facts)| facts.order())
        .map(|(other, _)| other)
}

/// Windows of backfills are steps of their own, and may have a part of a run's window.
fn reads_window_of(other: &RunFacts, run: &RunFacts) -> bool {
    match (other.window, run.window) {
        (Some(other_window), Some(window)) if other.backfill.is_some() => {
            other_window.0 < window.1 && window.0 < other_window.1
        }
        (other_window, window) => other_window == window,
    }
}

/// Whether there was such a run, or one that was like it, which the ledger has no more.
fn has_left_since(ledger: &Ledger, run: &RunFacts) -> bool {
    let pipeline = ledger.pipelines.get(&run.pipeline);
    pipeline.and_then(|pipeline| pipeline.has_left).is_some_and(|left| left >= run.order())
}

fn loaded_by_backfill<'ledger>(
    ledger: &'ledger Ledger,
    run: &RunFacts,
) -> Option<&'ledger BackfillId> {
    let mut backfills = ledger.backfills.iter();
    backfills.find(|(_, backfill)| has_loaded_window(backfill, run)).map(|(id, _)| id)
}

/// Whether a window's run, of which the ledger has nothing but that the window is finished, may have loaded since what the
/// run would load.
fn has_loaded_window(backfill: &BackfillFacts, run: &RunFacts) -> bool {
    let Some((start, end)) = run.window else { return false };
    let came_later = backfill.last_run_number == 0 || backfill.last_run_number >= run.number;
    came_later
        && backfill.pipeline == run.pipeline
        && backfill.params == run.params
        && is_finished_within(backfill, start, end)
}

/// Whether any window is finished that overlaps `[start, end)`.
fn is_finished_within(backfill: &BackfillFacts, start: DateTime<Utc>, end: DateTime<Utc>) -> bool {
    let WindowRange { from, to, step, timezone, .. } = &backfill.range;
    let Ok(windows) = Windows::new(*from, *to, step, timezone) else {
        // They were computed when it was created.
        return !backfill.finished.is_empty();
    };
    backfill.finished.iter().any(|(first, behind)| {
        // Windows that follow each other leave no gap.
        let begins = windows.get(first).map(|(begins, _)| begins);
        let ends = windows.get(behind - 1).map(|(_, ends)| ends);
        begins.is_none_or(|begins| begins < end) && ends.is_none_or(|ends| start < ends)
    })
}

/// Who has loaded rows since that a run would load again, as far as the ledger knows.
pub(crate) fn loaded_by(ledger: &Ledger, id: &RunId, run: &RunFacts) -> Option<String> {
    let known = loaded_since(ledger, id, run).map(|later| format!("run {later} has"));
    let by_backfill =
        || loaded_by_backfill(ledger, run).map(|by| format!("backfill {by} may have"));
    let left = || {
        has_left_since(ledger, run).then(|| "a run that has left the ledger may have".to_owned())
    };
    known.or_else(by_backfill).or_else(left)
}

fn reads_incrementally(run: &RunFacts) -> bool {
    (run.stages.iter().flat_map(|stage| &stage.shape.nodes))
        .any(|node| node.role == NodeRole::Source { incremental: true })
}

/// Whether readers of some target may see rows of the run.
fn may_show_rows(run: &RunFacts) -> bool {
    run.sink_stages().any(|stage| match stage.sink() {
        Some((_, CommitMode::Run)) => stage.run_commit != RunCommit::Open,
        _ => stage.slices.iter().any(|slice| slice.next_sequence > 0 || slice.intent.is_some()),
    })
}

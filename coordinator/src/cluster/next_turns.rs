//! What becomes of runs beside other runs of their pipeline: whether one that is submitted begins, waits or is
//! skipped; which of those that wait begin, and what has to end for them. Pure; the leader carries it out.

use weir_ledger::{Ledger, PipelineFacts, QueuedRun, RunId};
use weir_spec::OnOverlap;

/// What becomes of a request for a new run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// No other run of its pipeline goes on or waits.
    Begin,
    Queue {
        beside: RunId,
        cancels_others: bool,
    },
    Skip {
        beside: RunId,
    },
}

pub(super) fn arrival(facts: Option<&PipelineFacts>, on_overlap: OnOverlap) -> Arrival {
    let Some(beside) = facts.and_then(run_before) else { return Arrival::Begin };
    match on_overlap {
        OnOverlap::Queue => Arrival::Queue { beside, cancels_others: false },
        OnOverlap::CancelRunning => Arrival::Queue { beside, cancels_others: true },
        OnOverlap::Skip => Arrival::Skip { beside },
    }
}

/// The run that goes on, or else the last one that waits.
pub(super) fn run_before(facts: &PipelineFacts) -> Option<RunId> {
    let waiting = facts.queue.last().map(|queued| &queued.run);
    facts.active_run.as_ref().or(waiting).cloned()
}

/// What is to be done about a pipeline's queue now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// A later run takes the place of one that waits.
    GiveUp {
        run: RunId,
        by: RunId,
    },
    /// A run that goes on is to end, for another one.
    Stop {
        run: RunId,
        by: RunId,
    },
    Begin(QueuedRun),
}

pub(super) fn next_turns(ledger: &Ledger) -> Vec<Turn> {
    let is_replay = |run: &RunId| ledger.run(run).is_some_and(|facts| facts.replay_of.is_some());
    let waited_for = ledger.pipelines.values().filter(|facts| !facts.queue.is_empty());
    waited_for
        .flat_map(|facts| turns_of(&facts.queue, facts.active_run.as_ref(), &is_replay))
        .collect()
}

/// The last one that wants to be the only one decides about all before it, as far back as there is no replay of dead
/// letters: for that it waits, and for what that waits for. (Nobody else loads these rows, and nothing remembers which of them
/// a replay has loaded that is given up half-way.)
fn turns_of(
    queue: &[QueuedRun],
    active: Option<&RunId>,
    is_replay: &impl Fn(&RunId) -> bool,
) -> Vec<Turn> {
    let decides = queue.iter().rposition(|queued| queued.cancels_others);
    let before = &queue[..decides.unwrap_or(0)];
    let replay = before.iter().rposition(|queued| is_replay(&queued.run));
    let (waited_for, given_up) = before.split_at(replay.map_or(0, |replay| replay + 1));
    let Some(next) = queue.get(before.len()) else { return Vec::new() };
    let by = next.run.clone();
    let given_up = given_up.iter().map(|queued| queued.run.clone());
    let mut turns: Vec<Turn> = given_up.map(|run| Turn::GiveUp { run, by: by.clone() }).collect();
    match active {
        _ if !waited_for.is_empty() => turns.extend(turns_of(waited_for, active, is_replay)),
        None => turns.push(Turn::Begin(next.clone())),
        Some(run) if next.cancels_others && !is_replay(run) => {
            turns.push(Turn::Stop { run: run.clone(), by });
        }
        Some(_) => {}
    }
    turns
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::DateTime;
    use weir_ledger::{Command, NewEpoch, QueueRun, Response, StartRun, apply};
    use weir_spec::PipelineName;

    use super::*;

    fn run(name: &str) -> RunId {
        RunId(name.to_owned())
    }

    fn facts(active: Option<&str>, queue: &[(&str, bool)]) -> PipelineFacts {
        let queue = queue.iter().map(|(name, cancels_others)| QueuedRun {
            run: run(name),
            is_fresh: false,
            cancels_others: *cancels_others,
        });
        PipelineFacts {
            active_run: active.map(run),
            queue: queue.collect(),
            ..PipelineFacts::default()
        }
    }

    /// Runs whose names begin with an `r` are replays.
    fn turns(active: Option<&str>, queue: &[(&str, bool)]) -> Vec<Turn> {
        let facts = facts(active, queue);
        turns_of(&facts.queue, facts.active_run.as_ref(), &|run| run.0.starts_with('r'))
    }

    fn begin(name: &str, cancels_others: bool) -> Turn {
        Turn::Begin(QueuedRun { run: run(name), is_fresh: false, cancels_others })
    }

    #[test]
    fn a_run_alone_begins_and_beside_another_it_does_as_the_pipeline_says() {
        for on_overlap in [OnOverlap::Queue, OnOverlap::Skip, OnOverlap::CancelRunning] {
            assert_eq!(arrival(None, on_overlap), Arrival::Begin);
            assert_eq!(arrival(Some(&facts(None, &[])), on_overlap), Arrival::Begin);
        }
        // Between the end of one and the beginning of the next the one that waits counts.
        for (facts, name) in
            [(facts(Some("x"), &[("a", false)]), "x"), (facts(None, &[("a", false)]), "a")]
        {
            let (facts, beside) = (Some(&facts), run(name));
            assert_eq!(
                arrival(facts, OnOverlap::Queue),
                Arrival::Queue { beside: beside.clone(), cancels_others: false }
            );
            assert_eq!(
                arrival(facts, OnOverlap::CancelRunning),
                Arrival::Queue { beside: beside.clone(), cancels_others: true }
            );
            assert_eq!(arrival(facts, OnOverlap::Skip), Arrival::Skip { beside });
        }
    }

    #[test]
    fn the_first_one_begins_when_nothing_goes_on() {
        assert_eq!(turns(None, &[]), []);
        assert_eq!(turns(None, &[("a", false), ("b", false)]), [begin("a", false)]);
        assert_eq!(turns(Some("x"), &[("a", false), ("b", false)]), []);
    }

    #[test]
    fn one_that_cancels_others_stops_what_goes_on_and_what_waits_before_it() {
        let stop = Turn::Stop { run: run("x"), by: run("b") };
        let give_up = Turn::GiveUp { run: run("a"), by: run("b") };
        let queue = [("a", false), ("b", true), ("c", false)];
        assert_eq!(turns(Some("x"), &queue), [give_up.clone(), stop]);
        assert_eq!(turns(None, &queue), [give_up, begin("b", true)]);
        // The later of two.
        let both = [("a", true), ("b", true)];
        assert_eq!(turns(None, &both)[1], begin("b", true));
    }

    #[test]
    fn one_that_cancels_others_waits_for_replays_and_for_what_these_wait_for() {
        assert_eq!(turns(Some("r"), &[("b", true)]), []);
        assert_eq!(turns(None, &[("r", false), ("b", true)]), [begin("r", false)]);
        assert_eq!(turns(Some("x"), &[("r", false), ("b", true)]), []);
        // What has come behind the replay is another thing.
        let give_up = |run_: &str, by: &str| Turn::GiveUp { run: run(run_), by: run(by) };
        let queue = [("a", false), ("r", false), ("b", false), ("c", true)];
        assert_eq!(turns(Some("x"), &queue), [give_up("b", "c")]);
        assert_eq!(turns(None, &queue), [give_up("b", "c"), begin("a", false)]);
        // As one that was submitted before the replay wants it.
        let queue = [("a", false), ("b", true), ("r", false), ("c", true)];
        let stop = Turn::Stop { run: run("x"), by: run("b") };
        assert_eq!(turns(Some("x"), &queue), [give_up("a", "b"), stop]);
    }

    #[test]
    fn a_replay_is_one_by_what_the_ledger_knows_of_it() {
        let mut ledger = Ledger::default();
        for (index, command) in (1..).zip(replay_goes_on_and_another_run_waits()) {
            let applied = apply(&mut ledger, index, &command);
            assert_eq!(applied, Response::Accepted { changed: true }, "{command:?}");
        }
        assert_eq!(next_turns(&ledger), []);
    }

    fn replay_goes_on_and_another_run_waits() -> [Command; 3] {
        let at = DateTime::UNIX_EPOCH;
        let start = |name: &str, replay_of: Option<RunId>| StartRun {
            epoch: 1,
            run: run(name),
            pipeline: PipelineName("p".into()),
            spec_hash: "spec".into(),
            params: BTreeMap::new(),
            window: None,
            version: None,
            request_id: None,
            backfill: None,
            replay_of,
            at,
        };
        let epoch =
            NewEpoch { ledger_id: "l".into(), boot_id: "b".into(), pid: 1, host: "h".into(), at };
        let next = QueueRun { start: start("b", None), is_fresh: false, cancels_others: true };
        [
            Command::NewEpoch(epoch),
            Command::StartRun(start("x", Some(run("of")))),
            Command::QueueRun(next),
        ]
    }
}

//! What becomes of runs beside other runs of their pipeline: whether one that is submitted begins, waits or is
//! skipped; which of those that wait begin, and what has to end for them. Pure; the leader carries it out.

use std::collections::BTreeMap;

use weir_ledger::{PipelineFacts, QueuedRun, RunId};
use weir_spec::{OnOverlap, PipelineName};

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

pub(super) fn next_turns(pipelines: &BTreeMap<PipelineName, PipelineFacts>) -> Vec<Turn> {
    pipelines.values().filter(|facts| !facts.queue.is_empty()).flat_map(turns_of).collect()
}

fn turns_of(facts: &PipelineFacts) -> Vec<Turn> {
    // The last one that wants to be the only one decides about all before it.
    let first = facts.queue.iter().rposition(|queued| queued.cancels_others).unwrap_or(0);
    let (given_up, waiting) = facts.queue.split_at(first);
    let Some(next) = waiting.first() else { return Vec::new() };
    let by = next.run.clone();
    let given_up = given_up.iter().map(|queued| queued.run.clone());
    let mut turns: Vec<Turn> = given_up.map(|run| Turn::GiveUp { run, by: by.clone() }).collect();
    match &facts.active_run {
        None => turns.push(Turn::Begin(next.clone())),
        Some(run) if next.cancels_others => turns.push(Turn::Stop { run: run.clone(), by }),
        Some(_) => {}
    }
    turns
}

#[cfg(test)]
mod tests {
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

    fn turns(active: Option<&str>, queue: &[(&str, bool)]) -> Vec<Turn> {
        next_turns(&BTreeMap::from([(PipelineName("p".into()), facts(active, queue))]))
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
}

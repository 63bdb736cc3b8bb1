//! Which windows begin next: a pure function of the ledger and of what is at work.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use weir_ledger::{BackfillFacts, BackfillId, BackfillState, WindowOf};

/// Windows to begin now, so that every backfill has as many at work as it may and no more than `places`
/// are at work altogether. Greater priorities go first; among equals the one with the fewest windows at
/// work; windows in their order. Fairness to other runs is not its concern: the pool shares places out
/// between a run and a backfill with all of its windows. Those that are on their way (targets are asked about their last runs
/// first) are none of them, and take no place: a target that does not answer keeps no other backfill from going on.
pub(super) fn next_windows(
    backfills: &BTreeMap<BackfillId, BackfillFacts>,
    places: usize,
    on_their_way: &BTreeSet<WindowOf>,
) -> Vec<WindowOf> {
    let at_work: usize = backfills.values().map(|facts| facts.running.len()).sum();
    let mut waiting: Vec<_> = (backfills.iter())
        .filter(|(_, facts)| facts.state == BackfillState::Running)
        .map(|(id, facts)| {
            let of = move |window| WindowOf { backfill: id.clone(), window };
            let begun = on_their_way.iter().filter(|of| of.backfill == *id).count();
            let pending =
                facts.pending().filter(move |window| !on_their_way.contains(&of(*window)));
            (id, facts, facts.running.len() + begun, pending)
        })
        .collect();
    let mut next = Vec::new();
    while at_work + next.len() < places {
        waiting.retain(|(_, facts, busy, _)| *busy < facts.parallel as usize);
        let first = (waiting.iter_mut())
            .min_by_key(|(id, facts, busy, _)| (Reverse(facts.priority), *busy, *id));
        let Some((id, _, busy, pending)) = first else { break };
        match pending.next() {
            Some(window) => next.push(WindowOf { backfill: (*id).clone(), window }),
            // Nothing is left of it.
            None => *busy = usize::MAX,
        }
        *busy = busy.saturating_add(1);
    }
    next
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use weir_ledger::{Command, CreateBackfill, Ledger, NewEpoch, WindowRange, apply};
    use weir_spec::PipelineName;

    use super::*;

    /// Name, windows, windows at once, priority.
    fn ledger(backfills: &[(&str, u32, u32, i32)]) -> Ledger {
        let at = DateTime::UNIX_EPOCH;
        let mut ledger = Ledger::default();
        let epoch = Command::NewEpoch(NewEpoch {
            ledger_id: "l".into(),
            boot_id: "b".into(),
            pid: 1,
            host: "h".into(),
            at,
        });
        apply(&mut ledger, 1, &epoch);
        for (index, (name, count, parallel, priority)) in (2..).zip(backfills) {
            let range = WindowRange {
                from: at,
                to: at,
                step: "1d".into(),
                timezone: "UTC".into(),
                count: *count,
            };
            let create = CreateBackfill {
                epoch: 1,
                backfill: BackfillId((*name).to_owned()),
                pipeline: PipelineName("orders".into()),
                spec_hash: String::new(),
                params: BTreeMap::new(),
                version: None,
                range,
                parallel: *parallel,
                priority: *priority,
                request_id: None,
                at,
            };
            apply(&mut ledger, index, &Command::CreateBackfill(create));
        }
        ledger
    }

    fn shown(ledger: &Ledger, places: usize) -> String {
        shown_beside(ledger, places, &[])
    }

    fn shown_beside(ledger: &Ledger, places: usize, on_their_way: &[(&str, u32)]) -> String {
        let on_their_way = on_their_way.iter().map(|(backfill, window)| WindowOf {
            backfill: BackfillId((*backfill).to_owned()),
            window: *window,
        });
        let next = next_windows(&ledger.backfills, places, &on_their_way.collect());
        next.iter().map(|of| format!("{}{} ", of.backfill, of.window)).collect()
    }

    #[test]
    fn each_backfill_has_as_many_at_work_as_it_may() {
        let mut ledger = ledger(&[("a", 9, 2, 0), ("b", 1, 4, 0)]);
        assert_eq!(shown(&ledger, 9), "a0 b0 a1 ");
        assert_eq!(shown(&ledger, 2), "a0 b0 ");
        let a = ledger.backfills.get_mut(&BackfillId("a".into())).expect("it is there");
        a.running.extend([0, 2]);
        assert_eq!(shown(&ledger, 9), "b0 ");
        assert_eq!(shown(&ledger, 2), "");
        let a = ledger.backfills.get_mut(&BackfillId("a".into())).expect("it is there");
        a.running.remove(&0);
        a.failed.insert(0, "no".into());
        assert_eq!(shown(&ledger, 9), "b0 a1 ");
        a_is(&mut ledger, BackfillState::Paused);
        assert_eq!(shown(&ledger, 9), "b0 ");
        a_is(&mut ledger, BackfillState::Cancelled);
        assert_eq!(shown(&ledger, 9), "b0 ");
    }

    fn a_is(ledger: &mut Ledger, state: BackfillState) {
        ledger.backfills.get_mut(&BackfillId("a".into())).expect("it is there").state = state;
    }

    #[test]
    fn a_window_that_is_on_its_way_is_one_of_its_backfill_and_takes_no_place() {
        let ledger = ledger(&[("a", 9, 3, 5), ("b", 9, 2, 0)]);
        assert_eq!(shown_beside(&ledger, 4, &[("a", 0), ("a", 2)]), "a1 b0 b1 ");
        assert_eq!(shown_beside(&ledger, 4, &[("a", 0), ("a", 1), ("a", 2)]), "b0 b1 ");
    }

    #[test]
    fn greater_priorities_go_first() {
        let ledger = ledger(&[("a", 9, 9, 0), ("b", 2, 9, 5), ("c", 9, 2, 5)]);
        assert_eq!(shown(&ledger, 6), "b0 c0 b1 c1 a0 a1 ");
        assert_eq!(shown(&ledger, 3), "b0 c0 b1 ");
        assert_eq!(shown(&ledger, 0), "");
    }
}

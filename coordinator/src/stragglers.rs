//! Which attempts take so long that a second one beside them may be the first to end: a pure function.

use std::time::Duration;

/// An attempt that is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AtWork {
    pub(crate) slice: u32,
    pub(crate) running_for: Duration,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stragglers {
    /// The longest at work first.
    pub(crate) slices: Vec<u32>,
    /// When the next one may be one, if none ends before.
    pub(crate) next_in: Option<Duration>,
}

/// Attempts at slices of one stage that have taken more than twice as long as half of those that have ended (`took`),
/// and at least `least`. Not before half of the slices are finished: what is usual is not known.
pub(crate) fn stragglers(
    slices: u32,
    finished: u32,
    took: &[Duration],
    at_work: &[AtWork],
    least: Duration,
) -> Stragglers {
    let Some(median) = median(took).filter(|_| finished >= slices.div_ceil(2)) else {
        return Stragglers::default();
    };
    let limit = least.max(median * 2);
    let (mut late, rest): (Vec<AtWork>, Vec<AtWork>) =
        at_work.iter().partition(|at_work| at_work.running_for > limit);
    late.sort_by(|left, right| {
        right.running_for.cmp(&left.running_for).then(left.slice.cmp(&right.slice))
    });
    Stragglers {
        slices: late.iter().map(|at_work| at_work.slice).collect(),
        next_in: rest.iter().map(|at_work| limit - at_work.running_for).min(),
    }
}

fn median(took: &[Duration]) -> Option<Duration> {
    let mut took = took.to_vec();
    took.sort();
    took.get(took.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(of: &[u64]) -> Vec<Duration> {
        of.iter().copied().map(Duration::from_secs).collect()
    }

    fn found(finished: u32, took: &[u64], running: &[u64]) -> Stragglers {
        let at_work: Vec<AtWork> = (seconds(running).into_iter().zip(0..))
            .map(|(running_for, slice)| AtWork { slice, running_for })
            .collect();
        stragglers(10, finished, &seconds(took), &at_work, Duration::from_secs(5))
    }

    #[test]
    fn twice_as_long_as_usual_is_late() {
        let late = found(5, &[10, 4, 9, 10, 30], &[19, 20, 21, 60]);
        assert_eq!(late.slices, [3, 2], "the longest first");
        assert_eq!(late.next_in, Some(Duration::ZERO), "the second is about to be");
        assert_eq!(found(5, &[10], &[13]).next_in, Some(Duration::from_secs(7)));
    }

    #[test]
    fn a_few_seconds_are_never_late() {
        assert!(found(9, &[1, 1, 1], &[5]).slices.is_empty());
        assert_eq!(found(9, &[1, 1, 1], &[6]).slices, [0]);
    }

    #[test]
    fn what_is_usual_is_known_once_half_is_done() {
        assert_eq!(found(4, &[1, 1, 1, 1], &[60]), Stragglers::default());
        assert_eq!(found(5, &[1, 1, 1, 1, 1], &[60]).slices, [0]);
        // Finished under the leader before: how long that took is not known.
        assert_eq!(found(9, &[], &[60]), Stragglers::default());
    }
}

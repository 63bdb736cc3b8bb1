//! Which executor a task goes to: a pure function of what is going on.

/// An executor that takes tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) free: u32,
    /// Tasks of the run in question that it has.
    pub(crate) of_run: u32,
}

/// A run that would have liked to begin a task a moment ago, and could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) busy: u32,
}

/// The executor with the fewest tasks of this run, and of those the one with the most free places; so
/// a run is spread, and loses little with one executor. `None` while all are busy, or while a run with
/// fewer tasks than this one (`busy`) waits.
pub(crate) fn place(
    candidates: &[Candidate],
    busy: u32,
    others_waiting: &[Waiting],
) -> Option<usize> {
    if others_waiting.iter().any(|other| other.busy < busy) {
        return None;
    }
    (candidates.iter().enumerate())
        .filter(|(_, candidate)| candidate.free > 0)
        .min_by(|(_, left), (_, right)| {
            (left.of_run.cmp(&right.of_run))
                .then(right.free.cmp(&left.free))
                .then(left.name.cmp(&right.name))
        })
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, free: u32, of_run: u32) -> Candidate {
        Candidate { name: name.to_owned(), free, of_run }
    }

    #[test]
    fn a_run_is_spread_over_executors() {
        let candidates = [candidate("a", 3, 2), candidate("b", 1, 0), candidate("c", 2, 0)];
        assert_eq!(place(&candidates, 2, &[]), Some(2));
    }

    #[test]
    fn busy_executors_get_nothing() {
        assert_eq!(place(&[candidate("a", 0, 0)], 0, &[]), None);
        assert_eq!(place(&[], 0, &[]), None);
        assert_eq!(place(&[candidate("a", 0, 0), candidate("b", 1, 9)], 9, &[]), Some(1));
    }

    #[test]
    fn a_run_with_fewer_tasks_goes_first() {
        let candidates = [candidate("a", 1, 0)];
        assert_eq!(place(&candidates, 3, &[Waiting { busy: 2 }]), None);
        assert_eq!(place(&candidates, 2, &[Waiting { busy: 2 }]), Some(0));
    }

    /// Whatever the runs want, every free place is soon taken, and no run has two more tasks than
    /// one that waits.
    #[test]
    fn places_are_shared_out_fairly() {
        for runs in 1..5 {
            for slots in 1..12 {
                let mut busy = vec![0_u32; runs];
                let mut free = slots;
                for turn in 0..200 {
                    let run = turn % runs;
                    let waiting: Vec<Waiting> = (busy.iter().enumerate())
                        .filter(|(other, _)| *other != run)
                        .map(|(_, busy)| Waiting { busy: *busy })
                        .collect();
                    if place(&[candidate("a", free, busy[run])], busy[run], &waiting).is_some() {
                        busy[run] += 1;
                        free -= 1;
                    }
                }
                assert_eq!(free, 0, "{runs} runs, {slots} places");
                let (most, fewest) = (busy.iter().max().unwrap(), busy.iter().min().unwrap());
                assert!(most - fewest <= 1, "{busy:?}");
            }
        }
    }
}

//! Which executor a task goes to: pure functions of what is going on.

use std::time::Duration;

/// For so long a task waits for the executor that has most of what it reads, while others have free places.
const LONGEST_WAIT: Duration = Duration::from_millis(300);

/// With fewer rows it does not wait: to fetch them is sooner done.
const ROWS_WORTH_A_WAIT: u64 = 100_000;

/// An executor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) free: u32,
    /// Of its memory, what the places that are taken leave. A place stands for its share of it.
    pub(crate) free_memory: u64,
    /// Tasks of the run in question that it has.
    pub(crate) of_run: u32,
    /// Of the rows that the task reads, those that are with it.
    pub(crate) rows: u64,
    /// Whether it will have a free place again; one that leaves will not.
    pub(crate) stays: bool,
}

/// How much somebody has: first all runs and backfills of a pipeline together, then the run or the backfill. Of two
/// that wait, the lesser goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Standing {
    pub(crate) of_pipeline: u32,
    pub(crate) of_share: u32,
}

/// Why a task has no place now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Nobody has a free one, or somebody with less waits.
    Full,
    /// Free ones are far from what it reads.
    Elsewhere,
    /// A connection that it uses has as many tasks as it may have.
    Limited,
}

/// Of the executors with a free place, that with most of what the task reads (in eighths of it: a little more is no
/// reason), then the one with the fewest tasks of its run, then the one with the most memory left; so a run is
/// spread, and loses little with one executor.
///
/// No place while somebody with less (`waiting`) would have liked one a moment ago, so that nobody is left out.
/// None, for a moment (`waited`), while the executor that has more than half of what the task reads is busy; others
/// may have the free places meanwhile.
pub(crate) fn place(
    candidates: &[Candidate],
    own: Standing,
    waiting: &[Standing],
    rows: u64,
    waited: Duration,
) -> Result<usize, NoPlace> {
    if waiting.iter().any(|other| *other < own) {
        return Err(NoPlace::Full);
    }
    let near =
        |candidate: &Candidate| candidate.rows.saturating_mul(8).checked_div(rows).unwrap_or(0);
    let best = (candidates.iter().enumerate()).filter(|(_, candidate)| candidate.free > 0).min_by(
        |(_, left), (_, right)| {
            (near(right).cmp(&near(left)))
                .then(left.of_run.cmp(&right.of_run))
                .then(right.free_memory.cmp(&left.free_memory))
                .then(right.free.cmp(&left.free))
                .then(left.name.cmp(&right.name))
        },
    );
    let Some((index, found)) = best else { return Err(NoPlace::Full) };
    let has_most = |candidate: &Candidate| {
        candidate.stays && candidate.rows > rows / 2 && candidate.rows > found.rows
    };
    if rows >= ROWS_WORTH_A_WAIT && waited < LONGEST_WAIT && candidates.iter().any(has_most) {
        return Err(NoPlace::Elsewhere);
    }
    Ok(index)
}

/// A connection that a task is going to use, with the tasks that use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InUse<'standing> {
    /// As the task's own pipeline says.
    pub(crate) most: u32,
    /// Tasks of all runs.
    pub(crate) used: u32,
    /// Of these, who asks.
    pub(crate) own: Standing,
    /// Of these, who would have liked to begin another a moment ago, and could not.
    pub(crate) waiting: &'standing [Standing],
}

/// Whether one more task may use the connection: not above the limit, and not before somebody who uses it less.
pub(crate) fn may_use(connection: &InUse<'_>) -> bool {
    connection.used < connection.most
        && !connection.waiting.iter().any(|other| *other < connection.own)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn candidate(name: &str, free: u32, of_run: u32) -> Candidate {
        Candidate { name: name.to_owned(), free, of_run, stays: true, ..Candidate::default() }
    }

    fn standing(of_pipeline: u32, of_share: u32) -> Standing {
        Standing { of_pipeline, of_share }
    }

    fn anywhere(candidates: &[Candidate]) -> Result<usize, NoPlace> {
        place(candidates, Standing::default(), &[], 0, NOW)
    }

    #[test]
    fn a_run_is_spread_over_executors() {
        let candidates = [candidate("a", 3, 2), candidate("b", 1, 0), candidate("c", 2, 0)];
        assert_eq!(anywhere(&candidates), Ok(2));
    }

    #[test]
    fn busy_executors_get_nothing() {
        assert_eq!(anywhere(&[candidate("a", 0, 0)]), Err(NoPlace::Full));
        assert_eq!(anywhere(&[]), Err(NoPlace::Full));
        assert_eq!(anywhere(&[candidate("a", 0, 0), candidate("b", 1, 9)]), Ok(1));
    }

    #[test]
    fn of_two_that_are_alike_the_one_with_more_memory_left_is_taken() {
        let small = Candidate { free_memory: 1 << 30, ..candidate("a", 2, 1) };
        let large = Candidate { free_memory: 2 << 30, ..candidate("b", 1, 1) };
        assert_eq!(anywhere(&[small.clone(), large.clone()]), Ok(1));
        let large_with_more_of_it = Candidate { of_run: 2, ..large };
        assert_eq!(anywhere(&[small, large_with_more_of_it]), Ok(0), "spread comes first");
    }

    #[test]
    fn who_has_less_goes_first() {
        let candidates = [candidate("a", 1, 0)];
        let ask = |own, waiting: &[Standing]| place(&candidates, own, waiting, 0, NOW);
        assert_eq!(ask(standing(3, 3), &[standing(2, 2)]), Err(NoPlace::Full));
        assert_eq!(ask(standing(2, 2), &[standing(2, 2)]), Ok(0));
        // A pipeline with ten runs of one task each has ten.
        assert_eq!(ask(standing(10, 1), &[standing(3, 3)]), Err(NoPlace::Full));
        assert_eq!(ask(standing(3, 3), &[standing(10, 1)]), Ok(0));
    }

    #[test]
    fn a_task_goes_where_its_rows_are() {
        let far = candidate("a", 4, 0);
        let near = Candidate { rows: 90, ..candidate("b", 1, 3) };
        assert_eq!(place(&[far.clone(), near], Standing::default(), &[], 100, NOW), Ok(1));
        let hardly_nearer = Candidate { rows: 10, ..candidate("b", 1, 3) };
        assert_eq!(place(&[far, hardly_nearer], Standing::default(), &[], 100, NOW), Ok(0));
    }

    #[test]
    fn a_task_waits_a_moment_for_the_executor_that_has_its_rows() {
        let rows = 2 * ROWS_WORTH_A_WAIT;
        let near = Candidate { rows: rows - 1, ..candidate("a", 0, 0) };
        let far = candidate("b", 1, 0);
        let ask = |candidates: &[Candidate], rows, waited| {
            place(candidates, Standing::default(), &[], rows, waited)
        };
        let both = [near.clone(), far.clone()];
        assert_eq!(ask(&both, rows, NOW), Err(NoPlace::Elsewhere));
        assert_eq!(ask(&both, rows, LONGEST_WAIT), Ok(1), "others are not left idle for long");
        let few = Candidate { rows: 99, ..near.clone() };
        assert_eq!(ask(&[few, far.clone()], 100, NOW), Ok(1), "few rows are soon fetched");
        let leaving = Candidate { stays: false, ..near };
        assert_eq!(ask(&[leaving, far], rows, NOW), Ok(1), "it will not have a place again");
    }

    #[test]
    fn connections_are_shared_out_up_to_their_limit() {
        let ask =
            |most, used, own, waiting: &[Standing]| may_use(&InUse { most, used, own, waiting });
        assert!(ask(2, 1, standing(1, 1), &[]));
        assert!(!ask(2, 2, standing(0, 0), &[]));
        assert!(!ask(2, 1, standing(1, 1), &[standing(0, 0)]), "who has none is next");
        assert!(ask(2, 1, standing(0, 0), &[standing(1, 1)]));
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
                    let waiting: Vec<Standing> = (busy.iter().enumerate())
                        .filter(|(other, _)| *other != run)
                        .map(|(_, busy)| standing(*busy, *busy))
                        .collect();
                    let own = standing(busy[run], busy[run]);
                    if place(&[candidate("a", free, busy[run])], own, &waiting, 0, NOW).is_ok() {
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

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0u32..3, 0u64..4, 0u32..4, 0u64..400_000, any::<bool>());
        prop::collection::vec(one, 0..6).prop_map(|found| {
            (found.into_iter().zip(0..))
                .map(|((free, free_memory, of_run, rows, stays), number)| Candidate {
                    name: format!("executor-{number}"),
                    free: if stays { free } else { 0 },
                    free_memory,
                    of_run,
                    rows,
                    stays,
                })
                .collect()
        })
    }

    fn standings() -> impl Strategy<Value = Vec<Standing>> {
        prop::collection::vec((0u32..5, 0u32..5).prop_map(|(one, two)| standing(one, two)), 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_place_is_free_and_nobody_is_passed_over(
            candidates in candidates(),
            own in standings().prop_map(|some| some.first().copied().unwrap_or_default()),
            waiting in standings(),
            rows in 0u64..400_000,
            waited in 0u64..600,
        ) {
            let waited = Duration::from_millis(waited);
            let passes_over = waiting.iter().any(|other| *other < own);
            let has_free = candidates.iter().any(|candidate| candidate.free > 0);
            match place(&candidates, own, &waiting, rows, waited) {
                Ok(index) => {
                    prop_assert!(!passes_over && candidates[index].free > 0);
                    let better = candidates.iter().find(|other| {
                        other.free > 0
                            && other.rows >= candidates[index].rows
                            && other.of_run < candidates[index].of_run
                    });
                    prop_assert_eq!(better, None, "it has as much, and fewer of the run");
                }
                Err(NoPlace::Full) => prop_assert!(passes_over || !has_free),
                Err(NoPlace::Elsewhere) => prop_assert!(has_free && waited < LONGEST_WAIT),
                Err(NoPlace::Limited) => prop_assert!(false, "no connection was asked about"),
            }
            // Once it has waited, a free place is not left for nothing.
            if has_free && !passes_over {
                prop_assert!(place(&candidates, own, &waiting, rows, LONGEST_WAIT).is_ok());
            }
        }

        /// Whoever asks, in whatever order: never more than the limit, nobody waits for ever, and nobody has
        /// two more than one that waits.
        #[test]
        fn a_connection_is_never_used_by_more_tasks_than_it_may_be(
            most in 1u32..5,
            turns in prop::collection::vec((0usize..4, any::<bool>()), 0..120),
        ) {
            let mut uses = [0u32; 4];
            let mut waits = [false; 4];
            for (run, ends) in turns {
                if ends {
                    uses[run] = uses[run].saturating_sub(1);
                    continue;
                }
                let waiting: Vec<Standing> = (0..4)
                    .filter(|other| *other != run && waits[*other])
                    .map(|other| standing(uses[other], uses[other]))
                    .collect();
                let (used, own) = (uses.iter().sum(), standing(uses[run], uses[run]));
                waits[run] = !may_use(&InUse { most, used, own, waiting: &waiting });
                if !waits[run] {
                    uses[run] += 1;
                }
                prop_assert!(uses.iter().sum::<u32>() <= most);
            }
            // Those that wait begin in turn once places are free.
            let mut uses = [0u32; 4];
            for turn in 0..(4 * most as usize) {
                let run = turn % 4;
                let waiting: Vec<Standing> =
                    uses.iter().map(|used| standing(*used, *used)).collect();
                let (used, own) = (uses.iter().sum(), standing(uses[run], uses[run]));
                if may_use(&InUse { most, used, own, waiting: &waiting }) {
                    uses[run] += 1;
                }
            }
            prop_assert_eq!(uses.iter().sum::<u32>(), most);
            prop_assert!(uses.iter().max().unwrap() - uses.iter().min().unwrap() <= 1);
        }
    }
}

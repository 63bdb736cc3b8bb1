//! Whole clusters under faults, on a simulated network (turmoil) and under a simulated clock: what clients submit
//! goes the whole way. Real are the replicated ledger down to its disk, the leader with its sessions, driver, pool
//! and services, the planning of pipelines, and the executors' process with its stream; all calls are gRPC.
//! Virtual are the tasks' rows, and the systems that they are read from and written into.
//!
//! ```text
//! client ═ Runs ═▶ coordinators ═ Executors ═ executor: Link, State ─▶ virtual tasks ─▶ targets
//!                   │ Leading ─▶ Session ─▶ Driver ─▶ decide              │
//!                   └ RaftMember ═ Raft ═ RaftMember … ─▶ Trace ◀──────────┘
//!   faults: crashes, pauses, cuts, slow and lossy links, slow disks, lost power, clocks, targets out of reach
//!   Trace: every row once, nothing too early, nothing twice, equal facts, an end
//! ```
//!
//! `WEIR_SIMULATION_SEED=n` runs one seed and tells its story, `WEIR_SIMULATION_SEEDS=n` runs so many.

mod client;
mod coordinator;
mod exchange;
mod executor;
mod faults;
mod pipelines;
mod runner;
mod shared;
mod systems;
mod targets;
mod trace;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use world::{Outcome, World};

/// Seeds of an ordinary test.
const SEEDS: u64 = 500;
/// Within so many seeds each control must be noticed.
const CONTROL_SEEDS: u64 = 120;

/// What is deliberately wrong, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Nothing,
    /// What the ledger says of a slice's position is not looked at when it goes on.
    PositionsAreIgnored,
    /// Of ten batches one is reported as published, and is not.
    NothingIsPublished,
    /// What was to be in the storage is kept by executors.
    DurableIsKept,
    /// What was synced is lost with the power: an entry is acknowledged before it is durable.
    DisksLie,
    /// One member's facts differ.
    OneAppliesOtherwise,
    /// Coordinators do not reach each other any more.
    FaultsNeverEnd,
}

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The first seed below `seeds` whose world goes wrong, or none; with what the worlds have done.
fn first_failure(seeds: u64, control: Control) -> (Option<(u64, Vec<String>)>, Outcome) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let search = || {
        let mut all = Outcome::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return (None, all);
            }
            let outcome = World::new(seed, control).run();
            all.leaderships += outcome.leaderships;
            all.attempts += outcome.attempts;
            all.left += outcome.left;
            if !outcome.violations.is_empty() {
                next.store(seeds, Ordering::Relaxed);
                return (Some((seed, outcome.violations)), all);
            }
        }
    };
    std::thread::scope(|scope| {
        let searches: Vec<_> = (0..threads).map(|_| scope.spawn(search)).collect();
        let (mut failure, mut all) = (None, Outcome::default());
        for search in searches {
            let (found, outcome) = search.join().expect("no panic");
            all.leaderships += outcome.leaderships;
            all.attempts += outcome.attempts;
            all.left += outcome.left;
            failure = failure.into_iter().chain(found).min();
        }
        (failure, all)
    })
}

#[test]
fn every_row_of_every_run_arrives_once_whatever_happens_to_the_cluster() {
    if let Some(seed) = number_in("WEIR_SIMULATION_SEED") {
        let outcome = World::new(seed, Control::Nothing).run();
        println!("{}", outcome.story.join("\n"));
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
        return;
    }
    let seeds = number_in("WEIR_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let (failure, Outcome { leaderships, attempts, left, .. }) =
        first_failure(seeds, Control::Nothing);
    println!(
        "{seeds} worlds: {leaderships} leaderships, {attempts} attempts, {left} runs have left"
    );
    if let Some((seed, violations)) = failure {
        panic!("WEIR_SIMULATION_SEED={seed} goes wrong: {violations:#?}");
    }
    // Otherwise nothing is seen of what happens to them.
    assert!(left as u64 >= seeds / 10, "only {left} runs have left the ledger");
}

#[test]
fn a_seed_is_always_the_same_story() {
    for seed in 0..3 {
        let [first, second] = [(); 2].map(|()| World::new(seed, Control::Nothing).run().story);
        let differs = first.iter().zip(&second).find(|(first, second)| first != second);
        assert_eq!((differs, first.len()), (None, second.len()), "seed {seed}");
    }
}

#[track_caller]
fn is_noticed(control: Control, what: &str) {
    let (failure, _) = first_failure(CONTROL_SEEDS, control);
    let (seed, violations) = failure.unwrap_or_else(|| panic!("{control:?} is not noticed"));
    println!("{control:?} is noticed with seed {seed}: {violations:?}");
    assert!(violations.iter().any(|violation| violation.contains(what)), "{violations:#?}");
}

#[test]
fn attempts_that_do_not_ask_the_ledger_where_to_go_on_are_noticed() {
    is_noticed(Control::PositionsAreIgnored, "too many");
}

#[test]
fn a_completion_before_its_batch_is_published_is_noticed() {
    is_noticed(Control::NothingIsPublished, "lacks");
}

#[test]
fn a_finished_task_that_runs_again_is_noticed() {
    is_noticed(Control::DurableIsKept, "runs again");
}

#[test]
fn an_acknowledgement_before_it_is_durable_is_noticed() {
    is_noticed(Control::DisksLie, "");
}

#[test]
fn a_member_that_applies_otherwise_is_noticed() {
    is_noticed(Control::OneAppliesOtherwise, "has other facts");
}

#[test]
fn a_cluster_that_does_not_recover_is_noticed() {
    is_noticed(Control::FaultsNeverEnd, "waited");
}

//! The scheduler and the ledger under faults, without clock, network or disk: the real `decide`,
//! `place`, `apply` and state of an executor, in a world that follows from a seed.
//!
//! ```text
//!           log ◀─ driver: decide ─▶ pool ◀═ streams ═▶ executors ─▶ targets
//! faults ─▶ ─────────────────────────────────────────────────────────────
//!           checkers: every row once, nothing too early, nothing twice, an end
//! ```
//!
//! `WEIR_SIMULATION_SEED=n` runs one seed and prints what its ledger has accepted,
//! `WEIR_SIMULATION_SEEDS=n` runs so many.

mod checkers;
mod driver;
mod executors;
mod faults;
mod graphs;
mod jobs;
mod leader;
mod log;
mod network;
mod plan;
mod random;
mod reports;
mod tasks;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use world::{Control, World};

/// Seeds of an ordinary test.
const SEEDS: u64 = 5_000;
/// Within so many seeds each control must be noticed.
const CONTROL_SEEDS: u64 = 600;

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The first seed below `seeds` whose world goes wrong, with what went wrong.
fn first_failure(seeds: u64, control: Control) -> Option<(u64, Vec<String>)> {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let search = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return None;
            }
            let violations = World::new(seed, control).run();
            if !violations.is_empty() {
                next.store(seeds, Ordering::Relaxed);
                return Some((seed, violations));
            }
        }
    };
    std::thread::scope(|scope| {
        let searches: Vec<_> = (0..threads).map(|_| scope.spawn(search)).collect();
        let found = searches.into_iter().map(|search| search.join().expect("no panic"));
        found.flatten().min()
    })
}

#[test]
fn every_row_arrives_once_whatever_happens() {
    if let Some(seed) = number_in("WEIR_SIMULATION_SEED") {
        let mut world = World::new(seed, Control::Nothing);
        let violations = world.run();
        print!("{}", world.trace.story());
        assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
        return;
    }
    let seeds = number_in("WEIR_SIMULATION_SEEDS").unwrap_or(SEEDS);
    if let Some((seed, violations)) = first_failure(seeds, Control::Nothing) {
        panic!("WEIR_SIMULATION_SEED={seed} goes wrong: {violations:#?}");
    }
}

fn is_noticed(control: Control) {
    let found = first_failure(CONTROL_SEEDS, control);
    let (seed, violations) = found.unwrap_or_else(|| panic!("{control:?} is not noticed"));
    println!("{control:?} is noticed with seed {seed}: {violations:?}");
}

#[test]
fn a_target_that_lets_attempts_that_were_given_up_publish_is_noticed() {
    is_noticed(Control::NoTombstones);
}

#[test]
fn attempts_that_begin_at_the_start_again_are_noticed() {
    is_noticed(Control::PositionsIgnored);
}

#[test]
fn a_completion_that_counts_twice_is_noticed() {
    is_noticed(Control::DoneTwice);
}

#[test]
fn a_scheduler_that_ignores_open_intents_is_noticed() {
    is_noticed(Control::IntentsIgnored);
}

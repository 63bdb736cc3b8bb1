//! The replicated ledger under faults, on a simulated network (turmoil) and under a simulated clock: real are
//! the members with openraft, their log in redb, their snapshots, the calls in gRPC, and the store that appends.
//! Simulated are the network, the clocks, the log's disk, and who leads with what.
//!
//! ```text
//! leadership ─▶ LedgerStore ─▶ RaftMember ═ gRPC ═▶ members      faults: crashes, cuts, slow and lossy links,
//! reader ────────────────────────▲   └─▶ LogStore ─▶ disk                slow disks, lost power, clocks
//!                             History: nothing acknowledged is lost, one leader an epoch, equal facts, an end
//! ```
//!
//! `WEIR_SIMULATION_SEED=n` runs one seed and tells its story, `WEIR_SIMULATION_SEEDS=n` runs so many.

mod changes;
mod disk;
mod faults;
mod history;
mod machine;
mod observer;
mod panics;
mod process;
mod runtime;
mod wire;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use disk::Disk;
pub(crate) use machine::{
    DISK_DELAY_MS, MEMBERS, Machine, PORT, address, at_most, host, memory_folder,
};
pub(super) use observer::sees;
pub(crate) use observer::{By, Seen, observe};
pub(crate) use panics::{panics, watch_panics};
pub(super) use runtime::Runtime;
pub(crate) use runtime::{Seeded, seed, simulated_uuid};
pub(crate) use wire::{connect, connect_lazy, incoming};
use world::{Outcome, World};

/// Seeds of an ordinary test; whole clusters have some of their own (`cluster/simulation/`).
const SEEDS: u64 = 250;
/// Within so many seeds each control must be noticed.
const CONTROL_SEEDS: u64 = 60;

/// What is deliberately wrong, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Nothing,
    /// What was synced is lost with the power.
    DisksLie,
    /// Members answer reads with what they happen to know.
    ReadsAskNobody,
    /// One member's facts differ.
    OneAppliesOtherwise,
    /// Nobody reaches anybody any more.
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
            all.started += outcome.started;
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
            all.started += outcome.started;
            failure = failure.into_iter().chain(found).min();
        }
        (failure, all)
    })
}

#[test]
fn nothing_that_was_acknowledged_is_lost_whatever_happens() {
    if let Some(seed) = number_in("WEIR_SIMULATION_SEED") {
        let outcome = World::new(seed, Control::Nothing).run();
        println!("{}", outcome.story.join("\n"));
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
        return;
    }
    let seeds = number_in("WEIR_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let (failure, Outcome { leaderships, started, .. }) = first_failure(seeds, Control::Nothing);
    println!("{seeds} worlds: {leaderships} leaderships, {started} runs started");
    if let Some((seed, violations)) = failure {
        panic!("WEIR_SIMULATION_SEED={seed} goes wrong: {violations:#?}");
    }
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
fn disks_that_lose_what_they_have_synced_are_noticed() {
    is_noticed(Control::DisksLie, "");
}

#[test]
fn reads_that_ask_nobody_are_noticed() {
    is_noticed(Control::ReadsAskNobody, "which was acknowledged");
}

#[test]
fn a_member_that_applies_otherwise_is_noticed() {
    is_noticed(Control::OneAppliesOtherwise, "member 2 has other facts");
}

#[test]
fn a_cluster_that_does_not_recover_is_noticed() {
    is_noticed(Control::FaultsNeverEnd, "waited");
}

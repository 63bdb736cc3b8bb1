//! Which faults come, in which order: drawn from a seed, so that a seed repeats them.

use std::time::Duration;

use super::network::Trouble;
use crate::moments::Moments;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    Leader,
    Follower,
    Executor,
    LeaderAndExecutor,
    Coordinators,
    Everybody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    Leader,
    Executor,
    Storage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; started again later.
    Killed(Whom),
    /// SIGSTOP for so long.
    Paused(Whom, Duration),
    /// An executor is paused until others have done its work and the run is over.
    PausedBeyondTheEnd,
    /// Links to all other processes; the target is still reached.
    Links(Whom, Trouble, Duration),
    /// All connections to the target are broken.
    TargetReset,
    /// The target says nothing for so long.
    TargetSilent(Duration),
    /// The target is slow to answer, by the first for the second.
    TargetDelayed(Duration, Duration),
    /// The target crashes, and is there again.
    TargetCrashed,
    DiskFull(Disk, Duration),
    /// So many seconds ahead, or back.
    ClockJump(Whom, i64),
}

/// A fault, and when: after this share of what is left of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planned {
    pub fault: Fault,
    pub after: f64,
}

/// Every kind once, in an order that the seed gives, before any comes again. `longest_pause` is of a process that
/// says nothing.
pub fn draw(moments: &mut Moments, count: usize, longest_pause: Duration) -> Vec<Planned> {
    let mut planned = Vec::new();
    while planned.len() < count {
        let mut kinds = round(moments, longest_pause);
        while !kinds.is_empty() && planned.len() < count {
            let index = (moments.fraction() * kinds.len() as f64) as usize;
            let fault = kinds.swap_remove(index.min(kinds.len() - 1));
            planned.push(Planned { fault, after: moments.fraction() * 0.8 });
        }
    }
    planned
}

fn round(moments: &mut Moments, longest_pause: Duration) -> Vec<Fault> {
    let mut held = |least: u64, most: u64| {
        let range = Duration::from_millis(most - least);
        Duration::from_millis(least) + moments.below(range)
    };
    // An executor's lease and a leader's patience are 3 s: some are shorter, and some are longer.
    let (cut, other_cut) = (held(500, 6_000), held(500, 6_000));
    let (deaf, other_deaf) = (held(2_000, 6_000), held(2_000, 6_000));
    let (mute, other_mute) = (held(2_000, 6_000), held(2_000, 6_000));
    let (slow, lossy, delayed) = (held(1_000, 4_000), held(1_000, 4_000), held(1_000, 4_000));
    let (silent, late, full) = (held(500, 3_000), held(1_000, 3_000), held(500, 2_000));
    let none = Duration::ZERO;
    let (paused, leader_paused) = (held(500, 4_000), held(500, 6_000));
    let longest = paused.max(longest_pause.mul_f64(moments.fraction()));
    vec![
        Fault::Killed(Whom::Leader),
        Fault::Killed(Whom::Follower),
        Fault::Killed(Whom::Executor),
        Fault::Killed(Whom::LeaderAndExecutor),
        Fault::Killed(Whom::Coordinators),
        Fault::Killed(Whom::Everybody),
        Fault::Paused(Whom::Executor, longest),
        Fault::Paused(Whom::Leader, leader_paused),
        Fault::PausedBeyondTheEnd,
        Fault::Links(Whom::Executor, Trouble::Cut, cut),
        Fault::Links(Whom::Leader, Trouble::Cut, other_cut),
        Fault::Links(Whom::Executor, Trouble::Deaf, deaf),
        Fault::Links(Whom::Leader, Trouble::Deaf, other_deaf),
        Fault::Links(Whom::Executor, Trouble::Mute, mute),
        Fault::Links(Whom::Leader, Trouble::Mute, other_mute),
        Fault::Links(Whom::Executor, Trouble::Slow(256), slow),
        Fault::Links(Whom::Leader, Trouble::Lossy(20), lossy),
        Fault::Links(Whom::Leader, Trouble::Delayed(Duration::from_millis(150)), delayed),
        Fault::Links(Whom::Leader, Trouble::Reset, none),
        Fault::Links(Whom::Executor, Trouble::Reset, none),
        Fault::TargetReset,
        Fault::TargetSilent(silent),
        Fault::TargetDelayed(Duration::from_millis(100), late),
        Fault::TargetCrashed,
        Fault::DiskFull(Disk::Leader, full),
        Fault::DiskFull(Disk::Executor, full),
        Fault::DiskFull(Disk::Storage, full),
        Fault::ClockJump(Whom::Leader, 3_600),
        Fault::ClockJump(Whom::Executor, -86_400),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(seed: u64, count: usize) -> Vec<Planned> {
        draw(&mut Moments::of_seed("schedule", seed), count, Duration::from_secs(30))
    }

    #[test]
    fn a_seed_repeats_a_schedule_and_another_one_does_not() {
        assert_eq!(drawn(7, 50), drawn(7, 50));
        assert_ne!(drawn(7, 50), drawn(8, 50));
        assert_eq!(drawn(7, 50)[..20], drawn(7, 20)[..], "a longer one begins like a shorter one");
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let kinds = round(&mut Moments::of_seed("schedule", 1), Duration::ZERO).len();
        assert!(kinds >= 20);
        let name = |planned: &Planned| match planned.fault {
            Fault::Links(whom, trouble, _) => format!("{whom:?} {trouble:?}"),
            Fault::Killed(whom) => format!("killed {whom:?}"),
            Fault::Paused(whom, _) => format!("paused {whom:?}"),
            Fault::DiskFull(disk, _) => format!("full {disk:?}"),
            Fault::ClockJump(whom, _) => format!("clock {whom:?}"),
            other => format!("{:?}", std::mem::discriminant(&other)),
        };
        let names: std::collections::BTreeSet<_> = drawn(3, kinds).iter().map(name).collect();
        assert_eq!(names.len(), kinds);
    }
}

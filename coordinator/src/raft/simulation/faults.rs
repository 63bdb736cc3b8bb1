//! What goes wrong in a world, and when: all of it follows from the seed.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::raft::MemberId;

/// Until then faults begin; soon afterwards all of them are mended.
pub(super) const LAST: Duration = Duration::from_secs(25);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// The process ends and what it has not synced is lost.
    Crash(MemberId),
    /// The same, in the middle of a transaction: after so many writes.
    CrashIn(MemberId, u32),
    /// All of them, at about the same time.
    CrashAll,
    /// Nothing goes either way.
    Cut(MemberId, MemberId),
    /// Nothing goes from the one to the other.
    CutOneWay(MemberId, MemberId),
    /// One is alone.
    Isolate(MemberId),
    /// One hears nothing, and is heard.
    Deafen(MemberId),
    /// Everything on the way waits, and then arrives.
    Hold(MemberId, MemberId),
    /// Takes up to so many milliseconds.
    Slow(MemberId, MemberId, u64),
    /// Of a hundred messages so many break the link for a while.
    Lossy(MemberId, MemberId, u32),
    /// A transaction takes up to so many milliseconds.
    SlowDisk(MemberId, u64),
}

/// From its begin to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) fault: Fault,
    pub(super) begin: Duration,
    pub(super) end: Duration,
}

/// In the order in which they begin.
pub(super) fn plan(random: &mut StdRng, members: u64) -> Vec<Planned> {
    // Some worlds are calm, some are not.
    let longest_pause = random.gen_range(1.0..5.0);
    let mut planned = Vec::new();
    let mut begin = Duration::from_secs_f64(random.gen_range(1.0..4.0));
    while begin < LAST {
        let end = begin + Duration::from_secs_f64(random.gen_range(0.2..6.0));
        planned.push(Planned { fault: fault(random, members), begin, end });
        begin += Duration::from_secs_f64(random.gen_range(0.1..longest_pause));
    }
    planned
}

fn fault(random: &mut StdRng, members: u64) -> Fault {
    let one = random.gen_range(1..=members);
    let other = (one + random.gen_range(0..members - 1)) % members + 1;
    match random.gen_range(0..16) {
        0..3 => Fault::Crash(one),
        3..5 => Fault::CrashIn(one, random.gen_range(0..12)),
        5 => Fault::CrashAll,
        6 => Fault::Cut(one, other),
        7 => Fault::CutOneWay(one, other),
        8..10 => Fault::Isolate(one),
        10 => Fault::Deafen(one),
        11 => Fault::Hold(one, other),
        12 => Fault::Slow(one, other, random.gen_range(50..1_500)),
        13 => Fault::Lossy(one, other, random.gen_range(1..10)),
        _ => Fault::SlowDisk(one, random.gen_range(50..1_500)),
    }
}

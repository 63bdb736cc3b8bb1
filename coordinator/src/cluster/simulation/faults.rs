//! What goes wrong in a world, and when: all of it follows from the seed.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::raft::MemberId;

/// Until then faults begin; soon afterwards all of them are mended.
pub(super) const LAST: Duration = Duration::from_secs(14);

/// A host by its place in the world's list: coordinators, executors, the client.
pub(super) type Host = usize;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// A coordinator's process ends, and what it has not synced is lost.
    CrashMember(MemberId),
    /// The same, in the middle of a transaction: after so many writes.
    CrashIn(MemberId, u32),
    /// Whoever leads.
    CrashLeader,
    /// All coordinators, at about the same time.
    CrashMembers,
    /// An executor's process ends, with what it has kept.
    CrashExecutor(Host),
    /// All processes.
    CrashAll,
    /// An executor is asked to leave, and comes back.
    Leave(Host),
    /// An executor stands still: its tasks do nothing, nothing comes in and nothing goes out. Then all of it does.
    Pause(Host),
    /// The same, and whoever leads falls meanwhile.
    PauseWhileLeaderFalls(Host),
    /// Nothing goes either way.
    Cut(Host, Host),
    /// Nothing goes from the one to the other.
    CutOneWay(Host, Host),
    /// One is alone.
    Isolate(Host),
    /// One hears nothing, and is heard.
    Deafen(Host),
    /// Whoever leads is alone.
    IsolateLeader,
    /// Everything on the way waits, and then arrives.
    Hold(Host, Host),
    /// Takes up to so many milliseconds.
    Slow(Host, Host, u64),
    /// Of a hundred messages so many break the link for a while.
    Lossy(Host, Host, u32),
    /// A transaction of the log takes up to so many milliseconds.
    SlowDisk(MemberId, u64),
    /// A host reaches no target.
    NoTargets(Host),
    /// Somebody sets the clocks by so many milliseconds.
    ClocksJump(i64),
    /// Somebody cancels a run, and has it go on.
    Cancel,
}

/// From its begin to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) fault: Fault,
    pub(super) begin: Duration,
    pub(super) end: Duration,
}

/// In the order in which they begin.
pub(super) fn plan(executors: usize, random: &mut StdRng) -> Vec<Planned> {
    // Some worlds are calm, some are not.
    let longest_pause = random.gen_range(1.0..5.0);
    let mut planned = Vec::new();
    let mut begin = Duration::from_secs_f64(random.gen_range(1.0..3.0));
    while begin < LAST {
        let fault = fault(executors, random);
        let longest = match fault {
            // Who wakes up soon after others have taken over does the most harm.
            Fault::Pause(_) | Fault::PauseWhileLeaderFalls(_) => 2.5..4.5,
            _ => 0.2..6.0,
        };
        let end = begin + Duration::from_secs_f64(random.gen_range(longest));
        planned.push(Planned { fault, begin, end });
        begin += Duration::from_secs_f64(random.gen_range(0.1..longest_pause));
    }
    planned
}

fn fault(executors: usize, random: &mut StdRng) -> Fault {
    let member = random.gen_range(1..=3);
    let executor = 3 + random.gen_range(0..executors);
    let hosts = 3 + executors;
    let one = random.gen_range(0..hosts);
    let other = (one + random.gen_range(1..hosts)) % hosts;
    match random.gen_range(0..32) {
        0..2 => Fault::CrashMember(member),
        2 => Fault::CrashIn(member, random.gen_range(0..12)),
        3..6 => Fault::CrashLeader,
        6 => Fault::CrashMembers,
        7..11 => Fault::CrashExecutor(executor),
        11 => Fault::CrashAll,
        12 => Fault::Leave(executor),
        13..16 => Fault::Pause(executor),
        16..18 => Fault::PauseWhileLeaderFalls(executor),
        18 => Fault::Cut(one, other),
        19 => Fault::CutOneWay(one, other),
        20 => Fault::Isolate(executor),
        21 => Fault::Deafen(one),
        22..24 => Fault::IsolateLeader,
        24 => Fault::Hold(one, other),
        25 => Fault::Slow(one, other, random.gen_range(50..1_500)),
        26 => Fault::Lossy(one, other, random.gen_range(1..10)),
        27 => Fault::SlowDisk(member, random.gen_range(50..1_000)),
        28 => Fault::NoTargets(one),
        29 => Fault::ClocksJump(random.gen_range(-5_000..5_000)),
        _ => Fault::Cancel,
    }
}

//! In some worlds members are replaced while everything else goes wrong: a fourth one comes, and one of the first
//! three goes, be it the leader.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;

use super::machine::{address, at_most};
use super::process::Shared;
use crate::raft::{MemberId, RaftMember};

/// Who comes, once somebody comes.
pub(super) const NEW: MemberId = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Add(MemberId),
    Remove(MemberId),
}

/// What is wanted and not done yet, in this order.
#[derive(Debug, Default)]
pub(super) struct Wanted(Mutex<Vec<Change>>);

impl Wanted {
    fn changes(&self) -> MutexGuard<'_, Vec<Change>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn want(&self, change: Change) {
        self.changes().push(change);
    }

    fn next(&self) -> Option<Change> {
        self.changes().first().copied()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.changes().is_empty()
    }

    /// Whether nobody else has seen to it meanwhile.
    fn done(&self, change: Change) -> bool {
        let mut changes = self.changes();
        let is_first = changes.first() == Some(&change);
        if is_first {
            changes.remove(0);
        }
        is_first
    }
}

/// The moments of a world's changes.
pub(super) fn plan(random: &mut StdRng) -> Vec<(Duration, Change)> {
    let come = Duration::from_secs_f64(random.gen_range(2.0..15.0));
    let go = come + Duration::from_secs_f64(random.gen_range(0.0..5.0));
    vec![(come, Change::Add(NEW)), (go, Change::Remove(random.gen_range(1..=3)))]
}

/// What an admin does who repeats his request until the leader has answered it. As long as `member` leads.
pub(super) async fn carry_out(member: &RaftMember, shared: &Shared) {
    loop {
        tokio::time::sleep(at_most(Duration::from_millis(500))).await;
        let Some(change) = shared.wanted.next() else { continue };
        let changed = match change {
            Change::Add(id) => member.add_member(id, &address(id).url).await,
            Change::Remove(id) => member.remove_member(id).await,
        };
        if changed.is_ok() && shared.wanted.done(change) {
            shared.history().story.push(format!("{change:?} is done"));
        }
    }
}

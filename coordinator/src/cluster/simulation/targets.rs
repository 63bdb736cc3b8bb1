//! The systems that sinks write into: none of them belongs to the cluster, and what has been sent to one arrives,
//! whatever becomes of who has sent it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::tests::target::Target;

/// A run's sink.
pub(super) type TargetKey = (String, String);

type Request = Box<dyn FnOnce(&mut Target) + Send>;

#[derive(Default)]
pub(super) struct Targets {
    pub(super) all: BTreeMap<TargetKey, Target>,
    /// By the time when they arrive.
    on_the_way: BTreeMap<(Duration, u64), (TargetKey, Request)>,
    last_request: u64,
    /// Hosts that reach no target.
    pub(super) cut_off: BTreeSet<String>,
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Targets").field("all", &self.all).finish_non_exhaustive()
    }
}

impl Targets {
    pub(super) fn send(&mut self, arrives: Duration, key: TargetKey, request: Request) {
        self.last_request += 1;
        self.on_the_way.insert((arrives, self.last_request), (key, request));
    }

    /// What has arrived by now is done.
    pub(super) fn deliver(&mut self, now: Duration) {
        while let Some(next) = self.on_the_way.first_entry().filter(|next| next.key().0 <= now) {
            let (key, request) = next.remove();
            request(self.all.get_mut(&key).expect("it was prepared"));
        }
    }
}

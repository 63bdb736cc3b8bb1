//! What has been seen of a cluster, and what must not be: every fact is checked when it is noted.

use std::collections::{BTreeMap, BTreeSet};

use crate::raft::MemberId;

#[derive(Debug, Default)]
pub(super) struct History {
    /// Names of runs whose start was acknowledged, in this order.
    started: Vec<String>,
    /// Epochs whose beginning was acknowledged, with who has begun them, in this order.
    epochs: Vec<(u64, String)>,
    /// Of the facts, by the index of the last entry that they hold.
    hashes: BTreeMap<u64, String>,
    pub(super) violations: BTreeSet<String>,
    /// For people, and to compare executions of the same seed.
    pub(super) story: Vec<String>,
}

/// What was acknowledged when something was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    started: usize,
    epoch: u64,
}

impl History {
    pub(super) fn asked(&self) -> Asked {
        let epoch = self.epochs.last().map_or(0, |(epoch, _)| *epoch);
        Asked { started: self.started.len(), epoch }
    }

    pub(super) fn started(&self) -> usize {
        self.started.len()
    }

    pub(super) fn leaderships(&self) -> usize {
        self.epochs.len()
    }

    /// The ledger has begun an epoch for its leader.
    pub(super) fn has_begun(&mut self, asked: Asked, epoch: u64, leader: &str) {
        if epoch <= asked.epoch {
            self.violated(format!("epoch {epoch} of {leader} follows epoch {}", asked.epoch));
        }
        if self.epochs.iter().any(|(other, other_leader)| *other == epoch && other_leader != leader)
        {
            self.violated(format!("{leader} is not the only leader of epoch {epoch}"));
        }
        self.epochs.push((epoch, leader.to_owned()));
        self.epochs.sort();
        self.story.push(format!("{leader} has begun epoch {epoch}"));
    }

    /// The ledger has accepted the start of a run from a leader of an epoch.
    pub(super) fn has_started(&mut self, asked: Asked, epoch: u64, run: String) {
        if epoch < asked.epoch {
            let over = format!("{run} was started in epoch {epoch} after epoch {}", asked.epoch);
            self.violated(over);
        }
        self.story.push(format!("{run} has started in epoch {epoch}"));
        self.started.push(run);
    }

    /// Somebody has read, who must know what was acknowledged when he asked.
    pub(super) fn has_read(&mut self, asked: Asked, reader: MemberId, has: impl Fn(&str) -> bool) {
        let missing = self.started[..asked.started].iter().find(|run| !has(run)).cloned();
        if let Some(run) = missing {
            self.violated(format!("member {reader} does not know {run}, which was acknowledged"));
        }
    }

    /// Of a member's facts.
    pub(super) fn has_hash(&mut self, member: MemberId, index: u64, hash: String) {
        let known = self.hashes.entry(index).or_insert_with(|| hash.clone());
        if *known != hash {
            self.violated(format!("member {member} has other facts at index {index}"));
        }
    }

    pub(super) fn violated(&mut self, what: String) {
        self.story.push(format!("VIOLATION: {what}"));
        self.violations.insert(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_two_epochs() -> History {
        let mut history = History::default();
        history.has_begun(history.asked(), 2, "1-a");
        history.has_started(history.asked(), 2, "run".to_owned());
        history.has_begun(history.asked(), 5, "2-a");
        assert_eq!(history.violations, BTreeSet::new());
        history
    }

    #[track_caller]
    fn is_noticed(history: &History, what: &str) {
        let violations = &history.violations;
        assert!(violations.iter().any(|violation| violation.contains(what)), "{violations:?}");
    }

    #[test]
    fn a_read_that_misses_what_was_acknowledged_is_noticed() {
        let mut history = with_two_epochs();
        history.has_read(history.asked(), 1, |run| run == "run");
        assert_eq!(history.violations, BTreeSet::new());
        history.has_read(history.asked(), 1, |_| false);
        is_noticed(&history, "member 1 does not know run");
    }

    #[test]
    fn a_read_need_not_know_what_was_acknowledged_later() {
        let mut history = History::default();
        let asked = history.asked();
        history.has_started(history.asked(), 0, "run".to_owned());
        history.has_read(asked, 1, |_| false);
        assert_eq!(history.violations, BTreeSet::new());
    }

    #[test]
    fn an_epoch_that_does_not_grow_is_noticed() {
        let mut history = with_two_epochs();
        history.has_begun(history.asked(), 4, "3-a");
        is_noticed(&history, "epoch 4 of 3-a follows epoch 5");
    }

    #[test]
    fn two_leaders_of_one_epoch_are_noticed() {
        let mut history = with_two_epochs();
        let asked = Asked { epoch: 2, ..history.asked() };
        history.has_begun(asked, 5, "3-a");
        is_noticed(&history, "3-a is not the only leader of epoch 5");
    }

    #[test]
    fn what_an_epoch_that_is_over_has_started_is_noticed() {
        let mut history = with_two_epochs();
        history.has_started(history.asked(), 2, "late".to_owned());
        is_noticed(&history, "late was started in epoch 2 after epoch 5");
    }

    #[test]
    fn facts_that_differ_at_one_index_are_noticed() {
        let mut history = History::default();
        history.has_hash(1, 7, "a".to_owned());
        history.has_hash(2, 7, "a".to_owned());
        history.has_hash(3, 8, "b".to_owned());
        assert_eq!(history.violations, BTreeSet::new());
        history.has_hash(3, 7, "b".to_owned());
        is_noticed(&history, "member 3 has other facts at index 7");
    }
}

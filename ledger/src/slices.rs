//! The slices of a stage, with an index of those that have something to be done: a stage may have very many, of which
//! most are finished or have not begun, and whoever decides what comes next looks often.
//!
//! ```text
//! pending    not begun, or given up without an open batch: 0..7 and 12..100,000
//! unsettled  at work, failed, or with a batch of which nobody knows whether it has landed: 7, 9
//! the rest   finished
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use weir_plan::{NodeCounts, RowAccount};
use weir_spec::NodeName;

use crate::PackedAccount;
use crate::facts::{SliceFacts, SliceState};
use crate::intervals::Intervals;

/// In JSON a list of slices: the index, and the sums of their accounts, follow from them.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    all: Vec<SliceFacts>,
    pending: Intervals,
    unsettled: BTreeSet<u32>,
    held: u32,
    at_risk: u32,
    counts: BTreeMap<NodeName, NodeCounts>,
}

/// A slice that is being changed; the index follows when it is dropped.
#[derive(Debug)]
pub struct SliceMut<'slices> {
    slices: &'slices mut Slices,
    number: u32,
    before: Place,
}

/// Where the index has a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    is_pending: bool,
    is_unsettled: bool,
    is_held: bool,
    is_at_risk: bool,
}

impl Place {
    fn of(slice: &SliceFacts) -> Self {
        let is_unsettled = slice.intent.is_some()
            || matches!(
                slice.state,
                SliceState::Running { .. } | SliceState::Copied { .. } | SliceState::Failed { .. }
            );
        let is_pending = slice.state == SliceState::Pending && !is_unsettled;
        let output = slice.exchange.as_ref();
        let is_held = output.is_some_and(|output| output.holder.is_some());
        let is_at_risk = output.is_some_and(|output| !output.is_durable());
        Self { is_pending, is_unsettled, is_held, is_at_risk }
    }
}

impl Slices {
    /// None of them has begun.
    pub(crate) fn new(count: u32) -> Self {
        let pending = Intervals::first(count);
        let all = (0..count).map(|_| SliceFacts::default()).collect();
        Self { all, pending, ..Self::default() }
    }

    pub fn count(&self) -> u32 {
        u32::try_from(self.all.len()).expect("a stage has fewer than 2^32 slices")
    }

    /// Ascending.
    pub fn pending(&self) -> impl Iterator<Item = u32> {
        self.pending.iter().flat_map(|(start, end)| start..end)
    }

    /// Ascending.
    pub fn unsettled(&self) -> impl Iterator<Item = (u32, &SliceFacts)> {
        self.unsettled.iter().map(|number| (*number, &self.all[*number as usize]))
    }

    /// What a node has counted in all committed batches and finished exchanges.
    pub fn counts(&self, node: &NodeName) -> NodeCounts {
        self.counts.get(node).copied().unwrap_or_default()
    }

    /// Whether an executor has any output.
    pub fn are_held(&self) -> bool {
        self.held > 0
    }

    /// Whether an executor alone has any output, so that it may be lost.
    pub fn are_at_risk(&self) -> bool {
        self.at_risk > 0
    }

    pub fn get_mut(&mut self, number: u32) -> Option<SliceMut<'_>> {
        let before = Place::of(self.all.get(usize::try_from(number).ok()?)?);
        Some(SliceMut { slices: self, number, before })
    }

    fn put(&mut self, number: u32, place: Place) {
        if place.is_pending {
            self.pending.insert(number);
        }
        if place.is_unsettled {
            self.unsettled.insert(number);
        }
        self.held += u32::from(place.is_held);
        self.at_risk += u32::from(place.is_at_risk);
    }

    fn take(&mut self, number: u32, place: Place) {
        if place.is_pending {
            self.pending.remove(number);
        }
        if place.is_unsettled {
            self.unsettled.remove(&number);
        }
        self.held -= u32::from(place.is_held);
        self.at_risk -= u32::from(place.is_at_risk);
    }
}

impl SliceMut<'_> {
    /// A batch is committed, or the exchange is finished.
    pub(crate) fn add_account(&mut self, account: &RowAccount) {
        self.account.add(account);
        for (node, counts) in &account.nodes {
            *self.slices.counts.entry(node.clone()).or_default() += *counts;
        }
    }

    /// What was computed is gone.
    pub(crate) fn forget_account(&mut self) {
        for (node, counts) in &self.account.unpack().nodes {
            if let Some(known) = self.slices.counts.get_mut(node) {
                known.rows_in -= counts.rows_in;
                known.rows_out -= counts.rows_out;
                known.dead_lettered -= counts.dead_lettered;
                known.dropped -= counts.dropped;
            }
        }
        self.account = PackedAccount::default();
    }
}

impl Drop for SliceMut<'_> {
    fn drop(&mut self) {
        let after = Place::of(self);
        if after != self.before {
            self.slices.take(self.number, self.before);
            self.slices.put(self.number, after);
        }
    }
}

impl Deref for SliceMut<'_> {
    type Target = SliceFacts;

    fn deref(&self) -> &SliceFacts {
        &self.slices.all[self.number as usize]
    }
}

impl DerefMut for SliceMut<'_> {
    fn deref_mut(&mut self) -> &mut SliceFacts {
        &mut self.slices.all[self.number as usize]
    }
}

impl Deref for Slices {
    type Target = [SliceFacts];

    fn deref(&self) -> &[SliceFacts] {
        &self.all
    }
}

impl<'slices> IntoIterator for &'slices Slices {
    type Item = &'slices SliceFacts;
    type IntoIter = std::slice::Iter<'slices, SliceFacts>;

    fn into_iter(self) -> Self::IntoIter {
        self.all.iter()
    }
}

impl From<Vec<SliceFacts>> for Slices {
    fn from(all: Vec<SliceFacts>) -> Self {
        let places: Vec<Place> = all.iter().map(Place::of).collect();
        let mut slices = Self { all, ..Self::default() };
        for (place, number) in places.into_iter().zip(0..) {
            slices.put(number, place);
        }
        let accounts: Vec<RowAccount> =
            slices.all.iter().map(|slice| slice.account.unpack()).collect();
        for (node, counts) in accounts.iter().flat_map(|account| &account.nodes) {
            *slices.counts.entry(node.clone()).or_default() += *counts;
        }
        slices
    }
}

impl PartialEq for Slices {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Serialize for Slices {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.all.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Slices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn states() -> impl Strategy<Value = SliceState> {
        prop_oneof![
            Just(SliceState::Pending),
            Just(SliceState::Running { epoch: 1 }),
            Just(SliceState::Finished),
            Just(SliceState::Failed { error: String::new(), retry_at: None }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// However slices change: each is pending, unsettled or finished.
        #[test]
        fn the_index_follows_the_slices(changes in prop::collection::vec((0u32..20, states()), 0..80)) {
            let mut slices = Slices::new(20);
            for (number, state) in changes {
                slices.get_mut(number).expect("it is there").state = state;
                let found: Vec<u32> = slices.pending().collect();
                let is = |wanted: fn(&SliceState) -> bool| -> Vec<u32> {
                    (0..20).filter(|number| wanted(&slices[*number as usize].state)).collect()
                };
                prop_assert_eq!(found, is(|state| *state == SliceState::Pending));
                let found: Vec<u32> = slices.unsettled().map(|(number, _)| number).collect();
                let unsettled = |state: &SliceState| {
                    matches!(state, SliceState::Running { .. } | SliceState::Failed { .. })
                };
                prop_assert_eq!(found, is(unsettled));
                let rebuilt = Slices::from(slices.to_vec());
                prop_assert_eq!(format!("{rebuilt:?}"), format!("{slices:?}"));
            }
            prop_assert!(slices.get_mut(20).is_none());
        }
    }
}

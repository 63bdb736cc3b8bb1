//! A set of numbers, kept as intervals: 100,000 finished windows are one pair of numbers.

use serde::{Deserialize, Serialize};

/// `[start, end)`, ascending, with a gap between any two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Intervals(Vec<(u32, u32)>);

impl Intervals {
    pub fn contains(&self, number: u32) -> bool {
        let behind = self.0.partition_point(|(start, _)| *start <= number);
        behind > 0 && number < self.0[behind - 1].1
    }

    /// How many numbers.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `[start, end)`, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().copied()
    }

    /// The numbers below `end` that are not in it, as ranges.
    pub fn gaps(&self, end: u32) -> impl Iterator<Item = std::ops::Range<u32>> {
        let starts = std::iter::once(0).chain(self.0.iter().map(|(_, end)| *end));
        let ends = self.0.iter().map(|(start, _)| *start).chain(std::iter::once(end));
        starts.zip(ends).map(|(start, end)| start..end)
    }

    /// `[0, count)`.
    pub(crate) fn first(count: u32) -> Self {
        Self(if count == 0 { Vec::new() } else { vec![(0, count)] })
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, number: u32) -> bool {
        if !self.contains(number) {
            return false;
        }
        let at = self.0.partition_point(|(start, _)| *start <= number) - 1;
        let (start, end) = self.0[at];
        match (start == number, end == number + 1) {
            (true, true) => {
                self.0.remove(at);
            }
            (true, false) => self.0[at].0 += 1,
            (false, true) => self.0[at].1 -= 1,
            (false, false) => {
                self.0[at].1 = number;
                self.0.insert(at + 1, (number + 1, end));
            }
        }
        true
    }

    /// Whether it was not there.
    pub(crate) fn insert(&mut self, number: u32) -> bool {
        if self.contains(number) {
            return false;
        }
        let behind = self.0.partition_point(|(start, _)| *start <= number);
        let joins_before = behind > 0 && self.0[behind - 1].1 == number;
        let joins_next = self.0.get(behind).is_some_and(|(start, _)| *start == number + 1);
        match (joins_before, joins_next) {
            (true, true) => {
                self.0[behind - 1].1 = self.0[behind].1;
                self.0.remove(behind);
            }
            (true, false) => self.0[behind - 1].1 += 1,
            (false, true) => self.0[behind].0 -= 1,
            (false, false) => self.0.insert(behind, (number, number + 1)),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn intervals_are_a_set(numbers in prop::collection::vec((0u32..60, any::<bool>()), 0..200)) {
            let (mut intervals, mut set) = (Intervals::default(), BTreeSet::new());
            for (number, is_inserted) in numbers {
                match is_inserted {
                    true => prop_assert_eq!(intervals.insert(number), set.insert(number)),
                    false => prop_assert_eq!(intervals.remove(number), set.remove(&number)),
                }
                prop_assert_eq!(intervals.len() as usize, set.len());
            }
            let inside: Vec<u32> = intervals.iter().flat_map(|(start, end)| start..end).collect();
            prop_assert_eq!(inside, set.iter().copied().collect::<Vec<_>>());
            let outside: Vec<u32> = intervals.gaps(60).flatten().collect();
            prop_assert_eq!(outside, (0..60).filter(|n| !set.contains(n)).collect::<Vec<_>>());
            prop_assert!((0..60).all(|number| intervals.contains(number) == set.contains(&number)));
            // No two touch.
            let pairs: Vec<_> = intervals.iter().collect();
            prop_assert!(pairs.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }
}

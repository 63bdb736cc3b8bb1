//! Splits into lists that are about equally heavy.

use weir_connectors::Split;

/// At most `most` contiguous lists of splits, in order, balanced by weight; none is empty unless
/// there are no splits, which give one empty list.
pub(crate) fn group(splits: &[Split], most: usize) -> Vec<Vec<Split>> {
    let most = most.max(1);
    if splits.is_empty() {
        return vec![Vec::new()];
    }
    if splits.len() <= most {
        return splits.iter().map(|split| vec![split.clone()]).collect();
    }
    let total: u128 = splits.iter().map(weight).sum();
    let mut groups: Vec<Vec<Split>> = Vec::new();
    let mut bucket = None;
    let mut before: u128 = 0;
    for split in splits {
        // The bucket in which the split's middle lies, among `most` of equal weight.
        let middle = 2 * before + weight(split);
        let own = middle * most as u128 / (2 * total);
        match groups.last_mut() {
            Some(group) if bucket == Some(own) => group.push(split.clone()),
            _ => groups.push(vec![split.clone()]),
        }
        bucket = Some(own);
        before += weight(split);
    }
    groups
}

fn weight(split: &Split) -> u128 {
    split.weight.max(1).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splits(weights: &[u64]) -> Vec<Split> {
        let split = |(index, weight): (usize, &u64)| Split {
            label: index.to_string(),
            payload: serde_json::Value::Null,
            weight: *weight,
            estimated_rows: None,
        };
        weights.iter().enumerate().map(split).collect()
    }

    fn weights(groups: &[Vec<Split>]) -> Vec<Vec<u64>> {
        groups.iter().map(|group| group.iter().map(|split| split.weight).collect()).collect()
    }

    #[test]
    fn no_splits_are_one_empty_slice() {
        assert_eq!(group(&[], 4), vec![Vec::new()]);
    }

    #[test]
    fn few_splits_are_a_slice_each() {
        assert_eq!(weights(&group(&splits(&[1, 100]), 4)), [vec![1], vec![100]]);
    }

    #[test]
    fn many_splits_are_balanced_and_stay_in_order() {
        let groups = group(&splits(&[1; 100]), 8);
        assert_eq!(groups.len(), 8);
        assert!(groups.iter().all(|group| (12..=13).contains(&group.len())));
        let labels: Vec<String> =
            groups.iter().flatten().map(|split| split.label.clone()).collect();
        assert_eq!(labels, (0..100).map(|index| index.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn a_big_split_stays_alone() {
        assert_eq!(
            weights(&group(&splits(&[1, 1, 1000, 1, 1]), 3)),
            [vec![1, 1], vec![1000], vec![1, 1]]
        );
    }
}

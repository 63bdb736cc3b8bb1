//! Where the rows are that a task is going to read.

use std::collections::BTreeMap;

use weir_ledger::RunFacts;
use weir_plan::{ExchangeOutput, Holder, Stage};

/// By process of an executor, about how many rows of what it has kept the slice reads. What is in the storage alone is
/// equally far from all.
pub(super) fn rows_kept_for(facts: &RunFacts, stage: &Stage, slice: u32) -> BTreeMap<Holder, u64> {
    let mut rows = BTreeMap::new();
    let inputs = stage.inputs.iter().filter_map(|input| facts.stage(*input));
    for slices in inputs.map(|input| &input.slices).filter(|slices| slices.are_held()) {
        for facts in slices {
            let Some(output) = facts.exchange.as_deref() else { continue };
            let Some(holder) = &output.holder else { continue };
            let share = share_of(output, facts.account.rows_written, stage.slice_count(), slice);
            if share > 0 {
                *rows.entry(holder.clone()).or_default() += share;
            }
        }
    }
    rows
}

/// Of the rows of an output, those that one of `slices` reads: all of them if it is the only one, its own partition
/// otherwise. (Sides of joins that all slices read are the same for each, and small.)
fn share_of(output: &ExchangeOutput, rows: u64, slices: u32, slice: u32) -> u64 {
    match slices {
        1 => rows,
        _ if output.holds(slice) => rows / u64::from(output.partitions.max(1)),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use weir_plan::InStorage;

    use super::*;

    #[test]
    fn a_slice_reads_its_partition_and_the_only_one_reads_all() {
        let output = |first, partitions| ExchangeOutput {
            file_id: String::new(),
            first,
            partitions,
            holder: None,
            in_storage: InStorage::No,
        };
        assert_eq!(share_of(&output(0, 4), 400, 4, 3), 100);
        assert_eq!(share_of(&output(2, 1), 400, 4, 2), 400);
        assert_eq!(share_of(&output(2, 1), 400, 4, 3), 0);
        assert_eq!(share_of(&output(2, 1), 400, 1, 0), 400);
    }
}

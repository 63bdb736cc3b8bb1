//! Rows of a destination against those of a single process: as multisets, and as the target's own books say.

use std::cmp::Ordering;

use weir_proto::v1::TaskState;

use super::observer::Seen;

/// A hash for each row, so that a large table is a few bytes a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows(Vec<i64>);

impl Rows {
    pub fn new(mut hashes: Vec<i64>) -> Self {
        hashes.sort_unstable();
        Self(hashes)
    }

    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The same for the same rows in any order.
    pub fn checksum(&self) -> u64 {
        self.0.iter().fold(0_u64, |sum, hash| sum.wrapping_add(hash.cast_unsigned()))
    }

    pub fn with(&self, more: &[i64]) -> Self {
        Self::new([&self.0[..], more].concat())
    }

    /// Rows of the other that are missing here, and rows that it does not have, each as often as they are
    /// too few or too many.
    fn difference(&self, expected: &Self) -> (usize, usize) {
        let (mut missing, mut surplus) = (0, 0);
        let (mut here, mut there) = (self.0.iter().peekable(), expected.0.iter().peekable());
        loop {
            let order = match (here.peek(), there.peek()) {
                (None, None) => return (missing, surplus),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(here), Some(there)) => here.cmp(there),
            };
            if order != Ordering::Greater {
                here.next();
            }
            if order != Ordering::Less {
                there.next();
            }
            surplus += usize::from(order == Ordering::Less);
            missing += usize::from(order == Ordering::Greater);
        }
    }
}

/// The run is over: the destination has what a single process has put there.
pub fn are_exact(expected: &Rows, actual: &Rows) -> Result<(), String> {
    match actual.difference(expected) {
        (0, 0) if actual.checksum() == expected.checksum() => Ok(()),
        (missing, surplus) => Err(format!(
            "{missing} rows are missing and {surplus} are too many: {} rows with checksum {:x} for {} \
             with {:x}",
            actual.count(),
            actual.checksum(),
            expected.count(),
            expected.checksum()
        )),
    }
}

/// The run goes on and appends: nothing is there twice, and nothing that does not belong there.
pub fn are_a_part(expected: &Rows, actual: &Rows) -> Result<(), String> {
    match actual.difference(expected) {
        (_, 0) => Ok(()),
        (_, surplus) => Err(format!(
            "{surplus} of {} rows are there too often, or belong nowhere",
            actual.count()
        )),
    }
}

/// A batch as the target has booked it, in the transaction that has brought its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Booked {
    pub slice: u32,
    pub sequence: u64,
    pub rows: u64,
}

/// Ledger and target agree that every batch of every slice was taken exactly once. Of a run that is over, with
/// one sink.
pub fn every_slice_counts_once(seen: &Seen, booked: &[Booked]) -> Result<(), String> {
    let sink = seen.run.stages.iter().find(|stage| !stage.sink.is_empty());
    let sink = sink.ok_or("the run has no sink")?.stage;
    for task in &seen.tasks {
        let name = format!("stage {}, slice {}", task.stage, task.slice);
        if task.state() != TaskState::Finished {
            return Err(format!("{name} is not finished"));
        }
        let by = &task.committed_by;
        let is_first = by.first().is_none_or(|first| first.from_batch == 0);
        let follow = (by.windows(2))
            .all(|two| two[0].from_batch < two[1].from_batch && two[0].attempt < two[1].attempt);
        let are_made = by.iter().all(|by| (1..=task.attempts).contains(&by.attempt));
        if !(is_first && follow && are_made) {
            return Err(format!("{name} was accepted of several attempts at once: {by:?}"));
        }
        if task.stage != sink {
            continue;
        }
        let mut of_slice: Vec<_> =
            booked.iter().filter(|batch| batch.slice == task.slice).collect();
        of_slice.sort_by_key(|batch| batch.sequence);
        if !of_slice.iter().map(|batch| batch.sequence).eq(0..task.batches) {
            let sequences: Vec<_> = of_slice.iter().map(|batch| batch.sequence).collect();
            return Err(format!(
                "{name}: the ledger has {} batches, the target {sequences:?}",
                task.batches
            ));
        }
        let rows: u64 = of_slice.iter().map(|batch| batch.rows).sum();
        if rows != task.rows_written {
            return Err(format!("{name}: {} rows in the ledger, {rows} booked", task.rows_written));
        }
    }
    let slices = seen.tasks.iter().filter(|task| task.stage == sink).count();
    match booked.iter().find(|batch| batch.slice as usize >= slices) {
        None => Ok(()),
        Some(batch) => Err(format!("the target has a batch of slice {}, of {slices}", batch.slice)),
    }
}

/// `weir audit`: it adds up the rows of every node, and has asked the target.
pub fn are_accounted_for(audit: &serde_json::Value, rows: u64) -> Result<(), String> {
    let sinks = audit["sinks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [sink] = sinks else { return Err(format!("not one sink: {audit}")) };
    let is_complete = sink["rows_in_ledger"] == rows && sink["rows_in_target"] == rows;
    match audit["clean"] == true && is_complete {
        true => Ok(()),
        false => Err(format!("the audit is not clean, or not of {rows} rows: {audit}")),
    }
}

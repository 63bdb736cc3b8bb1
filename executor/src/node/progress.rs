//! Events for progress bars on their way to the leader: rows are added up in between, so that a
//! stream does not carry a message for every batch.

use std::collections::BTreeMap;

use weir_spec::NodeName;

use crate::ProgressEvent;

/// Commits that are kept for the next message; more are lost.
const MAX_COMMITS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct ProgressBuffer {
    /// Rows and bytes by run and node.
    rows: BTreeMap<(String, NodeName), (u64, u64)>,
    commits: Vec<ProgressEvent>,
}

impl ProgressBuffer {
    pub(super) fn add(&mut self, event: ProgressEvent) {
        match event {
            ProgressEvent::Rows { run, node, rows, bytes } => {
                let sum = self.rows.entry((run, node)).or_default();
                sum.0 += rows;
                sum.1 += bytes;
            }
            ProgressEvent::BatchCommitted { .. } => {
                if self.commits.len() < MAX_COMMITS {
                    self.commits.push(event);
                }
            }
        }
    }

    /// What has come since the last call.
    pub(super) fn take(&mut self) -> Vec<ProgressEvent> {
        let rows = std::mem::take(&mut self.rows).into_iter();
        let mut events: Vec<ProgressEvent> = rows
            .map(|((run, node), (rows, bytes))| ProgressEvent::Rows { run, node, rows, bytes })
            .collect();
        events.append(&mut self.commits);
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_added_up_and_commits_are_not() {
        let (run, node) = ("run".to_owned(), NodeName::new("orders"));
        let rows = |rows| ProgressEvent::Rows {
            run: run.clone(),
            node: node.clone(),
            rows,
            bytes: 10 * rows,
        };
        let commit = |sequence| ProgressEvent::BatchCommitted {
            run: run.clone(),
            node: node.clone(),
            slice: 0,
            sequence,
            rows: 5,
        };
        let mut buffer = ProgressBuffer::default();
        for event in [rows(2), commit(0), rows(3), commit(1)] {
            buffer.add(event);
        }
        assert_eq!(buffer.take(), [rows(5), commit(0), commit(1)]);
        assert_eq!(buffer.take(), []);
    }
}

//! Does the row account of a run add up? (What clients have changed is `client_changes`.)

use weir_plan::{NodeCounts, StageId};
use weir_spec::NodeName;

use crate::facts::{Ledger, NodeRole, RunFacts, RunId, StageFacts, StageOutputShape};

/// What the ledger says about a run's rows, before any target is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerAudit {
    pub nodes: Vec<NodeTotals>,
    /// What does not add up, each naming stage and slice. Empty when all does.
    pub findings: Vec<String>,
}

/// A node's rows over all slices of all stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTotals {
    pub node: NodeName,
    pub role: NodeRole,
    pub counts: NodeCounts,
}

impl NodeTotals {
    /// Rows that a row-wise node has left out on purpose: a filter's, a deduplication's.
    pub fn filtered(&self) -> u64 {
        let counts = &self.counts;
        counts.rows_in.saturating_sub(counts.rows_out + counts.dead_lettered + counts.dropped)
    }
}

impl Ledger {
    /// Adds up the accounts of a run; `None` for an unknown run.
    pub fn audit(&self, run: &RunId) -> Option<LedgerAudit> {
        let run = self.run(run)?;
        let mut audit = LedgerAudit::default();
        for (stage, id) in run.stages.iter().zip(0..) {
            let id = StageId(id);
            check_slices(stage, id, &mut audit.findings);
            if stage.shape.output == StageOutputShape::Exchange && stage.is_complete() {
                check_exchange(run, stage, id, &mut audit.findings);
            }
            let account = stage.account();
            for shape in &stage.shape.nodes {
                let counts = account.nodes.get(&shape.name).copied().unwrap_or_default();
                match audit.nodes.iter_mut().find(|known| known.node == shape.name) {
                    Some(known) => known.counts += counts,
                    None => audit.nodes.push(NodeTotals {
                        node: shape.name.clone(),
                        role: shape.role,
                        counts,
                    }),
                }
            }
        }
        for totals in &audit.nodes {
            if let Some(finding) = total_finding(totals) {
                audit.findings.push(finding);
            }
        }
        Some(audit)
    }
}

/// Each slice on its own: its nodes add up, and its account says what its manifests say.
fn check_slices(stage: &StageFacts, id: StageId, findings: &mut Vec<String>) {
    let name = &stage.shape.name;
    for (slice, number) in stage.slices.iter().zip(0u32..) {
        for (node, counts) in &slice.account.unpack().nodes {
            let Some(role) = stage.role(node) else { continue };
            if let Some(finding) = node_finding(role, counts) {
                findings
                    .push(format!("stage {id} ({name}), slice {number}: node `{node}`: {finding}"));
            }
        }
        if stage.sink().is_none() {
            continue;
        }
        if slice.account.rows_written != slice.manifest_rows {
            findings.push(format!(
                "stage {id} ({name}), slice {number}: {} rows in its account, {} in its manifests",
                slice.account.rows_written, slice.manifest_rows
            ));
        } else if slice.account.checksum != slice.manifest_checksum {
            findings.push(format!(
                "stage {id} ({name}), slice {number}: checksum {:016x} in its account, {:016x} in \
                 its manifests",
                slice.account.checksum, slice.manifest_checksum
            ));
        }
    }
}

fn node_finding(role: NodeRole, counts: &NodeCounts) -> Option<String> {
    let accounted = counts.rows_out + counts.dead_lettered + counts.dropped;
    let NodeCounts { rows_in, rows_out, dead_lettered, dropped } = counts;
    match role {
        NodeRole::Source { .. } | NodeRole::Validate if accounted != *rows_in => Some(format!(
            "{rows_in} rows in, but {rows_out} out + {dead_lettered} dead letters + {dropped} \
             dropped = {accounted}"
        )),
        NodeRole::Source { .. }
        | NodeRole::Validate
        | NodeRole::Deduplicate
        | NodeRole::Sql
        | NodeRole::Sink => None,
    }
}

/// What enters a deduplication and what leaves it may be counted by different tasks.
fn total_finding(NodeTotals { node, role, counts }: &NodeTotals) -> Option<String> {
    let accounted = counts.rows_out + counts.dead_lettered + counts.dropped;
    let is_too_much = *role == NodeRole::Deduplicate && accounted > counts.rows_in;
    is_too_much.then(|| format!("node `{node}`: {} rows in, but {accounted} out", counts.rows_in))
}

/// Whoever reads an exchange to its end has read all rows that were written to it.
fn check_exchange(run: &RunFacts, stage: &StageFacts, id: StageId, findings: &mut Vec<String>) {
    let written: u64 = stage.slices.iter().map(|slice| slice.account.rows_written).sum();
    for (reader, reader_id) in run.stages.iter().zip(0u32..) {
        if !reader.shape.inputs.contains(&id) || !reader.are_slices_finished() {
            continue;
        }
        let reads: Vec<u64> = (reader.slices.iter())
            .filter_map(|slice| slice.account.unpack().exchanges_read.get(&id).copied())
            .collect();
        // Only what streams reads each row exactly once: a join may stop early or read twice.
        if !reader.shape.streaming || reads.is_empty() {
            continue;
        }
        let read: u64 = reads.iter().sum();
        if read != written {
            findings.push(format!(
                "stage {reader_id} ({}) has read {read} rows of the exchange of stage {id} ({}), \
                 which holds {written}",
                reader.shape.name, stage.shape.name
            ));
        }
    }
}

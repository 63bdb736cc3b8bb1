//! `weir audit`: does the ledger add up, and do the targets agree with it? (What clients have changed is `cluster::audit_log`.)

use std::collections::BTreeMap;

use weir_connectors::{ConnectorContext, Manifest, PublishedBatch};
use weir_executor::Systems;
use weir_ledger::{Ledger, RunCommit, RunFacts, RunId, StageFacts};
use weir_plan::{StageId, StageOutput};
use weir_spec::{CommitMode, NodeName};

use crate::frozen::read_graph;
use crate::pipeline_files::PipelineFiles;
use crate::progress_files::read_manifests;
use crate::{AuditReport, EngineError, NodeAudit, SinkAudit};

pub(crate) async fn audit_run(
    files: &PipelineFiles,
    ledger: &Ledger,
    id: &RunId,
    run: &RunFacts,
    context: &ConnectorContext,
    systems: &dyn Systems,
) -> Result<AuditReport, EngineError> {
    let in_ledger = ledger.audit(id).unwrap_or_default();
    let mut findings = in_ledger.findings;
    let nodes = (in_ledger.nodes.iter())
        .map(|totals| NodeAudit {
            node: totals.node.clone(),
            rows_in: totals.counts.rows_in,
            rows_out: totals.counts.rows_out,
            filtered: totals.filtered(),
            dead_lettered: totals.counts.dead_lettered,
            dropped: totals.counts.dropped,
        })
        .collect();
    let folder = files.run(id);
    let mut sinks = Vec::new();
    for stage in read_graph(files, id, run).await?.iter().flat_map(|graph| &graph.stages) {
        let StageOutput::Sink { node, sink, .. } = &stage.output else { continue };
        let Some(facts) = run.stage(stage.id) else { continue };
        let manifests = read_manifests(&folder, stage.id, facts).await?;
        let published = match (run.prepared.get(node), is_visible(facts)) {
            (Some(prepared), true) => {
                let opened = systems.open_sink(node, sink);
                let answer = match opened {
                    Ok(opened) => opened.published(prepared, &manifests).await,
                    Err(error) => Err(error),
                };
                match answer {
                    Ok(published) => published,
                    Err(error) => {
                        let error = context.redactor.redact(&error.to_string());
                        findings.push(format!("sink `{node}` could not be asked: {error}"));
                        continue;
                    }
                }
            }
            _ => Vec::new(),
        };
        sinks.push(audit_sink(node, stage.id, facts, &manifests, &published, &mut findings));
    }
    Ok(AuditReport { run: id.0.clone(), clean: findings.is_empty(), nodes, sinks, findings })
}

/// Whether the target shows what is committed.
fn is_visible(stage: &StageFacts) -> bool {
    match stage.sink() {
        Some((_, CommitMode::Run)) => stage.run_commit == RunCommit::Done,
        Some((_, CommitMode::Batch)) => true,
        None => false,
    }
}

fn audit_sink(
    node: &NodeName,
    id: StageId,
    stage: &StageFacts,
    manifests: &[Manifest],
    published: &[PublishedBatch],
    findings: &mut Vec<String>,
) -> SinkAudit {
    let account = stage.account();
    let mut differing = Vec::new();
    if is_visible(stage) {
        let mut open: BTreeMap<(u32, u64), &Manifest> = (manifests.iter())
            .map(|manifest| ((manifest.slice, manifest.sequence), manifest))
            .collect();
        let name = &stage.shape.name;
        let place = |slice, sequence| {
            format!("stage {id} ({name}), slice {slice}, batch {sequence}: sink `{node}`")
        };
        for batch in published {
            let place = place(batch.slice, batch.sequence);
            let finding = match open.remove(&(batch.slice, batch.sequence)) {
                None => Some(format!(
                    "{place} shows {} rows of a batch that the ledger does not know, or twice",
                    batch.rows
                )),
                Some(known) if known.rows != batch.rows => Some(format!(
                    "{place} shows {} rows, the ledger has {}",
                    batch.rows, known.rows
                )),
                Some(known) => batch.checksum.filter(|sum| *sum != known.checksum).map(|sum| {
                    format!(
                        "{place} has checksum {sum:016x}, the ledger has {:016x}",
                        known.checksum
                    )
                }),
            };
            if let Some(finding) = finding {
                findings.push(finding);
                differing.push(batch.clone());
            }
        }
        for ((slice, sequence), manifest) in open {
            // Nothing was written for it, and some targets keep no record of nothing.
            if manifest.rows > 0 {
                let place = place(slice, sequence);
                findings.push(format!("{place} lacks the batch's {} rows", manifest.rows));
                let (rows, checksum) = (0, None);
                differing.push(PublishedBatch { slice, sequence, rows, checksum });
            }
        }
    }
    SinkAudit {
        sink: node.clone(),
        batches: stage.slices.iter().map(|slice| slice.next_sequence).sum(),
        rows_in_ledger: account.rows_written,
        rows_in_target: published.iter().map(|batch| batch.rows).sum(),
        is_shown: is_visible(stage),
        checksum: format!("{:016x}", account.checksum),
        differing,
    }
}

#[cfg(test)]
mod tests {
    use weir_ledger::{PackedAccount, SliceFacts, StageOutputShape, StageShape};
    use weir_plan::RowAccount;

    use super::*;

    fn manifest(sequence: u64, rows: u64) -> Manifest {
        let (payload, checksum) = (serde_json::Value::Null, rows * 7);
        Manifest { slice: 0, sequence, rows, checksum, epoch: 1, payload }
    }

    fn published(sequence: u64, rows: u64, checksum: Option<u64>) -> PublishedBatch {
        PublishedBatch { slice: 0, sequence, rows, checksum }
    }

    fn findings(manifests: &[Manifest], batches: &[PublishedBatch]) -> Vec<String> {
        let rows_written = manifests.iter().map(|manifest| manifest.rows).sum();
        let node = NodeName::new("kept");
        let stage = StageFacts {
            shape: StageShape {
                name: "kept".into(),
                slices: 1,
                streaming: true,
                inputs: vec![],
                nodes: vec![],
                output: StageOutputShape::Sink { node: node.clone(), commit: CommitMode::Batch },
            },
            slices: vec![SliceFacts {
                account: PackedAccount::from(&RowAccount { rows_written, ..RowAccount::default() }),
                ..SliceFacts::default()
            }]
            .into(),
            finished_slices: 1,
            run_commit: RunCommit::Open,
        };
        let mut findings = Vec::new();
        audit_sink(&node, StageId(2), &stage, manifests, batches, &mut findings);
        findings
    }

    #[test]
    fn a_target_that_agrees_has_no_findings() {
        let manifests = [manifest(0, 5), manifest(1, 0)];
        assert_eq!(findings(&manifests, &[published(0, 5, Some(35))]), Vec::<String>::new());
        assert_eq!(findings(&manifests, &[published(0, 5, None)]), Vec::<String>::new());
    }

    #[test]
    fn every_difference_names_stage_slice_and_batch() {
        let manifests = [manifest(0, 5), manifest(1, 6), manifest(2, 7)];
        let batches = [published(0, 4, None), published(1, 6, Some(1)), published(3, 1, None)];
        let place = "stage 2 (kept), slice 0, batch";
        assert_eq!(
            findings(&manifests, &batches),
            [
                format!("{place} 0: sink `kept` shows 4 rows, the ledger has 5"),
                format!(
                    "{place} 1: sink `kept` has checksum 0000000000000001, the ledger has \
                     000000000000002a"
                ),
                format!(
                    "{place} 3: sink `kept` shows 1 rows of a batch that the ledger does not know, \
                     or twice"
                ),
                format!("{place} 2: sink `kept` lacks the batch's 7 rows"),
            ]
        );
    }
}

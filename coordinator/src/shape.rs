//! What the ledger keeps of a plan.

use weir_ledger::{NodeRole, NodeShape, StageOutputShape, StageShape};
use weir_plan::{Stage, StageGraph, StageKind, StageOutput};
use weir_spec::{CommitMode, NodeName, Operator, PipelineSpec, Sink, WriteMode};

use crate::RunRequest;

pub(crate) fn stage_shapes(
    graph: &StageGraph,
    spec: &PipelineSpec,
    request: &RunRequest,
) -> Vec<StageShape> {
    let shape = |stage: &Stage| StageShape {
        name: stage.name.clone(),
        slices: stage.slice_count(),
        streaming: matches!(stage.kind, StageKind::Streaming { .. }),
        inputs: stage.inputs.clone(),
        nodes: (stage.nodes.iter())
            .map(|name| NodeShape { name: name.clone(), role: role(name, spec, request) })
            .collect(),
        output: match &stage.output {
            StageOutput::Exchange => StageOutputShape::Exchange,
            StageOutput::Sink { node, sink, .. } => {
                StageOutputShape::Sink { node: node.clone(), commit: commit_mode(sink) }
            }
        },
    };
    graph.stages.iter().map(shape).collect()
}

/// Replacing is always done at once.
fn commit_mode(sink: &Sink) -> CommitMode {
    match sink.mode {
        WriteMode::Replace => CommitMode::Run,
        WriteMode::Append | WriteMode::Upsert => sink.commit,
    }
}

fn role(node: &NodeName, spec: &PipelineSpec, request: &RunRequest) -> NodeRole {
    if let Some(source) = spec.sources.get(node) {
        // Rows that are given move no watermark.
        let incremental = source.incremental().is_some() && !request.given.contains_key(node);
        return NodeRole::Source { incremental };
    }
    if spec.sinks.contains_key(node) {
        return NodeRole::Sink;
    }
    match spec.transforms.get(node).map(|transform| &transform.operator) {
        Some(Operator::Validate(_)) => NodeRole::Validate,
        Some(Operator::Deduplicate(_)) => NodeRole::Deduplicate,
        Some(Operator::Sql(_) | Operator::Unsupported(_)) | None => NodeRole::Sql,
    }
}

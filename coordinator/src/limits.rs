//! `max_errors`: how many rejected rows a run may have before it fails.

use weir_ledger::RunFacts;
use weir_plan::NodeCounts;
use weir_spec::{MaxErrors, NodeName, Operator, PipelineSpec};

/// Nodes with a limit.
fn limits(spec: &PipelineSpec) -> impl Iterator<Item = (&NodeName, MaxErrors)> {
    let sources =
        (spec.sources.iter()).filter_map(|(node, source)| Some((node, source.error_policy().1?)));
    let transforms =
        spec.transforms.iter().filter_map(|(node, transform)| match &transform.operator {
            Operator::Validate(validate) => Some((node, validate.max_errors?)),
            Operator::Sql(_) | Operator::Deduplicate(_) | Operator::Unsupported(_) => None,
        });
    sources.chain(transforms)
}

/// The first node that has rejected more rows than it may, as a message. A share can only be judged
/// once all rows are counted: `is_final`.
pub(crate) fn exceeded_limit(
    spec: &PipelineSpec,
    run: &RunFacts,
    is_final: bool,
) -> Option<String> {
    limits(spec).find_map(|(node, limit)| {
        let mut counts = NodeCounts::default();
        for slice in run.stages.iter().flat_map(|stage| &stage.slices) {
            counts += slice.account.nodes.get(node).copied().unwrap_or_default();
        }
        let rejected = counts.dead_lettered + counts.dropped;
        let (is_exceeded, allowed) = match limit {
            MaxErrors::Rows(rows) => (rejected > rows, rows.to_string()),
            MaxErrors::Percent(percent) => {
                let share = rejected as f64 * 100.0;
                let allowed = percent * counts.rows_in as f64;
                (is_final && share > allowed, format!("{percent}%"))
            }
        };
        is_exceeded.then(|| {
            format!(
                "node `{node}` has rejected {rejected} of {} rows, more than `max_errors: {allowed}` \
                 allows; mend the rows, or raise `max_errors`",
                counts.rows_in
            )
        })
    })
}

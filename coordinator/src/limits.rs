//! `max_errors`: how many rejected rows a run may have before it fails. (What tasks and clients may use at once is in
//! `connection_limits` and `cluster::quota`.)

use weir_ledger::RunFacts;
use weir_plan::{NodeCounts, RowAccount};
use weir_spec::{MaxErrors, NodeName, Operator, PipelineSpec};

/// When a run's rejected rows are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment<'account> {
    /// Before a batch with this account is committed: a number of rows must still hold with it.
    BeforeCommit(&'account RowAccount),
    /// Between two jobs.
    Between,
    /// All rows are counted: a share can be judged, too.
    End,
}

/// A limit that is exceeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExceededLimit {
    pub(crate) node: NodeName,
    pub(crate) message: String,
}

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

/// Whether commits must be judged one after the other.
pub(crate) fn has_row_limit(spec: &PipelineSpec) -> bool {
    limits(spec).any(|(_, limit)| matches!(limit, MaxErrors::Rows(_)))
}

/// The first node that has rejected more rows than it may. Batches that are about to be committed
/// count.
pub(crate) fn exceeded_limit(
    spec: &PipelineSpec,
    run: &RunFacts,
    moment: Moment<'_>,
) -> Option<ExceededLimit> {
    limits(spec).find_map(|(node, limit)| {
        let counts_in = |account: &RowAccount| account.nodes.get(node).copied().unwrap_or_default();
        let mut counts = NodeCounts::default();
        for stage in &run.stages {
            counts += stage.slices.counts(node);
            let intents = stage.slices.unsettled().filter_map(|(_, slice)| slice.intent.as_ref());
            intents.for_each(|intent| counts += counts_in(&intent.commit.account));
        }
        if let Moment::BeforeCommit(account) = moment {
            counts += counts_in(account);
        }
        let rejected = counts.dead_lettered + counts.dropped;
        let (is_exceeded, allowed) = match limit {
            MaxErrors::Rows(rows) => (rejected > rows, rows.to_string()),
            MaxErrors::Percent(percent) => {
                let share = rejected as f64 * 100.0;
                let allowed = percent * counts.rows_in as f64;
                (matches!(moment, Moment::End) && share > allowed, format!("{percent}%"))
            }
        };
        is_exceeded.then(|| ExceededLimit {
            node: node.clone(),
            message: format!(
                "node `{node}` has rejected {rejected} of {} rows, more than `max_errors: {allowed}` \
                 allows; mend the rows, or raise `max_errors`",
                counts.rows_in
            ),
        })
    })
}

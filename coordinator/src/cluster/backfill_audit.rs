//! `weir audit BACKFILL`: every window's run, and all of them together.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use weir_ledger::{RunId, SinkTotals, WindowState};
use weir_proto::v1;

use super::leading::Leading;
use crate::{AuditReport, EngineError};

/// Windows that are looked at at once.
const AT_ONCE: usize = 8;
/// Findings that are told; there may be one for every batch.
const MOST_FINDINGS: usize = 1_000;

pub(super) async fn audit(leading: &Leading, id: &str) -> Result<v1::BackfillAudit, EngineError> {
    let (backfill, totals, runs) = leading
        .with_backfill(id, |id, facts| {
            // What other windows have committed is in the targets as well, but not in the totals.
            let finished = (0..facts.range.count)
                .filter(|window| facts.window(*window) == Some(WindowState::Finished))
                .filter_map(|window| facts.run_of(id, window));
            (id.0.clone(), facts.totals.clone(), finished.collect::<Vec<RunId>>())
        })
        .await?;
    let mut report = v1::BackfillAudit {
        backfill,
        windows: u32::try_from(runs.len()).unwrap_or(u32::MAX),
        ..v1::BackfillAudit::default()
    };
    let mut sums: BTreeMap<String, v1::SinkTotals> = BTreeMap::new();
    let mut findings = Findings::default();
    let mut audits = futures::stream::iter(runs)
        .map(|run| async move {
            let audited = audit_window(leading, &run).await;
            (run, audited)
        })
        .buffer_unordered(AT_ONCE);
    while let Some((run, audited)) = audits.next().await {
        let audited = match audited {
            Ok(audited) => audited,
            Err(error @ EngineError::Ledger { .. }) => return Err(error),
            Err(error) => {
                let error = leading.settings.context.redactor.redact(&error.to_string());
                findings.add(format!("run {run}: {error}"));
                continue;
            }
        };
        for finding in audited.findings {
            findings.add(format!("run {run}: {finding}"));
        }
        for sink in audited.sinks {
            let sum = sums.entry(sink.sink.to_string()).or_default();
            sum.batches += sink.batches;
            sum.rows_in_ledger += sink.rows_in_ledger;
            sum.rows_in_targets += sink.rows_in_target;
        }
    }
    for (sink, SinkTotals { rows, batches, .. }) in &totals.sinks {
        let sum = sums.get(&sink.to_string());
        let (found, in_batches) =
            sum.map(|sum| (sum.rows_in_ledger, sum.batches)).unwrap_or_default();
        if (found, in_batches) != (*rows, *batches) {
            findings.add(format!(
                "sink `{sink}`: the backfill has {rows} rows in {batches} batches, its windows have \
                 {found} in {in_batches}"
            ));
        }
    }
    report.clean = findings.count == 0;
    report.findings = findings.told();
    report.sinks = sums.into_iter().map(|(sink, sum)| v1::SinkTotals { sink, ..sum }).collect();
    Ok(report)
}

async fn audit_window(leading: &Leading, run: &RunId) -> Result<AuditReport, EngineError> {
    let (run, facts) = leading.find(&run.0).await?;
    leading.audit_run(&run, facts).await
}

#[derive(Debug, Default)]
struct Findings {
    texts: Vec<String>,
    count: usize,
}

impl Findings {
    fn add(&mut self, text: String) {
        self.count += 1;
        if self.texts.len() < MOST_FINDINGS {
            self.texts.push(text);
        }
    }

    fn told(mut self) -> Vec<String> {
        self.texts.sort();
        if self.count > self.texts.len() {
            self.texts.push(format!("… and {} more", self.count - self.texts.len()));
        }
        self.texts
    }
}

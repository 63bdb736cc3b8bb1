//! Messages as the values that the embedded engine returns, so that both are printed by the same code.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use weir_coordinator::{
    AuditReport, DeadLetter, RunDetail, RunStatus, RunSummary, SinkAudit, StageDetail,
};
use weir_executor::RowAccount;
use weir_proto::v1;
use weir_spec::NodeName;

use crate::failure::Failure;

pub(crate) fn summary(run: &v1::Run) -> Result<RunSummary, Failure> {
    let started_at = time(&run.started_at)?.ok_or_else(|| unknown("a run without a start"))?;
    let window = time(&run.window_start)?.zip(time(&run.window_end)?);
    // A map of the message has no order of its own.
    let written: BTreeMap<&String, &u64> = run.rows_written.iter().collect();
    let written = written.into_iter().map(|(sink, rows)| (NodeName::new(sink.clone()), *rows));
    let params = run.params.iter().map(|(name, json)| {
        let value = serde_json::from_str(json);
        value.map(|value| (name.clone(), value)).map_err(|_| unknown(json))
    });
    Ok(RunSummary {
        run: run.run.clone(),
        pipeline: run.pipeline.clone(),
        status: status(run)?,
        started_at,
        ended_at: time(&run.ended_at)?,
        params: params.collect::<Result<_, _>>()?,
        window,
        version: (run.version > 0).then_some(run.version),
        rows_read: run.rows_read,
        rows_written: written.collect(),
        dead_letters: run.dead_letters,
        sessions: run.sessions,
        error: (!run.error.is_empty()).then(|| run.error.clone()),
    })
}

pub(crate) fn dead_letter(letter: v1::DeadLetter) -> Result<DeadLetter, Failure> {
    let v1::DeadLetter { id, run, pipeline, node, attempt, at, reasons, row, offset } = letter;
    let at = time(&at)?.ok_or_else(|| unknown("a dead letter without a time"))?;
    let row = serde_json::from_str(&row).map_err(|_| unknown(&row))?;
    let node = NodeName::new(node);
    Ok(DeadLetter { id, run, pipeline, node, attempt, at, reasons, row, offset })
}

pub(crate) fn detail(run: &v1::Run) -> Result<RunDetail, Failure> {
    let stages = run.stages.iter().map(|stage| StageDetail {
        stage: stage.stage,
        name: stage.name.clone(),
        slices: stage.slices,
        slices_done: stage.slices_done,
        attempts: stage.attempts,
        account: RowAccount { rows_written: stage.rows_written, ..RowAccount::default() },
    });
    Ok(RunDetail { summary: summary(run)?, stages: stages.collect() })
}

/// Accounts of single nodes do not leave the cluster.
pub(crate) fn report(report: v1::AuditReport) -> AuditReport {
    let sinks = report.sinks.into_iter().map(|sink| SinkAudit {
        sink: NodeName::new(sink.sink),
        batches: sink.batches,
        rows_in_ledger: sink.rows_in_ledger,
        rows_in_target: sink.rows_in_target,
        is_shown: sink.is_shown,
        checksum: sink.checksum,
        differing: Vec::new(),
    });
    AuditReport {
        run: report.run,
        clean: report.clean,
        nodes: Vec::new(),
        sinks: sinks.collect(),
        findings: report.findings,
    }
}

fn status(run: &v1::Run) -> Result<RunStatus, Failure> {
    match run.status() {
        v1::RunStatus::Queued => Ok(RunStatus::Queued),
        v1::RunStatus::Running => Ok(RunStatus::Running),
        v1::RunStatus::Succeeded => Ok(RunStatus::Succeeded),
        v1::RunStatus::Failed => Ok(RunStatus::Failed),
        v1::RunStatus::Abandoned => Ok(RunStatus::Abandoned),
        v1::RunStatus::Skipped => Ok(RunStatus::Skipped),
        v1::RunStatus::Unspecified => Err(unknown("a run without a status")),
    }
}

fn time(text: &str) -> Result<Option<DateTime<Utc>>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| unknown(text))?;
    Ok(Some(time.with_timezone(&Utc)))
}

fn unknown(what: &str) -> Failure {
    Failure::Run(format!(
        "the cluster's answer is not understood: {what} (is it of another version?)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_the_cluster_is_shown_as_one_of_the_engine() {
        let run = v1::Run {
            run: "20261122-1".to_owned(),
            pipeline: "p".to_owned(),
            status: v1::RunStatus::Failed.into(),
            started_at: "2026-11-22T10:00:00.5Z".to_owned(),
            ended_at: "2026-11-22T10:00:02Z".to_owned(),
            params: [("country".to_owned(), "\"DE\"".to_owned())].into(),
            window_start: "2026-11-01T00:00:00Z".to_owned(),
            window_end: "2026-11-02T00:00:00Z".to_owned(),
            error: "the disk is full".to_owned(),
            rows_read: 7,
            dead_letters: 1,
            rows_written: [("b".to_owned(), 2), ("a".to_owned(), 4)].into(),
            sessions: 2,
            version: 3,
            stages: vec![v1::Stage {
                stage: 0,
                name: "a".to_owned(),
                slices: 4,
                slices_done: 3,
                attempts: 5,
                rows_written: 4,
                ..v1::Stage::default()
            }],
        };
        let detail = detail(&run).map_err(|error| error.message().to_owned()).expect("it is right");
        let json = serde_json::to_value(&detail.summary).expect("it is JSON");
        assert_eq!(
            json,
            serde_json::json!({
                "run": "20261122-1", "pipeline": "p", "status": "failed",
                "started_at": "2026-11-22T10:00:00.500Z", "ended_at": "2026-11-22T10:00:02Z",
                "params": { "country": "DE" },
                "window": ["2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"], "version": 3,
                "rows_read": 7, "rows_written": { "a": 4, "b": 2 }, "dead_letters": 1,
                "sessions": 2, "error": "the disk is full",
            })
        );
        let stage = &detail.stages[0];
        assert_eq!((stage.slices_done, stage.account.rows_written), (3, 4));
    }

    #[test]
    fn an_answer_without_sense_is_refused_not_guessed() {
        let run = v1::Run { started_at: "2026-11-22T10:00:00Z".to_owned(), ..v1::Run::default() };
        assert!(summary(&run).is_err_and(|error| error.message().contains("without a status")));
    }
}

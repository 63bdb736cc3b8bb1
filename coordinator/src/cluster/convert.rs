//! Facts as clients get them.

use chrono::{DateTime, SecondsFormat, Utc};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use weir_connectors::Redactor;
use weir_ledger::{
    BackfillFacts, BackfillId, BackfillState, RunFacts, RunId, SliceAttempt, WindowState,
};
use weir_proto::v1;

use super::errors::for_now;
use super::leading::{Outcome, Submitted};
use crate::summary::detail;
use crate::{AuditReport, EngineError, RunDetail, RunStatus};

/// The metadata with which a refusal says that it may have been done all the same.
const OUTCOME: &str = "weir-outcome";

/// As the protocol writes it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

pub(super) fn run(id: &RunId, facts: &RunFacts, running: &[(SliceAttempt, String)]) -> v1::Run {
    let RunDetail { summary, stages } = detail(id, facts, true);
    let (window_start, window_end) =
        summary.window.map(|(start, end)| (time(start), time(end))).unwrap_or_default();
    v1::Run {
        run: summary.run,
        pipeline: summary.pipeline,
        status: status(summary.status).into(),
        started_at: time(summary.started_at),
        ended_at: summary.ended_at.map(time).unwrap_or_default(),
        params: (summary.params.into_iter())
            .map(|(name, value)| (name, value.to_string()))
            .collect(),
        window_start,
        window_end,
        error: summary.error.unwrap_or_default(),
        rows_read: summary.rows_read,
        dead_letters: summary.dead_letters,
        rows_written: (summary.rows_written.into_iter())
            .map(|(sink, rows)| (sink.to_string(), rows))
            .collect(),
        sessions: summary.sessions,
        version: summary.version.unwrap_or_default(),
        stages: (stages.into_iter())
            .zip(&facts.stages)
            .map(|(stage, facts)| v1::Stage {
                inputs: facts.shape.inputs.iter().map(|input| input.0).collect(),
                sink: facts.sink().map(|(sink, _)| sink.to_string()).unwrap_or_default(),
                running: (running.iter())
                    .filter(|(task, _)| task.stage.0 == stage.stage)
                    .map(|(task, executor)| v1::Attempt {
                        slice: task.slice,
                        attempt: task.attempt,
                        executor: executor.clone(),
                    })
                    .collect(),
                stage: stage.stage,
                name: stage.name,
                slices: stage.slices,
                slices_done: stage.slices_done,
                attempts: stage.attempts,
                rows_written: stage.account.rows_written,
            })
            .collect(),
    }
}

pub(super) fn submitted(submitted: Submitted) -> v1::SubmitResponse {
    let Submitted { run, is_new, outcome } = submitted;
    let (outcome, beside) = match outcome {
        Outcome::Started => (v1::SubmitOutcome::Started, String::new()),
        Outcome::GoesOn => (v1::SubmitOutcome::GoesOn, String::new()),
        Outcome::Queued { beside } => (v1::SubmitOutcome::Queued, beside.0),
        Outcome::Skipped { beside } => (v1::SubmitOutcome::Skipped, beside.0),
    };
    v1::SubmitResponse { run: run.0, is_new, outcome: outcome.into(), beside }
}

pub(super) fn backfill(id: &BackfillId, facts: &BackfillFacts) -> v1::Backfill {
    let (status, ended_at) = match facts.state {
        BackfillState::Running => (v1::BackfillStatus::Running, None),
        BackfillState::Paused => (v1::BackfillStatus::Paused, None),
        BackfillState::Cancelled => (v1::BackfillStatus::Cancelled, None),
        BackfillState::Finished { at } => (v1::BackfillStatus::Finished, Some(at)),
    };
    let first_error =
        facts.failed.first_key_value().map(|(window, error)| format!("window {window}: {error}"));
    v1::Backfill {
        backfill: id.0.clone(),
        pipeline: facts.pipeline.0.clone(),
        status: status.into(),
        created_at: time(facts.created_at),
        ended_at: ended_at.map(time).unwrap_or_default(),
        params: (facts.params.iter())
            .map(|(name, value)| (name.clone(), value.to_string()))
            .collect(),
        from: time(facts.range.from),
        to: time(facts.range.to),
        step: facts.range.step.clone(),
        timezone: facts.range.timezone.clone(),
        parallel: facts.parallel,
        priority: facts.priority,
        windows: facts.range.count,
        pending: facts.pending_count(),
        running: count(facts.running.len()),
        finished: facts.finished.len(),
        failed: count(facts.failed.len()),
        rows_read: facts.totals.rows_read,
        dead_letters: facts.totals.dead_letters,
        rows_written: (facts.totals.sinks.iter())
            .map(|(sink, totals)| (sink.to_string(), totals.rows))
            .collect(),
        first_error: first_error.unwrap_or_default(),
        version: facts.version.unwrap_or_default(),
    }
}

/// Without its bounds.
pub(super) fn window_of(id: &BackfillId, facts: &BackfillFacts, window: u32) -> v1::Window {
    let status = match facts.window(window) {
        Some(WindowState::Pending) => v1::WindowStatus::Pending,
        Some(WindowState::Running) => v1::WindowStatus::Running,
        Some(WindowState::Finished) => v1::WindowStatus::Finished,
        Some(WindowState::Failed) => v1::WindowStatus::Failed,
        None => v1::WindowStatus::Unspecified,
    };
    v1::Window {
        window,
        status: status.into(),
        run: facts.run_of(id, window).map(|run| run.0).unwrap_or_default(),
        error: facts.failed.get(&window).cloned().unwrap_or_default(),
        runs: facts.starts(window),
        ..v1::Window::default()
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn status(status: RunStatus) -> v1::RunStatus {
    match status {
        RunStatus::Queued => v1::RunStatus::Queued,
        RunStatus::Running | RunStatus::Interrupted => v1::RunStatus::Running,
        RunStatus::Succeeded => v1::RunStatus::Succeeded,
        RunStatus::Failed => v1::RunStatus::Failed,
        RunStatus::Abandoned => v1::RunStatus::Abandoned,
        RunStatus::Skipped => v1::RunStatus::Skipped,
    }
}

pub(super) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

pub(super) fn audit(report: AuditReport) -> v1::AuditReport {
    v1::AuditReport {
        run: report.run,
        clean: report.clean,
        findings: report.findings,
        sinks: (report.sinks.into_iter())
            .map(|sink| v1::SinkAudit {
                sink: sink.sink.to_string(),
                batches: sink.batches,
                rows_in_ledger: sink.rows_in_ledger,
                rows_in_target: sink.rows_in_target,
                is_shown: sink.is_shown,
                checksum: sink.checksum,
            })
            .collect(),
    }
}

/// Without secrets.
pub(super) fn status_of(error: &EngineError, redactor: &Redactor) -> Status {
    let text = redactor.redact(&error.to_string());
    match error {
        EngineError::Invalid(_) => Status::invalid_argument(text),
        EngineError::NotFound(_) => Status::not_found(text),
        EngineError::Busy(_) | EngineError::NoAnswer(_) => {
            for_now(Status::failed_precondition(text))
        }
        EngineError::Refused(_) | EngineError::RunFailed { .. } | EngineError::Stopped { .. } => {
            Status::failed_precondition(text)
        }
        EngineError::State { .. } if error.is_unavailable() => for_now(Status::internal(text)),
        EngineError::State { .. } => Status::internal(text),
        EngineError::Ledger { .. } => unknown(Status::unavailable(text)),
    }
}

/// Whether it may have been done all the same.
pub(super) fn is_unknown(status: &Status) -> bool {
    status.metadata().contains_key(OUTCOME)
}

/// A refusal after which nobody knows yet whether the ledger has what was asked for.
pub(super) fn unknown(mut status: Status) -> Status {
    status.metadata_mut().insert(OUTCOME, MetadataValue::from_static("unknown"));
    status
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_client_is_told_to_ask_again_where_that_helps() {
        let state = |kind: io::ErrorKind| EngineError::State {
            attempt: "read",
            path: "p".to_owned(),
            source: kind.into(),
        };
        for (error, word) in [
            (EngineError::Busy("a run is about to begin".to_owned()), Some("later")),
            (EngineError::NoAnswer("a target".to_owned()), Some("later")),
            (state(io::ErrorKind::TimedOut), Some("later")),
            (state(io::ErrorKind::PermissionDenied), None),
            (EngineError::Refused("it is over".to_owned()), None),
        ] {
            let status = status_of(&error, &Redactor::default());
            let said = status.metadata().get("weir-retry").and_then(|word| word.to_str().ok());
            assert_eq!(said, word, "{error}");
        }
    }
}

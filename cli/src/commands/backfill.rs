//! `weir backfill …` and `weir backfills`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir_proto::v1::{
    Backfill, BackfillAudit, BackfillStatus, CreateBackfillRequest, ListWindowsRequest,
    RetryWindowsRequest, Window,
};

use super::run::request;
use super::submit::{place, rfc3339, spec_of};
use crate::args::{
    BackfillArgs, BackfillCommand, ClusterArgs, Global, Output, Values, WindowStatus,
};
use crate::client::{CallError, Client, new_request_id};
use crate::failure::Failure;
use crate::output::{self, count};
use crate::{files, signals};

/// Between two lines about the progress of a backfill.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub(crate) async fn backfill(
    global: &Global,
    command: BackfillCommand,
) -> Result<ExitCode, Failure> {
    match command {
        BackfillCommand::Start(arguments) => start(global, arguments).await,
        BackfillCommand::Show { id, cluster } => {
            let backfill = Client::required(&cluster)?.backfill(&id).await?;
            print(global, &backfill)
        }
        BackfillCommand::Windows { id, status, limit, cluster } => {
            windows(global, &id, status, limit, &cluster).await
        }
        BackfillCommand::Pause { id, cluster } => {
            let backfill = Client::required(&cluster)?.pause_backfill(&id).await?;
            let place = place(&cluster);
            let text = match backfill.running {
                0 => "is paused".to_owned(),
                1 => "is paused; one window at work comes to its end".to_owned(),
                running => format!("is paused; {running} windows at work come to their end"),
            };
            said(
                global,
                &backfill,
                &text,
                &format!("weir backfill resume {}{place}", backfill.backfill),
            )
        }
        BackfillCommand::Resume { id, cluster } => {
            let backfill = Client::required(&cluster)?.resume_backfill(&id).await?;
            said(global, &backfill, "goes on", &look(&backfill, &cluster))
        }
        BackfillCommand::Cancel { id, cluster } => {
            let backfill = Client::required(&cluster)?.cancel_backfill(&id).await?;
            let text = "was stopped. What its windows have committed stays";
            let place = place(&cluster);
            said(
                global,
                &backfill,
                text,
                &format!("weir backfill resume {}{place}", backfill.backfill),
            )
        }
        BackfillCommand::Prioritise { id, priority, cluster } => {
            let backfill = Client::required(&cluster)?.prioritise_backfill(&id, priority).await?;
            let text = format!("has priority {}", backfill.priority);
            said(global, &backfill, &text, &look(&backfill, &cluster))
        }
        BackfillCommand::Retry { id, windows, fresh, wait, cluster } => {
            let mut client = Client::required(&cluster)?;
            let request =
                RetryWindowsRequest { backfill: id, windows, fresh, request_id: new_request_id() };
            let backfill = client.retry_windows(request).await?;
            if wait {
                return self::wait(global, &mut client, &backfill.backfill, &cluster).await;
            }
            let text = format!("has {} to load", counted(backfill.pending + backfill.running));
            said(global, &backfill, &text, &look(&backfill, &cluster))
        }
    }
}

async fn start(global: &Global, arguments: BackfillArgs) -> Result<ExitCode, Failure> {
    let mut client = Client::required(&arguments.cluster)?;
    let (mut wanted, spec) = match (&arguments.file, &arguments.pipeline) {
        (Some(file), _) => {
            let loaded = files::load_valid(file)?;
            let wanted = CreateBackfillRequest {
                workspace: files::workspace_text(&loaded.path)?,
                file_name: loaded.path.display().to_string(),
                base_dir: files::absolute_folder_of(&loaded.path)?,
                pipeline: loaded.text,
                ..CreateBackfillRequest::default()
            };
            (wanted, loaded.parsed.spec)
        }
        (None, Some(name)) => {
            let known = client.pipeline(name, arguments.version.unwrap_or_default()).await?;
            let spec = spec_of(&known)?;
            let (registered, version) = (known.pipeline, arguments.version.unwrap_or_default());
            let wanted =
                CreateBackfillRequest { registered, version, ..CreateBackfillRequest::default() };
            (wanted, spec)
        }
        (None, None) => return Err(Failure::Usage("write `weir backfill start FILE`".to_owned())),
    };
    let values =
        Values { params: arguments.params, from: Some(arguments.from), to: Some(arguments.to) };
    let values = request(&spec, &values)?;
    (wanted.from, wanted.to) =
        values.window.map(|(from, to)| (rfc3339(from), rfc3339(to))).unwrap_or_default();
    let params = values.params.iter().map(|(name, value)| (name.clone(), value.to_string()));
    let created = client.create_backfill(CreateBackfillRequest {
        params: params.collect(),
        step: arguments.step,
        parallel: arguments.parallel,
        priority: arguments.priority,
        request_id: arguments.request_id.unwrap_or_else(new_request_id),
        ..wanted
    });
    let created = created.await?;
    let backfill = created.backfill.unwrap_or_default();
    if arguments.wait {
        return wait(global, &mut client, &backfill.backfill, &arguments.cluster).await;
    }
    if global.output == Output::Json {
        let mut value = to_json(&backfill);
        value["is_new"] = created.is_new.into();
        output::json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = if created.is_new { "started" } else { "goes on" };
    let text = format!("{what}: {}", counted(backfill.windows));
    said(global, &backfill, &text, &look(&backfill, &arguments.cluster))
}

/// Shows a backfill until its end, and ends as it does.
async fn wait(
    global: &Global,
    client: &mut Client,
    id: &str,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let place = place(cluster);
    let is_shown = global.output == Output::Human;
    let mut said_at: Option<Instant> = None;
    let show = |backfill: &Backfill| {
        if is_shown && said_at.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            said_at = Some(Instant::now());
            eprintln!("{}", progress(backfill));
        }
    };
    let ended = tokio::select! {
        ended = client.watch_backfill(id, show) => ended,
        () = signals::stop_asked() => {
            return Err(Failure::Run(format!(
                "backfill {id} goes on without being watched. `weir backfill cancel {id}{place}` stops \
                 it"
            )));
        }
    };
    let backfill = match ended {
        Ok(backfill) => backfill,
        Err(CallError::Unreachable(message)) => {
            return Err(Failure::Unreachable(format!(
                "{message}\nbackfill {id} goes on with the next leader: weir backfill show {id}{place}"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    if backfill.status() == BackfillStatus::Cancelled {
        return Err(Failure::Run(format!(
            "backfill {id} was cancelled. `weir backfill resume {id}{place}` goes on with it"
        )));
    }
    if backfill.failed > 0 {
        return Err(Failure::Run(format!(
            "backfill {id} finished with {} failed: {}\nMend the cause; `weir backfill retry {id}{place}` \
             loads them again, `weir backfill windows {id} --status failed{place}` lists them.",
            counted(backfill.failed),
            backfill.first_error
        )));
    }
    print(global, &backfill)
}

async fn windows(
    global: &Global,
    id: &str,
    status: Option<WindowStatus>,
    limit: usize,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    use weir_proto::v1;
    let mut client = Client::required(cluster)?;
    let status = match status {
        None => v1::WindowStatus::Unspecified,
        Some(WindowStatus::Pending) => v1::WindowStatus::Pending,
        Some(WindowStatus::Running) => v1::WindowStatus::Running,
        Some(WindowStatus::Finished) => v1::WindowStatus::Finished,
        Some(WindowStatus::Failed) => v1::WindowStatus::Failed,
    };
    let mut windows: Vec<Window> = Vec::new();
    let mut start = 0;
    while windows.len() < limit {
        let wanted = u32::try_from(limit - windows.len()).unwrap_or(u32::MAX);
        let page = client.windows(ListWindowsRequest {
            backfill: id.to_owned(),
            status: status.into(),
            limit: wanted,
            start,
        });
        let page = page.await?;
        windows.extend(page.windows);
        match page.next {
            Some(next) => start = next,
            None => break,
        }
    }
    if global.output == Output::Json {
        let windows: Vec<Value> = windows.iter().map(window_json).collect();
        output::json(&windows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = (windows.iter())
        .map(|window| {
            vec![
                window.window.to_string(),
                window_status(window).to_owned(),
                window.start.clone(),
                window.end.clone(),
                window.run.clone(),
                window.error.clone(),
            ]
        })
        .collect();
    output::table(&["WINDOW", "STATUS", "FROM", "TO", "RUN", "ERROR"], rows)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn list(
    global: &Global,
    pipeline: Option<&str>,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let mut backfills = Client::required(cluster)?.backfills(pipeline).await?;
    backfills.reverse();
    if global.output == Output::Json {
        let backfills: Vec<Value> = backfills.iter().map(to_json).collect();
        output::json(&backfills)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = (backfills.iter())
        .map(|backfill| {
            vec![
                backfill.backfill.clone(),
                backfill.pipeline.clone(),
                status(backfill).to_owned(),
                backfill.created_at.clone(),
                backfill.priority.to_string(),
                format!("{}/{}", backfill.finished, backfill.windows),
                backfill.failed.to_string(),
                count(backfill.rows_written.values().sum()),
            ]
        })
        .collect();
    output::table(
        &["BACKFILL", "PIPELINE", "STATUS", "CREATED", "PRIORITY", "WINDOWS", "FAILED", "WRITTEN"],
        rows,
    )?;
    Ok(ExitCode::SUCCESS)
}

/// The proof of a backfill, as `weir audit` prints it.
pub(super) fn print_audit(global: &Global, report: &BackfillAudit) -> Result<ExitCode, Failure> {
    if global.output == Output::Json {
        let sinks: Vec<Value> = (report.sinks.iter())
            .map(|sink| {
                json!({
                    "sink": sink.sink, "batches": sink.batches,
                    "rows_in_ledger": sink.rows_in_ledger, "rows_in_target": sink.rows_in_targets,
                })
            })
            .collect();
        output::json(&json!({
            "backfill": report.backfill, "clean": report.clean, "windows": report.windows,
            "sinks": sinks, "findings": report.findings,
        }))?;
    } else {
        let sinks = (report.sinks.iter())
            .map(|sink| {
                vec![
                    sink.sink.clone(),
                    count(sink.batches),
                    count(sink.rows_in_ledger),
                    count(sink.rows_in_targets),
                ]
            })
            .collect();
        output::table(&["SINK", "BATCHES", "ROWS IN LEDGER", "ROWS IN TARGET"], sinks)?;
        output::line("")?;
        for finding in &report.findings {
            output::line(&format!("DIFFERS  {finding}"))?;
        }
        output::line(&match report.clean {
            true => format!(
                "clean: every row that {} have read is accounted for, and the targets agree",
                counted(report.windows)
            ),
            false => "NOT clean".to_owned(),
        })?;
    }
    Ok(if report.clean { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What a command has changed, and what can be done next.
fn said(global: &Global, backfill: &Backfill, text: &str, next: &str) -> Result<ExitCode, Failure> {
    if global.output == Output::Json {
        output::json(&to_json(backfill))?;
    } else {
        output::line(&format!("backfill {} {text}", backfill.backfill))?;
        output::line(&format!("  next: {next}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn look(backfill: &Backfill, cluster: &ClusterArgs) -> String {
    format!("weir backfill show {}{}", backfill.backfill, place(cluster))
}

fn print(global: &Global, backfill: &Backfill) -> Result<ExitCode, Failure> {
    if global.output == Output::Json {
        output::json(&to_json(backfill))?;
        return Ok(ExitCode::SUCCESS);
    }
    let Backfill { from, to, step, timezone, parallel, .. } = backfill;
    output::line(&format!("backfill  {}", backfill.backfill))?;
    output::line(&format!("pipeline  {}", backfill.pipeline))?;
    output::line(&format!("status    {}", status(backfill)))?;
    output::line(&format!("created   {}", backfill.created_at))?;
    if !backfill.ended_at.is_empty() {
        output::line(&format!("ended     {}", backfill.ended_at))?;
    }
    output::line(&format!("range     {from} to {to}, steps of {step} ({timezone})"))?;
    output::line(&format!("at once   {parallel}, priority {}", backfill.priority))?;
    for (name, value) in &backfill.params {
        output::line(&format!("param     {name} = {value}"))?;
    }
    output::line(&format!("windows   {}", progress(backfill)))?;
    output::line(&format!("rows      {} read", count(backfill.rows_read)))?;
    let mut written: Vec<_> = backfill.rows_written.iter().collect();
    written.sort();
    for (sink, rows) in written {
        output::line(&format!("          {} written into {sink}", count(*rows)))?;
    }
    if backfill.dead_letters > 0 {
        output::line(&format!("          {} dead letters", count(backfill.dead_letters)))?;
    }
    if !backfill.first_error.is_empty() {
        output::line(&format!("error     {}", backfill.first_error))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn progress(backfill: &Backfill) -> String {
    let mut text = format!(
        "{} of {} finished, {} running, {} pending",
        count(backfill.finished.into()),
        count(backfill.windows.into()),
        backfill.running,
        count(backfill.pending.into())
    );
    if backfill.failed > 0 {
        text.push_str(&format!(", {} failed", count(backfill.failed.into())));
    }
    text
}

fn counted(windows: u32) -> String {
    let plural = if windows == 1 { "" } else { "s" };
    format!("{} window{plural}", count(windows.into()))
}

fn status(backfill: &Backfill) -> &'static str {
    match backfill.status() {
        BackfillStatus::Running => "running",
        BackfillStatus::Paused => "paused",
        BackfillStatus::Cancelled => "cancelled",
        BackfillStatus::Finished if backfill.failed > 0 => "finished with failed windows",
        BackfillStatus::Finished => "finished",
        BackfillStatus::Unspecified => "unknown",
    }
}

fn window_status(window: &Window) -> &'static str {
    use weir_proto::v1::WindowStatus;
    match window.status() {
        WindowStatus::Pending => "pending",
        WindowStatus::Running => "running",
        WindowStatus::Finished => "finished",
        WindowStatus::Failed => "failed",
        WindowStatus::Unspecified => "unknown",
    }
}

fn to_json(backfill: &Backfill) -> Value {
    // The text of a parameter is its JSON.
    let param = |text: &String| serde_json::from_str(text).unwrap_or(Value::Null);
    let params: serde_json::Map<String, Value> =
        backfill.params.iter().map(|(name, text)| (name.clone(), param(text))).collect();
    let rows_written: std::collections::BTreeMap<_, _> = backfill.rows_written.iter().collect();
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let plain_status = match backfill.status() {
        BackfillStatus::Finished => "finished",
        _ => status(backfill),
    };
    json!({
        "backfill": backfill.backfill, "pipeline": backfill.pipeline, "status": plain_status,
        "created_at": backfill.created_at, "ended_at": some(&backfill.ended_at), "params": params,
        "from": backfill.from, "to": backfill.to, "step": backfill.step,
        "timezone": backfill.timezone, "parallel": backfill.parallel, "priority": backfill.priority,
        "windows": backfill.windows, "pending": backfill.pending, "running": backfill.running,
        "finished": backfill.finished, "failed": backfill.failed, "rows_read": backfill.rows_read,
        "dead_letters": backfill.dead_letters, "rows_written": rows_written,
        "first_error": some(&backfill.first_error),
        "version": Some(backfill.version).filter(|version| *version != 0),
    })
}

fn window_json(window: &Window) -> Value {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    json!({
        "window": window.window, "from": window.start, "to": window.end,
        "status": window_status(window), "run": some(&window.run), "runs": window.runs,
        "error": some(&window.error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_what_is_left_and_what_has_failed() {
        let mut backfill = Backfill {
            windows: 12_000,
            finished: 1_500,
            running: 8,
            pending: 10_492,
            status: BackfillStatus::Finished.into(),
            ..Backfill::default()
        };
        assert_eq!(progress(&backfill), "1,500 of 12,000 finished, 8 running, 10,492 pending");
        assert_eq!(status(&backfill), "finished");
        backfill.failed = 2;
        assert!(progress(&backfill).ends_with(", 2 failed"));
        assert_eq!(status(&backfill), "finished with failed windows");
        assert_eq!(to_json(&backfill)["status"], "finished");
    }
}

//! `weir submit`, and what else is asked of runs on a cluster.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;
use weir_coordinator::RunStatus;
use weir_proto::v1::run_update::Update;
use weir_proto::v1::{
    RegisterPipelineRequest, RegisterPipelineResponse, RegisteredPipeline, SubmitOutcome,
    SubmitRequest, SubmitResponse,
};
use weir_spec::{PipelineSpec, SharedConnections};

use super::run::{print, request};
use crate::args::{ClusterArgs, Global, Output, SubmitArgs};
use crate::client::{CallError, Client, convert, new_request_id};
use crate::failure::Failure;
use crate::watching::Watching;
use crate::{files, output, signals};

/// Registers a file, and starts a run if that is asked for; or starts one of what is registered already.
pub(crate) async fn submit(global: &Global, arguments: SubmitArgs) -> Result<ExitCode, Failure> {
    let is_run = arguments.run || arguments.wait;
    check_values(&arguments, is_run)?;
    let mut client = Client::required(&arguments.cluster)?;
    let place = place(&arguments.cluster);
    let request_id = arguments.request_id.unwrap_or_else(new_request_id);
    let (pipeline, version, values) = match (&arguments.file, &arguments.pipeline) {
        (Some(file), _) => {
            // Mistakes are found before anything is sent.
            let loaded = files::load_valid(file)?;
            let values = request(&loaded.parsed.spec, &arguments.values)?;
            let registered = register(&mut client, loaded, &request_id).await?;
            if !is_run {
                return print_registered(global, &registered, file, &place);
            }
            (registered.pipeline, registered.version, values)
        }
        (None, Some(name)) => {
            let known = client.pipeline(name, arguments.version.unwrap_or_default()).await?;
            (known.pipeline.clone(), known.version, request(&spec_of(&known)?, &arguments.values)?)
        }
        (None, None) => return Err(Failure::Usage("write `weir submit FILE`".to_owned())),
    };
    let (window_start, window_end) =
        values.window.map(|(start, end)| (rfc3339(start), rfc3339(end))).unzip();
    let params: BTreeMap<_, _> =
        values.params.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
    let answer = client.submit(SubmitRequest {
        registered: pipeline,
        version,
        params: params.into_iter().collect(),
        window_start: window_start.unwrap_or_default(),
        window_end: window_end.unwrap_or_default(),
        fresh: arguments.fresh,
        request_id,
        ..SubmitRequest::default()
    });
    let answer = answer.await?;
    if arguments.wait && answer.outcome() != SubmitOutcome::Skipped {
        return wait(global, &mut client, &answer.run, &place).await;
    }
    print_submitted(global, &answer, Some(version), &place)
}

pub(super) fn print_submitted(
    global: &Global,
    answer: &SubmitResponse,
    version: Option<u32>,
    place: &str,
) -> Result<ExitCode, Failure> {
    let SubmitResponse { run, is_new, beside, .. } = answer;
    if global.output == Output::Json {
        let beside = Some(beside).filter(|beside| !beside.is_empty());
        let outcome = match answer.outcome() {
            SubmitOutcome::Started => Some("started"),
            SubmitOutcome::GoesOn => Some("goes_on"),
            SubmitOutcome::Queued => Some("queued"),
            SubmitOutcome::Skipped => Some("skipped"),
            SubmitOutcome::Unspecified => None,
        };
        output::json(&json!({
            "run": run, "is_new": is_new, "version": version, "outcome": outcome, "beside": beside,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = match answer.outcome() {
        SubmitOutcome::Skipped => format!("is skipped: run {beside} of the pipeline is going on"),
        SubmitOutcome::Queued => format!("waits for its turn behind run {beside}"),
        _ if *is_new => "started".to_owned(),
        _ => "goes on".to_owned(),
    };
    output::line(&format!("run {run} {what}"))?;
    output::line(&format!("  look at it: weir run show {run}{place}"))?;
    Ok(ExitCode::SUCCESS)
}

/// What only a run has a use for is no silent part of a registration.
fn check_values(arguments: &SubmitArgs, is_run: bool) -> Result<(), Failure> {
    let for_runs = [
        ("--pipeline", arguments.pipeline.is_some()),
        ("--param", !arguments.values.params.is_empty()),
        ("--from", arguments.values.from.is_some()),
        ("--fresh", arguments.fresh),
    ];
    match for_runs.iter().find(|(_, is_given)| *is_given && !is_run) {
        None => Ok(()),
        Some((option, _)) => Err(Failure::Usage(format!(
            "{option} is of a run, and this would start none: add --run (or --wait)"
        ))),
    }
}

async fn register(
    client: &mut Client,
    loaded: files::Loaded,
    request_id: &str,
) -> Result<RegisterPipelineResponse, Failure> {
    let base_dir = files::absolute_folder_of(&loaded.path)?;
    let registered = client.register(RegisterPipelineRequest {
        text: loaded.text,
        workspace: files::workspace_text(&loaded.path)?,
        file_name: loaded.path.display().to_string(),
        base_dir,
        request_id: request_id.to_owned(),
    });
    Ok(registered.await?)
}

/// As this command understands it, which may be of another version than the cluster.
pub(super) fn spec_of(registered: &RegisteredPipeline) -> Result<PipelineSpec, Failure> {
    let RegisteredPipeline { text, workspace, file_name, .. } = registered;
    let wrong = |mistakes: Vec<weir_spec::Diagnostic>, text: &str| {
        Failure::Usage(weir_spec::render_diagnostics(&mistakes, text))
    };
    let shared = match workspace.is_empty() {
        true => SharedConnections::default(),
        false => weir_spec::parse_workspace("weir.yaml", workspace)
            .map_err(|mistakes| wrong(mistakes, workspace))?,
    };
    let parsed = weir_spec::parse_with(file_name, text, &shared);
    parsed.map(|parsed| parsed.spec).map_err(|mistakes| wrong(mistakes, text))
}

fn print_registered(
    global: &Global,
    registered: &RegisterPipelineResponse,
    file: &Path,
    place: &str,
) -> Result<ExitCode, Failure> {
    let RegisterPipelineResponse { pipeline, version, is_new } = registered;
    if global.output == Output::Json {
        output::json(&json!({ "pipeline": pipeline, "version": version, "is_new": is_new }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = if *is_new { "registered" } else { "is registered already" };
    output::line(&format!("pipeline {pipeline} {what}, version {version}; no run was started"))?;
    output::line(&format!("  run it: weir submit {} --run{place}", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Shows a run until its end, and ends as it does.
pub(super) async fn wait(
    global: &Global,
    client: &mut Client,
    run: &str,
    place: &str,
) -> Result<ExitCode, Failure> {
    let is_shown = global.output == Output::Human;
    let mut watching = Watching::new(Instant::now());
    let show = |update: &Update| {
        for line in watching.lines(update, Instant::now()) {
            if is_shown {
                eprintln!("{line}");
            }
        }
    };
    let ended = tokio::select! {
        ended = client.watch(run, show) => ended,
        () = signals::stop_asked() => {
            return Err(Failure::Run(format!(
                "run {run} goes on without being watched. `weir cancel {run}{place}` stops it"
            )));
        }
    };
    let summary = match ended {
        Ok(run) => convert::summary(&run)?,
        Err(CallError::Unreachable(message)) => {
            return Err(Failure::Unreachable(format!(
                "{message}\nrun {run} goes on with the next leader: weir run show {run}{place}"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    match summary.status {
        RunStatus::Failed => Err(Failure::Run(format!(
            "run {run} failed: {}\nMend the cause; `weir retry {run}{place}` goes on behind what is committed, \
             `weir submit --fresh` starts anew.",
            summary.error.unwrap_or_default()
        ))),
        RunStatus::Abandoned => {
            Err(Failure::Run(format!("run {run} was given up for another one")))
        }
        _ => {
            print(global, &summary, place)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

pub(crate) async fn retry(
    global: &Global,
    mut client: Client,
    id: &str,
    is_watched: bool,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let run = client.retry(id).await?;
    let place = place(cluster);
    if is_watched {
        return wait(global, &mut client, &run.run, &place).await;
    }
    if global.output == Output::Json {
        output::json(&convert::summary(&run)?)?;
    } else {
        output::line(&format!("run {} goes on", run.run))?;
        output::line(&format!("  look at it: weir run show {}{place}", run.run))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Answers once its tasks have ended.
pub(crate) async fn cancel(
    global: &Global,
    id: &str,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let run = Client::required(cluster)?.cancel(id).await?;
    if global.output == Output::Json {
        output::json(&convert::summary(&run)?)?;
    } else {
        let place = place(cluster);
        output::line(&format!("run {} was stopped. What it has committed stays", run.run))?;
        output::line(&format!("  go on with it: weir retry {}{place}", run.run))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What commands that are shown need in order to ask the same cluster.
pub(super) fn place(cluster: &ClusterArgs) -> String {
    let mut place = match (&cluster.dir, cluster.coordinators.first()) {
        (Some(dir), _) => format!(" --dir {}", dir.display()),
        (None, Some(url)) => format!(" --coordinator {url}"),
        (None, None) => String::new(),
    };
    let files =
        [("--tls-authority", &cluster.tls_authority), ("--token-file", &cluster.token_file)];
    for (option, file) in files {
        if let Some(file) = file {
            place.push_str(&format!(" {option} {}", file.display()));
        }
    }
    place
}

pub(super) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

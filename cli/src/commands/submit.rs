//! `weir submit FILE`, and what else is asked of runs on a cluster.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use chrono::{DateTime, SecondsFormat, Utc};
use weir_coordinator::RunStatus;
use weir_proto::v1::SubmitRequest;
use weir_proto::v1::run_update::Update;

use super::run::{print, request};
use crate::args::{ClusterArgs, Global, Output, SubmitArgs};
use crate::client::{CallError, Client, convert};
use crate::failure::Failure;
use crate::watching::Watching;
use crate::{files, output, signals};

/// The file's mistakes are found here; the cluster looks at it again with its own eyes.
pub(crate) async fn submit(global: &Global, arguments: SubmitArgs) -> Result<ExitCode, Failure> {
    let loaded = files::load_valid(&arguments.plan.file)?;
    let values = request(&loaded.parsed.spec, &arguments.plan.values)?;
    let mut client = Client::required(&arguments.cluster)?;
    let folder = files::folder_of(&loaded.path);
    let base_dir = std::path::absolute(&folder)
        .map_err(|error| Failure::Usage(format!("{}: {error}", folder.display())))?;
    let base_dir = base_dir
        .to_str()
        .ok_or_else(|| Failure::Usage(format!("the folder {} is not UTF-8", base_dir.display())))?;
    let (window_start, window_end) =
        values.window.map(|(start, end)| (rfc3339(start), rfc3339(end))).unzip();
    let params: BTreeMap<_, _> =
        values.params.iter().map(|(name, value)| (name.clone(), value.to_string())).collect();
    let answer = client.submit(SubmitRequest {
        pipeline: loaded.text,
        workspace: files::workspace_text(&loaded.path)?,
        file_name: loaded.path.display().to_string(),
        base_dir: base_dir.to_owned(),
        params: params.into_iter().collect(),
        window_start: window_start.unwrap_or_default(),
        window_end: window_end.unwrap_or_default(),
        fresh: arguments.fresh,
        request_id: arguments.request_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
    });
    let answer = answer.await?;
    let place = place(&arguments.cluster);
    if arguments.wait {
        return wait(global, &mut client, &answer.run, &place).await;
    }
    if global.output == Output::Json {
        output::json(&serde_json::json!({ "run": answer.run, "is_new": answer.is_new }))?;
    } else {
        let what = if answer.is_new { "started" } else { "goes on" };
        output::line(&format!("run {} {what}", answer.run))?;
        output::line(&format!("  look at it: weir run show {}{place}", answer.run))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows a run until its end, and ends as it does.
async fn wait(
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

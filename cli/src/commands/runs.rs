//! `weir runs` and `weir run show ID`.

use std::process::ExitCode;

use weir_coordinator::{RunDetail, RunStatus, history};
use weir_proto::v1::Stage;

use crate::args::{ClusterArgs, Global, Output};
use crate::client::{Client, convert};
use crate::failure::Failure;
use crate::output;

pub(crate) async fn list(
    global: &Global,
    pipeline: Option<&str>,
    limit: usize,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let (mut runs, left) = match Client::named(cluster)? {
        Some(mut client) => {
            let newest = u32::try_from(limit).unwrap_or(u32::MAX);
            let listed = client.runs(pipeline, newest).await?;
            let runs = listed.runs.iter().map(convert::summary).collect::<Result<Vec<_>, _>>()?;
            (runs, listed.left)
        }
        None => (history::runs(&super::state_dir_here(global)).await?, 0),
    };
    runs.retain(|run| pipeline.is_none_or(|pipeline| run.pipeline == pipeline));
    runs.sort_by(|a, b| b.started_at.cmp(&a.started_at).then_with(|| b.run.cmp(&a.run)));
    runs.truncate(limit);
    let are_all_listed = runs.len() < limit;
    if global.output == Output::Json {
        output::json(&runs)?;
    } else {
        let rows = runs
            .iter()
            .map(|run| {
                vec![
                    run.run.clone(),
                    run.pipeline.clone(),
                    status(run.status).to_owned(),
                    output::time(run.started_at),
                    run.ended_at
                        .map(|ended| format!("{} s", (ended - run.started_at).num_seconds()))
                        .unwrap_or_default(),
                    output::count(run.rows_read),
                    output::count(run.rows_written.values().sum()),
                    output::count(run.dead_letters),
                ]
            })
            .collect();
        output::table(
            &["RUN", "PIPELINE", "STATUS", "STARTED", "TOOK", "READ", "WRITTEN", "DEAD LETTERS"],
            rows,
        )?;
        if left > 0 && are_all_listed {
            output::line(&format!(
                "{} older runs (of all pipelines) have left the ledger; each is found by its whole id: weir run show ID",
                output::count(left)
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn show(
    global: &Global,
    id: &str,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let Some(mut client) = Client::named(cluster)? else {
        let detail = history::run(&super::state_dir_here(global), id).await?;
        if global.output == Output::Json {
            output::json(&detail)?;
        } else {
            print(&detail)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let run = client.run(id).await?;
    let detail = convert::detail(&run)?;
    if global.output == Output::Json {
        output::json(&with_attempts(&detail, &run.stages)?)?;
    } else {
        print(&detail)?;
        print_attempts(&run.stages)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// As the embedded engine's, and for each stage who works on what.
fn with_attempts(detail: &RunDetail, stages: &[Stage]) -> Result<serde_json::Value, Failure> {
    let mut json = serde_json::to_value(detail)
        .map_err(|error| Failure::Run(format!("failed to print the result: {error}")))?;
    for (index, stage) in stages.iter().enumerate() {
        let running = stage.running.iter().map(|attempt| {
            serde_json::json!({
                "slice": attempt.slice, "attempt": attempt.attempt, "executor": attempt.executor,
            })
        });
        json["stages"][index]["running"] = running.collect();
    }
    Ok(json)
}

fn print_attempts(stages: &[Stage]) -> Result<(), Failure> {
    let attempts: Vec<Vec<String>> = stages
        .iter()
        .flat_map(|stage| {
            stage.running.iter().map(|attempt| {
                vec![
                    stage.stage.to_string(),
                    attempt.slice.to_string(),
                    attempt.attempt.to_string(),
                    attempt.executor.clone(),
                ]
            })
        })
        .collect();
    if attempts.is_empty() {
        return Ok(());
    }
    output::line("")?;
    output::table(&["STAGE", "SLICE", "ATTEMPT", "EXECUTOR"], attempts)
}

fn print(detail: &RunDetail) -> Result<(), Failure> {
    let run = &detail.summary;
    output::line(&format!("run       {}", run.run))?;
    match run.version {
        None => output::line(&format!("pipeline  {}", run.pipeline))?,
        Some(version) => output::line(&format!("pipeline  {}, version {version}", run.pipeline))?,
    }
    output::line(&format!("status    {}", status(run.status)))?;
    output::line(&format!("started   {}", output::time(run.started_at)))?;
    if let Some(ended) = run.ended_at {
        output::line(&format!("ended     {}", output::time(ended)))?;
    }
    output::line(&format!("sessions  {}", run.sessions))?;
    for (name, value) in &run.params {
        output::line(&format!("param     {name} = {value}"))?;
    }
    if let Some((from, to)) = run.window {
        output::line(&format!("window    {} to {}", output::time(from), output::time(to)))?;
    }
    if let Some(error) = &run.error {
        output::line(&format!("error     {error}"))?;
    }
    output::line("")?;
    let stages = detail
        .stages
        .iter()
        .map(|stage| {
            vec![
                stage.stage.to_string(),
                stage.name.clone(),
                format!("{}/{}", stage.slices_done, stage.slices),
                stage.attempts.to_string(),
                output::count(stage.account.rows_written),
            ]
        })
        .collect();
    output::table(&["STAGE", "NAME", "SLICES", "ATTEMPTS", "ROWS"], stages)?;
    let mut nodes: indexmap::IndexMap<&weir_spec::NodeName, weir_plan::NodeCounts> =
        indexmap::IndexMap::new();
    for stage in &detail.stages {
        for (node, counts) in &stage.account.nodes {
            *nodes.entry(node).or_default() += *counts;
        }
    }
    // A cluster does not tell them.
    if nodes.is_empty() {
        return Ok(());
    }
    let nodes = nodes
        .into_iter()
        .map(|(node, counts)| {
            vec![
                node.to_string(),
                output::count(counts.rows_in),
                output::count(counts.rows_out),
                output::count(counts.dead_lettered),
                output::count(counts.dropped),
            ]
        })
        .collect();
    output::line("")?;
    output::table(&["NODE", "IN", "OUT", "DEAD LETTERS", "DROPPED"], nodes)
}

fn status(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Queued => "queued",
        RunStatus::Running => "running",
        RunStatus::Interrupted => "interrupted",
        RunStatus::Succeeded => "succeeded",
        RunStatus::Failed => "failed",
        RunStatus::Abandoned => "abandoned",
        RunStatus::Skipped => "skipped",
    }
}

//! `weir runs` and `weir run show ID`.

use std::process::ExitCode;

use weir_coordinator::{RunStatus, history};

use crate::args::{Global, Output};
use crate::failure::Failure;
use crate::output;

pub(crate) async fn list(
    global: &Global,
    pipeline: Option<&str>,
    limit: usize,
) -> Result<ExitCode, Failure> {
    let mut runs = history::runs(&super::state_dir_here(global)).await?;
    runs.retain(|run| pipeline.is_none_or(|pipeline| run.pipeline == pipeline));
    runs.sort_by(|a, b| b.started_at.cmp(&a.started_at).then_with(|| b.run.cmp(&a.run)));
    runs.truncate(limit);
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
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn show(global: &Global, id: &str) -> Result<ExitCode, Failure> {
    let detail = history::run(&super::state_dir_here(global), id).await?;
    if global.output == Output::Json {
        output::json(&detail)?;
        return Ok(ExitCode::SUCCESS);
    }
    let run = &detail.summary;
    output::line(&format!("run       {}", run.run))?;
    output::line(&format!("pipeline  {}", run.pipeline))?;
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
    output::line("")?;
    let mut nodes: indexmap::IndexMap<&weir_spec::NodeName, weir_plan::NodeCounts> =
        indexmap::IndexMap::new();
    for stage in &detail.stages {
        for (node, counts) in &stage.account.nodes {
            *nodes.entry(node).or_default() += *counts;
        }
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
    output::table(&["NODE", "IN", "OUT", "DEAD LETTERS", "DROPPED"], nodes)?;
    Ok(ExitCode::SUCCESS)
}

fn status(status: RunStatus) -> &'static str {
    match status {
        RunStatus::Running => "running",
        RunStatus::Interrupted => "interrupted",
        RunStatus::Succeeded => "succeeded",
        RunStatus::Failed => "failed",
        RunStatus::Abandoned => "abandoned",
        RunStatus::Skipped => "skipped",
    }
}

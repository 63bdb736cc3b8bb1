//! `weir tasks ID`: what a run's slices have gone through on a cluster.

use std::process::ExitCode;

use weir_proto::v1::{Task, TaskState};

use crate::args::{ClusterArgs, Global, Output};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

pub(crate) async fn tasks(
    global: &Global,
    id: &str,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let tasks = Client::required(cluster)?.tasks(id).await?;
    if global.output == Output::Json {
        output::json(&tasks.iter().map(json).collect::<Vec<_>>())?;
    } else {
        let header = [
            "STAGE", "SLICE", "STATE", "ATTEMPTS", "EXECUTOR", "BATCHES", "ROWS", "KEPT BY",
            "ERROR",
        ];
        output::table(&header, tasks.iter().map(row).collect())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(task: &Task) -> Vec<String> {
    vec![
        task.stage.to_string(),
        task.slice.to_string(),
        state(task).to_owned(),
        task.attempts.to_string(),
        task.executor.clone(),
        output::count(task.batches),
        output::count(task.rows_written),
        task.holder.clone(),
        // The rest of a long message is in the log of the run.
        task.error.lines().next().unwrap_or_default().to_owned(),
    ]
}

fn json(task: &Task) -> serde_json::Value {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    serde_json::json!({
        "stage": task.stage,
        "slice": task.slice,
        "state": state(task),
        "attempts": task.attempts,
        "epoch": (task.epoch > 0).then_some(task.epoch),
        "executor": text(&task.executor),
        "failures": task.failures,
        "error": text(&task.error),
        "batches": task.batches,
        "rows_written": task.rows_written,
        "committed_by": task.committed_by.iter().map(|by| {
            serde_json::json!({ "from_batch": by.from_batch, "attempt": by.attempt })
        }).collect::<Vec<_>>(),
        "kept_by": text(&task.holder),
    })
}

fn state(task: &Task) -> &'static str {
    match task.state() {
        TaskState::Unspecified => "unknown",
        TaskState::Pending => "pending",
        TaskState::Running => "running",
        TaskState::Failed => "failed",
        TaskState::Finished => "finished",
    }
}

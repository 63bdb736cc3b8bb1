//! `weir pipelines` and `weir pipeline show|versions|delete NAME`.

use std::process::ExitCode;

use serde_json::json;

use super::submit::place;
use crate::args::{ClusterArgs, Global, Output, PipelineCommand};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

pub(crate) async fn pipeline(
    global: &Global,
    command: PipelineCommand,
) -> Result<ExitCode, Failure> {
    match command {
        PipelineCommand::Show { name, version, cluster } => {
            show(global, &name, version.unwrap_or_default(), &cluster).await
        }
        PipelineCommand::Versions { name, cluster } => versions(global, &name, &cluster).await,
        PipelineCommand::Delete { name, cluster } => {
            Client::required(&cluster)?.delete_pipeline(&name).await?;
            match global.output {
                Output::Json => output::json(&json!({ "pipeline": name, "deleted": true }))?,
                Output::Human => {
                    output::line(&format!("pipeline {name} deleted"))?;
                    output::line(&format!(
                        "  its runs and watermarks stay: weir runs --pipeline {name}{}",
                        place(&cluster)
                    ))?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

pub(crate) async fn list(global: &Global, cluster: &ClusterArgs) -> Result<ExitCode, Failure> {
    let pipelines = Client::required(cluster)?.pipelines().await?;
    match global.output {
        Output::Json => {
            let pipelines = pipelines.iter().map(|pipeline| {
                json!({
                    "pipeline": pipeline.pipeline,
                    "version": pipeline.version,
                    "registered_at": pipeline.registered_at,
                    "active_run": text(&pipeline.active_run),
                })
            });
            output::json(&pipelines.collect::<Vec<_>>())?;
        }
        Output::Human => {
            let rows = pipelines.into_iter().map(|pipeline| {
                vec![
                    pipeline.pipeline,
                    pipeline.version.to_string(),
                    pipeline.registered_at,
                    pipeline.active_run,
                ]
            });
            output::table(&["PIPELINE", "VERSION", "REGISTERED", "RUN"], rows.collect())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(
    global: &Global,
    name: &str,
    version: u32,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let pipeline = Client::required(cluster)?.pipeline(name, version).await?;
    match global.output {
        Output::Json => output::json(&json!({
            "pipeline": pipeline.pipeline,
            "version": pipeline.version,
            "content_hash": pipeline.content_hash,
            "registered_at": pipeline.registered_at,
            "file_name": pipeline.file_name,
            "base_dir": pipeline.base_dir,
            "text": pipeline.text,
            "workspace": text(&pipeline.workspace),
        }))?,
        // The file and nothing else, so that it can be kept.
        Output::Human => output::line(pipeline.text.trim_end_matches('\n'))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn versions(global: &Global, name: &str, cluster: &ClusterArgs) -> Result<ExitCode, Failure> {
    let mut versions = Client::required(cluster)?.versions(name).await?;
    versions.reverse();
    match global.output {
        Output::Json => {
            let versions = versions.iter().map(|version| {
                json!({
                    "version": version.version,
                    "content_hash": version.content_hash,
                    "registered_at": version.registered_at,
                })
            });
            output::json(&versions.collect::<Vec<_>>())?;
        }
        Output::Human => {
            let rows = versions.into_iter().map(|version| {
                vec![version.version.to_string(), version.registered_at, version.content_hash]
            });
            output::table(&["VERSION", "REGISTERED", "CONTENT"], rows.collect())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Empty is nothing.
fn text(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

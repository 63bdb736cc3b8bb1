//! `weir logs ID`: the lines of one run, from the pipeline's log or from a cluster.

use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use weir_coordinator::{RunStatus, history};
use weir_proto::v1::{LogLevel, LogLine};

use crate::args::{Global, Output};
use crate::client::Client;
use crate::failure::Failure;
use crate::{logging, output};

pub(crate) async fn logs(global: &Global, id: &str, follow: bool) -> Result<ExitCode, Failure> {
    let state_dir = super::state_dir_here(global);
    let summary = history::run(&state_dir, id).await?.summary;
    let path = logging::path(&state_dir, &summary.pipeline);
    let mut offset = 0;
    loop {
        // Read before the lines: a run that has ended writes no more of them.
        let running =
            history::run(&state_dir, &summary.run).await?.summary.status == RunStatus::Running;
        offset = print_from(global, &path, offset, &summary.run)?;
        if !follow || !running {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Whoever leads meanwhile.
pub(crate) async fn of_cluster(
    global: &Global,
    mut client: Client,
    id: &str,
    follow: bool,
) -> Result<ExitCode, Failure> {
    // The beginning of an id may come to mean two runs while one of them is followed.
    let run = client.run(id).await?.run;
    let show = |line: LogLine| {
        let entry = entry(&run, line);
        match global.output {
            Output::Json => output::line(&entry.to_string()),
            Output::Human => output::line(&human(&entry)),
        }
    };
    client.logs(&run, follow, show).await?;
    Ok(ExitCode::SUCCESS)
}

/// With the names that lines of a pipeline's own log have.
fn entry(run: &str, line: LogLine) -> serde_json::Value {
    let level = match line.level() {
        LogLevel::Error => "ERROR",
        LogLevel::Warn => "WARN",
        LogLevel::Info | LogLevel::Unspecified => "INFO",
    };
    let mut entry = json!({
        "timestamp": line.at, "level": level, "message": line.message, "run": run,
    });
    let texts = [("stage", line.stage), ("executor", line.executor), ("node", line.node)];
    for (name, text) in texts {
        if !text.is_empty() {
            entry[name] = text.into();
        }
    }
    for (name, number) in [("slice", line.slice), ("attempt", line.attempt)] {
        if let Some(number) = number {
            entry[name] = number.into();
        }
    }
    if let Some(rows) = line.rows {
        entry["rows"] = rows.into();
    }
    entry
}

/// Prints the run's complete lines from a byte offset; returns the offset behind them.
fn print_from(
    global: &Global,
    path: &std::path::Path,
    offset: u64,
    run: &str,
) -> Result<u64, Failure> {
    let failed =
        |error: std::io::Error| Failure::Run(format!("failed to read {}: {error}", path.display()));
    let mut file = std::fs::File::open(path).map_err(failed)?;
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut reader = BufReader::new(file);
    let mut offset = offset;
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let length = reader.read_until(b'\n', &mut bytes).map_err(failed)?;
        if length == 0 || !bytes.ends_with(b"\n") {
            return Ok(offset);
        }
        offset += length as u64;
        // A line cut short by a full disk is skipped.
        let Ok(entry) = serde_json::from_slice::<serde_json::Value>(&bytes) else { continue };
        if !belongs_to(&entry, run) {
            continue;
        }
        if global.output == Output::Json {
            output::line(String::from_utf8_lossy(&bytes).trim_end())?;
        } else {
            output::line(&human(&entry))?;
        }
    }
}

/// Whether the event, or a span around it, carries this run.
fn belongs_to(entry: &serde_json::Value, run: &str) -> bool {
    let carries = |value: &serde_json::Value| value["run"].as_str() == Some(run);
    carries(entry)
        || carries(&entry["span"])
        || entry["spans"].as_array().is_some_and(|spans| spans.iter().any(carries))
}

/// `TIME LEVEL message key=value …`
fn human(entry: &serde_json::Value) -> String {
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let mut line = format!("{} {:5} {}", text("timestamp"), text("level"), text("message"));
    if let Some(fields) = entry.as_object() {
        for (key, value) in fields {
            if !["timestamp", "level", "message", "target", "span", "spans", "run"]
                .contains(&key.as_str())
            {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                line.push_str(&format!(" {key}={value}"));
            }
        }
    }
    line
}

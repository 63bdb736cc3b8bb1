//! `weir run FILE` and `weir retry ID`: start or resume, show progress, stop cleanly, say how it ended.

use std::collections::BTreeMap;
use std::process::ExitCode;

use chrono::{DateTime, NaiveDate, Utc};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_connectors::Redactor;
use weir_coordinator::{Again, Engine, EngineError, RunRequest, RunStatus, RunSummary, history};
use weir_spec::{ColumnType, PipelineSpec};

use crate::args::{Global, Output, RunArgs, Values};
use crate::failure::Failure;
use crate::progress::{self, Show};
use crate::{files, logging, output, signals};

pub(crate) async fn run(
    global: &Global,
    arguments: RunArgs,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    if let Some(extra) = &arguments.id {
        return Err(Failure::Usage(format!(
            "unexpected `{extra}`: one file at a time (`weir run show ID` shows a run)"
        )));
    }
    if arguments.cluster.is_named() {
        return Err(Failure::Usage(
            "`weir run` runs here and now: `weir submit` runs on a cluster".to_owned(),
        ));
    }
    let loaded = files::load_valid(&arguments.file)?;
    let folder = files::folder_of(&loaded.path);
    let request =
        RunRequest { fresh: arguments.fresh, ..request(&loaded.parsed.spec, &arguments.values)? };
    let context = files::context(global, &folder, redactor)?;
    let options = files::engine_options(global, &folder, context);
    execute(global, options, &loaded.parsed.spec, &loaded.text, request).await
}

/// Goes on with a run from what was frozen when it started; the pipeline file may have changed since.
pub(crate) async fn retry(
    global: &Global,
    id: &str,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    let state_dir = super::state_dir_here(global);
    let frozen = history::frozen(&state_dir, id).await?;
    let context = files::context(global, &frozen.base_dir, redactor)?;
    let mut options = files::engine_options(global, &frozen.base_dir, context);
    options.state_dir = state_dir;
    let request = RunRequest { resume: Some(frozen.run), ..frozen.request };
    execute(global, options, &frozen.spec, &frozen.spec_text, request).await
}

/// Runs with progress until the end or Ctrl-C, and prints the summary.
pub(crate) async fn execute(
    global: &Global,
    options: weir_coordinator::EngineOptions,
    spec: &PipelineSpec,
    text: &str,
    request: RunRequest,
) -> Result<ExitCode, Failure> {
    let state_dir = options.state_dir.clone();
    logging::open_file(&state_dir, &spec.pipeline.0);
    let engine = Engine::open(options).await?;
    let (sender, receiver) = mpsc::unbounded_channel();
    let show = if global.output == Output::Json { Show::Nothing } else { Show::for_terminal() };
    let shown = tokio::spawn(progress::show(receiver, show));
    let stop = CancellationToken::new();
    let signals = tokio::spawn(stop_on_signal(stop.clone()));
    let result = engine.run(spec, text, request, sender, stop).await;
    signals.abort();
    // The engine has dropped its sender: the view has seen everything once it ends.
    let _ = shown.await;
    match result {
        Ok(summary) => {
            print(global, &summary, "")?;
            Ok(match summary.status {
                RunStatus::Succeeded | RunStatus::Skipped => ExitCode::SUCCESS,
                RunStatus::Queued
                | RunStatus::Running
                | RunStatus::Interrupted
                | RunStatus::Failed
                | RunStatus::Abandoned => ExitCode::from(1),
            })
        }
        Err(EngineError::Stopped { run }) => Err(Failure::Run(format!(
            "run {run} was stopped. What it has committed stays; \
             the same `weir run` (or `weir retry {run}`) goes on from there"
        ))),
        Err(EngineError::RunFailed { run, message, again }) => {
            let remedy = remedy(&run, &again);
            Err(Failure::Run(format!("run {run} failed: {message}\n{remedy}")))
        }
        Err(error) => Err(error.into()),
    }
}

fn remedy(run: &str, again: &Again) -> String {
    match again {
        Again::GoesOn => "Mend the cause and start the same `weir run` again: it goes on behind what is \
                          committed, with the input that was planned and the intermediate results that \
                          are finished. `weir run --fresh` starts anew."
            .to_owned(),
        Again::StartsAnew => {
            "Nothing was committed. Mend the cause and start `weir run` again.".to_owned()
        }
        Again::WroteAll => {
            "All its rows are written. Mend the cause; `weir run` starts another run.".to_owned()
        }
        Again::Replays(of) => format!(
            "It replays dead letters of run {of}. Mend the cause and go on with `weir retry {run}`, or give \
             it up with the next `weir run --fresh`."
        ),
    }
}

/// The first signal stops at the next commit, the second at once.
async fn stop_on_signal(stop: CancellationToken) {
    signals::stop_asked().await;
    eprintln!("stopping at the next commit; press Ctrl-C again to stop at once");
    stop.cancel();
    if tokio::signal::ctrl_c().await.is_ok() {
        eprintln!("stopped at once; the same command resumes the run");
        std::process::exit(1);
    }
}

/// `place`: what the commands that are shown need in order to find the run, with a space before it.
pub(crate) fn print(global: &Global, summary: &RunSummary, place: &str) -> Result<(), Failure> {
    if global.output == Output::Json {
        return output::json(summary);
    }
    if summary.status == RunStatus::Skipped {
        return output::line("skipped: another run of this pipeline is going on");
    }
    let seconds = summary
        .ended_at
        .map(|ended| (ended - summary.started_at).num_milliseconds() as f64 / 1000.0)
        .unwrap_or_default();
    output::line(&format!("run {} succeeded in {seconds:.1} s", summary.run))?;
    output::line(&format!("  {} rows read", output::count(summary.rows_read)))?;
    for (sink, rows) in &summary.rows_written {
        output::line(&format!("  {} rows written to {sink}", output::count(*rows)))?;
    }
    if summary.dead_letters > 0 {
        output::line(&format!(
            "  {} dead letters: weir dead-letters list {}{place}",
            output::count(summary.dead_letters),
            summary.run
        ))?;
    }
    output::line(&format!("  prove it: weir audit {}{place}", summary.run))
}

/// A request from the command line's values, checked against the declared parameters.
pub(crate) fn request(spec: &PipelineSpec, values: &Values) -> Result<RunRequest, Failure> {
    let mut params = BTreeMap::new();
    for (name, text) in &values.params {
        let Some(param) = spec.params.get(name) else {
            let known: Vec<&str> = spec.params.keys().map(String::as_str).collect();
            return Err(Failure::Usage(format!(
                "--param {name}: the pipeline has no such parameter ({})",
                if known.is_empty() { "it has none".to_owned() } else { known.join(", ") }
            )));
        };
        params.insert(name.clone(), typed(name, &param.column_type, text)?);
    }
    let window = match (&values.from, &values.to) {
        (Some(from), Some(to)) => {
            Some((instant(spec, "--from", from)?, instant(spec, "--to", to)?))
        }
        _ => None,
    };
    if let Some((from, to)) = window
        && from >= to
    {
        return Err(Failure::Usage("--from must be before --to".to_owned()));
    }
    Ok(RunRequest { params, window, ..RunRequest::default() })
}

fn typed(name: &str, column_type: &ColumnType, text: &str) -> Result<serde_json::Value, Failure> {
    let wrong = |what: &str| Failure::Usage(format!("--param {name}: `{text}` is not {what}"));
    Ok(match column_type {
        ColumnType::Bool => text.parse::<bool>().map_err(|_| wrong("true or false"))?.into(),
        ColumnType::Int8 | ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64 => {
            text.parse::<i64>().map_err(|_| wrong("a whole number"))?.into()
        }
        ColumnType::UInt8 | ColumnType::UInt16 | ColumnType::UInt32 | ColumnType::UInt64 => {
            text.parse::<u64>().map_err(|_| wrong("a whole number of 0 or more"))?.into()
        }
        ColumnType::Float32 | ColumnType::Float64 => {
            text.parse::<f64>().map_err(|_| wrong("a number"))?.into()
        }
        _ => text.into(),
    })
}

/// A time as it is, or the midnight of a date in the pipeline's timezone.
fn instant(spec: &PipelineSpec, option: &str, text: &str) -> Result<DateTime<Utc>, Failure> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.with_timezone(&Utc));
    }
    text.parse::<NaiveDate>().ok().and_then(|date| spec.start_of_day(date)).ok_or_else(|| {
        Failure::Usage(format!(
            "{option}: `{text}` is neither a date (2026-01-31) nor a time (2026-01-31T00:00:00Z)"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_its_midnight_in_the_timezone_of_the_pipeline() {
        let text = "pipeline: p\ntimezone: Europe/Berlin\n\
                    sources: { a: { type: csv, path: a.csv } }\n\
                    sinks: { s: { input: a, type: csv, path: out } }\n";
        let spec = weir_spec::parse("p.yaml", text).expect("a good file").spec;
        let values = |from: &str, to: &str| Values {
            params: Vec::new(),
            from: Some(from.to_owned()),
            to: Some(to.to_owned()),
        };
        let window = |from: &str, to: &str| {
            let request =
                request(&spec, &values(from, to)).map_err(|error| error.message().to_owned());
            request.map(|request| {
                let (from, to) = request.window.expect("both ends are given");
                (from.to_rfc3339(), to.to_rfc3339())
            })
        };
        // In the night to the 29th the clocks change: that day has 23 hours.
        assert_eq!(
            window("2026-03-29", "2026-03-30"),
            Ok(("2026-03-28T23:00:00+00:00".to_owned(), "2026-03-29T22:00:00+00:00".to_owned()))
        );
        assert_eq!(
            window("2026-03-29T00:00:00Z", "2026-03-29T01:00:00+01:00"),
            Err("--from must be before --to".to_owned())
        );
        let message = window("yesterday", "2026-03-30").expect_err("no date");
        assert!(message.contains("`yesterday` is neither a date"), "{message}");
    }
}

//! `weir connection test NAME`: connects, reads and writes nothing.

use std::process::ExitCode;

use weir_connectors::{Redactor, probe, registry};

use crate::args::{ConnectionCommand, Global, Output};
use crate::failure::Failure;
use crate::{files, output};

pub(crate) async fn connection(
    global: &Global,
    command: ConnectionCommand,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    let ConnectionCommand::Test { name, file } = command;
    let folder = files::folder_of(&file);
    let context = files::context(global, &folder, redactor)?;
    let answer = match find(&name, &file)? {
        Found::Connection(config) => probe::check_connection(&name, &config, &context).await,
        Found::Source(source) => match registry::open_source(&name, &source, &context) {
            Ok(source) => source.check().await,
            Err(error) => Err(error),
        },
        Found::Sink(sink) => match registry::open_sink(&name, &sink, &context) {
            Ok(sink) => sink.check().await,
            Err(error) => Err(error),
        },
    };
    let answer =
        answer.map_err(|error| Failure::Run(format!("connection `{name}`: {}", error.message)))?;
    let answer = redactor.redact(&answer);
    if global.output == Output::Json {
        output::json(&serde_json::json!({ "connection": name, "answer": answer }))?;
    } else {
        output::line(&format!("{name}: {answer}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::large_enum_variant, reason = "one a command")]
enum Found {
    Connection(weir_spec::Connection),
    Source(weir_spec::Source),
    Sink(weir_spec::Sink),
}

/// The connection (or node) of that name: in `weir.yaml`, or in a pipeline file.
fn find(name: &str, file: &std::path::Path) -> Result<Found, Failure> {
    let missing = |known: Vec<String>| {
        Failure::Usage(format!(
            "{} has no connection `{name}` (it has {})",
            file.display(),
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        ))
    };
    if file.file_name().is_some_and(|base| base == "weir.yaml") {
        if !file.is_file() {
            return Err(Failure::Usage(format!(
                "{} does not exist: name the file that holds the connection with --file",
                file.display()
            )));
        }
        let shared = files::workspace(file)?;
        return match shared.connections.get(name) {
            Some(config) => Ok(Found::Connection(config.clone())),
            None => Err(missing(shared.connections.keys().cloned().collect())),
        };
    }
    let spec = files::load_valid(file)?.parsed.spec;
    if let Some(config) = spec.connections.get(name) {
        return Ok(Found::Connection(config.clone()));
    }
    let node = weir_spec::NodeName::new(name);
    if let Some(source) = spec.sources.get(&node) {
        return Ok(Found::Source(source.clone()));
    }
    if let Some(sink) = spec.sinks.get(&node) {
        return Ok(Found::Sink(sink.clone()));
    }
    let mut known: Vec<String> = spec.connections.keys().cloned().collect();
    known.extend(spec.sources.keys().chain(spec.sinks.keys()).map(ToString::to_string));
    Err(missing(known))
}

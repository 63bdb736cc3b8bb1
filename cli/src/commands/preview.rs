//! `weir preview FILE NODE`: the first rows of a node. Reads the sources, writes nothing.

use std::path::Path;
use std::process::ExitCode;

use weir_connectors::Redactor;
use weir_coordinator::Engine;
use weir_spec::{InputRef, NodeName};

use crate::args::{Global, Output, Values};
use crate::failure::Failure;
use crate::{files, output};

pub(crate) async fn preview(
    global: &Global,
    file: &Path,
    node: &str,
    limit: usize,
    values: &Values,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    let loaded = files::load_valid(file)?;
    let spec = &loaded.parsed.spec;
    let input = match node.strip_suffix(".errors") {
        Some(node) => InputRef { node: NodeName::new(node), errors: true },
        None => InputRef { node: NodeName::new(node), errors: false },
    };
    let known = || spec.sources.keys().chain(spec.transforms.keys()).chain(spec.sinks.keys());
    if !known().any(|name| *name == input.node) {
        let known: Vec<&str> = known().map(NodeName::as_str).collect();
        return Err(Failure::Usage(format!(
            "{} has no node `{}` (it has {})",
            file.display(),
            input.node,
            known.join(", ")
        )));
    }
    let folder = files::folder_of(file);
    let request = super::run::request(spec, values)?;
    let context = files::context(global, &folder, redactor)?;
    let engine = Engine::open(files::engine_options(global, &folder, context)).await?;
    let rows = engine.preview(spec, request, &input, limit).await?;
    if global.output == Output::Json {
        output::json(&output::rows_as_json(&rows)?)?;
    } else {
        let text = arrow::util::pretty::pretty_format_batches(&rows)
            .map_err(|error| Failure::Run(format!("failed to print rows: {error}")))?;
        output::line(&text.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

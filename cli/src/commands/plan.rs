//! `weir plan FILE`: what would run. Asks the sources what they are; writes nothing.

use std::process::ExitCode;

use weir_connectors::Redactor;
use weir_coordinator::Engine;

use crate::args::{Global, Output, PlanArgs};
use crate::failure::Failure;
use crate::{files, output};

pub(crate) async fn plan(
    global: &Global,
    arguments: &PlanArgs,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    let loaded = files::load_valid(&arguments.file)?;
    let folder = files::folder_of(&loaded.path);
    let request = super::run::request(&loaded.parsed.spec, &arguments.values)?;
    let context = files::context(global, &folder, redactor)?;
    let engine = Engine::open(files::engine_options(global, &folder, context)).await?;
    let graph = engine.plan(&loaded.parsed.spec, request).await?;
    if global.output == Output::Json {
        output::json(&graph)?;
    } else {
        output::line(weir_plan::render(&graph).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

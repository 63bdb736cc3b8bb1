//! `weir validate FILE…`: every mistake of every file at once.

use std::path::PathBuf;
use std::process::ExitCode;

use weir_spec::Diagnostic;

use crate::args::{Global, Output};
use crate::failure::Failure;
use crate::{files, output};

pub(crate) fn validate(global: &Global, paths: &[PathBuf]) -> Result<ExitCode, Failure> {
    let mut all: Vec<Diagnostic> = Vec::new();
    let mut wrong = false;
    for path in paths {
        let (diagnostics, valid) = match files::load(path)? {
            Ok(loaded) => (loaded.parsed.warnings, true),
            Err(diagnostics) => (diagnostics, false),
        };
        wrong |= !valid;
        if global.output == Output::Human {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if !diagnostics.is_empty() {
                eprintln!("{}", weir_spec::render_diagnostics(&diagnostics, &text));
            }
            if valid {
                output::line(&format!("{}: valid", path.display()))?;
            } else {
                let mistakes = diagnostics.len();
                output::line(&format!(
                    "{}: {mistakes} mistake{}",
                    path.display(),
                    if mistakes == 1 { "" } else { "s" }
                ))?;
            }
        }
        all.extend(diagnostics);
    }
    if global.output == Output::Json {
        output::json(&all)?;
    }
    Ok(if wrong { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

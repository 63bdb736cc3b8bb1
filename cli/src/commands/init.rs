//! `weir init DIR`: a small pipeline with data, ready to run. It is the quickstart of the examples.

use std::path::Path;
use std::process::ExitCode;

use crate::failure::Failure;
use crate::output;

const FILES: &[(&str, &str)] = &[
    ("pipeline.yaml", include_str!("../../../examples/quickstart/pipeline.yaml")),
    ("data/orders.csv", include_str!("../../../examples/quickstart/data/orders.csv")),
    ("data/customers.jsonl", include_str!("../../../examples/quickstart/data/customers.jsonl")),
    (".gitignore", "out/\n.weir/\n"),
];

/// Never overwrites: a file that is there already ends the command before anything is written.
pub(crate) fn init(dir: &Path) -> Result<ExitCode, Failure> {
    for (name, _) in FILES {
        let path = dir.join(name);
        if path.exists() {
            return Err(Failure::Usage(format!(
                "{} is there already: choose an empty folder",
                path.display()
            )));
        }
    }
    for (name, text) in FILES {
        let path = dir.join(name);
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&path, text));
        written.map_err(|error| {
            Failure::Run(format!("failed to write {}: {error}", path.display()))
        })?;
    }
    output::line(&format!("{} is ready:", dir.display()))?;
    output::line(&format!("  weir run {}", dir.join("pipeline.yaml").display()))?;
    output::line(&format!("  weir test {}", dir.join("pipeline.yaml").display()))?;
    Ok(ExitCode::SUCCESS)
}

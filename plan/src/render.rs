//! A stage graph in words, for `weir plan`.

use std::fmt::Write as _;

use weir_spec::{CommitMode, FileFormat, Sink, SinkTarget, WriteMode};

use crate::{Slice, Stage, StageGraph, StageKind, StageOutput, StreamInput};

/// Stages in order: what each reads, in how many tasks, its operators, and how its rows become
/// visible.
pub fn render(graph: &StageGraph) -> String {
    let mut text = String::new();
    for stage in &graph.stages {
        // Writing to a string does not fail.
        let _ = render_stage(&mut text, stage);
    }
    text
}

fn render_stage(text: &mut String, stage: &Stage) -> std::fmt::Result {
    let nodes: Vec<&str> = stage.nodes.iter().map(|node| node.as_str()).collect();
    writeln!(text, "stage {}: {}", stage.id, stage.name)?;
    writeln!(text, "  nodes:  {}", nodes.join(" → "))?;
    match &stage.kind {
        StageKind::Streaming { input, slices, .. } => {
            match input {
                StreamInput::Source { node, request, .. } => {
                    write!(text, "  reads:  source {node}")?;
                    if let Some(columns) = &request.columns {
                        write!(text, ", columns {}", columns.join(", "))?;
                    }
                    if !request.predicates.is_empty() {
                        let predicates: Vec<String> =
                            request.predicates.iter().map(crate::pushdown::describe).collect();
                        write!(text, ", only rows with {}", predicates.join(" and "))?;
                    }
                    if let Some(since) = &request.since {
                        write!(text, ", only what is newer than {since}")?;
                    }
                    writeln!(text)?;
                }
                StreamInput::Exchange { stage } => {
                    writeln!(text, "  reads:  the rows kept by stage {stage}")?;
                }
            }
            writeln!(
                text,
                "  tasks:  {}, row by row; an interrupted one goes on behind its last committed batch",
                counted(slices.len(), "slice")
            )?;
            render_splits(text, slices)?;
        }
        StageKind::Whole { partitions, slices, .. } => {
            if !stage.inputs.is_empty() {
                let inputs: Vec<String> = stage.inputs.iter().map(ToString::to_string).collect();
                writeln!(text, "  reads:  the rows kept by stage {}", inputs.join(", "))?;
            }
            match slices {
                1 => writeln!(text, "  tasks:  1, as a whole; an interrupted one starts again")?,
                _ => writeln!(
                    text,
                    "  tasks:  {slices}, one for each partition; an interrupted one starts again"
                )?,
            }
            writeln!(
                text,
                "  output: {} kept on disk",
                counted(*partitions as usize, "partition")
            )?;
        }
    }
    if let StageOutput::Sink { sink, .. } = &stage.output {
        writeln!(text, "  writes: {}", describe_target(sink))?;
        writeln!(text, "  commit: {}", describe_commit(sink))?;
    }
    writeln!(text, "  operators:")?;
    for line in stage.display.lines() {
        writeln!(text, "    {line}")?;
    }
    writeln!(text)
}

/// The first splits by name; there may be thousands.
fn render_splits(text: &mut String, slices: &[Slice]) -> std::fmt::Result {
    const SHOWN: usize = 8;
    let splits: Vec<(usize, &str)> = slices
        .iter()
        .enumerate()
        .flat_map(|(index, slice)| match slice {
            Slice::Splits(splits) => {
                splits.iter().map(|split| (index, split.label.as_str())).collect::<Vec<_>>()
            }
            Slice::Partition(_) => Vec::new(),
        })
        .collect();
    for (index, label) in splits.iter().take(SHOWN) {
        writeln!(text, "          slice {index}: {label}")?;
    }
    if splits.len() > SHOWN {
        writeln!(text, "          … {} more", counted(splits.len() - SHOWN, "split"))?;
    }
    Ok(())
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn describe_target(sink: &Sink) -> String {
    let mode = match sink.mode {
        WriteMode::Append => "append to",
        WriteMode::Upsert => "insert or update by key in",
        WriteMode::Replace => "replace",
    };
    match &sink.target {
        SinkTarget::Files(files) => {
            let format = match files.format {
                FileFormat::Csv { .. } => "CSV",
                FileFormat::Json => "JSON lines",
                FileFormat::Parquet => "Parquet",
            };
            let folders = if files.partition_by.is_empty() {
                String::new()
            } else {
                format!(", in folders by {}", files.partition_by.join(", "))
            };
            format!("{mode} {format} files in {}{folders}", files.path.as_str())
        }
        SinkTarget::Table(table) => format!("{mode} table {}", table.table.as_str()),
        SinkTarget::Unsupported(unsupported) => {
            format!("{mode} {} (not in this version)", unsupported.type_name)
        }
    }
}

fn describe_commit(sink: &Sink) -> String {
    let batch = sink.batch_rows;
    match (&sink.target, sink.mode, sink.commit) {
        (SinkTarget::Table(_), WriteMode::Replace, _) => {
            "rows are loaded into a table beside; one transaction swaps it in when the run ends"
                .into()
        }
        (_, WriteMode::Replace, _) => {
            "files are written to staging; they take the place of the old ones when the run ends"
                .into()
        }
        (SinkTarget::Table(_), _, CommitMode::Batch) => format!(
            "{batch} rows at a time, each batch in one transaction with its ledger row, exactly once"
        ),
        (_, _, CommitMode::Batch) => {
            format!("{batch} rows at a time: files are staged, then moved into place, exactly once")
        }
        (_, _, CommitMode::Run) => {
            format!("staged {batch} rows at a time; all become visible together when the run ends")
        }
    }
}

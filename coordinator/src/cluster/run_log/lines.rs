//! What is said about the events of a run.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use weir_executor::ProgressEvent;
use weir_plan::StageOutput;
use weir_spec::NodeName;

use crate::RunEvent;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(in crate::cluster) enum Level {
    Info,
    Warn,
    Error,
}

/// A line without its time and place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cluster) struct Entry {
    #[serde(skip, default = "info")]
    pub(in crate::cluster) level: Level,
    pub(in crate::cluster) message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) stage: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) slice: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) attempt: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) executor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cluster) rows: Option<u64>,
}

fn info() -> Level {
    Level::Info
}

impl Entry {
    pub(in crate::cluster) fn new(level: Level, message: impl Into<String>) -> Self {
        Self {
            level,
            message: message.into(),
            stage: None,
            slice: None,
            attempt: None,
            executor: None,
            node: None,
            rows: None,
        }
    }

    fn of_stage(self, stage: impl Into<String>) -> Self {
        Self { stage: Some(stage.into()), ..self }
    }
}

/// Turns events into lines.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Lines {
    /// Which stage feeds a sink.
    stages: HashMap<NodeName, String>,
}

impl Lines {
    pub(in crate::cluster) fn of(&mut self, event: &RunEvent) -> Option<Entry> {
        Some(match event {
            RunEvent::Waiting { .. } | RunEvent::Progress(ProgressEvent::Rows { .. }) => {
                return None;
            }
            RunEvent::Planned { graph, .. } => {
                for stage in &graph.stages {
                    if let StageOutput::Sink { node, .. } = &stage.output {
                        self.stages.insert(node.clone(), stage.name.clone());
                    }
                }
                Entry::new(
                    Level::Info,
                    format!("planned: {}", counted(graph.stages.len(), "stage")),
                )
            }
            RunEvent::Resumed { slices_done, slices, rows_committed, .. } => Entry::new(
                Level::Info,
                format!(
                    "resumed: {slices_done} of {slices} slices done, {rows_committed} rows committed"
                ),
            ),
            RunEvent::StageStarted { name, slices, .. } => {
                let slices = counted(usize::try_from(*slices).unwrap_or(usize::MAX), "slice");
                Entry::new(Level::Info, format!("stage started, {slices}")).of_stage(name)
            }
            RunEvent::StageFinished { name, account, .. } => {
                let rows = Some(account.rows_written);
                let entry = Entry::new(Level::Info, "stage done").of_stage(name);
                Entry { rows, ..entry }
            }
            RunEvent::Progress(ProgressEvent::BatchCommitted {
                node,
                slice,
                sequence,
                rows,
                ..
            }) => Entry {
                stage: self.stages.get(node).cloned(),
                slice: Some(*slice),
                node: Some(node.to_string()),
                rows: Some(*rows),
                ..Entry::new(Level::Info, format!("batch {sequence} committed"))
            },
            RunEvent::AttemptStarted { stage, slice, attempt, executor, .. } => Entry {
                slice: Some(*slice),
                attempt: Some(*attempt),
                executor: Some(executor.clone()),
                ..Entry::new(Level::Info, "attempt began").of_stage(stage)
            },
            RunEvent::AttemptEnded { stage, slice, attempt, executor, error, .. } => {
                let entry = match error {
                    None => Entry::new(Level::Info, "attempt ended"),
                    Some(error) => Entry::new(Level::Warn, format!("attempt ended: {error}")),
                };
                Entry {
                    slice: Some(*slice),
                    attempt: Some(*attempt),
                    executor: Some(executor.clone()),
                    ..entry.of_stage(stage)
                }
            }
            RunEvent::Retrying { stage, slice, attempt, delay, error, .. } => {
                let when = if delay.is_zero() {
                    "another one begins at once".to_owned()
                } else {
                    format!("another one begins in {:.1} s", delay.as_secs_f64())
                };
                Entry {
                    slice: Some(*slice),
                    attempt: Some(*attempt),
                    ..Entry::new(Level::Warn, format!("attempt is over ({error}); {when}"))
                        .of_stage(stage)
                }
            }
            RunEvent::Note { node, text, .. } => {
                Entry { node: Some(node.to_string()), ..Entry::new(Level::Info, text.clone()) }
            }
        })
    }
}

fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

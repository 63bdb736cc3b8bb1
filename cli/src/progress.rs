//! Shows a run while it goes on: bars on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::mpsc::UnboundedReceiver;
use weir_coordinator::RunEvent;
use weir_executor::ProgressEvent;
use weir_plan::{Slice, StageGraph, StageKind, StreamInput};
use weir_spec::NodeName;

use crate::output::count;

/// How much is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    Bars,
    Lines,
    Nothing,
}

impl Show {
    /// Bars only where a person sees them.
    pub(crate) fn for_terminal() -> Self {
        if std::io::stderr().is_terminal() { Show::Bars } else { Show::Lines }
    }
}

/// Consumes events until the engine drops its end.
pub(crate) async fn show(mut events: UnboundedReceiver<RunEvent>, show: Show) {
    let mut view = View { show, bars: MultiProgress::new(), nodes: HashMap::new() };
    while let Some(event) = events.recv().await {
        view.on(event);
    }
    view.finish();
}

struct View {
    show: Show,
    bars: MultiProgress,
    nodes: HashMap<NodeName, Node>,
}

struct Node {
    bar: ProgressBar,
    rows: u64,
    bytes: u64,
    started: Instant,
    printed: Instant,
}

/// Between two plain lines of one node.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl View {
    fn on(&mut self, event: RunEvent) {
        match event {
            RunEvent::Waiting { holder } => {
                self.say(&format!("waiting for the run that goes on ({holder})"));
            }
            RunEvent::Planned { run, graph } => {
                let stages = graph.stages.len();
                self.say(&format!(
                    "run {run}: {stages} stage{}",
                    if stages == 1 { "" } else { "s" }
                ));
                self.add_nodes(&graph);
            }
            RunEvent::Resumed { run, slices_done, slices, rows_committed } => self.say(&format!(
                "run {run}: resumed, {slices_done} of {slices} slices done, {} rows committed",
                count(rows_committed)
            )),
            RunEvent::StageStarted { name, slices, .. } => {
                if self.show == Show::Lines {
                    self.say(&format!("{name}: started, {slices} slices"));
                }
            }
            RunEvent::StageFinished { name, account, .. } => {
                self.say(&format!("{name}: done, {} rows", count(account.rows_written)));
            }
            RunEvent::Progress(ProgressEvent::Rows { node, rows, bytes, .. }) => {
                self.progress(&node, rows, bytes);
            }
            RunEvent::Progress(ProgressEvent::BatchCommitted { .. })
            | RunEvent::AttemptStarted { .. }
            | RunEvent::AttemptEnded { .. } => {}
            RunEvent::Retrying { stage, slice, attempt, delay, error, .. } => self.say(&format!(
                "{stage} slice {slice}: {error}; attempt {attempt} in {:.1} s",
                delay.as_secs_f64()
            )),
            RunEvent::Note { node, text, .. } => self.say(&format!("{node}: {text}")),
        }
    }

    fn say(&self, text: &str) {
        match self.show {
            Show::Nothing => {}
            Show::Lines => eprintln!("{text}"),
            // Falls back to standard error when the terminal has gone.
            Show::Bars => {
                if self.bars.println(text).is_err() {
                    eprintln!("{text}");
                }
            }
        }
    }

    fn add_nodes(&mut self, graph: &StageGraph) {
        if self.show == Show::Nothing {
            return;
        }
        for stage in &graph.stages {
            let expected = expected_rows(&stage.kind);
            for name in &stage.nodes {
                if self.nodes.contains_key(name) {
                    continue;
                }
                let bar = match (self.show, expected) {
                    (Show::Bars, Some(rows)) => self.bars.add(ProgressBar::new(rows)),
                    (Show::Bars, None) => self.bars.add(ProgressBar::new_spinner()),
                    _ => ProgressBar::hidden(),
                };
                bar.set_style(style(expected.is_some()));
                bar.set_prefix(name.to_string());
                let now = Instant::now();
                self.nodes.insert(
                    name.clone(),
                    Node { bar, rows: 0, bytes: 0, started: now, printed: now },
                );
            }
        }
    }

    fn progress(&mut self, name: &NodeName, rows: u64, bytes: u64) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.rows += rows;
        node.bytes += bytes;
        node.bar.set_position(node.rows);
        node.bar.set_message(indicatif::HumanBytes(node.bytes).to_string());
        if self.show == Show::Lines && node.printed.elapsed() >= LINE_EVERY {
            node.printed = Instant::now();
            let rate = node.rows as f64 / node.started.elapsed().as_secs_f64();
            eprintln!(
                "{name}: {} rows, {}, {} rows/s",
                count(node.rows),
                indicatif::HumanBytes(node.bytes),
                count(rate as u64)
            );
        }
    }

    fn finish(&mut self) {
        for node in self.nodes.values() {
            node.bar.finish();
        }
    }
}

/// Rows that a source expects; unknown behind exchanges.
fn expected_rows(kind: &StageKind) -> Option<u64> {
    let StageKind::Streaming { input: StreamInput::Source { .. }, slices, .. } = kind else {
        return None;
    };
    slices
        .iter()
        .map(|slice| match slice {
            Slice::Splits(splits) => {
                splits.iter().map(|split| split.estimated_rows).sum::<Option<u64>>()
            }
            Slice::Partition(_) => None,
        })
        .sum()
}

fn style(bounded: bool) -> ProgressStyle {
    let template = if bounded {
        "{prefix:>20} {bar:24} {human_pos} of ~{human_len} rows {msg} {per_sec} ETA {eta}"
    } else {
        "{prefix:>20} {spinner} {human_pos} rows {msg} {per_sec}"
    };
    ProgressStyle::with_template(template).expect("the template is a constant that parses")
}

//! What is said about a run on a cluster while it goes on. No I/O.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use weir_proto::v1::run_update::Update;
use weir_proto::v1::{Run, RunStatus, Stage};

use crate::output::count;

/// Between two lines about the rows of one stage.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Turns a run's states into lines. A state that is seen twice is said once.
#[derive(Debug)]
pub(crate) struct Watching {
    stages: HashMap<u32, Seen>,
    is_announced: bool,
    is_waiting: bool,
    /// Of the last line about rows.
    said_at: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    is_started: bool,
    is_done: bool,
}

impl Watching {
    pub(crate) fn new(now: Instant) -> Self {
        Self { stages: HashMap::new(), is_announced: false, is_waiting: false, said_at: now }
    }

    pub(crate) fn lines(&mut self, update: &Update, now: Instant) -> Vec<String> {
        match update {
            Update::Note(text) => vec![text.clone()],
            Update::Run(run) => self.states(run, now),
        }
    }

    fn states(&mut self, run: &Run, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        if run.status() == RunStatus::Queued && !self.is_waiting {
            self.is_waiting = true;
            lines.push(format!("run {} waits for its turn", run.run));
        }
        if !self.is_announced && !run.stages.is_empty() {
            self.is_announced = true;
            let stages = run.stages.len();
            let plural = if stages == 1 { "" } else { "s" };
            lines.push(format!("run {}: {stages} stage{plural}", run.run));
        }
        let rows_are_due = now.duration_since(self.said_at) >= LINE_EVERY;
        for stage in &run.stages {
            let seen = self.stages.entry(stage.stage).or_default();
            if !seen.is_started && is_started(stage) {
                seen.is_started = true;
                lines.push(format!("{}: started, {} slices", stage.name, stage.slices));
            }
            if !seen.is_done && stage.slices_done == stage.slices && is_started(stage) {
                seen.is_done = true;
                lines.push(format!("{}: done, {} rows", stage.name, count(stage.rows_written)));
            } else if rows_are_due && seen.is_started && !seen.is_done {
                self.said_at = now;
                lines.push(format!(
                    "{}: {} of {} slices done, {} rows",
                    stage.name,
                    stage.slices_done,
                    stage.slices,
                    count(stage.rows_written)
                ));
            }
        }
        lines
    }
}

fn is_started(stage: &Stage) -> bool {
    stage.attempts > 0 || stage.slices_done > 0 || !stage.running.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(attempts: u32, slices_done: u32, rows_written: u64) -> Update {
        let stage = Stage {
            stage: 0,
            name: "warehouse".to_owned(),
            slices: 2,
            slices_done,
            attempts,
            rows_written,
            ..Stage::default()
        };
        Update::Run(Run { run: "r".to_owned(), stages: vec![stage], ..Run::default() })
    }

    #[test]
    fn each_change_of_a_stage_is_said_once_though_streams_begin_again() {
        let start = Instant::now();
        let mut watching = Watching::new(start);
        let first = ["run r: 1 stage", "warehouse: started, 2 slices"];
        assert_eq!(watching.lines(&run(2, 0, 0), start), first);
        assert!(watching.lines(&run(2, 1, 5000), start).is_empty());
        let later = start + LINE_EVERY;
        assert_eq!(
            watching.lines(&run(2, 1, 5000), later),
            ["warehouse: 1 of 2 slices done, 5,000 rows"]
        );
        assert_eq!(watching.lines(&run(2, 2, 9000), later), ["warehouse: done, 9,000 rows"]);
        assert!(watching.lines(&run(2, 2, 9000), later + LINE_EVERY).is_empty());
        assert_eq!(watching.lines(&Update::Note("created".to_owned()), later), ["created"]);
    }
}

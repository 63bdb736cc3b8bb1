//! What must hold, at every step and at the end.

use std::collections::BTreeMap;

use weir_ledger::{
    Command, Ledger, PlanRun, Response, RunCommit, RunOutcome, RunState, SliceAttempt, StartRun,
    apply,
};
use weir_plan::is_later_cursor;
use weir_spec::{CommitMode, NodeName, PipelineName};

use super::plan::{RunPlan, StagePlan};
use super::world::{Event, World};
use crate::tests::target::Target;

/// What has happened to the ledger so far.
#[derive(Debug, Default)]
pub(super) struct Trace {
    /// With the time and the index of each.
    accepted: Vec<(u64, u64, Command)>,
    last_index: u64,
    /// Attempts that have been begun and have not been given up since.
    open: BTreeMap<(String, u32, u32), u32>,
    pub(super) faults_go_on: bool,
}

/// What a command may move.
type Watched = BTreeMap<(PipelineName, NodeName), String>;

impl Trace {
    /// What the ledger has accepted.
    pub(super) fn story(&self) -> String {
        let lines = self.accepted.iter().map(|(at, index, command)| {
            let text = serde_json::to_string(command).expect("commands are JSON");
            format!("{at:6} ms {index:5} {text}\n")
        });
        lines.collect()
    }

    pub(super) fn next_index(&mut self) -> u64 {
        self.last_index += 1;
        self.last_index
    }
}

fn place_of(task: &SliceAttempt) -> (String, u32, u32) {
    (task.run.0.clone(), task.stage.0, task.slice)
}

impl World {
    /// All runs are planned from the start.
    pub(super) fn submit_runs(&mut self) {
        let mut commands = Vec::new();
        for plan in &self.plans {
            commands.push(Command::StartRun(StartRun {
                epoch: 0,
                run: plan.id.clone(),
                pipeline: plan.pipeline.clone(),
                spec_hash: String::new(),
                params: BTreeMap::new(),
                window: None,
                version: None,
                request_id: None,
                backfill: None,
                replay_of: None,
                at: self.time(),
            }));
            commands.push(Command::PlanRun(PlanRun {
                epoch: 0,
                run: plan.id.clone(),
                graph_hash: "graph".to_owned(),
                engine_version: String::new(),
                stages: plan.stages.iter().map(|stage| stage.shape.clone()).collect(),
            }));
        }
        for command in commands {
            let index = self.trace.next_index();
            let response = apply(&mut self.ledger, index, &command);
            assert_eq!(response, Response::Accepted { changed: true }, "{command:?}");
            self.trace.accepted.push((0, index, command));
        }
    }

    /// Before a command is applied.
    pub(super) fn watched(&self) -> Watched {
        let pipelines = self.ledger.pipelines.iter();
        pipelines
            .flat_map(|(name, facts)| {
                let marks = facts.watermarks.iter();
                marks.map(|(source, mark)| ((name.clone(), source.clone()), mark.clone()))
            })
            .collect()
    }

    /// After a command has changed something.
    pub(super) fn check_accepted(&mut self, index: u64, command: &Command, before: Watched) {
        self.trace.accepted.push((self.now, index, command.clone()));
        let open = &mut self.trace.open;
        match command {
            Command::NewEpoch(_) => open.clear(),
            Command::ResumeRun(resume) => open.retain(|(run, ..), _| *run != resume.run.0),
            Command::LoseAttempt(lose) => {
                open.remove(&place_of(&lose.task));
            }
            Command::FailAttempt(fail) => {
                open.remove(&place_of(&fail.task));
            }
            Command::StartAttempt(start) => {
                let task = &start.task;
                if let Some(known) = open.insert(place_of(task), task.attempt) {
                    let message = format!("{task:?} has begun while attempt {known} was at work");
                    self.violations.push(message);
                }
            }
            Command::RunCommitDone(done) => self.check_shown(&done.run.0, done.stage.0),
            Command::FinishRun(finish) if finish.outcome != RunOutcome::Succeeded => {
                // Somebody will want it to go on.
                let is_it = |plan: &RunPlan| plan.id == finish.run;
                let run = self.plans.iter().position(is_it).expect("known");
                self.soon(100, 2_000, Event::Retry { run });
            }
            _ => {}
        }
        let after = self.watched();
        for (key, mark) in &after {
            let known = before.get(key);
            if known == Some(mark) {
                continue;
            }
            if known.is_some_and(|known| !is_later_cursor(mark, known)) {
                self.violations.push(format!("the watermark {key:?} has gone back to {mark}"));
            }
            self.check_watermark(key);
        }
    }

    /// It moves only once every sink fed by the source shows all rows.
    fn check_watermark(&mut self, (pipeline, source): &(PipelineName, NodeName)) {
        for run in 0..self.plans.len() {
            if self.plans[run].pipeline != *pipeline {
                continue;
            }
            let stages = &self.plans[run].stages;
            let is_fed: Vec<bool> = stages.iter().fold(Vec::new(), |mut fed, stage| {
                let from_before = stage.shape.inputs.iter().any(|input| fed[input.0 as usize]);
                fed.push(from_before || stage.incremental_source() == Some(source));
                fed
            });
            for (stage, _) in is_fed.iter().enumerate().filter(|(_, is_fed)| **is_fed) {
                if self.plans[run].stages[stage].target.is_some() {
                    let missing = self.missing(run, stage);
                    self.violations.extend(missing.map(|missing| {
                        format!("the watermark of {source} is ahead of its sinks: {missing}")
                    }));
                }
            }
        }
    }

    fn check_shown(&mut self, run: &str, stage: u32) {
        let run = self.plans.iter().position(|plan| plan.id.0 == run).expect("known");
        let missing = self.missing(run, stage as usize);
        self.violations
            .extend(missing.map(|missing| format!("after the commit of a run: {missing}")));
    }

    /// An executor is lost only if something has happened to it.
    pub(super) fn check_loss(&mut self) {
        if !self.has_faults {
            self.violations.push("an executor was lost without a reason".to_owned());
        }
    }

    pub(super) fn check_step(&mut self) {
        let (ledger, plans) = (&self.ledger, &self.plans);
        for ((run, stage), target) in &mut self.targets {
            self.violations.append(&mut target.violations);
            let (_, commit) = plans[*run].stages[*stage].target.expect("it has one");
            let facts = &ledger.runs[&plans[*run].id].stages[*stage];
            if commit == CommitMode::Run
                && facts.run_commit == RunCommit::Open
                && !target.visible().is_empty()
            {
                self.violations.push(format!("stage {stage} shows rows before its commit"));
            }
        }
    }

    /// How a target differs from what was to be written; `None` if it does not.
    fn missing(&self, run: usize, stage: usize) -> Option<String> {
        let target: &Target = &self.targets[&(run, stage)];
        let mut seen: BTreeMap<(u32, u64), u32> = BTreeMap::new();
        for (slice, rows) in target.visible() {
            for row in rows {
                *seen.entry((slice, *row)).or_default() += 1;
            }
        }
        let plan = &self.plans[run].stages[stage];
        for (slice, rows) in (0..).zip(&plan.rows) {
            for row in 0..*rows {
                let times = seen.remove(&(slice, row)).unwrap_or(0);
                if times != u32::from(plan.accepts(slice, row)) {
                    return Some(format!(
                        "run {run}, stage {stage}, slice {slice}, row {row}: {times} times"
                    ));
                }
            }
        }
        seen.keys().next().map(|row| format!("run {run}, stage {stage}: a row too much, {row:?}"))
    }

    pub(super) fn check_end(&mut self) {
        let mut found = Vec::new();
        for (run, plan) in self.plans.iter().enumerate() {
            let facts = &self.ledger.runs[&plan.id];
            if !matches!(facts.state, RunState::Succeeded { .. }) {
                found.push(format!("{} is {:?} at the end", plan.id, facts.state));
            }
            for (stage, shape) in plan.stages.iter().enumerate() {
                if shape.target.is_some() {
                    found.extend(self.missing(run, stage));
                }
                let marks = &self.ledger.pipelines[&plan.pipeline].watermarks;
                if let Some(source) = shape.incremental_source()
                    && is_read(plan, stage)
                {
                    let expected = shape.last_cursor().map(|cursor| cursor.to_string());
                    if marks.get(source) != expected.as_ref() {
                        found.push(format!("the watermark of {source} is {:?}", marks.get(source)));
                    }
                }
                if !self.has_faults {
                    let again = facts.stages[stage].slices.iter().any(|slice| slice.attempts > 1);
                    found.extend(again.then(|| "attempted again without a reason".to_owned()));
                }
            }
            let audit = self.ledger.audit(&plan.id).expect("the run is known");
            found.extend(audit.findings);
        }
        let mut replayed = Ledger::default();
        for (_, index, command) in &self.trace.accepted {
            let response = apply(&mut replayed, *index, command);
            if response != (Response::Accepted { changed: true }) {
                found.push(format!("replayed, {command:?} gives {response:?}"));
            }
        }
        if replayed != self.ledger {
            found.push("replaying the log gives another ledger".to_owned());
        }
        self.violations.append(&mut found);
    }
}

/// Whether a sink is fed by the stage: otherwise its watermark stays.
fn is_read(plan: &RunPlan, stage: usize) -> bool {
    let feeds =
        |reader: &StagePlan| reader.shape.inputs.iter().any(|input| input.0 as usize == stage);
    // A sink without slices is complete from the start: nothing completes it.
    let has_slices = |stage: &StagePlan| stage.target.is_some() && stage.shape.slices > 0;
    has_slices(&plan.stages[stage])
        || (stage + 1..plan.stages.len()).any(|reader| {
            feeds(&plan.stages[reader])
                && (plan.stages[reader].target.is_some() || is_read(plan, reader))
        })
}

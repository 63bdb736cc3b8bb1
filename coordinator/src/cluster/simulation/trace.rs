//! What the ledger has accepted, in its order, and what must hold each time: checked against what the targets show
//! at that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use weir_ledger::{
    Command, Ledger, Response, RunFacts, RunId, RunOutcome, RunState, SliceAttempt, SliceState,
    apply,
};
use weir_plan::{StageId, is_later_cursor};
use weir_spec::{NodeName, PipelineName};

use super::Control;
use super::pipelines::Pipeline;
use super::targets::Targets;
use crate::raft::simulation::{By, Seen};

/// A slice of a run's stage.
type SliceKey = (RunId, StageId, u32);

#[derive(Debug)]
pub(super) struct Trace {
    pipelines: Arc<Vec<Pipeline>>,
    control: Control,
    /// Nothing goes wrong in this world.
    is_calm: bool,
    /// As the entries give it, in the order of the log.
    ledger: Ledger,
    /// By index, what the first member that had it has done.
    entries: BTreeMap<u64, (Vec<Command>, Vec<Response>)>,
    /// By member, the last index that its facts hold.
    applied: BTreeMap<String, u64>,
    /// The run of each pipeline that clients wait for: 0, 1, …
    at_work: BTreeMap<String, u64>,
    /// Pipeline and number of each run.
    runs: BTreeMap<RunId, (String, u64)>,
    /// Attempts that have begun and have not been given up.
    open: BTreeMap<SliceKey, u32>,
    accepted: BTreeSet<(SliceKey, u64)>,
    /// With whether others would have to compute them again if their executor was lost.
    finished: BTreeMap<SliceKey, bool>,
    /// Runs that have left the ledger, as they were then.
    pub(super) left: BTreeMap<RunId, RunFacts>,
    pub(super) leaderships: usize,
    pub(super) attempts: usize,
    pub(super) violations: BTreeSet<String>,
    pub(super) story: Vec<String>,
}

type Watermarks = BTreeMap<(PipelineName, NodeName), String>;

impl Trace {
    pub(super) fn new(pipelines: Arc<Vec<Pipeline>>, control: Control, is_calm: bool) -> Self {
        Self {
            pipelines,
            control,
            is_calm,
            ledger: Ledger::default(),
            entries: BTreeMap::new(),
            applied: BTreeMap::new(),
            at_work: BTreeMap::new(),
            runs: BTreeMap::new(),
            open: BTreeMap::new(),
            accepted: BTreeSet::new(),
            finished: BTreeMap::new(),
            left: BTreeMap::new(),
            leaderships: 0,
            attempts: 0,
            violations: BTreeSet::new(),
            story: Vec::new(),
        }
    }

    pub(super) fn begin_run(&mut self, pipeline: &str, number: u64) {
        self.at_work.insert(pipeline.to_owned(), number);
    }

    pub(super) fn run_at_work(&self, pipeline: &str) -> u64 {
        self.at_work.get(pipeline).copied().unwrap_or(0)
    }

    pub(super) fn number_of(&self, run: &str) -> u64 {
        self.runs.get(&RunId(run.to_owned())).map_or(0, |(_, number)| *number)
    }

    pub(super) fn violated(&mut self, what: String) {
        self.story.push(format!("VIOLATION: {what}"));
        self.violations.insert(what);
    }

    /// Whether all of so many members have the facts of all entries.
    pub(super) fn all_have_applied(&self, members: usize) -> bool {
        let last = self.frontier();
        // A snapshot may end with an entry that has no commands.
        self.applied.values().filter(|index| **index >= last).count() == members
    }

    /// The last entry with commands that some member has applied.
    fn frontier(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(0)
    }

    /// A member has come to know more, or has started anew with less.
    pub(super) fn sees(&mut self, seen: &Seen<'_>, at: Duration, targets: &Targets) {
        let folder = seen.member.file_name().unwrap_or_default();
        let member = format!("member {}", folder.display());
        self.applied.insert(member.clone(), seen.index);
        let frontier = self.frontier();
        match seen.by {
            By::Entry { commands, responses } if seen.index > frontier => {
                for (command, response) in commands.iter().zip(responses) {
                    self.apply(seen.index, command, response, at, targets);
                }
                self.entries.insert(seen.index, (commands.to_vec(), responses.to_vec()));
            }
            By::Entry { commands, responses } => {
                let known = self.entries.get(&seen.index);
                let is_same = known.is_some_and(|known| {
                    (known.0.as_slice(), known.1.as_slice()) == (commands, responses)
                });
                if !is_same {
                    self.violated(format!("{member} has another entry at index {}", seen.index));
                }
            }
            By::Start => {}
            By::Snapshot => {
                let at = at.as_millis();
                let index = seen.index;
                self.story.push(format!("{at:6} ms {index:5} {member} has received a snapshot"));
            }
        }
        let differs = self.control == Control::OneAppliesOtherwise && member == "member 2";
        if seen.index >= frontier && (differs || *seen.ledger != self.ledger) {
            self.violated(format!("{member} has other facts at index {}", seen.index));
        }
    }

    fn apply(
        &mut self,
        index: u64,
        command: &Command,
        response: &Response,
        at: Duration,
        targets: &Targets,
    ) {
        let marks = watermarks(&self.ledger);
        let was_finished = self.finished_before(command);
        let before = self.about_to_leave(command);
        let own = apply(&mut self.ledger, index, command);
        if own != *response {
            self.violated(format!("{command:?} gives {response:?} here, and {own:?} there"));
        }
        if *response != (Response::Accepted { changed: true }) {
            return;
        }
        let json = serde_json::to_string(command).expect("commands are JSON");
        self.story.push(format!("{:6} ms {index:5} {json}", at.as_millis()));
        let has_left = |(run, _): &(RunId, _)| self.ledger.run(run).is_none();
        self.left.extend(before.into_iter().filter(has_left));
        self.check(command, was_finished, targets);
        self.check_watermarks(command, &marks, targets);
    }

    fn about_to_leave(&self, command: &Command) -> Vec<(RunId, RunFacts)> {
        let Command::ForgetRuns(forget) = command else { return Vec::new() };
        let known =
            forget.runs.iter().filter_map(|ended| self.ledger.runs.get_key_value(&ended.run));
        known.map(|(run, facts)| (run.clone(), facts.clone())).collect()
    }

    /// What is known of runs, in the ledger or not.
    fn all_runs(&self) -> Ledger {
        let mut ledger = self.ledger.clone();
        ledger.runs.extend(self.left.clone());
        ledger
    }

    /// Of an attempt that begins: whether its slice had been finished.
    fn finished_before(&self, command: &Command) -> Option<bool> {
        let Command::StartAttempt(start) = command else { return None };
        self.finished.get(&key_of(&start.task)).copied()
    }

    fn check(&mut self, command: &Command, was_finished: Option<bool>, targets: &Targets) {
        match command {
            Command::NewEpoch(_) => {
                self.leaderships += 1;
                self.open.clear();
            }
            Command::StartRun(start) => {
                let pipeline = start.pipeline.0.clone();
                let number = self.run_at_work(&pipeline);
                let known = self.runs.values().any(|run| *run == (pipeline.clone(), number));
                if known {
                    self.violated(format!("run {number} of {pipeline} was started twice"));
                }
                self.runs.insert(start.run.clone(), (pipeline, number));
            }
            Command::ResumeRun(resume) => self.open.retain(|(run, ..), _| *run != resume.run),
            Command::StartAttempt(start) => {
                self.attempts += 1;
                let key = key_of(&start.task);
                match was_finished {
                    None => {}
                    // Its only copy may have been lost, or that of what it had read.
                    Some(true) if !self.is_calm => {}
                    Some(_) => self.violated(format!("{key:?} was finished, and runs again")),
                }
                if self.is_calm && start.task.attempt > 1 {
                    self.violated(format!("{key:?} runs again, and nothing has gone wrong"));
                }
                self.finished.remove(&key);
                if let Some(known) = self.open.insert(key, start.task.attempt) {
                    let task = &start.task;
                    self.violated(format!("{task:?} has begun while attempt {known} was at work"));
                }
            }
            Command::FailAttempt(fail) => self.forget_unless_at_work(&key_of(&fail.task)),
            Command::LoseAttempt(lose) => self.forget_unless_at_work(&key_of(&lose.task)),
            Command::StartCopy(copy) if self.is_calm => {
                self.violated(format!("{:?} is done twice, and nothing has gone wrong", copy.task));
            }
            Command::FinishExchange(finish) => {
                let key = key_of(&finish.task);
                if self.finished.insert(key.clone(), self.is_kept(&finish.task.run)).is_some() {
                    self.violated(format!("{key:?} was accepted twice"));
                }
            }
            Command::CommitDone(done) => {
                let key = key_of(&done.task);
                if !self.accepted.insert((key.clone(), done.sequence)) {
                    self.violated(format!("batch {} of {key:?} was accepted twice", done.sequence));
                }
                if self.is_finished(&key) {
                    self.finished.insert(key, false);
                }
            }
            Command::LoseOutputs(lose) => {
                let open: Vec<SliceKey> = self.open.keys().cloned().collect();
                open.iter().for_each(|key| self.forget_unless_at_work(key));
                let is_unfinished = |key: &SliceKey| !self.is_finished(key);
                let reset: Vec<SliceKey> =
                    self.finished.keys().filter(|key| is_unfinished(key)).cloned().collect();
                for key in reset {
                    // They are seen again when they begin again; what is not to be is told then.
                    if self.finished[&key] {
                        self.finished.remove(&key);
                    }
                }
                if self.is_calm || !self.is_kept(&lose.run) {
                    self.violated(format!("outputs are given up that were not lost: {lose:?}"));
                }
            }
            Command::RunCommitIntent(intent) => {
                let shown = self.sink_of(&intent.run, intent.stage).and_then(|sink| {
                    let target = targets.all.get(&(intent.run.0.clone(), sink.to_string()))?;
                    (!target.visible().is_empty()).then_some(sink)
                });
                if let Some(sink) = shown {
                    self.violated(format!("{sink} shows rows before its commit"));
                }
            }
            Command::RunCommitDone(done) => {
                if let Some(sink) = self.sink_of(&done.run, done.stage) {
                    self.check_sink(&done.run, sink.as_str(), targets, "after its commit");
                }
            }
            Command::FinishRun(finish) => match &finish.outcome {
                RunOutcome::Succeeded => self.check_run(&finish.run, targets),
                RunOutcome::Failed { error } if error == "cancelled" => {}
                outcome => self.violated(format!("{} has ended: {outcome:?}", finish.run)),
            },
            _ => {}
        }
    }

    /// A copy may go on.
    fn forget_unless_at_work(&mut self, key: &SliceKey) {
        let (run, stage, slice) = key;
        let slice = self.ledger.run(run).and_then(|run| run.slice(*stage, *slice));
        let is_at_work = slice.is_some_and(|slice| {
            matches!(slice.state, SliceState::Running { .. } | SliceState::Copied { .. })
        });
        if !is_at_work {
            self.open.remove(key);
        }
    }

    fn is_kept(&self, run: &RunId) -> bool {
        self.pipeline_of(run).is_some_and(|(pipeline, _)| pipeline.is_kept)
    }

    fn is_finished(&self, (run, stage, slice): &SliceKey) -> bool {
        let slice = self.ledger.run(run).and_then(|run| run.slice(*stage, *slice));
        slice.is_some_and(|slice| slice.is_finished())
    }

    fn pipeline_of(&self, run: &RunId) -> Option<(&Pipeline, u64)> {
        let (name, number) = self.runs.get(run)?;
        Some((self.pipelines.iter().find(|pipeline| pipeline.name == *name)?, *number))
    }

    fn sink_of(&self, run: &RunId, stage: StageId) -> Option<NodeName> {
        let (node, _) = self.ledger.run(run)?.stage(stage)?.sink()?;
        Some(node.clone())
    }

    /// They only move on, and only once every sink that is fed by their source shows all rows.
    fn check_watermarks(&mut self, command: &Command, before: &Watermarks, targets: &Targets) {
        for (key, mark) in watermarks(&self.ledger) {
            let known = before.get(&key);
            if known == Some(&mark) {
                continue;
            }
            if known.is_some_and(|known| !is_later_cursor(&mark, known)) {
                self.violated(format!("the watermark {key:?} has gone back to {mark}"));
            }
            let Some(run) = run_of(command) else { continue };
            let Some((pipeline, _)) = self.pipeline_of(run) else { continue };
            let fed: Vec<String> = (pipeline.sinks.keys())
                .filter(|sink| pipeline.is_fed_by(sink, key.1.as_str()))
                .cloned()
                .collect();
            let when = format!("and the watermark of {} moves", key.1);
            for sink in fed {
                self.check_sink(run, &sink, targets, &when);
            }
        }
    }

    fn check_sink(&mut self, run: &RunId, sink: &str, targets: &Targets, when: &str) {
        let Some((pipeline, number)) = self.pipeline_of(run) else { return };
        let mut missing = pipeline.rows_of(sink, number);
        let mut too_many = Vec::new();
        let target = targets.all.get(&(run.0.clone(), sink.to_owned()));
        for row in target.iter().flat_map(|target| target.visible()).flat_map(|(_, rows)| rows) {
            match missing.get_mut(row) {
                Some(times) if *times > 0 => *times -= 1,
                _ => too_many.push(*row),
            }
        }
        missing.retain(|_, times| *times > 0);
        if missing.is_empty() && too_many.is_empty() {
            return;
        }
        let missing: Vec<_> = missing.into_keys().collect();
        self.violated(format!(
            "{sink} of {run} lacks {} rows {when} (such as {:?}), and has {} too many (such as {:?})",
            missing.len(),
            missing.first(),
            too_many.len(),
            too_many.first()
        ));
    }

    fn check_run(&mut self, run: &RunId, targets: &Targets) {
        let Some((pipeline, _)) = self.pipeline_of(run) else { return };
        let sinks: Vec<String> = pipeline.sinks.keys().cloned().collect();
        for sink in sinks {
            self.check_sink(run, &sink, targets, "at the end of its run");
        }
        let audit = self.all_runs().audit(run).unwrap_or_default();
        for finding in audit.findings {
            self.violated(format!("{run}: {finding}"));
        }
    }

    /// Once nobody is at work any more, zombies included.
    ///
    /// `kept`: what the storage has of runs that have left.
    pub(super) fn check_end(
        &mut self,
        targets: &Targets,
        kept: impl Fn(&RunId) -> Option<RunFacts>,
    ) {
        for (run, facts) in self.left.clone() {
            if kept(&run).as_ref() != Some(&facts) {
                self.violated(format!("{run} has left, and the storage says something else of it"));
            }
        }
        let runs: Vec<RunId> = self.runs.keys().cloned().collect();
        for run in runs {
            let state = self.all_runs().run(&run).map(|facts| facts.state.clone());
            if !matches!(state, Some(RunState::Succeeded { .. })) {
                self.violated(format!("{run} is {state:?} at the end"));
            }
            self.check_run(&run, targets);
        }
        let pipelines = Arc::clone(&self.pipelines);
        for pipeline in pipelines.iter() {
            for (node, source) in
                pipeline.sources.iter().filter(|(_, source)| source.is_incremental)
            {
                let marks = watermarks(&self.ledger);
                let key = (PipelineName(pipeline.name.clone()), NodeName::new(node.as_str()));
                let expected = source.last_cursor(pipeline.runs - 1).to_string();
                if marks.get(&key) != Some(&expected) {
                    let found = marks.get(&key);
                    self.violated(format!("the watermark of {node} is {found:?} at the end"));
                }
            }
        }
    }
}

fn watermarks(ledger: &Ledger) -> Watermarks {
    let pipelines = ledger.pipelines.iter();
    pipelines
        .flat_map(|(name, facts)| {
            let marks = facts.watermarks.iter();
            marks.map(|(source, mark)| ((name.clone(), source.clone()), mark.clone()))
        })
        .collect()
}

fn key_of(task: &SliceAttempt) -> SliceKey {
    (task.run.clone(), task.stage, task.slice)
}

/// Commands that may complete a sink.
fn run_of(command: &Command) -> Option<&RunId> {
    match command {
        Command::CommitDone(done) => Some(&done.task.run),
        Command::RunCommitDone(done) => Some(&done.run),
        Command::FinishExchange(finish) => Some(&finish.task.run),
        Command::FinishRun(finish) => Some(&finish.run),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use chrono::DateTime;
    use weir_ledger::{CleanUpDone, EndedRun, FinishRun, ForgetRuns, NewEpoch, StartRun};

    use super::*;

    const LAST: u64 = 3;

    fn entry() -> Command {
        Command::NewEpoch(NewEpoch {
            ledger_id: "ledger".into(),
            boot_id: "boot".into(),
            pid: 1,
            host: "member-1".into(),
            at: DateTime::UNIX_EPOCH,
        })
    }

    struct Members {
        trace: Trace,
        /// With the one entry.
        facts: Ledger,
    }

    impl Members {
        /// Of three members the first two have applied the entry.
        fn new() -> Self {
            let trace = Trace::new(Arc::default(), Control::Nothing, false);
            let mut facts = Ledger::default();
            let command = entry();
            let response = apply(&mut facts, LAST, &command);
            let mut members = Self { trace, facts };
            for member in ["1", "2", "3"] {
                members.see(member, 0, By::Start, &Ledger::default());
            }
            let (commands, responses) = ([command], [response]);
            for member in ["1", "2"] {
                let by = By::Entry { commands: &commands, responses: &responses };
                let facts = members.facts.clone();
                members.see(member, LAST, by, &facts);
            }
            assert!(!members.trace.all_have_applied(3));
            members
        }

        fn see(&mut self, member: &str, index: u64, by: By<'_>, ledger: &Ledger) {
            let seen = Seen { member: Path::new(member), index, by, ledger };
            self.trace.sees(&seen, Duration::ZERO, &Targets::default());
        }
    }

    #[test]
    fn who_has_received_a_snapshot_of_everything_has_everything() {
        let mut members = Members::new();
        let facts = members.facts.clone();
        members.see("3", LAST, By::Snapshot, &facts);
        assert!(members.trace.all_have_applied(3));
        assert!(members.trace.violations.is_empty());
    }

    #[test]
    fn a_snapshot_with_other_facts_is_noticed() {
        let mut members = Members::new();
        members.see("3", LAST, By::Snapshot, &Ledger::default());
        let violations = &members.trace.violations;
        assert!(violations.contains("member 3 has other facts at index 3"), "{violations:?}");
    }

    #[test]
    fn who_has_started_again_has_what_its_snapshot_holds() {
        let mut members = Members::new();
        let facts = members.facts.clone();
        members.see("3", LAST, By::Snapshot, &facts);
        members.see("2", 0, By::Start, &Ledger::default());
        assert!(!members.trace.all_have_applied(3));
        members.see("2", LAST, By::Start, &facts);
        assert!(members.trace.all_have_applied(3));
    }

    #[test]
    fn a_run_that_has_left_and_of_which_the_storage_says_something_else_is_noticed() {
        let (epoch, run, at) = (1, RunId("run".into()), DateTime::UNIX_EPOCH);
        let start = StartRun {
            epoch,
            run: run.clone(),
            pipeline: PipelineName("orders".into()),
            spec_hash: "spec".into(),
            params: BTreeMap::new(),
            window: None,
            version: None,
            request_id: None,
            backfill: None,
            replay_of: None,
            at,
        };
        let outcome = RunOutcome::Failed { error: "cancelled".into() };
        let ended = EndedRun { run: run.clone(), sessions: 1 };
        let commands = [
            entry(),
            Command::StartRun(start),
            Command::FinishRun(FinishRun { epoch, run: run.clone(), outcome, at }),
            Command::CleanUpDone(CleanUpDone { epoch, run: run.clone() }),
            Command::ForgetRuns(ForgetRuns { epoch, runs: vec![ended] }),
        ];
        let mut trace = Trace::new(Arc::default(), Control::Nothing, false);
        let mut facts = Ledger::default();
        for (command, index) in commands.into_iter().zip(1..) {
            let response = apply(&mut facts, index, &command);
            let (commands, responses) = ([command], [response]);
            let by = By::Entry { commands: &commands, responses: &responses };
            let seen = Seen { member: Path::new("1"), index, by, ledger: &facts };
            trace.sees(&seen, Duration::ZERO, &Targets::default());
        }
        let left = trace.left[&run].clone();
        let is_noticed =
            |trace: &Trace| trace.violations.iter().any(|what| what.contains("run has left"));
        trace.check_end(&Targets::default(), |_| Some(left.clone()));
        assert!(!is_noticed(&trace), "{:?}", trace.violations);
        trace.check_end(&Targets::default(), |_| None);
        assert!(is_noticed(&trace));
    }
}

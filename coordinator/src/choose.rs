//! Which run a request means: a new one, or one that is not finished.

use chrono::{DateTime, Utc};
use weir_ledger::{Ledger, RunFacts, RunId, RunState, WindowOf};
use weir_spec::PipelineName;

use crate::EngineError;
use crate::loaded_since::loaded_by;

/// What a request comes down to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Start a run; first give up the one named here.
    Start {
        abandon: Option<RunId>,
    },
    Resume(RunId),
}

/// What is asked for, as far as it decides about resuming.
#[derive(Clone)]
pub(crate) struct Wanted<'request> {
    pub(crate) pipeline: &'request PipelineName,
    pub(crate) spec_hash: &'request str,
    pub(crate) params: &'request std::collections::BTreeMap<String, serde_json::Value>,
    pub(crate) window: Option<(DateTime<Utc>, DateTime<Utc>)>,
    pub(crate) fresh: bool,
    pub(crate) resume: Option<&'request str>,
    /// The run whose dead letters the unfinished run replays, if it does.
    pub(crate) replay_of: Option<&'request str>,
}

/// An unfinished run goes on if it is the same pipeline with the same values; otherwise the caller
/// must say which of the two is meant.
pub(crate) fn choose(ledger: &Ledger, wanted: &Wanted<'_>) -> Result<Choice, EngineError> {
    if let Some(id) = wanted.resume {
        return resume_this(ledger, id);
    }
    let Some((id, run)) = unfinished_run(ledger, wanted.pipeline) else {
        return Ok(Choice::Start { abandon: None });
    };
    if wanted.fresh {
        return Ok(Choice::Start { abandon: Some(id.clone()) });
    }
    if run.spec_hash != wanted.spec_hash
        && let Some(of) = wanted.replay_of
    {
        return Err(EngineError::Refused(format!(
            "run {id}, which replays dead letters of run {of}, is not finished. Either finish it: `weir \
             retry {id}`. Or give it up: `weir run --fresh` (rows that it has committed stay in their \
             targets)"
        )));
    }
    let changed = if run.spec_hash != wanted.spec_hash {
        "the pipeline has changed"
    } else if run.params != *wanted.params {
        "its parameters were others"
    } else if run.window != wanted.window {
        "its window was another"
    } else if run.state != RunState::Running
        && let Some(later) = loaded_by(ledger, id, run)
    {
        return Err(EngineError::Refused(format!(
            "run {id} of pipeline `{}` is not finished, and {later} loaded rows since that it would load \
             a second time. Give it up and start anew: `weir run --fresh`",
            wanted.pipeline
        )));
    } else {
        return Ok(Choice::Resume(id.clone()));
    };
    Err(EngineError::Refused(format!(
        "run {id} of pipeline `{}` is not finished, and {changed} since it started. Either finish it \
         as it was started: `weir retry {id}`. Or give it up and start anew: `weir run --fresh` (rows \
         that it has committed stay in their targets)",
        wanted.pipeline
    )))
}

/// The run that is going on or was interrupted; else one that has failed half-way. By its state and not
/// by its age: an old run may have been taken up last.
pub(crate) fn unfinished_run<'ledger>(
    ledger: &'ledger Ledger,
    pipeline: &PipelineName,
) -> Option<(&'ledger RunId, &'ledger RunFacts)> {
    let active = ledger.pipelines.get(pipeline)?.active_run.as_ref();
    if let Some(active) = active {
        return ledger.runs.get_key_value(active);
    }
    // A run that failed with everything committed (too many rejected rows) has nothing to go on with.
    (ledger.runs.iter())
        .filter(|(_, run)| run.pipeline == *pipeline)
        // Those of a backfill's windows are its own affair.
        .filter(|(_, run)| matches!(run.state, RunState::Failed { .. }) && run.backfill.is_none())
        .filter(|(_, run)| run.may_have_committed() && !run.is_complete())
        .max_by_key(|(_, run)| run.order())
}

/// Whether a run may be taken up again.
pub(crate) fn resume_this(ledger: &Ledger, id: &str) -> Result<Choice, EngineError> {
    let (id, run) = find_run(ledger, id)?;
    if let Some(WindowOf { backfill, window }) = &run.backfill {
        return Err(EngineError::Invalid(format!(
            "run {id} loads window {window} of backfill {backfill}, which takes it up itself: `weir \
             backfill retry {backfill} --window {window}`"
        )));
    }
    match &run.state {
        RunState::Queued => Err(EngineError::Refused(format!(
            "run {id} waits for another run of its pipeline to end, and then begins by itself"
        ))),
        RunState::Running => Ok(Choice::Resume(id.clone())),
        RunState::Failed { .. } => match loaded_by(ledger, id, run) {
            None => Ok(Choice::Resume(id.clone())),
            Some(later) => Err(EngineError::Refused(format!(
                "run {id} cannot be taken up again: {later} loaded rows since that it would load a second \
                 time. What is still missing is loaded by a new run: `weir run`"
            ))),
        },
        RunState::Succeeded { .. } => {
            Err(EngineError::Refused(format!("run {id} has succeeded: nothing is left to be done")))
        }
        RunState::Abandoned { .. } => Err(EngineError::Refused(format!(
            "run {id} was given up for a fresh one: start a new run with `weir run`"
        ))),
        RunState::Skipped { beside, .. } => Err(EngineError::Refused(format!(
            "run {id} was skipped, because run {beside} of the pipeline went on: submit a new one"
        ))),
    }
}

/// A run by its id or a unique beginning of it.
pub(crate) fn find_run<'ledger>(
    ledger: &'ledger Ledger,
    id: &str,
) -> Result<(&'ledger RunId, &'ledger RunFacts), EngineError> {
    if id.is_empty() {
        return Err(EngineError::Invalid("the id of a run is empty".to_owned()));
    }
    let mut found = ledger.runs.iter().filter(|(known, _)| known.0.starts_with(id));
    match (ledger.runs.get_key_value(&RunId(id.to_owned())), found.next(), found.next()) {
        (Some(exact), _, _) => Ok(exact),
        (None, Some(one), None) => Ok(one),
        (None, Some((one, _)), Some((other, _))) => Err(EngineError::Invalid(format!(
            "`{id}` is the beginning of several runs, {one} and {other} among them"
        ))),
        (None, None, _) => Err(EngineError::NotFound(format!("run {id}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use weir_ledger::{
        BackfillFacts, BackfillId, BackfillState, Command, FinishRun, Intervals, NewEpoch,
        NodeRole, PipelineFacts, PlanRun, Response, ResumeRun, RunOutcome, SliceFacts, SliceState,
        StageFacts, StartRun, Totals, WindowRange, apply,
    };
    use weir_spec::CommitMode;

    use super::*;

    fn facts(state: RunState, committed: bool) -> RunFacts {
        let slice = SliceFacts {
            next_sequence: u64::from(committed),
            state: SliceState::Pending,
            ..SliceFacts::default()
        };
        RunFacts {
            pipeline: PipelineName("orders".into()),
            spec_hash: "spec".into(),
            params: BTreeMap::new(),
            window: None,
            version: None,
            request_id: None,
            backfill: None,
            replay_of: None,
            started_at: DateTime::UNIX_EPOCH,
            number: 0,
            state,
            sessions: 1,
            graph_hash: Some("graph".into()),
            engine_version: None,
            stages: vec![StageFacts {
                shape: weir_ledger::StageShape {
                    name: "kept".into(),
                    slices: 1,
                    streaming: true,
                    inputs: vec![],
                    nodes: vec![],
                    output: weir_ledger::StageOutputShape::Exchange,
                },
                slices: vec![slice].into(),
                finished_slices: 0,
                run_commit: weir_ledger::RunCommit::Open,
            }],
            prepared: BTreeMap::new(),
            cleaned_up: false,
        }
    }

    fn failed() -> RunState {
        RunState::Failed { at: DateTime::UNIX_EPOCH, error: "no".into() }
    }

    fn ledger(state: RunState, committed: bool) -> Ledger {
        let active = state == RunState::Running;
        let mut ledger = Ledger::default();
        ledger.runs.insert(RunId("20260101-a".into()), facts(state, committed));
        ledger.pipelines.insert(
            PipelineName("orders".into()),
            PipelineFacts {
                active_run: active.then(|| RunId("20260101-a".into())),
                ..PipelineFacts::default()
            },
        );
        ledger
    }

    fn choose_with(ledger: &Ledger, spec_hash: &str, fresh: bool) -> Result<Choice, String> {
        let wanted = Wanted {
            pipeline: &PipelineName("orders".into()),
            spec_hash,
            params: &BTreeMap::new(),
            window: None,
            fresh,
            resume: None,
            replay_of: None,
        };
        choose(ledger, &wanted).map_err(|error| error.to_string())
    }

    #[test]
    fn an_interrupted_run_goes_on_when_nothing_has_changed() {
        let ledger = ledger(RunState::Running, false);
        let resumed = Choice::Resume(RunId("20260101-a".into()));
        assert_eq!(choose_with(&ledger, "spec", false), Ok(resumed));
    }

    #[test]
    fn a_changed_pipeline_must_say_what_becomes_of_the_unfinished_run() {
        let ledger = ledger(RunState::Running, false);
        let error = choose_with(&ledger, "other", false).expect_err("it has changed");
        assert!(error.contains("weir retry 20260101-a") && error.contains("--fresh"), "{error}");
        let started = Choice::Start { abandon: Some(RunId("20260101-a".into())) };
        assert_eq!(choose_with(&ledger, "other", true), Ok(started));
    }

    #[test]
    fn an_unfinished_replay_is_named_as_one() {
        let ledger = ledger(RunState::Running, true);
        let wanted = Wanted {
            pipeline: &PipelineName("orders".into()),
            spec_hash: "other",
            params: &BTreeMap::new(),
            window: None,
            fresh: false,
            resume: None,
            replay_of: Some("20250101-z"),
        };
        let error = choose(&ledger, &wanted).expect_err("it is not finished").to_string();
        assert!(error.contains("dead letters of run 20250101-z"), "{error}");
        assert!(error.contains("weir retry 20260101-a"), "{error}");
    }

    #[test]
    fn a_failed_run_goes_on_only_when_it_had_committed_something() {
        let resumed = Choice::Resume(RunId("20260101-a".into()));
        assert_eq!(choose_with(&ledger(failed(), true), "spec", false), Ok(resumed));
        let started = Choice::Start { abandon: None };
        assert_eq!(choose_with(&ledger(failed(), false), "spec", false), Ok(started.clone()));
        let succeeded = RunState::Succeeded { at: DateTime::UNIX_EPOCH };
        assert_eq!(choose_with(&ledger(succeeded, true), "spec", false), Ok(started));
    }

    #[test]
    fn a_run_is_found_by_a_unique_beginning_of_its_id() {
        let mut ledger = ledger(failed(), true);
        assert!(find_run(&ledger, "2026").is_ok());
        ledger.runs.insert(RunId("20260102-b".into()), facts(failed(), true));
        assert!(matches!(find_run(&ledger, "2026"), Err(EngineError::Invalid(_))));
        assert!(find_run(&ledger, "20260102").is_ok());
        assert!(matches!(find_run(&ledger, "x"), Err(EngineError::NotFound(_))));
        // A shell's variable that is not set: no beginning of any run.
        ledger.runs.pop_last();
        assert_eq!(ledger.runs.len(), 1);
        assert!(matches!(find_run(&ledger, ""), Err(EngineError::Invalid(_))));
    }

    /// A run that feeds a sink, and may read incrementally.
    fn feeding(state: RunState, committed: bool, incremental: bool, number: u64) -> RunFacts {
        let mut facts = facts(state, committed);
        facts.number = number;
        let shape = &mut facts.stages[0].shape;
        shape.output = weir_ledger::StageOutputShape::Sink {
            node: weir_spec::NodeName::new("out"),
            commit: CommitMode::Batch,
        };
        shape.nodes = vec![weir_ledger::NodeShape {
            name: weir_spec::NodeName::new("in"),
            role: NodeRole::Source { incremental },
        }];
        facts
    }

    #[test]
    fn a_later_run_is_a_later_one_though_the_clock_was_set_back() {
        let at = |second| DateTime::from_timestamp(second, 0).expect("a time");
        let mut ledger = Ledger::default();
        let ahead = feeding(failed(), true, true, 1);
        ledger.runs.insert(RunId("ahead".into()), RunFacts { started_at: at(3_600), ..ahead });
        // It is not taken up behind one that has loaded its rows since.
        let since = feeding(RunState::Running, true, true, 2);
        ledger.runs.insert(RunId("since".into()), RunFacts { started_at: at(9), ..since });
        assert!(resume_this(&ledger, "ahead").is_err());
    }

    /// Of a ledger that an earlier version has written.
    #[test]
    fn runs_without_numbers_are_ordered_by_their_times_and_come_before_those_with_them() {
        let at = |second| DateTime::from_timestamp(second, 0).expect("a time");
        let run = |number, second| RunFacts {
            started_at: at(second),
            ..feeding(failed(), true, true, number)
        };
        assert!(run(0, 9).order() > run(0, 8).order());
        assert!(run(1, 8).order() > run(0, 9).order());
    }

    #[test]
    fn an_old_run_is_not_taken_up_once_a_later_one_has_loaded_its_rows() {
        let succeeded = || RunState::Succeeded { at: DateTime::UNIX_EPOCH };
        let other = BTreeMap::from([("country".to_owned(), serde_json::json!("FR"))]);
        for (incremental, later_committed, params, is_refused) in [
            (true, true, BTreeMap::new(), true),
            (true, true, other.clone(), true),
            (true, false, BTreeMap::new(), false),
            (false, true, BTreeMap::new(), true),
            (false, true, other, false),
            (false, false, BTreeMap::new(), false),
        ] {
            let mut ledger = Ledger::default();
            let old = feeding(failed(), false, incremental, 1);
            let later = feeding(succeeded(), later_committed, incremental, 2);
            ledger.runs.insert(RunId("a".into()), old);
            ledger.runs.insert(RunId("b".into()), RunFacts { params, ..later });
            let choice = resume_this(&ledger, "a");
            assert_eq!(choice.is_err(), is_refused, "{incremental} {later_committed}: {choice:?}");
            if let Err(error) = choice {
                assert!(matches!(error, EngineError::Refused(_)), "{error}");
                assert!(error.to_string().contains("run b"), "{error}");
            }
        }
        // An earlier run does no harm.
        let mut ledger = Ledger::default();
        ledger.runs.insert(RunId("a".into()), feeding(failed(), true, true, 2));
        ledger.runs.insert(RunId("b".into()), feeding(succeeded(), true, true, 1));
        assert!(resume_this(&ledger, "a").is_ok());
    }

    /// What has become of runs of one pipeline with an incremental source, one after the other.
    struct Book(Ledger);

    impl Book {
        fn new() -> Self {
            let mut book = Self(Ledger::default());
            book.accept(Command::NewEpoch(NewEpoch {
                ledger_id: "ledger".into(),
                boot_id: "boot".into(),
                pid: 1,
                host: "here".into(),
                at: DateTime::UNIX_EPOCH,
            }));
            book
        }

        fn accept(&mut self, command: Command) {
            let index = self.0.last_index + 1;
            let response = apply(&mut self.0, index, &command);
            assert_eq!(response, Response::Accepted { changed: true }, "{command:?}");
        }

        fn start(&mut self, run: &str) {
            let facts = feeding(RunState::Running, false, true, 0);
            self.accept(Command::StartRun(StartRun {
                epoch: 1,
                run: RunId(run.into()),
                pipeline: facts.pipeline,
                spec_hash: facts.spec_hash,
                params: facts.params,
                window: None,
                version: None,
                request_id: None,
                backfill: None,
                replay_of: None,
                at: DateTime::UNIX_EPOCH,
            }));
        }

        fn plan(&mut self, run: &str) {
            let stages = feeding(RunState::Running, false, true, 0).stages;
            self.accept(Command::PlanRun(PlanRun {
                epoch: 1,
                run: RunId(run.into()),
                graph_hash: "graph".into(),
                engine_version: "weir".into(),
                stages: stages.into_iter().map(|stage| stage.shape).collect(),
            }));
        }

        fn resume(&mut self, run: &str) {
            let (run, at) = (RunId(run.into()), DateTime::UNIX_EPOCH);
            self.accept(Command::ResumeRun(ResumeRun { epoch: 1, run, request_id: None, at }));
        }

        /// It has shown rows before.
        fn fail_half_way(&mut self, run: &str) {
            let facts = self.0.runs.get_mut(&RunId(run.into())).expect("it has started");
            facts.stages = feeding(RunState::Running, true, true, 0).stages;
            self.fail(run);
        }

        fn fail(&mut self, run: &str) {
            let (run, at) = (RunId(run.into()), DateTime::UNIX_EPOCH);
            let outcome = RunOutcome::Failed { error: "no".into() };
            self.accept(Command::FinishRun(FinishRun { epoch: 1, run, outcome, at }));
        }
    }

    #[test]
    fn a_run_is_not_taken_up_once_one_that_started_before_it_has_loaded_its_rows() {
        for first_is_planned in [false, true] {
            let mut book = Book::new();
            book.start("y");
            if first_is_planned {
                book.plan("y");
            }
            book.fail("y");
            book.start("w");
            book.plan("w");
            book.fail("w");
            assert!(resume_this(&book.0, "y").is_ok(), "nobody has loaded anything yet");
            book.resume("y");
            if !first_is_planned {
                book.plan("y");
            }
            book.fail_half_way("y");
            let refused = resume_this(&book.0, "w");
            assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
            assert!(resume_this(&book.0, "y").is_ok(), "it goes on with its own");
        }
    }

    /// It had computed something, so that the same request would go on with it.
    #[test]
    fn a_request_does_not_go_on_with_a_run_whose_rows_another_one_has_loaded_since() {
        let mut book = Book::new();
        for run in ["y", "w"] {
            book.start(run);
            book.plan(run);
            if run == "w" {
                let facts = book.0.runs.get_mut(&RunId("w".into())).expect("it has started");
                facts.stages[0].shape.slices = 2;
                facts.stages[0].finished_slices = 1;
            }
            book.fail(run);
        }
        let resumed = Ok(Choice::Resume(RunId("w".into())));
        assert_eq!(choose_with(&book.0, "spec", false), resumed);
        book.resume("y");
        book.fail_half_way("y");
        book.0.runs.get_mut(&RunId("y".into())).expect("it has started").state =
            RunState::Succeeded { at: DateTime::UNIX_EPOCH };
        let refused = choose_with(&book.0, "spec", false).expect_err("its rows are loaded");
        assert!(
            refused.contains("run y has loaded rows") && refused.contains("--fresh"),
            "{refused}"
        );
        let fresh = Choice::Start { abandon: Some(RunId("w".into())) };
        assert_eq!(choose_with(&book.0, "spec", true), Ok(fresh));
    }

    #[test]
    fn a_run_without_a_plan_is_not_taken_up_beside_what_others_have_loaded_half_way() {
        let mut book = Book::new();
        book.start("y");
        book.fail("y");
        book.start("w");
        book.plan("w");
        book.fail_half_way("w");
        let other = BTreeMap::from([("country".to_owned(), serde_json::json!("FR"))]);
        book.0.runs.get_mut(&RunId("y".into())).expect("it has started").params = other;
        assert!(resume_this(&book.0, "y").is_err());
    }

    #[test]
    fn an_old_run_is_not_taken_up_once_a_later_one_that_loaded_rows_has_left_the_ledger() {
        let mut ledger = Ledger::default();
        ledger.runs.insert(RunId("a".into()), feeding(failed(), false, true, 2));
        let pipeline = PipelineName("orders".into());
        for (left, is_refused) in [(None, false), (Some(1), false), (Some(3), true)] {
            let has_left = left.map(|number| (number, DateTime::UNIX_EPOCH));
            let facts = PipelineFacts { has_left, ..PipelineFacts::default() };
            ledger.pipelines.insert(pipeline.clone(), facts);
            let choice = resume_this(&ledger, "a");
            assert_eq!(choice.is_err(), is_refused, "{left:?}: {choice:?}");
        }
    }

    #[test]
    fn a_run_is_not_taken_up_beside_a_backfill_that_may_have_loaded_its_window_since() {
        let at = |day| DateTime::UNIX_EPOCH + chrono::TimeDelta::days(day);
        let mut ledger = Ledger::default();
        let mut run = feeding(failed(), false, false, 2);
        run.started_at = at(100);
        run.window = Some((at(5), at(6)));
        let pipeline = run.pipeline.clone();
        let params = run.params.clone();
        ledger.runs.insert(RunId("a".into()), run);
        let intervals = |text| serde_json::from_str::<Intervals>(text).expect("intervals");
        let range = |from, to| WindowRange {
            from: at(from),
            to: at(to),
            step: "1d".into(),
            timezone: "UTC".into(),
            count: 9,
        };
        for (range, finished, last_run_number, is_refused) in [
            (range(1, 10), "[[4, 5]]", 3, true),
            (range(1, 10), "[[0, 1], [2, 9]]", 2, true),
            (range(1, 10), "[[0, 9]]", 0, true),
            (range(1, 10), "[[0, 9]]", 1, false),
            (range(1, 10), "[]", 0, false),
            (range(1, 10), "[[0, 4], [5, 9]]", 3, false),
            (range(6, 10), "[[0, 4]]", 3, false),
            (range(1, 5), "[[0, 4]]", 3, false),
        ] {
            let backfill = BackfillFacts {
                pipeline: pipeline.clone(),
                spec_hash: "spec".into(),
                params: params.clone(),
                version: None,
                range,
                parallel: 1,
                priority: 0,
                request_id: None,
                created_at: at(90),
                state: BackfillState::Running,
                finished: intervals(finished),
                failed: BTreeMap::new(),
                running: BTreeSet::new(),
                again: BTreeMap::new(),
                starts: BTreeMap::new(),
                totals: Totals::default(),
                last_run_number,
            };
            ledger.backfills.insert(BackfillId("b".into()), backfill.clone());
            let choice = resume_this(&ledger, "a");
            assert_eq!(choice.is_err(), is_refused, "{backfill:?}: {choice:?}");
            if let Err(error) = choice {
                assert!(error.to_string().contains("backfill b"), "{error}");
            }
        }
    }

    #[test]
    fn a_run_is_not_taken_up_beside_a_windows_run_that_shows_rows_of_a_part_of_its_window() {
        let at = |day| DateTime::UNIX_EPOCH + chrono::TimeDelta::days(day);
        let mut run = feeding(failed(), false, false, 2);
        run.window = Some((at(5), at(8)));
        let of = || Some(WindowOf { backfill: BackfillId("b".into()), window: 0 });
        for (backfill, window, is_refused) in [
            (of(), (at(7), at(9)), true),
            (of(), (at(4), at(6)), true),
            (of(), (at(8), at(9)), false),
            (of(), (at(4), at(5)), false),
            (None, (at(7), at(9)), false),
            (None, (at(5), at(8)), true),
        ] {
            let window = Some(window);
            let other = RunFacts { backfill, window, ..feeding(RunState::Running, true, false, 3) };
            let mut ledger = Ledger::default();
            ledger.runs.insert(RunId("a".into()), run.clone());
            ledger.runs.insert(RunId("o".into()), other.clone());
            let choice = resume_this(&ledger, "a");
            assert_eq!(choice.is_err(), is_refused, "{other:?}: {choice:?}");
        }
    }

    #[test]
    fn a_run_that_failed_half_way_goes_on_whatever_the_clock_says() {
        let mut ledger = ledger(failed(), true);
        let succeeded = RunState::Succeeded { at: DateTime::UNIX_EPOCH };
        ledger.runs.insert(RunId("20260101-z".into()), feeding(succeeded, true, false, 100));
        // It was taken up behind that one, though it had begun before.
        ledger.runs.get_mut(&RunId("20260101-a".into())).expect("it is there").number = 101;
        let resumed = Choice::Resume(RunId("20260101-a".into()));
        assert_eq!(choose_with(&ledger, "spec", false), Ok(resumed));
    }
}

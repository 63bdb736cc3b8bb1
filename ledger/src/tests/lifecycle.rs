use weir_plan::StageId;
use weir_spec::NodeName;

use super::support::*;
use crate::*;

#[test]
fn a_run_succeeds_only_when_every_sink_is_visible() {
    let run = run_id(1);
    let mut book = Book::planned();
    book.exchange(5, "2024-01-02");
    for slice in 0..2 {
        let task = task(1, &run, 1, slice, 1);
        book.accept(&start(&task));
        book.accept(&intent(&task, 0, 2 + u64::from(slice), true));
        book.accept(&done(&task, 0));
    }
    let shown = task(1, &run, 2, 0, 1);
    book.accept(&start(&shown));
    book.accept(&intent(&shown, 0, 5, true));
    book.accept(&done(&shown, 0));
    let succeed = finish_run(1, &run, RunOutcome::Succeeded);
    assert_eq!(book.reject(&succeed), Rejection::RunUnfinished(run.clone()));

    let stage = StageId(2);
    book.accept(&Command::RunCommitIntent(RunCommitIntent { epoch: 1, run: run.clone(), stage }));
    assert_eq!(book.watermark(), None, "a sink fed by the source is not visible yet");
    book.accept(&Command::RunCommitDone(RunCommitDone { epoch: 1, run: run.clone(), stage }));
    assert_eq!(book.watermark(), Some("2024-01-02"), "advanced by the entry of the last sink");
    book.accept(&succeed);

    let audit = book.ledger.audit(&run).expect("the run is known");
    assert_eq!(audit.findings, Vec::<String>::new());
    assert_eq!(book.ledger.pipelines[&pipeline()].active_run, None);
    assert!(matches!(book.reject(&start(&shown)), Rejection::RunState { .. }));
}

#[test]
fn an_older_epoch_may_write_nothing() {
    let mut book = Book::planned();
    book.exchange(5, "1");
    let old = task(1, &run_id(1), 1, 0, 1);
    book.accept(&start(&old));
    book.accept(&intent(&old, 0, 2, false));
    book.accept(&new_epoch());
    let current = book.ledger.current_epoch();
    for command in [done(&old, 0), lost(&old, 0), fail(&old), start(&old)] {
        assert_eq!(book.reject(&command), Rejection::OldEpoch { given: 1, current });
    }
}

#[test]
fn a_new_epoch_resolves_the_intent_of_the_old_one_before_the_next_attempt() {
    let run = run_id(1);
    for landed in [true, false] {
        let mut book = Book::planned();
        book.exchange(5, "1");
        let old = task(1, &run, 1, 0, 1);
        book.accept(&start(&old));
        book.accept(&intent(&old, 0, 2, false));
        book.accept(&new_epoch());
        let epoch = book.ledger.current_epoch();
        let next = task(epoch, &run, 1, 0, 2);
        assert!(matches!(book.reject(&start(&next)), Rejection::IntentOpen { sequence: 0, .. }));
        let recovered = task(epoch, &run, 1, 0, 1);
        book.accept(&if landed { done(&recovered, 0) } else { lost(&recovered, 0) });
        book.accept(&start(&next));
        assert_eq!(book.slice(1, 0).start().next_sequence, u64::from(landed));
        assert_eq!(book.slice(1, 0).start().position.is_some(), landed);
    }
}

#[test]
fn a_batch_that_a_running_attempt_has_intended_cannot_be_declared_lost() {
    let mut book = Book::planned();
    book.exchange(5, "1");
    let running = task(1, &run_id(1), 1, 0, 1);
    book.accept(&start(&running));
    book.accept(&intent(&running, 0, 2, false));
    assert!(matches!(book.reject(&lost(&running, 0)), Rejection::AttemptRunning { .. }));
    book.accept(&fail(&running));
    book.accept(&lost(&running, 0));
    assert!(matches!(book.reject(&done(&running, 0)), Rejection::NoIntent { .. }));
}

#[test]
fn sequences_are_contiguous_and_intents_come_one_at_a_time() {
    let mut book = Book::planned();
    book.exchange(5, "1");
    let task = task(1, &run_id(1), 1, 0, 1);
    book.accept(&start(&task));
    assert!(matches!(book.reject(&intent(&task, 1, 2, false)), Rejection::OutOfSequence { .. }));
    book.accept(&intent(&task, 0, 2, false));
    book.ignore(&intent(&task, 0, 2, false));
    assert!(matches!(book.reject(&intent(&task, 1, 2, false)), Rejection::IntentOpen { .. }));
    book.accept(&done(&task, 0));
    book.ignore(&done(&task, 0));
    assert!(matches!(book.reject(&lost(&task, 0)), Rejection::AttemptRunning { .. }));
    book.accept(&intent(&task, 1, 3, true));
    book.accept(&done(&task, 1));
    assert!(book.slice(1, 0).is_finished());
    assert_eq!(book.slice(1, 0).account.rows_written, 5);
}

#[test]
fn the_first_exchange_of_a_slice_wins() {
    let mut book = Book::planned();
    let first = task(1, &run_id(1), 0, 0, 1);
    book.accept(&start(&first));
    book.accept(&fail(&first));
    let second = task(1, &run_id(1), 0, 0, 2);
    book.accept(&start(&second));
    assert!(matches!(book.reject(&finish_exchange(&first, 9, "9")), Rejection::OldAttempt { .. }));
    book.accept(&finish_exchange(&second, 5, "1"));
    book.ignore(&finish_exchange(&first, 9, "9"));
    assert_eq!(book.slice(0, 0).account.rows_written, 5);
}

#[test]
fn nothing_starts_before_its_inputs_are_finished() {
    let mut book = Book::planned();
    let early = task(1, &run_id(1), 1, 0, 1);
    let expected = Rejection::InputNotReady { stage: StageId(1), input: StageId(0) };
    assert_eq!(book.reject(&start(&early)), expected);
}

#[test]
fn a_pipeline_has_one_run_at_a_time() {
    let mut book = Book::planned();
    let second = start_run(1, &run_id(2));
    assert_eq!(book.reject(&second), Rejection::RunActive { active: run_id(1) });
    book.accept(&finish_run(1, &run_id(1), RunOutcome::Failed { error: "no".into() }));
    book.accept(&second);
    let resume =
        Command::ResumeRun(ResumeRun { epoch: 1, run: run_id(1), request_id: None, at: at(3) });
    assert_eq!(book.reject(&resume), Rejection::RunActive { active: run_id(2) });
}

#[test]
fn runs_are_numbered_as_they_start_whatever_the_clock_says() {
    let mut book = Book::planned();
    book.accept(&finish_run(1, &run_id(1), RunOutcome::Failed { error: "no".into() }));
    let Command::StartRun(second) = start_run(1, &run_id(2)) else { unreachable!() };
    book.accept(&Command::StartRun(StartRun { at: at(-3_600), ..second }));
    let order = |number| book.ledger.run(&run_id(number)).expect("it has started").order();
    assert!(order(2) > order(1));
}

/// What a run reads is decided when it is planned, and not when it starts.
#[test]
fn a_run_that_is_planned_or_taken_up_later_is_a_later_one() {
    let mut book = Book::default();
    book.accept(&new_epoch());
    let order = |book: &Book, run| book.ledger.run(&run_id(run)).expect("it has started").order();
    let fail = |run| finish_run(1, &run_id(run), RunOutcome::Failed { error: "no".into() });
    let resume = |run| {
        Command::ResumeRun(ResumeRun { epoch: 1, run: run_id(run), request_id: None, at: at(3) })
    };
    for run in [1, 2] {
        book.accept(&start_run(1, &run_id(run)));
        if run == 2 {
            book.accept(&plan_run(1, &run_id(2)));
        }
        book.accept(&fail(run));
    }
    assert!(order(&book, 2) > order(&book, 1));
    book.accept(&resume(1));
    book.accept(&plan_run(1, &run_id(1)));
    assert!(order(&book, 1) > order(&book, 2), "planned after the other one");
    book.accept(&fail(1));
    book.accept(&resume(2));
    assert!(order(&book, 2) > order(&book, 1), "it may load what the other one was to load");
    // And takes no number.
    assert!(matches!(book.reject(&plan_run(1, &run_id(2))), Rejection::AlreadyPlanned(_)));
}

#[test]
fn resuming_a_failed_run_allows_its_failed_slices_again() {
    let run = run_id(1);
    let mut book = Book::planned();
    let first = task(1, &run, 0, 0, 1);
    book.accept(&start(&first));
    book.accept(&Command::FailAttempt(FailAttempt {
        task: first,
        error: "division by zero".into(),
        retry_at: None,
    }));
    book.accept(&finish_run(1, &run, RunOutcome::Failed { error: "division by zero".into() }));
    book.accept(&Command::ResumeRun(ResumeRun {
        epoch: 1,
        run: run.clone(),
        request_id: None,
        at: at(4),
    }));
    assert_eq!(book.slice(0, 0).state, SliceState::Pending);
    assert_eq!(book.slice(0, 0).failures, 0);
    book.accept(&start(&task(1, &run, 0, 0, 2)));
}

#[test]
fn resuming_a_run_in_the_epoch_in_which_it_was_stopped_gives_its_slices_to_new_attempts() {
    let run = run_id(1);
    let mut book = Book::planned();
    let first = task(1, &run, 0, 0, 1);
    book.accept(&start(&first));
    book.accept(&finish_run(1, &run, RunOutcome::Failed { error: "cancelled".into() }));
    book.accept(&Command::ResumeRun(ResumeRun {
        epoch: 1,
        run: run.clone(),
        request_id: None,
        at: at(4),
    }));
    assert_eq!(book.slice(0, 0).state, SliceState::Pending);
    // It had been stopped, but perhaps it has not heard of that.
    assert!(matches!(book.reject(&finish_exchange(&first, 9, "9")), Rejection::OldAttempt { .. }));
    book.accept(&start(&task(1, &run, 0, 0, 2)));
}

#[test]
fn a_lost_executor_is_no_failure_of_the_slice() {
    let run = run_id(1);
    let mut book = Book::planned();
    let first = task(1, &run, 0, 0, 1);
    book.accept(&start(&first));
    book.accept(&lose(&first, false));
    let slice = book.slice(0, 0);
    assert_eq!((&slice.state, slice.failures, slice.losses), (&SliceState::Pending, 0, 1));
    assert!(matches!(book.reject(&finish_exchange(&first, 1, "1")), Rejection::OldAttempt { .. }));

    let second = task(1, &run, 0, 0, 2);
    book.accept(&start(&second));
    assert!(matches!(book.reject(&lose(&first, false)), Rejection::OldAttempt { .. }));
    book.accept(&lose(&second, true));
    assert!(matches!(book.slice(0, 0).state, SliceState::Failed { retry_at: None, .. }));
}

#[test]
fn a_request_starts_one_run() {
    let mut book = Book::default();
    book.accept(&new_epoch());
    let asked = |run: u64| {
        let Command::StartRun(start) = start_run(1, &run_id(run)) else { unreachable!() };
        Command::StartRun(StartRun { request_id: Some("a".into()), ..start })
    };
    book.accept(&asked(1));
    book.accept(&finish_run(1, &run_id(1), RunOutcome::Abandoned));
    assert_eq!(book.reject(&asked(2)), Rejection::RequestKnown { run: run_id(1) });
}

#[test]
fn a_request_means_the_run_that_it_has_resumed_or_joined() {
    let mut book = Book::default();
    book.accept(&new_epoch());
    book.accept(&start_run(1, &run_id(1)));
    let join =
        |run| Command::JoinRun(JoinRun { epoch: 1, run: run_id(run), request_id: "joined".into() });
    book.accept(&join(1));
    book.ignore(&join(1));
    let resume = |run| {
        let request_id = Some("resumed".into());
        Command::ResumeRun(ResumeRun { epoch: 1, run: run_id(run), request_id, at: at(3) })
    };
    book.accept(&resume(1));
    // The same request again, as a leader sends it that does not know whether the first one has arrived.
    book.accept(&resume(1));
    book.accept(&finish_run(1, &run_id(1), RunOutcome::Abandoned));
    for request in ["joined", "resumed"] {
        assert_eq!(book.ledger.run_of_request(request), Some(&run_id(1)));
    }
    book.accept(&start_run(1, &run_id(2)));
    let known = Rejection::RequestKnown { run: run_id(1) };
    assert_eq!(book.reject(&join(2)), known);
    assert_eq!(book.reject(&resume(2)), known);
}

#[test]
fn watermarks_never_move_backwards_by_a_run_and_are_free_by_hand() {
    let source = NodeName::new("orders");
    let mut book = Book::planned();
    let set = |value: &str| {
        Command::SetWatermark(SetWatermark {
            epoch: 1,
            pipeline: pipeline(),
            source: source.clone(),
            value: value.into(),
        })
    };
    assert!(matches!(book.reject(&set("9")), Rejection::RunActive { .. }));
    book.accept(&finish_run(1, &run_id(1), RunOutcome::Abandoned));
    book.accept(&set("9"));

    let run = run_id(2);
    book.accept(&start_run(1, &run));
    book.accept(&plan_run(1, &run));
    let exchange = task(1, &run, 0, 0, 1);
    book.accept(&start(&exchange));
    book.accept(&finish_exchange(&exchange, 0, "8"));
    for (stage, slice) in [(1, 0), (1, 1), (2, 0)] {
        let task = task(1, &run, stage, slice, 1);
        book.accept(&start(&task));
        book.accept(&intent(&task, 0, 0, true));
        book.accept(&done(&task, 0));
    }
    let stage = StageId(2);
    book.accept(&Command::RunCommitIntent(RunCommitIntent { epoch: 1, run: run.clone(), stage }));
    book.accept(&Command::RunCommitDone(RunCommitDone { epoch: 1, run: run.clone(), stage }));
    assert_eq!(book.watermark(), Some("9"), "8 is not later");
    book.accept(&finish_run(1, &run, RunOutcome::Succeeded));
    book.accept(&Command::ResetWatermark(ResetWatermark {
        epoch: 1,
        pipeline: pipeline(),
        source: source.clone(),
    }));
    assert_eq!(book.watermark(), None);
}

#[test]
fn a_plan_with_two_stages_for_one_sink_is_refused() {
    let mut book = Book::default();
    book.accept(&new_epoch());
    book.accept(&start_run(1, &run_id(1)));
    let mut stages = shapes();
    stages.push(stages[1].clone());
    let rejection = book.reject(&Command::PlanRun(PlanRun {
        epoch: 1,
        run: run_id(1),
        graph_hash: "graph".into(),
        engine_version: "weir-test".into(),
        stages,
    }));
    assert!(matches!(rejection, Rejection::InvalidPlan { .. }), "{rejection}");
}

#[test]
fn the_audit_names_the_slice_that_does_not_add_up() {
    let mut book = Book::planned();
    book.exchange(5, "1");
    for slice in 0..2 {
        let task = task(1, &run_id(1), 1, slice, 1);
        book.accept(&start(&task));
        let mut command = intent(&task, 0, 2, true);
        if let Command::CommitIntent(intent) = &mut command
            && slice == 1
        {
            intent.commit.account.nodes[0].rows_in = 3;
        }
        book.accept(&command);
        book.accept(&done(&task, 0));
    }
    let findings = book.ledger.audit(&run_id(1)).expect("the run is known").findings;
    assert_eq!(
        findings,
        [
            "stage 1 (kept) has read 4 rows of the exchange of stage 0 (orders), which holds 5",
            "stage 1 (kept), slice 1: node `valid`: 3 rows in, but 2 out + 0 dead letters + 0 \
             dropped = 2",
        ]
    );
}

#[test]
fn a_sink_without_batches_is_prepared_anew_when_its_run_goes_on() {
    let run = run_id(1);
    let identity = weir_connectors::PrepareSink {
        ledger_id: "ledger".into(),
        pipeline: "orders".into(),
        run: run.0.clone(),
        sink: "kept".into(),
        epoch: 1,
        has_others_beside: false,
    };
    let prepared =
        weir_connectors::PreparedSink { identity, payload: serde_json::Value::Null, notes: vec![] };
    let prepare = Command::PrepareSink(PrepareSink {
        epoch: 1,
        run: run.clone(),
        sink: NodeName::new("kept"),
        prepared,
    });
    let failed = || RunOutcome::Failed { error: "the target is down".into() };
    let resume =
        Command::ResumeRun(ResumeRun { epoch: 1, run: run.clone(), request_id: None, at: at(3) });
    let mut book = Book::planned();
    book.accept(&prepare);
    book.accept(&finish_run(1, &run, failed()));
    // Half of a clean-up may have removed what the sink had prepared, and nobody has said so.
    book.accept(&resume);
    assert!(book.ledger.run(&run).expect("it is known").prepared.is_empty());
    book.accept(&prepare);
    book.exchange(5, "1");
    let first = task(1, &run, 1, 0, 1);
    book.accept(&start(&first));
    book.accept(&intent(&first, 0, 2, false));
    book.accept(&finish_run(1, &run, failed()));
    book.accept(&resume);
    let known = &book.ledger.run(&run).expect("it is known").prepared;
    assert_eq!(known.len(), 1, "the batch may be in its staging");
}

#[test]
fn an_intended_batch_may_have_landed() {
    let mut book = Book::planned();
    let run = run_id(1);
    assert!(!book.ledger.run(&run).expect("it is known").may_have_committed());
    book.exchange(5, "1");
    // A run whose exchange is not finished, but whose first batch was intended.
    let mut facts = book.ledger.run(&run).expect("it is known").clone();
    for stage in &mut facts.stages {
        stage.finished_slices = 0;
    }
    assert!(!facts.may_have_committed());
    let first = task(1, &run, 1, 0, 1);
    book.accept(&start(&first));
    book.accept(&intent(&first, 0, 2, false));
    let intended = book.ledger.run(&run).expect("it is known");
    let mut first_slice = facts.stages[1].slices.get_mut(0).expect("it is there");
    first_slice.intent = intended.stages[1].slices[0].intent.clone();
    drop(first_slice);
    assert!(facts.may_have_committed(), "only the target knows");
}

#[test]
fn each_batch_belongs_to_the_attempt_that_intended_it() {
    let run = run_id(1);
    let mut book = Book::planned();
    book.exchange(5, "1");
    let first = task(1, &run, 1, 0, 1);
    book.accept(&start(&first));
    book.accept(&intent(&first, 0, 1, false));
    book.accept(&done(&first, 0));
    book.accept(&intent(&first, 1, 1, false));
    book.accept(&fail(&first));
    // The target says that it has landed.
    book.accept(&done(&first, 1));
    let second = task(1, &run, 1, 0, 2);
    book.accept(&start(&second));
    book.accept(&intent(&second, 2, 1, false));
    book.accept(&fail(&second));
    book.accept(&lost(&second, 2));
    let third = task(1, &run, 1, 0, 3);
    book.accept(&start(&third));
    for sequence in 2..4 {
        book.accept(&intent(&third, sequence, 1, sequence == 3));
        book.accept(&done(&third, sequence));
    }
    let slice = book.slice(1, 0);
    let attempts: Vec<_> = (0..4).map(|sequence| slice.attempt_of(sequence)).collect();
    assert_eq!(attempts, [Some(1), Some(1), Some(3), Some(3)]);
    assert_eq!(slice.committed_by.len(), 2);
    assert_eq!(book.slice(0, 0).attempt_of(0), Some(1), "of an exchange");
    assert_eq!(book.slice(1, 1).attempt_of(0), None);
}

#[test]
fn an_executor_that_is_lost_after_its_last_commit_has_lost_nothing() {
    let mut book = Book::planned();
    book.exchange(2, "9");
    let task = task(1, &run_id(1), 2, 0, 1);
    book.accept(&start(&task));
    book.accept(&intent(&task, 0, 2, true));
    book.accept(&done(&task, 0));
    book.ignore(&lose(&task, false));
}

/// A ledger holds one of these for every task of every run: a million are to fit into 300 MB, with what
/// they point at (`ledger-size` in `benches/` measures it).
#[test]
fn a_slice_is_small() {
    assert!(size_of::<SliceFacts>() <= 160, "{} bytes", size_of::<SliceFacts>());
}

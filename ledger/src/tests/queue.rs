//! Runs that wait for their turn.

use super::support::*;
use crate::*;

fn queue_of(run: u64, request_id: Option<&str>) -> Command {
    let Command::StartRun(start) = start_run(1, &run_id(run)) else { panic!("it starts a run") };
    let start = StartRun { request_id: request_id.map(str::to_owned), ..start };
    Command::QueueRun(QueueRun { start, is_fresh: false, cancels_others: false })
}

fn queue(run: u64) -> Command {
    queue_of(run, None)
}

fn begin(run: u64) -> Command {
    Command::BeginRun(BeginRun { epoch: 1, run: run_id(run), at: at(7) })
}

fn failed(run: u64) -> Command {
    finish_run(1, &run_id(run), RunOutcome::Failed { error: "no".into() })
}

fn waiting(book: &Book) -> Vec<RunId> {
    let queue = book.ledger.pipelines[&pipeline()].queue.iter();
    queue.map(|queued| queued.run.clone()).collect()
}

/// Run 1 goes on.
fn book() -> Book {
    let mut book = Book::default();
    book.accept(&new_epoch());
    book.accept(&start_run(1, &run_id(1)));
    book
}

#[test]
fn runs_begin_in_the_order_of_their_queue_and_one_at_a_time() {
    let mut book = book();
    book.accept(&queue(2));
    book.accept(&queue(3));
    assert_eq!(waiting(&book), [run_id(2), run_id(3)]);
    assert_eq!(book.reject(&begin(2)), Rejection::RunActive { active: run_id(1) });
    book.accept(&failed(1));
    assert_eq!(book.reject(&begin(3)), Rejection::NotItsTurn { run: run_id(3) });
    book.accept(&begin(2));
    let facts = book.ledger.run(&run_id(2)).expect("it is known");
    assert_eq!((&facts.state, facts.sessions, facts.started_at), (&RunState::Running, 1, at(7)));
    // It is a later one than those that were submitted after it.
    let order = |run| book.ledger.run(&run_id(run)).expect("it is known").order();
    assert!(order(2) > order(3) && order(3) > order(1));
    assert_eq!(book.ledger.pipelines[&pipeline()].active_run, Some(run_id(2)));
    assert_eq!(waiting(&book), [run_id(3)]);
    assert!(matches!(book.reject(&begin(2)), Rejection::RunState { state: "running", .. }));
}

#[test]
fn a_run_that_waits_can_only_begin_or_end() {
    let mut book = book();
    book.accept(&queue(2));
    let resume = ResumeRun { epoch: 1, run: run_id(2), request_id: None, at: at(6) };
    assert!(matches!(book.reject(&Command::ResumeRun(resume)), Rejection::RunState { .. }));
    assert!(matches!(book.reject(&plan_run(1, &run_id(2))), Rejection::RunState { .. }));
    let succeed = finish_run(1, &run_id(2), RunOutcome::Succeeded);
    assert!(matches!(book.reject(&succeed), Rejection::RunState { state: "queued", .. }));
    book.accept(&failed(2));
    assert_eq!(waiting(&book), []);
    assert_eq!(book.ledger.pipelines[&pipeline()].active_run, Some(run_id(1)));
}

#[test]
fn a_queue_has_an_end_and_a_request_waits_once() {
    let mut book = book();
    book.accept(&queue_of(2, Some("a")));
    assert_eq!(book.ledger.run_of_request("a"), Some(&run_id(2)));
    assert_eq!(book.reject(&queue_of(3, Some("a"))), Rejection::RequestKnown { run: run_id(2) });
    let most = u64::try_from(MOST_QUEUED).expect("it is small");
    for run in 3..most + 2 {
        book.accept(&queue(run));
    }
    assert!(matches!(book.reject(&queue(most + 2)), Rejection::QueueFull { .. }));
}

fn skip(run: u64, request_id: Option<&str>) -> Command {
    let Command::StartRun(start) = start_run(1, &run_id(run)) else { panic!("it starts a run") };
    let second = i64::try_from(run).expect("it is small");
    let start = StartRun { request_id: request_id.map(str::to_owned), at: at(second), ..start };
    Command::SkipRun(SkipRun { start, beside: run_id(1) })
}

#[test]
fn a_skipped_run_is_over_and_its_request_means_it() {
    let mut book = book();
    book.accept(&skip(2, Some("a")));
    let state = &book.ledger.run(&run_id(2)).expect("it is noted").state;
    assert_eq!(*state, RunState::Skipped { at: at(2), beside: run_id(1) });
    assert!(state.is_terminal());
    assert_eq!(book.ledger.run_of_request("a"), Some(&run_id(2)));
    assert_eq!(book.reject(&skip(3, Some("a"))), Rejection::RequestKnown { run: run_id(2) });
    assert_eq!(waiting(&book), []);
    let resume = ResumeRun { epoch: 1, run: run_id(2), request_id: None, at: at(10) };
    let refused = book.reject(&Command::ResumeRun(resume));
    assert!(matches!(refused, Rejection::RunState { state: "skipped", .. }), "{refused:?}");
}

#[test]
fn of_many_skipped_runs_the_oldest_are_forgotten_with_their_requests() {
    let mut book = book();
    book.accept(&skip(2, Some("oldest")));
    let most = u64::try_from(MOST_SKIPPED).expect("it is small");
    for run in 3..most + 3 {
        book.accept(&skip(run, None));
    }
    assert_eq!(book.ledger.runs.len(), MOST_SKIPPED + 1);
    assert!(book.ledger.run(&run_id(1)).is_some(), "the one that goes on stays");
    assert!(book.ledger.run(&run_id(2)).is_none());
    assert_eq!(book.ledger.run_of_request("oldest"), None);
}

#[test]
fn a_pipeline_for_which_a_run_waits_is_not_deleted() {
    let mut book = book();
    let content_hash = "a".to_owned();
    let register = RegisterPipeline {
        epoch: 1,
        pipeline: pipeline(),
        content_hash,
        file: "a.json".into(),
        at: at(2),
    };
    book.accept(&Command::RegisterPipeline(register));
    book.accept(&queue(2));
    book.accept(&failed(1));
    let delete = Command::DeletePipeline(DeletePipeline { epoch: 1, pipeline: pipeline() });
    assert_eq!(book.reject(&delete), Rejection::RunActive { active: run_id(2) });
}

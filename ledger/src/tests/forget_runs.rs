//! Runs that leave, and those that must not.

use weir_plan::StageId;

use super::support::*;
use crate::*;

fn forget(book: &Book, runs: &[u64]) -> Command {
    let sessions = |run: &RunId| book.ledger.run(run).map_or(1, |facts| facts.sessions);
    let runs = runs.iter().map(|run| run_id(*run)).map(|run| {
        let sessions = sessions(&run);
        EndedRun { run, sessions }
    });
    Command::ForgetRuns(ForgetRuns { epoch: 1, runs: runs.collect() })
}

fn clean_up(run: u64) -> Command {
    Command::CleanUpDone(CleanUpDone { epoch: 1, run: run_id(run) })
}

fn failed(run: u64) -> Command {
    finish_run(1, &run_id(run), RunOutcome::Failed { error: "no".into() })
}

fn abandoned(run: u64) -> Command {
    finish_run(1, &run_id(run), RunOutcome::Abandoned)
}

/// Run 1, which a client has called `first`, has failed before it was planned.
fn failed_book() -> Book {
    let mut book = Book::default();
    book.accept(&new_epoch());
    let Command::StartRun(start) = start_run(1, &run_id(1)) else { panic!("it starts a run") };
    book.accept(&Command::StartRun(StartRun { request_id: Some("first".into()), ..start }));
    book.accept(&failed(1));
    book
}

/// Of run 1 one batch is committed.
fn half_way() -> Book {
    let mut book = Book::planned();
    book.exchange(5, "1");
    let task = task(1, &run_id(1), 1, 0, 1);
    book.accept(&start(&task));
    book.accept(&intent(&task, 0, 2, true));
    book.accept(&done(&task, 0));
    book
}

#[test]
fn a_run_that_is_over_leaves_with_the_names_of_its_requests() {
    let mut book = failed_book();
    book.accept(&clean_up(1));
    book.accept(&start_run(1, &run_id(2)));
    book.accept(&forget(&book, &[1, 2, 3]));
    assert_eq!(book.ledger.runs.keys().collect::<Vec<_>>(), [&run_id(2)], "it goes on");
    assert_eq!(book.ledger.runs_left, 1);
    assert_eq!(book.ledger.run_of_request("first"), None);
    assert_eq!(book.ledger.pipelines[&pipeline()].active_run, Some(run_id(2)));
    assert_eq!(book.ledger.pipelines[&pipeline()].has_left, None, "it had committed nothing");
    book.ignore(&forget(&book, &[1]));
}

#[test]
fn a_run_of_which_anything_is_left_in_staging_stays() {
    let mut book = failed_book();
    book.ignore(&forget(&book, &[1]));
    book.accept(&abandoned(1));
    book.ignore(&forget(&book, &[1]));
    book.accept(&clean_up(1));
    book.accept(&forget(&book, &[1]));
}

#[test]
fn a_run_that_failed_half_way_stays_until_it_is_given_up() {
    let mut book = half_way();
    book.accept(&failed(1));
    book.accept(&clean_up(1));
    book.ignore(&forget(&book, &[1]));
    book.accept(&abandoned(1));
    let order = book.ledger.run(&run_id(1)).expect("it is there").order();
    book.accept(&forget(&book, &[1]));
    assert_eq!(book.ledger.pipelines[&pipeline()].has_left, Some(order));
}

#[test]
fn a_run_stays_as_long_as_only_a_target_knows_what_it_has() {
    let mut book = half_way();
    let task = task(1, &run_id(1), 1, 1, 1);
    book.accept(&start(&task));
    book.accept(&intent(&task, 0, 2, true));
    book.accept(&abandoned(1));
    book.accept(&clean_up(1));
    book.ignore(&forget(&book, &[1]));

    let mut book = half_way();
    for (stage, slice) in [(1, 1), (2, 0)] {
        let task = self::task(1, &run_id(1), stage, slice, 1);
        book.accept(&start(&task));
        book.accept(&intent(&task, 0, 3, true));
        book.accept(&done(&task, 0));
    }
    let (run, stage) = (run_id(1), StageId(2));
    book.accept(&Command::RunCommitIntent(RunCommitIntent { epoch: 1, run, stage }));
    book.accept(&abandoned(1));
    book.accept(&clean_up(1));
    book.ignore(&forget(&book, &[1]));
}

/// What was written down of it before is not what has become of it.
#[test]
fn a_run_that_was_taken_up_since_it_was_kept_elsewhere_stays() {
    let mut book = failed_book();
    book.accept(&clean_up(1));
    let as_kept = forget(&book, &[1]);
    let resume = ResumeRun { epoch: 1, run: run_id(1), request_id: None, at: at(6) };
    book.accept(&Command::ResumeRun(resume));
    book.ignore(&as_kept);
    book.accept(&failed(1));
    book.accept(&clean_up(1));
    book.ignore(&as_kept);
    book.accept(&forget(&book, &[1]));
}

//! Registered pipelines, and requests that are made again.

use super::support::*;
use crate::*;

fn register(hash: &str) -> Command {
    Command::RegisterPipeline(RegisterPipeline {
        epoch: 1,
        pipeline: pipeline(),
        content_hash: hash.into(),
        file: format!("{hash}-file"),
        at: at(2),
    })
}

fn delete() -> Command {
    Command::DeletePipeline(DeletePipeline { epoch: 1, pipeline: pipeline() })
}

fn requested(id: &str, method: &str, command: Command) -> Command {
    let facts = RequestFacts { method: method.into(), subject: "orders".into() };
    let command = Some(Box::new(command));
    Command::Requested(Requested { epoch: 1, request_id: id.into(), facts, command })
}

fn versions(book: &Book) -> Vec<(u32, &str)> {
    let versions = book.ledger.pipelines[&pipeline()].versions.iter();
    versions.map(|version| (version.version, version.content_hash.as_str())).collect()
}

fn book() -> Book {
    let mut book = Book::default();
    book.accept(&new_epoch());
    book
}

#[test]
fn a_version_is_new_only_when_something_has_changed() {
    let mut book = book();
    book.accept(&register("a"));
    book.ignore(&register("a"));
    book.accept(&register("b"));
    // What was there before is a change again.
    book.accept(&register("a"));
    assert_eq!(versions(&book), [(1, "a"), (2, "b"), (3, "a")]);
}

#[test]
fn the_oldest_versions_are_forgotten() {
    let mut book = book();
    for number in 0..MOST_VERSIONS + 3 {
        book.accept(&register(&number.to_string()));
    }
    let kept = versions(&book);
    assert_eq!((kept.len(), kept[0]), (MOST_VERSIONS, (4, "3")));
}

#[test]
fn a_deleted_pipeline_keeps_its_watermarks_and_gives_no_number_twice() {
    let mut book = book();
    assert!(matches!(book.reject(&delete()), Rejection::UnknownPipeline(_)));
    book.accept(&register("a"));
    book.accept(&Command::SetWatermark(SetWatermark {
        epoch: 1,
        pipeline: pipeline(),
        source: weir_spec::NodeName::new("orders"),
        value: "7".into(),
    }));
    book.accept(&delete());
    assert!(matches!(book.reject(&delete()), Rejection::UnknownPipeline(_)));
    assert_eq!((versions(&book), book.watermark()), (vec![], Some("7")));
    book.accept(&register("a"));
    assert_eq!(versions(&book), [(2, "a")]);
}

#[test]
fn a_pipeline_with_a_run_that_goes_on_is_not_deleted() {
    let mut book = book();
    book.accept(&register("a"));
    book.accept(&start_run(1, &run_id(1)));
    assert_eq!(book.reject(&delete()), Rejection::RunActive { active: run_id(1) });
    book.accept(&finish_run(1, &run_id(1), RunOutcome::Failed { error: "no".into() }));
    book.accept(&delete());
    assert!(book.ledger.run(&run_id(1)).is_some(), "its history stays");
}

#[test]
fn a_request_is_done_once_and_its_name_means_nothing_else() {
    let mut book = book();
    let first = requested("r", "Pipelines/Register", register("a"));
    book.accept(&first);
    book.accept(&register("b"));
    // Late, after somebody else's change.
    book.ignore(&first);
    assert_eq!(versions(&book), [(1, "a"), (2, "b")]);
    let other = book.reject(&requested("r", "Pipelines/Delete", delete()));
    let said = "the request id `r` was used before, for Pipelines/Register of orders";
    assert_eq!(other.to_string(), said);
    // What is refused has not been done: it may be asked for again.
    book.accept(&start_run(1, &run_id(1)));
    let deleting = requested("d", "Pipelines/Delete", delete());
    assert!(matches!(book.reject(&deleting), Rejection::RunActive { .. }));
    book.accept(&finish_run(1, &run_id(1), RunOutcome::Abandoned));
    book.accept(&deleting);
    book.ignore(&deleting);
}

#[test]
fn the_oldest_requests_are_forgotten() {
    let mut book = book();
    for number in 0..=MOST_REQUESTS {
        let facts = RequestFacts { method: "m".into(), subject: "s".into() };
        let request_id = number.to_string();
        let noted = Requested { epoch: 1, request_id, facts, command: None };
        book.accept(&Command::Requested(noted));
    }
    assert_eq!(book.ledger.answered.len(), MOST_REQUESTS);
    assert_eq!(book.ledger.answered.get("0"), None);
    assert!(book.ledger.answered.get("1").is_some());
}

#[test]
fn what_is_registered_again_has_another_file() {
    let mut book = book();
    let register = |file: &str| {
        Command::RegisterPipeline(RegisterPipeline {
            epoch: 1,
            pipeline: pipeline(),
            content_hash: "a".into(),
            file: file.into(),
            at: at(2),
        })
    };
    book.accept(&register("first"));
    book.ignore(&register("unneeded"));
    book.accept(&delete());
    book.accept(&register("second"));
    let versions = &book.ledger.pipelines[&pipeline()].versions;
    assert_eq!(versions.iter().map(|known| known.file.as_str()).collect::<Vec<_>>(), ["second"]);
}

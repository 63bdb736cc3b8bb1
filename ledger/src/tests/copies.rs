//! Second attempts beside those that take long.

use super::support::*;
use crate::*;

fn copy(task: &SliceAttempt) -> Command {
    Command::StartCopy(StartCopy { task: task.clone() })
}

/// Two attempts at the only slice of stage 0 are at work.
fn copied() -> (Book, SliceAttempt, SliceAttempt) {
    let mut book = Book::planned();
    let (first, second) = (task(1, &run_id(1), 0, 0, 1), task(1, &run_id(1), 0, 0, 2));
    book.accept(&start(&first));
    book.accept(&copy(&second));
    (book, first, second)
}

#[test]
fn the_first_result_of_two_counts_and_the_other_is_ignored() {
    for first_wins in [true, false] {
        let (mut book, first, second) = copied();
        let (winner, loser) = if first_wins { (first, second) } else { (second, first) };
        book.accept(&finish_exchange(&winner, 5, "1"));
        book.ignore(&finish_exchange(&loser, 7, "2"));
        let slice = book.slice(0, 0);
        assert!(slice.is_finished());
        assert_eq!(slice.attempt_of(0), Some(winner.attempt));
        assert_eq!(slice.account.rows_written, 5);
        book.ignore(&lose(&loser, false));
        book.ignore(&fail(&loser));
    }
}

#[test]
fn when_one_of_two_is_lost_or_fails_the_other_goes_on() {
    for (ends_first, is_lost) in [(1, true), (1, false), (2, true), (2, false)] {
        let (mut book, first, second) = copied();
        let (gone, other) = if ends_first == 1 { (first, second) } else { (second, first) };
        book.accept(&if is_lost { lose(&gone, false) } else { fail(&gone) });
        assert!(book.slice(0, 0).is_at_work(1, other.attempt));
        assert!(!book.slice(0, 0).is_at_work(1, gone.attempt));
        assert!(matches!(
            book.reject(&finish_exchange(&gone, 7, "2")),
            Rejection::OldAttempt { .. }
        ));
        let next = task(1, &run_id(1), 0, 0, 3);
        assert!(matches!(book.reject(&start(&next)), Rejection::AttemptRunning { .. }));
        // And when it is lost as well, the slice begins again.
        let mut without_both = Book { ledger: book.ledger.clone(), index: book.index };
        without_both.accept(&lose(&other, false));
        without_both.accept(&start(&next));
        book.accept(&finish_exchange(&other, 5, "1"));
        assert_eq!(book.slice(0, 0).attempt_of(0), Some(other.attempt));
    }
}

/// Memory that the copy's executor does not have is no fault of the slice.
#[test]
fn what_ends_one_of_two_for_good_neither_fails_the_slice_nor_counts() {
    for ends_first in [1, 2] {
        for is_lost in [true, false] {
            let (mut book, first, second) = copied();
            let (gone, other) = if ends_first == 1 { (first, second) } else { (second, first) };
            let for_good = |task| if is_lost { lose(task, true) } else { fail_for_good(task) };
            book.accept(&for_good(&gone));
            let slice = book.slice(0, 0);
            assert!(slice.is_at_work(1, other.attempt), "{:?}", slice.state);
            assert_eq!((slice.failures, slice.losses), (0, 0));
            book.accept(&for_good(&other));
            let slice = book.slice(0, 0);
            assert!(matches!(slice.state, SliceState::Failed { retry_at: None, .. }));
            assert_eq!(slice.failures + slice.losses, 1);
        }
    }
}

#[test]
fn only_what_is_at_work_and_has_no_copy_is_copied() {
    let mut book = Book::planned();
    let attempt = |number| task(1, &run_id(1), 0, 0, number);
    assert!(matches!(book.reject(&copy(&attempt(1))), Rejection::OldAttempt { .. }), "not begun");
    book.accept(&start(&attempt(1)));
    assert!(
        matches!(book.reject(&copy(&attempt(3))), Rejection::OldAttempt { .. }),
        "not the next"
    );
    book.accept(&copy(&attempt(2)));
    assert!(matches!(book.reject(&copy(&attempt(3))), Rejection::OldAttempt { .. }), "two at most");
    book.accept(&finish_exchange(&attempt(2), 5, "1"));
    assert!(matches!(book.reject(&copy(&attempt(3))), Rejection::SliceFinished { .. }));
    // A sink lets one attempt publish.
    let streaming = task(1, &run_id(1), 1, 0, 1);
    book.accept(&start(&streaming));
    let second = SliceAttempt { attempt: 2, ..streaming };
    assert!(matches!(book.reject(&copy(&second)), Rejection::WrongOutput { .. }));
}

#[test]
fn copies_end_with_their_epoch() {
    let (mut book, first, second) = copied();
    book.accept(&new_epoch());
    let epoch = book.ledger.current_epoch();
    for task in [first, second] {
        assert!(matches!(book.reject(&finish_exchange(&task, 5, "1")), Rejection::OldEpoch { .. }));
    }
    book.accept(&start(&task(epoch, &run_id(1), 0, 0, 3)));
}

use super::support::*;
use crate::*;

fn change(number: usize) -> ClientChange {
    ClientChange {
        at: at(0),
        who: "olga".into(),
        what: "Runs/Submit".into(),
        about: number.to_string(),
        refused: None,
    }
}

#[test]
fn the_newest_changes_of_clients_are_kept_and_the_oldest_make_place() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, 1, &new_epoch());
    for number in 0..MOST_CLIENT_CHANGES + 3 {
        let note = NoteClientChange { epoch: 1, change: change(number) };
        let response = apply(&mut ledger, 2 + number as u64, &Command::NoteClientChange(note));
        assert_eq!(response, Response::Accepted { changed: true });
    }
    assert_eq!(ledger.client_changes.len(), MOST_CLIENT_CHANGES);
    assert_eq!(ledger.client_changes.front(), Some(&change(3)));
    assert_eq!(ledger.client_changes.back(), Some(&change(MOST_CLIENT_CHANGES + 2)));
    let late = NoteClientChange { epoch: 9, change: change(0) };
    let late = apply(&mut ledger, 99_999, &Command::NoteClientChange(late));
    assert!(matches!(late, Response::Rejected(Rejection::OldEpoch { .. })), "{late:?}");
}

#[test]
fn an_executor_is_to_leave_until_it_is_not() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, 1, &new_epoch());
    let mut set = |is_draining| {
        let set = SetDraining { epoch: 1, executor: "executor-1".into(), is_draining };
        let response = apply(&mut ledger, 2, &Command::SetDraining(set));
        (response, ledger.draining.contains("executor-1"))
    };
    let accepted = |changed| Response::Accepted { changed };
    assert_eq!(set(false), (accepted(false), false));
    assert_eq!(set(true), (accepted(true), true));
    assert_eq!(set(true), (accepted(false), true));
    assert_eq!(set(false), (accepted(true), false));
}

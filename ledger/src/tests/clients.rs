use super::support::*;
use crate::*;

fn change(number: usize) -> ClientChange {
    ClientChange {
        at: at(0),
        who: "olga".into(),
        what: "Runs/Submit".into(),
        about: number.to_string(),
        refused: None,
        times: 1,
        since: None,
    }
}

fn refusal(who: usize, second: i64) -> ClientChange {
    let refused = Some("PERMISSION_DENIED".into());
    ClientChange { at: at(second), who: who.to_string(), refused, ..change(0) }
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
fn refusals_that_are_alike_are_one_entry_and_push_out_no_change() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, 1, &new_epoch());
    let mut note = |change: ClientChange| {
        let index = ledger.last_index + 1;
        let note = NoteClientChange { epoch: 1, change };
        apply(&mut ledger, index, &Command::NoteClientChange(note));
        (ledger.client_changes.len(), ledger.client_refusals.clone())
    };
    note(change(0));
    for second in 1..=MOST_CLIENT_CHANGES {
        note(refusal(7, i64::try_from(second).expect("few")));
    }
    let last = i64::try_from(MOST_CLIENT_CHANGES).expect("few");
    let more = ClientChange { times: 5, ..refusal(7, last + 1) };
    let (changes, refusals) = note(more);
    assert_eq!((changes, refusals.len()), (1, 1));
    assert_eq!(refusals[0].times as usize, MOST_CLIENT_CHANGES + 5);
    assert_eq!((refusals[0].since, refusals[0].at), (Some(at(1)), at(last + 1)));
    // Others are others, and even they are bounded.
    for who in 0..MOST_REFUSALS + 3 {
        note(refusal(100 + who, 0));
    }
    let (changes, refusals) = note(ClientChange { what: "Runs/Cancel".into(), ..refusal(7, 0) });
    assert_eq!((changes, refusals.len()), (1, MOST_REFUSALS));
    assert_eq!(refusals.back().map(|last| last.times), Some(1));
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

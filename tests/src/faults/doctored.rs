//! Negative controls: every checker accepts a true history, and refuses it once it is changed in one place.

use serde_json::json;
use weir_proto::v1::{CommittedBy, Run, RunStatus, Stage, Task, TaskState};

use super::history::{
    Exchange, a_watermark_follows_commits, a_watermark_only_rises, a_zombie_changes_nothing,
    facts_agree, nothing_is_taken_back,
};
use super::observer::{Member, Seen};
use super::rows::{
    Booked, Rows, are_a_part, are_accounted_for, are_exact, every_slice_counts_once,
};
use super::work::{Cost, Disturbance, only_lost_work_is_done_again};

const SLICES: u32 = 2;
const READ: u32 = 0;
const JOINED: u32 = 1;
const SINK: u32 = 2;

/// Two stages that hand rows on, and a sink. `done` stages are finished, the next one is at work: slice 0 with
/// executor `a`, slice 1 with `b`.
fn seen(done: u32) -> Seen {
    let stage = |stage: u32| Stage {
        stage,
        slices: SLICES,
        inputs: stage.checked_sub(1).into_iter().collect(),
        sink: if stage == SINK { "target".to_owned() } else { String::new() },
        ..Stage::default()
    };
    let places = (0..=SINK).flat_map(|stage| (0..SLICES).map(move |slice| (stage, slice)));
    let task = |(stage, slice)| {
        let executor = ["a", "b"][slice as usize].to_owned();
        let blank = Task { stage, slice, state: TaskState::Pending.into(), ..Task::default() };
        let (batches, rows_written) = if stage == SINK { (3, 30) } else { (0, 0) };
        match stage.cmp(&done) {
            std::cmp::Ordering::Less => Task {
                state: TaskState::Finished.into(),
                attempts: 1,
                committed_by: vec![CommittedBy { from_batch: 0, attempt: 1 }],
                batches,
                rows_written,
                ..blank
            },
            std::cmp::Ordering::Equal => {
                Task { state: TaskState::Running.into(), attempts: 1, epoch: 4, executor, ..blank }
            }
            std::cmp::Ordering::Greater => blank,
        }
    };
    let status = if done > SINK { RunStatus::Succeeded } else { RunStatus::Running };
    Seen {
        epoch: 4,
        run: Run {
            status: status.into(),
            stages: (0..=SINK).map(stage).collect(),
            ..Run::default()
        },
        tasks: places.map(task).collect(),
    }
}

/// As [`seen`]; what is handed on is kept by the executors `a` and `b`.
fn kept(done: u32) -> Seen {
    let mut seen = seen(done);
    for task in &mut seen.tasks {
        if task.stage != SINK && task.state() == TaskState::Finished {
            task.holder = ["a", "b"][task.slice as usize].to_owned();
        }
    }
    seen
}

fn changed(seen: &Seen, change: impl FnOnce(&mut Seen)) -> Seen {
    let mut changed = seen.clone();
    change(&mut changed);
    changed
}

fn task(seen: &mut Seen, stage: u32, slice: u32) -> &mut Task {
    &mut seen.tasks[(stage * SLICES + slice) as usize]
}

fn booked() -> Vec<Booked> {
    let slices = (0..SLICES).flat_map(|slice| (0..3).map(move |sequence| (slice, sequence)));
    slices.map(|(slice, sequence)| Booked { slice, sequence, rows: 10 }).collect()
}

fn lost(name: &str) -> [String; 1] {
    [name.to_owned()]
}

/// One fault, after which the run came to its end.
fn one_fault(before: &Seen, after: &Seen, lost: &[String]) -> Result<Cost, String> {
    let (before, until, lost) = (before.clone(), after.clone(), lost.to_vec());
    let fault = Disturbance { before, until, lost, any_task_may_fail: false };
    only_lost_work_is_done_again(&[fault], after)
}

#[test]
fn a_doubled_a_lost_and_a_changed_row_are_found() {
    let expected = Rows::new(vec![5, -3, 5, 9]);
    assert_eq!(are_exact(&expected, &Rows::new(vec![9, 5, 5, -3])), Ok(()));
    for wrong in [vec![5, -3, 5, 9, 9], vec![5, -3, 9], vec![5, -3, 5, 8], vec![]] {
        assert!(are_exact(&expected, &Rows::new(wrong.clone())).is_err(), "{wrong:?}");
    }
    let doubled = are_exact(&expected, &expected.with(&[9])).expect_err("it is doubled");
    assert!(doubled.starts_with("0 rows are missing and 1 are too many"), "{doubled}");
}

#[test]
fn while_a_run_appends_a_row_that_is_doubled_or_strange_is_found() {
    let expected = Rows::new(vec![5, -3, 5, 9]);
    assert_eq!(are_a_part(&expected, &Rows::new(vec![5, 9])), Ok(()));
    assert_eq!(are_a_part(&expected, &Rows::default()), Ok(()));
    assert!(are_a_part(&expected, &Rows::new(vec![9, 9])).is_err());
    assert!(are_a_part(&expected, &Rows::new(vec![5, 7])).is_err());
}

#[test]
fn a_batch_that_was_taken_twice_or_never_is_found() {
    let over = seen(SINK + 1);
    assert_eq!(every_slice_counts_once(&over, &booked()), Ok(()));
    let twice = [&booked()[..], &booked()[..1]].concat();
    assert!(every_slice_counts_once(&over, &twice).is_err());
    assert!(every_slice_counts_once(&over, &booked()[1..]).is_err());
    let mut other = booked();
    other[0].rows = 9;
    assert!(every_slice_counts_once(&over, &other).is_err());
    let strange = [&booked()[..], &[Booked { slice: SLICES, sequence: 0, rows: 1 }]].concat();
    assert!(every_slice_counts_once(&over, &strange).is_err());
}

#[test]
fn a_slice_that_was_accepted_of_two_attempts_is_found() {
    let over = seen(SINK + 1);
    let accepted = |by: &[(u64, u32)]| {
        let wrong = changed(&over, |seen| {
            let task = task(seen, SINK, 1);
            task.attempts = 2;
            task.committed_by = (by.iter())
                .map(|(from_batch, attempt)| CommittedBy {
                    from_batch: *from_batch,
                    attempt: *attempt,
                })
                .collect();
        });
        every_slice_counts_once(&wrong, &booked())
    };
    assert_eq!(accepted(&[(0, 1), (2, 2)]), Ok(()), "one attempt has gone on behind another");
    assert!(accepted(&[(0, 1), (0, 2)]).is_err(), "both have the first batch");
    assert!(accepted(&[(0, 2), (2, 1)]).is_err(), "one that was given up has come back");
    assert!(accepted(&[(1, 1)]).is_err(), "nobody has the first batch");
    assert!(accepted(&[(0, 3)]).is_err(), "of an attempt that was never begun");
    let unfinished = changed(&over, |seen| task(seen, READ, 0).state = TaskState::Running.into());
    assert!(every_slice_counts_once(&unfinished, &booked()).is_err());
}

#[test]
fn an_audit_with_a_finding_or_another_count_is_refused() {
    let audit = |clean: bool, in_ledger: u64, in_target: u64| {
        let sink = json!({ "rows_in_ledger": in_ledger, "rows_in_target": in_target });
        are_accounted_for(&json!({ "clean": clean, "sinks": [sink] }), 60)
    };
    assert_eq!(audit(true, 60, 60), Ok(()));
    assert!(audit(false, 60, 60).is_err());
    assert!(audit(true, 59, 59).is_err(), "both have lost the same row");
    assert!(audit(true, 60, 61).is_err());
    assert!(are_accounted_for(&json!({ "clean": true, "sinks": [] }), 60).is_err());
}

#[test]
fn finished_work_in_the_storage_that_is_done_again_is_found() {
    let before = seen(JOINED);
    let lost = lost("a");
    let is_legal =
        |change: &dyn Fn(&mut Seen)| one_fault(&before, &changed(&before, change), &lost);
    let again = |stage, slice, attempts| {
        move |seen: &mut Seen| task(seen, stage, slice).attempts = attempts
    };
    assert_eq!(is_legal(&|_| {}), Ok(Cost { again: 0, lost: 1 }));
    assert_eq!(is_legal(&again(JOINED, 0, 2)), Ok(Cost { again: 1, lost: 1 }));
    assert!(is_legal(&again(READ, 0, 2)).is_err(), "it was finished");
    assert!(is_legal(&again(JOINED, 1, 2)).is_err(), "it was with another executor");
    assert!(is_legal(&again(JOINED, 0, 3)).is_err(), "it was lost once");
    assert!(is_legal(&again(READ, 1, 0)).is_err(), "an attempt is forgotten");
    let on_its_way = changed(&before, |seen| task(seen, JOINED, 1).executor.clear());
    let after = changed(&on_its_way, again(JOINED, 1, 2));
    assert!(one_fault(&on_its_way, &after, &lost).is_ok(), "it may have come to `a`");
    assert!(one_fault(&on_its_way, &after, &[]).is_err());
    // It had not begun: its first attempt, and one more as that was lost.
    assert_eq!(is_legal(&again(SINK, 1, 2)), Ok(Cost { again: 1, lost: 2 }));
    assert!(is_legal(&again(SINK, 1, 3)).is_err());
    assert!(one_fault(&before, &changed(&before, again(SINK, 1, 2)), &[]).is_err());
}

#[test]
fn a_new_leader_begins_again_what_was_at_work_and_nothing_else() {
    let before = seen(JOINED);
    let led = |stage, attempts| {
        let after = changed(&before, |seen| {
            seen.epoch = 9;
            task(seen, stage, 1).attempts = attempts;
        });
        one_fault(&before, &after, &[])
    };
    assert_eq!(led(JOINED, 2), Ok(Cost { again: 1, lost: 2 }));
    assert!(led(JOINED, 3).is_err());
    assert!(led(READ, 2).is_err(), "it was finished");
    let same = changed(&before, |seen| task(seen, JOINED, 1).attempts = 2);
    assert!(one_fault(&before, &same, &[]).is_err(), "nobody was lost");
}

#[test]
fn only_what_was_kept_by_the_lost_and_its_readers_may_be_computed_again() {
    // The join reads what `a` and `b` keep.
    let before = kept(JOINED);
    let is_legal = |stage, slice, attempts, name| {
        let after = changed(&before, |seen| task(seen, stage, slice).attempts = attempts);
        one_fault(&before, &after, &lost(name))
    };
    assert!(is_legal(READ, 0, 2, "a").is_ok(), "`a` kept it alone");
    assert!(is_legal(READ, 1, 2, "a").is_err(), "`b` still has it");
    assert!(is_legal(JOINED, 1, 2, "a").is_ok(), "it may have read of `a`");
    assert!(is_legal(READ, 0, 3, "a").is_err());
    assert!(is_legal(READ, 0, 2, "c").is_err(), "`c` kept nothing");
    // Until the loss is noted its readers try in vain; nobody else does.
    assert!(is_legal(JOINED, 1, 5, "a").is_ok());
    assert!(is_legal(JOINED, 1, 5, "c").is_err(), "it can read all that it needs");
    assert!(is_legal(SINK, 0, 5, "a").is_err(), "it reads nothing that is kept");

    // What nobody reads any more is lost without harm; the sink reads the join, which is in the storage.
    let before = changed(&kept(SINK), |seen| {
        (0..SLICES).for_each(|slice| task(seen, JOINED, slice).holder.clear());
    });
    let again = |before: &Seen, stage, slice| {
        let after = changed(before, |seen| task(seen, stage, slice).attempts = 2);
        one_fault(before, &after, &lost("a"))
    };
    assert!(again(&before, READ, 0).is_err(), "the join has read it");
    assert!(again(&before, JOINED, 0).is_err(), "the storage has it");
    // If it is lost with what was made of it, that needs it again.
    let before = kept(SINK);
    assert!(again(&before, READ, 0).is_ok());
    assert!(again(&before, READ, 1).is_err(), "`b` still has it");
    assert!(again(&before, JOINED, 0).is_ok());
    assert!(again(&before, JOINED, 1).is_ok(), "it has read of what is computed again");
}

#[test]
fn a_task_may_be_done_again_as_often_as_its_work_was_lost() {
    let first = seen(JOINED);
    let second = changed(&first, |seen| task(seen, JOINED, 0).attempts = 2);
    let lost_twice = |attempts, any_task_may_fail| {
        let end = changed(&second, |seen| task(seen, JOINED, 0).attempts = attempts);
        let fault = |before: &Seen, until: &Seen, lost: &str| Disturbance {
            before: before.clone(),
            until: until.clone(),
            lost: vec![lost.to_owned()],
            any_task_may_fail,
        };
        only_lost_work_is_done_again(
            &[fault(&first, &second, "a"), fault(&second, &end, "b")],
            &end,
        )
    };
    assert_eq!(lost_twice(2, false), Ok(Cost { again: 1, lost: 2 }));
    assert!(lost_twice(3, false).is_err(), "the second fault has met the other slice");
    assert_eq!(lost_twice(3, true), Ok(Cost { again: 2, lost: 4 }));
    assert!(lost_twice(9, true).is_ok(), "it may have failed again and again");
}

#[test]
fn what_is_taken_back_is_found() {
    let (was, is) = (seen(JOINED), seen(SINK));
    let after = |change: &dyn Fn(&mut Seen)| {
        nothing_is_taken_back(&[was.clone(), is.clone(), changed(&is, change)], Exchange::Sync)
    };
    assert_eq!(after(&|_| {}), Ok(()));
    assert!(after(&|seen| seen.epoch = 3).is_err());
    assert!(after(&|seen| task(seen, SINK, 0).attempts = 0).is_err());
    assert!(after(&|seen| task(seen, READ, 0).attempts = 2).is_err());
    assert!(after(&|seen| task(seen, READ, 0).state = TaskState::Pending.into()).is_err());
    assert!(after(&|seen| task(seen, READ, 0).committed_by[0].attempt = 2).is_err());
    assert!(after(&|seen| seen.tasks.truncate(2)).is_err());

    let over = seen(SINK + 1);
    let after = |change: &dyn Fn(&mut Seen), exchange| {
        nothing_is_taken_back(&[over.clone(), changed(&over, change)], exchange)
    };
    let running: &dyn Fn(&mut Seen) = &|seen| seen.run.status = RunStatus::Running.into();
    assert!(after(running, Exchange::Sync).is_err());
    for exchange in [Exchange::Sync, Exchange::Async, Exchange::Off] {
        assert!(after(&|seen| task(seen, SINK, 0).batches = 2, exchange).is_err());
        assert!(after(&|seen| task(seen, SINK, 0).rows_written = 29, exchange).is_err());
    }
    // What executors keep may be computed again.
    let again: &dyn Fn(&mut Seen) = &|seen| task(seen, READ, 0).attempts = 2;
    assert_eq!(after(again, Exchange::Off), Ok(()));
    // With `async` as long as nobody else has it; what has read of it may be, in any case.
    assert!(after(again, Exchange::Async).is_err());
    let once = kept(SINK + 1);
    let again = changed(&once, |seen| task(seen, READ, 0).attempts = 2);
    assert_eq!(nothing_is_taken_back(&[once, again], Exchange::Async), Ok(()));
    assert_eq!(after(&|seen| task(seen, JOINED, 0).attempts = 2, Exchange::Async), Ok(()));
}

#[test]
fn coordinators_with_other_facts_at_the_same_entry_are_found() {
    let member = |id, applied_index, state_hash: &str| Member {
        id,
        is_leader: id == 1,
        epoch: 4,
        applied_index,
        state_hash: state_hash.to_owned(),
        executors: [].into(),
    };
    let history = [member(1, 7, "aa"), member(2, 6, "bb"), member(2, 7, "aa")];
    assert_eq!(facts_agree(&history), Ok(()));
    let differs = [&history[..], &[member(3, 6, "cc")]].concat();
    assert!(facts_agree(&differs).is_err());
}

#[test]
fn a_watermark_that_falls_or_runs_ahead_is_found() {
    assert_eq!(a_watermark_only_rises(&[None, Some(3), Some(3), Some(8)]), Ok(()));
    assert!(a_watermark_only_rises(&[Some(8), Some(3)]).is_err());
    assert!(a_watermark_only_rises(&[Some(8), None]).is_err());
    assert_eq!(a_watermark_follows_commits(Some(3), &[1, 2, 3, 4], &[3, 1, 2]), Ok(()));
    assert_eq!(a_watermark_follows_commits(None, &[1], &[]), Ok(()));
    assert!(a_watermark_follows_commits(Some(3), &[1, 2, 3], &[1, 3]).is_err());
}

#[test]
fn a_zombie_that_adds_a_row_or_moves_the_ledger_is_found() {
    let before = (Rows::new(vec![1, 2]), seen(SINK + 1));
    assert_eq!(a_zombie_changes_nothing(&before, &before.clone()), Ok(()));
    let row = (before.0.with(&[2]), before.1.clone());
    assert!(a_zombie_changes_nothing(&before, &row).is_err());
    let fact = (before.0.clone(), changed(&before.1, |seen| task(seen, READ, 0).attempts = 2));
    assert!(a_zombie_changes_nothing(&before, &fact).is_err());
}

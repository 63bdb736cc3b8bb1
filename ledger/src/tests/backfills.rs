//! Backfills: windows move with their runs, and every one is loaded exactly once.

use std::collections::BTreeMap;

use proptest::prelude::*;
use weir_plan::StageId;

use super::support::*;
use crate::*;

fn backfill() -> BackfillId {
    BackfillId("bf-20260101-a".into())
}

fn create(epoch: u64, count: u32) -> Command {
    Command::CreateBackfill(CreateBackfill {
        epoch,
        backfill: backfill(),
        pipeline: pipeline(),
        spec_hash: "spec".into(),
        params: BTreeMap::new(),
        version: None,
        range: WindowRange {
            from: at(0),
            to: at(i64::from(count) * 60),
            step: "1m".into(),
            timezone: "UTC".into(),
            count,
        },
        parallel: 4,
        priority: 0,
        request_id: Some("request".into()),
        at: at(0),
    })
}

fn change(epoch: u64, change: BackfillChange) -> Command {
    Command::ChangeBackfill(ChangeBackfill { epoch, backfill: backfill(), change, at: at(3) })
}

fn retry_all() -> BackfillChange {
    BackfillChange::Retry { windows: None, again: Again::GoOn }
}

fn start_window(epoch: u64, window: u32, run: &RunId) -> Command {
    let Command::StartRun(start) = start_run(epoch, run) else { panic!("it starts a run") };
    let of = WindowOf { backfill: backfill(), window };
    Command::StartRun(StartRun { backfill: Some(of), ..start })
}

fn clean_up(epoch: u64, run: &RunId) -> Command {
    Command::CleanUpDone(CleanUpDone { epoch, run: run.clone() })
}

fn resume(epoch: u64, run: &RunId) -> Command {
    Command::ResumeRun(ResumeRun { epoch, run: run.clone(), request_id: None, at: at(6) })
}

fn failed(epoch: u64, run: &RunId) -> Command {
    finish_run(epoch, run, RunOutcome::Failed { error: "é".repeat(1_000) })
}

/// One slice into a sink, so that a run has one batch.
fn plan_one(epoch: u64, run: &RunId) -> Command {
    let Command::PlanRun(plan) = plan_run(epoch, run) else { panic!("it plans a run") };
    let mut stage = plan.stages[1].clone();
    (stage.slices, stage.inputs) = (1, vec![]);
    Command::PlanRun(PlanRun { stages: vec![stage], ..plan })
}

fn first_batch(epoch: u64, run: &RunId, attempt: u32) -> [Command; 3] {
    let task = task(epoch, run, 0, 0, attempt);
    let commit = |command| match command {
        // What the helper writes for stage 1 fits any stage that ends in a sink.
        Command::CommitIntent(mut intent) => {
            intent.commit.account.exchanges_read.clear();
            Command::CommitIntent(intent)
        }
        other => other,
    };
    [start(&task), commit(intent(&task, 0, 5, true)), done(&task, 0)]
}

impl Book {
    fn backfilling(count: u32) -> Self {
        let mut book = Self::default();
        book.accept(&new_epoch());
        book.accept(&create(1, count));
        book
    }

    fn facts(&self) -> &BackfillFacts {
        self.ledger.backfill(&backfill()).expect("it is there")
    }

    fn begin(&mut self, window: u32) -> RunId {
        let run = self.facts().next_run_of(&backfill(), window);
        self.accept(&start_window(self.ledger.current_epoch(), window, &run));
        run
    }

    fn load(&mut self, window: u32) {
        let run = self.begin(window);
        let epoch = self.ledger.current_epoch();
        self.accept(&plan_one(epoch, &run));
        for command in first_batch(epoch, &run, 1) {
            self.accept(&command);
        }
        self.accept(&clean_up(epoch, &run));
        self.accept(&finish_run(epoch, &run, RunOutcome::Succeeded));
    }
}

#[test]
fn windows_are_loaded_beside_each_other_and_beside_a_run_of_the_pipeline() {
    let mut book = Book::backfilling(4);
    book.accept(&start_run(1, &run_id(1)));
    let (first, second) = (book.begin(0), book.begin(1));
    assert_eq!(first.0, "20260101-a-000000");
    book.reject(&start_window(1, 0, &RunId("20260101-a-000000-2".into())));
    book.reject(&start_window(1, 2, &RunId("another".into())));
    book.reject(&start_window(1, 4, &RunId("20260101-a-000004".into())));
    let pending: Vec<u32> = book.facts().pending().collect();
    assert_eq!(pending, [2, 3]);
    assert_eq!(book.ledger.pipelines[&pipeline()].active_run, Some(run_id(1)));
    book.accept(&failed(1, &second));
    assert_eq!(book.ledger.pipelines[&pipeline()].active_run, Some(run_id(1)));
    assert_eq!(book.facts().window(0), Some(WindowState::Running));
    assert_eq!(book.facts().failed[&1].chars().count(), 300, "long errors are cut");
}

#[test]
fn the_run_of_a_finished_window_leaves_the_ledger_and_its_totals_stay() {
    let mut book = Book::backfilling(3);
    for window in [1, 0, 2] {
        book.load(window);
    }
    assert!(book.ledger.runs.is_empty());
    let facts = book.facts();
    assert_eq!(facts.state, BackfillState::Finished { at: at(9) });
    assert_eq!(facts.finished.iter().collect::<Vec<_>>(), [(0, 3)]);
    let sink = facts.totals.sinks.values().next().expect("one sink");
    assert_eq!((sink.rows, sink.batches), (15, 3));
    assert_eq!(sink.checksum, 15u64.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    assert!(facts.last_run_number > 0);
    assert_eq!(facts.last_run_number, book.ledger.last_run_number, "that of window 2");
    assert_eq!(facts.run_of(&backfill(), 1), Some(RunId("20260101-a-000001".into())));
    book.reject(&change(1, BackfillChange::Pause));
    book.reject(&start_window(1, 1, &RunId("20260101-a-000001-2".into())));
}

#[test]
fn a_run_whose_staging_is_left_stays_until_it_is_gone() {
    let mut book = Book::backfilling(1);
    let run = book.begin(0);
    book.accept(&plan_one(1, &run));
    for command in first_batch(1, &run, 1) {
        book.accept(&command);
    }
    book.accept(&finish_run(1, &run, RunOutcome::Succeeded));
    assert!(book.ledger.run(&run).is_some());
    book.accept(&clean_up(1, &run));
    assert!(book.ledger.runs.is_empty());
}

#[test]
fn a_failed_window_that_has_committed_goes_on_and_another_begins_anew() {
    let mut book = Book::backfilling(3);
    let (committed, other) = (book.begin(0), book.begin(1));
    book.load(2);
    book.accept(&plan_one(1, &committed));
    let [begin, intend, land] = first_batch(1, &committed, 1);
    book.accept(&begin);
    book.accept(&intend);
    for run in [&committed, &other] {
        book.accept(&failed(1, run));
        book.reject(&resume(1, run));
    }
    assert_eq!(book.facts().state, BackfillState::Finished { at: at(9) });
    book.accept(&clean_up(1, &other));
    assert!(book.ledger.run(&other).is_none(), "it has committed nothing");
    book.reject(&change(
        1,
        BackfillChange::Retry { windows: Some(vec![0, 2]), again: Again::GoOn },
    ));
    book.accept(&change(1, retry_all()));
    book.ignore(&change(1, retry_all()));
    assert_eq!(book.facts().state, BackfillState::Running);
    assert_eq!(book.facts().again.len(), 2);

    let anew = book.facts().next_run_of(&backfill(), 0);
    assert_eq!(anew.0, "20260101-a-000000-2");
    let refused = book.reject(&start_window(1, 0, &anew));
    assert_eq!(refused, Rejection::RunActive { active: committed.clone() });
    book.accept(&resume(1, &committed));
    book.accept(&land);
    book.accept(&finish_run(1, &committed, RunOutcome::Succeeded));
    let anew = book.begin(1);
    assert_eq!(anew.0, "20260101-a-000001-2");
    assert_eq!(book.facts().run_of(&backfill(), 1), Some(anew));
}

#[test]
fn a_window_may_begin_afresh_once_its_run_is_given_up() {
    let mut book = Book::backfilling(1);
    let run = book.begin(0);
    book.accept(&plan_one(1, &run));
    for command in first_batch(1, &run, 1) {
        book.accept(&command);
    }
    book.accept(&failed(1, &run));
    book.accept(&change(
        1,
        BackfillChange::Retry { windows: Some(vec![0, 0]), again: Again::Fresh },
    ));
    assert_eq!(book.facts().again[&0], Again::Fresh);
    book.accept(&finish_run(1, &run, RunOutcome::Abandoned));
    book.accept(&clean_up(1, &run));
    book.begin(0);
    assert_eq!(book.facts().starts(0), 2);
    assert!(book.facts().again.is_empty());
}

#[test]
fn a_paused_backfill_lets_windows_end_and_a_cancelled_one_keeps_them_for_later() {
    let mut book = Book::backfilling(2);
    let run = book.begin(0);
    book.accept(&change(1, BackfillChange::Pause));
    book.ignore(&change(1, BackfillChange::Pause));
    book.reject(&start_window(1, 1, &RunId("20260101-a-000001".into())));
    // The next leader takes it up all the same.
    book.accept(&new_epoch());
    let epoch = book.ledger.current_epoch();
    book.accept(&resume(epoch, &run));
    book.accept(&change(epoch, BackfillChange::Cancel));
    book.accept(&failed(epoch, &run));
    assert_eq!(book.facts().window(0), Some(WindowState::Pending));
    book.reject(&resume(epoch, &run));
    book.accept(&change(epoch, BackfillChange::Resume));
    book.accept(&resume(epoch, &run));
    assert_eq!(book.facts().window(0), Some(WindowState::Running));
    book.accept(&change(epoch, BackfillChange::SetPriority(7)));
    assert_eq!(book.facts().priority, 7);
}

#[test]
fn a_repeated_request_creates_no_second_backfill() {
    let mut book = Book::backfilling(2);
    let Command::CreateBackfill(again) = create(1, 2) else { panic!("it creates") };
    let again = CreateBackfill { backfill: BackfillId("bf-b".into()), ..again };
    let refused = book.reject(&Command::CreateBackfill(again));
    assert_eq!(refused, Rejection::BackfillRequestKnown { backfill: backfill() });
    assert_eq!(book.ledger.backfill_of_request("request"), Some(&backfill()));
}

#[test]
fn many_finished_windows_take_little_room() {
    let mut book = Book::backfilling(2_000);
    for window in 0..2_000 {
        book.load(window);
    }
    let json = serde_json::to_vec(&book.ledger).expect("ledgers serialise");
    assert!(json.len() < 2_000, "{} bytes", json.len());
}

/// What to try next; the numbers choose among what is there.
#[derive(Clone, Debug)]
struct Try {
    kind: u8,
    window: u32,
    is_stale: bool,
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    let one = (0u8..16, 0u32..6, prop::bool::weighted(0.1))
        .prop_map(|(kind, window, is_stale)| Try { kind, window, is_stale });
    prop::collection::vec(one, 0..400)
}

fn command(attempt: &Try, ledger: &Ledger) -> Command {
    let Try { kind, window, is_stale } = *attempt;
    let epoch = ledger.current_epoch() - u64::from(is_stale);
    let facts = &ledger.backfills[&backfill()];
    let run =
        facts.run_of(&backfill(), window).unwrap_or_else(|| facts.next_run_of(&backfill(), window));
    let attempts =
        ledger.run(&run).and_then(|run| run.slice(StageId(0), 0)).map_or(0, |slice| slice.attempts);
    match kind {
        0 => new_epoch(),
        1 | 2 => start_window(epoch, window, &facts.next_run_of(&backfill(), window)),
        3 | 4 => plan_one(epoch, &run),
        5 => first_batch(epoch, &run, attempts + 1)[0].clone(),
        6 => first_batch(epoch, &run, attempts)[1].clone(),
        7 => first_batch(epoch, &run, attempts)[2].clone(),
        8 | 9 => finish_run(epoch, &run, RunOutcome::Succeeded),
        10 => failed(epoch, &run),
        11 => clean_up(epoch, &run),
        12 => resume(epoch, &run),
        13 => finish_run(epoch, &run, RunOutcome::Abandoned),
        14 => change(epoch, retry_all()),
        _ => change(
            epoch,
            match window {
                0 => BackfillChange::Pause,
                1 => BackfillChange::Cancel,
                _ => BackfillChange::Resume,
            },
        ),
    }
}

fn check(before: &Ledger, after: &Ledger, command: &Command) {
    let (known, facts) = (&before.backfills[&backfill()], &after.backfills[&backfill()]);
    for window in 0..facts.range.count {
        let (was, is) = (known.window(window), facts.window(window));
        if was == Some(WindowState::Finished) {
            assert_eq!(is, was, "a window is finished once: {command:?}");
        }
        // At most one run of a window goes on, and one does exactly while it is running.
        let runs: Vec<_> = (after.runs.iter())
            .filter(|(_, run)| run.backfill.as_ref().is_some_and(|of| of.window == window))
            .collect();
        let going_on: Vec<_> =
            runs.iter().filter(|(_, run)| run.state == RunState::Running).collect();
        assert!(going_on.len() <= 1, "{command:?}");
        assert_eq!(is == Some(WindowState::Running), going_on.len() == 1, "{command:?}");
        if let Some((run, _)) = going_on.first() {
            assert_eq!(Some(*run), facts.run_of(&backfill(), window).as_ref());
        }
    }
    let counted = facts.finished.len()
        + facts.pending_count()
        + u32::try_from(facts.running.len() + facts.failed.len()).expect("few");
    assert_eq!(counted, facts.range.count);
    assert_eq!(facts.pending().count(), facts.pending_count() as usize);
    // Each finished window has written its five rows, once.
    let rows: u64 = facts.totals.sinks.values().map(|sink| sink.rows).sum();
    assert_eq!(rows, u64::from(facts.finished.len()) * 5);
    if let BackfillState::Finished { .. } = facts.state {
        assert!(facts.running.is_empty() && facts.pending_count() == 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_window_is_loaded_exactly_once_whatever_comes(tries in tries()) {
        let mut ledger = Book::backfilling(5).ledger;
        let mut log = Vec::new();
        for (attempt, index) in tries.iter().zip(100u64..) {
            let command = command(attempt, &ledger);
            let before = ledger.clone();
            match apply(&mut ledger, index, &command) {
                Response::Accepted { changed: true } => log.push((index, command.clone())),
                Response::Accepted { changed: false } | Response::Rejected(_) => {
                    prop_assert_eq!(&ledger, &before);
                }
            }
            check(&before, &ledger, &command);
        }
        let mut replayed = Book::backfilling(5).ledger;
        for (index, command) in &log {
            let text = serde_json::to_string(command).expect("commands serialise");
            let read: Command = serde_json::from_str(&text).expect("and are read back");
            prop_assert_eq!(&read, command);
            apply(&mut replayed, *index, &read);
        }
        prop_assert_eq!(&replayed, &ledger, "the log alone gives the state");
        let text = serde_json::to_string(&ledger).expect("ledgers serialise");
        let read: Ledger = serde_json::from_str(&text).expect("and are read back");
        prop_assert_eq!(read, ledger);
    }
}

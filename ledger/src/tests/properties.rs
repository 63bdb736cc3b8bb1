//! Random commands, valid and not, from any state that they lead to.

use proptest::prelude::*;
use weir_plan::StageId;

use super::support::*;
use crate::*;

/// What to try next; numbers are taken as offsets from what would be right, so that many tries
/// are valid and many miss by one.
#[derive(Clone, Debug)]
struct Try {
    kind: u8,
    run: u64,
    stage: u32,
    slice: u32,
    epoch_age: u64,
    attempt_offset: i64,
    sequence_offset: i64,
    rows: u64,
    flag: bool,
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    let mostly_zero = prop_oneof![8 => Just(0i64), 1 => Just(1i64), 1 => Just(-1i64)];
    let one = (
        0u8..18,
        1u64..3,
        0u32..4,
        0u32..3,
        prop_oneof![9 => Just(0u64), 1 => Just(1u64)],
        mostly_zero.clone(),
        mostly_zero,
        0u64..5,
        any::<bool>(),
    )
        .prop_map(
            |(kind, run, stage, slice, epoch_age, attempt_offset, sequence_offset, rows, flag)| {
                Try {
                    kind,
                    run,
                    stage,
                    slice,
                    epoch_age,
                    attempt_offset,
                    sequence_offset,
                    rows,
                    flag,
                }
            },
        );
    prop::collection::vec(one, 0..300)
}

fn command(attempt: &Try, ledger: &Ledger) -> Command {
    let epoch = ledger.current_epoch().saturating_sub(attempt.epoch_age);
    let run = run_id(attempt.run);
    let stage = StageId(attempt.stage);
    let slice = (ledger.run(&run))
        .and_then(|run| run.slice(stage, attempt.slice))
        .cloned()
        .unwrap_or_default();
    let shift = |value: u64, offset: i64| value.saturating_add_signed(offset);
    let number = |base: u32| {
        u32::try_from(shift(u64::from(base), attempt.attempt_offset)).expect("tests stay small")
    };
    let current = task(epoch, &run, attempt.stage, attempt.slice, number(slice.attempts));
    let sequence = shift(slice.next_sequence, attempt.sequence_offset);
    match attempt.kind {
        0 if attempt.flag => new_epoch(),
        0 => finish_run(epoch, &run, RunOutcome::Succeeded),
        1 => start_run(epoch, &run),
        2 => plan_run(epoch, &run),
        3..=5 => {
            start(&task(epoch, &run, attempt.stage, attempt.slice, number(slice.attempts + 1)))
        }
        6 | 7 => intent(&current, sequence, attempt.rows, attempt.flag),
        8..=10 => done(&current, sequence),
        11 => lost(&current, sequence),
        12 if attempt.flag => lose(&current, false),
        12 => fail(&current),
        13 => finish_exchange(&current, attempt.rows, &attempt.rows.to_string()),
        14 if attempt.flag => {
            Command::RunCommitIntent(RunCommitIntent { epoch, run, stage: StageId(2) })
        }
        14 => Command::RunCommitDone(RunCommitDone { epoch, run, stage: StageId(2) }),
        15 => Command::StartCopy(StartCopy {
            task: task(epoch, &run, attempt.stage, attempt.slice, number(slice.attempts + 1)),
        }),
        17 if attempt.flag => Command::CleanUpDone(CleanUpDone { epoch, run }),
        17 => {
            let sessions = number(ledger.run(&run).map_or(1, |facts| facts.sessions));
            Command::ForgetRuns(ForgetRuns { epoch, runs: vec![EndedRun { run, sessions }] })
        }
        _ if attempt.flag => {
            Command::ResumeRun(ResumeRun { epoch, run, request_id: None, at: at(6) })
        }
        _ if attempt.rows == 0 => finish_run(epoch, &run, RunOutcome::Abandoned),
        _ => finish_run(epoch, &run, RunOutcome::Failed { error: "failed".into() }),
    }
}

fn check_invariants(before: &Ledger, after: &Ledger) {
    assert!(after.current_epoch() >= before.current_epoch());
    assert!(after.last_index >= before.last_index);
    let active: Vec<_> =
        after.runs.iter().filter(|(_, run)| run.state == RunState::Running).collect();
    assert!(active.len() <= 1, "one run at a time");
    for (id, known) in &before.runs {
        assert!(after.runs.contains_key(id) || known.may_leave(), "{id} is still needed");
    }
    for (id, run) in &after.runs {
        let Some(known) = before.runs.get(id) else { continue };
        assert!(run.committed_rows() >= known.committed_rows());
        if known.state.is_terminal() {
            let cleaned_up = run.cleaned_up;
            let known = &RunFacts { cleaned_up, ..known.clone() };
            assert_eq!(run, known, "of terminal runs only staging goes");
        }
        for (stage, known_stage) in run.stages.iter().zip(&known.stages) {
            let rebuilt = Slices::from(stage.slices.to_vec());
            for node in stage.account().nodes.keys() {
                let counts = stage.account().nodes[node];
                assert_eq!((stage.slices.counts(node), rebuilt.counts(node)), (counts, counts));
            }
            assert!(stage.slices.pending().eq(rebuilt.pending()), "the index follows");
            assert!(stage.slices.unsettled().eq(rebuilt.unsettled()), "the index follows");
            let finished = stage.slices.iter().filter(|slice| slice.is_finished()).count();
            assert_eq!(usize::try_from(stage.finished_slices).ok(), Some(finished));
            for (slice, known) in stage.slices.iter().zip(&known_stage.slices) {
                assert!(
                    slice.next_sequence == known.next_sequence
                        || slice.next_sequence == known.next_sequence + 1
                );
                assert!(slice.attempts >= known.attempts);
                check_attempts(slice, known);
                assert_eq!(
                    slice.account.rows_written,
                    slice.manifest_rows
                        + if stage.sink().is_none() { slice.account.rows_written } else { 0 }
                );
                if known.is_finished() {
                    assert_eq!(slice, known, "the first result wins");
                }
                if let Some(intent) = &slice.intent {
                    assert_eq!(intent.commit.manifest.sequence, slice.next_sequence);
                    assert!(!slice.is_finished());
                }
            }
        }
    }
}

/// Every committed batch is of one attempt, for good; attempts follow each other.
fn check_attempts(slice: &SliceFacts, known: &SliceFacts) {
    assert!(slice.committed_by.starts_with(&known.committed_by));
    assert!(slice.committed_by.iter().all(|by| by.attempt <= slice.attempts));
    let is_growing =
        |pair: &[CommittedBy]| pair[0].from < pair[1].from && pair[0].attempt < pair[1].attempt;
    assert!(slice.committed_by.windows(2).all(is_growing));
    let committed = slice.next_sequence.max(u64::from(slice.exchange.is_some()));
    assert!(slice.committed_by.iter().all(|by| by.from < committed));
    for sequence in 0..committed {
        assert!(slice.attempt_of(sequence).is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_sequence_of_commands_keeps_the_invariants(tries in tries()) {
        let mut ledger = Book::planned().ledger;
        let mut log = Vec::new();
        for (attempt, index) in tries.iter().zip(100u64..) {
            let command = command(attempt, &ledger);
            let before = ledger.clone();
            match apply(&mut ledger, index, &command) {
                Response::Accepted { changed: true } => log.push((index, command)),
                Response::Accepted { changed: false } | Response::Rejected(_) => {
                    prop_assert_eq!(&ledger, &before);
                }
            }
            check_invariants(&before, &ledger);
        }

        let mut replayed = Book::planned().ledger;
        for (index, command) in &log {
            let text = serde_json::to_string(command).expect("commands serialise");
            let read: Command = serde_json::from_str(&text).expect("and are read back");
            prop_assert_eq!(&read, command);
            prop_assert_eq!(
                apply(&mut replayed, *index, &read),
                Response::Accepted { changed: true }
            );
        }
        prop_assert_eq!(&replayed, &ledger, "the log alone gives the state");

        let text = serde_json::to_string(&ledger).expect("ledgers serialise");
        let read: Ledger = serde_json::from_str(&text).expect("and are read back");
        prop_assert_eq!(read, ledger);
    }
}

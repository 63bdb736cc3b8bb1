//! Streaming tasks: what is committed, in which order, and what a later attempt repeats.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use datafusion::common::ScalarValue;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use weir_plan::operators::MorselExec;
use weir_plan::{Slice, StageKind, StreamInput};
use weir_spec::OnError;

use super::fakes::*;
use crate::{DeadLetterLine, RowChecksum, RunFolder, Task, TaskError, TaskOutcome};

/// Lets ids pass for which `id % modulus = 0`.
fn filtered(modulus: i64) -> Arc<dyn ExecutionPlan> {
    filter(modulus, Leaf::morsel())
}

fn filter(modulus: i64, input: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let literal = |value| Arc::new(Literal::new(ScalarValue::Int64(Some(value))));
    let id = Arc::new(Column::new("id", 0));
    let rest = Arc::new(BinaryExpr::new(id, Operator::Modulo, literal(modulus)));
    let is_zero = Arc::new(BinaryExpr::new(rest, Operator::Eq, literal(0)));
    Arc::new(FilterExec::try_new(is_zero, input).expect("a boolean predicate"))
}

fn ids(range: std::ops::Range<i64>) -> Vec<i64> {
    range.collect()
}

fn with_policy(task: Task, on_error: OnError) -> Task {
    let mut stage = task.stage.as_ref().clone();
    let StageKind::Streaming { input: StreamInput::Source { source, .. }, .. } = &mut stage.kind
    else {
        panic!("the task streams a source");
    };
    *source = source_spec(on_error);
    Task { stage: Arc::new(stage), ..task }
}

#[tokio::test]
async fn batches_are_contiguous_and_published_only_behind_their_intent() {
    let world = World::new(FakeSource::default(), Leaf::morsel);
    let task = streaming_task(vec![split(0, 1000), split(1000, 1050)], 300);
    let outcome = world.run(task).await.expect("nothing fails");
    assert_eq!(world.sink.ids(), ids(0..1050));
    let expected: Vec<String> = (0..4)
        .flat_map(|n| ["stage", "intent", "publish", "done"].map(|what| format!("{what} {n}")))
        .collect();
    assert_eq!(world.timeline(), expected);

    let commits = world.log.commits();
    let rows: Vec<u64> = commits.iter().map(|commit| commit.manifest.rows).collect();
    assert_eq!(rows, [300, 300, 300, 150]);
    assert!(commits[..3].iter().all(|commit| commit.resume_at.is_some()));
    assert_eq!(commits[3].resume_at, None);

    let TaskOutcome::Committed(total) = outcome else { panic!("{outcome:?}") };
    let mut checksum = RowChecksum::default();
    checksum.add(&rows_of(0..1050)).expect("hashable");
    assert_eq!((total.rows_written, total.checksum), (1050, checksum.value()));
    assert_eq!(total.nodes[&source_node()].rows_out, 1050);
    assert_eq!(total.nodes[&sink_node()].rows_in, 1050);
    assert_eq!(total.cursors[&source_node()], "1049");
}

#[tokio::test]
async fn every_slice_ends_with_exactly_one_last_commit() {
    for (splits, commits) in [
        (vec![], 1),
        (vec![split(0, 0)], 1),
        (vec![split(0, 300)], 1),
        (vec![split(0, 300), split(300, 300)], 1),
        (vec![split(0, 301)], 2),
    ] {
        let world = World::new(FakeSource::default(), Leaf::morsel);
        world.run(streaming_task(splits, 300)).await.expect("nothing fails");
        let last: Vec<bool> =
            world.log.commits().iter().map(|commit| commit.resume_at.is_none()).collect();
        assert_eq!(last.len(), commits);
        assert_eq!(last.iter().filter(|is_last| **is_last).count(), 1);
        assert_eq!(last.last(), Some(&true));
    }
}

#[tokio::test]
async fn resuming_behind_any_commit_writes_the_same_rows() {
    let task = streaming_task(vec![split(0, 1500), split(1500, 3000)], 20);
    for position_every in [1, 3, 7] {
        let source = || FakeSource { position_every, ..FakeSource::default() };
        let world = World::new(source(), || filtered(2));
        world.run(task.clone()).await.expect("nothing fails");
        let commits = world.log.commits();
        let expected = world.sink.ids();
        assert!(commits.len() > 2, "there is little to resume");
        for (kept, commit) in commits.iter().enumerate().take(commits.len() - 1) {
            let resumed = World::new(source(), || filtered(2));
            *resumed.log.commits.lock().expect("not poisoned") = commits[..=kept].to_vec();
            *resumed.log.done.lock().expect("not poisoned") = (0..=kept as u64).collect();
            resumed.run_to_the_end(&task).await;
            let first = world.sink.published.lock().expect("not poisoned").clone();
            let before = first.into_iter().filter(|((_, n), _)| *n <= commit.manifest.sequence);
            resumed.sink.published.lock().expect("not poisoned").extend(before);
            assert_eq!(resumed.sink.ids(), expected, "after commit {kept}");
        }
    }
}

#[tokio::test]
async fn failures_of_source_and_sink_lose_and_double_nothing() {
    for fail_before in [0, 100, 450, 999] {
        for fail_stage in [0, 2] {
            for fail_publish in [1, 3] {
                let source =
                    FakeSource { fail_before: Mutex::new(Some(fail_before)), ..Default::default() };
                let world = World::new(source, Leaf::morsel);
                *world.sink.fail_stage.lock().expect("not poisoned") = Some(fail_stage);
                *world.sink.fail_publish.lock().expect("not poisoned") = Some(fail_publish);
                let task = streaming_task(vec![split(0, 700), split(700, 1000)], 200);
                let attempts = world.run_to_the_end(&task).await;
                assert_eq!(world.sink.ids(), ids(0..1000));
                assert!(attempts >= 3, "the failures were not met");
                let sequences: Vec<u64> =
                    world.log.commits().iter().map(|commit| commit.manifest.sequence).collect();
                assert_eq!(sequences, (0..sequences.len() as u64).collect::<Vec<_>>());
            }
        }
    }
}

#[tokio::test]
async fn source_failure_is_retryable_and_names_its_node() {
    let source = FakeSource { fail_before: Mutex::new(Some(500)), ..Default::default() };
    let world = World::new(source, Leaf::morsel);
    let error = world.run(streaming_task(vec![split(0, 1000)], 300)).await;
    let error = error.expect_err("the source fails");
    assert!(error.is_retryable());
    assert_eq!(error.to_string(), "node `numbers`: the fake server went away");
}

#[tokio::test]
async fn fenced_task_publishes_nothing_more() {
    let mut world = World::new(FakeSource::default(), Leaf::morsel);
    Arc::get_mut(&mut world.log).expect("not shared yet").fence_intent = Some(1);
    let error = world.run(streaming_task(vec![split(0, 1000)], 300)).await;
    assert!(matches!(error, Err(TaskError::CommitLog(_))));
    assert_eq!(world.sink.ids(), ids(0..300));
}

#[tokio::test]
async fn rows_that_are_filtered_out_do_not_defer_a_commit_forever() {
    let world = World::new(FakeSource::default(), || filtered(1_000_000));
    world.run(streaming_task(vec![split(0, 4000)], 100)).await.expect("nothing fails");
    let read: Vec<u64> = (world.log.commits().iter())
        .map(|commit| commit.account.nodes[&source_node()].rows_in)
        .collect();
    assert_eq!(read, [1600, 1600, 800]);
    assert_eq!(world.sink.ids(), [0]);
}

#[tokio::test]
async fn each_account_holds_exactly_the_rows_of_its_batch() {
    let source = FakeSource { reject_every: Some(10), ..FakeSource::default() };
    let world = World::new(source, || filtered(3));
    world.run(streaming_task(vec![split(0, 1000)], 100)).await.expect("nothing fails");
    let mut read = 0;
    for commit in world.log.commits() {
        let source = commit.account.nodes[&source_node()];
        assert_eq!(source.rows_in, source.rows_out + source.dead_lettered);
        assert_eq!(commit.manifest.rows, commit.account.rows_written);
        read += source.rows_in;
        assert_eq!(commit.account.cursors[&source_node()], (read - 1).to_string());
    }
    assert_eq!(read, 1000);
}

/// Of the attempt that has written them last.
fn dead_letters(world: &World, sequence: u64) -> Vec<DeadLetterLine> {
    let stage = weir_plan::StageId(1);
    let text = (1..10).rev().find_map(|attempt| {
        let name = RunFolder::dead_letter_file(&source_node(), stage, 0, sequence, attempt);
        std::fs::read_to_string(world.path(&name)).ok()
    });
    let text = text.unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a dead letter")).collect()
}

fn dead_letter_files(world: &World) -> usize {
    let folder = world.path(&RunFolder::dead_letters_of(&source_node()));
    std::fs::read_dir(folder).map_or(0, |entries| entries.count())
}

#[tokio::test]
async fn dead_letters_of_a_lost_batch_are_replaced_by_those_of_its_successor() {
    let source = FakeSource {
        reject_every: Some(50),
        fail_before: Mutex::new(Some(1700)),
        ..FakeSource::default()
    };
    let world = World::new(source, Leaf::morsel);
    *world.sink.fail_publish.lock().expect("not poisoned") = Some(1);
    let task = streaming_task(vec![split(0, 2000)], 280);
    assert_eq!(world.run_to_the_end(&task).await, 3);
    let batches = world.log.commits().len() as u64;
    let all: Vec<DeadLetterLine> =
        (0..batches).flat_map(|sequence| dead_letters(&world, sequence)).collect();
    let rows: Vec<String> =
        all.iter().map(|line| line.row.as_str().expect("raw text").to_owned()).collect();
    let expected: Vec<String> = (0..2000).step_by(50).map(|id| id.to_string()).collect();
    assert_eq!(rows, expected);
    assert!(all.iter().any(|line| line.attempt == 1) && all.iter().any(|line| line.attempt == 3));
    assert_eq!(all[1].reasons, ["50 is a bad number"]);
    assert_eq!(all[1].offset, Some(50));
    assert_eq!(dead_letter_files(&world) as u64, batches, "nothing else is left");
}

#[tokio::test]
async fn rejected_rows_are_dropped_or_fail_the_task_as_the_source_says() {
    let source = || FakeSource { reject_every: Some(100), ..FakeSource::default() };
    let task = streaming_task(vec![split(1, 251)], 1000);
    let world = World::new(source(), Leaf::morsel);
    world.run(with_policy(task.clone(), OnError::Drop)).await.expect("nothing fails");
    let counts = world.log.commits()[0].account.nodes[&source_node()];
    assert_eq!((counts.rows_in, counts.rows_out, counts.dropped), (250, 248, 2));
    assert_eq!(dead_letter_files(&world), 0);

    let world = World::new(source(), Leaf::morsel);
    let error = world.run(with_policy(task, OnError::Fail)).await.expect_err("a row is bad");
    assert_eq!(
        error.to_string(),
        "node `numbers`: 100 is a bad number (the row: 100); mend the row, or write `on_error: \
         dead_letter` to go on without it"
    );
    assert!(!error.is_retryable());
    assert!(world.sink.ids().is_empty());
}

#[tokio::test]
async fn frozen_plan_is_decoded_and_executed_for_each_morsel() {
    let world = World::with_frozen_plans(FakeSource::default());
    let morsel = MorselExec::new(None, row_schema());
    let frozen = weir_plan::encode_plan(&filter(3, Arc::new(morsel))).expect("encodable");
    let task = streaming_task(vec![split(0, 1000)], 20);
    let mut stage = task.stage.as_ref().clone();
    let StageKind::Streaming { plan, .. } = &mut stage.kind else { panic!("streaming") };
    *plan = frozen;
    world.run(Task { stage: Arc::new(stage), ..task }).await.expect("nothing fails");
    assert_eq!(world.sink.ids(), (0..1000).step_by(3).collect::<Vec<_>>());
    assert!(world.log.commits().len() > 1);
}

#[tokio::test]
async fn checkpoint_on_disk_is_the_commit() {
    let world = World::new(FakeSource::default(), Leaf::morsel);
    world.run(streaming_task(vec![split(0, 500)], 300)).await.expect("nothing fails");
    for commit in world.log.commits() {
        let (stage, sequence) = (weir_plan::StageId(1), commit.manifest.sequence);
        let json = std::fs::read(world.path(&RunFolder::progress_file(stage, 0, sequence, 1)));
        let kept: crate::Commit =
            serde_json::from_slice(&json.expect("a checkpoint")).expect("a commit");
        assert_eq!(kept, commit);
    }
}

#[tokio::test]
async fn stopped_task_commits_at_the_next_position_and_resumes() {
    let source = FakeSource { position_every: 2, ..FakeSource::default() };
    let world = World::new(source, Leaf::morsel);
    *world.log.stop_after.lock().expect("not poisoned") = Some((0, world.stop.clone()));
    let task = streaming_task(vec![split(0, 1000)], 300);
    assert_eq!(world.run(task.clone()).await.expect("nothing fails"), TaskOutcome::Stopped);
    assert_eq!(world.log.commits().len(), 1);

    let World { folder, sink, log, env, .. } = world;
    let world = World { folder, sink, log, env, stop: Default::default() };
    world.run_to_the_end(&task).await;
    assert_eq!(world.sink.ids(), ids(0..1000));
}

#[tokio::test]
async fn stop_commits_what_a_waiting_source_has_given() {
    let source = FakeSource { hang_before: Some(200), ..FakeSource::default() };
    let world = World::new(source, Leaf::morsel);
    let stop = world.stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.cancel();
    });
    let outcome = world.run(streaming_task(vec![split(0, 1000)], 300)).await;
    assert_eq!(outcome.expect("nothing fails"), TaskOutcome::Stopped);
    assert_eq!(world.sink.ids(), ids(0..200));
}

#[tokio::test]
async fn stop_without_a_position_drops_the_open_batch() {
    let source = FakeSource { hang_before: Some(200), position_every: 5, ..FakeSource::default() };
    let world = World::new(source, Leaf::morsel);
    let stop = world.stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.cancel();
    });
    let outcome = world.run(streaming_task(vec![split(0, 1000)], 300)).await;
    assert_eq!(outcome.expect("nothing fails"), TaskOutcome::Stopped);
    assert!(world.log.commits().is_empty());
    assert!(world.sink.ids().is_empty());
}

#[tokio::test]
async fn slow_source_is_committed_when_the_checkpoint_is_due() {
    let source = FakeSource { hang_before: Some(200), ..FakeSource::default() };
    let every = Duration::from_millis(100);
    let world = World::with_options(source, Leaf::morsel, 64 * 1024 * 1024, every);
    let run = world.run(streaming_task(vec![split(0, 1000)], 300));
    let ended = tokio::time::timeout(10 * every, run).await;
    assert!(ended.is_err(), "the source never ends");
    assert_eq!(world.sink.ids(), ids(0..200));
    assert_eq!(world.log.commits().len(), 1, "an empty batch is not committed");
}

#[tokio::test]
async fn dropped_task_leaves_nothing_behind() {
    let source =
        FakeSource { hang_before: Some(200), reject_every: Some(10), ..FakeSource::default() };
    let world = World::new(source, Leaf::morsel);
    let run = world.run(streaming_task(vec![split(0, 1000)], 300));
    let ended = tokio::time::timeout(Duration::from_millis(200), run).await;
    assert!(ended.is_err());
    // The abort is carried out by the runtime.
    for _ in 0..100 {
        if dead_letter_files(&world) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(dead_letter_files(&world), 0);
    assert!(world.sink.ids().is_empty());
}

#[tokio::test]
async fn panic_of_an_operator_is_an_error_of_the_task() {
    let world = World::new(FakeSource::default(), || {
        Leaf::plan(row_schema(), 1, |_, _| panic!("a defect in an operator"))
    });
    let error = world.run(streaming_task(vec![split(0, 10)], 300)).await.expect_err("it panics");
    assert!(error.to_string().contains("an operator panicked: a defect in an operator"), "{error}");
}

#[tokio::test]
async fn operators_that_do_not_read_still_consume_the_morsel() {
    let world = World::new(FakeSource::default(), || {
        Arc::new(datafusion::physical_plan::empty::EmptyExec::new(row_schema()))
    });
    let outcome = world.run(streaming_task(vec![split(0, 1000)], 300)).await.expect("no failure");
    let TaskOutcome::Committed(total) = outcome else { panic!("{outcome:?}") };
    assert_eq!((total.rows_written, total.nodes[&source_node()].rows_in), (0, 1000));
}

#[tokio::test]
async fn given_rows_replace_the_source_and_move_no_cursor() {
    let world = World::new(FakeSource::default(), Leaf::morsel);
    let path = world.folder.path().join("given.jsonl");
    std::fs::write(&path, "{\"id\": 7, \"name\": \"seven\"}\n").expect("written");
    let given = crate::GivenSource::with_schema(path, &row_schema());
    let mut env = Arc::into_inner(world.env).expect("not shared yet");
    env.given.insert(source_node(), Arc::new(given));
    let world = World { env: Arc::new(env), ..world };
    world.run(streaming_task(vec![split(0, 1)], 300)).await.expect("nothing fails");
    assert_eq!(world.sink.ids(), [7]);
    assert!(world.log.commits()[0].account.cursors.is_empty());
}

#[tokio::test]
async fn a_morsel_costs_less_than_two_milliseconds_of_operators() {
    let context = Arc::new(datafusion::execution::TaskContext::default());
    let plan: Arc<dyn ExecutionPlan> = Arc::new(
        datafusion::physical_plan::filter::FilterExec::try_new(
            Arc::new(Literal::new(ScalarValue::Boolean(Some(true)))),
            Arc::new(datafusion::physical_plan::empty::EmptyExec::new(row_schema())),
        )
        .expect("a boolean predicate"),
    );
    let begin = Instant::now();
    for _ in 0..100 {
        let plan = datafusion::physical_plan::execution_plan::reset_plan_states(Arc::clone(&plan))
            .expect("no state");
        let output = plan.execute(0, Arc::clone(&context)).expect("executable");
        assert!(datafusion::physical_plan::common::collect(output).await.expect("rows").is_empty());
    }
    let each = begin.elapsed() / 100;
    assert!(each < Duration::from_millis(2), "{each:?}");
}

#[test]
fn slices_are_what_the_plan_says() {
    // A slice of the wrong kind is refused before anything is opened.
    let world = World::new(FakeSource::default(), Leaf::morsel);
    let mut task = streaming_task(vec![split(0, 10)], 300);
    let mut stage = task.stage.as_ref().clone();
    let StageKind::Streaming { slices, .. } = &mut stage.kind else { panic!("streaming") };
    slices[0] = Slice::Partition(0);
    task.stage = Arc::new(stage);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let error = runtime.block_on(world.run(task)).expect_err("refused");
    assert!(error.to_string().contains("the slice does not fit the stage's input"), "{error}");
}

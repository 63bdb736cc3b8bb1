//! Whole tasks: all or nothing, bounded memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr, expressions::Column};
use datafusion::physical_plan::common::collect;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, Partitioning};
use futures::StreamExt;
use weir_connectors::{ConnectorError, ScanRequest};
use weir_plan::operators::NodeFailure;
use weir_plan::{ExchangeOutput, InStorage, StageId, StageKind, StageOutput};
use weir_spec::{ExchangeDurability, OnError};

use super::fakes::*;
use crate::exchange::files::read_stream;
use crate::{RunFolder, Task, TaskError, TaskOutcome};

pub(super) fn whole_task(partitions: u32) -> Task {
    task(
        StageKind::Whole {
            plan: no_plan(),
            partitions,
            slices: 1,
            durability: ExchangeDurability::Sync,
        },
        StageOutput::Exchange,
    )
}

/// Rows `0..rows` of every partition, in descending order.
fn descending(partitions: usize, rows: i64) -> Arc<dyn ExecutionPlan> {
    Leaf::plan(row_schema(), partitions, move |_, _| {
        let batches = (0..rows / 1000)
            .rev()
            .map(|batch| Ok(rows_of((batch * 1000..(batch + 1) * 1000).rev())));
        let batches = futures::stream::iter(batches.collect::<Vec<_>>());
        Ok(Box::pin(RecordBatchStreamAdapter::new(row_schema(), batches)))
    })
}

pub(super) fn sorted(input: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let by_id = PhysicalSortExpr::new_default(Arc::new(Column::new("id", 0)));
    let ordering = LexOrdering::new([by_id]).expect("one column");
    Arc::new(SortExec::new(ordering, input).with_preserve_partitioning(true))
}

/// Reads the fake source as a plan's scan does.
pub(super) fn scan() -> Arc<dyn ExecutionPlan> {
    Leaf::plan(row_schema(), 1, |_, context: &TaskContext| {
        let services = services(context);
        let node = source_node();
        let source = services
            .open_source(&node, &source_spec(OnError::DeadLetter))
            .map_err(|error| NodeFailure::wrap(&node, error))?;
        let rows = futures::stream::once(async move {
            let request = ScanRequest::default();
            source.open(&split(0, 1000), &request, None).await
        })
        .flat_map(|opened| match opened {
            Ok(batches) => batches,
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        })
        .map(move |batch: Result<_, ConnectorError>| {
            let batch = batch.map_err(|error| NodeFailure::wrap(&node, error))?;
            services.on_source_batch(&node, &batch)?;
            Ok(batch.rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(row_schema(), rows)))
    })
}

fn with_memory(bytes: u64) -> World {
    let plan = || sorted(descending(1, 300_000));
    World::with_options(FakeSource::default(), plan, bytes, Duration::from_secs(30))
}

async fn exchanged(world: &World, outcome: TaskOutcome) -> (Vec<i64>, crate::RowAccount) {
    let TaskOutcome::Exchanged { output, account } = outcome else { panic!("{outcome:?}") };
    let mut ids = Vec::new();
    for partition in output.first..output.first + output.partitions {
        let path =
            world.path(&RunFolder::exchange_file(StageId(1), &output.file_id, partition as usize));
        let batches = collect(read_stream(path).expect("readable")).await;
        for rows in batches.expect("readable") {
            ids.extend(rows.column(0).as_primitive::<Int64Type>().values());
        }
    }
    (ids, account)
}

#[tokio::test]
async fn all_partitions_are_written_and_accounted() {
    let world = World::new(FakeSource::default(), || descending(3, 10_000));
    let outcome = world.run(whole_task(3)).await.expect("nothing fails");
    let (mut ids, account) = exchanged(&world, outcome).await;
    ids.sort_unstable();
    let expected: Vec<i64> = (0..10_000).flat_map(|id| [id; 3]).collect();
    assert_eq!(ids, expected);
    assert_eq!(account.rows_written, 30_000);
    let mut checksum = crate::RowChecksum::default();
    for _ in 0..3 {
        checksum.add(&rows_of(0..10_000)).expect("hashable");
    }
    assert_eq!(account.checksum, checksum.value());
}

#[tokio::test]
async fn sort_larger_than_the_memory_spills_and_stays_right() {
    let memory = 2 * 1024 * 1024;
    let world = with_memory(memory);
    let outcome = world.run(whole_task(1)).await.expect("it spills");
    let (ids, _) = exchanged(&world, outcome).await;
    assert!(ids.iter().copied().eq(0..300_000));
    let spill = std::fs::read_dir(world.path(RunFolder::SPILL)).expect("the spill folder");
    for entry in spill {
        let inside = std::fs::read_dir(entry.expect("an entry").path()).expect("a folder");
        assert_eq!(inside.count(), 0, "spilled files are removed");
    }
}

#[tokio::test]
async fn too_little_memory_is_an_error_that_says_what_to_raise() {
    let world = with_memory(4096);
    let error = world.run(whole_task(1)).await.expect_err("4 KiB are too few");
    assert!(matches!(error, TaskError::Operator { .. }));
    assert!(error.to_string().contains("raise it with `--memory`"), "{error}");
    let exchange = std::fs::read_dir(world.path(&RunFolder::exchange(StageId(1))));
    assert_eq!(exchange.expect("the stage's folder").count(), 0);
}

#[tokio::test]
async fn source_error_inside_a_whole_plan_names_its_node_and_can_be_retried() {
    let source =
        FakeSource { fail_before: Some(500).into(), reject_every: Some(100), ..Default::default() };
    let world = World::new(source, || sorted(scan()));
    let error = world.run(whole_task(1)).await.expect_err("the source fails once");
    assert_eq!(error.to_string(), "node `numbers`: the fake server went away");
    assert!(error.is_retryable());
    let letters = |attempt| {
        world.path(&RunFolder::dead_letter_file(&source_node(), StageId(1), 0, 0, attempt))
    };
    assert!(!letters(1).exists());

    let outcome = world.run(Task { attempt: 2, ..whole_task(1) }).await.expect("it works now");
    let (ids, account) = exchanged(&world, outcome).await;
    assert_eq!(ids.len(), 990);
    assert_eq!(account.nodes[&source_node()].dead_lettered, 10);
    assert_eq!(account.cursors[&source_node()], "999");
    assert_eq!(std::fs::read_to_string(letters(2)).expect("dead letters").lines().count(), 10);
}

#[tokio::test]
async fn stopped_or_panicking_whole_task_leaves_nothing_visible() {
    let hanging = FakeSource { hang_before: Some(500), ..FakeSource::default() };
    let world = World::new(hanging, scan);
    let stop = world.stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stop.cancel();
    });
    assert_eq!(world.run(whole_task(1)).await.expect("no failure"), TaskOutcome::Stopped);
    let left = std::fs::read_dir(world.path(&RunFolder::exchange(StageId(1))));
    assert_eq!(left.expect("the stage's folder").count(), 0);

    let world = World::new(FakeSource::default(), || {
        Leaf::plan(row_schema(), 2, |partition, context| {
            assert_eq!(partition, 0, "a defect in an operator");
            descending(1, 1000).execute(0, Arc::new(TaskContext::default())).inspect(|_| {
                let _ = context;
            })
        })
    });
    let error = world.run(whole_task(2)).await.expect_err("it panics");
    assert!(error.to_string().contains("a defect in an operator"), "{error}");
}

fn dealt_out(input: Arc<dyn ExecutionPlan>, count: usize) -> Arc<dyn ExecutionPlan> {
    let by_id = Partitioning::Hash(vec![Arc::new(Column::new("id", 0))], count);
    Arc::new(RepartitionExec::try_new(input, by_id).expect("rows can be dealt out"))
}

fn slice_task(slice: u32, slices: u32, partitions: u32) -> Task {
    let kind = StageKind::Whole {
        plan: no_plan(),
        partitions,
        slices,
        durability: ExchangeDurability::Sync,
    };
    Task { slice, ..task(kind, StageOutput::Exchange) }
}

#[tokio::test]
async fn slices_deal_out_their_rows_by_key() {
    let world = World::new(FakeSource::default(), || dealt_out(descending(3, 5_000), 4));
    let mut partitions_of = BTreeMap::<i64, BTreeSet<u32>>::new();
    let mut rows = 0;
    for slice in 0..3 {
        let outcome = world.run(slice_task(slice, 3, 4)).await.expect("nothing fails");
        let TaskOutcome::Exchanged { output, account } = &outcome else { panic!("{outcome:?}") };
        let file_id = format!("{slice}-1-1");
        assert_eq!(
            output,
            &ExchangeOutput {
                file_id: file_id.clone(),
                first: 0,
                partitions: 4,
                holder: None,
                in_storage: InStorage::No,
            }
        );
        assert_eq!(account.rows_written, 5_000);
        for partition in 0..4 {
            let path =
                world.path(&RunFolder::exchange_file(StageId(1), &file_id, partition as usize));
            for batch in collect(read_stream(path).expect("readable")).await.unwrap() {
                for id in batch.column(0).as_primitive::<Int64Type>().values() {
                    partitions_of.entry(*id).or_default().insert(partition);
                    rows += 1;
                }
            }
        }
    }
    assert_eq!((rows, partitions_of.len()), (15_000, 5_000));
    assert!(
        partitions_of.values().all(|partitions| partitions.len() == 1),
        "a key is in one place"
    );
}

#[tokio::test]
async fn slices_that_deal_nothing_out_write_their_own_partition() {
    let world = World::new(FakeSource::default(), || descending(3, 5_000));
    for slice in 0..3 {
        let outcome = world.run(slice_task(slice, 3, 3)).await.expect("nothing fails");
        let (ids, account) = exchanged(&world, outcome.clone()).await;
        assert_eq!((ids.len(), account.rows_written), (5_000, 5_000));
        let TaskOutcome::Exchanged { output, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!((output.first, output.partitions), (slice, 1));
    }
    let error = world.run(slice_task(1, 2, 3)).await.expect_err("two slices of three partitions");
    assert!(error.to_string().contains("does not fit"), "{error}");
}

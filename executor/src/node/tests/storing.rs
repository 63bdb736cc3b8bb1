//! What a process keeps and takes to the storage.

use std::sync::Arc;

use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use weir_plan::{InStorage, StageKind, StageOutput};
use weir_proto::internal::answer::Outcome;
use weir_spec::ExchangeDurability;

use super::leader::{FakeLeader, LeaderStream, end_of, soon};
use super::serving::{RUN_FOLDER, World};
use crate::TaskEnd;
use crate::tests::fakes::{FakeSource, Leaf, no_plan, row_schema, rows_of, task};

fn rows() -> Arc<dyn ExecutionPlan> {
    Leaf::plan(row_schema(), 1, |_, _| {
        let rows = futures::stream::iter([Ok(rows_of(0..10))]);
        Ok(Box::pin(RecordBatchStreamAdapter::new(row_schema(), rows)))
    })
}

/// A run whose only task has ten rows for others.
fn world() -> World {
    let durability = ExchangeDurability::Async;
    let kind = StageKind::Whole { plan: no_plan(), partitions: 1, slices: 1, durability };
    World::of_task(&task(kind, StageOutput::Exchange), FakeSource::default(), rows)
}

/// The task is over.
async fn accept_output(stream: &mut LeaderStream) -> weir_plan::ExchangeOutput {
    let report = stream.report().await;
    stream.answer(report.number, Outcome::Accepted).await;
    match end_of(&report) {
        Some(TaskEnd::Exchanged { output, .. }) => output,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_process_that_leaves_waits_until_the_leader_knows_that_the_storage_has_what_it_keeps() {
    let world = world();
    let mut leader = FakeLeader::start().await;
    let node = world.start(&[&leader]);
    let mut stream = leader.welcome(1, false).await;
    stream.assign(&world.assign).await;
    let output = accept_output(&mut stream).await;
    assert!(output.holder.is_some());
    assert_eq!(output.in_storage, InStorage::Coming);
    let stored = stream.stored().await;
    assert_eq!((stored.stage, &stored.file_id), (1, &output.file_id));
    let exchange = format!("{RUN_FOLDER}/exchange/1/{}/0.arrow", output.file_id);
    let [own, there] =
        ["local/exchange", "storage"].map(|root| world.folder.path().join(root).join(&exchange));
    let read = |path| std::fs::read(path).expect("it is there");
    assert_eq!(read(&own), read(&there));

    world.stop.cancel();
    // The leader has not heard it; the next one hears it again, and again.
    stream.fail().await;
    let mut stream = leader.welcome(2, false).await;
    assert_eq!(stream.stored().await, stored);
    assert_eq!(stream.stored().await, stored);
    assert!(!node.is_finished());
    stream.note_stored(&stored, true).await;
    soon(node).await.expect("it does not panic").expect("it leaves in good order");
    assert!(there.exists());
}

#[tokio::test]
async fn what_the_leader_does_not_want_is_removed_from_the_storage() {
    let world = world();
    let mut leader = FakeLeader::start().await;
    let node = world.start(&[&leader]);
    let mut stream = leader.welcome(1, false).await;
    stream.assign(&world.assign).await;
    let output = accept_output(&mut stream).await;
    let stored = stream.stored().await;
    stream.note_stored(&stored, false).await;
    world.stop.cancel();
    soon(node).await.expect("it does not panic").expect("it leaves in good order");
    let folder = format!("storage/{RUN_FOLDER}/exchange/1/{}", output.file_id);
    assert!(!world.folder.path().join(folder).exists());
}

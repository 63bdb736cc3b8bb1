//! Exchange files: round trip, resumption, visibility.

use std::path::Path;
use std::sync::Arc;

use arrow::compute::concat_batches;
use futures::TryStreamExt;
use weir_plan::{ExchangeOutput, InStorage, Slice, StageId, StageKind, StreamInput};

use super::fakes::*;
use crate::exchange::{ExchangeCompression, ExchangeFile, ExchangeFolder, open, read_files};
use crate::{RunFolder, Task};

const ROWS: i64 = 40_000;

/// A finished exchange of stage 0 with one partition.
fn written(folder: &Path) {
    written_as(folder, "first", 0..ROWS);
}

fn written_as(folder: &Path, file_id: &str, ids: std::ops::Range<i64>) {
    let exchange = ExchangeFolder::create(folder, StageId(0), file_id, true).expect("writable");
    let mut writer = exchange.writer(0, &row_schema()).expect("writable");
    // Odd sizes in, even sizes out.
    for from in ids.step_by(1000) {
        writer.write(rows_of(from..from + 1000)).expect("written");
    }
    writer.finish().expect("finished");
    exchange.publish().expect("published");
}

#[tokio::test]
async fn rows_come_back_in_order_and_counted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    written(folder.path());
    let (sender, receiver) = std::sync::mpsc::channel();
    let path = folder.path().join(RunFolder::exchange_file(StageId(0), "first", 0));
    let on_rows = move |rows| sender.send(rows).expect("counted");
    let stream = read_files(vec![ExchangeFile::Here(path)], "reader", on_rows);
    let batches: Vec<_> = stream.try_collect().await.expect("readable");
    assert!(batches.iter().all(|rows| rows.num_rows() <= 8192));
    assert_eq!(concat_batches(&row_schema(), &batches).expect("one schema"), rows_of(0..ROWS));
    assert_eq!(receiver.iter().sum::<u64>(), ROWS as u64);
}

#[tokio::test]
async fn rows_that_are_not_compressed_come_back_and_take_more_room() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    written(folder.path());
    let exchange = ExchangeFolder::create(folder.path(), StageId(0), "plain", true)
        .expect("writable")
        .compressed(ExchangeCompression::None);
    let mut writer = exchange.writer(0, &row_schema()).expect("writable");
    writer.write(rows_of(0..ROWS)).expect("written");
    writer.finish().expect("finished");
    exchange.publish().expect("published");
    let path = |name| folder.path().join(RunFolder::exchange_file(StageId(0), name, 0));
    let size = |name| std::fs::metadata(path(name)).expect("it is there").len();
    assert!(size("plain") > size("first"));
    let stream = read_files(vec![ExchangeFile::Here(path("plain"))], "reader", |_| ());
    let batches: Vec<_> = stream.try_collect().await.expect("readable");
    assert_eq!(concat_batches(&row_schema(), &batches).expect("one schema"), rows_of(0..ROWS));
}

#[test]
fn reading_goes_on_at_any_batch_even_the_end() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    written(folder.path());
    let path = folder.path().join(RunFolder::exchange_file(StageId(0), "first", 0));
    let all: Vec<_> = open(&path, 0).expect("readable").map(|rows| rows.expect("rows")).collect();
    assert_eq!(all.len(), 5);
    for first in 0..=all.len() {
        let rest: Vec<_> =
            open(&path, first).expect("readable").map(|rows| rows.expect("rows")).collect();
        assert_eq!(rest, all[first..]);
    }
}

#[test]
fn unfinished_exchange_is_invisible_and_vanishes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let exchange =
        ExchangeFolder::create(folder.path(), StageId(0), "first", true).expect("writable");
    let writer = exchange.writer(0, &row_schema()).expect("writable");
    assert!(!folder.path().join(RunFolder::exchange(StageId(0))).join("first").exists());
    drop(writer);
    drop(exchange);
    let left = std::fs::read_dir(folder.path().join(RunFolder::exchange(StageId(0))))
        .expect("the stage's folder");
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn streaming_stage_behind_an_exchange_resumes_at_a_batch() {
    // One slice has written all rows, or several have dealt them out.
    for slices in [1, 2, 5] {
        resumes_behind_an_exchange_of(slices).await;
    }
}

fn output_of(partitions: u32) -> ExchangeOutput {
    let (file_id, holder) = (String::new(), None);
    ExchangeOutput { file_id, first: 0, partitions, holder, in_storage: InStorage::No }
}

async fn resumes_behind_an_exchange_of(slices: u32) {
    let world = World::new(FakeSource::default(), Leaf::morsel);
    let per_slice = ROWS / i64::from(slices);
    let output = |slice: u32| {
        let (file_id, from) = (format!("{slice}-1-1"), i64::from(slice) * per_slice);
        written_as(world.folder.path(), &file_id, from..from + per_slice);
        ExchangeOutput { file_id, ..output_of(3) }
    };
    let elsewhere = ExchangeOutput { file_id: "none".to_owned(), first: 1, ..output_of(2) };
    let outputs = (0..slices).map(output).chain([elsewhere]).collect();
    let task = streaming_task(Vec::new(), 10_000);
    let mut stage = task.stage.as_ref().clone();
    stage.kind = StageKind::Streaming {
        input: StreamInput::Exchange { stage: StageId(0) },
        plan: no_plan(),
        slices: vec![Slice::Partition(0)],
    };
    let inputs = [(StageId(0), outputs)].into();
    let task = Task { stage: Arc::new(stage), inputs, ..task };
    *world.sink.fail_publish.lock().expect("not poisoned") = Some(1);
    assert_eq!(world.run_to_the_end(&task).await, 2);
    assert_eq!(world.sink.ids(), (0..ROWS).collect::<Vec<_>>());
    let read: Vec<u64> = (world.log.commits().iter())
        .map(|commit| commit.account.exchanges_read[&StageId(0)])
        .collect();
    assert_eq!(read.iter().sum::<u64>(), ROWS as u64);
    assert!(read[0] < ROWS as u64, "{read:?}");
}

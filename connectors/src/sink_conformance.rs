//! What every sink must do, as tests that any sink can be put through: see [`check_sink`].
//!
//! A connector's tests provide a [`SinkUnderTest`]: a way to open the sink anew (as another process
//! would) and an independent reader of the target. All functions panic where the sink is wrong.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::future::BoxFuture;
use weir_spec::{CommitMode, WriteMode};

use crate::{
    ErrorKind, Manifest, PrepareSink, PreparedSink, PublishedBatch, Recovery, Sink, SinkTask,
    SinkWriter,
};

/// A row of the conformance suite: `id` (int64, never null) and `label` (string).
pub type TestRow = (i64, Option<String>);

/// One fresh target.
#[async_trait]
pub trait SinkUnderTest: Send + Sync {
    fn mode(&self) -> WriteMode;
    /// Opens the sink anew. Upserting sinks have the key `id`.
    fn open(&self) -> Arc<dyn Sink>;
    /// What a reader sees now, in any order; nothing when the target does not exist yet.
    async fn visible(&self) -> Vec<TestRow>;
    /// Names of staging objects (files, tables) that are there now. Fences and the target's own
    /// ledger are not staging.
    async fn leftovers(&self) -> Vec<String>;
}

/// Makes a fresh, empty target for each test of the suite.
pub type MakeTarget<'a> = &'a (dyn Fn() -> BoxFuture<'a, Box<dyn SinkUnderTest>> + Sync);

/// Puts a sink through the whole suite.
pub async fn check_sink(make: MakeTarget<'_>) {
    rows_become_visible_as_the_commit_mode_says(&*make().await).await;
    a_dropped_writer_leaves_nothing_visible(&*make().await).await;
    recovery_of_a_published_batch_changes_nothing(&*make().await).await;
    recovery_of_a_staged_batch_writes_its_rows_once(&*make().await).await;
    recovery_of_a_lost_batch_says_so(&*make().await).await;
    a_fenced_writer_publishes_nothing(&*make().await).await;
    who_was_replaced_removes_nothing(&*make().await).await;
    for wakes in [Wakes::Before, Wakes::Meanwhile, Wakes::After] {
        an_attempt_that_was_given_up_changes_nothing(&*make().await, wakes).await;
    }
    a_later_attempt_does_not_wait_for_a_paused_one(&*make().await).await;
    runs_of_one_epoch_write_beside_each_other(&*make().await).await;
    a_later_attempt_goes_on_behind_committed_batches(&*make().await).await;
    a_run_without_rows_is_committed(&*make().await).await;
    preparing_and_committing_twice_is_the_same_as_once(&*make().await).await;
    a_second_run_adds_or_replaces_as_the_mode_says(&*make().await).await;
    let target = make().await;
    if target.mode() == WriteMode::Upsert {
        upserts_keep_the_last_row_of_a_key(&*target).await;
    }
}

pub fn test_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("label", DataType::Utf8, true),
    ]))
}

pub fn test_batch(rows: &[TestRow]) -> RecordBatch {
    let ids: Int64Array = rows.iter().map(|(id, _)| Some(*id)).collect();
    let labels: StringArray = rows.iter().map(|(_, label)| label.as_deref()).collect();
    RecordBatch::try_new(test_schema(), vec![Arc::new(ids), Arc::new(labels)])
        .expect("the columns are those of the schema")
}

/// `count` rows from id `first` on; every third label is null, some need quoting.
pub fn test_rows(first: i64, count: i64) -> Vec<TestRow> {
    (first..first + count)
        .map(|id| {
            let label = match id % 3 {
                0 => None,
                1 => Some(format!("row {id}")),
                _ => Some(format!("a \"quoted\", {id}\nsecond line \\ ' é\t")),
            };
            (id, label)
        })
        .collect()
}

pub fn test_identity(run: &str, epoch: u64) -> PrepareSink {
    PrepareSink {
        ledger_id: "0b9c4a52".to_owned(),
        pipeline: "conformance".to_owned(),
        run: run.to_owned(),
        sink: "out".to_owned(),
        epoch,
        has_others_beside: false,
    }
}

/// A run on a sink, as a caller with a ledger would do it.
struct TestRun {
    sink: Arc<dyn Sink>,
    prepared: PreparedSink,
    epoch: u64,
    manifests: Vec<Manifest>,
}

impl TestRun {
    async fn start(target: &dyn SinkUnderTest, run: &str, epoch: u64) -> Self {
        Self::start_as(target, test_identity(run, epoch)).await
    }

    async fn start_as(target: &dyn SinkUnderTest, identity: PrepareSink) -> Self {
        let sink = target.open();
        let prepared =
            sink.prepare(&identity, &test_schema()).await.expect("a fresh target can be prepared");
        Self { sink, prepared, epoch: identity.epoch, manifests: Vec::new() }
    }

    async fn writer(&self, slice: u32, attempt: u32) -> Box<dyn SinkWriter> {
        self.sink
            .writer(SinkTask {
                prepared: self.prepared.clone(),
                epoch: self.epoch,
                slice,
                attempt,
                schema: test_schema(),
            })
            .await
            .expect("a prepared sink gives writers")
    }

    /// Stages rows as two Arrow batches.
    async fn stage(
        &mut self,
        writer: &mut dyn SinkWriter,
        sequence: u64,
        rows: &[TestRow],
    ) -> Manifest {
        let (first, second) = rows.split_at(rows.len() / 2);
        for part in [first, second] {
            writer.write(test_batch(part)).await.expect("rows can be written");
        }
        let manifest = writer
            .stage(sequence, rows.len() as u64, sequence + 77)
            .await
            .expect("a batch can be staged");
        assert_eq!(manifest.sequence, sequence);
        assert_eq!(manifest.rows, rows.len() as u64);
        assert_eq!(manifest.epoch, self.epoch);
        // As a ledger would keep it.
        let json = serde_json::to_string(&manifest).expect("a manifest is JSON");
        let kept: Manifest = serde_json::from_str(&json).expect("a manifest can be read back");
        assert_eq!(kept, manifest);
        self.manifests.push(kept);
        manifest
    }

    async fn write(&mut self, writer: &mut dyn SinkWriter, sequence: u64, rows: &[TestRow]) {
        let manifest = self.stage(writer, sequence, rows).await;
        writer.publish(&manifest).await.expect("a staged batch can be published");
    }

    /// Ends the run as a caller does, and checks the audit.
    async fn finish(&self, target: &dyn SinkUnderTest) {
        if self.sink.commit_mode() == CommitMode::Run {
            self.sink
                .commit_run(&self.prepared, &self.manifests, self.epoch)
                .await
                .expect("a run can be committed");
        }
        self.check_published().await;
        self.sink.clean_up(&self.prepared, self.epoch).await.expect("staging can be removed");
        assert_eq!(target.leftovers().await, Vec::<String>::new(), "staging was left behind");
        self.check_published().await;
    }

    async fn check_published(&self) {
        let mut published = self
            .sink
            .published(&self.prepared, &self.manifests)
            .await
            .expect("the target can be audited");
        published.sort_by_key(|batch| (batch.slice, batch.sequence));
        let mut expected: Vec<&Manifest> = self.manifests.iter().collect();
        expected.sort_by_key(|manifest| (manifest.slice, manifest.sequence));
        assert_eq!(published.len(), expected.len(), "{published:?}");
        for (found, manifest) in published.iter().zip(expected) {
            let PublishedBatch { slice, sequence, rows, checksum } = found;
            assert_eq!((*slice, *sequence), (manifest.slice, manifest.sequence));
            assert_eq!(*rows, manifest.rows, "slice {slice} batch {sequence}");
            assert!(checksum.is_none_or(|checksum| checksum == manifest.checksum));
        }
    }
}

async fn expect_visible(target: &dyn SinkUnderTest, expected: &[TestRow], when: &str) {
    let mut found = target.visible().await;
    let mut expected = expected.to_vec();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "visible rows {when}");
}

pub async fn rows_become_visible_as_the_commit_mode_says(target: &dyn SinkUnderTest) {
    let mut run = TestRun::start(target, "r1", 1).await;
    let is_batchwise = run.sink.commit_mode() == CommitMode::Batch;
    let mut shown = Vec::new();
    for slice in 0..2u32 {
        let mut writer = run.writer(slice, 1).await;
        for sequence in 0..2u64 {
            let rows = test_rows(i64::from(slice) * 1000 + sequence as i64 * 100, 50);
            let manifest = run.stage(&mut *writer, sequence, &rows).await;
            let before = if is_batchwise { shown.clone() } else { Vec::new() };
            expect_visible(target, &before, "after staging").await;
            writer.publish(&manifest).await.expect("a staged batch can be published");
            shown.extend(rows);
            let after = if is_batchwise { shown.clone() } else { Vec::new() };
            expect_visible(target, &after, "after publishing").await;
        }
    }
    run.finish(target).await;
    expect_visible(target, &shown, "at the end").await;
}

pub async fn a_dropped_writer_leaves_nothing_visible(target: &dyn SinkUnderTest) {
    let mut run = TestRun::start(target, "r1", 1).await;
    let mut writer = run.writer(0, 1).await;
    writer.write(test_batch(&test_rows(0, 40))).await.expect("rows can be written");
    drop(writer);
    expect_visible(target, &[], "after dropping a writer").await;
    let rows = test_rows(500, 30);
    let mut writer = run.writer(0, 2).await;
    run.write(&mut *writer, 0, &rows).await;
    run.finish(target).await;
    expect_visible(target, &rows, "at the end").await;
}

pub async fn recovery_of_a_published_batch_changes_nothing(target: &dyn SinkUnderTest) {
    let mut run = TestRun::start(target, "r1", 1).await;
    let rows = test_rows(0, 60);
    let mut writer = run.writer(0, 1).await;
    run.write(&mut *writer, 0, &rows).await;
    drop(writer);
    run.sink = target.open();
    run.epoch = 2;
    for _ in 0..2 {
        let recovery = run.sink.recover(&run.prepared, &run.manifests[0], 1, 2).await;
        assert_eq!(recovery.expect("the target can be asked"), Recovery::Published);
    }
    run.finish(target).await;
    expect_visible(target, &rows, "at the end").await;
}

pub async fn recovery_of_a_staged_batch_writes_its_rows_once(target: &dyn SinkUnderTest) {
    let mut run = TestRun::start(target, "r1", 1).await;
    let rows = test_rows(0, 60);
    let mut writer = run.writer(0, 1).await;
    run.stage(&mut *writer, 0, &rows).await;
    drop(writer);
    run.sink = target.open();
    run.epoch = 2;
    let recovery = run.sink.recover(&run.prepared, &run.manifests[0], 1, 2).await;
    if recovery.expect("the target can be asked") == Recovery::Lost {
        expect_visible(target, &[], "of a lost batch").await;
        run.manifests.clear();
        let mut writer = run.writer(0, 2).await;
        run.write(&mut *writer, 0, &rows).await;
    }
    run.finish(target).await;
    expect_visible(target, &rows, "at the end").await;
}

pub async fn recovery_of_a_lost_batch_says_so(target: &dyn SinkUnderTest) {
    let mut run = TestRun::start(target, "r1", 1).await;
    let rows = test_rows(0, 60);
    let mut writer = run.writer(0, 1).await;
    run.stage(&mut *writer, 0, &rows).await;
    drop(writer);
    run.sink.clean_up(&run.prepared, run.epoch).await.expect("staging can be removed");
    run.sink = target.open();
    run.epoch = 2;
    let recovery = run.sink.recover(&run.prepared, &run.manifests[0], 1, 2).await;
    assert_eq!(recovery.expect("the target can be asked"), Recovery::Lost);
    run.manifests.clear();
    run.prepared = run
        .sink
        .prepare(&test_identity("r1", 2), &test_schema())
        .await
        .expect("a sink can be prepared again");
    let mut writer = run.writer(0, 2).await;
    run.write(&mut *writer, 0, &rows).await;
    run.finish(target).await;
    expect_visible(target, &rows, "at the end").await;
}

pub async fn a_fenced_writer_publishes_nothing(target: &dyn SinkUnderTest) {
    let mut old = TestRun::start(target, "r1", 1).await;
    let rows = test_rows(0, 60);
    let mut old_writer = old.writer(0, 1).await;
    let manifest = old.stage(&mut *old_writer, 0, &rows).await;

    let mut new = TestRun::start(target, "r1", 2).await;
    let error = old_writer.publish(&manifest).await.expect_err("a newer epoch has taken over");
    assert_eq!(error.kind, ErrorKind::Fenced, "{error}");
    if old.sink.commit_mode() == CommitMode::Run {
        let committed = old.sink.commit_run(&old.prepared, &old.manifests, 1).await;
        let error = committed.expect_err("a newer epoch has taken over");
        assert_eq!(error.kind, ErrorKind::Fenced, "{error}");
    }
    expect_visible(target, &[], "after a fenced publish").await;
    let error = old.sink.prepare(&test_identity("r1", 1), &test_schema()).await;
    assert_eq!(error.expect_err("epochs do not go back").kind, ErrorKind::Fenced);
    drop(old_writer);

    new.manifests.clear();
    let mut writer = new.writer(0, 2).await;
    new.write(&mut *writer, 0, &rows).await;
    new.finish(target).await;
    expect_visible(target, &rows, "at the end").await;
}

/// A coordinator that was paused while it gave a run up wakes up when its successor runs it.
pub async fn who_was_replaced_removes_nothing(target: &dyn SinkUnderTest) {
    let old = TestRun::start(target, "r1", 1).await;
    let mut new = TestRun::start(target, "r1", 2).await;
    let (first, second) = (test_rows(0, 60), test_rows(100, 45));
    let mut writer = new.writer(0, 1).await;
    new.write(&mut *writer, 0, &first).await;
    let manifest = new.stage(&mut *writer, 1, &second).await;
    // A sink whose staging is the run's own temporary state has nothing to refuse.
    if let Err(error) = old.sink.clean_up(&old.prepared, 1).await {
        assert_eq!(error.kind, ErrorKind::Fenced, "{error}");
    }
    writer.publish(&manifest).await.expect("its staging is there");
    drop(writer);
    new.finish(target).await;
    expect_visible(target, &[first, second].concat(), "at the end").await;
}

/// When a paused attempt wakes up: seen from the publication of its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakes {
    Before,
    Meanwhile,
    After,
}

/// In one epoch an attempt is given up in the middle of a publication, because nothing was heard of
/// it, and wakes up later.
pub async fn an_attempt_that_was_given_up_changes_nothing(
    target: &dyn SinkUnderTest,
    wakes: Wakes,
) {
    let mut run = TestRun::start(target, "r1", 1).await;
    let (first, second) = (test_rows(0, 60), test_rows(100, 45));
    let mut paused = run.writer(0, 1).await;
    let manifest = run.stage(&mut *paused, 0, &first).await;
    let recovery = target.open().recover(&run.prepared, &manifest, 1, 1).await;
    let is_lost = recovery.expect("the target can be asked") == Recovery::Lost;
    if is_lost {
        run.manifests.clear();
    }
    let mut writer = run.writer(0, 2).await;
    let next = run.stage(&mut *writer, u64::from(!is_lost), &second).await;
    let (woken, published) = match wakes {
        Wakes::Before => {
            let woken = paused.publish(&manifest).await;
            (woken, writer.publish(&next).await)
        }
        Wakes::Meanwhile => {
            futures::future::join(paused.publish(&manifest), writer.publish(&next)).await
        }
        Wakes::After => {
            let published = writer.publish(&next).await;
            (paused.publish(&manifest).await, published)
        }
    };
    published.expect("the later attempt is the slice's current one");
    if is_lost {
        let error = woken.expect_err("the attempt has been given up");
        assert_eq!(error.kind, ErrorKind::Fenced, "{wakes:?}: {error}");
    }
    drop((paused, writer));
    run.finish(target).await;
    let expected = if is_lost { second } else { [first, second].concat() };
    expect_visible(target, &expected, &format!("at the end ({wakes:?})")).await;
}

/// As above, but no publication was intended, so that nobody asks the target.
pub async fn a_later_attempt_does_not_wait_for_a_paused_one(target: &dyn SinkUnderTest) {
    let mut run = TestRun::start(target, "r1", 1).await;
    let rows = test_rows(0, 60);
    let mut paused = run.writer(0, 1).await;
    let manifest = run.stage(&mut *paused, 0, &rows).await;
    run.manifests.clear();
    let mut writer = run.writer(0, 2).await;
    let written = run.write(&mut *writer, 0, &rows);
    tokio::time::timeout(std::time::Duration::from_secs(30), written)
        .await
        .expect("the later attempt waits for nobody");
    // Without an intent it may not; should it do so, nothing happens.
    let _ = paused.publish(&manifest).await;
    drop((paused, writer));
    run.finish(target).await;
    expect_visible(target, &rows, "at the end").await;
}

/// Windows of a backfill are runs that go on at the same time. A later attempt of one is none of another.
pub async fn runs_of_one_epoch_write_beside_each_other(target: &dyn SinkUnderTest) {
    if target.mode() == WriteMode::Replace {
        return;
    }
    let beside = |run| PrepareSink { has_others_beside: true, ..test_identity(run, 1) };
    let mut first = TestRun::start_as(target, beside("r1")).await;
    let (rows, others) = (test_rows(0, 60), test_rows(100, 45));
    let mut writer = first.writer(0, 1).await;
    // Begun before the other run is prepared, and published when that is over.
    let manifest = first.stage(&mut *writer, 0, &rows).await;
    let mut second = TestRun::start_as(target, beside("r2")).await;
    // Nor does a run that is none of a window take theirs away.
    let alone = TestRun::start(target, "r3", 1).await;
    alone.sink.clean_up(&alone.prepared, 1).await.expect("staging can be removed");
    let mut other = second.writer(0, 2).await;
    second.write(&mut *other, 0, &others).await;
    let recovery = target.open().recover(&second.prepared, &second.manifests[0], 2, 1).await;
    assert_eq!(recovery.expect("the target can be asked"), Recovery::Published);
    drop(other);
    if second.sink.commit_mode() == CommitMode::Run {
        let committed = second.sink.commit_run(&second.prepared, &second.manifests, 1).await;
        committed.expect("a run can be committed");
    }
    second.check_published().await;
    second.sink.clean_up(&second.prepared, 1).await.expect("staging can be removed");
    expect_visible(target, &others, "after the second run").await;
    writer.publish(&manifest).await.expect("nobody has taken over");
    drop(writer);
    first.finish(target).await;
    expect_visible(target, &[others, rows].concat(), "at the end").await;
}

pub async fn a_later_attempt_goes_on_behind_committed_batches(target: &dyn SinkUnderTest) {
    let mut run = TestRun::start(target, "r1", 1).await;
    let (first, second) = (test_rows(0, 60), test_rows(100, 60));
    let mut writer = run.writer(3, 1).await;
    run.write(&mut *writer, 0, &first).await;
    // Rows of the next batch are lost with the attempt.
    writer.write(test_batch(&second[..10])).await.expect("rows can be written");
    drop(writer);
    let mut writer = run.writer(3, 2).await;
    run.write(&mut *writer, 1, &second).await;
    run.finish(target).await;
    expect_visible(target, &[first, second].concat(), "at the end").await;
}

pub async fn a_run_without_rows_is_committed(target: &dyn SinkUnderTest) {
    let mut run = TestRun::start(target, "r1", 1).await;
    let mut writer = run.writer(0, 1).await;
    let manifest = writer.stage(0, 0, 0).await.expect("an empty batch can be staged");
    writer.publish(&manifest).await.expect("an empty batch can be published");
    run.manifests.push(manifest.clone());
    drop(writer);
    let recovery = run.sink.recover(&run.prepared, &manifest, 1, 1).await;
    assert_eq!(recovery.expect("the target can be asked"), Recovery::Published);
    run.finish(target).await;
    expect_visible(target, &[], "at the end").await;
}

pub async fn preparing_and_committing_twice_is_the_same_as_once(target: &dyn SinkUnderTest) {
    let first = TestRun::start(target, "r1", 1).await;
    let mut run = TestRun::start(target, "r1", 1).await;
    assert_eq!(run.prepared.payload, first.prepared.payload);
    let rows = test_rows(0, 60);
    for (slice, part) in (0u32..).zip(rows.chunks(20)) {
        let mut writer = run.writer(slice, 1).await;
        run.write(&mut *writer, 0, part).await;
    }
    if run.sink.commit_mode() == CommitMode::Run {
        for epoch in [1, 2] {
            target
                .open()
                .commit_run(&run.prepared, &run.manifests, epoch)
                .await
                .expect("a run can be committed again");
            expect_visible(target, &rows, "after committing").await;
        }
        run.epoch = 2;
    }
    run.finish(target).await;
    run.sink.clean_up(&run.prepared, run.epoch).await.expect("staging can be removed twice");
    expect_visible(target, &rows, "at the end").await;
}

pub async fn a_second_run_adds_or_replaces_as_the_mode_says(target: &dyn SinkUnderTest) {
    let (first, second) = (test_rows(0, 60), test_rows(1000, 45));
    for (run, rows) in [("r1", &first), ("r2", &second)] {
        let mut run = TestRun::start(target, run, 1).await;
        let mut writer = run.writer(0, 1).await;
        run.write(&mut *writer, 0, rows).await;
        drop(writer);
        run.finish(target).await;
    }
    let expected = match target.mode() {
        WriteMode::Append | WriteMode::Upsert => [first, second].concat(),
        WriteMode::Replace => second,
    };
    expect_visible(target, &expected, "after two runs").await;
}

pub async fn upserts_keep_the_last_row_of_a_key(target: &dyn SinkUnderTest) {
    let row = |id: i64, label: &str| (id, Some(label.to_owned()));
    let mut run = TestRun::start(target, "r1", 1).await;
    let mut writer = run.writer(0, 1).await;
    let first = [row(1, "a"), row(2, "b"), row(1, "c"), row(3, "d"), row(1, "e")];
    run.write(&mut *writer, 0, &first).await;
    run.write(&mut *writer, 1, &[row(2, "f"), row(4, "g"), (3, None)]).await;
    drop(writer);
    run.finish(target).await;
    let expected = [row(1, "e"), row(2, "f"), (3, None), row(4, "g")];
    expect_visible(target, &expected, "after upserts").await;
}

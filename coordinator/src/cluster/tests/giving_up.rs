//! Runs that are given up for others, at a target that fails or hangs when it is asked what it has of them.

use std::num::NonZeroU32;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use weir_connectors::{
    ConnectorError, ErrorKind, Manifest, PrepareSink, PreparedSink, PublishedBatch, Recovery, Sink,
    SinkTask, SinkWriter,
};
use weir_executor::{Registry, Systems};
use weir_ledger::{
    Again, BackfillChange, CommitIntent, SliceAttempt, StartAttempt, WindowOf, WindowState,
};
use weir_plan::{Commit, RowAccount, StageId};
use weir_spec::{CommitMode, NodeName};

use super::*;
use crate::cluster::backfills::WantedBackfill;

/// What the target does when it is asked.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Answers,
    Fails(ErrorKind),
    Hangs,
}

#[derive(Debug)]
struct Target {
    asked: Mutex<Asked>,
    times: AtomicUsize,
    /// The answer that staging is prepared takes a while.
    prepares_slowly: AtomicBool,
    cleaned: AtomicUsize,
}

impl Target {
    fn set(&self, asked: Asked) {
        *self.asked.lock().expect("nobody has panicked") = asked;
    }

    fn times(&self) -> usize {
        self.times.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct AtTarget {
    registry: Registry,
    target: Arc<Target>,
}

#[derive(Debug)]
struct AskedSink {
    inner: Arc<dyn Sink>,
    target: Arc<Target>,
}

impl Systems for AtTarget {
    fn open_source(
        &self,
        node: &NodeName,
        source: &weir_spec::Source,
    ) -> Result<Arc<dyn weir_connectors::Source>, ConnectorError> {
        self.registry.open_source(node, source)
    }

    fn open_sink(
        &self,
        node: &NodeName,
        sink: &weir_spec::Sink,
    ) -> Result<Arc<dyn Sink>, ConnectorError> {
        let inner = self.registry.open_sink(node, sink)?;
        Ok(Arc::new(AskedSink { inner, target: Arc::clone(&self.target) }))
    }
}

#[async_trait]
impl Sink for AskedSink {
    fn commit_mode(&self) -> CommitMode {
        self.inner.commit_mode()
    }

    async fn prepare(
        &self,
        identity: &PrepareSink,
        schema: &SchemaRef,
    ) -> Result<PreparedSink, ConnectorError> {
        let prepared = self.inner.prepare(identity, schema).await;
        if self.target.prepares_slowly.load(Ordering::SeqCst) {
            self.target.times.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        prepared
    }

    async fn writer(&self, task: SinkTask) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        self.inner.writer(task).await
    }

    async fn recover(
        &self,
        _: &PreparedSink,
        _: &Manifest,
        _: u32,
        _: u64,
    ) -> Result<Recovery, ConnectorError> {
        let asked = *self.target.asked.lock().expect("nobody has panicked");
        self.target.times.fetch_add(1, Ordering::SeqCst);
        match asked {
            Asked::Answers => Ok(Recovery::Lost),
            Asked::Fails(kind) => Err(ConnectorError::new(kind, "no answer")),
            Asked::Hangs => std::future::pending().await,
        }
    }

    async fn commit_run(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        self.inner.commit_run(prepared, manifests, epoch).await
    }

    async fn published(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
    ) -> Result<Vec<PublishedBatch>, ConnectorError> {
        self.inner.published(prepared, manifests).await
    }

    async fn clean_up(&self, prepared: &PreparedSink, epoch: u64) -> Result<(), ConnectorError> {
        self.target.cleaned.fetch_add(1, Ordering::SeqCst);
        self.inner.clean_up(prepared, epoch).await
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        self.inner.check().await
    }
}

async fn leading_at(place: &Place, asked: Asked) -> (Arc<Leading>, Arc<Target>) {
    let target = Arc::new(Target {
        asked: Mutex::new(asked),
        times: AtomicUsize::new(0),
        prepares_slowly: AtomicBool::new(false),
        cleaned: AtomicUsize::new(0),
    });
    let mut settings = place.settings();
    let registry = Registry { context: settings.context.clone() };
    let systems = AtTarget { registry, target: Arc::clone(&target) };
    settings.systems = SystemsMaker::of(Arc::new(systems));
    let leading = Leading::begin(place.member(), settings, Duration::from_secs(3)).await;
    (Arc::new(leading.expect("it leads")), target)
}

async fn submit_to(place: &Place, leading: &Arc<Leading>, request: RunRequest) -> Submitted {
    let mut spec = spec("p");
    spec.concurrency.on_overlap = OnOverlap::CancelRunning;
    spec.retry.max_attempts = NonZeroU32::MIN;
    let base_dir = place.folder.path().to_owned();
    answered(leading.submit(&spec, "", base_dir, request)).await.expect("it can be submitted")
}

fn request(id: &str) -> RunRequest {
    RunRequest { request_id: Some(id.to_owned()), ..RunRequest::default() }
}

/// As if an executor had been about to publish a batch.
async fn intend(leading: &Leading, run: &RunId) {
    let (epoch, run) = (leading.epoch, run.clone());
    let task = SliceAttempt { epoch, run, stage: StageId(0), slice: 0, attempt: 1 };
    let manifest = Manifest {
        slice: 0,
        sequence: 0,
        rows: 0,
        checksum: 0,
        epoch,
        payload: serde_json::Value::Null,
    };
    let commit = Commit { manifest, account: RowAccount::default(), resume_at: None };
    let start = Command::StartAttempt(StartAttempt { task: task.clone() });
    leading.append(start).await.expect("the ledger is there");
    let intent = Command::CommitIntent(CommitIntent { task, commit });
    leading.append(intent).await.expect("the ledger is there");
}

/// The answer, which does not wait for a target.
async fn answered<T>(asking: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), asking).await.expect("it is answered")
}

async fn asked(target: &Target) {
    for _ in 0..1_000 {
        if target.times() > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the target is not asked");
}

/// A run that was stopped half-way for another one, which waits.
async fn replaced(place: &Place, leading: &Arc<Leading>) -> (RunId, RunId) {
    let first = submit_to(place, leading, request("first")).await.run;
    planned(leading, &first).await;
    intend(leading, &first).await;
    let next = submit_to(place, leading, request("next")).await;
    assert_eq!(next.outcome, Outcome::Queued { beside: first.clone() });
    take_turns(leading).await;
    failed(leading, &first).await;
    leading.session_gone(&first).await;
    (first, next.run)
}

async fn until_begun(leading: &Arc<Leading>, run: &RunId) {
    for _ in 0..300 {
        answered(take_turns(leading)).await;
        answered(take_up(leading)).await;
        if facts(leading, run).await.state == RunState::Running {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not begin: {:?}", facts(leading, run).await);
}

#[tokio::test]
async fn what_a_sink_prepares_while_its_run_is_cancelled_is_removed_by_the_next_one() {
    let place = Place::new().await;
    let (leading, target) = leading_at(&place, Asked::Answers).await;
    target.prepares_slowly.store(true, Ordering::SeqCst);
    let run = submit_to(&place, &leading, request("first")).await.run;
    asked(&target).await;
    answered(leading.cancel(&run.0, "")).await.expect("it goes on");
    answered(leading.session_gone(&run)).await;
    let cancelled = facts(&leading, &run).await;
    assert!(matches!(cancelled.state, RunState::Failed { .. }), "{:?}", cancelled.state);
    assert_eq!(cancelled.prepared.len(), 1, "it is known that staging is there");
    submit_to(&place, &leading, request("next")).await;
    assert_eq!(target.cleaned.load(Ordering::SeqCst), 1);
    assert!(facts(&leading, &run).await.cleaned_up);
}

#[tokio::test]
async fn a_target_that_hangs_keeps_only_its_own_pipeline_waiting() {
    let place = Place::new().await;
    let (leading, target) = leading_at(&place, Asked::Hangs).await;
    let (first, next) = replaced(&place, &leading).await;
    answered(take_turns(&leading)).await;
    asked(&target).await;

    let other = answered(place.submit(&leading, "other", "1")).await;
    planned(&leading, &other).await;
    answered(leading.cancel(&other.0, "")).await.expect("it goes on");
    answered(leading.retry(&other.0, "")).await.expect("it has failed");
    answered(take_turns(&leading)).await;
    answered(take_up(&leading)).await;
    let waiting = submit_to(&place, &leading, request("last")).await;
    assert_eq!(waiting.outcome, Outcome::Queued { beside: next.clone() });
    assert_eq!(target.times(), 1, "it is asked once at a time");

    // Nobody wants the first one to be given up any more.
    for run in [&next, &waiting.run] {
        answered(leading.cancel(&run.0, "")).await.expect("it waits");
    }
    answered(leading.retry(&first.0, "")).await.expect("it has failed half-way");
    assert_eq!(facts(&leading, &first).await.state, RunState::Running);
}

#[tokio::test]
async fn a_run_waits_until_the_one_before_it_can_be_given_up_and_that_one_does_not_go_on() {
    let place = Place::new().await;
    let unavailable = ErrorKind::Unavailable { retry_after: None, status: None };
    let (leading, target) = leading_at(&place, Asked::Fails(unavailable)).await;
    let (first, next) = replaced(&place, &leading).await;
    answered(take_turns(&leading)).await;
    asked(&target).await;
    answered(take_up(&leading)).await;
    assert!(is_queued(&leading, &next).await);
    assert!(matches!(facts(&leading, &first).await.state, RunState::Failed { .. }));
    assert!(leading.watch(&first).is_none(), "nobody works on it again");
    target.set(Asked::Answers);
    until_begun(&leading, &next).await;
    let first = facts(&leading, &first).await;
    assert!(matches!(first.state, RunState::Abandoned { .. }), "{:?}", first.state);
    assert_eq!(first.sessions, 2, "its own, and the one that has given it up");
    planned(&leading, &next).await;
}

#[tokio::test]
async fn a_run_fails_when_the_one_before_it_cannot_be_given_up_at_all() {
    let place = Place::new().await;
    let (leading, _target) = leading_at(&place, Asked::Fails(ErrorKind::Config)).await;
    let (first, next) = replaced(&place, &leading).await;
    answered(take_turns(&leading)).await;
    let ended = until(&leading, &next, |facts| facts.state != RunState::Queued).await;
    let RunState::Failed { error, .. } = &ended.state else { panic!("{:?}", ended.state) };
    assert!(error.contains(&format!("run {first} cannot be given up now")), "{error}");
    assert!(matches!(facts(&leading, &first).await.state, RunState::Failed { .. }));
}

#[tokio::test]
async fn who_starts_afresh_waits_for_the_target_alone() {
    let place = Place::new().await;
    let (leading, target) = leading_at(&place, Asked::Hangs).await;
    let (first, next) = replaced(&place, &leading).await;
    leading.cancel(&next.0, "").await.expect("it waits");
    let fresh = RunRequest { fresh: true, ..request("fresh") };
    let submitting = submit_to(&place, &leading, fresh.clone());
    tokio::select! {
        submitted = submitting => panic!("the target has not answered: {submitted:?}"),
        () = asked(&target) => {}
    }
    let other = answered(place.submit(&leading, "other", "1")).await;
    planned(&leading, &other).await;
    // Asked again, by the same client for example.
    target.set(Asked::Answers);
    let submitted = submit_to(&place, &leading, fresh).await;
    assert_eq!(submitted.outcome, Outcome::Started);
    assert!(matches!(facts(&leading, &first).await.state, RunState::Abandoned { .. }));
    planned(&leading, &submitted.run).await;
}

async fn backfill(place: &Place, leading: &Arc<Leading>, pipeline: &str) -> WindowOf {
    let text = format!(
        "pipeline: {pipeline}\nsources: {{ a: {{ type: csv, path: in.csv }} }}\n\
         transforms: {{ b: {{ sql: \"SELECT id, {{{{ window.start }}}} AS day FROM a\" }} }}\n\
         sinks: {{ s: {{ input: b, type: csv, path: out-{pipeline} }} }}\n"
    );
    let spec = weir_spec::parse("p.yaml", &text).expect("a good file").spec;
    let day = |day: i64| DateTime::UNIX_EPOCH + TimeDelta::days(day);
    let wanted = WantedBackfill {
        request: RunRequest::default(),
        from: day(0),
        to: day(1),
        step: "1d".to_owned(),
        parallel: 1,
        priority: 0,
    };
    let base_dir = place.folder.path().to_owned();
    let created = answered(leading.create_backfill(&spec, "", base_dir, wanted)).await;
    WindowOf { backfill: created.expect("it can be created").0, window: 0 }
}

/// The run of a window that is at work.
async fn run_of(leading: &Leading, of: &WindowOf) -> RunId {
    for _ in 0..1_500 {
        let run = leading.with_ledger(|ledger| {
            let facts = ledger.backfill(&of.backfill)?;
            let is_running = facts.window(of.window) == Some(WindowState::Running);
            facts.run_of(&of.backfill, of.window).filter(|_| is_running)
        });
        if let Some(run) = run.await {
            return run;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("window {} of {} does not begin", of.window, of.backfill);
}

#[tokio::test]
async fn a_window_whose_target_hangs_keeps_no_other_backfill_from_going_on() {
    let place = Place::new().await;
    let (leading, target) = leading_at(&place, Asked::Hangs).await;
    let _backfills = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(
        Leading::keep_backfills(Arc::downgrade(&leading)),
    ));
    let of = backfill(&place, &leading, "p").await;
    let run = run_of(&leading, &of).await;
    planned(&leading, &run).await;
    intend(&leading, &run).await;
    leading.finish(&run, "no").await.expect("the ledger is there");
    let again = BackfillChange::Retry { windows: None, again: Again::Fresh };
    let changing = leading.change_backfill(&of.backfill.0, again, "");
    answered(changing).await.expect("it has failed");
    asked(&target).await;

    let other = backfill(&place, &leading, "other").await;
    run_of(&leading, &other).await;
    answered(place.submit(&leading, "another", "1")).await;
    assert_eq!(target.times(), 1, "it is asked once at a time");
}

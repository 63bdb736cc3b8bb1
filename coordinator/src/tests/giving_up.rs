//! A run that is given up while a sink shows its rows: the target keeps all of them, never a part.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use tokio::sync::Notify;
use weir_connectors::{
    ConnectorError, Manifest, PrepareSink, PreparedSink, PublishedBatch, Recovery, Sink, SinkTask,
    SinkWriter,
};
use weir_executor::{Registry, Systems};
use weir_spec::{Compression, FileFormat, FileTarget};

use super::*;

/// The connectors, but the first `commit_run` shows one batch and then hangs.
#[derive(Debug)]
struct HalfShown {
    registry: Registry,
    fault: Arc<Fault>,
}

#[derive(Debug)]
struct Fault {
    is_armed: AtomicBool,
    half_shown: Notify,
}

#[derive(Debug)]
struct HalfShownSink {
    inner: Arc<dyn Sink>,
    fault: Arc<Fault>,
}

impl Systems for HalfShown {
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
        Ok(Arc::new(HalfShownSink { inner, fault: Arc::clone(&self.fault) }))
    }
}

#[async_trait]
impl Sink for HalfShownSink {
    fn commit_mode(&self) -> CommitMode {
        self.inner.commit_mode()
    }

    async fn prepare(
        &self,
        identity: &PrepareSink,
        schema: &SchemaRef,
    ) -> Result<PreparedSink, ConnectorError> {
        self.inner.prepare(identity, schema).await
    }

    async fn writer(&self, task: SinkTask) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        self.inner.writer(task).await
    }

    async fn recover(
        &self,
        prepared: &PreparedSink,
        manifest: &Manifest,
        attempt: u32,
        epoch: u64,
    ) -> Result<Recovery, ConnectorError> {
        self.inner.recover(prepared, manifest, attempt, epoch).await
    }

    async fn commit_run(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        if !self.fault.is_armed.swap(false, Ordering::Relaxed) {
            return self.inner.commit_run(prepared, manifests, epoch).await;
        }
        assert!(manifests.len() > 1, "a part can be shown");
        self.inner.commit_run(prepared, &manifests[..1], epoch).await?;
        self.fault.half_shown.notify_one();
        std::future::pending().await
    }

    async fn published(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
    ) -> Result<Vec<PublishedBatch>, ConnectorError> {
        self.inner.published(prepared, manifests).await
    }

    async fn clean_up(&self, prepared: &PreparedSink, epoch: u64) -> Result<(), ConnectorError> {
        self.inner.clean_up(prepared, epoch).await
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        self.inner.check().await
    }
}

/// Lines of the CSV files that a reader of `out/` sees; they have no header.
fn shown_rows(place: &Place) -> usize {
    let Ok(files) = std::fs::read_dir(place.0.path().join("out")) else { return 0 };
    files
        .map(|file| file.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "csv"))
        .map(|path| std::fs::read_to_string(path).expect("CSV is text").lines().count())
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_has_begun_to_show_a_run_is_finished_before_the_run_is_given_up() {
    let place = Place::new().await;
    let mut spec = spec();
    let mut shown = sink("unused", WriteMode::Append, CommitMode::Run);
    shown.batch_rows = NonZeroU64::new(20_000).expect("not zero");
    shown.target = SinkTarget::Files(FileTarget {
        path: TemplateText::new("out"),
        format: FileFormat::Csv { delimiter: b',', quote: b'"', header: false },
        partition_by: Vec::new(),
        target_file_size_bytes: NonZeroU64::new(128 << 20).expect("not zero"),
        compression: Compression::None,
    });
    spec.sinks = IndexMap::from([(NodeName::new("shown"), shown)]);

    let fault = Arc::new(Fault { is_armed: AtomicBool::new(true), half_shown: Notify::new() });
    let registry = Registry { context: place.context() };
    let systems = Arc::new(HalfShown { registry, fault: Arc::clone(&fault) });
    let options = place.engine().await.options.clone();
    let engine = Engine::with_systems(options, systems);
    let (events, _received) = mpsc::unbounded_channel();
    let running = engine.run(&spec, "", RunRequest::default(), events, CancellationToken::new());
    tokio::select! {
        ended = running => panic!("not interrupted: {ended:?}"),
        () = fault.half_shown.notified() => {}
    }
    let all = usize::try_from(ROWS).expect("a small number");
    let part = shown_rows(&place);
    assert!(0 < part && part < all, "{part} of {all} rows are visible");

    let (events, _received) = mpsc::unbounded_channel();
    let fresh = RunRequest { fresh: true, ..RunRequest::default() };
    let second =
        engine.run(&spec, "", fresh, events, CancellationToken::new()).await.expect("a fresh run");
    assert_eq!(shown_rows(&place), 2 * all, "the rows of both runs, whole");
    let runs = history::runs(&place.state()).await.expect("the ledger can be read");
    let abandoned = runs.iter().find(|run| run.run != second.run).expect("two runs");
    assert_eq!(abandoned.status, RunStatus::Abandoned);
    place.assert_clean(&abandoned.run).await;
    place.assert_clean(&second.run).await;
}

//! What operators get from the task that executes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use weir_connectors::{
    ConnectorError, Position, ScanRequest, Source, SourceBatch, SourceDescription, SourceStream,
    Split,
};
use weir_plan::{NodeCounts, Rejection, StageId, TaskServices};
use weir_spec::NodeName;

use crate::exchange;
use crate::morsel::MorselFeed;
use crate::recorder::Recorder;
use crate::{ExecutorEnv, Task};

/// The services of one task.
#[derive(Debug)]
pub(crate) struct ExecutorServices {
    env: Arc<ExecutorEnv>,
    recorder: Arc<Recorder>,
    /// The accepted file of each exchange.
    inputs: BTreeMap<StageId, String>,
    /// Streaming stages only.
    morsels: Option<MorselFeed>,
}

impl ExecutorServices {
    pub(crate) fn shared(
        task: &Task,
        env: &Arc<ExecutorEnv>,
        recorder: &Arc<Recorder>,
        morsels: Option<MorselFeed>,
    ) -> Arc<dyn TaskServices> {
        Arc::new(Self {
            env: Arc::clone(env),
            recorder: Arc::clone(recorder),
            inputs: task.inputs.clone(),
            morsels,
        })
    }
}

impl TaskServices for ExecutorServices {
    fn open_source(
        &self,
        node: &NodeName,
        source: &weir_spec::Source,
    ) -> Result<Arc<dyn Source>, ConnectorError> {
        open_source(&self.env, &self.recorder, node, source)
    }

    fn on_source_batch(&self, node: &NodeName, batch: &SourceBatch) -> Result<()> {
        self.recorder.on_source_batch(node, batch)
    }

    fn read_exchange(&self, stage: StageId, partition: usize) -> Result<SendableRecordBatchStream> {
        let Some(file_id) = self.inputs.get(&stage) else {
            return Err(DataFusionError::Internal(format!(
                "the task reads the exchange of stage {stage}, which it was not given"
            )));
        };
        let path = self.env.folder.exchange_file(stage, file_id, partition);
        self.recorder.on_exchange_rows(stage, 0);
        let recorder = Arc::clone(&self.recorder);
        exchange::read_stream(&path, move |rows| recorder.on_exchange_rows(stage, rows))
    }

    fn morsel(&self) -> Result<SendableRecordBatchStream> {
        match &self.morsels {
            Some(feed) => feed.stream(),
            None => Err(DataFusionError::Internal("a whole stage has no morsels".to_owned())),
        }
    }

    fn count(&self, node: &NodeName, counts: NodeCounts) {
        self.recorder.count(node, counts);
    }

    fn reject(&self, node: &NodeName, rows: Vec<Rejection>) -> Result<()> {
        self.recorder.reject(node, rows)
    }
}

/// Opens a source node, or what was given in its place.
pub(crate) fn open_source(
    env: &ExecutorEnv,
    recorder: &Arc<Recorder>,
    node: &NodeName,
    source: &weir_spec::Source,
) -> Result<Arc<dyn Source>, ConnectorError> {
    let given = env.given.get(node);
    recorder.declare_source(node, source, given.is_some());
    let inner = match given {
        Some(given) => Arc::clone(given),
        None => match env.systems.open_source(node, source) {
            Ok(inner) => inner,
            Err(error) => {
                recorder.note_failed_source(node);
                return Err(error);
            }
        },
    };
    Ok(Arc::new(NamedSource { node: node.clone(), inner, recorder: Arc::clone(recorder) }))
}

/// A source that tells the recorder when it fails, because an error that has passed through
/// operators no longer names its node.
#[derive(Debug)]
struct NamedSource {
    node: NodeName,
    inner: Arc<dyn Source>,
    recorder: Arc<Recorder>,
}

impl NamedSource {
    fn noting<T>(&self, result: Result<T, ConnectorError>) -> Result<T, ConnectorError> {
        result.inspect_err(|_| self.recorder.note_failed_source(&self.node))
    }
}

#[async_trait]
impl Source for NamedSource {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        self.noting(self.inner.describe().await)
    }

    async fn splits(
        &self,
        request: &ScanRequest,
        parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError> {
        self.noting(self.inner.splits(request, parallelism).await)
    }

    async fn open(
        &self,
        split: &Split,
        request: &ScanRequest,
        from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError> {
        let stream = self.noting(self.inner.open(split, request, from).await)?;
        let recorder = Arc::clone(&self.recorder);
        let node = self.node.clone();
        let noting = move |batch: &Result<SourceBatch, ConnectorError>| {
            if batch.is_err() {
                recorder.note_failed_source(&node);
            }
        };
        Ok(stream.inspect(noting).boxed())
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        self.noting(self.inner.check().await)
    }
}

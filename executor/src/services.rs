//! What operators get from the task that executes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::BoxStream;
use weir_connectors::{ConnectorError, Source, SourceBatch};
use weir_plan::{ExchangeOutput, NodeCounts, Rejection, StageId, TaskServices};
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
    /// The reader's name.
    stage: String,
    /// What is left of each exchange, by slice.
    inputs: BTreeMap<StageId, Vec<ExchangeOutput>>,
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
            stage: task.stage.name.clone(),
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

    fn read_exchange(
        &self,
        stage: StageId,
        partition: usize,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let partition = u32::try_from(partition)
            .map_err(|cause| DataFusionError::Internal(cause.to_string()))?;
        let files = self.env.places.files_of(&self.inputs, stage, partition)?;
        self.recorder.on_exchange_rows(stage, 0);
        let recorder = Arc::clone(&self.recorder);
        let on_rows = move |rows| recorder.on_exchange_rows(stage, rows);
        Ok(exchange::read_files(files, &self.stage, on_rows))
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
    match given {
        Some(given) => Ok(Arc::clone(given)),
        None => env.open_source(node, source),
    }
}

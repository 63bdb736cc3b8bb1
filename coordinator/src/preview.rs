//! The first rows of a node, computed in memory: for `weir preview`. Reads sources, writes nothing, and
//! appears in no ledger.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::execute_stream;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use indexmap::IndexMap;
use tokio_util::sync::CancellationToken;
use weir_connectors::{ConnectorError, Source, SourceBatch};
use weir_executor::Systems;
use weir_plan::{
    NodeCounts, Rejection, StageId, StageKind, TaskServices, decode_plan, plan_node, session,
};
use weir_spec::{InputRef, NodeName, PipelineSpec};

use crate::params::complete_params;
use crate::render::render_nodes;
use crate::session::{Workplace, plan_scope};
use crate::sources::describe_sources;
use crate::{Engine, EngineError, RunRequest};

impl Engine {
    /// At most `limit` rows of a node, or of its rejected side. Rows that cannot be read are left out.
    pub async fn preview(
        &self,
        spec: &PipelineSpec,
        request: RunRequest,
        node: &InputRef,
        limit: usize,
    ) -> Result<Vec<RecordBatch>, EngineError> {
        let params = complete_params(&spec.params, &request.params)?;
        let request = RunRequest { params, ..request };
        let slots = self.options.slots.get();
        let watermarks = BTreeMap::new();
        let scope = plan_scope(spec, &request, None, &watermarks, Workplace::here(slots));
        let rendered = render_nodes(spec, &scope).map_err(EngineError::Invalid)?;
        let redactor = &self.options.context.redactor;
        let invalid = |message: String| EngineError::Invalid(redactor.redact(&message));
        let catalog = describe_sources(
            &rendered,
            &watermarks,
            &IndexMap::new(),
            self.systems.as_ref(),
            slots,
            &CancellationToken::new(),
        )
        .await
        .map_err(|failure| invalid(format!("source `{}`: {}", failure.node, failure.error)))?;
        let stage = plan_node(&rendered, &catalog, &scope, node, Some(limit))
            .await
            .map_err(|error| invalid(error.to_string()))?;
        let (StageKind::Whole { plan, .. } | StageKind::Streaming { plan, .. }) = &stage.kind;
        let rows = async {
            let memory = usize::try_from(self.options.memory_bytes).unwrap_or(usize::MAX);
            let runtime = RuntimeEnvBuilder::new()
                .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
                .build_arc()?;
            let services: Arc<dyn TaskServices> =
                Arc::new(PreviewServices { systems: Arc::clone(&self.systems) });
            let context = session::task_context(services, runtime, 8192, slots);
            let plan = decode_plan(plan, &context)
                .map_err(|error| DataFusionError::External(Box::new(error)))?;
            let mut stream = execute_stream(plan, context)?;
            let mut batches = Vec::new();
            let mut left = limit;
            while left > 0 {
                let Some(batch) = stream.next().await else { break };
                let batch = batch?;
                let batch = batch.slice(0, left.min(batch.num_rows()));
                left -= batch.num_rows();
                batches.push(batch);
            }
            Ok::<_, DataFusionError>(batches)
        };
        rows.await.map_err(|error| invalid(format!("node `{node}`: {}", error.strip_backtrace())))
    }
}

/// Opens sources; keeps no accounts.
#[derive(Debug)]
struct PreviewServices {
    systems: Arc<dyn Systems>,
}

impl TaskServices for PreviewServices {
    fn open_source(
        &self,
        node: &NodeName,
        source: &weir_spec::Source,
    ) -> Result<Arc<dyn Source>, ConnectorError> {
        self.systems.open_source(node, source)
    }

    fn on_source_batch(&self, _node: &NodeName, _batch: &SourceBatch) -> DataFusionResult<()> {
        Ok(())
    }

    fn read_exchange(
        &self,
        stage: StageId,
        _partition: usize,
    ) -> DataFusionResult<BoxStream<'static, DataFusionResult<RecordBatch>>> {
        Err(DataFusionError::Internal(format!("a preview has no exchange of stage {stage}")))
    }

    fn morsel(&self) -> DataFusionResult<SendableRecordBatchStream> {
        Err(DataFusionError::Internal("a preview has no morsels".to_owned()))
    }

    fn count(&self, _node: &NodeName, _counts: NodeCounts) {}

    fn reject(&self, _node: &NodeName, _rows: Vec<Rejection>) -> DataFusionResult<()> {
        Ok(())
    }
}

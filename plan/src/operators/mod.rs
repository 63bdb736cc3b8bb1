//! Our physical operators. All take what they need of their task from [`TaskServices`], which
//! travels as [`TaskExtension`] in the session config.

mod collected;
mod count;
mod exchange_scan;
mod morsel;
mod rows_json;
mod source_scan;
mod validate;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning};
use datafusion::physical_plan::PlanProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use weir_connectors::ConnectorError;
use weir_spec::NodeName;

pub(crate) use collected::{COLLECTED_BYTES, CollectedExec};
pub use count::CountExec;
pub use exchange_scan::ExchangeScanExec;
pub use morsel::MorselExec;
pub use source_scan::{SourceScan, SourceScanExec};
pub(crate) use validate::errors_schema;
pub use validate::{ERROR_COLUMN, ValidateExec, ValidateMode, ValidateRule};

use crate::TaskServices;
use crate::services::TaskExtension;

/// A connector's failure inside an operator. Travels as `DataFusionError::External`, so that
/// whoever runs the plan can ask whether it is retryable.
#[derive(Debug, thiserror::Error)]
#[error("node `{node}`: {error}")]
pub struct NodeFailure {
    pub node: NodeName,
    #[source]
    pub error: ConnectorError,
}

impl NodeFailure {
    pub fn wrap(node: &NodeName, error: ConnectorError) -> DataFusionError {
        DataFusionError::External(Box::new(NodeFailure { node: node.clone(), error }))
    }

    /// The failure inside an error of a plan, however deeply it is wrapped.
    pub fn find(error: &DataFusionError) -> Option<&NodeFailure> {
        match error.find_root() {
            DataFusionError::External(cause) => cause.downcast_ref::<NodeFailure>(),
            _ => None,
        }
    }
}

fn services(context: &TaskContext) -> Result<Arc<dyn TaskServices>> {
    let extension = context.session_config().get_extension::<TaskExtension>().ok_or_else(|| {
        DataFusionError::Internal(
            "the session has no TaskExtension: use session::task_context".into(),
        )
    })?;
    Ok(Arc::clone(&extension.0))
}

fn leaf_properties(schema: SchemaRef, partitions: usize) -> Arc<PlanProperties> {
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(schema),
        Partitioning::UnknownPartitioning(partitions),
        EmissionType::Incremental,
        Boundedness::Bounded,
    ))
}

/// The parts of `ExecutionPlan` that every leaf has in common.
macro_rules! leaf_methods {
    () => {
        fn properties(&self) -> &Arc<PlanProperties> {
            &self.properties
        }
        fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
            Vec::new()
        }
        fn apply_expressions(
            &self,
            _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
        ) -> Result<TreeNodeRecursion> {
            Ok(TreeNodeRecursion::Continue)
        }
        fn with_new_children(
            self: Arc<Self>,
            _children: Vec<Arc<dyn ExecutionPlan>>,
        ) -> Result<Arc<dyn ExecutionPlan>> {
            Ok(self)
        }
    };
}
pub(crate) use leaf_methods;

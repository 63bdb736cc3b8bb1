//! What all tasks of one run share on one executor: its folder and connectors.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use indexmap::IndexMap;
use weir_connectors::{ConnectorContext, ConnectorError, Sink, Source, registry};
use weir_plan::{EncodedPlan, PlanError, decode_plan};
use weir_spec::{self as spec, NodeName};

use crate::exchange::{Keeping, Places};
use crate::{Resources, RunFolder};

/// Opens the systems that tasks read and write. Tests put their own in the place of [`Registry`].
pub trait Systems: Send + Sync + fmt::Debug {
    fn open_source(
        &self,
        node: &NodeName,
        source: &spec::Source,
    ) -> Result<Arc<dyn Source>, ConnectorError>;

    fn open_sink(
        &self,
        node: &NodeName,
        sink: &spec::Sink,
    ) -> Result<Arc<dyn Sink>, ConnectorError>;

    /// Decodes a frozen plan.
    fn read_plan(
        &self,
        plan: &EncodedPlan,
        context: &TaskContext,
    ) -> Result<Arc<dyn ExecutionPlan>, PlanError> {
        decode_plan(plan, context)
    }
}

/// The connectors of this build.
#[derive(Clone, Debug)]
pub struct Registry {
    pub context: ConnectorContext,
}

impl Systems for Registry {
    fn open_source(
        &self,
        node: &NodeName,
        source: &spec::Source,
    ) -> Result<Arc<dyn Source>, ConnectorError> {
        registry::open_source(node.as_str(), source, &self.context)
    }

    fn open_sink(
        &self,
        node: &NodeName,
        sink: &spec::Sink,
    ) -> Result<Arc<dyn Sink>, ConnectorError> {
        registry::open_sink(node.as_str(), sink, &self.context)
    }
}

/// What an [`ExecutorEnv`] is made of.
#[derive(Clone, Debug)]
pub struct ExecutorOptions {
    /// The run's own folder; what is missing of it is created.
    pub folder: RunFolder,
    pub systems: Arc<dyn Systems>,
    pub resources: Arc<Resources>,
    /// A batch is committed at the latest after this time: `checkpoint.every` of the pipeline.
    pub checkpoint_every: Duration,
    /// Sources that are read instead of the pipeline's own (see [`crate::GivenSource`]). They never
    /// move a watermark.
    pub given: IndexMap<NodeName, Arc<dyn Source>>,
}

/// What all tasks of one run share. Made once for each run and process.
#[derive(Debug)]
pub struct ExecutorEnv {
    pub(crate) folder: RunFolder,
    pub(crate) places: Places,
    pub(crate) systems: Arc<dyn Systems>,
    pub(crate) resources: Arc<Resources>,
    pub(crate) checkpoint_every: Duration,
    pub(crate) given: IndexMap<NodeName, Arc<dyn Source>>,
    /// Opened once for all tasks: splits of a database are read under one snapshot, which lives as
    /// long as its source.
    opened: Mutex<HashMap<NodeName, Arc<dyn Source>>>,
}

impl ExecutorEnv {
    pub fn new(options: ExecutorOptions) -> Self {
        let ExecutorOptions { folder, .. } = options;
        Self {
            places: Places { storage: folder.clone(), keeping: None },
            folder,
            systems: options.systems,
            resources: options.resources,
            checkpoint_every: options.checkpoint_every,
            given: options.given,
            opened: Mutex::default(),
        }
    }

    /// In a process that keeps outputs itself, and reads what others keep.
    pub(crate) fn keeping(self, keeping: Keeping, run_folder: String) -> Self {
        let places = Places { keeping: Some((keeping, run_folder)), ..self.places };
        Self { places, ..self }
    }

    /// The pipeline's own source, the same for all tasks of the run in this process.
    pub(crate) fn open_source(
        &self,
        node: &NodeName,
        source: &spec::Source,
    ) -> Result<Arc<dyn Source>, ConnectorError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = opened.get(node) {
            return Ok(Arc::clone(source));
        }
        let source = self.systems.open_source(node, source)?;
        opened.insert(node.clone(), Arc::clone(&source));
        Ok(source)
    }

    /// Where the run's files are.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }
}

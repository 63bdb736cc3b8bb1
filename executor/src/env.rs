//! What all tasks of one run share on one executor: folders, memory, connectors.

use std::collections::HashMap;
use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use datafusion::execution::TaskContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::physical_plan::ExecutionPlan;
use indexmap::IndexMap;
use weir_connectors::{ConnectorContext, ConnectorError, Sink, Source, registry};
use weir_plan::{EncodedPlan, PlanError, decode_plan};
use weir_spec::{self as spec, NodeName};

use crate::durable::state_error;
use crate::{RunFolder, TaskError};

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
    /// The run's own folder. One process at a time works in it; it is created when missing.
    pub run_dir: PathBuf,
    pub systems: Arc<dyn Systems>,
    /// For all operators of all tasks together; beyond it they spill into the run's folder.
    pub memory_bytes: NonZeroU64,
    /// Tasks that run at once: how the memory is shared out.
    pub slots: NonZeroUsize,
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
    pub(crate) systems: Arc<dyn Systems>,
    pub(crate) memory_bytes: NonZeroU64,
    pub(crate) slots: NonZeroUsize,
    pub(crate) checkpoint_every: Duration,
    pub(crate) given: IndexMap<NodeName, Arc<dyn Source>>,
    /// Opened once for all tasks: splits of a database are read under one snapshot, which lives as
    /// long as its source.
    opened: Mutex<HashMap<NodeName, Arc<dyn Source>>>,
    pub(crate) runtime: Arc<RuntimeEnv>,
}

impl ExecutorEnv {
    /// Creates the run's folder and empties its spill folder, which only a process that died can
    /// have left full.
    pub fn new(options: ExecutorOptions) -> Result<Self, TaskError> {
        let folder = RunFolder::new(options.run_dir);
        let spill = folder.spill();
        empty_folder(&spill).map_err(|cause| state_error("empty", &spill, cause))?;
        let bytes = usize::try_from(options.memory_bytes.get()).unwrap_or(usize::MAX);
        let shown_consumers = NonZeroUsize::new(3).expect("three is not zero");
        let disk = DiskManagerBuilder::default()
            .with_mode(DiskManagerMode::Directories(vec![spill.clone()]))
            // The disk itself is the limit; a full one is an error that names the folder.
            .with_max_temp_directory_size(u64::MAX);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(TrackConsumersPool::new(
                FairSpillPool::new(bytes),
                shown_consumers,
            )))
            .with_disk_manager_builder(disk)
            .build_arc()
            .map_err(|cause| state_error("prepare", &spill, std::io::Error::other(cause)))?;
        Ok(Self {
            folder,
            systems: options.systems,
            memory_bytes: options.memory_bytes,
            slots: options.slots,
            checkpoint_every: options.checkpoint_every,
            given: options.given,
            opened: Mutex::default(),
            runtime,
        })
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

fn empty_folder(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    std::fs::create_dir_all(path)
}

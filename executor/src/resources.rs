//! What a process gives to all of its tasks, whichever runs they belong to: memory and disk.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};

use crate::TaskError;
use crate::durable::{empty_folder, state_error};

/// The memory that operators may use, and the folder that they spill into beyond it. Runs that share
/// a process share one of these.
#[derive(Debug)]
pub struct Resources {
    pub(crate) runtime: Arc<RuntimeEnv>,
    /// For messages: `runtime` writes there.
    pub(crate) spill: PathBuf,
    pub(crate) memory_bytes: NonZeroU64,
    pub(crate) slots: NonZeroUsize,
}

impl Resources {
    /// Empties the spill folder, which only a process that died can have left full: one process at a
    /// time may use it. `memory_bytes` is for all operators of all tasks together; `slots` tasks run
    /// at once, which is how the memory is shared out.
    pub fn new(
        spill: impl Into<PathBuf>,
        memory_bytes: NonZeroU64,
        slots: NonZeroUsize,
    ) -> Result<Self, TaskError> {
        let spill = spill.into();
        empty_folder(&spill).map_err(|cause| state_error("empty", &spill, cause))?;
        let bytes = usize::try_from(memory_bytes.get()).unwrap_or(usize::MAX);
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
        Ok(Self { runtime, spill, memory_bytes, slots })
    }
}

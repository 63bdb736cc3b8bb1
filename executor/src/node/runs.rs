//! The runs whose tasks this executor has or has had a moment ago.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, fs, io};

use indexmap::IndexMap;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use weir_plan::{ExchangeOutput, InStorage, Stage, StageGraph, StageId};
use weir_proto::internal::{Assign, TaskId};

use super::work_threads::WorkThreads;
use crate::durable::storage_error;
use crate::exchange::{Keeping, StoreJob, is_inside};
use crate::storage::Storage;
use crate::{ExecutorEnv, ExecutorOptions, Resources, RunFolder, Systems, TaskError};

/// A run without tasks is kept for this long: the next task may be on its way.
const LONGEST_IDLE: Duration = Duration::from_secs(60);

/// Makes the systems of a run whose relative paths start at a folder.
pub(super) type SystemsMaker = Arc<dyn Fn(&Path) -> Arc<dyn Systems> + Send + Sync>;

pub(super) struct Runs {
    storage: Storage,
    resources: Arc<Resources>,
    systems: SystemsMaker,
    keeping: Keeping,
    pub(super) threads: WorkThreads,
    open: HashMap<RunKey, IdleSince>,
    /// Folders of runs of which something was kept a moment ago.
    kept: Arc<Mutex<Vec<String>>>,
}

struct IdleSince {
    run: Arc<OpenRun>,
    last_used: Instant,
}

/// Everything that tasks must have in common to share a run's environment. A new epoch opens its
/// sources anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RunKey {
    run: String,
    epoch: u64,
    run_folder: String,
    graph_hash: String,
    base_dir: String,
    checkpoint_every_millis: u64,
}

/// One run, as its tasks share it.
pub(super) struct OpenRun {
    pub(super) env: Arc<ExecutorEnv>,
    graph_hash: String,
    stages: OnceCell<Vec<Arc<Stage>>>,
}

impl fmt::Debug for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runs").field("storage", &self.storage).finish_non_exhaustive()
    }
}

impl Runs {
    pub(super) fn new(
        storage: Storage,
        resources: Arc<Resources>,
        systems: SystemsMaker,
        keeping: Keeping,
        threads: WorkThreads,
    ) -> Self {
        Self {
            storage,
            resources,
            systems,
            keeping,
            threads,
            open: HashMap::new(),
            kept: Arc::default(),
        }
    }

    /// The run of an assignment; reads nothing yet.
    pub(super) fn open(&mut self, task: &TaskId, assign: &Assign) -> Result<Arc<OpenRun>, String> {
        if !is_inside(&assign.run_folder) {
            return Err(format!("`{}` is no folder of the storage", assign.run_folder));
        }
        if !assign.graph_hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("`{}` is no hash", assign.graph_hash));
        }
        let key = RunKey {
            run: task.run.clone(),
            epoch: task.epoch,
            run_folder: assign.run_folder.clone(),
            graph_hash: assign.graph_hash.clone(),
            base_dir: assign.base_dir.clone(),
            checkpoint_every_millis: assign.checkpoint_every_millis,
        };
        let entry = self.open.entry(key).or_insert_with(|| {
            let env = ExecutorEnv::new(ExecutorOptions {
                folder: RunFolder::new(self.storage.within(&assign.run_folder)),
                systems: (self.systems)(Path::new(&assign.base_dir)),
                resources: Arc::clone(&self.resources),
                checkpoint_every: Duration::from_millis(assign.checkpoint_every_millis),
                given: IndexMap::new(),
            });
            let env = env.keeping(self.keeping.clone(), assign.run_folder.clone());
            let graph_hash = assign.graph_hash.clone();
            let run = OpenRun { env: Arc::new(env), graph_hash, stages: OnceCell::new() };
            IdleSince { run: Arc::new(run), last_used: Instant::now() }
        });
        entry.last_used = Instant::now();
        Ok(Arc::clone(&entry.run))
    }

    /// What is left to be done about an output of this process that is to be in the storage, too.
    pub(super) fn job_of_output(&self, task: &TaskId, output: &ExchangeOutput) -> Option<StoreJob> {
        let mut open = self.open.iter().filter(|_| output.in_storage == InStorage::Coming);
        let (_, entry) = open.find(|(key, _)| key.run == task.run && key.epoch == task.epoch)?;
        entry.run.env.places.to_store(task, output)
    }

    /// Nobody will read again what was kept of the run.
    pub(super) fn forget(&mut self, run_folder: &str) {
        self.open.retain(|key, _| key.run_folder != run_folder);
        if is_inside(run_folder) {
            let path = self.keeping.root.join(run_folder);
            tokio::task::spawn_blocking(move || {
                if let Err(error) = std::fs::remove_dir_all(&path)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %path.display(), %error, "kept rows are left");
                }
            });
        }
    }

    /// What is kept of runs that are neither named nor open here. A run has its folder before its first task is done, and is
    /// open for some time behind its last one. Of those that were there when this was said the last time: the disk is
    /// looked at off these threads, which have heartbeats to send.
    pub(super) fn forget_others(&mut self, run_folders: &[String]) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        let over: Vec<String> = {
            let open = self.open.keys().map(|key| &key.run_folder);
            let in_use: HashSet<&String> = run_folders.iter().chain(open).collect();
            kept.into_iter().filter(|run_folder| !in_use.contains(run_folder)).collect()
        };
        for run_folder in over {
            tracing::info!(run_folder, "rows of a run that is over are removed");
            self.forget(&run_folder);
        }
        let (root, kept) = (self.keeping.root.clone(), Arc::clone(&self.kept));
        tokio::task::spawn_blocking(move || match kept_runs(&root) {
            Ok(found) => *kept.lock().unwrap_or_else(PoisonError::into_inner) = found,
            Err(error) => tracing::warn!(%error, "what is kept cannot be looked at"),
        });
    }

    /// Forgets runs without tasks: their sources and the graph.
    pub(super) fn drop_idle(&mut self, now: Instant) {
        self.open.retain(|_, entry| {
            if Arc::strong_count(&entry.run) > 1 {
                entry.last_used = now;
            }
            now.duration_since(entry.last_used) < LONGEST_IDLE
        });
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }
}

/// The folders of runs of which something is kept.
fn kept_runs(root: &Path) -> io::Result<Vec<String>> {
    let mut runs = Vec::new();
    for pipeline in names_in(root)? {
        for run in names_in(&root.join(&pipeline).join("runs"))? {
            runs.push(format!("{pipeline}/runs/{run}"));
        }
    }
    Ok(runs)
}

fn names_in(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    // What is called otherwise is none of ours.
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().into_string());
    entries.map(name).filter_map(|name| name.map(Result::ok).transpose()).collect()
}

impl OpenRun {
    /// A stage of the run's graph, which is read when it is first needed.
    pub(super) async fn stage(&self, id: StageId) -> Result<Arc<Stage>, TaskError> {
        let (folder, hash) = (self.env.folder(), &self.graph_hash);
        let stages = self.stages.get_or_try_init(|| read_stages(folder, hash)).await?;
        stages.iter().find(|stage| stage.id == id).cloned().ok_or_else(|| {
            let missing = std::io::Error::other(format!("it has no stage {id}"));
            let name = RunFolder::graph_file(hash);
            storage_error("find the plan of the task in", folder.storage(), &name, missing)
        })
    }
}

async fn read_stages(folder: &RunFolder, hash: &str) -> Result<Vec<Arc<Stage>>, TaskError> {
    let failed = |cause| {
        let name = RunFolder::graph_file(hash);
        storage_error("read the plan of the run from", folder.storage(), &name, cause)
    };
    let graph = folder.read_graph(hash).await.map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => failed(std::io::Error::new(
            cause.kind(),
            format!("{cause}; executors need the same `--storage` as their coordinators"),
        )),
        _ => failed(cause),
    })?;
    if graph.engine_version != StageGraph::ENGINE_VERSION {
        return Err(failed(std::io::Error::other(format!(
            "it was made by {}, and this executor is {}",
            graph.engine_version,
            StageGraph::ENGINE_VERSION
        ))));
    }
    Ok(graph.stages.into_iter().map(Arc::new).collect())
}

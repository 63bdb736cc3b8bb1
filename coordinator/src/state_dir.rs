//! Where the engine keeps what must survive. One place knows the names.

use std::io;
use std::path::{Path, PathBuf};

use weir_connectors::durable::create_dir_all_durable;
use weir_executor::storage::Storage;
use weir_spec::PipelineName;

use crate::EngineError;
use crate::pipeline_files::PipelineFiles;

/// The state directory of one machine.
///
/// ```text
/// <pipeline>/lock                 held by the process that writes; names it
/// <pipeline>/ledger.db            the ledger
/// <pipeline>/                     what is kept of its runs: see PipelineFiles
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateDir(PathBuf);

/// The part of the state directory that belongs to one pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PipelineDir(PathBuf);

impl StateDir {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(crate) fn pipeline(&self, pipeline: &PipelineName) -> PipelineDir {
        PipelineDir(self.0.join(&pipeline.0))
    }

    /// Every pipeline that has a ledger, by name. A state directory that does not exist has none.
    pub(crate) fn pipelines(&self) -> Result<Vec<PipelineDir>, EngineError> {
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(cause) => return Err(state_error("list", &self.0, cause)),
        };
        let mut pipelines = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|cause| state_error("list", &self.0, cause))?;
            let pipeline = PipelineDir(entry.path());
            if pipeline.ledger().is_file() {
                pipelines.push(pipeline);
            }
        }
        pipelines.sort_by(|left, right| left.0.cmp(&right.0));
        Ok(pipelines)
    }
}

impl PipelineDir {
    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.0.join("ledger.db")
    }

    pub(crate) fn files(&self) -> PipelineFiles {
        PipelineFiles::new(Storage::folder(&self.0))
    }

    pub(crate) fn create(&self) -> Result<(), EngineError> {
        match create_dir_all_durable(&self.0) {
            Ok(_) => Ok(()),
            Err(cause) => Err(state_error("create", &self.0, cause)),
        }
    }
}

pub(crate) fn state_error(attempt: &'static str, path: &Path, source: io::Error) -> EngineError {
    EngineError::State { attempt, path: path.display().to_string(), source }
}

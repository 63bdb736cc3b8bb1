//! Pipelines that clients register, and delete again.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use weir_spec::PipelineName;

use crate::facts::{Ledger, RunState};
use crate::pipelines::{MOST_VERSIONS, PipelineVersion};
use crate::rejection::Rejection;

/// The newest version of a pipeline is this one; a version with the same hash is it already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterPipeline {
    pub epoch: u64,
    pub pipeline: PipelineName,
    /// BLAKE3 of everything that was registered, hex.
    pub content_hash: String,
    /// The name of the file that has been written for it; no other command has it.
    pub file: String,
    pub at: DateTime<Utc>,
}

impl RegisterPipeline {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let facts = ledger.pipelines.entry(self.pipeline.clone()).or_default();
        if facts.newest_version().is_some_and(|known| known.content_hash == self.content_hash) {
            return Ok(false);
        }
        facts.last_version += 1;
        facts.versions.push(PipelineVersion {
            version: facts.last_version,
            content_hash: self.content_hash.clone(),
            file: self.file.clone(),
            at: self.at,
        });
        if facts.versions.len() > MOST_VERSIONS {
            facts.versions.remove(0);
        }
        Ok(true)
    }
}

/// Nothing is registered under the name any more. Its runs and watermarks stay: whoever registers it again
/// loads nothing twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletePipeline {
    pub epoch: u64,
    pub pipeline: PipelineName,
}

impl DeletePipeline {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let unknown = || Rejection::UnknownPipeline(self.pipeline.to_string());
        let facts = ledger.pipelines.get(&self.pipeline).ok_or_else(unknown)?;
        if facts.versions.is_empty() {
            return Err(unknown());
        }
        // Those of backfills' windows, too.
        let going_on = (ledger.runs.iter())
            .filter(|(_, run)| run.pipeline == self.pipeline)
            .find(|(_, run)| matches!(run.state, RunState::Queued | RunState::Running));
        if let Some((run, _)) = going_on {
            return Err(Rejection::RunActive { active: run.clone() });
        }
        if let Some(facts) = ledger.pipelines.get_mut(&self.pipeline) {
            facts.versions.clear();
        }
        Ok(true)
    }
}

//! Runs that are over leave the ledger: it is in the memory of every coordinator, and has no room for all there ever were.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::facts::{Ledger, RunId};
use crate::rejection::Rejection;

/// Takes runs out of the ledger whose facts are kept elsewhere by now. One that has gone on since, or of which something is
/// still to come, stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForgetRuns {
    pub epoch: u64,
    pub runs: Vec<EndedRun>,
}

/// A run as it was kept elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedRun {
    pub run: RunId,
    /// How often it had been worked on by then. One that was taken up since is another one.
    pub sessions: u32,
}

impl ForgetRuns {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let is_as_kept = |ended: &&EndedRun| {
            let facts = ledger.runs.get(&ended.run);
            facts.is_some_and(|facts| facts.sessions == ended.sessions && facts.may_leave())
        };
        let leaving: BTreeSet<RunId> =
            self.runs.iter().filter(is_as_kept).map(|ended| ended.run.clone()).collect();
        if leaving.is_empty() {
            return Ok(false);
        }
        for run in &leaving {
            let Some(facts) = ledger.runs.remove(run) else { continue };
            if facts.may_have_committed() {
                let pipeline = ledger.pipelines.entry(facts.pipeline.clone()).or_default();
                pipeline.has_left = pipeline.has_left.max(Some(facts.order()));
            }
        }
        ledger.requests.retain(|_, run| !leaving.contains(run));
        ledger.runs_left += u64::try_from(leaving.len()).unwrap_or(u64::MAX);
        Ok(true)
    }
}

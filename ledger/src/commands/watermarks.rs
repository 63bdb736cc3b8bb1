//! Watermarks moved by hand (`weir state set`, `weir state reset`). Runs move them by committing.

use serde::{Deserialize, Serialize};
use weir_spec::{NodeName, PipelineName};

use crate::facts::{Ledger, PipelineFacts};
use crate::rejection::Rejection;

/// The next run reads what follows `value`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetWatermark {
    pub epoch: u64,
    pub pipeline: PipelineName,
    pub source: NodeName,
    pub value: String,
}

impl SetWatermark {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let pipeline = idle_pipeline(ledger, &self.pipeline)?;
        let known = pipeline.watermarks.insert(self.source.clone(), self.value.clone());
        Ok(known.as_ref() != Some(&self.value))
    }
}

/// The next run reads from the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetWatermark {
    pub epoch: u64,
    pub pipeline: PipelineName,
    pub source: NodeName,
}

impl ResetWatermark {
    pub(crate) fn apply(&self, ledger: &mut Ledger) -> Result<bool, Rejection> {
        let pipeline = idle_pipeline(ledger, &self.pipeline)?;
        Ok(pipeline.watermarks.remove(&self.source).is_some())
    }
}

/// A run that is going on would overwrite the value when it commits.
fn idle_pipeline<'ledger>(
    ledger: &'ledger mut Ledger,
    name: &PipelineName,
) -> Result<&'ledger mut PipelineFacts, Rejection> {
    let pipeline = (ledger.pipelines.get_mut(name))
        .ok_or_else(|| Rejection::UnknownPipeline(name.to_string()))?;
    match &pipeline.active_run {
        Some(active) => Err(Rejection::RunActive { active: active.clone() }),
        None => Ok(pipeline),
    }
}

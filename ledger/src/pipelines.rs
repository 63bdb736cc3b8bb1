//! What clients have registered: versions of pipelines, and which requests have been answered.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Versions of one pipeline that are kept; older ones are forgotten. Runs keep what they were started
/// with themselves.
pub const MOST_VERSIONS: usize = 100;

/// Answered requests that are kept; a client repeats a request within seconds.
pub const MOST_REQUESTS: usize = 10_000;

/// A pipeline as it was registered. What it says is in the storage, in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineVersion {
    /// From 1 on. A number is never given twice, not even after the pipeline was deleted.
    pub version: u32,
    /// BLAKE3 of everything that was registered, hex.
    pub content_hash: String,
    /// The name of its file, which no other version has had: who has been replaced and removes late what was
    /// forgotten removes nothing else.
    pub file: String,
    pub at: DateTime<Utc>,
}

/// What a client has asked for, under the name that it has given to its request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFacts {
    /// `Pipelines/Delete`
    pub method: String,
    /// What it was about: a pipeline, a run.
    pub subject: String,
}

/// The newest requests that have been answered, so that none is done twice. (Those that have started a run
/// or a backfill are kept with it.)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnsweredRequests {
    by_id: BTreeMap<String, RequestFacts>,
    /// Oldest first.
    order: VecDeque<String>,
}

impl AnsweredRequests {
    pub fn get(&self, id: &str) -> Option<&RequestFacts> {
        self.by_id.get(id)
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn note(&mut self, id: &str, facts: RequestFacts) {
        if self.by_id.insert(id.to_owned(), facts).is_none() {
            self.order.push_back(id.to_owned());
        }
        while self.order.len() > MOST_REQUESTS {
            if let Some(oldest) = self.order.pop_front() {
                self.by_id.remove(&oldest);
            }
        }
    }
}

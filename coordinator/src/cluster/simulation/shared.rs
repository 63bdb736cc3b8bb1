//! What a world's hosts share, though no network lies between: the systems outside of the cluster, what goes wrong
//! with hosts, and what has been seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::oneshot;
use weir_connectors::{ConnectorError, ErrorKind};
use weir_executor::storage::Storage;

use super::Control;
use super::exchange::Exchanges;
use super::pipelines::{Pipeline, SinkPlan, SourcePlan};
use super::targets::{TargetKey, Targets};
use super::trace::Trace;
use crate::raft::MemberId;
use crate::raft::simulation::{Seeded, at_most};
use crate::tests::target::{Rules, Target};

/// The longest that a request is under way, and its answer.
const LONGEST_WAY: Duration = Duration::from_millis(40);
/// One that was lost on the way and is sent again.
const LONGEST_DETOUR: Duration = Duration::from_secs(4);
/// A system that does not answer is given up after this time.
const LONGEST_ANSWER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) control: Control,
    pub(super) storage: Storage,
    pub(super) pipelines: Arc<Vec<Pipeline>>,
    /// Of reads of virtual tasks, how many of a hundred fail.
    pub(super) error_percent: u32,
    /// Nothing goes wrong.
    is_calm: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) targets: Targets,
    pub(super) exchanges: Exchanges,
    pub(super) trace: Trace,
    pub(super) leader: Option<MemberId>,
    pub(super) paused_until: BTreeMap<String, Duration>,
    /// Executors that are to leave.
    pub(super) leaving: BTreeSet<String>,
    /// Pipelines whose run is to be cancelled.
    pub(super) to_cancel: BTreeSet<String>,
    pub(super) clients_at_work: usize,
    last_number: u64,
}

/// In the world's time.
pub(super) fn now() -> Duration {
    turmoil::sim_elapsed().expect("it is asked by a host")
}

impl Shared {
    pub(super) fn new(
        control: Control,
        storage: Storage,
        pipelines: Vec<Pipeline>,
        error_percent: u32,
        is_calm: bool,
    ) -> Self {
        let pipelines = Arc::new(pipelines);
        let state = State {
            targets: Targets::default(),
            exchanges: Exchanges::default(),
            trace: Trace::new(Arc::clone(&pipelines), control, is_calm),
            leader: None,
            paused_until: BTreeMap::new(),
            leaving: BTreeSet::new(),
            to_cancel: BTreeSet::new(),
            clients_at_work: pipelines.len(),
            last_number: 0,
        };
        Self { control, storage, pipelines, error_percent, is_calm, state: Mutex::new(state) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn source(&self, node: &str) -> &SourcePlan {
        self.find_source(node).expect("it is a source of these pipelines")
    }

    pub(super) fn find_source(&self, node: &str) -> Option<&SourcePlan> {
        self.pipelines.iter().find_map(|pipeline| pipeline.sources.get(node))
    }

    pub(super) fn sink(&self, node: &str) -> &SinkPlan {
        let found = self.pipelines.iter().find_map(|pipeline| pipeline.sinks.get(node));
        found.expect("it is a sink of these pipelines")
    }

    /// What a source has behind `since`, now.
    pub(super) fn places(&self, node: &str, since: u64) -> std::ops::RangeInclusive<u64> {
        let is_its = |pipeline: &&Pipeline| pipeline.sources.contains_key(node);
        let pipeline = self.pipelines.iter().find(is_its).expect("a source of these pipelines");
        let run = self.state().trace.run_at_work(&pipeline.name);
        pipeline.sources[node].places(since, run)
    }

    pub(super) fn make_target(&self, key: &TargetKey) {
        let SinkPlan { kind, commit, .. } = *self.sink(&key.1);
        let make = || Target::new(kind, commit, Rules::ALL);
        self.state().targets.all.entry(key.clone()).or_insert_with(make);
    }

    /// Asks a target; `Err`: nobody knows whether it has heard.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        host: &str,
        key: &TargetKey,
        act: impl FnOnce(&mut Target) -> T + Send + 'static,
    ) -> Result<T, ConnectorError> {
        let unreachable = || {
            let kind = ErrorKind::Unavailable { retry_after: None, status: None };
            ConnectorError::new(kind, "the target does not answer")
        };
        if self.is_cut_off(host) {
            tokio::time::sleep(LONGEST_ANSWER).await;
            return Err(unreachable());
        }
        let (reply, answered) = oneshot::channel();
        let request = Box::new(move |target: &mut Target| {
            // Whoever has asked may be gone.
            let _ = reply.send(act(target));
        });
        let longest = match !self.is_calm && Seeded.gen_bool(0.03) {
            true => LONGEST_DETOUR,
            false => LONGEST_WAY,
        };
        self.state().targets.send(now() + at_most(longest), key.clone(), request);
        let answer = answered.await.map_err(|_| unreachable())?;
        tokio::time::sleep(at_most(LONGEST_WAY)).await;
        if self.is_cut_off(host) {
            tokio::time::sleep(LONGEST_ANSWER).await;
            return Err(unreachable());
        }
        Ok(answer)
    }

    fn is_cut_off(&self, host: &str) -> bool {
        self.state().targets.cut_off.contains(host)
    }

    /// Of something that a host does by itself, such as renaming a file.
    pub(super) fn at_once<T>(&self, key: &TargetKey, act: impl FnOnce(&mut Target) -> T) -> T {
        act(self.state().targets.all.get_mut(key).expect("it was prepared"))
    }

    /// Returns when the host does not stand still.
    pub(super) async fn awake(&self, host: &str) {
        loop {
            let until = self.state().paused_until.get(host).copied().unwrap_or_default();
            match until.checked_sub(now()) {
                None | Some(Duration::ZERO) => return,
                Some(rest) => tokio::time::sleep(rest).await,
            }
        }
    }

    /// That nobody else in this world has, nor the nine that follow.
    pub(super) fn new_number(&self) -> u64 {
        let mut state = self.state();
        state.last_number += 10;
        state.last_number
    }
}

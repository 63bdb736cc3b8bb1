//! The sources and sinks of simulated pipelines, as the leader uses them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use serde_json::{Value, json};
use weir_connectors::{
    ConnectorError, ErrorKind, Manifest, Position, PrepareSink, PreparedSink, PublishedBatch,
    Recovery, ScanRequest, Sink, SinkTask, SinkWriter, Source, SourceDescription, SourceStream,
    Split,
};
use weir_executor::Systems;
use weir_spec::{CommitMode, NodeName};

use super::shared::Shared;
use super::targets::TargetKey;
use crate::tests::target::Refusal;

/// As one host reaches them.
#[derive(Clone, Debug)]
pub(super) struct SimulatedSystems {
    pub(super) host: String,
    pub(super) shared: Arc<Shared>,
}

impl Systems for SimulatedSystems {
    fn open_source(
        &self,
        node: &NodeName,
        _source: &weir_spec::Source,
    ) -> Result<Arc<dyn Source>, ConnectorError> {
        Ok(Arc::new(Table { node: node.to_string(), systems: self.clone() }))
    }

    fn open_sink(
        &self,
        node: &NodeName,
        _sink: &weir_spec::Sink,
    ) -> Result<Arc<dyn Sink>, ConnectorError> {
        Ok(Arc::new(Written { node: node.to_string(), systems: self.clone() }))
    }
}

#[derive(Debug)]
struct Table {
    node: String,
    systems: SimulatedSystems,
}

#[async_trait]
impl Source for Table {
    async fn describe(&self) -> Result<SourceDescription, ConnectorError> {
        let plan = self.systems.shared.source(&self.node);
        let fields = ["id", "amount"].map(|name| Field::new(name, DataType::Int64, true));
        Ok(SourceDescription {
            schema: Arc::new(Schema::new(fields.to_vec())),
            resumable: plan.is_resumable,
            exact_predicates: Vec::new(),
            repeatable: false,
            notes: Vec::new(),
        })
    }

    async fn splits(
        &self,
        request: &ScanRequest,
        parallelism: usize,
    ) -> Result<Vec<Split>, ConnectorError> {
        let since = request.since.as_ref().map_or(0, |since| since.parse().expect("a place"));
        let places: Vec<u64> = self.systems.shared.places(&self.node, since).collect();
        let size = places.len().div_ceil(parallelism.max(1)).max(1);
        let split = |places: &[u64]| Split {
            label: self.node.clone(),
            payload: json!([places[0], places[places.len() - 1]]),
            weight: 1,
            estimated_rows: Some(places.len() as u64),
        };
        Ok(places.chunks(size).map(split).collect())
    }

    async fn open(
        &self,
        _split: &Split,
        _request: &ScanRequest,
        _from: Option<&Position>,
    ) -> Result<SourceStream, ConnectorError> {
        Err(ConnectorError::internal("virtual tasks read tables by themselves"))
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        Ok(format!("table {}", self.node))
    }
}

/// The places of a split, first and last.
pub(super) fn places_of(split: &Split) -> (u64, u64) {
    let place = |index: usize| split.payload[index].as_u64().expect("as it was split");
    (place(0), place(1))
}

#[derive(Debug)]
struct Written {
    node: String,
    systems: SimulatedSystems,
}

impl Written {
    fn key(&self, prepared: &PreparedSink) -> TargetKey {
        (prepared.identity.run.clone(), self.node.clone())
    }
}

#[async_trait]
impl Sink for Written {
    fn commit_mode(&self) -> CommitMode {
        self.systems.shared.sink(&self.node).commit
    }

    async fn prepare(
        &self,
        identity: &PrepareSink,
        _schema: &SchemaRef,
    ) -> Result<PreparedSink, ConnectorError> {
        let SimulatedSystems { host, shared } = &self.systems;
        let epoch = identity.epoch;
        let key = (identity.run.clone(), self.node.clone());
        shared.make_target(&key);
        let answer = shared.ask(host, &key, move |target| target.prepare(epoch)).await?;
        answer.map_err(refused)?;
        Ok(PreparedSink { identity: identity.clone(), payload: Value::Null, notes: Vec::new() })
    }

    async fn writer(&self, _task: SinkTask) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        Err(ConnectorError::internal("virtual tasks write by themselves"))
    }

    async fn recover(
        &self,
        prepared: &PreparedSink,
        manifest: &Manifest,
        attempt: u32,
        epoch: u64,
    ) -> Result<Recovery, ConnectorError> {
        let SimulatedSystems { host, shared } = &self.systems;
        let (key, manifest) = (self.key(prepared), manifest.clone());
        let recover = move |target: &mut crate::tests::target::Target| {
            target.recover(&manifest, attempt, epoch)
        };
        shared.ask(host, &key, recover).await?.map_err(refused)
    }

    async fn commit_run(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        let SimulatedSystems { host, shared } = &self.systems;
        let key = self.key(prepared);
        // Whoever dies meanwhile may have shown a part.
        for is_whole in [false, true] {
            let manifests = manifests.to_vec();
            let commit = move |target: &mut crate::tests::target::Target| {
                let is_in_parts = target.kind() == crate::tests::target::Kind::Files;
                match is_whole || is_in_parts {
                    true => target.commit_run(&manifests, epoch, is_whole),
                    false => Ok(()),
                }
            };
            shared.ask(host, &key, commit).await?.map_err(refused)?;
        }
        Ok(())
    }

    async fn published(
        &self,
        prepared: &PreparedSink,
        _manifests: &[Manifest],
    ) -> Result<Vec<PublishedBatch>, ConnectorError> {
        let SimulatedSystems { host, shared } = &self.systems;
        shared.ask(host, &self.key(prepared), |target| target.published()).await
    }

    async fn clean_up(&self, prepared: &PreparedSink, epoch: u64) -> Result<(), ConnectorError> {
        let SimulatedSystems { host, shared } = &self.systems;
        let clean_up = move |target: &mut crate::tests::target::Target| target.clean_up(epoch);
        shared.ask(host, &self.key(prepared), clean_up).await?.map_err(refused)
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        Ok(format!("target {}", self.node))
    }
}

/// As connectors say it.
pub(super) fn refused(refusal: Refusal) -> ConnectorError {
    match refusal {
        Refusal::Fenced => ConnectorError::new(ErrorKind::Fenced, "a newer writer has taken over"),
        Refusal::Busy => ConnectorError::new(ErrorKind::Locked, "somebody renames files"),
        Refusal::Changed(what) => ConnectorError::new(ErrorKind::Changed, what),
    }
}

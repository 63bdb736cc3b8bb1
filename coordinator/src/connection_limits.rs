//! `max_tasks`: how many tasks may use a connection at once.

use std::num::NonZeroU32;

use weir_plan::Stage;
use weir_spec::{Connection, ConnectionRef, NodeName, PipelineSpec, SinkTarget};

use crate::{Frozen, RunRequest};

/// Which connection, for whoever counts its tasks: a digest of how it is written, so that pipelines which write it in
/// the same way share it. In memory only. Values of `secret` and `env` are not in it: they are not known here.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConnectionKey(String);

/// A connection that the tasks of a stage use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionLimit {
    pub(crate) connection: ConnectionKey,
    /// As the pipeline of the task says; another one may say otherwise of the same connection.
    pub(crate) most: u32,
}

#[cfg(test)]
impl ConnectionKey {
    pub(crate) fn for_tests(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// The limited connections that tasks of the stage use, each once.
pub(crate) fn limits_of(stage: &Stage, frozen: &Frozen) -> Vec<ConnectionLimit> {
    let mut limits: Vec<ConnectionLimit> = Vec::new();
    for node in &stage.nodes {
        let Some(reference) = connection_of(node, &frozen.spec, &frozen.request) else { continue };
        let Some(most) = reference.config.max_tasks() else { continue };
        let limit = limit_of(&reference.config, most, frozen);
        match limits.iter_mut().find(|known| known.connection == limit.connection) {
            Some(known) => known.most = known.most.min(limit.most),
            None => limits.push(limit),
        }
    }
    limits
}

fn connection_of<'spec>(
    node: &NodeName,
    spec: &'spec PipelineSpec,
    request: &RunRequest,
) -> Option<&'spec ConnectionRef> {
    if let Some(source) = spec.sources.get(node) {
        // Rows that are given are read from a file.
        return source.connection().filter(|_| !request.given.contains_key(node));
    }
    match &spec.sinks.get(node)?.target {
        SinkTarget::Table(table) => Some(&table.connection),
        SinkTarget::Files(_) | SinkTarget::Unsupported(_) => None,
    }
}

fn limit_of(connection: &Connection, most: NonZeroU32, frozen: &Frozen) -> ConnectionLimit {
    let unlimited = connection.clone().with_max_tasks(None);
    let mut text = serde_json::to_string(&unlimited).expect("connections are JSON");
    // The same words then mean another system.
    if text.contains("{{") {
        text += &serde_json::to_string(&frozen.request.params).expect("parameters are JSON");
    }
    if let Connection::Sqlite(_) = connection {
        text += &frozen.base_dir.display().to_string();
    }
    let connection = ConnectionKey(blake3::hash(text.as_bytes()).to_hex().to_string());
    ConnectionLimit { connection, most: most.get() }
}

#[cfg(test)]
mod tests {
    use weir_plan::{Stage, StageKind, StageOutput};
    use weir_spec::ExchangeDurability;

    use super::*;

    const PIPELINE: &str = "pipeline: p\nconnections:\n  \
         crm: { type: postgres, url: \"{{ secret.CRM }}\", max_tasks: 3 }\n  \
         same: { type: postgres, url: \"{{ secret.CRM }}\", max_tasks: 2 }\n  \
         other: { type: postgres, url: \"{{ secret.SHOP }}\", max_tasks: 5 }\n  \
         free: { type: sqlite, path: a.db }\n\
         sources:\n  orders: { connection: crm, table: orders }\n  \
         items: { connection: free, table: items }\n\
         sinks:\n  back: { input: orders, connection: same, table: back }\n  \
         shop: { input: items, connection: other, table: shop }\n";

    fn frozen(text: &str) -> Frozen {
        let spec = weir_spec::parse("pipeline.yaml", text).expect("it is right").spec;
        Frozen {
            run: "run".to_owned(),
            pipeline: spec.pipeline.to_string(),
            spec,
            spec_text: String::new(),
            base_dir: "/pipelines".into(),
            request: RunRequest::default(),
        }
    }

    fn limits(nodes: &[&str], frozen: &Frozen) -> Vec<ConnectionLimit> {
        let stage = Stage {
            id: weir_plan::StageId(0),
            name: String::new(),
            nodes: nodes.iter().map(|node| NodeName::new(*node)).collect(),
            inputs: Vec::new(),
            kind: StageKind::Whole {
                plan: weir_plan::EncodedPlan(Vec::new()),
                partitions: 1,
                slices: 1,
                durability: ExchangeDurability::Sync,
            },
            output: StageOutput::Exchange,
            display: String::new(),
        };
        limits_of(&stage, frozen)
    }

    #[test]
    fn a_connection_is_what_is_written_not_its_name() {
        let frozen = frozen(PIPELINE);
        let both = limits(&["orders", "back"], &frozen);
        assert_eq!(both.len(), 1, "a task counts once");
        assert_eq!(both[0].most, 2, "the least of what it says");
        let other = limits(&["shop"], &frozen);
        assert_eq!(other[0].most, 5);
        assert_ne!(other[0].connection, both[0].connection);
        assert_eq!(limits(&["items"], &frozen), [], "there is no limit");
    }

    #[test]
    fn other_parameters_may_mean_another_system_and_rows_that_are_given_none() {
        let mut frozen = frozen(PIPELINE);
        let before = limits(&["orders"], &frozen);
        frozen.request.params.insert("country".to_owned(), serde_json::json!("de"));
        assert_ne!(limits(&["orders"], &frozen), before);
        frozen.request.given.insert(NodeName::new("orders"), "rows.csv".into());
        assert_eq!(limits(&["orders"], &frozen), []);
    }
}

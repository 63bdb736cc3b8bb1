//! The whole file, and what stands around the nodes.

use std::num::NonZeroU32;

use indexmap::IndexMap;

use super::{Decoder, Fields};
use crate::shape::{
    CHECKPOINT, CONCURRENCY, HMAC, PARAM, PIPELINE, RETRY, TRIGGER, VERIFY, WEBHOOK, format,
};
use crate::syntax::Node;
use crate::{
    Alert, Check, CheckpointPolicy, Concurrency, Connection, Param, PipelineName, PipelineSpec,
    RetryPolicy, Sink, SinkTarget, Source, Trigger,
};

impl Decoder<'_, '_> {
    pub(super) fn pipeline(&mut self, root: &Node) -> Option<PipelineSpec> {
        root.as_map()?;
        let fields = &Fields::of(Some(root), &PIPELINE);
        for key in ["sources", "sinks"] {
            if let Some(entry) = fields.entry(key)
                && (entry.value.is_null()
                    || entry.value.as_map().is_some_and(|m| m.entries.is_empty()))
            {
                self.report.error_help(
                    "empty-value",
                    entry.key_span,
                    format!("`{key}` is empty"),
                    "a pipeline needs at least one source and one sink",
                );
            }
        }
        let mut connections = self.connections(fields.node("connections"));
        let sources = self.sources(fields.node("sources"), &connections);
        let transforms = self.transforms(fields.node("transforms"));
        let sinks = self.sinks(fields.node("sinks"), &connections);
        self.add_shared(&mut connections, &sources, &sinks);
        let triggers = self.triggers(fields);
        let retry = retry(fields.node("retry"));
        let params = self.params(fields);
        let tests = self.tests(fields);
        Some(PipelineSpec {
            pipeline: PipelineName(fields.text("pipeline")?),
            description: fields.text("description"),
            owner: fields.text("owner"),
            docs: fields.text("docs"),
            timezone: fields.text("timezone")?,
            triggers,
            catch_up: fields.choice("catch_up")?,
            concurrency: self.concurrency(fields.node("concurrency"))?,
            params,
            connections,
            sources,
            transforms,
            sinks,
            retry: retry?,
            checkpoint: self.checkpoint(fields.node("checkpoint"))?,
            checks: checks(fields),
            alerts: fields
                .items("alerts")
                .iter()
                .map(|node| Alert { definition: node.to_json() })
                .collect(),
            tests,
        })
    }

    /// Shared connections that nodes use become the pipeline's own.
    fn add_shared(
        &self,
        connections: &mut IndexMap<String, Connection>,
        sources: &IndexMap<crate::NodeName, Source>,
        sinks: &IndexMap<crate::NodeName, Sink>,
    ) {
        let of_sources = sources.values().filter_map(Source::connection);
        let of_sinks = sinks.values().filter_map(|sink| match &sink.target {
            SinkTarget::Table(table) => Some(&table.connection),
            SinkTarget::Files(_) | SinkTarget::Unsupported(_) => None,
        });
        for used in of_sources.chain(of_sinks) {
            if let Some(name) = &used.name
                && !connections.contains_key(name)
                && self.shared.connections.contains_key(name)
            {
                connections.insert(name.clone(), used.config.clone());
            }
        }
    }

    fn triggers(&mut self, fields: &Fields<'_>) -> Vec<Trigger> {
        for key in ["triggers", "catch_up"] {
            if let Some(entry) = fields.entry(key)
                && !entry.value.as_list().is_some_and(<[Node]>::is_empty)
            {
                self.report.warn(
                    "no-effect-yet",
                    entry.key_span,
                    format!("`{key}` has no effect yet: nothing starts runs by it"),
                    "start runs with `weir run` or `weir submit --run`; the key is kept",
                );
            }
        }
        let items = fields.node("triggers").and_then(Node::as_list).unwrap_or_default();
        items.iter().filter_map(|node| self.trigger(node)).collect()
    }

    fn trigger(&mut self, node: &Node) -> Option<Trigger> {
        let fields = Fields::of(Some(node), &TRIGGER);
        if let Some(entry) = fields.entry("timezone")
            && !fields.has("cron")
        {
            self.report.error_help(
                "conflicting-keys",
                entry.key_span,
                "`timezone` is about `cron`, and this trigger has none",
                "remove `timezone`",
            );
        }
        if fields.has("every") {
            let every = fields.duration("every")?;
            if every.is_zero() {
                let span = fields.node("every").map_or(fields.span, |node| node.span);
                self.report.error("out-of-range", span, "`every` must be longer than zero");
            }
            return Some(Trigger::Every(every));
        }
        if let Some(expression) = fields.text("cron") {
            return Some(Trigger::Cron { expression, timezone: fields.text("timezone") });
        }
        if fields.has("after") {
            return Some(Trigger::After(
                fields.texts("after").into_iter().map(PipelineName).collect(),
            ));
        }
        let webhook = Fields::of(Some(fields.node("webhook")?), &WEBHOOK);
        let verify = webhook.node("verify").map(|node| Fields::of(Some(node), &VERIFY));
        let hmac = verify
            .and_then(|verify| verify.node("hmac_sha256"))
            .map(|node| Fields::of(Some(node), &HMAC));
        Some(Trigger::Webhook {
            hmac_header: hmac.and_then(|hmac| hmac.text("header")),
            hmac_secret: hmac.and_then(|hmac| hmac.template("secret")),
        })
    }

    fn params(&mut self, fields: &Fields<'_>) -> IndexMap<String, Param> {
        let mut params = IndexMap::new();
        for entry in fields.entries("params") {
            let param = Fields::of(Some(&entry.value), &PARAM);
            let Some(column_type) = param.parse("type", format::column_type) else { continue };
            let default = param.node("default").filter(|node| !node.is_null());
            if let Some(node) = default
                && let Err(reason) = super::value_fits(node, &column_type)
            {
                let written = param.text("type").unwrap_or_default();
                self.report.error_help(
                    "wrong-type",
                    node.span,
                    format!("the default of `{}` is not of type {written}: {reason}", entry.key),
                    "change the default or the type",
                );
            }
            params.insert(
                entry.key.clone(),
                Param {
                    column_type,
                    default: default.map(Node::to_json),
                    description: param.text("description"),
                },
            );
        }
        params
    }

    fn checkpoint(&mut self, node: Option<&Node>) -> Option<CheckpointPolicy> {
        let fields = Fields::of(node, &CHECKPOINT);
        let every = fields.duration("every")?;
        if every.is_zero() {
            let span = fields.node("every").map_or(fields.span, |node| node.span);
            self.report.error("out-of-range", span, "`every` must be longer than zero");
        }
        Some(CheckpointPolicy { every, exchange: fields.choice("exchange")? })
    }

    fn concurrency(&mut self, node: Option<&Node>) -> Option<Concurrency> {
        let fields = Fields::of(node, &CONCURRENCY);
        let runs = fields.integer("runs").and_then(|runs| u32::try_from(runs).ok());
        let runs = runs.and_then(NonZeroU32::new)?;
        if let Some(node) = fields.node("runs")
            && runs > NonZeroU32::MIN
        {
            self.report.error_help(
                "not-supported-yet",
                node.span,
                "more than one run of a pipeline at a time is not supported yet by this version",
                "write `runs: 1`; `on_overlap` says what happens to a second run",
            );
        }
        Some(Concurrency { runs, on_overlap: fields.choice("on_overlap")? })
    }
}

fn retry(node: Option<&Node>) -> Option<RetryPolicy> {
    let fields = Fields::of(node, &RETRY);
    let max_attempts = u32::try_from(fields.integer("max_attempts")?).ok()?;
    Some(RetryPolicy {
        max_attempts: NonZeroU32::new(max_attempts)?,
        delay: fields.duration("delay")?,
        backoff: fields.choice("backoff")?,
        retry_on: fields
            .texts("retry_on")
            .iter()
            .filter_map(|text| format::retry_on(text).ok())
            .collect(),
    })
}

fn checks(fields: &Fields<'_>) -> Vec<Check> {
    let named = |node: &Node| {
        let name = node.as_map().and_then(|map| map.get("name")).and_then(Node::text);
        Check { name: name.map(str::to_owned), definition: node.to_json() }
    };
    fields.items("checks").iter().map(named).collect()
}

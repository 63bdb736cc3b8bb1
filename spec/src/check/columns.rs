//! Columns, where they are known: declared by a source and followed through `validate`,
//! `deduplicate` and unions. Behind SQL nothing is known here; DataFusion checks those.

use std::collections::HashMap;

use crate::diagnostic::{Report, did_you_mean, listed};
use crate::syntax::{Map, Node};
use crate::{InputRef, NodeName, Operator, PipelineSpec, Source};

type Columns = Vec<String>;

pub(crate) fn check(root: &Node, spec: &PipelineSpec, report: &mut Report<'_>) {
    let Some(root) = root.as_map() else { return };
    let mut known = Known { spec, found: HashMap::new() };
    for name in spec.sources.keys() {
        let node = node_of(root, "sources", name);
        let incremental = node.and_then(|node| node.get("incremental")).and_then(Node::as_map);
        if let (Some(columns), Some(node)) =
            (known.of_node(name), incremental.and_then(|map| map.get("cursor")))
        {
            check_names(node, &columns, name.as_str(), report);
        }
    }
    for (name, transform) in &spec.transforms {
        let Some(columns) = known.of_inputs(&transform.inputs) else { continue };
        let Some(node) = node_of(root, "transforms", name) else { continue };
        let from = input_names(&transform.inputs);
        for rule in node.get("validate").and_then(Node::as_list).unwrap_or_default() {
            if let Some(column) = rule.as_map().and_then(|map| map.get("column")) {
                check_names(column, &columns, &from, report);
            }
        }
        let deduplicate = node.get("deduplicate").and_then(Node::as_map);
        for key in ["key", "order_by"] {
            if let Some(node) = deduplicate.and_then(|map| map.get(key)) {
                check_names(node, &columns, &from, report);
            }
        }
    }
    for (name, sink) in &spec.sinks {
        let Some(columns) = known.of_inputs(&sink.inputs) else { continue };
        let Some(node) = node_of(root, "sinks", name) else { continue };
        let from = input_names(&sink.inputs);
        for key in ["key", "partition_by"] {
            if let Some(node) = node.get(key) {
                check_names(node, &columns, &from, report);
            }
        }
    }
    check_tests(root, &mut known, report);
}

fn check_tests(root: &Map, known: &mut Known<'_>, report: &mut Report<'_>) {
    for test in root.get("tests").and_then(Node::as_list).unwrap_or_default() {
        let given = test.as_map().and_then(|map| map.get("given")).and_then(Node::as_map);
        for entry in given.map_or(&[][..], |map| map.entries.as_slice()) {
            let Some(columns) = known.of_node(&NodeName::new(&entry.key)) else { continue };
            let rows = entry.value.as_list().unwrap_or_default();
            for cell in rows.iter().filter_map(Node::as_map).flat_map(|map| &map.entries) {
                if !columns.contains(&cell.key) {
                    report.warn(
                        "unknown-column",
                        cell.key_span,
                        format!("`{}` declares no column `{}`", entry.key, cell.key),
                        "add it to the `columns` of the source, or remove it from the row",
                    );
                }
            }
        }
    }
}

fn node_of<'n>(root: &'n Map, section: &str, name: &NodeName) -> Option<&'n Map> {
    root.get(section)?.as_map()?.get(name.as_str())?.as_map()
}

fn input_names(inputs: &[InputRef]) -> String {
    inputs.iter().map(InputRef::to_string).collect::<Vec<_>>().join("`, `")
}

fn check_names(node: &Node, columns: &[String], from: &str, report: &mut Report<'_>) {
    for item in node.as_list().unwrap_or(std::slice::from_ref(node)) {
        if let Some(name) = item.text()
            && !columns.iter().any(|column| column == name)
        {
            unknown(name, item.span, columns, from, report);
        }
    }
}

fn unknown(
    name: &str,
    span: crate::syntax::Span,
    columns: &[String],
    from: &str,
    report: &mut Report<'_>,
) {
    let shown = columns.iter().map(String::as_str).take(20);
    let help = did_you_mean(name, columns.iter().map(String::as_str))
        .unwrap_or_else(|| format!("its columns are {}", listed(shown)));
    report.error_help("unknown-column", span, format!("`{from}` has no column `{name}`"), help);
}

/// Columns of nodes, each found once; `None` where they are not known before planning.
struct Known<'s> {
    spec: &'s PipelineSpec,
    found: HashMap<NodeName, Option<Columns>>,
}

impl Known<'_> {
    fn of_inputs(&mut self, inputs: &[InputRef]) -> Option<Columns> {
        let mut columns: Columns = Vec::new();
        for input in inputs {
            // The rejected side has more columns than the accepted one.
            let of_input = if input.errors { None } else { self.of_node(&input.node) }?;
            let new = of_input.into_iter().filter(|column| !columns.contains(column));
            let new: Vec<String> = new.collect();
            columns.extend(new);
        }
        (!inputs.is_empty()).then_some(columns)
    }

    /// Follows the chain of transforms downwards with an own stack, for it may be long.
    fn of_node(&mut self, name: &NodeName) -> Option<Columns> {
        let mut waiting = vec![name.clone()];
        while let Some(current) = waiting.last().cloned() {
            if self.found.contains_key(&current) {
                waiting.pop();
                continue;
            }
            let missing: Vec<NodeName> = match self.spec.transforms.get(&current) {
                Some(transform) if passes_columns(&transform.operator) => transform
                    .inputs
                    .iter()
                    .filter(|input| !input.errors && !self.found.contains_key(&input.node))
                    .map(|input| input.node.clone())
                    .collect(),
                _ => Vec::new(),
            };
            if missing.is_empty() {
                let columns = self.direct(&current);
                self.found.insert(current, columns);
                waiting.pop();
            } else {
                waiting.extend(missing);
            }
        }
        self.found.get(name).cloned().flatten()
    }

    fn direct(&mut self, name: &NodeName) -> Option<Columns> {
        if let Some(transform) = self.spec.transforms.get(name) {
            let inputs = transform.inputs.clone();
            return if passes_columns(&transform.operator) {
                self.of_inputs(&inputs)
            } else {
                None
            };
        }
        let (columns, hive, path) = match self.spec.sources.get(name)? {
            Source::Csv(csv) => (&csv.columns, csv.hive_partitions, Some(&csv.path)),
            Source::Json(json) => (&json.columns, json.hive_partitions, Some(&json.path)),
            Source::Http(http) => (&http.columns, None, None),
            Source::Parquet(_) | Source::Database(_) | Source::Unsupported(_) => return None,
        };
        // Folders add columns that only a listing knows; a path names one file or many folders.
        let names_one_file = path.is_none_or(|path| {
            let path = path.as_str();
            !path.contains(['*', '?', '[', '=', '{'])
                && path.rsplit('/').next().is_some_and(|n| n.contains('.'))
        });
        if hive == Some(true) || (hive.is_none() && !names_one_file) {
            return None;
        }
        columns.as_ref().map(|columns| columns.keys().cloned().collect())
    }
}

fn passes_columns(operator: &Operator) -> bool {
    matches!(operator, Operator::Validate(_) | Operator::Deduplicate(_))
}

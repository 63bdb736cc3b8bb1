//! Which node reads which: missing nodes, `.errors` of nodes that have none, cycles, unused nodes.

use std::collections::{BTreeMap, BTreeSet};

use crate::InputRef;
use crate::diagnostic::{Report, did_you_mean};
use crate::shape::format::{INPUT, input_ref};
use crate::sql::table_references;
use crate::syntax::{Entry, Map, Node, Span};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Source,
    Transform,
    Sink,
}

struct Declared<'n> {
    section: Section,
    entry: &'n Entry,
}

/// An input as it is written somewhere.
struct Use<'n> {
    reader: &'n str,
    input: InputRef,
    span: Span,
}

struct Graph<'n> {
    nodes: BTreeMap<&'n str, Declared<'n>>,
    uses: Vec<Use<'n>>,
}

/// True when every reference holds, so that the nodes form an acyclic graph.
pub(crate) fn check(root: &Node, report: &mut Report<'_>) -> bool {
    let Some(root) = root.as_map() else { return false };
    let nodes = declared(root, report);
    let graph = Graph { uses: uses(&nodes, report), nodes };
    let mut hold = true;
    for used in &graph.uses {
        hold &= graph.check_use(used, report);
    }
    hold &= graph.check_cycles(report);
    graph.warn_unused(report);
    check_tests(root, &graph, report);
    hold
}

fn declared<'n>(root: &'n Map, report: &mut Report<'_>) -> BTreeMap<&'n str, Declared<'n>> {
    let sections = [
        ("sources", Section::Source),
        ("transforms", Section::Transform),
        ("sinks", Section::Sink),
    ];
    let mut nodes: BTreeMap<&str, Declared<'_>> = BTreeMap::new();
    for (key, section) in sections {
        let Some(map) = root.get(key).and_then(Node::as_map) else { continue };
        for entry in &map.entries {
            if let Some(first) = nodes.get(entry.key.as_str()) {
                report.error_help(
                    "duplicate-name",
                    entry.key_span,
                    format!(
                        "the name `{}` is already used in line {}",
                        entry.key, first.entry.key_span.line
                    ),
                    "sources, transforms and sinks share their names: rename one of them",
                );
            } else {
                nodes.insert(&entry.key, Declared { section, entry });
            }
        }
    }
    nodes
}

fn uses<'n>(nodes: &BTreeMap<&'n str, Declared<'n>>, report: &Report<'_>) -> Vec<Use<'n>> {
    let mut uses = Vec::new();
    for (reader, node) in nodes {
        if node.section == Section::Source {
            continue;
        }
        let Some(map) = node.entry.value.as_map() else { continue };
        for item in ["input", "inputs"].iter().filter_map(|key| map.get(key)).flat_map(items) {
            if let Some(text) = item.text().filter(|text| (INPUT.check)(text).is_ok()) {
                uses.push(Use { reader, input: input_ref(text), span: item.span });
            }
        }
        let Some(sql) = map.get("sql").filter(|_| node.section == Section::Transform) else {
            continue;
        };
        for found in table_references(sql.text().unwrap_or_default()) {
            let span = report.source.inside(sql, found.offset, found.length);
            uses.push(Use { reader, input: found.input, span });
        }
    }
    uses
}

fn items(node: &Node) -> &[Node] {
    node.as_list().unwrap_or(std::slice::from_ref(node))
}

impl Graph<'_> {
    fn check_use(&self, used: &Use<'_>, report: &mut Report<'_>) -> bool {
        let name = used.input.node.as_str();
        let Some(node) = self.nodes.get(name) else {
            let readable = self
                .nodes
                .iter()
                .filter(|(known, node)| node.section != Section::Sink && **known != used.reader)
                .map(|(known, _)| *known);
            let help = did_you_mean(name, readable)
                .unwrap_or_else(|| format!("add `{name}` under `sources` or `transforms`"));
            report.error_help(
                "unknown-node",
                used.span,
                format!("`{}` reads `{name}`, but there is no such node", used.reader),
                help,
            );
            return false;
        };
        if node.section == Section::Sink {
            report.error_help(
                "unknown-node",
                used.span,
                format!("`{}` reads the sink `{name}`; a sink has no output", used.reader),
                "read the node that feeds the sink",
            );
            return false;
        }
        if used.input.errors && !has_errors_side(node) {
            report.error_help(
                "no-errors-side",
                used.span,
                format!("`{name}` has no rejected side: only `validate` nodes have `.errors`"),
                "name a `validate` node; rejected rows of a source are dead letters",
            );
            return false;
        }
        true
    }

    fn check_cycles(&self, report: &mut Report<'_>) -> bool {
        let mut edges: BTreeMap<&str, Vec<(&str, Span)>> = BTreeMap::new();
        for used in &self.uses {
            edges.entry(used.reader).or_default().push((used.input.node.as_str(), used.span));
        }
        let mut finished: BTreeSet<&str> = BTreeSet::new();
        let mut acyclic = true;
        for start in self.nodes.keys() {
            if finished.contains(start) {
                continue;
            }
            // Depth first with an own stack: a path may be as long as the file.
            let mut path: Vec<(&str, usize)> = vec![(start, 0)];
            let mut on_path: BTreeSet<&str> = BTreeSet::from([*start]);
            while let Some((node, next)) = path.last_mut() {
                let edge = edges.get(*node).and_then(|edges| edges.get(*next));
                let Some((target, span)) = edge else {
                    on_path.remove(*node);
                    finished.insert(*node);
                    path.pop();
                    continue;
                };
                *next += 1;
                if on_path.contains(target) {
                    acyclic = false;
                    let mut names: Vec<&str> =
                        path.iter().map(|(name, _)| *name).skip_while(|n| n != target).collect();
                    names.push(target);
                    report.error_help(
                        "cycle",
                        *span,
                        format!("the nodes read each other in a circle: {}", names.join(" → ")),
                        "let one of them read another node (`a → b` means: `a` reads `b`)",
                    );
                } else if !finished.contains(target) {
                    path.push((target, 0));
                    on_path.insert(target);
                }
            }
        }
        acyclic
    }

    fn warn_unused(&self, report: &mut Report<'_>) {
        let read: BTreeSet<&str> = self.uses.iter().map(|used| used.input.node.as_str()).collect();
        for (name, node) in &self.nodes {
            if node.section != Section::Sink && !read.contains(name) {
                report.warn(
                    "unused-node",
                    node.entry.key_span,
                    format!("no node reads `{name}`, so it is never run"),
                    "remove it, or let a sink read it",
                );
            }
        }
    }
}

fn has_errors_side(node: &Declared<'_>) -> bool {
    node.section == Section::Transform
        && node.entry.value.as_map().is_some_and(|map| map.entry("validate").is_some())
}

/// `given` names sources, `expect` names nodes.
fn check_tests(root: &Map, graph: &Graph<'_>, report: &mut Report<'_>) {
    for test in root.get("tests").and_then(Node::as_list).unwrap_or_default() {
        let section = |key: &str| {
            test.as_map().and_then(|map| map.get(key)).and_then(Node::as_map).map(|m| &m.entries)
        };
        for entry in section("given").into_iter().flatten() {
            let is_source =
                graph.nodes.get(entry.key.as_str()).is_some_and(|n| n.section == Section::Source);
            if !is_source {
                let sources = graph.nodes.iter().filter(|(_, n)| n.section == Section::Source);
                report.error_hint(
                    "unknown-node",
                    entry.key_span,
                    format!("a test gives rows to `{}`, which is no source", entry.key),
                    did_you_mean(&entry.key, sources.map(|(name, _)| *name)),
                );
            }
        }
        if let (Some(expect), Some(node)) =
            (section("expect"), test.as_map().and_then(|map| map.get("expect")))
            && expect.is_empty()
        {
            report.error_help(
                "empty-expectation",
                node.span,
                "a test that expects nothing of any node cannot fail",
                "name a node with the rows that it must have: `NODE: []` for none",
            );
        }
        for entry in section("expect").into_iter().flatten() {
            let input = input_ref(&entry.key);
            match graph.nodes.get(input.node.as_str()) {
                None => report.error_hint(
                    "unknown-node",
                    entry.key_span,
                    format!("a test expects rows of `{}`, but there is no such node", input.node),
                    did_you_mean(input.node.as_str(), graph.nodes.keys().copied()),
                ),
                Some(node) if input.errors && !has_errors_side(node) => report.error_help(
                    "no-errors-side",
                    entry.key_span,
                    format!("`{}` has no rejected side", input.node),
                    "only `validate` nodes have `.errors`",
                ),
                Some(_) => {}
            }
        }
    }
}

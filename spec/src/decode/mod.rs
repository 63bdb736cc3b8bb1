//! From the tree to the model.
//!
//! The check against the tables has already reported every wrong value, so the functions here
//! return `None` in silence where a value cannot be had; what they report is what only they see.

mod connection;
mod fields;
mod pipeline;
mod sink;
mod source;
mod tests;
mod transform;
mod value;

use std::collections::BTreeMap;

use indexmap::IndexMap;

use crate::check;
use crate::diagnostic::{Diagnostic, Report, Severity};
use crate::shape::check::{Names, check_shape};
use crate::shape::{PIPELINE, WORKSPACE};
use crate::syntax::{Node, SourceText, Span, parse_tree};
use crate::{Connection, PipelineSpec};

pub(crate) use fields::Fields;
use value::value_fits;

/// A valid file.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub spec: PipelineSpec,
    pub warnings: Vec<Diagnostic>,
}

/// The connections of a `weir.yaml`, usable by every pipeline beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SharedConnections {
    pub connections: IndexMap<String, Connection>,
}

/// Parses a pipeline file that uses no shared connections. `file_name` is only for messages.
///
/// On error all mistakes of the file are returned, in file order, with the warnings between them.
pub fn parse(file_name: &str, text: &str) -> Result<Parsed, Vec<Diagnostic>> {
    parse_with(file_name, text, &SharedConnections::default())
}

/// Parses a pipeline file. A connection of the file hides a shared one of the same name.
pub fn parse_with(
    file_name: &str,
    text: &str,
    shared: &SharedConnections,
) -> Result<Parsed, Vec<Diagnostic>> {
    let source = SourceText::new(file_name, text);
    let mut report = Report::new(&source);
    let spec = parse_tree(text, &mut report).and_then(|root| {
        let names = names_of(&root, shared);
        check_shape(&root, &PIPELINE, &names, &mut report);
        let spec = Decoder { names: &names, shared, report: &mut report }.pipeline(&root);
        check::check_file(&root, &names, spec.as_ref(), &mut report);
        spec
    });
    finish(spec, report).map(|(spec, warnings)| Parsed { spec, warnings })
}

/// Parses a `weir.yaml`, which holds `connections:` and nothing else.
pub fn parse_workspace(file_name: &str, text: &str) -> Result<SharedConnections, Vec<Diagnostic>> {
    let source = SourceText::new(file_name, text);
    let mut report = Report::new(&source);
    let shared = SharedConnections::default();
    let connections = parse_tree(text, &mut report).map(|root| {
        let names = Names { params: Some(Vec::new()), ..names_of(&root, &shared) };
        check_shape(&root, &WORKSPACE, &names, &mut report);
        let mut decoder = Decoder { names: &names, shared: &shared, report: &mut report };
        decoder.connections(root.as_map().and_then(|map| map.get("connections")))
    });
    finish(connections, report).map(|(connections, _)| SharedConnections { connections })
}

fn finish<T>(
    value: Option<T>,
    mut report: Report<'_>,
) -> Result<(T, Vec<Diagnostic>), Vec<Diagnostic>> {
    if value.is_none() && !report.has_errors() {
        report.error(
            "not-understood",
            Span { line: 1, column: 1, length: 1 },
            "the file could not be understood, and no reason was found: please report this file",
        );
    }
    let has_errors = report.has_errors();
    let found = report.into_sorted();
    debug_assert!(has_errors || found.iter().all(|d| d.severity == Severity::Warning));
    match value {
        Some(value) if !has_errors => Ok((value, found)),
        _ => Err(found),
    }
}

/// Names of parameters and types of connections, before anything is checked.
fn names_of(root: &Node, shared: &SharedConnections) -> Names {
    let mut connections: BTreeMap<String, String> = shared
        .connections
        .iter()
        .map(|(name, connection)| (name.clone(), connection.type_name().to_owned()))
        .collect();
    let section = |name: &str| root.as_map().and_then(|map| map.get(name));
    if let Some(map) = section("connections").and_then(Node::as_map) {
        for entry in &map.entries {
            let type_name = entry.value.as_map().and_then(|map| map.get("type"));
            let type_name = type_name.and_then(Node::text).unwrap_or("unknown");
            connections.insert(entry.key.clone(), type_name.to_owned());
        }
    }
    let params = match section("params") {
        None => Some(Vec::new()),
        Some(node) if node.is_null() => Some(Vec::new()),
        Some(node) => {
            node.as_map().map(|map| map.entries.iter().map(|entry| entry.key.clone()).collect())
        }
    };
    Names { params, connections }
}

/// Decodes one file.
pub(crate) struct Decoder<'d, 'a> {
    names: &'d Names,
    shared: &'d SharedConnections,
    report: &'d mut Report<'a>,
}

//! The tests of a file.

use indexmap::IndexMap;
use serde_json::{Map as JsonMap, Value as Json};

use super::{Decoder, Fields};
use crate::shape::TEST;
use crate::syntax::{Entry, Node};
use crate::{NodeName, TestCase};

impl Decoder<'_, '_> {
    pub(super) fn tests(&mut self, fields: &Fields<'_>) -> Vec<TestCase> {
        let items = fields.node("tests").and_then(Node::as_list).unwrap_or_default();
        let mut tests: Vec<TestCase> = Vec::new();
        for item in items {
            let Some(test) = self.test(item) else { continue };
            if let Some(first) = tests.iter().find(|known| known.name == test.name) {
                let span =
                    item.as_map().and_then(|map| map.get("name")).map_or(item.span, |n| n.span);
                self.report.error_help(
                    "duplicate-name",
                    span,
                    format!("line {} already has a test named `{}`", first.line, test.name),
                    "name each test differently",
                );
            }
            tests.push(test);
        }
        tests
    }

    fn test(&mut self, node: &Node) -> Option<TestCase> {
        let fields = Fields::of(Some(node), &TEST);
        let given = self.rows_by_node(fields.entries("given"));
        let expect = self.rows_by_node(fields.entries("expect"));
        Some(TestCase {
            name: fields.text("name")?,
            given: given.into_iter().map(|(name, rows)| (NodeName(name), rows)).collect(),
            expect,
            line: node.span.line,
        })
    }

    fn rows_by_node(&mut self, entries: &[Entry]) -> IndexMap<String, Vec<JsonMap<String, Json>>> {
        entries
            .iter()
            .map(|entry| {
                let items = entry.value.as_list().unwrap_or_default();
                let rows = items.iter().filter_map(|item| self.row(item)).collect();
                (entry.key.clone(), rows)
            })
            .collect()
    }

    fn row(&mut self, node: &Node) -> Option<JsonMap<String, Json>> {
        let row = node.as_map();
        if row.is_none() {
            self.report.error_help(
                "wrong-type",
                node.span,
                format!("a row is a mapping, found {}", node.kind_name()),
                "write `{ column: value, … }`",
            );
        }
        Some(row?.to_json())
    }
}

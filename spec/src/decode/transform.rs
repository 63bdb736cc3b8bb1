//! Transforms.

use indexmap::IndexMap;

use super::{Decoder, Fields};
use crate::shape::{DEDUPLICATE, RULE, TRANSFORM, format};
use crate::syntax::{Node, Scalar, Value};
use crate::{
    Condition, Deduplicate, InputRef, NodeName, Operator, Rule, Transform, UnsupportedNode,
    Validate, sql,
};

impl Decoder<'_, '_> {
    pub(super) fn transforms(&mut self, section: Option<&Node>) -> IndexMap<NodeName, Transform> {
        let map = section.and_then(Node::as_map);
        let entries = map.map_or(&[][..], |map| map.entries.as_slice());
        entries
            .iter()
            .filter_map(|entry| Some((NodeName::new(&entry.key), self.transform(&entry.value)?)))
            .collect()
    }

    fn transform(&mut self, node: &Node) -> Option<Transform> {
        let fields = &Fields::of(Some(node), &TRANSFORM);
        self.error_limit(fields);
        if !fields.has("validate") {
            for key in ["on_error", "max_errors"] {
                if let Some(entry) = fields.entry(key) {
                    self.report.error_help(
                        "conflicting-keys",
                        entry.key_span,
                        format!("`{key}` is about rows that a `validate` rejects"),
                        format!("remove `{key}`, or move it to the `validate` node or the source"),
                    );
                }
            }
        }
        if fields.has("sql") {
            return self.sql(fields);
        }
        let inputs = self.inputs(fields, "a transform")?;
        let operator = if let Some(node) = fields.node("validate") {
            Operator::Validate(self.validate(fields, node)?)
        } else if let Some(node) = fields.node("deduplicate") {
            Operator::Deduplicate(self.deduplicate(node)?)
        } else if fields.has("extract") {
            Operator::Unsupported(UnsupportedNode { type_name: String::from("extract") })
        } else {
            return None;
        };
        Some(Transform { inputs, operator })
    }

    fn sql(&mut self, fields: &Fields<'_>) -> Option<Transform> {
        for key in ["input", "inputs"] {
            if let Some(entry) = fields.entry(key) {
                self.report.error_help(
                    "conflicting-keys",
                    entry.key_span,
                    format!("`{key}` and `sql` cannot both be set: SQL finds its inputs by name"),
                    format!("remove `{key}`, and name the node after FROM"),
                );
            }
        }
        let text = fields.template("sql")?;
        if let (Some(node), Some((offset, length))) =
            (fields.node("sql"), sql::recursive_with(text.as_str()))
        {
            let span = self.report.source.inside(node, offset, length);
            self.report.error_help(
                "not-supported-yet",
                span,
                "WITH RECURSIVE is not supported yet by this version",
                "for a series of values write `FROM generate_series(1, 10)`; a database source can \
                 run a recursive `query` itself",
            );
        }
        let mut inputs: Vec<InputRef> = Vec::new();
        for found in sql::table_references(text.as_str()) {
            if !inputs.contains(&found.input) {
                inputs.push(found.input);
            }
        }
        Some(Transform { inputs, operator: Operator::Sql(text) })
    }

    /// `input` or `inputs`; reports when neither is there.
    pub(super) fn inputs(&mut self, fields: &Fields<'_>, of: &str) -> Option<Vec<InputRef>> {
        if let (true, Some(entry)) = (fields.has("input"), fields.entry("inputs")) {
            if of == "a transform" {
                self.report.error_help(
                    "conflicting-keys",
                    entry.key_span,
                    format!("`input` and `inputs` cannot both be set in {of}"),
                    "keep one of them",
                );
            }
            return None;
        }
        let mut items = fields.items("input").iter().chain(fields.items("inputs")).peekable();
        if items.peek().is_none() {
            match fields.entry("inputs") {
                Some(entry) => {
                    self.report.error("empty-value", entry.key_span, "`inputs` is empty");
                }
                None if of == "a transform" => self.report.error_help(
                    "missing-key",
                    fields.span,
                    format!("{of} needs `input` or `inputs`"),
                    "write `input: NODE`",
                ),
                None => {}
            }
            return None;
        }
        let mut inputs = Vec::new();
        for item in items {
            let Some(text) = item.text() else { continue };
            let input = format::input_ref(text);
            if inputs.contains(&input) {
                self.report.error_help(
                    "duplicate-input",
                    item.span,
                    format!("the input `{input}` is named twice"),
                    "remove one of them",
                );
            }
            inputs.push(input);
        }
        Some(inputs)
    }

    fn validate(&mut self, fields: &Fields<'_>, node: &Node) -> Option<Validate> {
        let items = node.as_list()?;
        if items.is_empty() {
            self.report.error_help(
                "empty-value",
                node.span,
                "`validate` has no rules",
                "add a rule such as `- { column: id, not_null: true }`",
            );
        }
        let rules: Vec<Option<Rule>> = items.iter().map(|item| self.rule(item)).collect();
        Some(Validate {
            rules: rules.into_iter().collect::<Option<_>>()?,
            on_error: fields.choice("on_error")?,
            max_errors: fields.parse("max_errors", format::max_errors),
        })
    }

    fn rule(&mut self, node: &Node) -> Option<Rule> {
        let fields = &Fields::of(Some(node), &RULE);
        let name = fields.text("name");
        if let Some(expression) = fields.template("check") {
            if let Some(entry) = fields.entry("column") {
                self.report.error_help(
                    "conflicting-keys",
                    entry.key_span,
                    "`column` and `check` cannot both be set in a rule",
                    "remove `column`: the condition names its columns itself",
                );
            }
            return Some(Rule { name, condition: Condition::Check { expression } });
        }
        let Some(column) = fields.text("column") else {
            if !fields.has("column") && node.as_map().is_some() {
                self.report.error_help(
                    "missing-key",
                    node.span,
                    "a rule needs the key `column`",
                    "write `column: NAME`, or `check: \"SQL condition\"` alone",
                );
            }
            return None;
        };
        let condition = self.condition(fields, column)?;
        Some(Rule { name, condition })
    }

    fn condition(&mut self, fields: &Fields<'_>, column: String) -> Option<Condition> {
        if let Some(node) = fields.node("not_null") {
            if fields.bool("not_null") == Some(false) {
                self.report.error_help(
                    "unknown-value",
                    node.span,
                    "`not_null: false` is no rule",
                    "remove the rule, or write `not_null: true`",
                );
            }
            return Some(Condition::NotNull { column });
        }
        if let Some(pattern) = fields.text("matches") {
            return Some(Condition::Matches { column, pattern });
        }
        if let Some(node) = fields.node("between") {
            let [low, high] = node.as_list()? else {
                self.report.error_help(
                    "wrong-type",
                    node.span,
                    "`between` has exactly two bounds",
                    "write `between: [low, high]`",
                );
                return None;
            };
            self.bounds_are_ordered(low, high, node);
            return Some(Condition::Between { column, low: low.to_json(), high: high.to_json() });
        }
        if let Some(node) = fields.node("one_of") {
            let values: Vec<_> = node.as_list()?.iter().map(Node::to_json).collect();
            if values.is_empty() {
                self.report.error("empty-value", node.span, "`one_of` allows no value at all");
            }
            return Some(Condition::OneOf { column, values });
        }
        if let Some(length) = fields.integer("min_length") {
            return Some(Condition::MinLength { column, length });
        }
        let length = fields.integer("max_length")?;
        Some(Condition::MaxLength { column, length })
    }

    fn bounds_are_ordered(&mut self, low: &Node, high: &Node, node: &Node) {
        let number = |node: &Node| match &node.value {
            Value::Scalar(scalar) => match scalar.scalar {
                #[expect(clippy::cast_precision_loss, reason = "only compared, for a message")]
                Scalar::Integer(value) => Some(value as f64),
                Scalar::Float(value) => Some(value),
                _ => None,
            },
            _ => None,
        };
        if let (Some(low), Some(high)) = (number(low), number(high))
            && low > high
        {
            self.report.error_help(
                "out-of-range",
                node.span,
                "the low bound of `between` is above the high one: no row would pass",
                format!("write `between: [{high}, {low}]`"),
            );
        }
    }

    fn deduplicate(&mut self, node: &Node) -> Option<Deduplicate> {
        let fields = Fields::of(Some(node), &DEDUPLICATE);
        let key = fields.texts("key");
        if let Some(node) = fields.node("key")
            && key.is_empty()
        {
            self.report.error("empty-value", node.span, "`key` names no column");
        }
        Some(Deduplicate { key, keep: fields.choice("keep")?, order_by: fields.texts("order_by") })
    }
}

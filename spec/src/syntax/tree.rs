//! YAML events → a tree with spans. Bounded: file size, depth, nodes after aliases.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span as EventSpan, Tag};

use super::Span;
use crate::diagnostic::Report;

pub(crate) const MAX_FILE_BYTES: usize = 1 << 20;
const MAX_DEPTH: usize = 64;
/// Nodes of the tree after aliases are expanded.
const MAX_NODES: usize = 200_000;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) span: Span,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A scalar as written, and what YAML's core schema makes of it.
    Scalar(ScalarNode),
    List(Vec<Node>),
    Map(Map),
}

#[derive(Clone, Debug)]
pub(crate) struct ScalarNode {
    pub(crate) text: String,
    pub(crate) scalar: Scalar,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scalar {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text,
}

/// The entries of a mapping in file order, keys unique.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    pub(crate) entries: Vec<Entry>,
    positions: HashMap<String, usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Node,
}

impl Map {
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.positions.get(key).map(|position| &self.entries[*position])
    }

    fn insert(&mut self, entry: Entry) {
        self.positions.insert(entry.key.clone(), self.entries.len());
        self.entries.push(entry);
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }
}

impl Node {
    pub(crate) fn as_map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            Value::Scalar(_) | Value::List(_) => None,
        }
    }

    pub(crate) fn as_list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            Value::Scalar(_) | Value::Map(_) => None,
        }
    }

    pub(crate) fn as_scalar(&self) -> Option<&ScalarNode> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The text of a scalar of any type but null.
    pub(crate) fn text(&self) -> Option<&str> {
        self.as_scalar().filter(|s| s.scalar != Scalar::Null).map(|s| s.text.as_str())
    }

    pub(crate) fn is_null(&self) -> bool {
        self.as_scalar().is_some_and(|scalar| scalar.scalar == Scalar::Null)
    }

    /// What the value is, for messages: `a list`, `a number`.
    pub(crate) fn kind_name(&self) -> &'static str {
        match &self.value {
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Scalar(scalar) => match scalar.scalar {
                Scalar::Null => "nothing",
                Scalar::Bool(_) => "true or false",
                Scalar::Integer(_) | Scalar::Float(_) => "a number",
                Scalar::Text => "text",
            },
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(map) => serde_json::Value::Object(map.to_json()),
            Value::Scalar(scalar) => match scalar.scalar {
                Scalar::Null => serde_json::Value::Null,
                Scalar::Bool(value) => value.into(),
                Scalar::Integer(value) => i64::try_from(value)
                    .map(serde_json::Value::from)
                    .or_else(|_| u64::try_from(value).map(serde_json::Value::from))
                    .unwrap_or_else(|_| scalar.text.clone().into()),
                // Infinity and NaN have no JSON number: kept as written.
                Scalar::Float(value) => serde_json::Number::from_f64(value)
                    .map_or_else(|| scalar.text.clone().into(), serde_json::Value::Number),
                Scalar::Text => scalar.text.clone().into(),
            },
        }
    }
}

impl Map {
    pub(crate) fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        self.entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect()
    }
}

/// Parses one YAML document. `None` once the text is no YAML (reported); `Some` may still come
/// with reported mistakes such as a duplicate key, of which the first counts.
pub(crate) fn parse_tree(text: &str, report: &mut Report<'_>) -> Option<Node> {
    if text.len() > MAX_FILE_BYTES {
        report.error_help(
            "file-too-large",
            Span { line: 1, column: 1, length: 1 },
            format!("the file has {} bytes; at most {MAX_FILE_BYTES} are read", text.len()),
            "split the pipeline, or move long literal data into files that a source reads",
        );
        return None;
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    TreeBuilder { report, stack: Vec::new(), anchors: HashMap::new(), nodes: 0 }.build(text)
}

/// A list or mapping whose end has not been seen yet.
struct Open {
    span: Span,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { map: Map, key: Option<(String, Span)> },
}

struct TreeBuilder<'r, 'a> {
    report: &'r mut Report<'a>,
    stack: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

impl TreeBuilder<'_, '_> {
    fn build(mut self, text: &str) -> Option<Node> {
        let mut parser = Parser::new_from_str(text);
        let mut root: Option<Node> = None;
        while let Some(event) = parser.next_event() {
            let (event, event_span) = match event {
                Ok(event) => event,
                Err(error) => {
                    self.not_yaml(&error);
                    return None;
                }
            };
            let span = span_of(&event_span);
            let finished = match event {
                Event::DocumentStart(_) if root.is_some() => {
                    self.report.error_help(
                        "several-documents",
                        span,
                        "the file holds more than one YAML document",
                        "keep one pipeline a file and remove the line `---`",
                    );
                    return root;
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let node = self.scalar(text.into_owned(), style, tag.as_deref(), span);
                    Some((node, anchor))
                }
                Event::SequenceStart(anchor, _) => {
                    self.open(span, anchor, OpenKind::List(Vec::new()))?;
                    None
                }
                Event::MappingStart(anchor, _) => {
                    self.open(span, anchor, OpenKind::Map { map: Map::default(), key: None })?;
                    None
                }
                Event::SequenceEnd | Event::MappingEnd => self.close(),
                Event::Alias(anchor) => Some((self.alias(anchor, span)?, 0)),
                _ => None,
            };
            let Some((node, anchor)) = finished else { continue };
            self.count(1, node.span)?;
            if anchor != 0 {
                let size = size_of(&node);
                self.anchors.insert(anchor, (node.clone(), size));
            }
            if let Some(node) = self.place(node) {
                root = Some(node);
            }
        }
        if root.is_none() {
            self.report.error_help(
                "empty-file",
                Span { line: 1, column: 1, length: 1 },
                "the file is empty",
                "start with `pipeline: NAME`, then `sources:` and `sinks:`",
            );
        }
        root
    }

    fn not_yaml(&mut self, error: &saphyr_parser::ScanError) {
        let marker = error.marker();
        let span = Span {
            line: narrow(marker.line()).max(1),
            column: narrow(marker.col()).saturating_add(1),
            length: 1,
        };
        self.report.error_help(
            "invalid-yaml",
            span,
            format!("this is not valid YAML: {}", error.info()),
            "check the indentation, and quote text that holds `: `, ` #`, `{`, `[`, `*`, `&`, `@` or `%`",
        );
    }

    fn open(&mut self, span: Span, anchor: usize, kind: OpenKind) -> Option<()> {
        if self.stack.len() >= MAX_DEPTH {
            self.report.error(
                "too-deep",
                span,
                format!("values are nested deeper than {MAX_DEPTH} levels"),
            );
            return None;
        }
        self.stack.push(Open { span, anchor, kind });
        Some(())
    }

    fn close(&mut self) -> Option<(Node, usize)> {
        let Open { span, anchor, kind } = self.stack.pop()?;
        let value = match kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map { map, .. } => Value::Map(map),
        };
        Some((Node { value, span }, anchor))
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Option<Node> {
        // An alias inside its own anchor is unknown here, because the anchor is not finished yet.
        let Some((node, size)) = self.anchors.get(&anchor) else {
            self.report.error("invalid-yaml", span, "an alias stands inside the value it names");
            return None;
        };
        let size = *size;
        if self.nodes + size > MAX_NODES {
            self.too_many_nodes(span);
            return None;
        }
        let node = node.clone();
        self.nodes += size;
        if self.stack.len() + depth_of(&node) > MAX_DEPTH {
            self.report.error(
                "too-deep",
                span,
                format!("with this alias, values are nested deeper than {MAX_DEPTH} levels"),
            );
            return None;
        }
        Some(node)
    }

    fn count(&mut self, nodes: usize, span: Span) -> Option<()> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            self.too_many_nodes(span);
            return None;
        }
        Some(())
    }

    fn too_many_nodes(&mut self, span: Span) {
        self.report.error_help(
            "too-many-values",
            span,
            format!("the file has more than {MAX_NODES} values once its aliases are expanded"),
            "use fewer YAML aliases (`*name`)",
        );
    }

    /// Puts a finished node where it belongs; gives it back when it is the whole document.
    fn place(&mut self, node: Node) -> Option<Node> {
        let Some(open) = self.stack.last_mut() else { return Some(node) };
        match &mut open.kind {
            OpenKind::List(items) => items.push(node),
            OpenKind::Map { map, key } => match key.take() {
                None => *key = Some(key_of(&node, self.report)),
                Some((name, key_span)) => {
                    if let Some(first) = map.entry(&name) {
                        let line = first.key_span.line;
                        self.report.error_help(
                            "duplicate-key",
                            key_span,
                            format!("the key `{name}` is already set in line {line}"),
                            "keep one of them",
                        );
                    } else {
                        map.insert(Entry { key: name, key_span, value: node });
                    }
                }
            },
        }
        None
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Node {
        let is_text_tag = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
        let scalar = if style == ScalarStyle::Plain && !is_text_tag {
            resolve_plain(&text)
        } else {
            Scalar::Text
        };
        Node { value: Value::Scalar(ScalarNode { text, scalar }), span }
    }
}

fn key_of(node: &Node, report: &mut Report<'_>) -> (String, Span) {
    if let Some(scalar) = node.as_scalar() {
        return (scalar.text.clone(), node.span);
    }
    report.error_help(
        "invalid-key",
        node.span,
        format!("a key must be text, found {}", node.kind_name()),
        "quote a template: `\"{{ params.name }}\"`",
    );
    (format!("?{}:{}", node.span.line, node.span.column), node.span)
}

/// YAML 1.2's core schema: `yes`, `no` and `on` are text, `0x1f` and `0o17` are numbers.
fn resolve_plain(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "true" | "True" | "TRUE" => return Scalar::Bool(true),
        "false" | "False" | "FALSE" => return Scalar::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Scalar::Float(f64::NAN),
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
        return Scalar::Float(sign * f64::INFINITY);
    }
    let digits = |text: &str, radix| {
        let all_digits = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
        all_digits.then(|| i128::from_str_radix(text, radix).ok()).flatten()
    };
    if let Some(value) = text.strip_prefix("0x").and_then(|hex| digits(hex, 16)) {
        return Scalar::Integer(value);
    }
    if let Some(value) = text.strip_prefix("0o").and_then(|octal| digits(octal, 8)) {
        return Scalar::Integer(value);
    }
    if let Some(value) = digits(unsigned, 10) {
        return Scalar::Integer(if text.starts_with('-') { -value } else { value });
    }
    let is_float = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && unsigned.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    match text.parse::<f64>() {
        Ok(value) if is_float => Scalar::Float(value),
        _ => Scalar::Text,
    }
}

fn size_of(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar(_) => 0,
        Value::List(items) => items.iter().map(size_of).sum(),
        Value::Map(map) => map.entries.iter().map(|entry| 1 + size_of(&entry.value)).sum(),
    }
}

fn depth_of(node: &Node) -> usize {
    let inside = match &node.value {
        Value::Scalar(_) => return 0,
        Value::List(items) => items.iter().map(depth_of).max(),
        Value::Map(map) => map.entries.iter().map(|entry| depth_of(&entry.value)).max(),
    };
    1 + inside.unwrap_or(0)
}

fn span_of(span: &EventSpan) -> Span {
    Span {
        line: narrow(span.start.line()).max(1),
        column: narrow(span.start.col()).saturating_add(1),
        length: narrow(span.end.index().saturating_sub(span.start.index())).max(1),
    }
}

fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syntax::SourceText;

    fn tree(text: &str) -> (Option<Node>, Vec<crate::Diagnostic>) {
        let source = SourceText::new("t.yaml", text);
        let mut report = Report::new(&source);
        let node = parse_tree(text, &mut report);
        (node, report.into_sorted())
    }

    #[test]
    fn aliases_cannot_expand_without_bound() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let previous = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", [previous.as_str(); 10].join(","));
        }
        let (node, found) = tree(&text);
        assert!(node.is_none());
        assert_eq!(found[0].code, "too-many-values");
    }

    #[test]
    fn depth_is_bounded() {
        let (node, found) = tree(&format!("{}{}", "[".repeat(200), "]".repeat(200)));
        assert!(node.is_none());
        assert_eq!(found[0].code, "too-deep");
    }

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        for (text, expected) in [
            ("12", Scalar::Integer(12)),
            ("-7", Scalar::Integer(-7)),
            ("0x1f", Scalar::Integer(31)),
            ("1.5", Scalar::Float(1.5)),
            ("1e3", Scalar::Float(1000.0)),
            ("yes", Scalar::Text),
            ("2020-01-01", Scalar::Text),
            ("10/s", Scalar::Text),
            ("5%", Scalar::Text),
            ("1h", Scalar::Text),
            ("~", Scalar::Null),
        ] {
            assert_eq!(resolve_plain(text), expected, "{text}");
        }
    }
}

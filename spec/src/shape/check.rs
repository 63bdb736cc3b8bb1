//! Walks the tree beside the tables: unknown keys, wrong types, bad formats, misplaced templates.

use std::collections::BTreeMap;

use super::{Format, Key, Kind, Place, Shape, Tagged};
use crate::check::templates;
use crate::diagnostic::{Report, did_you_mean, listed, nearest};
use crate::syntax::{Map, Node, Scalar, Span, Value};

/// Names of the file that the walk needs before everything is decoded.
pub(crate) struct Names {
    /// `None` when `params` itself is broken: then nothing is said about unknown parameters.
    pub(crate) params: Option<Vec<String>>,
    /// Connection name → type, of the file and shared ones.
    pub(crate) connections: BTreeMap<String, String>,
}

/// Checks `node` against `shape` and reports everything that does not fit.
pub(crate) fn check_shape(
    node: &Node,
    shape: &'static Shape,
    names: &Names,
    report: &mut Report<'_>,
) {
    Walk { names, report }.object(node, shape);
}

struct Walk<'w, 'a> {
    names: &'w Names,
    report: &'w mut Report<'a>,
}

impl Walk<'_, '_> {
    fn object(&mut self, node: &Node, shape: &'static Shape) {
        let empty = Map::default();
        let map = match node.as_map() {
            Some(map) => map,
            // `transforms:` with nothing below it.
            None if node.is_null() => &empty,
            None => {
                let keys: Vec<&str> = shape.keys.iter().map(|key| key.name).take(4).collect();
                self.report.error_help(
                    "wrong-type",
                    node.span,
                    format!("{} is a mapping, found {}", shape.name, node.kind_name()),
                    format!("write keys below it, such as {}", listed(keys)),
                );
                return;
            }
        };
        self.map(map, node.span, shape);
    }

    fn map(&mut self, map: &Map, span: Span, shape: &'static Shape) {
        for entry in &map.entries {
            match shape.key(&entry.key) {
                None => self.unknown_key(map, &entry.key, entry.key_span, shape),
                Some(key) if key.unsupported => self.report.error_help(
                    "not-supported-yet",
                    entry.key_span,
                    format!(
                        "`{}` in {} is not supported yet by this version",
                        key.name, shape.name
                    ),
                    format!("remove `{}` to run the rest of the file", key.name),
                ),
                Some(key) => self.value(&entry.value, key.kind, key.name, Some(key)),
            }
        }
        for key in shape.keys.iter().filter(|key| key.required) {
            if map.entry(key.name).is_none() {
                self.report.error_help(
                    "missing-key",
                    span,
                    format!("{} needs the key `{}`", shape.name, key.name),
                    format!("`{}`: {}", key.name, key.doc),
                );
            }
        }
        for group in shape.exactly_one {
            self.exactly_one(map, span, shape, group);
        }
    }

    fn exactly_one(&mut self, map: &Map, span: Span, shape: &Shape, group: &[&str]) {
        let written: Vec<_> =
            map.entries.iter().filter(|entry| group.contains(&entry.key.as_str())).collect();
        match written.as_slice() {
            [_] => {}
            [] => {
                // A misspelt key is reported as such.
                let misspelt = map.entries.iter().any(|entry| {
                    shape.key(&entry.key).is_none()
                        && nearest(&entry.key, group.iter().copied()).is_some()
                });
                if !misspelt {
                    self.report.error_help(
                        "missing-key",
                        span,
                        format!("{} needs one of {}", shape.name, listed(group.iter().copied())),
                        format!("write exactly one of {}", listed(group.iter().copied())),
                    );
                }
            }
            [first, others @ ..] => {
                for other in others {
                    self.report.error_help(
                        "conflicting-keys",
                        other.key_span,
                        format!(
                            "`{}` and `{}` cannot both be set in {}",
                            first.key, other.key, shape.name
                        ),
                        match shape.name {
                            "a rule" => "write one rule for each condition",
                            _ => "keep one of them",
                        },
                    );
                }
            }
        }
    }

    fn unknown_key(&mut self, map: &Map, written: &str, span: Span, shape: &Shape) {
        let free = shape.keys.iter().map(|key| key.name).filter(|name| map.entry(name).is_none());
        let hint = if written == "<<" {
            String::from("YAML merge keys are not part of YAML 1.2; repeat the keys")
        } else if let Some(name) = well_known_slip(written, shape) {
            format!("write `{name}` instead")
        } else if let Some(name) = nearest(written, free) {
            format!("write `{name}` instead")
        } else {
            format!("known keys are {}", listed(shape.keys.iter().map(|key| key.name)))
        };
        let message = format!("unknown key `{written}` in {}", shape.name);
        self.report.error_help("unknown-key", span, message, hint);
    }

    fn value(&mut self, node: &Node, kind: Kind, name: &str, key: Option<&Key>) {
        match kind {
            Kind::Prose => {
                self.text(node, name);
            }
            Kind::Text => {
                if let Some(text) = self.text(node, name) {
                    self.no_template(node, text, name);
                    if text.is_empty() {
                        self.empty(node, name);
                    }
                }
            }
            Kind::Written => {
                if let Some(text) = self.scalar(node, name, "text or a number") {
                    self.no_template(node, text, name);
                }
            }
            Kind::Template(place) => {
                let text = match place {
                    Place::Sql => self.text(node, name),
                    // `limit: 100` among query parameters.
                    Place::Plan | Place::Connection => self.scalar(node, name, "text"),
                };
                if let Some(text) = text {
                    templates::check(node, text, place, self.names, self.report);
                    if text.trim().is_empty() && key.is_some() {
                        self.empty(node, name);
                    }
                }
            }
            Kind::Bool => {
                if !matches!(node.as_scalar(), Some(s) if matches!(s.scalar, Scalar::Bool(_))) {
                    let help = match node.text().map(str::to_lowercase).as_deref() {
                        Some("yes" | "on" | "y" | "true" | "1") => "write `true`",
                        Some("no" | "off" | "n" | "false" | "0") => "write `false`",
                        _ => "write `true` or `false`",
                    };
                    self.wrong_type(node, name, "true or false", help);
                }
            }
            Kind::Integer { min, max } => self.integer(node, name, min, max),
            Kind::Format(format) => self.format(node, format, name),
            Kind::Choice { names, unsupported } => self.choice(node, name, names, unsupported),
            Kind::List(item) => match node.as_list() {
                Some(items) => items.iter().for_each(|node| self.value(node, *item, name, None)),
                None if node.is_null() => {}
                None => self.wrong_type(node, name, "a list", "write `[a, b]`, or lines with `- `"),
            },
            Kind::OneOrMany(item) => match node.as_list() {
                Some(items) => items.iter().for_each(|node| self.value(node, *item, name, None)),
                None => self.value(node, *item, name, key),
            },
            Kind::Map(key_format, item) => self.free_map(node, name, key_format, *item),
            Kind::Object(shape) => self.object(node, shape),
            Kind::Tagged(tagged) => self.tagged(node, tagged),
            Kind::Any(place) => {
                if let Some(place) = place {
                    self.any(node, place);
                }
            }
        }
    }

    fn free_map(&mut self, node: &Node, name: &str, key_format: &Format, item: Kind) {
        let Some(map) = node.as_map() else {
            if !node.is_null() {
                self.wrong_type(node, name, "a mapping", "write `name: value` lines below it");
            }
            return;
        };
        for entry in &map.entries {
            if let Err(reason) = (key_format.check)(&entry.key) {
                self.report.error(
                    key_format.code,
                    entry.key_span,
                    format!("`{}` is not {}: {reason}", entry.key, key_format.name),
                );
            }
            self.value(&entry.value, item, &entry.key, None);
        }
    }

    fn tagged(&mut self, node: &Node, tagged: &'static Tagged) {
        let Some(map) = node.as_map() else {
            let help = format!("write `{{ type: {}, … }}`", tagged.variants[0].0);
            self.wrong_type(node, tagged.name, "a mapping", &help);
            return;
        };
        match shape_of(map, node.span, tagged, self.names) {
            TagResult::Shape(shape) => self.map(map, node.span, shape),
            TagResult::Mistake { code, span, message, help } => {
                self.report.error_hint(code, span, message, help);
            }
        }
        if tagged.by_connection {
            self.connection_agrees(map);
        }
    }

    /// `type` and `connection` may both be written when they say the same.
    fn connection_agrees(&mut self, map: &Map) {
        let Some(connection) = map.get("connection") else { return };
        let Some(name) = connection.text() else { return };
        let Some(connection_type) = self.names.connections.get(name) else {
            let known = self.names.connections.keys().map(String::as_str);
            let help = did_you_mean(name, known).unwrap_or_else(|| {
                format!("add `{name}` under `connections`, here or in weir.yaml")
            });
            self.report.error_help(
                "unknown-connection",
                connection.span,
                format!("there is no connection `{name}`"),
                help,
            );
            return;
        };
        let Some(type_node) = map.get("type") else { return };
        let is_database_or_http = |name: &str| {
            super::CONNECTION.type_names().any(|known| known == name)
                || super::CONNECTION.unsupported.contains(&name)
        };
        if let Some(written) = type_node.text()
            && written != connection_type
            && is_database_or_http(written)
        {
            self.report.error_help(
                "connection-type-mismatch",
                type_node.span,
                format!(
                    "the type is `{written}`, but the connection `{name}` is of type `{connection_type}`"
                ),
                "remove `type`, or name another connection",
            );
        }
    }

    fn any(&mut self, node: &Node, place: Place) {
        match &node.value {
            Value::List(items) => items.iter().for_each(|item| self.any(item, place)),
            Value::Map(map) => map.entries.iter().for_each(|entry| self.any(&entry.value, place)),
            Value::Scalar(scalar) => {
                templates::check(node, &scalar.text, place, self.names, self.report);
            }
        }
    }

    fn text<'n>(&mut self, node: &'n Node, name: &str) -> Option<&'n str> {
        match node.as_scalar() {
            Some(scalar) if scalar.scalar == Scalar::Text => return Some(&scalar.text),
            Some(scalar) if scalar.scalar != Scalar::Null => {
                let help = format!("put it in quotes: `\"{}\"`", scalar.text);
                self.wrong_type(node, name, "text", &help);
            }
            _ => self.wrong_type(node, name, "text", &needs_value(node, name)),
        }
        None
    }

    fn scalar<'n>(&mut self, node: &'n Node, name: &str, expected: &str) -> Option<&'n str> {
        let text = node.text();
        if text.is_none() {
            self.wrong_type(node, name, expected, &needs_value(node, name));
        }
        text
    }

    fn integer(&mut self, node: &Node, name: &str, min: i64, max: i64) {
        let value = match node.as_scalar().map(|scalar| scalar.scalar) {
            Some(Scalar::Integer(value)) => value,
            _ => {
                let help = "write a whole number, without quotes, `_` or `,`";
                return self.wrong_type(node, name, "a whole number", help);
            }
        };
        if value < i128::from(min) || value > i128::from(max) {
            let range = if max == i64::MAX {
                format!("at least {min}")
            } else {
                format!("between {min} and {max}")
            };
            self.report.error(
                "out-of-range",
                node.span,
                format!("`{name}` must be {range}, found {value}"),
            );
        }
    }

    fn format(&mut self, node: &Node, format: &Format, name: &str) {
        let examples = listed(format.examples.iter().copied());
        let scalar = node.as_scalar().map(|scalar| (scalar.scalar, scalar.text.as_str()));
        let text = match scalar {
            Some((Scalar::Text, text)) => text,
            Some((Scalar::Integer(_) | Scalar::Float(_), text)) => text,
            _ => {
                let help = format!("write {}, for example {examples}", format.name);
                return self.wrong_type(node, name, format.name, &help);
            }
        };
        if let Err(reason) = (format.check)(text) {
            self.report.error_help(
                format.code,
                node.span,
                format!("`{}` is not {}: {reason}", shortened(text), format.name),
                format!("write {}, for example {examples}", format.name),
            );
        } else if !format.accepts_number && scalar.is_some_and(|(kind, _)| kind != Scalar::Text) {
            self.wrong_type(node, name, format.name, &format!("put it in quotes: `\"{text}\"`"));
        }
    }

    fn choice(&mut self, node: &Node, name: &str, names: &[&str], unsupported: &[&str]) {
        let Some(text) = node.as_scalar().map(|scalar| scalar.text.as_str()) else {
            let help = format!("write {}", listed(names.iter().copied()));
            return self.wrong_type(node, name, "one word", &help);
        };
        if names.contains(&text) {
            return;
        }
        if unsupported.contains(&text) {
            self.report.error_help(
                "not-supported-yet",
                node.span,
                format!("`{name}: {text}` is not supported yet by this version"),
                format!("write {}", listed(names.iter().copied())),
            );
            return;
        }
        let near = did_you_mean(text, names.iter().copied())
            .unwrap_or_else(|| format!("write {}", listed(names.iter().copied())));
        self.report.error_help(
            "unknown-value",
            node.span,
            format!("`{name}` is {}, not `{}`", listed(names.iter().copied()), shortened(text)),
            near,
        );
    }

    fn no_template(&mut self, node: &Node, text: &str, name: &str) {
        if text.contains("{{") {
            self.report.error_help(
                "template-not-allowed",
                node.span,
                format!("`{name}` may not hold a template"),
                "write the value itself",
            );
        }
    }

    fn empty(&mut self, node: &Node, name: &str) {
        self.report.error("empty-value", node.span, format!("`{name}` is empty"));
    }

    fn wrong_type(&mut self, node: &Node, name: &str, expected: &str, help: &str) {
        self.report.error_help(
            "wrong-type",
            node.span,
            format!("`{name}` must be {expected}, found {}", node.kind_name()),
            help,
        );
    }
}

fn needs_value(node: &Node, name: &str) -> String {
    // `url: {{ env.URL }}` without quotes is a mapping inside a mapping.
    match node.as_map().map(|map| map.entries.first()) {
        Some(Some(entry)) if entry.value.is_null() => {
            format!("a template needs quotes: `{name}: \"{{{{ … }}}}\"`")
        }
        _ => format!("write `{name}: value`"),
    }
}

fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(60).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown.replace('\n', " ")
}

/// Words that people bring along from other tools.
fn well_known_slip(written: &str, shape: &Shape) -> Option<&'static str> {
    const SLIPS: [(&str, &str); 26] = [
        ("name", "pipeline"),
        ("schedule", "triggers"),
        ("trigger", "triggers"),
        ("parameters", "params"),
        ("variables", "params"),
        ("source", "sources"),
        ("input", "sources"),
        ("sink", "sinks"),
        ("outputs", "sinks"),
        ("targets", "sinks"),
        ("destinations", "sinks"),
        ("from", "input"),
        ("source", "input"),
        ("file", "path"),
        ("files", "path"),
        ("sep", "delimiter"),
        ("separator", "delimiter"),
        ("primary_key", "key"),
        ("keys", "key"),
        ("write_mode", "mode"),
        ("batch_size", "batch_rows"),
        ("dedupe", "deduplicate"),
        ("query", "sql"),
        ("dsn", "url"),
        ("required", "not_null"),
        ("regex", "matches"),
    ];
    SLIPS
        .iter()
        .filter(|(slip, _)| *slip == written.to_lowercase())
        .map(|(_, key)| *key)
        .find(|key| shape.key(key).is_some())
}

pub(crate) enum TagResult {
    Shape(&'static Shape),
    Mistake { code: &'static str, span: Span, message: String, help: Option<String> },
}

/// The shape of a mapping by its `type`, else by the type of its connection.
pub(crate) fn shape_of(map: &Map, span: Span, tagged: &Tagged, names: &Names) -> TagResult {
    let by_connection = || {
        let name = tagged.by_connection.then(|| map.get("connection")).flatten()?.text()?;
        names.connections.get(name).map(String::as_str)
    };
    let (type_name, type_span) = match map.entry("type") {
        Some(entry) => match entry.value.as_scalar() {
            Some(scalar) => (scalar.text.as_str(), entry.value.span),
            None => {
                return TagResult::Mistake {
                    code: "wrong-type",
                    span: entry.value.span,
                    message: format!("`type` must be one word, found {}", entry.value.kind_name()),
                    help: Some(format!("write {}", listed(tagged.type_names()))),
                };
            }
        },
        None => match (by_connection(), map.entry("connection")) {
            (Some(name), Some(entry)) => (name, entry.value.span),
            (None, Some(entry)) if tagged.by_connection => {
                // `connection_agrees` names the connection; this is for one that is no text.
                return TagResult::Mistake {
                    code: "unknown-connection",
                    span: entry.value.span,
                    message: format!(
                        "the type of this {} is unknown without its connection",
                        tagged.name
                    ),
                    help: Some(String::from("name a connection of `connections`")),
                };
            }
            _ => {
                let or = if tagged.by_connection { " or `connection: NAME`" } else { "" };
                return TagResult::Mistake {
                    code: "missing-key",
                    span,
                    message: format!("this {} has no `type`", tagged.name),
                    help: Some(format!(
                        "write `type: …`{or}; types are {}",
                        listed(tagged.type_names())
                    )),
                };
            }
        },
    };
    if let Some(shape) = tagged.shape(type_name) {
        return TagResult::Shape(shape);
    }
    if tagged.unsupported.contains(&type_name) {
        return TagResult::Mistake {
            code: "not-supported-yet",
            span: type_span,
            message: format!(
                "a {} of type `{type_name}` is not supported yet by this version",
                tagged.name
            ),
            help: Some(format!("supported are {}", listed(tagged.type_names()))),
        };
    }
    let known = tagged.type_names().chain(tagged.unsupported.iter().copied());
    let slip = match type_name.to_lowercase().as_str() {
        "postgresql" | "pg" => Some("postgres"),
        "sqlite3" => Some("sqlite"),
        "rest" | "api" | "https" => Some("http"),
        "jsonl" | "ndjson" | "jsonlines" => Some("json"),
        "tsv" => Some("csv"),
        _ => None,
    };
    TagResult::Mistake {
        code: "unknown-type",
        span: type_span,
        message: format!("`{}` is no type of a {}", shortened(type_name), tagged.name),
        help: Some(match slip.or_else(|| nearest(type_name, known)) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("types are {}", listed(tagged.type_names())),
        }),
    }
}

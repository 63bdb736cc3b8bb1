//! The JSON Schema of the file, written from the tables that the decoder reads by.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Format, Key, Kind, PIPELINE, Shape, Tagged};

/// JSON Schema (draft 2020-12) of a whole pipeline file, for editors and `weir schema`.
///
/// It knows no references between nodes, and formats only by pattern; `parse` knows all.
pub fn json_schema() -> Value {
    let mut writer = Writer { definitions: BTreeMap::new() };
    let mut schema = writer.shape_body(&PIPELINE, None);
    schema.insert(String::from("$schema"), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert(String::from("title"), json!("Weir pipeline"));
    schema.insert(
        String::from("$defs"),
        Value::Object(
            writer.definitions.into_iter().map(|(k, v)| (k, v.unwrap_or_default())).collect(),
        ),
    );
    Value::Object(schema)
}

struct Writer {
    /// `None` while a definition is being written.
    definitions: BTreeMap<String, Option<Value>>,
}

impl Writer {
    fn reference(&mut self, name: String, write: impl FnOnce(&mut Self) -> Value) -> Value {
        if !self.definitions.contains_key(&name) {
            self.definitions.insert(name.clone(), None);
            let written = write(self);
            self.definitions.insert(name.clone(), Some(written));
        }
        json!({ "$ref": format!("#/$defs/{name}") })
    }

    fn shape_body(&mut self, shape: &'static Shape, tag: Option<Value>) -> Map<String, Value> {
        let mut properties = Map::new();
        for key in shape.keys {
            let value = match (&tag, key.name) {
                (Some(tag), "type") => tag.clone(),
                _ => self.key(key),
            };
            properties.insert(key.name.to_owned(), value);
        }
        let required: Vec<&str> =
            shape.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
        let mut body = Map::new();
        body.insert(String::from("type"), json!("object"));
        body.insert(String::from("properties"), Value::Object(properties));
        body.insert(String::from("additionalProperties"), json!(false));
        if !required.is_empty() {
            body.insert(String::from("required"), json!(required));
        }
        let groups: Vec<Value> = shape
            .exactly_one
            .iter()
            .map(|group| {
                let one: Vec<Value> =
                    group.iter().map(|key| json!({ "required": [key] })).collect();
                json!({ "oneOf": one })
            })
            .collect();
        if !groups.is_empty() {
            body.insert(String::from("allOf"), json!(groups));
        }
        body
    }

    fn key(&mut self, key: &Key) -> Value {
        let Value::Object(mut schema) = self.kind(key.kind) else { return json!({}) };
        let mut doc = key.doc.to_owned();
        if key.unsupported {
            doc.push_str(" Not supported yet by this version.");
        }
        schema.insert(String::from("description"), json!(doc));
        if let Some(default) = key.default {
            let typed = match key.kind {
                Kind::Bool | Kind::Integer { .. } => {
                    serde_json::from_str(default).unwrap_or_else(|_| json!(default))
                }
                _ => json!(default),
            };
            schema.insert(String::from("default"), typed);
        }
        Value::Object(schema)
    }

    fn kind(&mut self, kind: Kind) -> Value {
        match kind {
            Kind::Prose => json!({ "type": "string" }),
            Kind::Text => json!({ "type": "string", "minLength": 1 }),
            Kind::Written | Kind::Template(super::Place::Plan | super::Place::Connection) => {
                json!({ "type": ["string", "number", "boolean"] })
            }
            Kind::Template(super::Place::Sql) => json!({ "type": "string" }),
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::Integer { min, max: i64::MAX } => json!({ "type": "integer", "minimum": min }),
            Kind::Integer { min, max } => {
                json!({ "type": "integer", "minimum": min, "maximum": max })
            }
            Kind::Format(format) => format_schema(format),
            Kind::Choice { names, unsupported } => {
                let all: Vec<&str> = names.iter().chain(unsupported).copied().collect();
                json!({ "enum": all })
            }
            Kind::List(item) => json!({ "type": ["array", "null"], "items": self.kind(*item) }),
            Kind::OneOrMany(item) => {
                let item = self.kind(*item);
                json!({ "anyOf": [item, { "type": "array", "items": item }] })
            }
            Kind::Map(key, item) => {
                let mut schema = json!({
                    "type": ["object", "null"],
                    "additionalProperties": self.kind(*item),
                });
                if let Some(pattern) = key.pattern {
                    schema["propertyNames"] = json!({ "pattern": pattern });
                }
                schema
            }
            Kind::Object(shape) => {
                let name = definition_name(shape.name);
                self.reference(name, |writer| Value::Object(writer.shape_body(shape, None)))
            }
            Kind::Tagged(tagged) => {
                self.reference(tagged.name.to_owned(), |writer| writer.tagged(tagged))
            }
            Kind::Any(_) => json!({}),
        }
    }

    /// One schema a type, chosen by `type` (or by the keys, when the connection says the type).
    fn tagged(&mut self, tagged: &'static Tagged) -> Value {
        let mut variants: Vec<Value> = Vec::new();
        for (type_name, shape) in tagged.variants {
            let tag = json!({ "const": type_name });
            let name = definition_name(shape.name);
            variants.push(self.reference(name, |writer| {
                let mut body = writer.shape_body(shape, Some(tag));
                if !tagged.by_connection || shape.key("connection").is_none_or(|k| k.unsupported) {
                    let mut required: Vec<Value> =
                        body.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
                    if !required.contains(&json!("type")) {
                        required.insert(0, json!("type"));
                    }
                    body.insert(String::from("required"), Value::Array(required));
                }
                Value::Object(body)
            }));
        }
        if !tagged.unsupported.is_empty() {
            variants.push(json!({
                "description": "Part of the language, not supported yet by this version.",
                "type": "object",
                "properties": { "type": { "enum": tagged.unsupported } },
                "required": ["type"],
            }));
        }
        json!({ "anyOf": variants })
    }
}

fn format_schema(format: &Format) -> Value {
    let types = if format.accepts_number { json!(["string", "integer"]) } else { json!("string") };
    let mut schema = json!({ "type": types, "examples": format.examples });
    if let Some(pattern) = format.pattern {
        schema["pattern"] = json!(pattern);
    }
    schema
}

/// `an http source` → `http_source`.
fn definition_name(name: &str) -> String {
    name.trim_start_matches("an ")
        .trim_start_matches("a ")
        .replace('`', "")
        .replace([' ', '-'], "_")
}

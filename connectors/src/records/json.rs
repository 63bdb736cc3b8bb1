//! A JSON value that keeps its numbers as they are written: no digit goes through a float.

use std::fmt;

use indexmap::IndexMap;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use serde_json_path::{JsonPath, PathElement};

/// As deep as `serde_json` reads.
const MAX_DEPTH: u8 = 127;

/// One JSON value. Of a key that is there twice the last value counts.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    /// The number's text.
    Number(Box<str>),
    String(String),
    Array(Vec<Json>),
    Object(IndexMap<String, Json>),
}

impl Json {
    /// The error is that of `serde_json`, with line and column in `text`.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let whole = serde_json::from_slice::<&RawValue>(text);
        whole.and_then(|whole| Self::read(whole.get(), MAX_DEPTH)).map_err(|error| {
            // Reading level by level forgets where in the text a level stands.
            serde_json::from_slice::<Value>(text).err().unwrap_or(error)
        })
    }

    /// `text` is valid but for its strings.
    fn read(text: &str, levels: u8) -> Result<Self, serde_json::Error> {
        let below = || {
            levels
                .checked_sub(1)
                .ok_or_else(|| serde_json::Error::custom("it is nested too deeply"))
        };
        Ok(match text.as_bytes().first() {
            Some(b'{') => {
                let levels = below()?;
                let fields: IndexMap<String, &RawValue> = serde_json::from_str(text)?;
                let fields = fields
                    .into_iter()
                    .map(|(key, field)| Ok((key, Self::read(field.get(), levels)?)));
                Json::Object(fields.collect::<Result<_, serde_json::Error>>()?)
            }
            Some(b'[') => {
                let levels = below()?;
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                let items = items.into_iter().map(|item| Self::read(item.get(), levels));
                Json::Array(items.collect::<Result<_, _>>()?)
            }
            Some(b'"') => Json::String(serde_json::from_str(text)?),
            Some(b't') => Json::Bool(true),
            Some(b'f') => Json::Bool(false),
            Some(b'n') => Json::Null,
            _ => Json::Number(text.into()),
        })
    }

    /// What `path` finds. Comparisons inside the path see numbers beyond 64 bits as floats; what is
    /// found has all its digits.
    pub fn query(&self, path: &JsonPath) -> Vec<&Json> {
        let rounded = self.rounded();
        let found = path.query_located(&rounded);
        found.locations().filter_map(|location| self.at(location.iter())).collect()
    }

    fn at<'p>(&self, mut path: impl Iterator<Item = &'p PathElement<'p>>) -> Option<&Json> {
        path.try_fold(self, |value, element| match (value, element) {
            (Json::Object(fields), PathElement::Name(name)) => fields.get(*name),
            (Json::Array(items), PathElement::Index(index)) => items.get(*index),
            _ => None,
        })
    }

    fn rounded(&self) -> Value {
        match self {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(text) => match serde_json::from_str(text) {
                Ok(number) => Value::Number(number),
                Err(_) if text.starts_with('-') => Value::from(f64::MIN),
                Err(_) => Value::from(f64::MAX),
            },
            Json::String(text) => Value::String(text.clone()),
            Json::Array(items) => items.iter().map(Json::rounded).collect(),
            Json::Object(fields) => {
                fields.iter().map(|(key, field)| (key.clone(), field.rounded())).collect()
            }
        }
    }

    pub(super) fn with_numbers_as_text(&self) -> Value {
        match self {
            Json::Number(text) => Value::from(&**text),
            Json::Array(items) => items.iter().map(Json::with_numbers_as_text).collect(),
            Json::Object(fields) => (fields.iter())
                .map(|(key, field)| (key.clone(), field.with_numbers_as_text()))
                .collect(),
            other => other.rounded(),
        }
    }

    /// A field of an object.
    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(fields) => fields.get(key),
            _ => None,
        }
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Json> {
        match self {
            Json::Object(fields) => fields.get_mut(key),
            _ => None,
        }
    }

    /// Moves the value out; null is left behind.
    pub fn take(&mut self) -> Json {
        std::mem::replace(self, Json::Null)
    }

    pub fn is_object(&self) -> bool {
        matches!(self, Json::Object(_))
    }

    pub fn is_null(&self) -> bool {
        matches!(self, Json::Null)
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(value),
            Value::Number(number) => Json::Number(number.to_string().into()),
            Value::String(text) => Json::String(text),
            Value::Array(items) => Json::Array(items.into_iter().map(Json::from).collect()),
            Value::Object(fields) => {
                Json::Object(fields.into_iter().map(|(key, field)| (key, field.into())).collect())
            }
        }
    }
}

/// Through `serde_json` only, which alone can write a number of any length.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Json::Null => serializer.serialize_unit(),
            Json::Bool(value) => serializer.serialize_bool(*value),
            Json::Number(text) => RawValue::from_string(text.to_string())
                .map_err(serde::ser::Error::custom)?
                .serialize(serializer),
            Json::String(text) => serializer.serialize_str(text),
            Json::Array(items) => items.serialize(serializer),
            Json::Object(fields) => fields.serialize(serializer),
        }
    }
}

/// From JSON text only.
impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get().as_bytes()).map_err(D::Error::custom)
    }
}

/// Compact JSON text.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => write!(f, "{value}"),
            Json::Number(text) => f.write_str(text),
            Json::String(text) => write_string(f, text),
            Json::Array(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index == 0 { "" } else { "," })?;
                }
                f.write_str("]")
            }
            Json::Object(fields) => {
                f.write_str("{")?;
                for (index, (key, field)) in fields.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { "," })?;
                    write_string(f, key)?;
                    write!(f, ":{field}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Json {
        Json::parse(text.as_bytes()).expect("JSON")
    }

    #[test]
    fn text_is_kept_but_for_white_space() {
        let text =
            r#"{"a":[1.50,-0,1e400,123456789012345678901234567890],"b":{"c":"\u00e9\n"},"d":null}"#;
        assert_eq!(parse(&format!(" {} ", text.replace(',', " ,\n "))).to_string(), {
            text.replace("\\u00e9", "é")
        });
    }

    #[test]
    fn mistakes_are_found_where_they_stand() {
        let error =
            Json::parse(b"{\"a\": {\"b\": \"\\ud800\"}}").expect_err("half a surrogate pair");
        assert_eq!((error.line(), error.column()), (1, 20), "{error}");
        let deep = "[".repeat(200) + &"]".repeat(200);
        let error = Json::parse(deep.as_bytes()).expect_err("too deep");
        assert!(error.to_string().contains("recursion limit"), "{error}");
        assert!(Json::parse(b"1 2").is_err());
        assert!(Json::parse(b"").is_err());
    }

    #[test]
    fn path_finds_values_with_all_their_digits() {
        let document = parse(
            r#"{"rows": [{"id": 9007199254740993.25, "on": true}, {"id": 2}, {"id": 1e400}], "a/b": 1}"#,
        );
        let find = |path: &str| -> Vec<String> {
            let path = JsonPath::parse(path).expect("a path");
            document.query(&path).into_iter().map(Json::to_string).collect()
        };
        assert_eq!(find("$.rows[?@.on].id"), ["9007199254740993.25"]);
        assert_eq!(find("$.rows[?@.id > 1000].id"), ["9007199254740993.25", "1e400"]);
        assert_eq!(find("$['a/b']"), ["1"]);
    }
}

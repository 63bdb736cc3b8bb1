//! Columns that nobody has declared, from the records themselves.

use std::borrow::Borrow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema};
use indexmap::IndexMap;

use crate::records::Json;

/// A schema that holds all of `records`: the union of their keys in order of appearance, all
/// nullable. Integers and floats meet as `float64`; other mixed columns are strings (JSON text).
/// A column without any value is a string.
pub fn infer_schema(records: impl IntoIterator<Item: Borrow<Json>>) -> Schema {
    let mut columns: IndexMap<String, Inferred> = IndexMap::new();
    for record in records {
        if let Json::Object(object) = record.borrow() {
            for (key, value) in object {
                let seen = columns.entry(key.clone()).or_insert(Inferred::Nothing);
                *seen = std::mem::replace(seen, Inferred::Nothing).with(value);
            }
        }
    }
    Schema::new(
        columns
            .into_iter()
            .map(|(name, inferred)| Field::new(name, inferred.data_type(), true))
            .collect::<Fields>(),
    )
}

/// What the values of a column have in common so far.
#[derive(Clone, Debug, PartialEq)]
enum Inferred {
    Nothing,
    Bool,
    Int,
    /// Integers beyond `int64`, none of them negative.
    UInt,
    Float,
    String,
    List(Box<Inferred>),
    Struct(IndexMap<String, Inferred>),
    Mixed,
}

impl Inferred {
    fn with(self, value: &Json) -> Inferred {
        let next = match value {
            Json::Null => return self,
            Json::Bool(_) => Inferred::Bool,
            Json::Number(text) if text.contains(['.', 'e', 'E']) => Inferred::Float,
            Json::Number(text) if text.parse::<i64>().is_ok() => Inferred::Int,
            Json::Number(text) if text.parse::<u64>().is_ok() => Inferred::UInt,
            // A float would lose digits; a string does not.
            Json::Number(_) => Inferred::Mixed,
            Json::String(_) => Inferred::String,
            Json::Array(items) => {
                let before = match self {
                    Inferred::Nothing => Inferred::Nothing,
                    Inferred::List(item) => *item,
                    _ => return Inferred::Mixed,
                };
                return Inferred::List(Box::new(items.iter().fold(before, Inferred::with)));
            }
            Json::Object(object) => {
                let mut fields = match self {
                    Inferred::Nothing => IndexMap::new(),
                    Inferred::Struct(fields) => fields,
                    _ => return Inferred::Mixed,
                };
                for (key, value) in object {
                    let seen = fields.entry(key.clone()).or_insert(Inferred::Nothing);
                    *seen = std::mem::replace(seen, Inferred::Nothing).with(value);
                }
                return Inferred::Struct(fields);
            }
        };
        match (self, next) {
            (Inferred::Nothing, next) => next,
            (seen, next) if seen == next => seen,
            (Inferred::Int | Inferred::UInt | Inferred::Float, Inferred::Float)
            | (Inferred::Float, Inferred::Int | Inferred::UInt) => Inferred::Float,
            // Neither type holds all of both without loss; a string does.
            _ => Inferred::Mixed,
        }
    }

    fn data_type(&self) -> DataType {
        match self {
            Inferred::Nothing | Inferred::String | Inferred::Mixed => DataType::Utf8,
            Inferred::Bool => DataType::Boolean,
            Inferred::Int => DataType::Int64,
            Inferred::UInt => DataType::UInt64,
            Inferred::Float => DataType::Float64,
            Inferred::List(item) => {
                DataType::List(Arc::new(Field::new_list_field(item.data_type(), true)))
            }
            // Few systems can hold a struct without fields.
            Inferred::Struct(fields) if fields.is_empty() => DataType::Utf8,
            Inferred::Struct(fields) => DataType::Struct(
                fields
                    .iter()
                    .map(|(name, inferred)| Field::new(name, inferred.data_type(), true))
                    .collect(),
            ),
        }
    }
}

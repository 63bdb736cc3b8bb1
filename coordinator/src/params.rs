//! The values of a pipeline's parameters for one run.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde_json::Value;
use weir_spec::{ColumnType, Param};

use crate::EngineError;

/// Defaults filled in, unknown and missing parameters refused, and text that was given for a number
/// or a boolean read as one.
pub(crate) fn complete_params(
    declared: &IndexMap<String, Param>,
    given: &BTreeMap<String, Value>,
) -> Result<BTreeMap<String, Value>, EngineError> {
    if let Some(unknown) = given.keys().find(|name| !declared.contains_key(*name)) {
        let known: Vec<&str> = declared.keys().map(String::as_str).collect();
        return Err(EngineError::Invalid(match known.is_empty() {
            true => format!("parameter `{unknown}` is not known: the pipeline has none"),
            false => {
                format!("parameter `{unknown}` is not known: the pipeline has {}", known.join(", "))
            }
        }));
    }
    let mut values = BTreeMap::new();
    for (name, param) in declared {
        let value = match (given.get(name), &param.default) {
            (Some(value), _) => typed(name, &param.column_type, value)?,
            (None, Some(default)) => default.clone(),
            (None, None) => {
                return Err(EngineError::Invalid(format!(
                    "parameter `{name}` needs a value: --param {name}=…"
                )));
            }
        };
        values.insert(name.clone(), value);
    }
    Ok(values)
}

fn typed(name: &str, column_type: &ColumnType, value: &Value) -> Result<Value, EngineError> {
    let read = match (column_type, value) {
        (_, Value::Null) => None,
        (ColumnType::Bool, Value::Bool(_)) => Some(value.clone()),
        (ColumnType::Bool, Value::String(text)) => text.parse::<bool>().ok().map(Value::Bool),
        (column_type, value) if is_integer(column_type) => match value {
            Value::Number(number) if !number.is_f64() => Some(value.clone()),
            Value::String(text) => (text.parse::<i64>().map(Value::from))
                .or_else(|_| text.parse::<u64>().map(Value::from))
                .ok(),
            _ => None,
        },
        (ColumnType::Float32 | ColumnType::Float64, Value::Number(_)) => Some(value.clone()),
        (ColumnType::Float32 | ColumnType::Float64, Value::String(text)) => {
            text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number)
        }
        (ColumnType::Bool | ColumnType::Float32 | ColumnType::Float64, _) => None,
        (_, value) => Some(value.clone()),
    };
    read.ok_or_else(|| {
        EngineError::Invalid(format!(
            "parameter `{name}`: {value} is not of the declared type ({column_type:?})"
        ))
    })
}

fn is_integer(column_type: &ColumnType) -> bool {
    matches!(
        column_type,
        ColumnType::Int8
            | ColumnType::Int16
            | ColumnType::Int32
            | ColumnType::Int64
            | ColumnType::UInt8
            | ColumnType::UInt16
            | ColumnType::UInt32
            | ColumnType::UInt64
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared() -> IndexMap<String, Param> {
        let param = |column_type, default| Param { column_type, default, description: None };
        IndexMap::from([
            ("country".to_owned(), param(ColumnType::String, Some(Value::from("DE")))),
            ("least".to_owned(), param(ColumnType::Int64, None)),
        ])
    }

    fn complete(given: &[(&str, Value)]) -> Result<BTreeMap<String, Value>, String> {
        let given = given.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        complete_params(&declared(), &given).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_filled_in_and_text_is_read_as_the_declared_type() {
        let values = complete(&[("least", Value::from("5"))]).expect("valid");
        assert_eq!(values["country"], "DE");
        assert_eq!(values["least"], 5);
    }

    #[test]
    fn missing_unknown_and_wrong_values_are_refused() {
        assert!(complete(&[]).expect_err("missing").contains("--param least=…"));
        let unknown = complete(&[("lst", Value::from(1))]).expect_err("unknown");
        assert!(unknown.contains("country, least"), "{unknown}");
        assert!(complete(&[("least", Value::from("many"))]).is_err());
    }
}

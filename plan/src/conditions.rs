//! The rules of `validate` as SQL expressions over their input.

use arrow::datatypes::DataType;
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::functions::expr_fn::{char_length, regexp_like};
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, lit};
use serde_json::Value;
use weir_spec::{Condition, NodeName, Rule};

use crate::template::render_sql;
use crate::{PlanError, PlanScope};

/// An expression that is true for the rows that keep the rule, and false (never null) for others.
pub(crate) fn passes(
    node: &NodeName,
    rule: &Rule,
    schema: &DFSchema,
    state: &SessionState,
    scope: &PlanScope,
) -> Result<Expr, PlanError> {
    let column = |name: &String| find_column(node, name, schema);
    // Null passes these; `not_null` says otherwise.
    let or_null = |value: Expr, holds: Expr| Expr::IsNull(Box::new(value)).or(holds);
    let condition = match &rule.condition {
        Condition::NotNull { column: name } => return Ok(column(name)?.0.is_not_null()),
        Condition::Matches { column: name, pattern } => {
            let text = text(column(name)?);
            or_null(text.clone(), regexp_like(text, lit(pattern.clone()), None))
        }
        Condition::Between { column: name, low, high } => {
            let (value, data_type) = column(name)?;
            let (low, high) =
                (bound(node, name, &data_type, low)?, bound(node, name, &data_type, high)?);
            or_null(value.clone(), value.between(low, high))
        }
        Condition::OneOf { column: name, values } => {
            let (value, data_type) = column(name)?;
            let values = values
                .iter()
                .map(|item| bound(node, name, &data_type, item))
                .collect::<Result<Vec<_>, _>>()?;
            or_null(value.clone(), value.in_list(values, false))
        }
        Condition::MinLength { column: name, length } => {
            let text = text(column(name)?);
            or_null(text.clone(), char_length(text).gt_eq(lit(*length as i64)))
        }
        Condition::MaxLength { column: name, length } => {
            let text = text(column(name)?);
            or_null(text.clone(), char_length(text).lt_eq(lit(*length as i64)))
        }
        Condition::Check { expression } => {
            let sql = render_sql(node, expression, scope)?;
            let check = state
                .create_logical_expr(&sql, schema)
                .map_err(|error| PlanError::datafusion(node, &error))?;
            let data_type =
                check.get_type(schema).map_err(|error| PlanError::datafusion(node, &error))?;
            if !matches!(data_type, DataType::Boolean | DataType::Null) {
                return Err(PlanError::node(
                    node,
                    format!(
                        "check `{sql}` yields {data_type}; write a condition that is true or false"
                    ),
                ));
            }
            check
        }
    };
    Ok(condition.is_true())
}

pub(crate) fn find_column(
    node: &NodeName,
    name: &str,
    schema: &DFSchema,
) -> Result<(Expr, DataType), PlanError> {
    let field = schema.fields().iter().find(|field| field.name() == name).ok_or_else(|| {
        let known = schema.fields().iter().map(|field| field.name().as_str());
        let hint = crate::names::did_you_mean(name, known);
        PlanError::node(node, format!("its input has no column `{name}`{hint}"))
    })?;
    Ok((Expr::Column(Column::new_unqualified(name)), field.data_type().clone()))
}

fn text((value, data_type): (Expr, DataType)) -> Expr {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => value,
        _ => cast(value, DataType::Utf8),
    }
}

pub(crate) fn cast(value: Expr, data_type: DataType) -> Expr {
    Expr::Cast(Cast::new(Box::new(value), data_type))
}

/// A YAML value as a literal that compares with the column. Numbers stay numbers, so that a bound
/// outside of the column's type still compares; text is read as the column's type.
fn bound(
    node: &NodeName,
    column: &str,
    data_type: &DataType,
    value: &Value,
) -> Result<Expr, PlanError> {
    let mismatch = || {
        PlanError::node(
            node,
            format!("column `{column}` is {data_type}, which does not compare with {value}"),
        )
    };
    Ok(match value {
        Value::Null => return Err(mismatch()),
        Value::Bool(value) => lit(*value),
        Value::Number(number) if data_type.is_numeric() => match number.as_i64() {
            Some(integer) => lit(integer),
            None => match data_type {
                DataType::Decimal128(_, _) | DataType::Decimal256(_, _) => lit(
                    ScalarValue::try_from_string(number.to_string(), &DataType::Decimal128(38, 10))
                        .map_err(|_| mismatch())?,
                ),
                _ => lit(number.as_f64().ok_or_else(mismatch)?),
            },
        },
        Value::Number(number) => {
            lit(ScalarValue::try_from_string(number.to_string(), data_type)
                .map_err(|_| mismatch())?)
        }
        Value::String(text) => {
            lit(ScalarValue::try_from_string(text.clone(), data_type).map_err(|_| mismatch())?)
        }
        Value::Array(_) | Value::Object(_) => return Err(mismatch()),
    })
}

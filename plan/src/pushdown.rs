//! SQL filters that a source can apply itself.

use datafusion::common::ScalarValue;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use weir_connectors::{Comparison, Literal, Predicate};

/// The predicate that means exactly the same as the filter, if there is one.
pub(crate) fn predicate(filter: &Expr) -> Option<Predicate> {
    match filter {
        Expr::IsNull(inner) => {
            Some(Predicate { column: column(inner)?, comparison: Comparison::IsNull })
        }
        Expr::IsNotNull(inner) => {
            Some(Predicate { column: column(inner)?, comparison: Comparison::IsNotNull })
        }
        Expr::InList(list) if !list.negated => Some(Predicate {
            column: column(&list.expr)?,
            comparison: Comparison::In(list.list.iter().map(literal).collect::<Option<_>>()?),
        }),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (column(left), column(right)) {
            (Some(column), None) => {
                Some(Predicate { column, comparison: comparison(*op, literal(right)?)? })
            }
            (None, Some(column)) => {
                Some(Predicate { column, comparison: comparison(op.swap()?, literal(left)?)? })
            }
            _ => None,
        },
        // A boolean column alone.
        Expr::Column(_) => Some(Predicate {
            column: column(filter)?,
            comparison: Comparison::Equal(Literal::Bool(true)),
        }),
        Expr::Not(inner) => Some(Predicate {
            column: column(inner)?,
            comparison: Comparison::Equal(Literal::Bool(false)),
        }),
        _ => None,
    }
}

fn column(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Column(column) => Some(column.name.clone()),
        _ => None,
    }
}

fn comparison(operator: Operator, literal: Literal) -> Option<Comparison> {
    match operator {
        Operator::Eq => Some(Comparison::Equal(literal)),
        Operator::NotEq => Some(Comparison::NotEqual(literal)),
        Operator::Lt => Some(Comparison::Less(literal)),
        Operator::LtEq => Some(Comparison::LessOrEqual(literal)),
        Operator::Gt => Some(Comparison::Greater(literal)),
        Operator::GtEq => Some(Comparison::GreaterOrEqual(literal)),
        _ => None,
    }
}

fn literal(expression: &Expr) -> Option<Literal> {
    let Expr::Literal(value, _) = expression else { return None };
    Some(match value {
        ScalarValue::Boolean(Some(value)) => Literal::Bool(*value),
        ScalarValue::Int8(Some(value)) => Literal::Int((*value).into()),
        ScalarValue::Int16(Some(value)) => Literal::Int((*value).into()),
        ScalarValue::Int32(Some(value)) => Literal::Int((*value).into()),
        ScalarValue::Int64(Some(value)) => Literal::Int(*value),
        ScalarValue::UInt8(Some(value)) => Literal::UInt((*value).into()),
        ScalarValue::UInt16(Some(value)) => Literal::UInt((*value).into()),
        ScalarValue::UInt32(Some(value)) => Literal::UInt((*value).into()),
        ScalarValue::UInt64(Some(value)) => Literal::UInt(*value),
        // Not finite values order differently in every system, and have no JSON.
        ScalarValue::Float64(Some(value)) if value.is_finite() => Literal::Float(*value),
        ScalarValue::Decimal128(Some(unscaled), _, scale) => {
            Literal::Decimal { unscaled: *unscaled, scale: *scale }
        }
        ScalarValue::Utf8(Some(value)) => Literal::String(value.clone()),
        ScalarValue::Date32(Some(days)) => Literal::Date(*days),
        ScalarValue::TimestampMicrosecond(Some(micros), zone) => {
            Literal::Timestamp { micros: *micros, utc: zone.is_some() }
        }
        _ => return None,
    })
}

/// For people.
pub(crate) fn describe(predicate: &Predicate) -> String {
    let column = &predicate.column;
    match &predicate.comparison {
        Comparison::Equal(value) => format!("{column} = {}", show(value)),
        Comparison::NotEqual(value) => format!("{column} <> {}", show(value)),
        Comparison::Less(value) => format!("{column} < {}", show(value)),
        Comparison::LessOrEqual(value) => format!("{column} <= {}", show(value)),
        Comparison::Greater(value) => format!("{column} > {}", show(value)),
        Comparison::GreaterOrEqual(value) => format!("{column} >= {}", show(value)),
        Comparison::In(values) => {
            format!("{column} IN ({})", values.iter().map(show).collect::<Vec<_>>().join(", "))
        }
        Comparison::IsNull => format!("{column} IS NULL"),
        Comparison::IsNotNull => format!("{column} IS NOT NULL"),
    }
}

fn show(literal: &Literal) -> String {
    match literal {
        Literal::Bool(value) => value.to_string(),
        Literal::Int(value) => value.to_string(),
        Literal::UInt(value) => value.to_string(),
        Literal::Float(value) => value.to_string(),
        Literal::Decimal { unscaled, scale } => {
            ScalarValue::Decimal128(Some(*unscaled), 38, *scale).to_string()
        }
        Literal::String(value) => format!("'{}'", value.replace('\'', "''")),
        Literal::Date(days) => ScalarValue::Date32(Some(*days)).to_string(),
        Literal::Timestamp { micros, utc } => {
            let time = chrono::DateTime::from_timestamp_micros(*micros)
                .map_or_else(|| format!("{micros} µs"), |time| time.naive_utc().to_string());
            if *utc { format!("{time} UTC") } else { time }
        }
    }
}

//! Several inputs as one: columns matched by name, types widened only without loss.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};
use weir_spec::{InputRef, NodeName};

use crate::PlanError;
use crate::conditions::cast;

struct UnionColumn<'input> {
    name: String,
    data_type: DataType,
    /// Whose type it was first.
    input: &'input InputRef,
}

/// All rows of all inputs. A column that an input lacks is null; columns stand in the order in
/// which they first appear. Each plan has unqualified columns.
pub(crate) fn union_by_name(
    node: &NodeName,
    inputs: Vec<(&InputRef, LogicalPlan)>,
) -> Result<LogicalPlan, PlanError> {
    let mut columns: Vec<UnionColumn<'_>> = Vec::new();
    for (input, plan) in &inputs {
        for field in plan.schema().fields() {
            match columns.iter_mut().find(|column| column.name == *field.name()) {
                None => columns.push(UnionColumn {
                    name: field.name().clone(),
                    data_type: field.data_type().clone(),
                    input,
                }),
                Some(column) => {
                    column.data_type =
                        common_type(&column.data_type, field.data_type()).ok_or_else(|| {
                            PlanError::node(
                                node,
                                format!(
                                    "column `{name}` is {left} in `{first}` and {right} in `{input}`; \
                                     cast one of them in SQL: `CAST({name} AS …)`",
                                    name = column.name,
                                    left = column.data_type,
                                    first = column.input,
                                    right = field.data_type(),
                                ),
                            )
                        })?;
                }
            }
        }
    }
    let mut union: Option<LogicalPlan> = None;
    let is_single = inputs.len() == 1;
    for (_, plan) in inputs {
        if is_single {
            return Ok(plan);
        }
        let failed = |error| PlanError::datafusion(node, &error);
        let expressions =
            columns.iter().map(|column| widen(column, &plan)).collect::<Result<Vec<_>, _>>();
        let plan = LogicalPlanBuilder::from(plan)
            .project(expressions.map_err(failed)?)
            .and_then(LogicalPlanBuilder::build)
            .map_err(failed)?;
        union = Some(match union {
            None => plan,
            Some(before) => LogicalPlanBuilder::from(before)
                .union(plan)
                .and_then(LogicalPlanBuilder::build)
                .map_err(failed)?,
        });
    }
    union.ok_or_else(|| PlanError::node(node, "has no input; write `input: NAME`"))
}

fn widen(
    column: &UnionColumn<'_>,
    plan: &LogicalPlan,
) -> Result<Expr, datafusion::error::DataFusionError> {
    let field = plan.schema().fields().iter().find(|field| *field.name() == column.name);
    Ok(match field {
        None => lit(ScalarValue::try_from(&column.data_type)?).alias(&column.name),
        Some(field) => {
            let value = Expr::Column(Column::new_unqualified(&column.name));
            if *field.data_type() == column.data_type {
                value
            } else {
                cast(value, column.data_type.clone()).alias(&column.name)
            }
        }
    })
}

/// The smallest type that holds every value of both, exactly.
fn common_type(left: &DataType, right: &DataType) -> Option<DataType> {
    use DataType::*;
    if left == right {
        return Some(left.clone());
    }
    if let (Some(left), Some(right)) = (integer(left), integer(right)) {
        return match (left, right) {
            ((true, a), (true, b)) => signed(a.max(b)),
            ((false, a), (false, b)) => unsigned(a.max(b)),
            ((true, s), (false, u)) | ((false, u), (true, s)) => signed(s.max(u * 2)),
        };
    }
    match (left, right) {
        (Null, other) | (other, Null) => Some(other.clone()),
        (Float32, Float64) | (Float64, Float32) => Some(Float64),
        (Float64, other) | (other, Float64)
            if integer(other).is_some_and(|(_, bits)| bits <= 32) =>
        {
            Some(Float64)
        }
        (Float32, other) | (other, Float32) => match integer(other)? {
            (_, bits) if bits <= 16 => Some(Float32),
            (_, 32) => Some(Float64),
            _ => None,
        },
        (Decimal128(p, s), Decimal128(q, t)) => {
            let scale = *s.max(t);
            let digits = (*p as i16 - *s as i16).max(*q as i16 - *t as i16) + scale as i16;
            u8::try_from(digits)
                .ok()
                .filter(|digits| *digits <= 38)
                .map(|digits| Decimal128(digits, scale))
        }
        (Decimal128(p, s), other) | (other, Decimal128(p, s)) => {
            let digits = match integer(other)? {
                (_, 8) => 3,
                (_, 16) => 5,
                (_, 32) => 10,
                _ => 20,
            };
            let wanted = (*p as i16 - *s as i16).max(digits) + *s as i16;
            u8::try_from(wanted)
                .ok()
                .filter(|digits| *digits <= 38)
                .map(|digits| Decimal128(digits, *s))
        }
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => Some(Utf8),
        (Binary | LargeBinary | BinaryView, Binary | LargeBinary | BinaryView) => Some(Binary),
        (Dictionary(_, values), other) | (other, Dictionary(_, values)) => {
            common_type(values, other)
        }
        (Date32, Timestamp(_, None)) | (Timestamp(_, None), Date32) => {
            Some(Timestamp(TimeUnit::Microsecond, None))
        }
        (Timestamp(a, zone), Timestamp(b, other)) if zone == other => {
            Some(Timestamp(*a.max(b), zone.clone()))
        }
        _ => None,
    }
}

/// Whether it is signed, and its bits.
fn integer(data_type: &DataType) -> Option<(bool, u32)> {
    Some(match data_type {
        DataType::Int8 => (true, 8),
        DataType::Int16 => (true, 16),
        DataType::Int32 => (true, 32),
        DataType::Int64 => (true, 64),
        DataType::UInt8 => (false, 8),
        DataType::UInt16 => (false, 16),
        DataType::UInt32 => (false, 32),
        DataType::UInt64 => (false, 64),
        _ => return None,
    })
}

fn signed(bits: u32) -> Option<DataType> {
    match bits {
        8 => Some(DataType::Int8),
        16 => Some(DataType::Int16),
        32 => Some(DataType::Int32),
        64 => Some(DataType::Int64),
        _ => None,
    }
}

fn unsigned(bits: u32) -> Option<DataType> {
    match bits {
        8 => Some(DataType::UInt8),
        16 => Some(DataType::UInt16),
        32 => Some(DataType::UInt32),
        64 => Some(DataType::UInt64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_widened_only_without_loss() {
        use DataType::*;
        assert_eq!(common_type(&Int32, &Int64), Some(Int64));
        assert_eq!(common_type(&UInt32, &Int32), Some(Int64));
        assert_eq!(common_type(&UInt64, &Int64), None);
        assert_eq!(common_type(&Int64, &Float64), None);
        assert_eq!(common_type(&Int32, &Float64), Some(Float64));
        assert_eq!(common_type(&Decimal128(10, 2), &Decimal128(12, 4)), Some(Decimal128(12, 4)));
        assert_eq!(common_type(&Decimal128(10, 2), &Int32), Some(Decimal128(12, 2)));
        assert_eq!(common_type(&Null, &Utf8), Some(Utf8));
        assert_eq!(common_type(&Int64, &Utf8), None);
    }
}

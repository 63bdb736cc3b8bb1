//! Agrees with a table on columns: what is created, added, cast, filled or refused, before the first
//! row is written.
//!
//! | Arrow | created as |
//! | --- | --- |
//! | Boolean | `boolean` |
//! | Int8, Int16, UInt8 / Int32, UInt16 / Int64, UInt32 | `smallint` / `integer` / `bigint` |
//! | UInt64 | `numeric(20,0)` |
//! | Float16, Float32 / Float64 | `real` / `double precision` |
//! | Decimal(p,s) | `numeric(p,s)` |
//! | strings / strings marked as JSON | `text` / `jsonb` |
//! | binary | `bytea` |
//! | Date / Time | `date` / `time` |
//! | Timestamp without / with zone | `timestamp` / `timestamptz` (nanoseconds are cut off) |
//! | lists of the above | arrays |
//! | structs, maps, lists of lists | `jsonb` |

use arrow::compute::can_cast_types;
use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};
use weir_spec::{MissingColumns, NewColumns, SchemaPolicy, TypeChanges};

use super::catalog::Column;
use super::encode::is_nested;
use super::quote::{self, TableName};
use super::types::Wire;
use crate::types::JSON_METADATA;
use crate::{ConnectorError, ErrorKind};

/// A column as the writer fills it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WrittenColumn {
    pub name: String,
    /// Its type in the table: `numeric(12,2)`.
    pub declared: String,
    /// How it is sent.
    pub wire: Wire,
    /// It has no binary form that we know: sent as this type and cast by the server.
    pub sent_as: Option<String>,
}

impl WrittenColumn {
    /// The type of the column in a staging table.
    pub(super) fn staged_type(&self) -> &str {
        self.sent_as.as_deref().unwrap_or(&self.declared)
    }

    /// The column of a staging table as the target wants it.
    pub(super) fn expression(&self) -> String {
        let name = quote::identifier(&self.name);
        match self.sent_as {
            Some(_) => format!("{name}::{}", self.declared),
            None => name,
        }
    }
}

/// What agreeing led to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Agreement {
    pub columns: Vec<WrittenColumn>,
    /// Fields that the table does not get: `new_columns: ignore`.
    pub ignored: Vec<String>,
    /// `"email" text`, to be added.
    pub added: Vec<(String, String)>,
}

/// Names that staging tables use for themselves.
pub(super) const ORDER_COLUMN: &str = "_weir_order";

/// The longest name that PostgreSQL does not cut.
const NAME_BYTES_MAX: usize = 63;

/// Refuses names that PostgreSQL would change, and names of ours.
pub(super) fn check_names(sink: &str, schema: &Schema) -> Result<(), ConnectorError> {
    for (index, field) in schema.fields().iter().enumerate() {
        let name = field.name();
        let problem = if name.is_empty() {
            "a column has no name"
        } else if name.len() > NAME_BYTES_MAX {
            "is longer than the 63 bytes that PostgreSQL keeps of a name"
        } else if name.contains('\0') {
            "holds a NUL character"
        } else if name == ORDER_COLUMN {
            "is a name that Weir uses itself"
        } else if schema.fields()[..index].iter().any(|other| other.name() == name) {
            "appears twice"
        } else {
            continue;
        };
        return Err(ConnectorError::config(format!(
            "sink `{sink}`: column \"{name}\": {problem}; rename it in SQL with AS"
        )));
    }
    Ok(())
}

/// The type of a column made for `field`.
pub(super) fn created_type(sink: &str, field: &Field) -> Result<String, ConnectorError> {
    let json = field.metadata().get(JSON_METADATA.0).is_some_and(|kind| kind == JSON_METADATA.1);
    if json {
        return Ok("jsonb".to_owned());
    }
    postgres_type(field.data_type()).ok_or_else(|| {
        ConnectorError::config(format!(
            "sink `{sink}`: column \"{}\" has type {}, for which PostgreSQL has no type; convert it in \
             SQL, for example with arrow_cast or CAST(… AS VARCHAR)",
            field.name(),
            field.data_type()
        ))
    })
}

fn postgres_type(data_type: &DataType) -> Option<String> {
    let name = match data_type {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "integer",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64 => "numeric(20,0)",
        DataType::Float16 | DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale) => {
            return Some(if *scale < 0 {
                let precision = i16::from(*precision) - i16::from(*scale);
                format!("numeric({precision},0)")
            } else {
                format!("numeric({precision},{scale})")
            });
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => "text",
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => "bytea",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Timestamp(_, None) => "timestamp",
        DataType::Timestamp(_, Some(_)) => "timestamptz",
        DataType::Dictionary(_, value) => return postgres_type(value),
        nested if is_nested(nested) => "jsonb",
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            return postgres_type(item.data_type()).map(|item| format!("{item}[]"));
        }
        _ => return None,
    };
    Some(name.to_owned())
}

/// Compares the rows' columns with those of an existing table.
pub(super) fn agree(
    sink: &str,
    table: &TableName,
    schema: &Schema,
    existing: &[Column],
    policy: SchemaPolicy,
) -> Result<Agreement, ConnectorError> {
    let mut agreement = Agreement::default();
    for field in schema.fields() {
        let name = field.name();
        let quoted = quote::identifier(name);
        let Some(column) = existing.iter().find(|column| column.name == *name) else {
            match policy.new_columns {
                NewColumns::Ignore => agreement.ignored.push(name.clone()),
                NewColumns::Add => {
                    agreement.added.push((name.clone(), created_type(sink, field)?));
                }
                NewColumns::Fail => {
                    let data_type = created_type(sink, field)?;
                    return Err(ConnectorError::config(format!(
                        "sink `{sink}`: the rows have a column \"{name}\" ({}) that table {table} has \
                         not; run ALTER TABLE {} ADD COLUMN {quoted} {data_type}, or set schema: {{ \
                         new_columns: add }} or {{ new_columns: ignore }}",
                        field.data_type(),
                        table.quoted()
                    )));
                }
            }
            continue;
        };
        if column.is_generated {
            return Err(ConnectorError::config(format!(
                "sink `{sink}`: column \"{name}\" of table {table} is generated by the table and \
                 cannot be written; leave it out of the rows"
            )));
        }
        let accepted = is_lossless(field.data_type(), column)
            || (policy.type_changes == TypeChanges::Cast
                && can_cast_types(field.data_type(), &column.mapping.wire.arrow_type()));
        if !accepted {
            let remedy = match policy.type_changes {
                TypeChanges::Fail => format!(
                    "cast it in SQL, set schema: {{ type_changes: cast }}, or run ALTER TABLE {} ALTER \
                     COLUMN {quoted} TYPE {}",
                    table.quoted(),
                    created_type(sink, field)?
                ),
                TypeChanges::Cast => "convert it in SQL".to_owned(),
            };
            return Err(ConnectorError::config(format!(
                "sink `{sink}`: column \"{name}\" is {} in the rows and {} in table {table}; {remedy}",
                field.data_type(),
                column.declared
            )));
        }
        agreement.columns.push(written(column));
    }
    for column in existing {
        if column.is_generated || schema.field_with_name(&column.name).is_ok() {
            continue;
        }
        let missing = |remedy: &str| {
            ConnectorError::config(format!(
                "sink `{sink}`: table {table} has a column \"{}\" ({}) that the rows have not; {remedy}",
                column.name, column.declared
            ))
        };
        if policy.missing_columns == MissingColumns::Fail {
            return Err(missing("add it in SQL, or set schema: { missing_columns: fill_null }"));
        }
        if column.not_null && !column.has_default {
            return Err(missing("it is NOT NULL without a default, so add it in SQL"));
        }
    }
    Ok(agreement)
}

/// A column that exists, as it will be written.
pub(super) fn written(column: &Column) -> WrittenColumn {
    WrittenColumn {
        name: column.name.clone(),
        declared: column.declared.clone(),
        wire: column.mapping.wire.clone(),
        sent_as: column.mapping.cast.map(str::to_owned),
    }
}

/// Whether every value of the Arrow type has exactly one value in the column. Text goes into any
/// type that is read as text: the server parses it, and refuses what it cannot.
fn is_lossless(from: &DataType, column: &Column) -> bool {
    let is_text =
        |from: &DataType| matches!(from, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    if is_nested(from) && (column.mapping.is_json || column.declared == "text") {
        return true;
    }
    if column.mapping.is_unconstrained && column.mapping.cast.is_none() {
        return from.is_integer()
            || matches!(
                from,
                DataType::Null
                    | DataType::Decimal32(..)
                    | DataType::Decimal64(..)
                    | DataType::Decimal128(..)
            );
    }
    fn fits(from: &DataType, wire: &Wire, is_text: &dyn Fn(&DataType) -> bool) -> bool {
        // Bits, and whether one of them is a sign.
        let integer = |from: &DataType| match from {
            DataType::Int8 => Some((8, true)),
            DataType::Int16 => Some((16, true)),
            DataType::Int32 => Some((32, true)),
            DataType::Int64 => Some((64, true)),
            DataType::UInt8 => Some((8, false)),
            DataType::UInt16 => Some((16, false)),
            DataType::UInt32 => Some((32, false)),
            DataType::UInt64 => Some((64, false)),
            _ => None,
        };
        let integer_fits =
            |bits: u32| integer(from).is_some_and(|(own, signed)| own + u32::from(!signed) <= bits);
        match (from, wire) {
            (DataType::Null, _) => true,
            (DataType::Dictionary(_, value), _) => fits(value, wire, is_text),
            (DataType::Boolean, Wire::Bool) => true,
            (_, Wire::Int2) => integer_fits(16),
            (_, Wire::Int4) => integer_fits(32),
            (_, Wire::Int8) => integer_fits(64),
            // What is read from an oid column is Int64; values beyond are refused one by one.
            (_, Wire::Oid) => integer_fits(64),
            (DataType::Float16 | DataType::Float32, Wire::Float4) => true,
            (_, Wire::Float4) => integer_fits(24),
            (DataType::Float16 | DataType::Float32 | DataType::Float64, Wire::Float8) => true,
            (_, Wire::Float8) => integer_fits(53),
            (
                DataType::Decimal32(precision, scale)
                | DataType::Decimal64(precision, scale)
                | DataType::Decimal128(precision, scale),
                Wire::Numeric { precision: to_precision, scale: to_scale },
            ) => {
                let whole = |precision: u8, scale: i8| i16::from(precision) - i16::from(scale);
                scale <= to_scale && whole(*precision, *scale) <= whole(*to_precision, *to_scale)
            }
            (_, Wire::Numeric { precision, scale }) => {
                let digits = match integer(from) {
                    Some((8, _)) => 3,
                    Some((16, _)) => 5,
                    Some((32, _)) => 10,
                    Some((64, true)) => 19,
                    Some((64, false)) => 20,
                    _ => return false,
                };
                digits <= i16::from(*precision) - i16::from(*scale)
            }
            (from, Wire::Text | Wire::Jsonb | Wire::Uuid) => is_text(from),
            (
                DataType::Binary
                | DataType::LargeBinary
                | DataType::BinaryView
                | DataType::FixedSizeBinary(_),
                Wire::Bytea,
            ) => true,
            (DataType::Date32 | DataType::Date64, Wire::Date) => true,
            (DataType::Time32(_) | DataType::Time64(_), Wire::Time) => true,
            (DataType::Timestamp(_, None), Wire::Timestamp) => true,
            (DataType::Timestamp(_, Some(_)), Wire::TimestampTz) => true,
            (
                DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _),
                Wire::List { item: wire, .. },
            ) => fits(item.data_type(), wire, is_text),
            _ => false,
        }
    }
    fits(from, &column.mapping.wire, &is_text)
}

/// Checks that an upsert has a key that the table enforces. `unique` lists the columns of each
/// unique index.
pub(super) fn check_key(
    sink: &str,
    table: &TableName,
    key: &[String],
    agreement: &Agreement,
    unique: &[Vec<String>],
) -> Result<(), ConnectorError> {
    for column in key {
        let is_written = agreement.columns.iter().any(|written| written.name == *column)
            || agreement.added.iter().any(|(name, _)| name == column);
        if !is_written {
            return Err(ConnectorError::config(format!(
                "sink `{sink}`: key column \"{column}\" is not written to table {table}"
            )));
        }
    }
    let mut wanted: Vec<_> = key.iter().collect();
    wanted.sort();
    let is_enforced = unique.iter().any(|columns| {
        let mut columns: Vec<_> = columns.iter().collect();
        columns.sort();
        columns == wanted
    });
    if is_enforced {
        return Ok(());
    }
    let columns = quote::identifiers(key.iter().map(String::as_str));
    Err(ConnectorError::new(
        ErrorKind::Config,
        format!(
            "sink `{sink}`: upsert needs a unique index on exactly its key in table {table}; run CREATE \
             UNIQUE INDEX ON {} ({columns})",
            table.quoted()
        ),
    ))
}

//! Column types of the pipeline file as Arrow types. One mapping, used by every connector.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use weir_spec::{ColumnType, DeclaredColumns};

/// The key of field metadata that marks a string column as JSON text.
pub const JSON_METADATA: (&str, &str) = ("weir.type", "json");

/// The Arrow type of a declared column. Times are microseconds; `timestamp_tz` is in `UTC`.
pub fn arrow_type(column_type: &ColumnType) -> DataType {
    match column_type {
        ColumnType::Bool => DataType::Boolean,
        ColumnType::Int8 => DataType::Int8,
        ColumnType::Int16 => DataType::Int16,
        ColumnType::Int32 => DataType::Int32,
        ColumnType::Int64 => DataType::Int64,
        ColumnType::UInt8 => DataType::UInt8,
        ColumnType::UInt16 => DataType::UInt16,
        ColumnType::UInt32 => DataType::UInt32,
        ColumnType::UInt64 => DataType::UInt64,
        ColumnType::Float32 => DataType::Float32,
        ColumnType::Float64 => DataType::Float64,
        ColumnType::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
        ColumnType::String | ColumnType::Json => DataType::Utf8,
        ColumnType::Binary => DataType::Binary,
        ColumnType::Date => DataType::Date32,
        ColumnType::Time => DataType::Time64(TimeUnit::Microsecond),
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        ColumnType::List(item) => {
            DataType::List(Arc::new(Field::new_list_field(arrow_type(item), true)))
        }
        ColumnType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(|(name, column_type)| arrow_field(name, column_type))
                .collect::<Fields>(),
        ),
    }
}

/// A nullable field; JSON columns carry [`JSON_METADATA`].
pub fn arrow_field(name: &str, column_type: &ColumnType) -> Field {
    let field = Field::new(name, arrow_type(column_type), true);
    if *column_type == ColumnType::Json {
        let (key, value) = JSON_METADATA;
        field.with_metadata([(key.to_owned(), value.to_owned())].into())
    } else {
        field
    }
}

/// Whether a string column holds JSON text.
pub fn is_json(field: &Field) -> bool {
    let (key, value) = JSON_METADATA;
    field.metadata().get(key).is_some_and(|found| found == value)
}

/// The declared type that is nearest to an Arrow type; `None` for types that a file cannot declare.
pub fn declared_type(field: &Field) -> Option<ColumnType> {
    Some(match field.data_type() {
        DataType::Boolean => ColumnType::Bool,
        DataType::Int8 => ColumnType::Int8,
        DataType::Int16 => ColumnType::Int16,
        DataType::Int32 => ColumnType::Int32,
        DataType::Int64 => ColumnType::Int64,
        DataType::UInt8 => ColumnType::UInt8,
        DataType::UInt16 => ColumnType::UInt16,
        DataType::UInt32 => ColumnType::UInt32,
        DataType::UInt64 => ColumnType::UInt64,
        DataType::Float16 | DataType::Float32 => ColumnType::Float32,
        DataType::Float64 => ColumnType::Float64,
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale) => {
            ColumnType::Decimal { precision: *precision, scale: *scale }
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View if is_json(field) => {
            ColumnType::Json
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => ColumnType::String,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => ColumnType::Binary,
        DataType::Date32 | DataType::Date64 => ColumnType::Date,
        DataType::Time32(_) | DataType::Time64(_) => ColumnType::Time,
        DataType::Timestamp(_, None) => ColumnType::Timestamp,
        DataType::Timestamp(_, Some(_)) => ColumnType::TimestampTz,
        DataType::List(item) | DataType::LargeList(item) => {
            ColumnType::List(Box::new(declared_type(item)?))
        }
        DataType::Struct(fields) => ColumnType::Struct(
            (fields.iter())
                .map(|field| Some((field.name().clone(), declared_type(field)?)))
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    })
}

/// The columns of a schema as a file would declare them. A column of a type that it cannot declare is
/// text.
pub fn declared_columns(schema: &Schema) -> DeclaredColumns {
    (schema.fields().iter())
        .map(|field| (field.name().clone(), declared_type(field).unwrap_or(ColumnType::String)))
        .collect()
}

/// The name of an Arrow type as the pipeline file writes it, for messages; Arrow's own name for
/// types that the file cannot write. `json` is what [`is_json`] says of the field.
pub fn type_name(data_type: &DataType, json: bool) -> String {
    match data_type {
        DataType::Boolean => "bool".to_owned(),
        DataType::Utf8 if json => "json".to_owned(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "binary".to_owned(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        DataType::Date32 => "date".to_owned(),
        DataType::Time64(_) => "time".to_owned(),
        DataType::Timestamp(_, None) => "timestamp".to_owned(),
        DataType::Timestamp(_, Some(_)) => "timestamp_tz".to_owned(),
        DataType::List(item) => format!("list<{}>", type_name(item.data_type(), is_json(item))),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| {
                    let name = type_name(field.data_type(), is_json(field));
                    format!("{}: {name}", field.name())
                })
                .collect();
            format!("struct<{}>", fields.join(", "))
        }
        other => other.to_string().to_lowercase(),
    }
}

//! PostgreSQL types as they travel in binary `COPY`, and what they are in Arrow.
//!
//! | PostgreSQL | Arrow |
//! | --- | --- |
//! | `bool`, `int2`, `int4`, `int8`, `float4`, `float8` | the same; `oid` is Int64 |
//! | `numeric(p,s)`, p ≤ 38 | Decimal128(p,s) |
//! | `numeric` without precision | Decimal128(38,9); a value that does not fit is an error |
//! | `text`, `varchar`, `char(n)`, `name`, `xml`, enums, domains over them | Utf8 |
//! | `json`, `jsonb` | Utf8, marked as JSON |
//! | `uuid` | Utf8, lower case with hyphens |
//! | `bytea` | Binary |
//! | `date`, `time` | Date32, Time64(µs) |
//! | `timestamp`, `timestamptz` | Timestamp(µs), without zone and in UTC |
//! | one-dimensional arrays of the above | List |
//! | everything else (`interval` in ISO 8601, `inet`, ranges, `hstore`, …) | Utf8, by `::text` |

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use serde::{Deserialize, Serialize};

use crate::types::JSON_METADATA;

/// Precision and scale with which `numeric` without a precision is read. Nine digits behind the
/// point leave room to multiply and sum in SQL, and no value is ever rounded to them.
pub(super) const UNCONSTRAINED_NUMERIC: (u8, i8) = (38, 9);

/// The binary form of a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Wire {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric {
        precision: u8,
        scale: i8,
    },
    /// UTF-8 without a terminator: all character types, enums, `json`, `xml`.
    Text,
    /// One version byte, then text.
    Jsonb,
    Bytea,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Uuid,
    List {
        item: Box<Wire>,
        item_oid: u32,
    },
}

impl Wire {
    /// The Arrow type that values of this form are decoded into.
    pub(super) fn arrow_type(&self) -> DataType {
        match self {
            Wire::Bool => DataType::Boolean,
            Wire::Int2 => DataType::Int16,
            Wire::Int4 => DataType::Int32,
            Wire::Int8 | Wire::Oid => DataType::Int64,
            Wire::Float4 => DataType::Float32,
            Wire::Float8 => DataType::Float64,
            Wire::Numeric { precision, scale } => DataType::Decimal128(*precision, *scale),
            Wire::Text | Wire::Jsonb | Wire::Uuid => DataType::Utf8,
            Wire::Bytea => DataType::Binary,
            Wire::Date => DataType::Date32,
            Wire::Time => DataType::Time64(TimeUnit::Microsecond),
            Wire::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Wire::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Wire::List { item, .. } => {
                DataType::List(Arc::new(Field::new_list_field(item.arrow_type(), true)))
            }
        }
    }
}

/// A type as the catalogue describes it, domains already followed to their base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CatalogType {
    pub oid: u32,
    pub type_modifier: i32,
    /// `pg_type.typtype`: `b`ase, `e`num, `c`omposite, …
    pub kind: char,
    /// Element type of a true array, else 0.
    pub element_oid: u32,
    pub element_kind: char,
}

/// How a column of some type is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub wire: Wire,
    /// There is no binary form that we know: the column is cast to this type in SQL first.
    pub cast: Option<&'static str>,
    pub is_json: bool,
    /// `numeric` without precision.
    pub is_unconstrained: bool,
}

impl Mapping {
    fn plain(wire: Wire) -> Self {
        Self { wire, cast: None, is_json: false, is_unconstrained: false }
    }

    fn by_text(cast: &'static str, wire: Wire) -> Self {
        Self { wire, cast: Some(cast), is_json: false, is_unconstrained: false }
    }

    pub(super) fn arrow_field(&self, name: &str, nullable: bool) -> Field {
        let field = Field::new(name, self.wire.arrow_type(), nullable);
        if self.is_json {
            let (key, value) = JSON_METADATA;
            field.with_metadata([(key.to_owned(), value.to_owned())].into())
        } else {
            field
        }
    }
}

/// OID of `text`, the element type of arrays that are read by `::text[]`.
const TEXT_OID: u32 = 25;

/// Chooses how a type is read and written.
pub(super) fn mapping(of: &CatalogType) -> Mapping {
    if of.element_oid != 0 {
        let element = scalar(of.element_oid, of.type_modifier, of.element_kind);
        return match element {
            Some(Mapping { wire, cast: None, is_unconstrained, .. }) => Mapping {
                wire: Wire::List { item: Box::new(wire), item_oid: of.element_oid },
                cast: None,
                is_json: false,
                is_unconstrained,
            },
            _ => Mapping::by_text(
                "text[]",
                Wire::List { item: Box::new(Wire::Text), item_oid: TEXT_OID },
            ),
        };
    }
    scalar(of.oid, of.type_modifier, of.kind).unwrap_or(Mapping::by_text("text", Wire::Text))
}

fn scalar(oid: u32, type_modifier: i32, kind: char) -> Option<Mapping> {
    if kind == 'e' {
        return Some(Mapping::plain(Wire::Text));
    }
    let wire = match oid {
        16 => Wire::Bool,
        17 => Wire::Bytea,
        20 => Wire::Int8,
        21 => Wire::Int2,
        23 => Wire::Int4,
        26 => Wire::Oid,
        700 => Wire::Float4,
        701 => Wire::Float8,
        // name, text, xml, bpchar, varchar
        19 | 25 | 142 | 1042 | 1043 => Wire::Text,
        1082 => Wire::Date,
        1083 => Wire::Time,
        1114 => Wire::Timestamp,
        1184 => Wire::TimestampTz,
        2950 => Wire::Uuid,
        114 => return Some(Mapping { is_json: true, ..Mapping::plain(Wire::Text) }),
        3802 => return Some(Mapping { is_json: true, ..Mapping::plain(Wire::Jsonb) }),
        1700 => {
            let Some((precision, scale)) = numeric_modifier(type_modifier) else {
                let (precision, scale) = UNCONSTRAINED_NUMERIC;
                let mapping = Mapping::plain(Wire::Numeric { precision, scale });
                return Some(Mapping { is_unconstrained: true, ..mapping });
            };
            // Arrow wants 0 ≤ scale ≤ precision; PostgreSQL 15 allows -1000 to 1000.
            let (precision, scale) =
                if scale < 0 { (precision - scale, 0) } else { (precision.max(scale), scale) };
            match (u8::try_from(precision), i8::try_from(scale)) {
                (Ok(precision), Ok(scale)) if precision <= 38 => Wire::Numeric { precision, scale },
                _ => return Some(Mapping::by_text("text", Wire::Text)),
            }
        }
        _ => return None,
    };
    Some(Mapping::plain(wire))
}

/// Precision and scale out of `atttypmod`. The scale is an 11-bit signed number.
fn numeric_modifier(type_modifier: i32) -> Option<(i32, i32)> {
    if type_modifier < 4 {
        return None;
    }
    let packed = type_modifier - 4;
    let precision = (packed >> 16) & 0xffff;
    let scale = ((packed & 0x7ff) ^ 1024) - 1024;
    Some((precision, scale))
}

/// Whether PostgreSQL and Arrow order and equate all values alike, so that a predicate may move
/// into the database. Floats do not (`-0.0`), nor does blank-padded text.
pub(super) fn compares_alike(of: &CatalogType, mapping: &Mapping) -> bool {
    mapping.cast.is_none()
        && !mapping.is_json
        && match mapping.wire {
            Wire::Bool
            | Wire::Int2
            | Wire::Int4
            | Wire::Int8
            | Wire::Oid
            | Wire::Date
            | Wire::Time
            | Wire::Timestamp
            | Wire::TimestampTz => true,
            // A value outside Decimal128 would be an error in one place and none in the other,
            // and NaN sorts above all numbers.
            Wire::Numeric { .. } => !mapping.is_unconstrained,
            // text and varchar only
            Wire::Text => of.kind == 'b' && matches!(of.oid, 25 | 1043),
            _ => false,
        }
}

/// Whether the greatest of some values is the same in PostgreSQL and in Arrow, text being compared by
/// bytes: then a column can be the cursor of an incremental source.
pub(super) fn orders_alike(of: &CatalogType, mapping: &Mapping) -> bool {
    mapping.cast.is_none()
        && !mapping.is_json
        && match mapping.wire {
            Wire::Int2
            | Wire::Int4
            | Wire::Int8
            | Wire::Oid
            | Wire::Float4
            | Wire::Float8
            | Wire::Numeric { .. }
            | Wire::Date
            | Wire::Time
            | Wire::Timestamp
            | Wire::TimestampTz
            | Wire::Uuid => true,
            // name, text, varchar; not the blanks of char(n), nor the order of an enum
            Wire::Text => of.kind == 'b' && matches!(of.oid, 19 | 25 | 1043),
            Wire::Bool | Wire::Bytea | Wire::Jsonb | Wire::List { .. } => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(oid: u32, type_modifier: i32) -> CatalogType {
        CatalogType { oid, type_modifier, kind: 'b', element_oid: 0, element_kind: ' ' }
    }

    fn numeric(precision: i32, scale: i32) -> Wire {
        mapping(&base(1700, ((precision << 16) | (scale & 0x7ff)) + 4)).wire
    }

    #[test]
    fn numeric_keeps_precision_and_scale_where_arrow_has_them() {
        assert_eq!(numeric(12, 2), Wire::Numeric { precision: 12, scale: 2 });
        assert_eq!(numeric(38, 38), Wire::Numeric { precision: 38, scale: 38 });
        assert_eq!(numeric(5, -2), Wire::Numeric { precision: 7, scale: 0 });
        assert_eq!(numeric(3, 5), Wire::Numeric { precision: 5, scale: 5 });
        assert_eq!(numeric(39, 0), Wire::Text);
        assert!(mapping(&base(1700, -1)).is_unconstrained);
    }

    #[test]
    fn unknown_types_are_read_as_text() {
        assert_eq!(mapping(&base(869, -1)).cast, Some("text"));
        let inet_array = CatalogType {
            oid: 1041,
            type_modifier: -1,
            kind: 'b',
            element_oid: 869,
            element_kind: 'b',
        };
        assert_eq!(mapping(&inet_array).cast, Some("text[]"));
    }
}

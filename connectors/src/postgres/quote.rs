//! Names and constants as SQL text. Everything that comes from a file or a row passes through here.

use crate::{Comparison, Literal, Predicate};

/// `"name"`, with quotes doubled.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'text'`. Uses the escape form only where a backslash needs it, so that the result does not
/// depend on `standard_conforming_strings`.
pub(super) fn text(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A list of quoted names.
pub(super) fn identifiers<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(identifier).collect::<Vec<_>>().join(", ")
}

/// `schema.table`, or a table found on the search path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableName {
    pub schema: Option<String>,
    pub table: String,
}

impl TableName {
    /// Bytes of a name; PostgreSQL cuts the rest off, and so would mean another table.
    pub(super) const LONGEST: usize = 63;

    /// A part that PostgreSQL would cut.
    pub(super) fn too_long(&self) -> Option<&str> {
        let mut parts = self.schema.iter().chain([&self.table]);
        parts.find(|part| part.len() > Self::LONGEST).map(String::as_str)
    }

    /// Reads `table`, `schema.table`, and either part in double quotes. A name is taken as written:
    /// nothing is folded to lower case.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        let mut rest = text.trim();
        loop {
            let part;
            if let Some(quoted) = rest.strip_prefix('"') {
                let mut name = String::new();
                let mut characters = quoted.char_indices().peekable();
                let mut end = None;
                while let Some((index, character)) = characters.next() {
                    if character != '"' {
                        name.push(character);
                    } else if characters.peek().is_some_and(|(_, next)| *next == '"') {
                        characters.next();
                        name.push('"');
                    } else {
                        end = Some(index + 1);
                        break;
                    }
                }
                part = name;
                rest = &quoted[end?..];
            } else {
                let end = rest.find('.').unwrap_or(rest.len());
                part = rest[..end].to_owned();
                rest = &rest[end..];
            }
            if part.is_empty() || part.contains('\0') {
                return None;
            }
            parts.push(part);
            if rest.is_empty() {
                break;
            }
            rest = rest.strip_prefix('.')?;
        }
        let table = parts.pop()?;
        let schema = parts.pop();
        parts.is_empty().then_some(Self { schema, table })
    }

    pub(super) fn quoted(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", identifier(schema), identifier(&self.table)),
            None => identifier(&self.table),
        }
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.table),
            None => f.write_str(&self.table),
        }
    }
}

/// A predicate on a column whose type compares the same in PostgreSQL and in Arrow. `collate` makes
/// text compare by bytes; equality of text already does, and keeps its indexes.
pub(super) fn predicate(predicate: &Predicate, is_text: bool) -> String {
    let column = identifier(&predicate.column);
    let ordered = if is_text { format!("{column} COLLATE \"C\"") } else { column.clone() };
    match &predicate.comparison {
        Comparison::Equal(value) => format!("{column} = {}", literal(value)),
        Comparison::NotEqual(value) => format!("{column} <> {}", literal(value)),
        Comparison::Less(value) => format!("{ordered} < {}", literal(value)),
        Comparison::LessOrEqual(value) => format!("{ordered} <= {}", literal(value)),
        Comparison::Greater(value) => format!("{ordered} > {}", literal(value)),
        Comparison::GreaterOrEqual(value) => format!("{ordered} >= {}", literal(value)),
        Comparison::In(values) if values.is_empty() => "false".to_owned(),
        Comparison::In(values) => {
            let values = values.iter().map(literal).collect::<Vec<_>>().join(", ");
            format!("{column} IN ({values})")
        }
        Comparison::IsNull => format!("{column} IS NULL"),
        Comparison::IsNotNull => format!("{column} IS NOT NULL"),
    }
}

/// A typed constant.
pub(super) fn literal(value: &Literal) -> String {
    match value {
        Literal::Bool(value) => value.to_string(),
        // Parenthesised: `a - -1` and `-9223372036854775808` must stay one constant.
        Literal::Int(value) if *value < 0 => format!("'{value}'::bigint"),
        Literal::Int(value) => value.to_string(),
        Literal::UInt(value) => value.to_string(),
        Literal::Float(value) if value.is_nan() => "'NaN'::double precision".to_owned(),
        Literal::Float(value) if value.is_infinite() => {
            format!("'{}Infinity'::double precision", if *value < 0.0 { "-" } else { "" })
        }
        Literal::Float(value) => format!("'{value:e}'::double precision"),
        Literal::Decimal { unscaled, scale } => {
            format!("'{}'::numeric", decimal(*unscaled, *scale))
        }
        Literal::String(value) => text(value),
        Literal::Date(days) => format!("('1970-01-01'::date + ({days}))"),
        Literal::Timestamp { micros, utc } => {
            // Arithmetic keeps every microsecond; an interval of seconds would pass through a float.
            let (seconds, rest) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
            let days = seconds.div_euclid(86_400);
            let base = if *utc {
                "timestamptz '1970-01-01 00:00:00+00'"
            } else {
                "timestamp '1970-01-01 00:00:00'"
            };
            let seconds = seconds.rem_euclid(86_400);
            format!(
                "({base} + interval '{days} days' + interval '{seconds} seconds' + interval '{rest} microseconds')"
            )
        }
    }
}

/// `-12.30` for `(-1230, 2)`.
pub(super) fn decimal(unscaled: i128, scale: i8) -> String {
    let digits = unscaled.unsigned_abs().to_string();
    let sign = if unscaled < 0 { "-" } else { "" };
    match usize::try_from(scale) {
        Ok(0) => format!("{sign}{digits}"),
        Ok(scale) => {
            let digits = format!("{digits:0>width$}", width = scale + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            format!("{sign}{whole}.{fraction}")
        }
        Err(_) => format!("{sign}{digits}{}", "0".repeat(usize::from(scale.unsigned_abs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_postgres_would_cut_is_found() {
        let long = "m".repeat(64);
        let table = TableName::parse(&format!("public.{long}")).expect("a table name");
        assert_eq!(table.too_long(), Some(long.as_str()));
        let table = TableName::parse(&long[1..]).expect("a table name");
        assert_eq!(table.too_long(), None);
    }

    #[test]
    fn names_and_text_cannot_leave_their_quotes() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(text("it's"), "'it''s'");
        assert_eq!(text("\\' OR 1=1"), "E'\\\\'' OR 1=1'");
    }

    #[test]
    fn table_names_are_read_with_and_without_quotes() {
        let name = TableName::parse("public.orders").expect("plain name");
        assert_eq!(name.quoted(), "\"public\".\"orders\"");
        let name = TableName::parse("\"a.b\".\"c\"\"d\"").expect("quoted name");
        assert_eq!((name.schema.as_deref(), name.table.as_str()), (Some("a.b"), "c\"d"));
        for wrong in ["", "a.", ".a", "a.b.c", "\"a", "\"a\"b"] {
            assert_eq!(TableName::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn decimals_keep_sign_and_scale() {
        assert_eq!(decimal(-5, 2), "-0.05");
        assert_eq!(decimal(1230, 2), "12.30");
        assert_eq!(decimal(12, -3), "12000");
        assert_eq!(decimal(0, 0), "0");
    }
}

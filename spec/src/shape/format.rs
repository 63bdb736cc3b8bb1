//! Scalars with a format: durations, sizes, rates, column types, names, patterns.
//!
//! The parsing functions here are the only ones; the check calls them for their messages and the
//! decoder for their values.

use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use crate::{ColumnType, InputRef, MaxErrors, NodeName, RateLimit, RetryOn};

/// How one kind of scalar is written.
pub(crate) struct Format {
    /// Of the diagnostic.
    pub(crate) code: &'static str,
    /// `a duration`
    pub(crate) name: &'static str,
    pub(crate) examples: &'static [&'static str],
    /// For the JSON Schema; the check is what decides.
    pub(crate) pattern: Option<&'static str>,
    /// Whether an unquoted number is such a value.
    pub(crate) accepts_number: bool,
    pub(crate) check: fn(&str) -> Result<(), String>,
}

const fn format(
    code: &'static str,
    name: &'static str,
    examples: &'static [&'static str],
    pattern: Option<&'static str>,
    check: fn(&str) -> Result<(), String>,
) -> Format {
    Format { code, name, examples, pattern, accepts_number: false, check }
}

pub(crate) static DURATION: Format = format(
    "bad-duration",
    "a duration",
    &["30s", "5m", "1h"],
    Some("^[0-9]+(ms|s|m|h|d)$"),
    |text| duration(text).map(drop),
);

pub(crate) static SIZE: Format = Format {
    accepts_number: true,
    ..format(
        "bad-size",
        "a size in bytes",
        &["128MB", "64MiB"],
        Some("^[0-9]+ ?(B|kB|KB|MB|GB|KiB|MiB|GiB)?$"),
        |text| size(text).map(drop),
    )
};

pub(crate) static RATE_LIMIT: Format = format(
    "bad-rate-limit",
    "a rate limit",
    &["10/s", "600/m", "1000/h"],
    Some("^[1-9][0-9]*/(s|m|h)$"),
    |text| rate_limit(text).map(drop),
);

pub(crate) static MAX_ERRORS: Format = Format {
    accepts_number: true,
    ..format(
        "bad-max-errors",
        "a number of rows or a percentage",
        &["100", "5%"],
        Some("^[0-9]+(\\.[0-9]+)?%$|^[0-9]+$"),
        |text| max_errors(text).map(drop),
    )
};

pub(crate) static COLUMN_TYPE: Format = format(
    "bad-column-type",
    "a column type",
    &["int64", "string", "decimal(12,2)", "timestamp", "list<string>"],
    None,
    |text| column_type(text).map(drop),
);

pub(crate) static BYTE: Format = Format {
    accepts_number: true,
    ..format("bad-character", "one ASCII character", &[",", ";", "\\t"], None, |text| {
        byte(text).map(drop)
    })
};

pub(crate) static CRON: Format = format(
    "bad-cron",
    "a cron expression of five fields",
    &["0 3 * * *", "*/15 * * * 1-5"],
    None,
    |text| croner::Cron::from_str(text).map(drop).map_err(|error| error.to_string()),
);

pub(crate) static TIMEZONE: Format =
    format("bad-timezone", "an IANA time zone", &["UTC", "Europe/Berlin"], None, |text| {
        match chrono_tz::Tz::from_str(text) {
            Ok(_) => Ok(()),
            Err(_) => {
                let near = crate::diagnostic::nearest(
                    text,
                    chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name()),
                );
                Err(near.map_or_else(
                    || String::from("it is not in the time zone database"),
                    |name| format!("it is not in the time zone database; did you mean `{name}`?"),
                ))
            }
        }
    });

pub(crate) static REGEX: Format =
    format("bad-regex", "a regular expression", &["^[a-z]+$"], None, |text| {
        regex::Regex::new(text).map(drop).map_err(|error| match error {
            regex::Error::Syntax(message) => {
                message.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
            }
            other => other.to_string(),
        })
    });

pub(crate) static JSON_PATH: Format =
    format("bad-json-path", "a JSONPath (RFC 9535)", &["$.data[*]", "$.next"], None, |text| {
        serde_json_path::JsonPath::parse(text)
            .map(drop)
            .map_err(|error| format!("{} at character {}", error.message(), error.position() + 1))
    });

pub(crate) static NODE_NAME: Format = format(
    "bad-name",
    "a node name",
    &["customers", "orders_2024"],
    Some("^[a-z_][a-z0-9_]*$"),
    |text| match text {
        "errors" => Err(String::from("`errors` is reserved: `node.errors` is the rejected side")),
        _ if text.starts_with("_weir") => {
            Err(String::from("names that start with `_weir` are reserved"))
        }
        _ => sql_name(text),
    },
);

pub(crate) static PARAM_NAME: Format =
    format("bad-name", "a parameter name", &["country"], Some("^[a-z_][a-z0-9_]*$"), sql_name);

pub(crate) static PIPELINE_NAME: Format = format(
    "bad-name",
    "a pipeline name",
    &["customers", "orders-daily"],
    Some("^[A-Za-z0-9_][A-Za-z0-9_.-]*$"),
    |text| words(text, "_.-"),
);

pub(crate) static CONNECTION_NAME: Format = format(
    "bad-name",
    "a connection name",
    &["warehouse"],
    Some("^[A-Za-z0-9_][A-Za-z0-9_-]*$"),
    |text| words(text, "_-"),
);

pub(crate) static COLUMN_NAME: Format =
    format("bad-name", "a column name", &["id"], Some("^.+$"), |text| {
        if text.is_empty() { Err(String::from("it is empty")) } else { Ok(()) }
    });

/// Any key at all.
pub(crate) static FREE_NAME: Format = format("bad-name", "a name", &["name"], None, |_| Ok(()));

pub(crate) static HEADER_NAME: Format = format(
    "bad-header",
    "an HTTP header name",
    &["X-Api-Key"],
    Some("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"),
    |text| {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+.^_`|~-".contains(c);
        if !text.is_empty() && text.chars().all(is_token) {
            Ok(())
        } else {
            Err(String::from("letters, digits and `-` only"))
        }
    },
);

pub(crate) static INPUT: Format = format(
    "bad-input",
    "the name of a node",
    &["customers", "valid.errors"],
    Some("^[a-z_][a-z0-9_]*(\\.errors)?$"),
    |text| {
        let (name, side) = text.split_once('.').map_or((text, None), |(n, side)| (n, Some(side)));
        match side {
            None | Some("errors") => sql_name(name),
            Some(side) => Err(format!("`{side}` is no side of a node: only `.errors` is")),
        }
    },
);

pub(crate) static RETRY_ON: Format = Format {
    accepts_number: true,
    ..format(
        "bad-retry-on",
        "`timeout`, `connection` or an HTTP status",
        &["timeout", "429", "503"],
        Some("^(timeout|connection|[1-5][0-9][0-9])$"),
        |text| retry_on(text).map(drop),
    )
};

fn sql_name(text: &str) -> Result<(), String> {
    let mut characters = text.chars();
    let first_fits = characters.next().is_some_and(|c| c.is_ascii_lowercase() || c == '_');
    if first_fits
        && characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && text.len() <= 63
    {
        return Ok(());
    }
    let mut fixed: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(63)
        .collect();
    if fixed.starts_with(|c: char| c.is_ascii_digit()) {
        fixed.insert(0, '_');
    }
    let suggestion =
        if fixed.is_empty() { String::new() } else { format!("; for example `{fixed}`") };
    Err(format!("lower-case letters, digits and `_` only, no digit first, at most 63{suggestion}"))
}

fn words(text: &str, also: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
    if !text.is_empty()
        && text.len() <= 100
        && text.chars().all(fits)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
    {
        Ok(())
    } else {
        Err(format!("letters, digits and `{also}` only, a letter or digit first, at most 100"))
    }
}

/// `250ms`, `5s`, `1m`, `2h`, `1d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.chars().take_while(char::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let per_unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(String::from("the unit is missing: `ms`, `s`, `m`, `h` or `d`")),
        other => {
            return Err(format!("`{}` is no unit: `ms`, `s`, `m`, `h` or `d`", other.trim()));
        }
    };
    let number: u64 = number.parse().map_err(|_| String::from("the number is missing"))?;
    number
        .checked_mul(per_unit_ms)
        .filter(|ms| *ms <= 10_000 * 86_400_000)
        .map(Duration::from_millis)
        .ok_or_else(|| String::from("it is longer than 10000 days"))
}

/// Bytes; `128MB` is decimal, `128MiB` binary.
pub(crate) fn size(text: &str) -> Result<NonZeroU64, String> {
    let digits = text.chars().take_while(char::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| String::from("the number is missing"))?;
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("`{other}` is no unit: `kB`, `MB`, `GB`, `MiB`, …")),
    };
    let bytes = number.checked_mul(factor).ok_or_else(|| String::from("it is too large"))?;
    NonZeroU64::new(bytes).ok_or_else(|| String::from("it must be more than zero"))
}

pub(crate) fn rate_limit(text: &str) -> Result<RateLimit, String> {
    let (requests, unit) =
        text.split_once('/').ok_or_else(|| String::from("the `/` is missing"))?;
    let requests = requests
        .trim()
        .parse::<u32>()
        .ok()
        .filter(|requests| *requests > 0)
        .ok_or_else(|| String::from("it must start with a whole number above zero"))?;
    let per = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        other => return Err(format!("`{other}` is no unit: `s`, `m` or `h`")),
    };
    Ok(RateLimit { requests, per: Duration::from_secs(per) })
}

pub(crate) fn max_errors(text: &str) -> Result<MaxErrors, String> {
    match text.strip_suffix('%') {
        Some(percent) => percent
            .trim()
            .parse::<f64>()
            .ok()
            .filter(|percent| (0.0..=100.0).contains(percent))
            .map(MaxErrors::Percent)
            .ok_or_else(|| String::from("a percentage lies between 0% and 100%")),
        None => text
            .parse::<u64>()
            .map(MaxErrors::Rows)
            .map_err(|_| String::from("it is neither a whole number nor a percentage")),
    }
}

/// `\t` and `tab` are the tabulator.
pub(crate) fn byte(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"\\t" | b"tab" => Ok(b'\t'),
        [b'\n' | b'\r' | 0] => Err(String::from("it may not be a line break or NUL")),
        [byte] if byte.is_ascii() => Ok(*byte),
        [] => Err(String::from("it is empty")),
        _ => Err(String::from("it is not one ASCII character")),
    }
}

pub(crate) fn retry_on(text: &str) -> Result<RetryOn, String> {
    match text {
        "timeout" => Ok(RetryOn::Timeout),
        "connection" => Ok(RetryOn::Connection),
        _ => text
            .parse::<u16>()
            .ok()
            .filter(|status| (100..600).contains(status))
            .map(RetryOn::Status)
            .ok_or_else(|| String::from("an HTTP status lies between 100 and 599")),
    }
}

pub(crate) fn input_ref(text: &str) -> InputRef {
    match text.strip_suffix(".errors") {
        Some(name) => InputRef { node: NodeName::new(name), errors: true },
        None => InputRef { node: NodeName::new(text), errors: false },
    }
}

const SIMPLE_TYPES: [(&str, ColumnType); 18] = [
    ("bool", ColumnType::Bool),
    ("int8", ColumnType::Int8),
    ("int16", ColumnType::Int16),
    ("int32", ColumnType::Int32),
    ("int64", ColumnType::Int64),
    ("uint8", ColumnType::UInt8),
    ("uint16", ColumnType::UInt16),
    ("uint32", ColumnType::UInt32),
    ("uint64", ColumnType::UInt64),
    ("float32", ColumnType::Float32),
    ("float64", ColumnType::Float64),
    ("string", ColumnType::String),
    ("binary", ColumnType::Binary),
    ("date", ColumnType::Date),
    ("time", ColumnType::Time),
    ("timestamp", ColumnType::Timestamp),
    ("timestamp_tz", ColumnType::TimestampTz),
    ("json", ColumnType::Json),
];

/// What people of other systems write.
const OTHER_NAMES: [(&str, &str); 20] = [
    ("int", "int64"),
    ("integer", "int64"),
    ("bigint", "int64"),
    ("long", "int64"),
    ("smallint", "int16"),
    ("tinyint", "int8"),
    ("text", "string"),
    ("varchar", "string"),
    ("str", "string"),
    ("uuid", "string"),
    ("boolean", "bool"),
    ("float", "float64"),
    ("double", "float64"),
    ("number", "float64"),
    ("real", "float32"),
    ("datetime", "timestamp"),
    ("timestamptz", "timestamp_tz"),
    ("bytes", "binary"),
    ("blob", "binary"),
    ("jsonb", "json"),
];

pub(crate) fn column_type(text: &str) -> Result<ColumnType, String> {
    column_type_within(text.trim(), 0)
}

fn column_type_within(text: &str, depth: usize) -> Result<ColumnType, String> {
    if depth > 16 {
        return Err(String::from("it is nested deeper than 16 levels"));
    }
    if let Some((_, simple)) = SIMPLE_TYPES.iter().find(|(name, _)| *name == text) {
        return Ok(simple.clone());
    }
    if let Some(inside) = text.strip_prefix("list<").and_then(|rest| rest.strip_suffix('>')) {
        return column_type_within(inside.trim(), depth + 1)
            .map(|item| ColumnType::List(Box::new(item)));
    }
    if let Some(inside) = text.strip_prefix("struct<").and_then(|rest| rest.strip_suffix('>')) {
        let mut fields: Vec<(String, ColumnType)> = Vec::new();
        for field in split_outside_brackets(inside) {
            let (name, field_type) = field
                .split_once(':')
                .ok_or_else(|| format!("a struct field is written `name: type`, not `{field}`"))?;
            let name = name.trim();
            if name.is_empty() || fields.iter().any(|(known, _)| known == name) {
                return Err(format!("the struct field name `{name}` is empty or repeated"));
            }
            fields.push((name.to_owned(), column_type_within(field_type.trim(), depth + 1)?));
        }
        return Ok(ColumnType::Struct(fields));
    }
    if let Some(inside) = text.strip_prefix("decimal(").and_then(|rest| rest.strip_suffix(')')) {
        let (precision, scale) = inside.split_once(',').unwrap_or((inside, "0"));
        let precision = precision.trim().parse::<u8>().ok().filter(|p| (1..=38).contains(p));
        let scale = scale.trim().parse::<i8>().ok().filter(|scale| *scale >= 0);
        return match (precision, scale) {
            (Some(precision), Some(scale)) if scale.unsigned_abs() <= precision => {
                Ok(ColumnType::Decimal { precision, scale })
            }
            _ => Err(String::from(
                "a decimal is `decimal(precision,scale)`, precision 1 to 38, scale 0 to precision",
            )),
        };
    }
    Err(unknown_type(text))
}

fn unknown_type(text: &str) -> String {
    let lower = text.to_lowercase();
    let base = lower.split(['(', '<']).next().unwrap_or_default().trim();
    if matches!(base, "decimal" | "numeric") {
        return String::from("write the digits, for example `decimal(12,2)`");
    }
    if let Some((_, name)) = OTHER_NAMES.iter().find(|(other, _)| *other == base) {
        return format!("write `{name}`");
    }
    match crate::diagnostic::nearest(base, SIMPLE_TYPES.iter().map(|(name, _)| *name)) {
        Some(name) => format!("did you mean `{name}`?"),
        None => String::from(
            "known are bool, int8 to int64, uint8 to uint64, float32, float64, decimal(p,s), \
             string, binary, date, time, timestamp, timestamp_tz, json, list<type> and \
             struct<name: type>",
        ),
    }
}

fn split_outside_brackets(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (index, character) in text.char_indices() {
        match character {
            '<' | '(' => depth += 1,
            '>' | ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        parts.push(&text[start..]);
    }
    parts
}

//! Types of columns that nobody has declared, from the first records.

use arrow::compute::kernels::cast_utils::{Parser, string_to_datetime};
use arrow::datatypes::{DataType, Date32Type, Float64Type, TimeUnit};

/// What the cells of a column have in common so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Inferred {
    /// Nulls only.
    #[default]
    Nothing,
    Bool,
    Int,
    Float,
    Date,
    Timestamp,
    TimestampTz,
    String,
}

impl Inferred {
    /// Integers and floats meet as float, dates and timestamps as timestamp, others as string.
    pub(crate) fn with(self, cell: &str) -> Self {
        use Inferred::{Date, Float, Int, Nothing, String, Timestamp};
        if self == String {
            return String;
        }
        match (self, Self::of(cell)) {
            (Nothing, next) => next,
            (seen, next) if seen == next => seen,
            (Int | Float, Int | Float) => Float,
            (Date | Timestamp, Date | Timestamp) => Timestamp,
            _ => String,
        }
    }

    pub(crate) fn data_type(self) -> DataType {
        match self {
            Inferred::Nothing | Inferred::String => DataType::Utf8,
            Inferred::Bool => DataType::Boolean,
            Inferred::Int => DataType::Int64,
            Inferred::Float => DataType::Float64,
            Inferred::Date => DataType::Date32,
            Inferred::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Inferred::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        }
    }

    fn of(cell: &str) -> Self {
        let bytes = cell.as_bytes();
        let first = bytes.first().copied().unwrap_or(b' ');
        if cell.eq_ignore_ascii_case("true") || cell.eq_ignore_ascii_case("false") {
            return Inferred::Bool;
        }
        if matches!(cell, "NaN" | "nan" | "inf" | "-inf") {
            return Inferred::Float;
        }
        if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) {
            return Inferred::String;
        }
        let digits = cell.strip_prefix(['-', '+']).unwrap_or(cell).as_bytes();
        // Codes such as 01234 lose their zeros as numbers.
        let is_code = digits.len() > 1 && digits[0] == b'0' && digits[1].is_ascii_digit();
        if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
            return if is_code || cell.parse::<i64>().is_err() {
                Inferred::String
            } else {
                Inferred::Int
            };
        }
        if bytes.len() == 10 && bytes[4] == b'-' {
            return if Date32Type::parse(cell).is_some() {
                Inferred::Date
            } else {
                Inferred::String
            };
        }
        if bytes.len() >= 19 && bytes[4] == b'-' && bytes[13] == b':' {
            let has_zone = bytes[19..].iter().any(|byte| !matches!(byte, b'0'..=b'9' | b'.'));
            return match string_to_datetime(&chrono::Utc, cell) {
                Err(_) => Inferred::String,
                Ok(_) if has_zone => Inferred::TimestampTz,
                Ok(_) => Inferred::Timestamp,
            };
        }
        let is_number =
            bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E'));
        if is_number && !is_code && Float64Type::parse(cell).is_some() {
            Inferred::Float
        } else {
            Inferred::String
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_recognised_and_meet_as_documented() {
        let infer =
            |cells: &[&str]| cells.iter().fold(Inferred::Nothing, |seen, cell| seen.with(cell));
        assert_eq!(infer(&["1", "-2"]), Inferred::Int);
        assert_eq!(infer(&["1", "2.5", "1e3"]), Inferred::Float);
        assert_eq!(infer(&["01234"]), Inferred::String);
        assert_eq!(infer(&["0", "0.5"]), Inferred::Float);
        assert_eq!(infer(&["99999999999999999999"]), Inferred::String);
        assert_eq!(infer(&["true", "FALSE"]), Inferred::Bool);
        assert_eq!(infer(&["2024-01-01", "2024-01-01T00:00:00.5"]), Inferred::Timestamp);
        assert_eq!(infer(&["2024-01-01 00:00:00+02:00"]), Inferred::TimestampTz);
        assert_eq!(infer(&["2024-13-01"]), Inferred::String);
        assert_eq!(infer(&["true", "1"]), Inferred::String);
        assert_eq!(infer(&[]), Inferred::Nothing);
    }
}

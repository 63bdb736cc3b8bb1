//! The order of incremental cursors, which travel as text.

use std::cmp::Ordering;

use chrono::{DateTime, NaiveDate, NaiveDateTime};

/// Compares two cursors by what they mean: numbers numerically, instants and dates by time, all
/// else as text. Values of different kinds (a column that changed its type) compare as text.
pub fn compare_cursors(left: &str, right: &str) -> Ordering {
    if let (Some(left), Some(right)) = (number(left), number(right)) {
        return left.compare(&right);
    }
    if let (Some(left), Some(right)) = (instant(left), instant(right)) {
        return left.cmp(&right);
    }
    left.cmp(right)
}

/// Whether `candidate` is behind `known` in the order of reading.
pub fn is_later_cursor(candidate: &str, known: &str) -> bool {
    compare_cursors(candidate, known) == Ordering::Greater
}

/// A decimal number of any size, without an exponent.
struct Number<'text> {
    negative: bool,
    /// Without leading zeros.
    integer: &'text str,
    /// Without trailing zeros.
    fraction: &'text str,
}

impl Number<'_> {
    fn compare(&self, other: &Self) -> Ordering {
        let magnitude = (self.integer.len().cmp(&other.integer.len()))
            .then_with(|| self.integer.cmp(other.integer))
            .then_with(|| self.fraction.cmp(other.fraction));
        match (self.negative, other.negative) {
            (false, false) => magnitude,
            (true, true) => magnitude.reverse(),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

fn number(text: &str) -> Option<Number<'_>> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (integer, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let are_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (integer.is_empty() && fraction.is_empty()) || !are_digits(integer) || !are_digits(fraction)
    {
        return None;
    }
    let integer = integer.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    let is_zero = integer.is_empty() && fraction.is_empty();
    Some(Number { negative: negative && !is_zero, integer, fraction })
}

/// Seconds and nanoseconds since the epoch; a time without a zone counts as UTC, a date as its
/// midnight.
fn instant(text: &str) -> Option<(i64, u32)> {
    let text = text.trim();
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Some((instant.timestamp(), instant.timestamp_subsec_nanos()));
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z"] {
        if let Ok(instant) = DateTime::parse_from_str(text, format) {
            return Some((instant.timestamp(), instant.timestamp_subsec_nanos()));
        }
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, format) {
            let instant = time.and_utc();
            return Some((instant.timestamp(), instant.timestamp_subsec_nanos()));
        }
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    Some((date.and_hms_opt(0, 0, 0)?.and_utc().timestamp(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_compare_numerically_whatever_their_length() {
        for (smaller, greater) in [
            ("9", "10"),
            ("-10", "-9"),
            ("-1", "0"),
            ("1.25", "1.5"),
            ("99999999999999999999", "100000000000000000000"),
            ("9007199254740992", "9007199254740993"),
        ] {
            assert!(is_later_cursor(greater, smaller), "{smaller} < {greater}");
        }
        assert_eq!(compare_cursors("007", "7.0"), Ordering::Equal);
        assert_eq!(compare_cursors("-0", "0"), Ordering::Equal);
    }

    #[test]
    fn instants_compare_by_time_across_zones_and_notations() {
        for (earlier, later) in [
            ("2024-01-01T10:00:00+02:00", "2024-01-01T09:00:00Z"),
            ("2024-01-01", "2024-01-01T00:00:00.000001Z"),
            ("2024-01-01 09:00:00", "2024-01-01T09:00:00.5"),
            ("2024-01-01 09:00:00.9+00", "2024-01-01T09:00:01Z"),
        ] {
            assert!(is_later_cursor(later, earlier), "{earlier} < {later}");
        }
        assert_eq!(
            compare_cursors("2024-01-01T10:00:00Z", "2024-01-01T11:00:00+01:00"),
            Ordering::Equal
        );
    }

    #[test]
    fn everything_else_compares_as_text() {
        assert!(is_later_cursor("b", "a"));
        assert!(is_later_cursor("a", "10"));
        assert!(!is_later_cursor("a", "a"));
    }
}

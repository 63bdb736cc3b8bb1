//! From where an incremental source is read.

use std::time::Duration;

use arrow::datatypes::{DataType, Schema};
use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, TimeDelta, Utc};
use weir_connectors::ConnectorError;
use weir_spec::Incremental;

/// A lag is a time: refuses a cursor that is none, which could not be moved back by it. Text may hold
/// a time.
pub(crate) fn lag_fits(incremental: &Incremental, schema: &Schema) -> Result<(), ConnectorError> {
    if incremental.lag.is_none() {
        return Ok(());
    }
    let Ok(field) = schema.field_with_name(&incremental.cursor) else { return Ok(()) };
    match field.data_type() {
        DataType::Timestamp(_, _)
        | DataType::Date32
        | DataType::Date64
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View => Ok(()),
        other => Err(ConnectorError::config(format!(
            "`lag` is a time, and the cursor `{}` is {other}: remove `lag`, or name a cursor that is a \
             time",
            incremental.cursor
        ))),
    }
}

/// The watermark minus the lag; before the first run what the file says, unchanged.
pub(crate) fn read_since(incremental: &Incremental, watermark: Option<&str>) -> Option<String> {
    match (watermark, incremental.lag) {
        (Some(watermark), Some(lag)) => Some(earlier(watermark, lag)),
        (Some(watermark), None) => Some(watermark.to_owned()),
        (None, _) => incremental.initial.clone(),
    }
}

/// A time moved back, in its own notation. What is not a time stays as it is.
fn earlier(watermark: &str, lag: Duration) -> String {
    let Ok(lag) = TimeDelta::from_std(lag) else { return watermark.to_owned() };
    if let Ok(instant) = DateTime::parse_from_rfc3339(watermark) {
        let moved = instant.with_timezone(&Utc).checked_sub_signed(lag);
        return moved.map_or_else(
            || watermark.to_owned(),
            |moved| moved.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        );
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(watermark, format) {
            return time
                .checked_sub_signed(lag)
                .map_or_else(|| watermark.to_owned(), |moved| moved.format(format).to_string());
        }
    }
    if let Ok(date) = watermark.parse::<NaiveDate>() {
        // A lag of any part of a day reads the day before again.
        let moved = date.and_hms_opt(0, 0, 0).and_then(|midnight| midnight.checked_sub_signed(lag));
        return moved.map_or_else(|| watermark.to_owned(), |moved| moved.date().to_string());
    }
    watermark.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn since(watermark: Option<&str>, lag: Option<u64>) -> Option<String> {
        let incremental = Incremental {
            cursor: "updated_at".into(),
            param: None,
            initial: Some("2020-01-01".into()),
            lag: lag.map(Duration::from_secs),
        };
        read_since(&incremental, watermark)
    }

    #[test]
    fn the_lag_is_subtracted_from_times_in_their_own_notation() {
        for (watermark, lag, expected) in [
            ("2024-03-01T00:02:00Z", 300, "2024-02-29T23:57:00Z"),
            ("2024-03-01T00:02:00.000001Z", 60, "2024-03-01T00:01:00.000001Z"),
            ("2024-03-01T00:02:00.5", 60, "2024-03-01T00:01:00.500"),
            ("2024-03-01", 60, "2024-02-29"),
            ("1000", 60, "1000"),
        ] {
            assert_eq!(since(Some(watermark), Some(lag)).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_lag_needs_a_cursor_that_is_a_time() {
        let schema = Schema::new(vec![
            arrow::datatypes::Field::new("id", DataType::Int64, true),
            arrow::datatypes::Field::new("day", DataType::Date32, true),
        ]);
        let check = |cursor: &str, lag: Option<u64>| {
            let incremental = Incremental {
                cursor: cursor.into(),
                param: None,
                initial: None,
                lag: lag.map(Duration::from_secs),
            };
            lag_fits(&incremental, &schema).map_err(|error| error.to_string())
        };
        assert_eq!(check("id", None), Ok(()));
        assert_eq!(check("day", Some(60)), Ok(()));
        let message = check("id", Some(60)).expect_err("an id is no time");
        assert!(message.contains("the cursor `id` is Int64: remove `lag`"), "{message}");
    }

    #[test]
    fn the_initial_value_is_taken_as_written() {
        assert_eq!(since(None, Some(300)).as_deref(), Some("2020-01-01"));
        assert_eq!(since(Some("5"), None).as_deref(), Some("5"));
    }
}

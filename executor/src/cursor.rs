//! The greatest value of an incremental source's cursor column, as text.

use std::fmt;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::Result;
use datafusion::functions_aggregate::min_max::MaxAccumulator;
use datafusion::logical_expr::Accumulator;

/// Compares by the column's type (not by text), so that 10 is greater than 9.
#[derive(Default)]
pub(crate) struct GreatestCursor {
    /// Made by the first batch, which knows the type.
    greatest: Option<MaxAccumulator>,
}

impl GreatestCursor {
    /// Looks at all rows of a batch, whether or not a later operator filters them out. A batch
    /// without the column changes nothing.
    pub(crate) fn observe(&mut self, column: &str, rows: &RecordBatch) -> Result<()> {
        let Some(values) = rows.column_by_name(column) else { return Ok(()) };
        let greatest = match &mut self.greatest {
            Some(greatest) => greatest,
            None => self.greatest.insert(MaxAccumulator::try_new(values.data_type())?),
        };
        greatest.update_batch(std::slice::from_ref(values))
    }

    /// The greatest value so far, and a new beginning. `None` when all were null.
    pub(crate) fn take(&mut self) -> Result<Option<String>> {
        let Some(mut greatest) = self.greatest.take() else { return Ok(None) };
        let value = greatest.evaluate()?;
        if value.is_null() {
            return Ok(None);
        }
        Ok(Some(text_of(&value.to_array()?)?))
    }
}

/// Numbers in decimal, instants in RFC 3339 and UTC, times without a zone the same without `Z`; with
/// all digits of the column's unit, so that nothing is rounded.
fn text_of(value: &ArrayRef) -> Result<String> {
    let (value, digits) = match value.data_type() {
        DataType::Timestamp(unit, Some(_)) => {
            let utc = DataType::Timestamp(*unit, Some("UTC".into()));
            (cast(value, &utc)?, Some(*unit))
        }
        DataType::Timestamp(unit, None) => (ArrayRef::clone(value), Some(*unit)),
        _ => (ArrayRef::clone(value), None),
    };
    let (without_zone, with_zone) = match digits {
        Some(TimeUnit::Nanosecond) => ("%Y-%m-%dT%H:%M:%S%.9f", "%Y-%m-%dT%H:%M:%S%.9fZ"),
        _ => ("%Y-%m-%dT%H:%M:%S%.6f", "%Y-%m-%dT%H:%M:%S%.6fZ"),
    };
    let options = FormatOptions::new()
        .with_display_error(false)
        .with_timestamp_format(Some(without_zone))
        .with_timestamp_tz_format(Some(with_zone));
    let formatter = ArrayFormatter::try_new(value.as_ref(), &options)?;
    Ok(formatter.value(0).try_to_string()?)
}

impl fmt::Debug for GreatestCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GreatestCursor")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Date32Array, Int64Array, StringArray, TimestampMicrosecondArray};

    use super::*;

    fn greatest(batches: Vec<ArrayRef>) -> Option<String> {
        let mut cursor = GreatestCursor::default();
        for values in batches {
            let rows = RecordBatch::try_from_iter([("at", values)]).expect("one column");
            cursor.observe("at", &rows).expect("comparable");
        }
        cursor.take().expect("printable")
    }

    #[test]
    fn numbers_compare_as_numbers_over_batches() {
        let first: ArrayRef = Arc::new(Int64Array::from(vec![Some(9), None, Some(10)]));
        let second: ArrayRef = Arc::new(Int64Array::from(vec![-5, 8]));
        assert_eq!(greatest(vec![first, second]).as_deref(), Some("10"));
    }

    #[test]
    fn instants_are_rfc_3339_in_utc_with_all_digits() {
        let micros = vec![1_700_000_000_000_001, 1_600_000_000_000_000];
        let values = TimestampMicrosecondArray::from(micros);
        let plain: ArrayRef = Arc::new(values.clone());
        assert_eq!(greatest(vec![plain]).as_deref(), Some("2023-11-14T22:13:20.000001"));
        let zoned: ArrayRef = Arc::new(values.with_timezone("+02:00"));
        assert_eq!(greatest(vec![zoned]).as_deref(), Some("2023-11-14T22:13:20.000001Z"));
    }

    #[test]
    fn dates_and_text_are_written_as_they_are() {
        let dates: ArrayRef = Arc::new(Date32Array::from(vec![19_000, 19_001]));
        assert_eq!(greatest(vec![dates]).as_deref(), Some("2022-01-09"));
        let text: ArrayRef = Arc::new(StringArray::from(vec!["b", "a"]));
        assert_eq!(greatest(vec![text]).as_deref(), Some("b"));
    }

    #[test]
    fn nulls_alone_leave_no_cursor_and_taking_starts_anew() {
        let nulls: ArrayRef = Arc::new(Int64Array::from(vec![None, None]));
        assert_eq!(greatest(vec![nulls]), None);
        let mut cursor = GreatestCursor::default();
        let seven: ArrayRef = Arc::new(Int64Array::from(vec![7]));
        let rows = RecordBatch::try_from_iter([("at", seven)]).expect("one column");
        cursor.observe("at", &rows).expect("comparable");
        assert_eq!(cursor.take().expect("printable").as_deref(), Some("7"));
        assert_eq!(cursor.take().expect("printable"), None);
    }
}

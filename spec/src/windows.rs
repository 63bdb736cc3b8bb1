//! The windows of a backfill: steps of the calendar from one instant to another.

use std::str::FromStr;

use chrono::{DateTime, Days, Months, NaiveDateTime, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use serde_json::Value;

use crate::PipelineSpec;
use crate::template::{Piece, pieces};

/// How long a window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Minutes and hours: always of the same length.
    Fixed(TimeDelta),
    /// Days of the timezone: 23 to 25 hours.
    Days(u32),
    Months(u32),
}

/// A backfill has fewer windows.
pub const WINDOWS_END: u32 = 1_000_000;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowsError {
    #[error("`{0}` is not a step: write a number and a unit, 15m, 1h, 1d, 1w or 1mo")]
    Step(String),
    #[error("`{0}` is not a time zone: write an IANA name like Europe/Berlin")]
    Timezone(String),
    #[error("there are no windows: {to} is not after {from}")]
    Empty { from: DateTime<Utc>, to: DateTime<Utc> },
    #[error(
        "steps of {step} from {from} to {to} are {WINDOWS_END} windows or more: take a greater step, or \
         several backfills"
    )]
    Many { step: String, from: DateTime<Utc>, to: DateTime<Utc> },
}

impl FromStr for Step {
    type Err = WindowsError;

    fn from_str(text: &str) -> Result<Self, WindowsError> {
        let wrong = || WindowsError::Step(text.to_owned());
        let unit = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(unit);
        let number: u32 = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
        Ok(match unit {
            "m" => Step::Fixed(TimeDelta::minutes(number.into())),
            "h" => Step::Fixed(TimeDelta::hours(number.into())),
            "d" => Step::Days(number),
            "w" => Step::Days(number.checked_mul(7).ok_or_else(wrong)?),
            "mo" => Step::Months(number),
            _ => return Err(wrong()),
        })
    }
}

/// `[from, to)` cut into steps; the last may be shorter. Each bound is reckoned from `from`, so that a
/// month that began on the 31st does so again after February.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    step: Step,
    zone: Tz,
    count: u32,
}

impl Windows {
    pub fn new(
        from: DateTime<Utc>,
        to: DateTime<Utc>,
        step: &str,
        timezone: &str,
    ) -> Result<Self, WindowsError> {
        let zone = timezone.parse().map_err(|_| WindowsError::Timezone(timezone.to_owned()))?;
        if from >= to {
            return Err(WindowsError::Empty { from, to });
        }
        let mut windows = Self { from, to, step: step.parse()?, zone, count: 0 };
        // The first bound that is not before the end. What is beyond the calendar is not.
        let (mut low, mut high) = (1, WINDOWS_END);
        while low < high {
            let middle = low + (high - low) / 2;
            match windows.bound(middle) {
                Some(bound) if bound < to => low = middle + 1,
                Some(_) | None => high = middle,
            }
        }
        if low == WINDOWS_END {
            return Err(WindowsError::Many { step: step.to_owned(), from, to });
        }
        windows.count = low;
        Ok(windows)
    }

    pub fn count(&self) -> u32 {
        self.count
    }

    /// `[start, end)` of a window; `None` beyond the last.
    pub fn get(&self, window: u32) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        if window >= self.count {
            return None;
        }
        let end = self.bound(window + 1).map_or(self.to, |end| end.min(self.to));
        Some((self.bound(window)?, end))
    }

    /// Where a window begins. `None` beyond the end of the calendar.
    fn bound(&self, window: u32) -> Option<DateTime<Utc>> {
        // As it was given, also where its local time comes twice.
        if window == 0 {
            return Some(self.from);
        }
        let local = self.from.with_timezone(&self.zone).naive_local();
        let local = match self.step {
            Step::Fixed(step) => {
                return self.from.checked_add_signed(step.checked_mul(window.try_into().ok()?)?);
            }
            Step::Days(days) => {
                local.checked_add_days(Days::new(u64::from(days) * u64::from(window)))?
            }
            Step::Months(months) => {
                local.checked_add_months(Months::new(months.checked_mul(window)?))?
            }
        };
        self.instant(local)
    }

    /// The first instant of a local time; where clocks jump over it, the end of the jump.
    fn instant(&self, local: NaiveDateTime) -> Option<DateTime<Utc>> {
        // No zone has ever jumped by more than a day, nor by a part of a quarter of an hour since 1972.
        (0..=24 * 4).find_map(|quarter| {
            let local = local.checked_add_signed(TimeDelta::minutes(15 * quarter))?;
            Some(self.zone.from_local_datetime(&local).earliest()?.with_timezone(&Utc))
        })
    }
}

impl PipelineSpec {
    /// Whether what it reads depends on the window: `window.…` is in a template of a source or transform.
    pub fn reads_window(&self) -> bool {
        let nodes = [serde_json::to_value(&self.sources), serde_json::to_value(&self.transforms)];
        nodes.iter().flatten().any(mentions_window)
    }
}

fn mentions_window(value: &Value) -> bool {
    match value {
        Value::String(text) => pieces(text).is_ok_and(|pieces| {
            pieces.iter().any(|piece| {
                matches!(piece, Piece::Expression { inner, .. } if inner.contains("window."))
            })
        }),
        Value::Array(items) => items.iter().any(mentions_window),
        Value::Object(fields) => fields.values().any(mentions_window),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(from: &str, to: &str, step: &str, zone: &str) -> Result<Windows, WindowsError> {
        let time = |text: &str| text.parse::<DateTime<Utc>>().expect("a time");
        Windows::new(time(from), time(to), step, zone)
    }

    fn starts(from: &str, to: &str, step: &str, zone: &str) -> Vec<String> {
        let windows = windows(from, to, step, zone).expect("they are windows");
        let all = (0..windows.count()).map(|window| windows.get(window).expect("it is there"));
        let text = |time: DateTime<Utc>| time.format("%m-%dT%H:%M").to_string();
        all.map(|(start, _)| text(start)).collect()
    }

    #[test]
    fn days_are_those_of_the_timezone() {
        // Clocks go forward on the 29th of March: that day has 23 hours.
        let from = "2026-03-27T23:00:00Z";
        assert_eq!(
            starts(from, "2026-03-30T22:00:00Z", "1d", "Europe/Berlin"),
            ["03-27T23:00", "03-28T23:00", "03-29T22:00"]
        );
        // And back on the 25th of October: 25 hours.
        assert_eq!(
            starts("2026-10-23T22:00:00Z", "2026-10-26T23:00:00Z", "1d", "Europe/Berlin"),
            ["10-23T22:00", "10-24T22:00", "10-25T23:00"]
        );
        assert_eq!(
            starts("2026-03-22T23:00:00Z", "2026-04-05T22:00:00Z", "1w", "Europe/Berlin"),
            ["03-22T23:00", "03-29T22:00"]
        );
        // Half past two comes twice on one day, and not at all on another.
        assert_eq!(
            starts("2026-10-24T00:30:00Z", "2026-10-27T00:30:00Z", "1d", "Europe/Berlin"),
            ["10-24T00:30", "10-25T00:30", "10-26T01:30"]
        );
        assert_eq!(
            starts("2026-03-28T01:30:00Z", "2026-03-31T00:30:00Z", "1d", "Europe/Berlin"),
            ["03-28T01:30", "03-29T01:00", "03-30T00:30"]
        );
        // Midnight was left out: the day began at one o'clock.
        assert_eq!(
            starts("2018-11-03T03:00:00Z", "2018-11-06T02:00:00Z", "1d", "America/Sao_Paulo"),
            ["11-03T03:00", "11-04T03:00", "11-05T02:00"]
        );
    }

    #[test]
    fn hours_and_minutes_do_not_know_the_timezone() {
        assert_eq!(
            starts("2026-03-29T00:00:00Z", "2026-03-29T03:00:00Z", "1h", "Europe/Berlin"),
            ["03-29T00:00", "03-29T01:00", "03-29T02:00"]
        );
        assert_eq!(
            starts("2026-03-29T00:50:00Z", "2026-03-29T01:30:00Z", "15m", "Europe/Berlin"),
            ["03-29T00:50", "03-29T01:05", "03-29T01:20"]
        );
    }

    #[test]
    fn months_are_reckoned_from_the_first() {
        assert_eq!(
            starts("2026-01-31T00:00:00Z", "2026-05-01T00:00:00Z", "1mo", "UTC"),
            ["01-31T00:00", "02-28T00:00", "03-31T00:00", "04-30T00:00"]
        );
        assert_eq!(
            starts("2025-12-31T23:00:00Z", "2026-06-30T22:00:00Z", "3mo", "Europe/Berlin"),
            ["12-31T23:00", "03-31T22:00"]
        );
    }

    #[test]
    fn the_last_window_ends_with_the_range() {
        let windows = windows("2026-01-01T00:00:00Z", "2026-01-02T12:00:00Z", "1d", "UTC");
        let windows = windows.expect("they are windows");
        let (start, end) = windows.get(1).expect("the second");
        assert_eq!((end - start).num_hours(), 12);
        assert_eq!((windows.count(), windows.get(2)), (2, None));
    }

    #[test]
    fn what_is_no_range_of_windows_is_refused() {
        let (from, to) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        for step in ["", "d", "1", "0d", "-1d", "1y", "1.5h", "1 d", "99999999999d", "1D"] {
            assert_eq!(
                windows(from, to, step, "UTC"),
                Err(WindowsError::Step(step.to_owned())),
                "{step}"
            );
        }
        assert!(matches!(windows(to, from, "1d", "UTC"), Err(WindowsError::Empty { .. })));
        assert!(matches!(windows(from, to, "1d", "Berlin"), Err(WindowsError::Timezone(_))));
        let many = windows("2000-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "1m", "UTC");
        assert!(matches!(many, Err(WindowsError::Many { .. })));
        // Less than a step, and steps beyond the end of the calendar.
        for step in ["2d", "4000000000mo", "4000000000d", "600000000w", "4000000000h"] {
            assert_eq!(windows(from, to, step, "UTC").map(|w| w.count()), Ok(1), "{step}");
        }
    }

    #[test]
    fn a_pipeline_reads_the_window_in_its_sources_or_transforms() {
        for (path, sql, out, reads) in [
            ("a.csv", "SELECT * FROM a", "out", false),
            ("{{ window.start[:10] }}.csv", "SELECT * FROM a", "out", true),
            ("a.csv", "SELECT * FROM a WHERE t >= {{ window.start }}", "out", true),
            ("a.csv", "SELECT window.x FROM a window", "out", false),
            ("a.csv", "SELECT * FROM a", "out/{{ window.start[:10] }}", false),
        ] {
            let text = format!(
                "pipeline: p\nsources: {{ a: {{ type: csv, path: \"{path}\" }} }}\n\
                 transforms: {{ t: {{ sql: \"{sql}\" }} }}\n\
                 sinks: {{ s: {{ input: t, type: csv, path: \"{out}\" }} }}\n"
            );
            let spec = crate::parse("p.yaml", &text).expect("a good file").spec;
            assert_eq!(spec.reads_window(), reads, "{path} {sql} {out}");
        }
    }

    /// Whatever the range: the windows follow each other, and cover it without a gap.
    #[test]
    fn windows_cover_the_range_exactly() {
        let zones = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"];
        for zone in zones {
            for step in ["45m", "1h", "7h", "1d", "3d", "1w", "1mo", "5mo"] {
                for hour in [0, 1, 2, 13] {
                    let from = format!("2025-01-30T{hour:02}:30:00Z");
                    let windows = windows(&from, "2027-01-01T00:00:00Z", step, zone);
                    let windows = windows.expect("they are windows");
                    let all: Vec<_> = (0..windows.count()).filter_map(|i| windows.get(i)).collect();
                    assert_eq!(all.len(), windows.count() as usize);
                    assert_eq!(all[0].0, windows.from);
                    assert_eq!(all[all.len() - 1].1, windows.to);
                    assert!(all.iter().all(|(start, end)| start < end), "{zone} {step} {hour}");
                    assert!(all.windows(2).all(|pair| pair[0].1 == pair[1].0));
                }
            }
        }
    }
}

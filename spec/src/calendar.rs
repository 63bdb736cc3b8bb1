//! Days of a pipeline's timezone.

use chrono::{DateTime, NaiveDate, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;

use crate::PipelineSpec;

impl PipelineSpec {
    /// The first instant of a day in the pipeline's timezone.
    ///
    /// Where clocks jump over midnight it is the end of the jump; where midnight comes twice, the
    /// first one. `None` for a day that the zone left out, and at the ends of the calendar.
    pub fn start_of_day(&self, date: NaiveDate) -> Option<DateTime<Utc>> {
        // The name was checked when the file was read.
        let zone: Tz = self.timezone.parse().ok()?;
        let midnight = date.and_hms_opt(0, 0, 0)?;
        // No zone has ever jumped by a part of a quarter of an hour at midnight in this century.
        (0..24 * 4).find_map(|quarter| {
            let local = midnight.checked_add_signed(TimeDelta::minutes(15 * quarter))?;
            Some(zone.from_local_datetime(&local).earliest()?.with_timezone(&Utc))
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::parse;

    fn start(zone: &str, date: &str) -> Option<String> {
        let text = format!(
            "pipeline: p\ntimezone: {zone}\nsources: {{ a: {{ type: csv, path: a.csv }} }}\n\
             sinks: {{ s: {{ input: a, type: csv, path: out }} }}\n"
        );
        let spec = parse("p.yaml", &text).expect("a good file").spec;
        let start = spec.start_of_day(date.parse().expect("a date"))?;
        Some(start.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
    }

    #[test]
    fn a_day_starts_at_midnight_of_the_zone() {
        for (zone, date, expected) in [
            ("UTC", "2026-01-31", "2026-01-31T00:00:00Z"),
            ("Europe/Berlin", "2026-01-31", "2026-01-30T23:00:00Z"),
            // Clocks change in the night from the 28th to the 29th: that day has 23 hours.
            ("Europe/Berlin", "2026-03-29", "2026-03-28T23:00:00Z"),
            ("Europe/Berlin", "2026-03-30", "2026-03-29T22:00:00Z"),
            // Midnight was left out: the day began at one o'clock.
            ("America/Sao_Paulo", "2018-11-04", "2018-11-04T03:00:00Z"),
            // Midnight came twice.
            ("America/Havana", "2026-11-01", "2026-11-01T04:00:00Z"),
        ] {
            assert_eq!(start(zone, date).as_deref(), Some(expected), "{date} in {zone}");
        }
        assert_eq!(start("Pacific/Apia", "2011-12-30"), None, "a day that never was");
    }
}

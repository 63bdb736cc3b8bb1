//! The time by which one driver waits. The clock of its machine may be set while it does: a retry in ten seconds is not one
//! in an hour because somebody has corrected the clock by an hour meanwhile.

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

/// Goes on from what the clock has said when the driver began. No other session needs to agree: taking a run up again ends
/// the waits of its slices.
#[derive(Clone, Copy, Debug)]
pub(super) struct SteadyClock {
    began_at: DateTime<Utc>,
    began: Instant,
}

impl SteadyClock {
    pub(super) fn starting_at(now: DateTime<Utc>) -> Self {
        Self { began_at: now, began: Instant::now() }
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        let elapsed = TimeDelta::from_std(self.began.elapsed()).unwrap_or(TimeDelta::MAX);
        self.began_at.checked_add_signed(elapsed).unwrap_or(DateTime::<Utc>::MAX_UTC)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_as_long_as_it_was_meant_whatever_the_clock_is_set_to() {
        // As if the machine's clock had been set back since, by decades.
        let began_at = Utc::now() + TimeDelta::days(20_000);
        let clock = SteadyClock::starting_at(began_at);
        let retry_at = clock.now() + TimeDelta::seconds(10);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(clock.now() < retry_at);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(clock.now(), retry_at);
    }
}

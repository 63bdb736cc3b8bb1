//! What work on runs takes from around it: the time of day, and names that nobody else has. A simulation has
//! its own of each, and a storage without threads ([`weir_executor::storage::Storage::inline`]), and otherwise
//! the same code.

use chrono::{DateTime, Utc};
use uuid::Uuid;

pub(crate) fn now() -> DateTime<Utc> {
    #[cfg(test)]
    if let Some(now) = simulated::now() {
        return now;
    }
    Utc::now()
}

pub(crate) fn new_uuid() -> Uuid {
    #[cfg(test)]
    if turmoil::in_simulation() {
        return crate::raft::simulation::simulated_uuid();
    }
    Uuid::new_v4()
}

#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;

    use chrono::{DateTime, TimeDelta, Utc};

    thread_local! {
        /// By how much all clocks of this thread's world are wrong.
        static SHIFT: Cell<TimeDelta> = const { Cell::new(TimeDelta::zero()) };
    }

    /// As somebody does who sets the clock.
    pub(crate) fn shift_clocks(by: TimeDelta) {
        SHIFT.set(by);
    }

    pub(super) fn now() -> Option<DateTime<Utc>> {
        let elapsed = TimeDelta::from_std(turmoil::sim_elapsed()?).ok()?;
        let start = DateTime::from_timestamp(1_700_000_000, 0)?;
        Some(start + elapsed + SHIFT.get())
    }
}

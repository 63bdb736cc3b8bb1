//! What work on runs takes from around it: the time of day, names that nobody else has, and threads for work that takes
//! long. A simulation has its own of each, and a storage without threads ([`weir_executor::storage::Storage::inline`]), and otherwise
//! the same code.

use std::io;

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

/// Work that takes its time, beside the threads that answer others.
#[cfg(not(test))]
pub(crate) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// At once: a simulation has no other threads, whose moments would be different each time.
#[cfg(test)]
pub(crate) async fn beside<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    work()
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

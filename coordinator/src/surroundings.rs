//! What work on runs takes from around it: the time of day, names that nobody else has, and threads for work that takes
//! long. A simulation has its own of each, and a storage without threads ([`weir_executor::storage::Storage::inline`]), and otherwise
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

/// Work that takes its time, beside the threads that hear executors and answer clients. Its panic is the caller's.
#[cfg(not(test))]
pub(crate) async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The process ends.
            Err(_) => std::future::pending().await,
        },
    }
}

/// As [`beside`], for what is async only in name: it waits for nobody. Dropped, it goes on to its end, and nobody gets that.
#[cfg(not(test))]
pub(crate) async fn computed_beside<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let threads = tokio::runtime::Handle::current();
    let span = tracing::Span::current();
    beside(move || span.in_scope(|| threads.block_on(work))).await
}

/// At once: a simulation has no other threads, whose moments would be different each time.
#[cfg(test)]
pub(crate) async fn beside<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// As [`beside`].
#[cfg(test)]
pub(crate) async fn computed_beside<T>(work: impl Future<Output = T>) -> T {
    work.await
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

//! What virtual executors have seen, and what that adds up to.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Something that an executor has seen.
pub(crate) enum Seen {
    /// A task has come. `waited`: since the place that it has got was free; `None` for the first task of a place.
    Assigned {
        at: Instant,
        waited: Option<Duration>,
    },
    /// All three facts of a task are known to be in the ledger.
    Ended {
        at: Instant,
        took: Duration,
    },
    StreamEnded(Option<String>),
}

#[derive(Default)]
pub(crate) struct Figures {
    first: Option<Instant>,
    last: Option<Instant>,
    waits: Vec<Duration>,
    tasks: Vec<Duration>,
    ends: Vec<Instant>,
}

#[derive(Serialize)]
pub(crate) struct Sum {
    tasks: usize,
    /// From the submission to the first assignment: planning.
    seconds_before: f64,
    /// From the first assignment to the answer to the last report.
    seconds: f64,
    tasks_per_second: f64,
    /// From the moment at which a place was free, while slices were ready, to the assignment in its executor's hands.
    dispatch_millis_p50: f64,
    dispatch_millis_p99: f64,
    /// From the assignment to the answer to the last report, without what the task was held for.
    task_millis_p50: f64,
    task_millis_p99: f64,
    /// In the first and in the last tenth of the tasks: the same, unless something grows with their number.
    first_tenth_per_second: f64,
    last_tenth_per_second: f64,
}

impl Figures {
    pub(crate) fn ended(&self) -> usize {
        self.tasks.len()
    }

    pub(crate) fn note(&mut self, seen: Seen) {
        match seen {
            Seen::Assigned { at, waited } => {
                self.first.get_or_insert(at);
                self.waits.extend(waited);
            }
            Seen::Ended { at, took } => {
                self.tasks.push(took);
                self.last = Some(at);
                self.ends.push(at);
            }
            Seen::StreamEnded(_) => {}
        }
    }

    pub(crate) fn sum(mut self, submitted_at: Instant) -> Sum {
        let first = self.first.unwrap_or(submitted_at);
        let last = self.last.unwrap_or(first);
        let seconds = last.duration_since(first).as_secs_f64();
        self.ends.sort();
        let tenth = (self.ends.len() / 10).max(1);
        let rate =
            |from: Instant, to: Instant| tenth as f64 / to.duration_since(from).as_secs_f64();
        let count = self.ends.len();
        Sum {
            tasks: count,
            seconds_before: first.duration_since(submitted_at).as_secs_f64(),
            seconds,
            tasks_per_second: count as f64 / seconds,
            dispatch_millis_p50: millis_at(&mut self.waits, 0.5),
            dispatch_millis_p99: millis_at(&mut self.waits, 0.99),
            task_millis_p50: millis_at(&mut self.tasks, 0.5),
            task_millis_p99: millis_at(&mut self.tasks, 0.99),
            first_tenth_per_second: rate(first, self.ends[tenth - 1]),
            last_tenth_per_second: rate(self.ends[count - tenth.min(count - 1) - 1], last),
        }
    }
}

/// 0 when there are none.
fn millis_at(times: &mut [Duration], share: f64) -> f64 {
    times.sort();
    let index = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
    times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

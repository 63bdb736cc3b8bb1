//! The threads on which tasks compute. None of them talks to the leader.
//!
//! ```text
//! the process's threads:  Link (heartbeats, reports) ─ Node ─ rows for other executors, and from them
//!                                                       │ assignments, ends
//! work threads:           tasks: sources, operators, sinks
//! ```
//!
//! An operator that computes for seconds without giving its thread back delays other tasks, and nothing else: an
//! executor that works hard is heard of in time (decision 0018).

use std::io;
use std::num::NonZeroUsize;

use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// Dropped, they end with what they do at that moment, and nobody waits for them.
#[derive(Debug)]
pub(super) struct WorkThreads {
    /// Until it is dropped.
    runtime: Option<Runtime>,
}

impl WorkThreads {
    /// One for each core: tasks that wait take none.
    pub(super) fn start() -> io::Result<Self> {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores.get())
            .thread_name("weir-work")
            .enable_all()
            .build()?;
        Ok(Self { runtime: Some(runtime) })
    }

    /// Begins the work at once. A panic in it is one of who awaits this; dropped, it gives the work up.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = T> + Send + 'static {
        let runtime = self.runtime.as_ref().expect("it is there until it is dropped");
        let working = AbortOnDropHandle::new(runtime.spawn(work));
        async move {
            match working.await {
                Ok(done) => done,
                Err(ended) => match ended.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The threads have ended with the process.
                    Err(_) => std::future::pending().await,
                },
            }
        }
    }
}

impl Drop for WorkThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // To wait is not allowed on a thread of the process, nor of use: what is not committed is not visible.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn work_that_is_given_up_ends() {
        let threads = WorkThreads::start().expect("threads start");
        assert_eq!(threads.run(async { 7 }).await, 7);
        let held = Arc::new(());
        let hold = Arc::clone(&held);
        let work = threads.run(async move {
            let _hold = hold;
            std::future::pending::<()>().await;
        });
        assert_eq!(Arc::strong_count(&held), 2);
        drop(work);
        while Arc::strong_count(&held) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    #[should_panic(expected = "of the work")]
    async fn a_panic_of_the_work_is_told() {
        let threads = WorkThreads::start().expect("threads start");
        threads.run(async { panic!("of the work") }).await
    }
}

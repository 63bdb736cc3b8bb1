//! Tasks that compute, and what the leader hears meanwhile.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use datafusion::physical_plan::ExecutionPlan;

use weir_proto::internal::answer::Outcome;

use super::leader::{FakeLeader, end_of, soon};
use super::serving::World;
use crate::node::serve_with;
use crate::tests::fakes::{FakeSource, Leaf, row_schema, services};

/// As [`FakeLeader`] says.
const LEASE: Duration = Duration::from_secs(3);

/// Operators that do not give their threads back until they are allowed to.
#[derive(Debug, Default)]
struct Computing {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    threads: usize,
    is_over: bool,
}

impl Computing {
    fn compute(&self) {
        let mut state = self.state.lock().expect("not poisoned");
        state.threads += 1;
        while !state.is_over {
            state = self.changed.wait(state).expect("not poisoned");
        }
        state.threads -= 1;
    }

    fn threads(&self) -> usize {
        self.state.lock().expect("not poisoned").threads
    }

    /// The operator above a batch's rows.
    fn operator(self: &Arc<Self>) -> impl Fn() -> Arc<dyn ExecutionPlan> + Clone + use<> {
        let computing = Arc::clone(self);
        move || {
            let computing = Arc::clone(&computing);
            Leaf::plan(row_schema(), 1, move |_, context| {
                computing.compute();
                services(context).morsel()
            })
        }
    }
}

/// Whatever becomes of the test.
struct EndsComputing(Arc<Computing>);

impl Drop for EndsComputing {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state.lock() {
            state.is_over = true;
        }
        self.0.changed.notify_all();
    }
}

#[tokio::test]
async fn an_executor_keeps_its_lease_while_tasks_compute_on_every_thread() {
    let computing = Arc::new(Computing::default());
    let world = World::with_plan(FakeSource::default(), computing.operator());
    let mut leader = FakeLeader::start().await;
    // A process's, as `weir executor` has them: one for each core.
    let threads = tokio::runtime::Runtime::new().expect("threads start");
    let ends = EndsComputing(Arc::clone(&computing));
    let options = world.options(&[&leader]);
    let node = threads.spawn(serve_with(options, Arc::clone(&world.systems), world.stop.clone()));
    let mut stream = leader.welcome(1, false).await;

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // More than threads: one may wait for what another has begun.
    for attempt in 1..=u32::try_from(4 * cores).expect("few cores") {
        stream.assign(&world.attempt(attempt, 1)).await;
    }
    soon(async {
        while computing.threads() < cores {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let began = Instant::now();
    while began.elapsed() < 2 * LEASE {
        let heard = tokio::time::timeout(LEASE, stream.heartbeat(false)).await;
        heard.expect("it is heard of within its lease");
    }
    assert!(computing.threads() >= cores, "they have computed all the time");

    // It has not been given up, and can still leave in good order.
    drop(ends);
    while let report = stream.report().await
        && end_of(&report).is_none()
    {
        stream.answer(report.number, Outcome::Fenced).await;
    }
    drop(stream);
    let _stream = leader.welcome(1, false).await;
    world.stop.cancel();
    soon(node).await.expect("it does not panic").expect("it leaves in good order");
    threads.shutdown_background();
}

//! A driver with workers of which one is slow, or hangs, or fails at what it does a second time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use weir_executor::{Registry, Task, TaskError, TaskOutcome};
use weir_ledger::{Command, PlanRun, RunId, SliceAttempt, Slices, StageFacts, StartRun};
use weir_plan::{
    EncodedPlan, ExchangeOutput, InStorage, RowAccount, Stage, StageGraph, StageId, StageKind,
    StageOutput,
};
use weir_spec::ExchangeDurability;

use super::*;
use crate::Frozen;
use crate::cluster::place::NoPlace;
use crate::connection_limits::ConnectionLimit;
use crate::driver::Driver;
use crate::session::Session;
use crate::shape::stage_shapes;
use crate::store::LedgerStore;
use crate::workers::{Slot, TaskContext, Wanted, WorkError, Workers};

const SLICES: u32 = 4;
const SLOW: u32 = 3;

/// What becomes of the straggler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Straggler {
    /// It never ends by itself.
    Hangs,
    /// Its copy fails, for which there is no memory where it runs, before it ends well.
    OutlivesAFailedCopy,
    /// The executor of its copy is lost before it ends well.
    OutlivesALostCopy,
    /// It ends well once it may; nobody copies it.
    IsAlone,
}

/// The first attempt at one slice takes longer than the others.
#[derive(Debug)]
struct OneIsSlow {
    straggler: Straggler,
    wanted: Mutex<Vec<Option<String>>>,
    is_given_up: Arc<AtomicBool>,
    may_end: Notify,
    /// Places that are taken, and tasks that have ended.
    places: Arc<AtomicUsize>,
    ended: AtomicUsize,
}

#[derive(Debug)]
struct Taken(Arc<AtomicUsize>);

impl Slot for Taken {}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl Workers for OneIsSlow {
    fn capacity(&self) -> usize {
        SLICES as usize + 1
    }

    fn take_slot(&self, wanted: &Wanted) -> Result<Box<dyn Slot>, NoPlace> {
        self.wanted.lock().expect("no panic").push(wanted.not_with.clone());
        self.places.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Taken(Arc::clone(&self.places))))
    }

    fn room(&self, _connections: &[ConnectionLimit]) -> usize {
        usize::MAX
    }

    fn executor_of(&self, attempt: &SliceAttempt) -> Option<String> {
        Some(format!("executor of {}", attempt.attempt))
    }

    fn copies_after(&self) -> Duration {
        match self.straggler {
            Straggler::IsAlone => Duration::MAX,
            _ => Duration::from_millis(30),
        }
    }

    async fn changed(&self) {
        std::future::pending().await
    }

    async fn run(
        &self,
        _slot: &dyn Slot,
        task: Task,
        _context: TaskContext,
    ) -> Result<TaskOutcome, WorkError> {
        match ((task.slice, task.attempt), self.straggler) {
            ((SLOW, 1), Straggler::Hangs) => {
                let _given_up = GivenUp(Arc::clone(&self.is_given_up));
                std::future::pending::<()>().await;
            }
            ((SLOW, 1), _) => self.may_end.notified().await,
            ((SLOW, 2), Straggler::OutlivesAFailedCopy) => {
                let (stage, message) = ("joined".to_owned(), "not enough memory".to_owned());
                return Err(WorkError::Task(TaskError::Operator { stage, message }));
            }
            ((SLOW, 2), Straggler::OutlivesALostCopy) => {
                return Err(WorkError::ExecutorLost("two".to_owned()));
            }
            _ => {}
        }
        let file_id = format!("{}-{}", task.slice, task.attempt);
        let (first, in_storage) = (task.slice, InStorage::No);
        let output = ExchangeOutput { file_id, first, partitions: 1, holder: None, in_storage };
        self.ended.fetch_add(1, Ordering::SeqCst);
        Ok(TaskOutcome::Exchanged { output, account: RowAccount::default() })
    }
}

fn graph() -> StageGraph {
    let stage = Stage {
        id: StageId(0),
        name: "joined".to_owned(),
        nodes: Vec::new(),
        inputs: Vec::new(),
        kind: StageKind::Whole {
            plan: EncodedPlan(Vec::new()),
            partitions: SLICES,
            slices: SLICES,
            durability: ExchangeDurability::Sync,
        },
        output: StageOutput::Exchange,
        display: String::new(),
    };
    StageGraph { engine_version: StageGraph::ENGINE_VERSION.to_owned(), stages: vec![stage] }
}

/// What the ledger says of the slices once the run has succeeded, and what was asked of the workers. `meanwhile` is done
/// beside it, by who knows the ledger and the epoch.
async fn drive(
    straggler: Straggler,
    meanwhile: impl AsyncFnOnce(&LedgerStore, u64, &OneIsSlow),
) -> (Slices, Arc<OneIsSlow>) {
    let place = Place(tempfile::tempdir().expect("a temporary folder"));
    let text = "pipeline: p\nsources: { a: { type: csv, path: a.csv } }\n\
                sinks: { b: { input: a, type: csv, path: out } }\n";
    let spec = weir_spec::parse("pipeline.yaml", text).expect("it is right").spec;
    let dir = StateDir::new(place.state()).pipeline(&spec.pipeline);
    let lock = PipelineLock::try_acquire(&dir).expect("writable").expect("nobody else has it");
    let store = Arc::new(LedgerStore::open_writer(&dir.ledger(), lock).await.expect("it opens"));
    let epoch = place.engine().await.begin_epoch(&store).await.expect("it begins");
    let (run, graph) = (RunId("run-1".to_owned()), graph());
    let request = RunRequest::default();
    for command in [
        Command::StartRun(StartRun {
            epoch,
            run: run.clone(),
            pipeline: spec.pipeline.clone(),
            spec_hash: String::new(),
            params: BTreeMap::new(),
            window: None,
            request_id: None,
            version: None,
            backfill: None,
            replay_of: None,
            at: chrono::DateTime::UNIX_EPOCH,
        }),
        Command::PlanRun(PlanRun {
            epoch,
            run: run.clone(),
            graph_hash: "graph".to_owned(),
            engine_version: String::new(),
            stages: stage_shapes(&graph, &spec, &request),
        }),
    ] {
        store.append(command).await.expect("accepted");
    }
    let (events, _received) = mpsc::unbounded_channel();
    let session = Session {
        files: dir.files(),
        store: Arc::clone(&store),
        epoch,
        run: run.clone(),
        frozen: Frozen {
            run: run.0.clone(),
            pipeline: spec.pipeline.to_string(),
            spec,
            spec_text: text.to_owned(),
            base_dir: place.0.path().to_owned(),
            request,
        },
        options: EngineOptions {
            state_dir: place.state(),
            memory_bytes: 1 << 20,
            slots: NonZeroUsize::MIN,
            context: place.context(),
        },
        systems: Arc::new(Registry { context: place.context() }),
        events,
        stop: CancellationToken::new(),
        cluster: None,
    };
    let workers = Arc::new(OneIsSlow {
        straggler,
        wanted: Mutex::default(),
        is_given_up: Arc::default(),
        may_end: Notify::new(),
        places: Arc::default(),
        ended: AtomicUsize::new(0),
    });
    let sinks = IndexMap::new();
    let driving = Driver::new(&session, &graph, &sinks, Arc::clone(&workers) as Arc<dyn Workers>);
    let both = async { tokio::join!(driving.drive(), meanwhile(&store, epoch, &workers)) };
    let driven = tokio::time::timeout(Duration::from_secs(60), both).await;
    driven.expect("nobody waits for who hangs").0.expect("it succeeds");
    let slices = store.ledger().await.run(&run).expect("it is known").stages[0].slices.clone();
    (slices, workers)
}

/// Of the only stage.
async fn wait_until(store: &LedgerStore, is_so: impl Fn(&StageFacts) -> bool) {
    loop {
        if let Some(run) = store.ledger().await.runs.values().next()
            && is_so(&run.stages[0])
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_straggler_is_done_a_second_time_and_the_first_result_counts() {
    let (slices, workers) = drive(Straggler::Hangs, async |_, _, _| {}).await;
    let attempts: Vec<u32> = slices.iter().map(|slice| slice.attempts).collect();
    assert_eq!(attempts, [1, 1, 1, 2]);
    assert_eq!(slices[SLOW as usize].attempt_of(0), Some(2));
    assert!(workers.is_given_up.load(Ordering::SeqCst), "nobody waits for the first");
    let wanted = workers.wanted.lock().expect("no panic").clone();
    assert_eq!(wanted[4..], [Some("executor of 1".to_owned())], "only that one, and elsewhere");
}

#[tokio::test]
async fn a_copy_that_fails_costs_the_run_nothing() {
    for straggler in [Straggler::OutlivesAFailedCopy, Straggler::OutlivesALostCopy] {
        let (slices, workers) = drive(straggler, async |store, epoch, workers| {
            wait_until(store, |stage| {
                let slice = &stage.slices[SLOW as usize];
                slice.attempts == 2 && !slice.is_at_work(epoch, 2)
            })
            .await;
            workers.may_end.notify_one();
        })
        .await;
        let slice = &slices[SLOW as usize];
        assert_eq!((slice.attempts, slice.attempt_of(0)), (2, Some(1)), "{straggler:?}");
        assert_eq!((slice.failures, slice.losses), (0, 0), "{straggler:?}");
        assert_eq!(workers.wanted.lock().expect("no panic").len(), 5, "one copy, no more");
    }
}

/// Who has nothing to do, and whose rows nobody needs, may be sent away.
#[tokio::test]
async fn a_place_is_kept_until_the_result_is_in_the_ledger() {
    let (slices, workers) = drive(Straggler::IsAlone, async |store, _, workers| {
        wait_until(store, |stage| stage.finished_slices == SLICES - 1).await;
        // Nothing is appended as long as somebody reads.
        let reading = store.ledger().await;
        workers.may_end.notify_one();
        while workers.ended.load(Ordering::SeqCst) < SLICES as usize {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(workers.places.load(Ordering::SeqCst), 1);
        drop(reading);
    })
    .await;
    assert!(slices.iter().all(|slice| slice.is_finished()));
    assert_eq!(workers.places.load(Ordering::SeqCst), 0);
}

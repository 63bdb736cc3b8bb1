//! A whole process: streams that break, leaders that change, tasks that go on or do not.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;

use datafusion::physical_plan::ExecutionPlan;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weir_connectors::{ConnectorContext, Redactor, Secrets};
use weir_plan::StageGraph;
use weir_proto::internal::answer::Outcome;
use weir_proto::internal::report::Fact;
use weir_proto::internal::{Assign, TaskId};

use super::leader::{FakeLeader, LeaderStream, end_of, freezing_proxy, soon};
use crate::node::{NodeError, NodeOptions, SystemsMaker, serve_with};
use crate::storage::Storage;
use crate::tests::fakes::{
    FakeSink, FakeSource, FakeSystems, Leaf, sink_node, split, streaming_task,
};
use crate::{Commit, ExchangeCompression, RunFolder, Task, TaskEnd, wire::TaskFailure};

pub(super) const RUN_FOLDER: &str = "pipeline/runs/run";

/// A storage with one run in it, and a process that works on it.
pub(super) struct World {
    pub(super) folder: tempfile::TempDir,
    sink: Arc<FakeSink>,
    pub(super) systems: SystemsMaker,
    pub(super) assign: Assign,
    pub(super) stop: CancellationToken,
}

impl World {
    /// A run whose only slice copies the ids from 0 to 1000 in batches of 300.
    fn new(source: FakeSource) -> Self {
        Self::with_plan(source, Leaf::morsel)
    }

    /// With what is done to the rows of each batch.
    pub(super) fn with_plan(
        source: FakeSource,
        plan: impl Fn() -> Arc<dyn ExecutionPlan> + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::of_task(&streaming_task(vec![split(0, 1000)], 300), source, plan)
    }

    /// A run of which a task is given.
    pub(super) fn of_task(
        task: &Task,
        source: FakeSource,
        plan: impl Fn() -> Arc<dyn ExecutionPlan> + Clone + Send + Sync + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (source, sink) = (Arc::new(source), Arc::new(FakeSink::default()));
        let opened = Arc::clone(&sink);
        let systems: SystemsMaker = Arc::new(move |base_dir: &Path| {
            assert_eq!(base_dir, Path::new("/pipelines"));
            Arc::new(FakeSystems {
                source: Arc::clone(&source),
                sink: Arc::clone(&opened),
                plan: Some(Box::new(plan.clone())),
            })
        });
        let graph = StageGraph {
            engine_version: StageGraph::ENGINE_VERSION.to_owned(),
            stages: vec![task.stage.as_ref().clone()],
        };
        let bytes = serde_json::to_vec(&graph).expect("graphs are JSON");
        let graph_hash = blake3::hash(&bytes).to_hex().to_string();
        let run = folder.path().join("storage").join(RUN_FOLDER);
        let path = run.join(RunFolder::graph_file(&graph_hash));
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        std::fs::write(path, bytes).expect("written");
        let assign = Assign {
            task: Some(TaskId {
                run: "run".to_owned(),
                stage: task.stage.id.0,
                slice: 0,
                attempt: 1,
                epoch: 1,
            }),
            pipeline: "pipeline".to_owned(),
            run_folder: RUN_FOLDER.to_owned(),
            graph_hash,
            base_dir: "/pipelines".to_owned(),
            checkpoint_every_millis: 30_000,
            start: serde_json::to_vec(&task.start).expect("starts are JSON"),
            inputs: b"{}".to_vec(),
            prepared: match &task.prepared {
                Some(prepared) => serde_json::to_vec(prepared).expect("sinks are JSON"),
                None => Vec::new(),
            },
        };
        Self { folder, sink, systems, assign, stop: CancellationToken::new() }
    }

    pub(super) fn options(&self, coordinators: &[&FakeLeader]) -> NodeOptions {
        NodeOptions {
            name: "executor".to_owned(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            url: None,
            coordinators: coordinators.iter().map(|leader| leader.url.clone()).collect(),
            tls: None,
            dir: self.folder.path().join("local"),
            storage: Storage::folder(self.folder.path().join("storage")),
            slots: NonZeroUsize::new(2).expect("two is not zero"),
            compression: ExchangeCompression::default(),
            memory_bytes: NonZeroU64::new(64 << 20).expect("some memory"),
            context: ConnectorContext::new("/nowhere", Secrets::default(), Redactor::default()),
        }
    }

    pub(super) fn start(&self, coordinators: &[&FakeLeader]) -> JoinHandle<Result<(), NodeError>> {
        let options = self.options(coordinators);
        tokio::spawn(serve_with(options, Arc::clone(&self.systems), self.stop.clone()))
    }

    fn task(&self) -> &TaskId {
        self.assign.task.as_ref().expect("a task")
    }

    /// The same slice, tried again in an epoch.
    pub(super) fn attempt(&self, attempt: u32, epoch: u64) -> Assign {
        let task = TaskId { attempt, epoch, ..self.task().clone() };
        Assign { task: Some(task), ..self.assign.clone() }
    }

    fn has_all_rows(&self) {
        assert_eq!(self.sink.ids(), (0..1000).collect::<Vec<i64>>());
    }
}

fn failure(end: TaskEnd) -> TaskFailure {
    match end {
        TaskEnd::Failed(failure) => failure,
        other => panic!("it has not failed: {other:?}"),
    }
}

/// Accepts reports until the task has asked about this many batches; the last question stays open.
async fn accept_until_intent(stream: &mut LeaderStream, intents: usize) -> u64 {
    let mut seen = 0;
    loop {
        let report = stream.report().await;
        if let Some(Fact::Intent(json)) = &report.fact {
            let commit: Commit = serde_json::from_slice(json).expect("a commit");
            assert_eq!(commit.manifest.sequence, seen as u64);
            seen += 1;
            if seen == intents {
                return report.number;
            }
        }
        stream.answer(report.number, Outcome::Accepted).await;
    }
}

#[tokio::test]
async fn a_task_is_run_once_and_told_of_until_it_is_put_down() {
    let world = World::new(FakeSource::default());
    let mut leader = FakeLeader::start().await;
    let node = world.start(&[&leader]);
    let mut stream = leader.welcome(1, false).await;
    assert_eq!(stream.hello.executor, "executor");
    assert_eq!(stream.hello.engine_version, StageGraph::ENGINE_VERSION);
    assert_eq!(stream.hello.slots, 2);
    stream.assign(&world.assign).await;
    stream.assign(&world.assign).await;
    let end = stream.accept_until_end().await;
    let TaskEnd::Committed(account) = end else { panic!("{end:?}") };
    assert_eq!(account.rows_written, 1000);
    world.has_all_rows();
    stream.progress(&sink_node(), 1000).await;
    world.stop.cancel();
    soon(node).await.expect("it does not panic").expect("it leaves in good order");
}

#[tokio::test]
async fn a_task_outlives_its_streams() {
    let world = World::new(FakeSource::default());
    let mut leader = FakeLeader::start().await;
    let _node = world.start(&[&leader]);
    let mut stream = leader.welcome(1, false).await;
    let boot_id = stream.hello.boot_id.clone();
    stream.assign(&world.assign).await;
    let open = accept_until_intent(&mut stream, 2).await;
    stream.fail().await;

    // The question is asked again; this time the answer is lost, and then the stream just ends.
    let mut stream = leader.welcome(1, true).await;
    assert_eq!(stream.hello.boot_id, boot_id);
    assert_eq!(stream.report().await.number, open);
    drop(stream);

    let mut stream = leader.welcome(1, true).await;
    stream.assign(&world.assign).await;
    let mut last = open - 1;
    let end = loop {
        let report = stream.report().await;
        assert_eq!(report.number, last + 1, "in order, none twice on a stream");
        last = report.number;
        match end_of(&report) {
            Some(end) => break end,
            None => stream.answer(last, Outcome::Accepted).await,
        }
    };
    drop(stream);

    // So is the end.
    let mut stream = leader.welcome(1, true).await;
    let report = stream.report().await;
    assert_eq!((report.number, end_of(&report)), (last, Some(end)));
    world.has_all_rows();
    stream.answer(last, Outcome::Accepted).await;
    stream.heartbeat(false).await;
    drop(stream);
    let mut stream = leader.welcome(1, true).await;
    stream.heartbeat(false).await;
    // With nothing left to do it says goodbye and goes.
    world.stop.cancel();
    stream.heartbeat(true).await;
}

#[tokio::test]
async fn a_leader_that_falls_silent_is_called_anew() {
    let world = World::new(FakeSource::default());
    let mut leader = FakeLeader::start().await;
    let frozen = CancellationToken::new();
    let proxy = freezing_proxy(&leader, frozen.clone()).await;
    let mut options = world.options(&[&leader]);
    options.coordinators.insert(0, proxy);
    let _node = tokio::spawn(serve_with(options, Arc::clone(&world.systems), world.stop.clone()));
    let mut stream = leader.welcome(1, false).await;
    stream.assign(&world.assign).await;
    let open = accept_until_intent(&mut stream, 1).await;
    frozen.cancel();
    // Neither the broken stream nor the machine that takes calls and says nothing holds it up.
    let mut stream = leader.welcome(1, true).await;
    assert_eq!(stream.report().await.number, open);
}

#[tokio::test]
async fn a_new_epoch_begins_with_nothing_of_the_old_one() {
    let world = World::new(FakeSource::default());
    let mut leader = FakeLeader::start().await;
    let _node = world.start(&[&leader]);
    let mut stream = leader.welcome(1, false).await;
    stream.assign(&world.assign).await;
    let open = accept_until_intent(&mut stream, 1).await;
    drop(stream);
    let mut stream = leader.welcome(2, true).await;
    // The old one's assignment comes late.
    stream.assign(&world.assign).await;
    stream.assign(&world.attempt(2, 2)).await;
    let next = accept_until_intent(&mut stream, 1).await;
    assert_eq!(next, open + 1);
    stream.answer(open, Outcome::Accepted).await;
    stream.answer(next, Outcome::Accepted).await;
    assert!(matches!(stream.accept_until_end().await, TaskEnd::Committed(_)));
    world.has_all_rows();
}

#[tokio::test]
async fn tasks_that_the_leader_has_given_up_are_dropped() {
    let hangs = FakeSource { hang_before: Some(500), ..FakeSource::default() };
    let world = World::new(hangs);
    let mut leader = FakeLeader::start().await;
    let node = world.start(&[&leader]);
    let mut stream = leader.welcome(1, false).await;
    stream.assign(&world.assign).await;
    let open = accept_until_intent(&mut stream, 1).await;
    stream.answer(open, Outcome::Accepted).await;
    drop(stream);
    let _stream = leader.welcome(1, false).await;
    // It would not stop by itself for ten seconds.
    world.stop.cancel();
    let leaving = tokio::time::timeout(std::time::Duration::from_secs(5), node).await;
    leaving.expect("no task is left").expect("it does not panic").expect("it leaves");
}

#[tokio::test]
async fn a_fenced_task_publishes_nothing() {
    let world = World::new(FakeSource::default());
    let mut leader = FakeLeader::start().await;
    let _node = world.start(&[&leader]);
    let mut stream = leader.welcome(1, false).await;
    for (attempt, outcome) in
        [(1, Outcome::Fenced), (2, Outcome::Refused), (3, Outcome::Unavailable)]
    {
        stream.assign(&world.attempt(attempt, 1)).await;
        let open = accept_until_intent(&mut stream, 1).await;
        stream.answer(open, outcome).await;
        let reason = "the leader's reason".to_owned();
        let expected = match outcome {
            Outcome::Fenced => TaskFailure::Fenced(reason),
            Outcome::Refused => TaskFailure::Refused(reason),
            _ => TaskFailure::Unavailable(reason),
        };
        assert_eq!(failure(stream.accept_until_end().await), expected);
    }
    assert!(world.sink.ids().is_empty());
}

#[tokio::test]
async fn assignments_that_cannot_be_carried_out_end_with_a_reason() {
    let world = World::new(FakeSource::default());
    let mut leader = FakeLeader::start().await;
    let _node = world.start(&[&leader]);
    let mut stream = leader.welcome(1, false).await;
    let mut attempt = 0;
    let mut text = async |change: &dyn Fn(&mut Assign)| {
        attempt += 1;
        let mut assign = world.attempt(attempt, 1);
        change(&mut assign);
        stream.assign(&assign).await;
        match failure(stream.accept_until_end().await) {
            TaskFailure::State { attempt, path, message } => format!("{attempt} {path}: {message}"),
            TaskFailure::Operator { message, .. } => message,
            other => panic!("{other:?}"),
        }
    };
    let missing = text(&|assign| assign.graph_hash = "0a".to_owned()).await;
    assert!(missing.contains("plan/0a.json: No such file or directory"), "{missing}");
    assert!(missing.contains("executors need the same `--storage`"), "{missing}");
    let outside = text(&|assign| assign.run_folder = "../other".to_owned()).await;
    assert!(outside.contains("`../other` is no folder of the storage"), "{outside}");
    let start = text(&|assign| assign.start = b"{".to_vec()).await;
    assert!(start.contains("cannot be understood (its start: "), "{start}");
    let stage = text(&|assign| assign.task.as_mut().expect("a task").stage = 9).await;
    assert!(stage.contains("it has no stage 9"), "{stage}");
    let storage = world.folder.path().join("storage");
    let graph = storage.join(RUN_FOLDER).join(RunFolder::graph_file(&world.assign.graph_hash));
    std::fs::write(graph, "{}").expect("written");
    let damaged = text(&|assign| assign.base_dir = "/pipelines/.".to_owned()).await;
    assert!(damaged.contains("its content does not fit its name"), "{damaged}");
}

#[tokio::test]
async fn the_leader_is_found_through_any_coordinator() {
    let world = World::new(FakeSource::default());
    let mut leader = FakeLeader::start().await;
    let follower = FakeLeader::pointing_at(&leader).await;
    let _node = world.start(&[&follower]);
    let mut stream = leader.welcome(3, false).await;
    stream.heartbeat(false).await;
    drop(stream);
    leader.welcome(3, true).await;
}

#[tokio::test]
async fn a_leader_that_has_been_replaced_is_left_alone() {
    let world = World::new(FakeSource::default());
    let (mut old, mut new) = (FakeLeader::start().await, FakeLeader::start().await);
    let _node = world.start(&[&new, &old]);
    let mut stream = new.welcome(2, false).await;
    stream.assign(&world.attempt(1, 2)).await;
    let open = accept_until_intent(&mut stream, 1).await;
    drop(stream);
    // The new one is busy for a moment; the old one does not know yet.
    drop(new.accept().await);
    old.welcome(1, false).await;
    let mut stream = new.welcome(2, true).await;
    assert_eq!(stream.report().await.number, open);
}

#[tokio::test]
async fn a_stopped_task_ends_at_a_commit() {
    let world = World::new(FakeSource::default());
    let mut leader = FakeLeader::start().await;
    let _node = world.start(&[&leader]);
    let mut stream = leader.welcome(1, false).await;
    stream.assign(&world.assign).await;
    let open = accept_until_intent(&mut stream, 1).await;
    stream.stop(world.task()).await;
    stream.answer(open, Outcome::Accepted).await;
    assert_eq!(stream.accept_until_end().await, TaskEnd::Stopped);
    assert_eq!(world.sink.ids(), (0..300).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_process_that_leaves_commits_what_it_has() {
    let world = World::new(FakeSource::default());
    let mut leader = FakeLeader::start().await;
    let node = world.start(&[&leader]);
    let mut stream = leader.welcome(1, false).await;
    stream.assign(&world.assign).await;
    let open = accept_until_intent(&mut stream, 1).await;
    world.stop.cancel();
    stream.heartbeat(true).await;
    stream.answer(open, Outcome::Accepted).await;
    let end = loop {
        let report = stream.report().await;
        assert!(!node.is_finished());
        stream.answer(report.number, Outcome::Accepted).await;
        if let Some(end) = end_of(&report) {
            break end;
        }
    };
    assert_eq!(end, TaskEnd::Stopped);
    soon(node).await.expect("it does not panic").expect("it leaves in good order");
    assert_eq!(world.sink.ids(), (0..300).collect::<Vec<i64>>());
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_the_start() {
    let world = World::new(FakeSource::default());
    let mut leader = FakeLeader::start().await;
    let _node = world.start(&[&leader]);
    leader.welcome(1, false).await;
    let second = soon(world.start(&[&leader])).await.expect("it does not panic");
    let message = second.expect_err("the folder is in use").to_string();
    assert!(
        message.starts_with("another executor uses ") && message.contains("--dir"),
        "{message}"
    );
    let none = soon(world.start(&[])).await.expect("it does not panic");
    assert!(matches!(none, Err(NodeError::NoCoordinators)), "{none:?}");
}

//! What a leader does about runs, without executors: sessions plan, and then wait for places.

mod callers;
mod giving_up;
mod replays;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use weir_connectors::{ConnectorContext, Redactor, Secrets};
use weir_executor::storage::Storage;
use weir_ledger::{
    CleanUpDone, Command, FinishRun, MOST_QUEUED, PlanRun, RunFacts, RunId, RunOutcome, RunState,
    StartRun,
};
use weir_proto::internal::Hello;
use weir_proto::internal::to_executor::Message;
use weir_proto::v1::StatusRequest;
use weir_proto::v1::cluster_server::Cluster as _;
use weir_spec::{OnOverlap, PipelineSpec};

use super::cluster_service::ClusterService;
use super::ended_runs::KeptRuns;
use super::leading::{Leading, Outcome, Settings, Submitted, unless_it_panics};
use super::node::Node;
use super::requests::Request;
use super::serve::{ServeError, lead_when_elected};
use super::systems::SystemsMaker;
use crate::frozen::write_frozen;
use crate::pipeline_files::PipelineFiles;
use crate::raft::RaftMember;
use crate::raft::tests::Cluster;
use crate::{EngineError, Frozen, RunRequest};

struct Place {
    folder: TempDir,
    cluster: Cluster,
}

impl Place {
    async fn new() -> Self {
        Self::with(1).await
    }

    async fn with(members: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("in.csv"), "id\n1\n2\n").expect("room");
        let cluster = Cluster::start(members).await;
        cluster.leader().await;
        Self { folder, cluster }
    }

    fn member(&self) -> &Arc<RaftMember> {
        &self.cluster.running[&1].member
    }

    fn storage(&self) -> PathBuf {
        self.folder.path().join("storage")
    }

    fn settings(&self) -> Settings {
        let redactor = Redactor::default();
        redactor.register("canary");
        Settings {
            storage: Storage::folder(self.storage()),
            context: ConnectorContext::new(self.folder.path(), Secrets::default(), redactor),
            memory_bytes: 64 << 20,
            systems: SystemsMaker::registry(),
            kept_runs: KeptRuns::default(),
        }
    }

    async fn leading(&self) -> Arc<Leading> {
        let leading = Leading::begin(self.member(), self.settings(), Duration::from_secs(3)).await;
        Arc::new(leading.expect("it leads"))
    }

    async fn submit(&self, leading: &Arc<Leading>, pipeline: &str, request: &str) -> RunId {
        let request = RunRequest { request_id: Some(request.to_owned()), ..RunRequest::default() };
        let base_dir = self.folder.path().to_owned();
        let submitted = leading.submit(&spec(pipeline), "", base_dir, request).await;
        submitted.expect("it can be submitted").run
    }

    /// A run that is in the ledger and has no session; its folder is written by [`Place::freeze`].
    async fn start_run(&self, leading: &Leading, pipeline: &str) -> RunId {
        self.start_run_at(leading, pipeline, Utc::now()).await
    }

    async fn start_run_at(&self, leading: &Leading, pipeline: &str, at: DateTime<Utc>) -> RunId {
        let run = RunId(format!("{pipeline}-run"));
        let start = StartRun {
            epoch: leading.epoch,
            run: run.clone(),
            pipeline: spec(pipeline).pipeline,
            spec_hash: "spec".to_owned(),
            params: Default::default(),
            window: None,
            version: None,
            request_id: None,
            backfill: None,
            replay_of: None,
            at,
        };
        leading.append(Command::StartRun(start)).await.expect("the ledger is there");
        run
    }

    async fn freeze(&self, run: &RunId, pipeline: &str) {
        let spec = spec(pipeline);
        let files = PipelineFiles::of(&Storage::folder(self.storage()), &spec.pipeline);
        let frozen = Frozen {
            run: run.0.clone(),
            pipeline: spec.pipeline.to_string(),
            spec,
            spec_text: String::new(),
            base_dir: self.folder.path().to_owned(),
            request: RunRequest::default(),
        };
        write_frozen(&files, &frozen).await.expect("room");
    }
}

/// A coordinator that leads as soon as it may, and what comes of that.
fn serving(place: &Place, id: u64) -> (Arc<Node>, tokio::task::JoinHandle<Result<(), ServeError>>) {
    let node = Arc::new(Node::new(id, Arc::clone(&place.cluster.running[&id].member)));
    let (at, settings) = (Arc::clone(&node), place.settings());
    let serving =
        tokio::spawn(
            async move { lead_when_elected(&at, settings, &CancellationToken::new()).await },
        );
    (node, serving)
}

pub(super) async fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..1_500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain for {what}");
}

fn spec(pipeline: &str) -> PipelineSpec {
    let text = format!(
        "pipeline: {pipeline}\nsources: {{ a: {{ type: csv, path: in.csv }} }}\n\
         sinks: {{ s: {{ input: a, type: csv, path: out-{pipeline} }} }}\n"
    );
    weir_spec::parse("p.yaml", &text).expect("a good file").spec
}

async fn take_up(leading: &Arc<Leading>) {
    leading.take_up(&mut BTreeSet::new()).await.expect("the ledger is there");
}

async fn facts(leading: &Leading, run: &RunId) -> RunFacts {
    leading.with_ledger(|ledger| ledger.run(run).cloned()).await.expect("a known run")
}

async fn until(leading: &Leading, run: &RunId, is_so: impl Fn(&RunFacts) -> bool) -> RunFacts {
    for _ in 0..1_500 {
        let facts = facts(leading, run).await;
        if is_so(&facts) {
            return facts;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain: {:?}", facts(leading, run).await);
}

async fn planned(leading: &Leading, run: &RunId) -> RunFacts {
    until(leading, run, |facts| !facts.prepared.is_empty()).await
}

async fn failed(leading: &Leading, run: &RunId) -> String {
    let facts = until(leading, run, |facts| facts.state != RunState::Running).await;
    match facts.state {
        RunState::Failed { error, .. } => error,
        state => panic!("not failed: {state:?}"),
    }
}

#[tokio::test]
async fn a_run_whose_plan_cannot_be_read_fails_and_the_others_go_on() {
    let place = Place::new().await;
    let first = place.leading().await;
    let broken = place.submit(&first, "broken", "1").await;
    let sound = place.submit(&first, "sound", "2").await;
    let hash = planned(&first, &broken).await.graph_hash.expect("it is planned");
    planned(&first, &sound).await;
    first.end();
    let run = place.storage().join("broken/runs").join(&broken.0);
    std::fs::write(run.join(format!("plan/{hash}.json")), "no plan").expect("room");

    let second = place.leading().await;
    take_up(&second).await;
    let error = failed(&second, &broken).await;
    assert!(error.contains("failed to read") && error.contains(&hash), "{error}");
    assert_eq!(until(&second, &sound, |facts| facts.sessions == 2).await.state, RunState::Running);
    assert!(second.watch(&sound).is_some(), "somebody works on it");
    assert!(!second.broken.is_cancelled(), "one run is not the leadership");
}

#[tokio::test]
async fn a_run_that_another_version_has_planned_fails_with_what_can_be_done() {
    let place = Place::new().await;
    let first = place.leading().await;
    let run = place.start_run(&first, "old").await;
    place.freeze(&run, "old").await;
    let plan = PlanRun {
        epoch: first.epoch,
        run: run.clone(),
        graph_hash: "hash".to_owned(),
        engine_version: "weir 0.0 canary".to_owned(),
        stages: Vec::new(),
    };
    first.append(Command::PlanRun(plan)).await.expect("the ledger is there");
    take_up(&first).await;
    let error = failed(&first, &run).await;
    assert!(error.contains("was planned by weir 0.0 ") && !error.contains("canary"), "{error}");
    assert!(!first.broken.is_cancelled());
}

#[tokio::test]
async fn a_run_that_nobody_works_on_is_taken_up_once_its_folder_can_be_read() {
    let place = Place::new().await;
    let leading = place.leading().await;
    // Its client has got no answer, and nothing has begun: the outcome of the append was not known.
    let run = place.start_run(&leading, "orphan").await;
    take_up(&leading).await;
    assert!(leading.watch(&run).is_none());
    assert_eq!(facts(&leading, &run).await.state, RunState::Running);
    place.freeze(&run, "orphan").await;
    take_up(&leading).await;
    assert!(leading.watch(&run).is_some());
    planned(&leading, &run).await;
    take_up(&leading).await;
    assert_eq!(facts(&leading, &run).await.sessions, 2, "it is at work");
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_ends_the_leadership() {
    let place = Place::new().await;
    let first = place.leading().await;
    let run = place.start_run(&first, "orphan").await;
    // Deposed and elected again, and it has not noticed.
    let second = place.leading().await;
    let refused = first.cancel(&run.0, "").await;
    assert!(matches!(refused, Err(EngineError::Ledger { .. })), "{refused:?}");
    assert!(first.broken.is_cancelled() && !second.broken.is_cancelled());

    place.member().shut_down().await;
    let base_dir = place.folder.path().to_owned();
    let refused = second.submit(&spec("other"), "", base_dir, RunRequest::default()).await;
    assert!(matches!(refused, Err(EngineError::Ledger { .. })), "{refused:?}");
    assert!(second.broken.is_cancelled(), "it may be in the ledger: the next leader looks");
}

#[tokio::test]
async fn a_panic_is_a_failure_of_the_run() {
    let ended = unless_it_panics(async { panic!("a defect") }).await;
    assert!(matches!(ended, Err(EngineError::RunFailed { .. })), "{ended:?}");
}

#[tokio::test]
async fn a_cancelled_run_has_failed_when_that_is_answered() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let run = place.submit(&leading, "p", "1").await;
    planned(&leading, &run).await;
    leading.cancel(&run.0, "").await.expect("it goes on");
    assert_eq!(failed(&leading, &run).await, "cancelled");
    let refused = leading.cancel(&run.0, "").await;
    assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");

    // Nobody has worked on it.
    let run = place.start_run(&leading, "orphan").await;
    leading.cancel(&run.0, "").await.expect("it goes on");
    assert_eq!(failed(&leading, &run).await, "cancelled");
    take_up(&leading).await;
    assert!(leading.watch(&run).is_none());
}

#[tokio::test]
async fn a_cancel_is_not_answered_as_done_when_the_leadership_ends_before_the_run() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let run = place.submit(&leading, "p", "1").await;
    planned(&leading, &run).await;
    let cancelling = leading.cancel(&run.0, "");
    tokio::pin!(cancelling);
    // As far as the wait for the session, which does not get its turn.
    assert!(futures::poll!(&mut cancelling).is_pending());
    leading.end();
    let answer = cancelling.await;
    assert!(matches!(answer, Err(EngineError::Ledger { .. })), "{answer:?}");
    assert_eq!(facts(&leading, &run).await.state, RunState::Running);
}

#[tokio::test]
async fn a_cancelled_run_ends_also_when_the_name_of_the_cancel_is_used_for_something_else_meanwhile()
 {
    let place = Place::new().await;
    let leading = place.leading().await;
    let run = place.submit(&leading, "p", "1").await;
    planned(&leading, &run).await;
    let cancelling = leading.cancel(&run.0, "name");
    tokio::pin!(cancelling);
    // As far as the wait for the session, which does not get its turn.
    assert!(futures::poll!(&mut cancelling).is_pending());
    let other = Request::new("name", "Pipelines/Delete", "other");
    leading.note(other).await.expect("the ledger is there");
    let refused = cancelling.await;
    assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
    assert_eq!(failed(&leading, &run).await, "cancelled");
}

#[tokio::test]
async fn a_cancel_waits_for_what_is_beginning() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let run = place.start_run(&leading, "p").await;
    place.freeze(&run, "p").await;
    let beginning = leading.beginning.lock().await;
    let cancelling = tokio::spawn({
        let (leading, run) = (Arc::clone(&leading), run.clone());
        async move { leading.cancel(&run.0, "").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(facts(&leading, &run).await.state, RunState::Running);
    let files = leading.files(&facts(&leading, &run).await);
    let frozen = crate::frozen::read_frozen(&files, &run).await;
    leading.start(run.clone(), None, frozen.expect("it is there"));
    drop(beginning);
    cancelling.await.expect("no panic").expect("it goes on");
    assert_eq!(failed(&leading, &run).await, "cancelled");
    assert!(leading.watch(&run).is_none(), "no session is left");
}

#[tokio::test]
async fn a_request_means_the_run_that_it_has_started_or_queued_for_ever() {
    let place = Place::new().await;
    let first = place.leading().await;
    let run = place.submit(&first, "p", "started").await;
    planned(&first, &run).await;
    let waiting = place.submit(&first, "p", "queued").await;
    assert_ne!(waiting, run);
    first.end();
    let second = place.leading().await;
    // Its answers were lost, and the runs are over: they had committed nothing.
    take_up(&second).await;
    second.cancel(&run.0, "").await.expect("it goes on");
    second.cancel(&waiting.0, "").await.expect("it waits");
    assert_eq!(failed(&second, &waiting).await, "cancelled");
    for (request, run) in [("started", &run), ("queued", &waiting)] {
        assert_eq!(place.submit(&second, "p", request).await, *run, "{request}");
    }
    let another = place.submit(&second, "p", "another").await;
    assert!(another != run && another != waiting);
}

#[tokio::test]
async fn a_cancel_or_retry_that_comes_again_changes_nothing_more_whoever_leads() {
    let place = Place::new().await;
    let first = place.leading().await;
    let run = place.submit(&first, "p", "submit").await;
    planned(&first, &run).await;
    first.cancel(&run.0, "cancel").await.expect("it goes on");
    assert_eq!(failed(&first, &run).await, "cancelled");
    first.retry(&run.0, "retry").await.expect("it has failed");
    first.cancel(&run.0, "cancel").await.expect("it was answered before");
    assert_eq!(facts(&first, &run).await.state, RunState::Running);
    first.end();

    let second = place.leading().await;
    take_up(&second).await;
    second.cancel(&run.0, "cancel").await.expect("it was answered before");
    assert_eq!(facts(&second, &run).await.state, RunState::Running);
    second.cancel(&run.0, "another").await.expect("it goes on");
    second.retry(&run.0, "retry").await.expect("it was answered before");
    assert_eq!(failed(&second, &run).await, "cancelled");
    // A name is for one request.
    for refused in [
        second.retry(&run.0, "cancel").await.map(drop),
        second.retry(&run.0, "submit").await.map(drop),
        second.cancel(&run.0, "retry").await.map(drop),
    ] {
        assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
    }
    let request = RunRequest { request_id: Some("submit".to_owned()), ..RunRequest::default() };
    let base_dir = place.folder.path().to_owned();
    let refused = second.submit(&spec("other"), "", base_dir, request).await;
    assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
    assert_eq!(place.submit(&second, "p", "submit").await, run);
}

async fn take_turns(leading: &Arc<Leading>) {
    leading.take_turns().await.expect("the ledger is there");
}

async fn is_queued(leading: &Leading, run: &RunId) -> bool {
    facts(leading, run).await.state == RunState::Queued
}

#[tokio::test]
async fn a_second_run_waits_until_the_first_has_ended_also_under_another_leader() {
    let place = Place::new().await;
    let first = place.leading().await;
    let run = place.submit(&first, "p", "1").await;
    planned(&first, &run).await;
    let waiting = [place.submit(&first, "p", "2").await, place.submit(&first, "p", "3").await];
    take_turns(&first).await;
    assert!(is_queued(&first, &waiting[0]).await && is_queued(&first, &waiting[1]).await);
    let refused = first.retry(&waiting[0].0, "").await;
    assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
    first.end();

    let second = place.leading().await;
    take_up(&second).await;
    take_turns(&second).await;
    assert!(is_queued(&second, &waiting[0]).await, "the first one goes on");
    second.cancel(&run.0, "").await.expect("it goes on");
    take_turns(&second).await;
    planned(&second, &waiting[0]).await;
    assert!(is_queued(&second, &waiting[1]).await, "one at a time");
    second.cancel(&waiting[0].0, "").await.expect("it goes on");
    take_turns(&second).await;
    planned(&second, &waiting[1]).await;
}

#[tokio::test]
async fn a_run_that_cannot_begin_has_failed_and_the_next_one_begins() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let run = place.submit(&leading, "p", "1").await;
    planned(&leading, &run).await;
    let broken = place.submit(&leading, "p", "2").await;
    let sound = place.submit(&leading, "p", "3").await;
    let folder = place.storage().join("p/runs").join(&broken.0);
    std::fs::write(folder.join("spec.json"), "no spec").expect("room");
    leading.cancel(&run.0, "").await.expect("it goes on");
    take_turns(&leading).await;
    let error = failed(&leading, &broken).await;
    assert!(error.contains("failed to read"), "{error}");
    take_turns(&leading).await;
    planned(&leading, &sound).await;
}

#[tokio::test]
async fn a_run_for_which_a_queue_has_no_room_leaves_no_folder() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let run = place.submit(&leading, "p", "first").await;
    let folders =
        || std::fs::read_dir(place.storage().join("p/runs")).expect("it is there").count();
    for number in 0..MOST_QUEUED {
        let queued = place.submit(&leading, "p", &number.to_string()).await;
        assert_ne!(queued, run);
    }
    assert_eq!(folders(), MOST_QUEUED + 1);
    let base_dir = place.folder.path().to_owned();
    let refused = leading.submit(&spec("p"), "", base_dir, RunRequest::default()).await;
    assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
    assert_eq!(folders(), MOST_QUEUED + 1);
}

async fn submit_with(
    place: &Place,
    leading: &Arc<Leading>,
    on_overlap: OnOverlap,
    request: &str,
) -> Submitted {
    let mut spec = spec("p");
    spec.concurrency.on_overlap = on_overlap;
    let request = RunRequest { request_id: Some(request.to_owned()), ..RunRequest::default() };
    let submitted = leading.submit(&spec, "", place.folder.path().to_owned(), request).await;
    submitted.expect("it can be submitted")
}

#[tokio::test]
async fn a_second_run_is_skipped_where_the_pipeline_says_so() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let run = submit_with(&place, &leading, OnOverlap::Skip, "1").await;
    assert_eq!((run.is_new, &run.outcome), (true, &Outcome::Started));
    let skipped = submit_with(&place, &leading, OnOverlap::Skip, "2").await;
    let outcome = Outcome::Skipped { beside: run.run.clone() };
    assert_eq!((skipped.is_new, &skipped.outcome), (true, &outcome));
    let state = facts(&leading, &skipped.run).await.state;
    assert!(matches!(state, RunState::Skipped { .. }), "{state:?}");
    for refused in [
        leading.retry(&skipped.run.0, "").await.map(drop),
        leading.cancel(&skipped.run.0, "").await.map(drop),
        leading.audit(&skipped.run.0).await.map(drop),
    ] {
        assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
    }
    leading.cancel(&run.run.0, "").await.expect("it goes on");
    // The request was answered; another one is free to begin.
    let again = submit_with(&place, &leading, OnOverlap::Skip, "2").await;
    assert_eq!(again, Submitted { is_new: false, ..skipped });
    let next = submit_with(&place, &leading, OnOverlap::Skip, "3").await;
    assert_eq!(next.outcome, Outcome::Started);
}

#[tokio::test]
async fn a_second_run_stops_the_first_where_the_pipeline_says_so() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let first = submit_with(&place, &leading, OnOverlap::CancelRunning, "1").await.run;
    planned(&leading, &first).await;
    let waiting = submit_with(&place, &leading, OnOverlap::Queue, "2").await.run;
    let last = submit_with(&place, &leading, OnOverlap::CancelRunning, "3").await;
    assert_eq!(last.outcome, Outcome::Queued { beside: first.clone() });
    take_turns(&leading).await;
    for run in [&first, &waiting] {
        let error = failed(&leading, run).await;
        assert!(error.contains(&format!("run {} was submitted", last.run)), "{error}");
    }
    leading.session_gone(&first).await;
    take_turns(&leading).await;
    planned(&leading, &last.run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_majority_leads_no_longer() {
    let mut place = Place::with(3).await;
    let leader = place.cluster.leader().await;
    let (node, serving) = serving(&place, leader);
    wait_until("a leadership", || node.is_leading().is_some()).await;
    let leading = node.is_leading().expect("waited for");
    for other in (1..=3).filter(|id| *id != leader) {
        place.cluster.stop(other).await;
    }
    wait_until("its end", || node.is_leading().is_none()).await;
    let refused = leading.pool.join(Hello { executor: "a".to_owned(), ..Hello::default() });
    assert!(refused.is_err(), "executors look for another one");
    serving.abort();
}

/// Its disk is lost, and it was started as the first time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_has_founded_a_second_ledger_does_not_lead_it() {
    let place = Place::new().await;
    let first = place.leading().await;
    let run = place.submit(&first, "p", "1").await;
    first.end();

    let lost = Place { folder: place.folder, cluster: Cluster::start(1).await };
    lost.cluster.leader().await;
    for _ in 0..2 {
        let begun = Leading::begin(lost.member(), lost.settings(), Duration::from_secs(3)).await;
        let refused = begun.expect_err("the storage is another ledger's");
        assert!(matches!(refused, EngineError::Refused(_)), "{refused:?}");
        assert!(refused.to_string().contains("remove-coordinator"), "{refused}");
        assert_eq!(lost.member().ledger().await.current_epoch(), 0, "nothing is written");
    }
    let (node, serving) = serving(&lost, 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(node.is_leading().is_none() && lost.member().leader() == Some(1));
    serving.abort();

    let place = Place { folder: lost.folder, cluster: place.cluster };
    let second = place.leading().await;
    assert_eq!(facts(&second, &run).await.state, RunState::Running);
}

/// A cluster of an older version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_that_has_begun_leads_without_its_storage_until_that_says_that_it_is_anothers() {
    let place = Place::new().await;
    place.leading().await.end();
    std::fs::remove_dir_all(place.storage()).expect("it was made");
    let (node, serving) = serving(&place, 1);
    wait_until("a leadership", || node.is_leading().is_some()).await;
    std::fs::create_dir_all(place.storage()).expect("room");
    wait_until("the mark", || place.storage().join(".ledger-id").exists()).await;
    assert!(node.is_leading().is_some());
    serving.abort();

    let part = place.folder.path().join("part");
    std::fs::create_dir_all(&part).expect("room");
    std::fs::write(part.join(".ledger-id"), "another\n").expect("room");
    std::fs::remove_dir_all(place.storage()).expect("it is there");
    let leading = place.leading().await;
    let looking = tokio::spawn(Arc::clone(&leading).keep_looking_whose_storage());
    assert!(!leading.broken.is_cancelled());
    std::fs::rename(&part, place.storage()).expect("it is a folder");
    looking.await.expect("no panic");
    assert!(leading.broken.is_cancelled());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_whose_ledger_has_ended_ends() {
    let place = Place::new().await;
    let (node, leads) = serving(&place, 1);
    wait_until("a leadership", || node.is_leading().is_some()).await;
    place.member().shut_down().await;
    let ended = tokio::time::timeout(Duration::from_secs(30), leads).await;
    let ended = ended.expect("it does not go on without a ledger").expect("no panic");
    assert!(matches!(ended, Err(ServeError::Ledger(_))), "{ended:?}");
    // So does one that follows, or knows no leader.
    let (_, follows) = serving(&place, 1);
    let ended = tokio::time::timeout(Duration::from_secs(30), follows).await;
    assert!(matches!(ended, Ok(Ok(Err(ServeError::Ledger(_))))), "{ended:?}");
}

/// Another leader was killed while it removed that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leads_removes_what_others_have_not_come_to() {
    let place = Place::new().await;
    let left = place.storage().join(".to-remove/r-1/0");
    std::fs::create_dir_all(&left).expect("room");
    std::fs::write(left.join("rows.arrow"), "rows").expect("room");
    let (_node, serving) = serving(&place, 1);
    wait_until("room", || !place.storage().join(".to-remove").exists()).await;
    serving.abort();
}

/// `now()` and `run.started_at` of a run are when it starts.
#[tokio::test]
async fn a_run_under_a_clock_that_was_ahead_makes_no_later_run_live_in_the_future() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let ahead = place.start_run_at(&leading, "p", Utc::now() + TimeDelta::days(1)).await;
    leading.finish(&ahead, "no").await.expect("the ledger is there");
    let run = place.submit(&leading, "p", "request").await;
    let (before, facts) = (facts(&leading, &ahead).await, facts(&leading, &run).await);
    assert!(facts.started_at <= Utc::now() && facts.order() > before.order(), "{facts:?}");
}

/// To make it takes a copy of all facts.
#[tokio::test]
async fn only_who_asks_for_the_hash_of_the_facts_gets_it() {
    let place = Place::new().await;
    let (node, _serving) = serving(&place, 1);
    wait_until("it leads", || node.is_leading().is_some()).await;
    let service = ClusterService { node, redactor: Redactor::default() };
    let status = async |with_hash| {
        let request = tonic::Request::new(StatusRequest { with_hash });
        service.status(request).await.expect("it answers").into_inner()
    };
    let (without, with) = (status(false).await, status(true).await);
    assert!(without.state_hash.is_empty(), "{without:?}");
    assert!(without.applied_index > 0 && without.epoch > 0, "{without:?}");
    assert_eq!(with.state_hash.len(), 32);
    assert_eq!(status(true).await.state_hash, with.state_hash);
}

#[tokio::test]
async fn executors_are_told_which_runs_may_go_on() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let goes_on = place.start_run(&leading, "goes-on").await;
    let failed = place.start_run(&leading, "failed").await;
    let over = place.start_run(&leading, "over").await;
    for run in [&failed, &over] {
        leading.finish(run, "no").await.expect("the ledger is there");
    }
    let (epoch, outcome, at) = (leading.epoch, RunOutcome::Abandoned, Utc::now());
    let abandon = Command::FinishRun(FinishRun { epoch, run: over, outcome, at });
    leading.append(abandon).await.expect("it can be given up");
    let hello = Hello { executor: "a".to_owned(), boot_id: "boot".to_owned(), ..Hello::default() };
    let (_, mut messages) = leading.pool.join(hello).expect("it leads");
    leading.tell_runs_in_use().await;
    let mut told = None;
    while let Ok(message) = messages.try_recv() {
        if let Some(Message::RunsInUse(in_use)) = message.expect("no refusal").message {
            told = Some(in_use.run_folders);
        }
    }
    let folders = [("failed", failed), ("goes-on", goes_on)];
    let folders = folders.map(|(pipeline, run)| format!("{pipeline}/runs/{run}"));
    assert_eq!(told.as_deref(), Some(&folders[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_has_left_the_ledger_is_found_and_is_not_taken_up() {
    let place = Place::new().await;
    let settings = Settings { kept_runs: KeptRuns { runs: 1, tasks: 9 }, ..place.settings() };
    let leading = Leading::begin(place.member(), settings, Duration::from_secs(3)).await;
    let leading = Arc::new(leading.expect("it leads"));
    let epoch = leading.epoch;
    let mut runs = Vec::new();
    for pipeline in ["a", "b"] {
        let run = place.start_run(&leading, pipeline).await;
        place.freeze(&run, pipeline).await;
        leading.finish(&run, "no").await.expect("the ledger is there");
        runs.push(run);
    }
    assert_eq!(leading.let_runs_leave().await.expect("readable"), 0, "staging may be left");
    for run in &runs {
        let done = CleanUpDone { epoch, run: run.clone() };
        leading.append(Command::CleanUpDone(done)).await.expect("the ledger is there");
    }
    let before = leading.find("a-run").await.expect("it is there");
    assert_eq!(leading.let_runs_leave().await.expect("there is room"), 1);
    assert_eq!(leading.let_runs_leave().await.expect("there is room"), 0);
    let known = leading.with_ledger(|ledger| ledger.runs.keys().cloned().collect::<Vec<_>>()).await;
    assert_eq!(known, runs[1..]);
    assert_eq!(leading.find("a-run").await.expect("it is in the storage"), before);
    for unknown in ["a-ru", "../a/runs/a-run", "c-run"] {
        let unknown = leading.find(unknown).await;
        assert!(matches!(unknown, Err(EngineError::NotFound(_))), "{unknown:?}");
    }
    let refused = leading.retry("a-run", "").await.expect_err("it is gone").to_string();
    assert!(refused.contains("has left the ledger"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_that_are_too_large_for_the_ledger_are_refused() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let text = "pipeline: p\nparams: { text: { type: string } }\n\
                sources: { a: { type: csv, path: in.csv } }\n\
                sinks: { s: { input: a, type: csv, path: out } }\n";
    let spec = weir_spec::parse("p.yaml", text).expect("a good file").spec;
    let submit = async |bytes: usize| {
        let params = [("text".to_owned(), "x".repeat(bytes).into())].into();
        let request = RunRequest { params, ..RunRequest::default() };
        leading.submit(&spec, "", place.folder.path().to_owned(), request).await
    };
    let refused = submit(1 << 20).await;
    assert!(matches!(refused, Err(EngineError::Invalid(_))), "{refused:?}");
    assert_eq!(leading.with_ledger(|ledger| ledger.runs.len()).await, 0);
    submit(1_000).await.expect("it is not too large");
}

//! Members over loopback, with disks of their own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::DateTime;
use openraft::raft::AppendEntriesRequest;
use openraft::storage::{
    RaftLogReader as _, RaftLogStorageExt as _, RaftSnapshotBuilder as _, RaftStateMachine as _,
    Snapshot,
};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{ChangeMembers, CommittedLeaderId, Entry, EntryPayload, LogId, StorageError, Vote};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use weir_ledger::{Command, NewEpoch, Response, StartRun};
use weir_spec::PipelineName;

use super::log_store::LogStore;
use super::machine::LedgerMachine;
use super::*;
use crate::raft::member::RaftMember;

fn begins_at(host: String) -> Command {
    Command::NewEpoch(NewEpoch {
        ledger_id: "ledger".to_owned(),
        boot_id: "boot".to_owned(),
        pid: 1,
        host,
        at: DateTime::UNIX_EPOCH,
    })
}

struct Stores;

impl StoreBuilder<Types, LogStore, LedgerMachine, TempDir> for Stores {
    async fn build(&self) -> Result<(TempDir, LogStore, LedgerMachine), StorageError<MemberId>> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (log, _) = LogStore::open(&folder.path().join("log.redb")).expect("the log opens");
        let machine = LedgerMachine::open(folder.path()).expect("the folder is empty");
        Ok((folder, log, machine))
    }
}

/// What openraft expects of every store.
#[test]
fn the_stores_pass_the_suite_of_openraft() {
    Suite::test_all(Stores).expect("every test passes");
}

/// One that has been silent for long, on a slow network.
#[tokio::test]
async fn a_message_to_a_member_has_as_many_entries_as_its_bytes_allow() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut log, _) = LogStore::open(&folder.path().join("log.redb")).expect("the log opens");
    let entry = |index, bytes| {
        let log_id = LogId::new(CommittedLeaderId::new(1, 1), index);
        let payload = match bytes {
            0 => EntryPayload::Blank,
            _ => EntryPayload::Normal(Commands::new(vec![begins_at("x".repeat(bytes))])),
        };
        Entry::<Types> { log_id, payload }
    };
    let sizes = [0, 900 << 10, 900 << 10, 900 << 10, 5 << 20, 0, 0];
    let entries: Vec<_> = (1..).zip(sizes).map(|(index, bytes)| entry(index, bytes)).collect();
    log.blocking_append(entries).await.expect("room");
    let mut messages = Vec::new();
    let mut next = 1;
    while next <= 7 {
        let read = log.limited_get_log_entries(next, 8).await.expect("they can be read");
        let indexes: Vec<u64> = read.iter().map(|entry| entry.log_id.index).collect();
        assert_eq!(indexes, (next..next + read.len() as u64).collect::<Vec<_>>());
        next += read.len() as u64;
        messages.push(read.len());
    }
    assert_eq!(messages, [3, 1, 1, 2]);
    assert_eq!(log.try_get_log_entries(1..8).await.expect("they can be read").len(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_what_its_description_says_while_the_next_one_is_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let machine = LedgerMachine::open(folder.path()).expect("the folder is empty");
    let (mut builder, mut reader) = (machine.clone(), machine);
    let building = tokio::spawn(async move {
        for index in 1..=100 {
            let log_id = LogId::new(CommittedLeaderId::new(1, 1), index);
            let entry = Entry::<Types> { log_id, payload: EntryPayload::Blank };
            builder.apply([entry]).await.expect("it applies");
            builder.build_snapshot().await.expect("it is written");
        }
    });
    while !building.is_finished() {
        let current = reader.get_current_snapshot().await.expect("it can be read");
        let Some(Snapshot { meta, snapshot }) = current else { continue };
        assert_eq!(LedgerMachine::described(&snapshot.into_inner()), meta);
    }
    building.await.expect("all are written");
}

/// Whoever writes the file, a snapshot that was built or one that was received, and whoever stops waiting for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_received_while_others_are_built_is_described_as_what_it_is() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let [mut sender, mut receiver] =
        folders.each_ref().map(|folder| LedgerMachine::open(folder.path()).expect("it is empty"));
    let (mut builder, mut reader) = (receiver.clone(), receiver.clone());
    let entry = |index| {
        let log_id = LogId::new(CommittedLeaderId::new(1, 1), index);
        Entry::<Types> { log_id, payload: EntryPayload::Blank }
    };
    let receiving = tokio::spawn(async move {
        for index in 1..=60 {
            sender.apply([entry(index)]).await.expect("it applies");
            let Snapshot { meta, snapshot } = sender.build_snapshot().await.expect("it is written");
            receiver.install_snapshot(&meta, snapshot).await.expect("it is taken over");
        }
    });
    let building = tokio::spawn(async move {
        for _ in 0..60 {
            builder.build_snapshot().await.expect("it is written");
            tokio::task::yield_now().await;
        }
    });
    let mut newest = None;
    while !receiving.is_finished() || !building.is_finished() {
        let current = reader.get_current_snapshot().await.expect("it can be read");
        let Some(Snapshot { meta, snapshot }) = current else { continue };
        assert_eq!(LedgerMachine::described(&snapshot.into_inner()), meta);
        assert!(meta.last_log_id >= newest, "{meta:?} follows {newest:?}");
        newest = meta.last_log_id;
    }
    receiving.await.expect("all are taken over");
    building.await.expect("all are written");
}

/// A member with its server.
pub(crate) struct Running {
    pub(crate) member: Arc<RaftMember>,
    server: JoinHandle<()>,
    stop: CancellationToken,
    /// Calls of other members so far.
    calls: Arc<AtomicUsize>,
}

impl Running {
    async fn start(id: MemberId, folder: &Path, address: SocketAddr) -> Self {
        let options = RaftOptions {
            snapshot_every: 50,
            // A busy machine must not change leaders in the middle of a test.
            heartbeat: Duration::from_millis(250),
            lease: Duration::from_millis(1_500),
            ..RaftOptions::new(id, folder.join(id.to_string()))
        };
        let member = RaftMember::start(options).await.expect("the member starts");
        // The port may be busy for a moment after the member that had it.
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let calls = Arc::new(AtomicUsize::default());
        let counted = Arc::clone(&calls);
        let count = move |request: tonic::Request<()>| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(request)
        };
        let service = InterceptedService::new(member.service().into_server(), count);
        let server = tokio::spawn(async move {
            let serving = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming);
            tokio::select! {
                result = serving => result.expect("the server serves"),
                () = stopped => {}
            }
        });
        Self { member: Arc::new(member), server, stop, calls }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.server.await.expect("the server ends");
        self.member.shut_down().await;
    }
}

pub(crate) struct Cluster {
    folder: TempDir,
    addresses: BTreeMap<MemberId, SocketAddr>,
    pub(crate) running: BTreeMap<MemberId, Running>,
}

impl Cluster {
    pub(crate) async fn start(members: u64) -> Self {
        Self::start_reached_at(members, |address| address).await
    }

    /// The members reach each other at other addresses than they listen at.
    async fn start_reached_at(members: u64, reached_at: impl Fn(SocketAddr) -> SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut addresses = BTreeMap::new();
        for id in 1..=members {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            addresses.insert(id, listener.local_addr().expect("it is bound"));
        }
        let mut cluster = Self { folder, addresses, running: BTreeMap::new() };
        for id in 1..=members {
            cluster.resume(id).await;
        }
        let nodes = (cluster.addresses.iter())
            .map(|(id, address)| (*id, Address::at(format!("http://{}", reached_at(*address)))))
            .collect();
        cluster.running[&1].member.initialize(nodes).await.expect("a new cluster");
        cluster
    }

    async fn resume(&mut self, id: MemberId) {
        let member = Running::start(id, self.folder.path(), self.addresses[&id]).await;
        self.running.insert(id, member);
    }

    pub(crate) async fn stop(&mut self, id: MemberId) {
        self.running.remove(&id).expect("it runs").stop().await;
    }

    /// Waits until a running member leads and can append.
    pub(crate) async fn leader(&self) -> MemberId {
        for _ in 0..1_500 {
            for (id, running) in &self.running {
                if running.member.leader() == Some(*id) && running.member.catch_up().await.is_ok() {
                    return *id;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nobody leads after thirty seconds");
    }

    async fn append(&self, command: Command) -> Response {
        let leader = self.leader().await;
        let appended = self.running[&leader].member.append(vec![command]).await;
        appended.expect("the leader appends").remove(0)
    }

    async fn begin_epoch(&self) -> u64 {
        self.append(Command::NewEpoch(NewEpoch {
            ledger_id: "ledger".into(),
            boot_id: "boot".into(),
            pid: 1,
            host: "here".into(),
            at: DateTime::UNIX_EPOCH,
        }))
        .await;
        let leader = self.leader().await;
        self.running[&leader].member.ledger().await.current_epoch()
    }

    /// Waits until all running members have applied the same, and compares their ledgers.
    async fn assert_equal(&self) {
        let leader = self.leader().await;
        let index = self.running[&leader].member.applied_index();
        let ledger = self.running[&leader].member.ledger().await.clone();
        for (id, running) in &self.running {
            for _ in 0..500 {
                if running.member.applied_index() >= index {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(running.member.applied_index() >= index, "member {id} lags behind");
            assert!(*running.member.ledger().await == ledger, "member {id} has other facts");
        }
    }
}

fn start_run(epoch: u64, name: &str) -> Command {
    Command::StartRun(StartRun {
        epoch,
        run: weir_ledger::RunId(name.to_owned()),
        pipeline: PipelineName(name.to_owned()),
        spec_hash: "spec".into(),
        params: BTreeMap::new(),
        window: None,
        version: None,
        request_id: None,
        backfill: None,
        replay_of: None,
        at: DateTime::UNIX_EPOCH,
    })
}

const CHANGED: Response = Response::Accepted { changed: true };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_member_leads_when_the_leader_is_gone_and_nothing_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let epoch = cluster.begin_epoch().await;
    assert_eq!(cluster.append(start_run(epoch, "a")).await, CHANGED);
    let first = cluster.leader().await;
    cluster.stop(first).await;

    let second = cluster.leader().await;
    assert_ne!(first, second);
    let next_epoch = cluster.begin_epoch().await;
    assert!(next_epoch > epoch, "an epoch is the index of its entry");
    let late = cluster.append(start_run(epoch, "late")).await;
    assert!(matches!(late, Response::Rejected(_)), "the old leader's epoch is over: {late:?}");
    assert_eq!(cluster.append(start_run(next_epoch, "b")).await, CHANGED);

    cluster.resume(first).await;
    cluster.assert_equal().await;
    let ledger = cluster.running[&first].member.ledger().await.clone();
    assert_eq!(ledger.runs.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_stop_and_start_with_everything_that_was_appended() {
    let mut cluster = Cluster::start(3).await;
    let epoch = cluster.begin_epoch().await;
    for number in 0..120 {
        let response = cluster.append(start_run(epoch, &format!("run{number}"))).await;
        assert_eq!(response, CHANGED, "{number}");
    }
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    for id in 1..=3 {
        cluster.resume(id).await;
    }
    cluster.assert_equal().await;
    let leader = cluster.leader().await;
    let runs = cluster.running[&leader].member.ledger().await.runs.clone();
    let has = |number: &i32| runs.contains_key(&weir_ledger::RunId(format!("run{number}")));
    assert_eq!((0..120).filter(|number| !has(number)).collect::<Vec<_>>(), Vec::<i32>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_appended() {
    let mut cluster = Cluster::start(3).await;
    let epoch = cluster.begin_epoch().await;
    let leader = cluster.leader().await;
    for id in (1..=3).filter(|id| *id != leader) {
        cluster.stop(id).await;
    }
    let member = &cluster.running[&leader].member;
    let appending = member.append(vec![start_run(epoch, "alone")]);
    let appended = tokio::time::timeout(Duration::from_secs(2), appending).await;
    assert!(!matches!(appended, Ok(Ok(_))), "{appended:?}");
    assert!(member.ledger().await.runs.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_disk_is_replaced_by_a_new_one() {
    let mut cluster = Cluster::start(3).await;
    let epoch = cluster.begin_epoch().await;
    for number in 0..120 {
        cluster.append(start_run(epoch, &format!("run{number}"))).await;
    }
    let leader = cluster.leader().await;
    let lost = (1..=3).find(|id| *id != leader).expect("two others");
    cluster.stop(lost).await;
    // What a snapshot holds has left the log: the new member needs the snapshot.
    cluster.running[&leader].member.snapshot().await.expect("it leads");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    cluster.addresses.insert(4, address);
    cluster.resume(4).await;
    let leader = cluster.leader().await;
    let member = &cluster.running[&leader].member;
    member.remove_member(lost).await.expect("two of three agree");
    member.add_member(4, &format!("http://{address}")).await.expect("it follows");
    cluster.assert_equal().await;
    assert_eq!(cluster.running[&4].member.ledger().await.runs.len(), 120);
}

impl Cluster {
    /// A process that waits to be taken in. Its URL.
    async fn start_new(&mut self, id: MemberId) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        self.addresses.insert(id, address);
        self.resume(id).await;
        format!("http://{address}")
    }

    fn member(&self, id: MemberId) -> &RaftMember {
        &self.running[&id].member
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_are_replaced_one_by_one_the_leader_by_itself() {
    let mut cluster = Cluster::start(3).await;
    let mut epoch = cluster.begin_epoch().await;
    for (old, new) in [(1, 4), (2, 5), (3, 6)] {
        let name = format!("before-{new}");
        assert_eq!(cluster.append(start_run(epoch, &name)).await, CHANGED);
        let url = cluster.start_new(new).await;
        let leader = cluster.leader().await;
        assert_eq!(cluster.member(leader).add_member(new, &url).await, Ok(true));
        assert_eq!(cluster.member(leader).add_member(new, &url).await, Ok(false), "it is there");
        assert_eq!(cluster.member(leader).remove_member(old).await, Ok(true));
        if leader == old {
            let mut changes = cluster.member(old).changes();
            while cluster.member(old).leader() == Some(old) {
                changes.changed().await.expect("it steps down, and goes on");
            }
        }
        cluster.stop(old).await;
        let leader = cluster.leader().await;
        assert_eq!(cluster.member(leader).remove_member(old).await, Ok(false), "it is gone");
        epoch = cluster.begin_epoch().await;
    }
    assert_eq!(cluster.append(start_run(epoch, "after")).await, CHANGED);
    cluster.assert_equal().await;
    let leader = cluster.leader().await;
    assert_eq!(cluster.member(leader).members().into_keys().collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(cluster.member(leader).ledger().await.runs.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_an_empty_process_that_answers_is_taken_in() {
    let mut cluster = Cluster::start(1).await;
    cluster.begin_epoch().await;
    let other = Cluster::start(1).await;
    other.begin_epoch().await;
    let member = cluster.member(1);
    let nobody = member.add_member(2, "http://127.0.0.1:9").await;
    assert!(matches!(nobody, Err(ChangeError::Refused(Refusal::NotThere { .. }))), "{nobody:?}");
    let another = format!("http://{}", other.addresses[&1]);
    let another = member.add_member(2, &another).await;
    assert!(matches!(another, Err(ChangeError::Refused(Refusal::NotThere { .. }))), "{another:?}");
    let url = cluster.start_new(2).await;
    let own = BTreeMap::from([(2, Address::at(url.clone()))]);
    cluster.member(2).initialize(own).await.expect("a cluster of its own");
    let used = cluster.member(1).add_member(2, &url).await;
    let refusal = Refusal::NotEmpty { id: 2, url };
    assert_eq!(used, Err(ChangeError::Refused(refusal)));
    assert_eq!(cluster.member(1).members().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_refuses_everything_is_not_sent_to_without_a_pause() {
    let mut cluster = Cluster::start(3).await;
    cluster.begin_epoch().await;
    let leader = cluster.leader().await;
    while cluster.member(leader).members().values().any(|address| address.disk.is_none()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lost = (1..=3).find(|id| *id != leader).expect("two others");
    // The next leader knows it by its refusals only: one that has been unreachable is sent to with pauses anyway.
    for id in 1..=3 {
        cluster.stop(id).await;
    }
    std::fs::remove_dir_all(cluster.folder.path().join(lost.to_string())).expect("it was there");
    cluster.resume(lost).await;
    for id in (1..=3).filter(|id| *id != lost) {
        cluster.resume(id).await;
    }
    let epoch = cluster.begin_epoch().await;
    assert_eq!(cluster.append(start_run(epoch, "a")).await, CHANGED);
    let calls = |cluster: &Cluster| cluster.running[&lost].calls.load(Ordering::Relaxed);
    let before = calls(&cluster);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let within = calls(&cluster) - before;
    assert!((1..40).contains(&within), "{within} calls within two seconds");
}

/// Entries that only it and one other had would be lost by its vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_disk_is_not_listened_to_and_does_not_vote() {
    let mut cluster = Cluster::start(3).await;
    let epoch = cluster.begin_epoch().await;
    let leader = cluster.leader().await;
    let knows_all = |cluster: &Cluster| {
        cluster.member(leader).members().values().all(|address| address.disk.is_some())
    };
    while !knows_all(&cluster) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let others: Vec<MemberId> = (1..=3).filter(|id| *id != leader).collect();
    let (away, lost) = (others[0], others[1]);
    cluster.stop(away).await;
    // Only the leader and the one that will lose its disk have it.
    assert_eq!(cluster.append(start_run(epoch, "precious")).await, CHANGED);
    cluster.stop(lost).await;
    std::fs::remove_dir_all(cluster.folder.path().join(lost.to_string())).expect("it was there");
    cluster.resume(lost).await;
    let lost_state = |states: Vec<MemberState>| {
        states.into_iter().find(|state| state.id == lost).expect("it is a member")
    };
    let state = lost_state(cluster.member(leader).member_states().await.expect("it leads"));
    assert!(!state.answers && state.is_voter, "{state:?}");

    cluster.stop(leader).await;
    cluster.resume(away).await;
    // Far beyond all waits before an election.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(cluster.member(lost).applied_index(), 0);
    let leads = [away, lost].map(|id| cluster.member(id).leader() == Some(id));
    assert_eq!(leads, [false, false], "without the leader's disk the run would be lost");

    cluster.resume(leader).await;
    cluster.leader().await;
    let epoch = cluster.begin_epoch().await;
    assert_eq!(cluster.append(start_run(epoch, "next")).await, CHANGED);
    let url = cluster.start_new(4).await;
    let leader = cluster.leader().await;
    assert_eq!(cluster.member(leader).remove_member(lost).await, Ok(true));
    assert_eq!(cluster.member(leader).add_member(4, &url).await, Ok(true));
    cluster.stop(lost).await;
    cluster.assert_equal().await;
    assert_eq!(cluster.member(4).ledger().await.runs.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_are_told_with_the_index_that_they_are_at() {
    let cluster = Cluster::start(1).await;
    let epoch = cluster.begin_epoch().await;
    let member = Arc::clone(&cluster.running[&1].member);
    let appending = tokio::spawn(async move {
        for number in 0..300 {
            let command = start_run(epoch, &format!("run{number}"));
            member.append(vec![command]).await.expect("it leads");
        }
    });
    let member = &cluster.running[&1].member;
    while !appending.is_finished() {
        let (ledger, index) = member.ledger_at().await;
        assert!(index >= ledger.last_index, "{index} is behind {}", ledger.last_index);
        drop(ledger);
        tokio::task::yield_now().await;
    }
    appending.await.expect("all are appended");
}

/// What it has got is remembered, and nothing new is written that would tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_member_that_has_died_is_not_made_a_voter() {
    let mut cluster = Cluster::start(1).await;
    let epoch = cluster.begin_epoch().await;
    let url = cluster.start_new(2).await;
    let learner = BTreeMap::from([(2, Address::at(url.clone()))]);
    // An earlier request has come as far as this.
    let raft = &cluster.member(1).membership.raft;
    raft.change_membership(ChangeMembers::AddNodes(learner), false).await.expect("it leads");
    let has_all = async |cluster: &Cluster| {
        let states = cluster.member(1).member_states().await.expect("it leads");
        states.iter().all(|state| state.matched_index == states[0].matched_index)
    };
    while !has_all(&cluster).await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.stop(2).await;
    let refused = cluster.member(1).add_member(2, &url).await;
    let silent = Refusal::Silent { id: 2, url: url.clone() };
    assert_eq!(refused, Err(ChangeError::Refused(silent)));
    assert_eq!(cluster.append(start_run(epoch, "a")).await, CHANGED, "one decides alone");

    cluster.resume(2).await;
    // Until the connection to it is made again, it does not answer.
    while cluster.member(1).add_member(2, &url).await != Ok(true) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.assert_equal().await;
}

/// Where connections are taken that bring so many bytes a second to an address.
fn slow_way(to: SocketAddr, bytes_per_second: u64) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("it can be");
    let listener = TcpListener::from_std(listener).expect("a runtime runs");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            tokio::spawn(carry(from, to, bytes_per_second));
        }
    });
    address
}

async fn carry(from: TcpStream, to: SocketAddr, bytes_per_second: u64) {
    let Ok(to) = TcpStream::connect(to).await else { return };
    let ((mut from_it, mut to_it), (mut from_other, mut to_other)) =
        (from.into_split(), to.into_split());
    let there = async {
        let mut piece = vec![0; 16 << 10];
        while let Ok(read @ 1..) = from_it.read(&mut piece).await
            && to_other.write_all(&piece[..read]).await.is_ok()
        {
            let micros = u64::try_from(read).expect("it is small") * 1_000_000 / bytes_per_second;
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
    };
    tokio::select! {
        () = there => {}
        _ = tokio::io::copy(&mut from_other, &mut to_it) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_takes_longer_than_many_heartbeats_arrives_and_nobody_elects_meanwhile() {
    let cluster = Cluster::start_reached_at(3, |address| slow_way(address, 2 << 20)).await;
    let epoch = cluster.begin_epoch().await;
    let leader = cluster.leader().await;
    let member = cluster.member(leader);
    let term = || member.membership.raft.metrics().borrow().current_term;
    let before = term();
    let Command::StartRun(start) = start_run(epoch, "a") else { panic!("it starts a run") };
    let params = BTreeMap::from([("text".to_owned(), "x".repeat(8 << 20).into())]);
    let large = Command::StartRun(StartRun { params, ..start });
    let appending = tokio::time::timeout(Duration::from_secs(40), member.append(vec![large]));
    let answer = appending.await.expect("it has the time that it takes").expect("it leads");
    assert_eq!(answer, [CHANGED]);
    assert_eq!(term(), before, "all have heard the leader");
    cluster.assert_equal().await;
}

/// The member that it was given to has it, and another one that knew less before has been elected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_out_of_the_log_again_may_be_in_the_ledger_all_the_same() {
    let mut cluster = Cluster::start(3).await;
    let epoch = cluster.begin_epoch().await;
    let leader = cluster.leader().await;
    // Nothing else is appended then.
    while cluster.member(leader).members().values().any(|address| address.disk.is_none()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let others: Vec<MemberId> = (1..=3).filter(|id| *id != leader).collect();
    for other in &others {
        cluster.stop(*other).await;
    }
    let member = Arc::clone(&cluster.running[&leader].member);
    let raft = member.membership.raft.clone();
    let last = member.service().elections.last;
    let before = last.get().expect("an epoch has begun");
    let appending = {
        let member = Arc::clone(&member);
        tokio::spawn(async move { member.append(vec![start_run(epoch, "a")]).await })
    };
    while last.get() == Some(before) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let term = raft.metrics().borrow().current_term + 1;
    let log_id = LogId::new(CommittedLeaderId::new(term, others[0]), before.index + 1);
    let request = AppendEntriesRequest::<Types> {
        vote: Vote::new_committed(term, others[0]),
        prev_log_id: Some(before),
        entries: vec![Entry { log_id, payload: EntryPayload::Blank }],
        leader_commit: Some(before),
    };
    raft.append_entries(request).await.expect("it follows");
    let answer = appending.await.expect("no panic");
    assert!(matches!(answer, Err(AppendError::Unknown(_))), "{answer:?}");
    // Who follows takes nothing.
    let answer = member.append(vec![start_run(epoch, "b")]).await;
    assert!(matches!(answer, Err(AppendError::NotLeader { .. })), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_is_a_cluster() {
    let cluster = Cluster::start(1).await;
    let epoch = cluster.begin_epoch().await;
    assert_eq!(cluster.append(start_run(epoch, "a")).await, CHANGED);
    let again = cluster.append(start_run(epoch, "a")).await;
    assert!(matches!(again, Response::Rejected(_)), "{again:?}");
}

//! One member of the cluster: appends while it leads, follows otherwise.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use openraft::{Config, Raft, ServerState, SnapshotPolicy};
use tokio::sync::{RwLock, RwLockReadGuard, watch};
use tokio_util::task::AbortOnDropHandle;
use weir_executor::tls::TlsFiles;
use weir_ledger::{Command, Ledger, Response};

use super::election::Elections;
use super::log_store::LogStore;
use super::machine::LedgerMachine;
use super::membership::{ChangeError, MemberState, Membership};
use super::network::{Network, Way};
use super::{Address, Commands, MemberId, RaftService, Types};

/// Entries in one message, if its bytes allow so many: all of them must be on the other's disk within a heartbeat, or
/// they are sent again.
const MAX_PAYLOAD_ENTRIES: u64 = 8;

/// What a member is started with.
#[derive(Clone, Debug)]
pub struct RaftOptions {
    pub member: MemberId,
    /// Its log and its snapshots.
    pub folder: PathBuf,
    /// Entries between two snapshots; what is in a snapshot leaves the log.
    pub snapshot_every: u64,
    /// Also the longest that a member may take to write what it is sent: shorter, and a busy disk looks
    /// like a dead member.
    pub heartbeat: Duration,
    /// A leader that was heard within this time is not replaced; one that has ended is, when it is over. Longer
    /// than the time between two heartbeats.
    pub lease: Duration,
    /// One that is silent, and has not ended, is replaced after this time.
    pub patience: Duration,
    /// For the calls to other members.
    pub tls: Option<TlsFiles>,
}

impl RaftOptions {
    pub fn new(member: MemberId, folder: impl Into<PathBuf>) -> Self {
        Self {
            member,
            folder: folder.into(),
            snapshot_every: 10_000,
            heartbeat: Duration::from_millis(500),
            lease: Duration::from_millis(1_000),
            patience: Duration::from_millis(3_000),
            tls: None,
        }
    }
}

/// Why commands were not, or may not have been, appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Nothing has been appended.
    #[error("member {member} does not lead{}", leader.as_ref().map_or_else(
        || "; nobody is known to".to_owned(), |leader| format!("; {leader} does")))]
    NotLeader { member: MemberId, leader: Option<Address> },
    /// The commands may be in the log or come into it: ask the ledger of the next leader.
    #[error("it is not known whether the ledger has the commands: {0}")]
    Unknown(String),
}

/// A running member. Dropping it stops it at the next opportunity; [`shut_down`](Self::shut_down)
/// waits for that.
pub struct RaftMember {
    member: MemberId,
    raft: Raft<Types>,
    pub(super) machine: LedgerMachine,
    elections: Elections,
    pub(super) membership: Membership,
    log_thread: Mutex<Option<JoinHandle<()>>>,
    _electing: AbortOnDropHandle<()>,
    _keeping_members: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for RaftMember {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftMember").field("member", &self.member).finish_non_exhaustive()
    }
}

impl RaftMember {
    /// Opens what the member has on its disk, and takes part.
    pub async fn start(options: RaftOptions) -> std::io::Result<Self> {
        std::fs::create_dir_all(&options.folder)?;
        let (log, log_thread) = LogStore::open(&options.folder.join("log.redb"))?;
        let mut member = Self::start_with(options, log, Way::Tcp).await?;
        member.log_thread = Mutex::new(Some(log_thread));
        Ok(member)
    }

    /// On a log that is open.
    pub(super) async fn start_with(
        options: RaftOptions,
        log: LogStore,
        way: Way,
    ) -> std::io::Result<Self> {
        let RaftOptions { member, folder, snapshot_every, heartbeat, lease, patience, tls } =
            options;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let config = Config {
            cluster_name: "weir".to_owned(),
            heartbeat_interval: millis(heartbeat),
            enable_elect: false,
            // The most that a vote may take, and the lease.
            election_timeout_min: millis(lease) - 1,
            election_timeout_max: millis(lease),
            install_snapshot_timeout: 10_000,
            max_payload_entries: MAX_PAYLOAD_ENTRIES,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
            max_in_snapshot_log_to_keep: snapshot_every / 10,
            ..Config::default()
        };
        let config = Arc::new(config.validate().map_err(std::io::Error::other)?);
        let machine = LedgerMachine::open(&folder)?;
        let network = Network::new(member, tls, way);
        let (last, disk) = (log.last_entry(), log.disk());
        let raft = Raft::new(member, config, network.clone(), log, machine.clone())
            .await
            .map_err(std::io::Error::other)?;
        let elections =
            Elections { member, raft: raft.clone(), last, disk: disk.clone(), lease, patience };
        let electing = elections.clone().run(network.clone());
        let changing = Arc::default();
        let membership = Membership { member, raft: raft.clone(), network, disk, changing };
        let keeping_members = membership.clone().run();
        Ok(Self {
            member,
            raft,
            machine,
            elections,
            membership,
            log_thread: Mutex::default(),
            _electing: AbortOnDropHandle::new(tokio::spawn(electing)),
            _keeping_members: AbortOnDropHandle::new(tokio::spawn(keeping_members)),
        })
    }

    pub fn service(&self) -> RaftService {
        RaftService { elections: self.elections.clone(), has_complained: Arc::default() }
    }

    /// Makes a new cluster of these members. To be called on one of them, once; a member that belongs
    /// to a cluster already is left as it is.
    pub async fn initialize(&self, members: BTreeMap<MemberId, Address>) -> std::io::Result<()> {
        if self.raft.is_initialized().await.map_err(std::io::Error::other)? {
            return Ok(());
        }
        self.raft.initialize(members).await.map_err(std::io::Error::other)
    }

    /// All members, those that are about to take part in decisions included. On the leader only.
    pub async fn member_states(&self) -> Result<Vec<MemberState>, ChangeError> {
        self.membership.states().await
    }

    /// Adds a member, which first gets a copy of everything, and then takes part in decisions. Whether anything
    /// has changed: one that is there is left as it is. On the leader only.
    pub async fn add_member(&self, id: MemberId, url: &str) -> Result<bool, ChangeError> {
        self.membership.add(id, url).await
    }

    /// Takes a member out for good. Whether anything has changed. On the leader only, which steps down when it has
    /// removed itself.
    pub async fn remove_member(&self, id: MemberId) -> Result<bool, ChangeError> {
        self.membership.remove(id).await
    }

    /// Appends commands as one entry, and returns what each did once a majority has them and this
    /// member has applied them.
    pub async fn append(&self, commands: Vec<Command>) -> Result<Vec<Response>, AppendError> {
        let commands = Commands::new(commands);
        let is_logged = Arc::clone(&commands.is_logged);
        match self.raft.client_write(commands).await {
            Ok(answer) => Ok(answer.data.responses),
            // openraft says the same of an entry that this member has had, and has given up for another leader's. One of
            // the others may have it, and lead later.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))
                if is_logged.load(Ordering::Relaxed) =>
            {
                let why = "another member leads since it was appended".to_owned();
                Err(AppendError::Unknown(why))
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(leader))) => {
                Err(AppendError::NotLeader { member: self.member, leader: leader.leader_node })
            }
            Err(error) => Err(AppendError::Unknown(error.to_string())),
        }
    }

    /// Returns once this member knows everything that had been appended anywhere when it was called,
    /// and was the leader all the while.
    pub async fn catch_up(&self) -> Result<(), AppendError> {
        match self.raft.ensure_linearizable().await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(leader))) => {
                Err(AppendError::NotLeader { member: self.member, leader: leader.leader_node })
            }
            Err(error) => Err(AppendError::Unknown(error.to_string())),
        }
    }

    /// The facts that this member has applied. Hold the guard shortly: appends wait for it.
    pub async fn ledger(&self) -> RwLockReadGuard<'_, Ledger> {
        self.machine.ledger().read().await
    }

    /// As [`ledger`](Self::ledger), with the index of the last entry that the facts hold.
    /// [`applied_index`](Self::applied_index) may be of a moment before.
    pub async fn ledger_at(&self) -> (RwLockReadGuard<'_, Ledger>, u64) {
        self.machine.ledger_at().await
    }

    pub(crate) fn facts(&self) -> Arc<RwLock<Ledger>> {
        Arc::clone(self.machine.ledger())
    }

    /// Who leads, as far as this member knows; changes with every election.
    pub fn leader(&self) -> Option<MemberId> {
        // Where `changes` come from: openraft's other metrics follow a moment later, and who is woken
        // by a change would read the old leader there, and never be woken again.
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let has_stepped_down =
            metrics.current_leader == Some(self.member) && metrics.state != ServerState::Leader;
        // One that has removed itself is, for openraft, the last leader that it knows of.
        metrics.current_leader.filter(|_| !has_stepped_down)
    }

    /// Those that take part in decisions, with their addresses.
    pub fn members(&self) -> BTreeMap<MemberId, Address> {
        self.elections.voters().into_iter().collect()
    }

    /// Notified whenever the answer of [`leader`](Self::leader) may have changed.
    pub fn changes(&self) -> watch::Receiver<impl Sized + use<>> {
        self.raft.server_metrics()
    }

    /// How long ago a majority has answered this member; `None` while it does not lead.
    pub fn since_majority(&self) -> Option<Duration> {
        self.raft.metrics().borrow().millis_since_quorum_ack.map(Duration::from_millis)
    }

    /// Why it takes part no longer, if it has ended: by [`shut_down`](Self::shut_down), or because its disk
    /// does not take what must be written.
    pub fn ended(&self) -> Option<String> {
        self.raft.metrics().borrow().running_state.as_ref().err().map(ToString::to_string)
    }

    /// The index up to which this member has applied the log, and perhaps beyond.
    pub fn applied_index(&self) -> u64 {
        self.raft.metrics().borrow().last_applied.map_or(0, |applied| applied.index)
    }

    /// Writes a snapshot now, and takes what it holds out of the log.
    pub async fn snapshot(&self) -> std::io::Result<()> {
        self.raft.trigger().snapshot().await.map_err(std::io::Error::other)
    }

    /// Returns once its files are closed. Its service must have ended before; nothing can be appended
    /// afterwards.
    pub async fn shut_down(&self) {
        // They have ended either way.
        let _ = self.raft.shutdown().await;
        let thread = self.log_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

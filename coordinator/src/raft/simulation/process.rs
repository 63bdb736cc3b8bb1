//! One coordinator, as far as the ledger goes: its member of raft with a server, and a leadership that begins
//! an epoch and starts runs. What is around it is simulated, it is not.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::DateTime;
use tonic::transport::Server;
use turmoil::net::TcpListener;
use weir_ledger::{Command, Ledger, NewEpoch, RunId, StartRun};
use weir_spec::PipelineName;

use super::Control;
use super::changes::{self, Wanted};
use super::history::History;
use super::machine::{MEMBERS, Machine, PORT, address, at_most, host};
use super::wire::incoming;
use crate::engine::own_epoch;
use crate::raft::RaftMember;
use crate::store::{LedgerStore, StoreError};

const KEEP_ALIVE: Duration = Duration::from_secs(2);
const BEFORE_NEXT: Duration = Duration::from_millis(300);

/// What of a coordinator survives its processes, and what others see of it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) machine: Machine,
    pub(super) control: Control,
    pub(super) shared: Arc<Shared>,
    /// Index and hash of what it had applied when it was last looked at, and the facts.
    pub(super) applied: Arc<Mutex<(u64, String, Arc<Ledger>)>>,
    pub(super) boots: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    history: Mutex<History>,
    /// Nothing more is begun.
    pub(super) is_quiet: AtomicBool,
    pub(super) wanted: Wanted,
}

impl Shared {
    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Until it is crashed.
    pub(super) async fn run(self) -> turmoil::Result {
        let boot = self.boots.fetch_add(1, Ordering::Relaxed);
        match self.take_part(boot).await {
            // It is waiting for the crash that the loss of power is.
            Err(_) if self.machine.disk.is_dead() => std::future::pending().await,
            Err(error) => Err(format!("member {}: {error}", self.machine.id).into()),
            Ok(()) => Ok(()),
        }
    }

    async fn take_part(&self, boot: u64) -> turmoil::Result {
        let member = Arc::new(self.machine.start().await?);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE / 2))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .add_service(member.service().into_server())
            .serve_with_incoming(incoming(listener));
        let members = MEMBERS.map(|id| (id, address(id)));
        if self.machine.id == MEMBERS[0] {
            member.initialize(members.into()).await?;
        }
        tokio::select! {
            biased;
            served = server => served?,
            () = self.lead_when_elected(&member, boot) => {}
            () = self.read(&member) => {}
            () = self.observe(&member) => {}
        }
        Ok(())
    }

    async fn lead_when_elected(&self, member: &Arc<RaftMember>, boot: u64) {
        let mut changes = member.changes();
        for number in 0.. {
            while member.leader() != Some(self.machine.id)
                || self.shared.is_quiet.load(Ordering::Relaxed)
            {
                let changed = tokio::time::timeout(BEFORE_NEXT, changes.changed()).await;
                wait_if_ended(changed.is_ok_and(|changed| changed.is_err())).await;
            }
            let name = format!("{}-{boot}-{number}", self.machine.id);
            let ended = async {
                while member.leader() == Some(self.machine.id) {
                    wait_if_ended(changes.changed().await.is_err()).await;
                }
            };
            tokio::select! {
                biased;
                () = ended => {}
                _ = self.lead(member, &name) => {}
            }
            tokio::time::sleep(BEFORE_NEXT).await;
        }
    }

    /// As `cluster::serve::lead` begins, and then as long as the ledger takes what it is given.
    async fn lead(&self, member: &Arc<RaftMember>, name: &str) -> Result<(), StoreError> {
        let not_leading =
            |error: crate::raft::AppendError| StoreError::NotLeader(error.to_string());
        member.catch_up().await.map_err(not_leading)?;
        let store = LedgerStore::replicated(Arc::clone(member));
        let asked = self.shared.history().asked();
        let begins = NewEpoch {
            ledger_id: "ledger".into(),
            boot_id: name.into(),
            pid: 1,
            host: host(self.machine.id),
            at: DateTime::UNIX_EPOCH,
        };
        store.append(Command::NewEpoch(begins)).await?;
        let Some(epoch) = own_epoch(&*store.ledger().await, name) else { return Ok(()) };
        self.shared.history().has_begun(asked, epoch, name);
        let (first, second) = (format!("{name}-a"), format!("{name}-b"));
        let starting = async {
            tokio::try_join!(
                self.start_runs(&store, epoch, &first),
                self.start_runs(&store, epoch, &second)
            )
        };
        tokio::select! {
            biased;
            started = starting => started.map(drop),
            () = changes::carry_out(member, &self.shared) => Ok(()),
        }
    }

    async fn start_runs(
        &self,
        store: &LedgerStore,
        epoch: u64,
        name: &str,
    ) -> Result<(), StoreError> {
        for number in 0.. {
            if self.shared.is_quiet.load(Ordering::Relaxed) {
                break;
            }
            let run = format!("{name}-{number}");
            let asked = self.shared.history().asked();
            store.append(Command::StartRun(start_run(epoch, &run))).await?;
            self.shared.history().has_started(asked, epoch, run);
            tokio::time::sleep(at_most(Duration::from_millis(600))).await;
        }
        Ok(())
    }

    /// Whoever answers a linearizable read must know everything.
    async fn read(&self, member: &RaftMember) {
        loop {
            tokio::time::sleep(at_most(Duration::from_secs(1))).await;
            let asked = self.shared.history().asked();
            let may_read = match self.control {
                Control::ReadsAskNobody => Ok(()),
                _ => member.catch_up().await,
            };
            if may_read.is_ok() {
                let ledger = member.ledger().await;
                self.shared.history().has_read(asked, self.machine.id, |run| knows(&ledger, run));
            }
        }
    }

    async fn observe(&self, member: &RaftMember) {
        let mut last = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let (index, ledger) = member.machine.applied().await;
            if index == last {
                continue;
            }
            last = index;
            let json = serde_json::to_vec(&ledger).expect("a ledger can be written as JSON");
            let mut hash = blake3::hash(&json).to_hex()[..16].to_owned();
            if self.control == Control::OneAppliesOtherwise && self.machine.id == 2 {
                hash.push('x');
            }
            self.shared.history().has_hash(self.machine.id, index, hash.clone());
            *self.applied.lock().unwrap_or_else(PoisonError::into_inner) =
                (index, hash, Arc::new(ledger));
        }
    }
}

/// Raft has ended, as its disk has. The process is about to.
async fn wait_if_ended(has_ended: bool) {
    if has_ended {
        std::future::pending().await
    }
}

pub(super) fn knows(ledger: &Ledger, run: &str) -> bool {
    ledger.runs.contains_key(&RunId(run.to_owned()))
}

fn start_run(epoch: u64, run: &str) -> StartRun {
    StartRun {
        epoch,
        run: RunId(run.to_owned()),
        pipeline: PipelineName(run.to_owned()),
        spec_hash: "spec".into(),
        params: std::collections::BTreeMap::new(),
        window: None,
        version: None,
        request_id: None,
        backfill: None,
        replay_of: None,
        at: DateTime::UNIX_EPOCH,
    }
}

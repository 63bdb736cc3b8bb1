//! The machine of a simulated coordinator, as far as the ledger goes: what survives its processes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng as _;
use tempfile::TempDir;

use super::disk::Disk;
use super::runtime::Seeded;
use crate::raft::log_store::LogStore;
use crate::raft::network::Way;
use crate::raft::{Address, MemberId, RaftMember, RaftOptions};

pub(crate) const MEMBERS: [MemberId; 3] = [1, 2, 3];
pub(crate) const PORT: u16 = 4001;
pub(crate) const DISK_DELAY_MS: u64 = 20;
/// Small, so that members that were away need a snapshot.
const SNAPSHOT_EVERY: u64 = 40;

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) id: MemberId,
    pub(crate) disk: Disk,
    /// Of its snapshots.
    folder: PathBuf,
    /// A member with 1.1 waits a tenth longer than it thinks.
    clock: f64,
    /// The longest that a transaction takes.
    pub(crate) disk_delay: Arc<AtomicU64>,
}

impl Machine {
    pub(crate) fn new(id: MemberId, disk: Disk, folder: PathBuf, clock: f64) -> Self {
        Self { id, disk, folder, clock, disk_delay: Arc::new(AtomicU64::new(DISK_DELAY_MS)) }
    }

    /// Starts the member of the ledger that it has.
    pub(crate) async fn start(&self) -> Result<RaftMember, Box<dyn std::error::Error>> {
        let (log, writer) = LogStore::on(self.disk.open()?)?;
        let delay = Arc::clone(&self.disk_delay);
        tokio::spawn(writer.run_on(async move || {
            let longest = Duration::from_millis(delay.load(Ordering::Relaxed));
            tokio::time::sleep(at_most(longest)).await;
        }));
        let defaults = RaftOptions::new(self.id, &self.folder);
        let options = RaftOptions {
            snapshot_every: SNAPSHOT_EVERY,
            heartbeat: defaults.heartbeat.mul_f64(self.clock),
            lease: defaults.lease.mul_f64(self.clock),
            patience: defaults.patience.mul_f64(self.clock),
            ..defaults
        };
        Ok(RaftMember::start_with(options, log, Way::Simulated).await?)
    }
}

pub(crate) fn host(member: MemberId) -> String {
    format!("member-{member}")
}

pub(crate) fn address(member: MemberId) -> Address {
    Address::at(format!("http://{}:{PORT}", host(member)))
}

pub(crate) fn at_most(longest: Duration) -> Duration {
    longest.mul_f64(Seeded.gen_range(0.0..1.0))
}

/// Where syncing costs nothing, if there is such a place.
pub(crate) fn memory_folder() -> TempDir {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    folder.expect("a temporary folder can be made")
}

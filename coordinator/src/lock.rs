//! One process writes a pipeline's ledger: whoever holds the lock of its `lock` file.
//!
//! The kernel's lock decides. The number in the file only informs people: it may be that of a process
//! that has died, and is then soon the number of another.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use weir_spec::PipelineName;

use crate::EngineError;
use crate::state_dir::{PipelineDir, StateDir, state_error};

/// The right to write, until dropped. The kernel takes it back when the process dies, however it
/// dies.
#[derive(Debug)]
pub(crate) struct PipelineLock {
    _file: File,
}

/// Who has the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// `None` while the holder has not written it yet.
    pub(crate) pid: Option<u32>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

/// Readers ask whether the lock is held by taking it for a moment; a writer must not mistake one
/// of them for another writer.
const TRIES: u32 = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(5);
/// How often whoever waits asks whether it is its turn.
pub(crate) const BETWEEN_ASKING: Duration = Duration::from_millis(200);

impl PipelineLock {
    /// Takes the lock, or says who has it.
    pub(crate) fn try_acquire(pipeline: &PipelineDir) -> Result<Result<Self, Holder>, EngineError> {
        pipeline.create()?;
        let path = pipeline.lock();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|cause| state_error("open", &path, cause))?;
        for round in 1.. {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if round < TRIES => {
                    std::thread::sleep(BETWEEN_TRIES);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Err(read_holder(&path))),
                Err(cause) => return Err(state_error("lock", &path, cause.into())),
            }
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(|cause| state_error("write", &path, cause))?;
        Ok(Ok(Self { _file: file }))
    }
}

/// Whether some process writes the pipeline's ledger now.
pub(crate) fn is_held(pipeline: &PipelineDir) -> bool {
    let Ok(file) = File::open(pipeline.lock()) else { return false };
    // The lock that a success has taken is given back with the file.
    flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

/// Asks the holder to stop at its next committed batch, as Ctrl-C does; false if it could not be asked.
/// A process is only asked if the kernel says that it holds this lock.
pub(crate) fn interrupt(pipeline: &PipelineDir, holder: &Holder) -> bool {
    let pid = holder.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let Some(pid) = pid else { return false };
    // Taken before the kernel is asked: it stays that process, also when its number is used again.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let Ok(lock) = std::fs::metadata(pipeline.lock()) else { return false };
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return false };
    let is_holder = holds(&locks, pid.as_raw_pid(), lock.ino());
    is_holder && pidfd_send_signal(process, Signal::INT).is_ok()
}

/// Whether `/proc/locks` has an exclusive `flock` of a process on a file. The device is not compared:
/// some file systems show another one there.
fn holds(locks: &str, pid: i32, inode: u64) -> bool {
    locks.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", holder, place, ..] = fields[..] else { return false };
        holder.parse() == Ok(pid)
            && place.rsplit(':').next().and_then(|found| found.parse().ok()) == Some(inode)
    })
}

/// Does something while no other process writes the pipeline's ledger. `waiting` is told once who is
/// waited for.
pub async fn exclusively<T>(
    state_dir: &Path,
    pipeline: &PipelineName,
    waiting: impl FnOnce(String),
    work: impl Future<Output = T>,
) -> Result<T, EngineError> {
    let dir = StateDir::new(state_dir).pipeline(pipeline);
    let mut waiting = Some(waiting);
    let _lock = loop {
        match PipelineLock::try_acquire(&dir)? {
            Ok(lock) => break lock,
            Err(holder) => {
                if let Some(waiting) = waiting.take() {
                    waiting(holder.to_string());
                }
                tokio::time::sleep(BETWEEN_ASKING).await;
            }
        }
    };
    Ok(work.await)
}

fn read_holder(path: &Path) -> Holder {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    Holder { pid: read.ok().and_then(|_| text.trim().parse().ok()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(folder: &tempfile::TempDir) -> PipelineDir {
        StateDir::new(folder.path()).pipeline(&weir_spec::PipelineName("orders".into()))
    }

    #[test]
    fn second_writer_is_refused_and_told_who_holds_the_lock() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pipeline = pipeline(&folder);
        assert!(!is_held(&pipeline));
        let first = PipelineLock::try_acquire(&pipeline).expect("the folder is writable");
        let first = first.expect("nobody holds the lock");
        assert!(is_held(&pipeline));
        let second = PipelineLock::try_acquire(&pipeline).expect("the folder is writable");
        assert_eq!(second.expect_err("held"), Holder { pid: Some(std::process::id()) });
        drop(first);
        assert!(!is_held(&pipeline));
        assert!(PipelineLock::try_acquire(&pipeline).expect("writable").is_ok());
    }

    #[test]
    fn a_process_that_does_not_hold_the_lock_is_never_signalled() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let pipeline = pipeline(&folder);
        let lock = PipelineLock::try_acquire(&pipeline).expect("writable").expect("free");
        // The text of a process that has crashed; its number is now that of another.
        let mut bystander =
            std::process::Command::new("sleep").arg("60").spawn().expect("sleep can be started");
        std::fs::write(pipeline.lock(), bystander.id().to_string()).expect("writable");
        let holder = PipelineLock::try_acquire(&pipeline).expect("writable").expect_err("held");
        assert_eq!(holder.pid, Some(bystander.id()));
        assert!(!interrupt(&pipeline, &holder));
        std::thread::sleep(Duration::from_millis(50));
        assert!(bystander.try_wait().expect("a child can be waited for").is_none(), "it goes on");
        bystander.kill().expect("a child can be killed");
        bystander.wait().expect("a child can be waited for");
        drop(lock);
    }

    #[test]
    fn the_holder_is_found_among_the_locks_of_the_kernel() {
        let locks = "1: FLOCK  ADVISORY  WRITE 77 fe:00:5349995 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 78 fe:00:5349995 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 79 fe:00:5349995 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 80 fe:00:5349995 0 EOF\n";
        assert!(holds(locks, 77, 5_349_995));
        assert!(!holds(locks, 77, 349_995));
        for other in [78, 79, 80, 7] {
            assert!(!holds(locks, other, 5_349_995), "{other}");
        }
    }
}

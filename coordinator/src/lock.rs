//! One process writes a pipeline's ledger: whoever holds the lock of its `lock` file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use crate::EngineError;
use crate::state_dir::{PipelineDir, state_error};

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

/// Asks the holder to stop at its next committed batch, as Ctrl-C does.
pub(crate) fn interrupt(holder: &Holder) {
    let pid = holder.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // A holder that is gone by now has given the lock back.
        let _ = kill_process(pid, Signal::INT);
    }
}

fn read_holder(path: &Path) -> Holder {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    Holder { pid: read.ok().and_then(|_| text.trim().parse().ok()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::StateDir;

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
}

//! `cluster.json`: the processes of a cluster that runs on this machine, and how each was started.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

const NAME: &str = "cluster.json";

/// Certificates and keys, in a cluster's folder.
pub(crate) fn tls_folder(dir: &Path) -> PathBuf {
    dir.join("tls")
}

/// The certificate that all others are checked with.
pub(crate) fn authority(dir: &Path) -> PathBuf {
    tls_folder(dir).join("authority.pem")
}

/// The token of whoever has started the cluster.
pub(crate) fn admin_token(dir: &Path) -> PathBuf {
    dir.join("admin.token")
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterFile {
    /// What all of them share: a folder, or a URL.
    pub storage: String,
    pub coordinators: Vec<CoordinatorEntry>,
    pub executors: Vec<ExecutorEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CoordinatorEntry {
    pub id: u64,
    pub url: String,
    #[serde(flatten)]
    pub process: ProcessEntry,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExecutorEntry {
    pub id: String,
    /// Where it serves rows to other executors.
    #[serde(default)]
    pub url: String,
    #[serde(flatten)]
    pub process: ProcessEntry,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessEntry {
    /// `coordinator-1`, `executor-1`.
    pub name: String,
    pub pid: u32,
    /// Its standard output and error.
    pub log: PathBuf,
    /// Its command line, without the program.
    pub arguments: Vec<String>,
}

impl ClusterFile {
    pub(crate) fn read(dir: &Path) -> Result<Self, Failure> {
        Self::read_if_any(dir)?.ok_or_else(|| {
            Failure::Usage(format!(
                "{} does not exist: is the cluster up? (`weir cluster up --dir {}`)",
                dir.join(NAME).display(),
                dir.display()
            ))
        })
    }

    pub(crate) fn read_if_any(dir: &Path) -> Result<Option<Self>, Failure> {
        let path = dir.join(NAME);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Failure::Usage(format!("failed to read {}: {error}", path.display())));
            }
        };
        let file = serde_json::from_slice(&text)
            .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
        Ok(Some(file))
    }

    /// Readers see the old file or the new one.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(NAME);
        let part = dir.join(format!("{NAME}.part"));
        let written = (|| {
            let mut file = File::create(&part)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            std::fs::rename(&part, &path)
        })();
        written
            .map_err(|error| Failure::Run(format!("failed to write {}: {error}", path.display())))
    }

    /// One command at a time changes a cluster's file. Held until it is dropped.
    pub(crate) fn lock(dir: &Path) -> Result<File, Failure> {
        let path = dir.join("cluster.lock");
        let locked = File::create(&path).and_then(|file| {
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            Ok(file)
        });
        locked.map_err(|error| Failure::Run(format!("failed to lock {}: {error}", path.display())))
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = &ProcessEntry> {
        let coordinators = self.coordinators.iter().map(|entry| &entry.process);
        coordinators.chain(self.executors.iter().map(|entry| &entry.process))
    }

    pub(crate) fn process_mut(&mut self, name: &str) -> Option<&mut ProcessEntry> {
        let coordinators = self.coordinators.iter_mut().map(|entry| &mut entry.process);
        let executors = self.executors.iter_mut().map(|entry| &mut entry.process);
        coordinators.chain(executors).find(|process| process.name == name)
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.coordinators.iter().map(|entry| entry.url.clone()).collect()
    }

    /// Started with `--insecure`.
    pub(crate) fn is_insecure(&self) -> bool {
        self.coordinators.iter().any(|entry| entry.url.starts_with("http://"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_is_one_flat_object() {
        let process = |name: &str| ProcessEntry {
            name: name.to_owned(),
            pid: 7,
            log: PathBuf::from("/c/x.log"),
            arguments: vec!["executor".to_owned()],
        };
        let file = ClusterFile {
            storage: "/c/storage".to_owned(),
            coordinators: vec![CoordinatorEntry {
                id: 1,
                url: "http://127.0.0.1:4001".to_owned(),
                process: process("coordinator-1"),
            }],
            executors: vec![ExecutorEntry {
                url: "https://127.0.0.1:4004".to_owned(),
                id: "executor-1".to_owned(),
                process: process("executor-1"),
            }],
        };
        let json = serde_json::to_value(&file).expect("it is JSON");
        assert_eq!(
            json["coordinators"][0],
            serde_json::json!({
                "id": 1, "url": "http://127.0.0.1:4001", "name": "coordinator-1", "pid": 7,
                "log": "/c/x.log", "arguments": ["executor"],
            })
        );
        assert_eq!(serde_json::from_value::<ClusterFile>(json).expect("it is the same"), file);
    }
}

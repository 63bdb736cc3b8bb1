//! A client of the cluster that is not ours: `tests/python/client.py`, which learns the API by reflection.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::weir::{binary, repository};

/// A program of the virtual environment in the target directory.
///
/// Panics with the remedy when it is not there.
pub fn installed(program: &str) -> PathBuf {
    let folder = binary();
    let target = folder.parent().and_then(Path::parent).expect("<target>/<profile>/weir");
    let path = target.join("python/bin").join(program);
    assert!(path.is_file(), "{} is missing: run tests/python/install.sh", path.display());
    path
}

/// What the client has printed, a value a line, and whether it was answered.
#[derive(Debug)]
pub struct Answer {
    pub is_ok: bool,
    pub lines: Vec<Value>,
}

impl Answer {
    /// Of the values with this key, what it holds.
    pub fn all(&self, key: &str) -> Vec<&Value> {
        self.lines.iter().filter_map(|line| line.get(key)).collect()
    }

    /// The one value with this key.
    #[track_caller]
    pub fn the(&self, key: &str) -> &Value {
        let found = self.all(key);
        let [only] = found[..] else { panic!("not one `{key}`: {self:#?}") };
        only
    }

    /// The status code of a refusal.
    #[track_caller]
    pub fn refusal(&self) -> &str {
        assert!(!self.is_ok, "{self:#?}");
        self.the("code").as_str().expect("a code is a text")
    }
}

/// Ends with its test.
#[derive(Debug)]
pub struct Watching(Option<Child>);

impl Watching {
    #[track_caller]
    pub fn wait(mut self) -> Answer {
        let child = self.0.take().expect("it is waited for once");
        let output = child.wait_with_output().expect("a child can be waited for");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let lines = stdout.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        let lines = lines.unwrap_or_else(|error| panic!("not JSON ({error}): {stdout}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)) && stderr.is_empty(), "{stderr}");
        Answer { is_ok: output.status.success(), lines }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Already ended is fine.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts the client with a token, or none.
pub fn begin(cluster: &Cluster, token: Option<&Path>, arguments: &[&str]) -> Watching {
    let mut command = Command::new(installed("python"));
    command.arg(repository().join("tests/python/client.py"));
    for url in cluster.urls() {
        command.arg("--coordinator").arg(url);
    }
    command.arg("--authority").arg(cluster.dir.join("tls/authority.pem"));
    if let Some(token) = token {
        command.arg("--token-file").arg(token);
    }
    command.args(arguments).current_dir(&cluster.weir.folder).stdin(Stdio::null());
    // Its libraries warn of forks and of missing CPU features; what it says itself is on its output.
    command.env("GRPC_VERBOSITY", "NONE").stdout(Stdio::piped()).stderr(Stdio::piped());
    Watching(Some(command.spawn().expect("python starts")))
}

/// As [`begin`], to its end.
#[track_caller]
pub fn ask(cluster: &Cluster, token: Option<&Path>, arguments: &[&str]) -> Answer {
    begin(cluster, token, arguments).wait()
}

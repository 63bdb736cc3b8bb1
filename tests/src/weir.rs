//! The `weir` binary, as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The binary beside this test's own: `<target>/<profile>/weir`.
///
/// Panics with the remedy when it has not been built.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a running test knows its own path");
    let profile = test
        .ancestors()
        .find(|folder| folder.file_name().is_some_and(|name| name == "deps"))
        .and_then(Path::parent)
        .expect("cargo puts tests into <target>/<profile>/deps");
    let binary = profile.join("weir");
    assert!(
        binary.is_file(),
        "{} is missing: run `cargo build --workspace` first",
        binary.display()
    );
    binary
}

/// The checkout's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root").to_owned()
}

/// One state folder and environment in which commands are run.
#[derive(Clone, Debug)]
pub struct Weir {
    pub state: PathBuf,
    pub folder: PathBuf,
    pub environment: Vec<(String, String)>,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Panics with everything that was printed unless the code is `expected`.
    #[track_caller]
    pub fn expect_code(self, expected: i32) -> Self {
        assert_eq!(
            self.code(),
            expected,
            "unexpected exit ({:?})\n--- stdout\n{}\n--- stderr\n{}",
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}\n{}", self.stdout, self.stderr))
    }

    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl Weir {
    /// Commands run in `folder` with their state in `folder/.weir`.
    pub fn new(folder: &Path) -> Self {
        Self { state: folder.join(".weir"), folder: folder.to_owned(), environment: Vec::new() }
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .arg("--state")
            .arg(&self.state)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .envs(self.environment.iter().cloned());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().expect("the binary starts");
        Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts a command whose output goes to files, so that it can be killed.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let log = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let file = || Stdio::from(log.reopen().expect("the file has just been made"));
        let child = self
            .command(arguments)
            .stdout(file())
            .stderr(file())
            .spawn()
            .expect("the binary starts");
        Running { child, log }
    }

    /// The latest run of this state folder.
    pub fn latest_run(&self) -> String {
        let runs = self.run(&["runs", "--output", "json"]).expect_code(0).json();
        runs[0]["run"].as_str().unwrap_or_else(|| panic!("no run: {runs}")).to_owned()
    }

    /// Panics unless the audit of the latest run is clean.
    #[track_caller]
    pub fn assert_audit_clean(&self) -> serde_json::Value {
        let run = self.latest_run();
        let report = self.run(&["audit", &run, "--output", "json"]).expect_code(0).json();
        assert_eq!(report["clean"], true, "{report:#}");
        report
    }
}

/// A command that may be killed. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL once `is_time` says so of the time since now, unless it has ended by itself: then how.
    pub fn kill_when(mut self, mut is_time: impl FnMut(Duration) -> bool) -> Option<Output> {
        let start = Instant::now();
        while !is_time(start.elapsed()) {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return Some(self.output(status));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.child.kill().expect("the child can be killed");
        let status = self.child.wait().expect("the child can be waited for");
        // It may have ended between the last look and the kill.
        status.code().map(|_| self.output(status))
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("a child has a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is a child");
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log.path()).unwrap_or_default()).into_owned()
    }

    pub fn wait(mut self) -> Output {
        let status = self.child.wait().expect("the child can be waited for");
        self.output(status)
    }

    fn output(&self, status: ExitStatus) -> Output {
        let text = std::fs::read(self.log.path()).unwrap_or_default();
        Output {
            status,
            stdout: String::new(),
            stderr: String::from_utf8_lossy(&text).into_owned(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

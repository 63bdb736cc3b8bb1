//! A cluster of real processes on this machine, in a test's folder.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::weir::{Output, Running, Weir};

/// For everything that is waited for: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Ends with the test: dropping it kills what it has started.
#[derive(Debug)]
pub struct Cluster {
    /// Commands, with the test's environment.
    pub weir: Weir,
    /// What the cluster writes by itself.
    pub dir: PathBuf,
}

impl Cluster {
    /// Three coordinators and three executors in `folder/cluster`, ready for work.
    pub fn up(folder: &Path) -> Self {
        Self::up_with(Weir::new(folder), &[])
    }

    /// With more options for `weir cluster up`.
    pub fn up_with(weir: Weir, options: &[&str]) -> Self {
        let cluster = Self::in_folder_of(weir);
        cluster.start_all(options);
        cluster
    }

    /// Not up: a test starts it itself.
    pub fn in_folder_of(weir: Weir) -> Self {
        let dir = weir.folder.join("cluster");
        Self { weir, dir }
    }

    /// The same processes again, when all have ended.
    pub fn up_again(&self) {
        self.start_all(&[]);
    }

    fn start_all(&self, options: &[&str]) {
        self.run(&[&["cluster", "up", "--detach"], options].concat()).expect_code(0);
    }

    pub fn down(&self) -> Output {
        self.run(&["cluster", "down"]).expect_code(0)
    }

    /// A command that asks this cluster.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.weir.run(&self.with_dir(arguments))
    }

    /// As [`Cluster::run`], without waiting for its end.
    pub fn begin(&self, arguments: &[&str]) -> Running {
        self.weir.start(&self.with_dir(arguments))
    }

    fn with_dir<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let dir = self.dir.to_str().expect("folders of tests are UTF-8");
        [arguments, &["--dir", dir]].concat()
    }

    /// What the coordinators say, whoever of them answers.
    pub fn status(&self) -> Value {
        self.run(&["cluster", "status", "--hash", "--output", "json"]).json()
    }

    /// The name of the process that leads now. Waits for one.
    pub fn leader(&self) -> String {
        let mut leader = None;
        wait_until("a leader", || {
            let status = self.status();
            let coordinators = status["coordinators"].as_array().cloned().unwrap_or_default();
            leader = coordinators
                .iter()
                .find(|coordinator| coordinator["role"] == "leader")
                .map(|coordinator| format!("coordinator-{}", coordinator["id"]));
            leader.is_some()
        });
        leader.expect("it has been waited for")
    }

    /// Names of the executors that the leader knows.
    pub fn executors(&self) -> Vec<String> {
        names(&self.status()["executors"], "id")
    }

    /// `cluster.json`, null when there is none.
    fn file(&self) -> Value {
        let Ok(text) = std::fs::read(self.dir.join("cluster.json")) else { return Value::Null };
        serde_json::from_slice(&text).expect("cluster.json is written whole")
    }

    /// Of the coordinators.
    pub fn urls(&self) -> Vec<String> {
        names(&self.file()["coordinators"], "url")
    }

    /// Where the executors serve rows to each other.
    pub fn executor_urls(&self) -> Vec<String> {
        names(&self.file()["executors"], "url")
    }

    /// All processes, dead or alive: name and pid.
    pub fn processes(&self) -> Vec<(String, u32)> {
        let file = self.file();
        let entries = ["coordinators", "executors"].map(|kind| file[kind].as_array().cloned());
        let entries = entries.into_iter().flatten().flatten();
        entries
            .map(|entry| {
                let name = entry["name"].as_str().expect("each process has a name").to_owned();
                let pid = entry["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
                (name, pid.expect("each process has a pid"))
            })
            .collect()
    }

    pub fn pid(&self, name: &str) -> u32 {
        let found = self.processes().into_iter().find(|(other, _)| other == name);
        found.unwrap_or_else(|| panic!("no process {name}")).1
    }

    /// SIGKILL.
    pub fn kill(&self, name: &str) {
        self.signal(name, Signal::KILL);
        wait_until("the killed process to be gone", || !self.is_alive(self.pid(name)));
    }

    pub fn kill_all(&self) {
        let names: Vec<String> = self.processes().into_iter().map(|(name, _)| name).collect();
        self.kill_each(&names);
    }

    /// All at once.
    pub fn kill_each(&self, names: &[String]) {
        for name in names {
            self.signal(name, Signal::KILL);
        }
        for name in names {
            wait_until("the killed process to be gone", || !self.is_alive(self.pid(name)));
        }
    }

    /// SIGSTOP: it holds all that it has, and says nothing.
    pub fn pause(&self, name: &str) {
        self.signal(name, Signal::STOP);
    }

    pub fn resume(&self, name: &str) {
        self.signal(name, Signal::CONT);
    }

    /// A process that has ended, again.
    pub fn start(&self, name: &str) {
        self.run(&["cluster", "start", name]).expect_code(0);
    }

    fn signal(&self, name: &str, signal: Signal) {
        let pid = self.pid(name);
        assert!(
            self.is_alive(pid),
            "{name} (process {pid}) has ended by itself\n{}",
            self.log(name)
        );
        send(pid, signal);
    }

    /// The pid is still that of a process of this cluster. One that is ending has no command line any more,
    /// and one that nobody waits for after its end has no thread.
    pub fn is_alive(&self, pid: u32) -> bool {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).ok();
        let (Some(line), Some(stat)) = (read("cmdline"), read("stat")) else { return false };
        let line = String::from_utf8_lossy(&line).into_owned();
        let is_zombie = String::from_utf8_lossy(&stat).contains(") Z ");
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        (line.is_empty() || line.contains(&*self.dir.to_string_lossy()))
            && (threads > 1 || !is_zombie)
    }

    /// What a process has printed.
    pub fn log(&self, name: &str) -> String {
        let text = std::fs::read(self.dir.join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Starts a run of a file of the test's folder. Its id.
    pub fn submit(&self, file: &str, request_id: &str) -> String {
        let arguments = ["submit", file, "--run", "--request-id", request_id, "--output", "json"];
        let answer = self.run(&arguments).expect_code(0).json();
        answer["run"].as_str().expect("the run has an id").to_owned()
    }

    /// The run with its stages, as `weir run show` prints it.
    pub fn show(&self, run: &str) -> Value {
        self.run(&["run", "show", run, "--output", "json"]).expect_code(0).json()
    }

    /// Rows that are committed.
    pub fn rows_written(&self, run: &str) -> u64 {
        let shown = self.show(run);
        let written = shown["summary"]["rows_written"].as_object().cloned().unwrap_or_default();
        written.values().filter_map(Value::as_u64).sum()
    }

    /// Executors that work on the run now.
    pub fn working_on(&self, run: &str) -> Vec<String> {
        let shown = self.show(run);
        let stages = shown["stages"].as_array().cloned().unwrap_or_default();
        stages.iter().flat_map(|stage| names(&stage["running"], "executor")).collect()
    }

    /// Waits until the run has ended; panics unless it has succeeded.
    #[track_caller]
    pub fn wait(&self, run: &str) -> Value {
        let mut shown = Value::Null;
        let is_over = holds_within(PATIENCE, || {
            shown = self.show(run);
            !["queued", "running"].map(Value::from).contains(&shown["summary"]["status"])
        });
        assert!(is_over && shown["summary"]["status"] == "succeeded", "{shown:#}\n{}", self.logs());
        shown
    }

    #[track_caller]
    pub fn assert_audit_clean(&self, run: &str) -> Value {
        let report = self.run(&["audit", run, "--output", "json"]).expect_code(0).json();
        assert_eq!(report["clean"], true, "{report:#}");
        report
    }

    /// The ends of all logs, for a test that fails.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for (name, _) in self.processes() {
            let log = self.log(&name);
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            text.push_str(&format!("--- {name}\n{tail}\n"));
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (_, pid) in self.processes() {
            if self.is_alive(pid) {
                send(pid, Signal::KILL);
            }
        }
    }
}

/// Waits for a condition, not for a time; panics when it does not come.
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(PATIENCE, condition), "waited {PATIENCE:?} for {what}");
}

pub(crate) fn holds_within(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process has a pid");
    // It may have ended since.
    let _ = rustix::process::kill_process(pid, signal);
}

fn names(list: &Value, key: &str) -> Vec<String> {
    let list = list.as_array().cloned().unwrap_or_default();
    list.iter().filter_map(|entry| entry[key].as_str().map(str::to_owned)).collect()
}

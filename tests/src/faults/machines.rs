//! A cluster whose processes each have a machine of their own, as far as this one allows it: an address and
//! links that can be cut, a small disk that can be full, a clock that can jump.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::disks::SmallDisk;
use super::network::{Network, network};
use super::observer::Observer;
use super::proxy::Proxy;
use crate::authority::{self, Authority};
use crate::cluster::{Cluster, wait_until};
use crate::postgres;
use crate::weir::{Weir, binary};

pub const COORDINATORS: u32 = 3;
pub const EXECUTORS: u32 = 3;
const TOKEN: &str = "a-token-for-this-test-only";
/// Of each process, and twice as much of the storage.
const DISK: &str = "64m";
const STORAGE_DISK: &str = "128m";

/// Fields are dropped in this order: processes first, then what they stand on.
#[derive(Debug)]
pub struct Machines {
    pub cluster: Cluster,
    pub network: Box<dyn Network>,
    /// Before the target: executors reach it only through this.
    pub target: Proxy,
    processes: Mutex<BTreeMap<String, Process>>,
    /// `Err`: why they have none of their own.
    disks: Result<BTreeMap<String, SmallDisk>, String>,
    /// The library that shifts a process's clock; `Err`: why it is not used.
    clocks: Result<PathBuf, String>,
}

#[derive(Debug)]
struct Process {
    arguments: Vec<String>,
    url: String,
    pid: u32,
    child: Option<Child>,
}

impl Machines {
    /// Three coordinators and three executors, ready for work. `weir` is given the address at which executors
    /// find the target, which listens on a port of loopback.
    pub fn up(target_port: u16, weir: impl FnOnce(&str) -> Weir) -> Self {
        let names: Vec<String> = (1..=COORDINATORS)
            .map(|number| format!("coordinator-{number}"))
            .chain((1..=EXECUTORS).map(|number| format!("executor-{number}")))
            .collect();
        let network = network(&names);
        let to = (std::net::Ipv4Addr::LOCALHOST, target_port).into();
        let target = Proxy::start(network.gateway(), to);
        let cluster = Cluster::in_folder_of(weir(&target.address.to_string()));
        let dir = cluster.dir.clone();
        for folder in names.iter().map(String::as_str).chain(["storage", "tls", "clocks"]) {
            std::fs::create_dir_all(dir.join(folder)).expect("the folder can be made");
        }
        let authority = Authority::default();
        authority.write(&dir.join("tls"));
        for name in &names {
            let host = network.place(name).called.ip().to_string();
            authority.issue_for(&dir.join("tls"), name, &host);
            set_clock(&dir, name, 0);
        }
        authority::write(&dir.join("admin.token"), TOKEN);
        let disks = disks(&dir, &names);
        let processes = names.iter().map(|name| {
            let url = format!("https://{}", network.place(name).called);
            let arguments = arguments(&dir, name, &names, network.as_ref());
            (name.clone(), Process { arguments, url, pid: 0, child: None })
        });
        let processes = Mutex::new(processes.collect());
        let clocks = clock_library();
        let machines = Self { cluster, network, target, processes, disks, clocks };
        names.iter().for_each(|name| machines.spawn(name));
        machines.wait_until_whole();
        machines
    }

    /// How real it is, for people who read what a test prints.
    pub fn description(&self) -> String {
        let of = |what: &str, missing: Option<&String>| match missing {
            None => format!("{what} of their own"),
            Some(why) => format!("no {what} of their own ({why})"),
        };
        format!(
            "{}; {}; {}",
            self.network.description(),
            of("disks", self.disks.as_ref().err()),
            of("clocks", self.clocks.as_ref().err()),
        )
    }

    /// The others.
    pub fn all_but(&self, name: &str) -> Vec<String> {
        let names = self.cluster.processes().into_iter().map(|(name, _)| name);
        names.filter(|other| other != name).collect()
    }

    /// Those that have ended, again; and waits until every process has found its place.
    pub fn start_dead(&self) {
        for (name, pid) in self.cluster.processes() {
            if !self.cluster.is_alive(pid) {
                self.spawn(&name);
            }
        }
        self.wait_until_whole();
    }

    fn wait_until_whole(&self) {
        let observer = Observer::of(&self.cluster);
        let executors: BTreeMap<String, u32> = (self.cluster.processes().into_iter())
            .filter(|(name, _)| name.starts_with("executor-"))
            .collect();
        let mut said = String::new();
        let is_whole = || {
            let members = observer.members();
            let leaders = members.iter().filter(|member| member.is_leader);
            let leader = leaders.max_by_key(|member| member.epoch);
            said = format!("{members:#?}");
            members.len() == COORDINATORS as usize
                && leader.is_some_and(|leader| leader.executors == executors)
        };
        if !crate::cluster::holds_within(crate::cluster::PATIENCE, is_whole) {
            panic!("the cluster is not whole: {said}\n{}", self.cluster.logs());
        }
    }

    /// The disk of a process, or `storage`.
    pub fn disk(&self, name: &str) -> Option<&SmallDisk> {
        self.disks.as_ref().ok()?.get(name)
    }

    /// From now on the clock of a process is so many seconds ahead of this machine's. False: it cannot be.
    pub fn set_clock(&self, name: &str, seconds: i64) -> bool {
        if self.clocks.is_ok() {
            set_clock(&self.cluster.dir, name, seconds);
        }
        self.clocks.is_ok()
    }

    fn spawn(&self, name: &str) {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        let process = processes.get_mut(name).expect("its name is known");
        if let Some(mut child) = process.child.take() {
            // It has ended.
            let _ = child.wait();
        }
        let dir = &self.cluster.dir;
        let log = File::options().create(true).append(true).open(dir.join(format!("{name}.log")));
        let log = log.expect("the disk has room");
        let mut command = Command::new("setpriv");
        let place = self.network.command(name);
        command.args(["--pdeathsig", "SIGKILL"]).arg(place.get_program()).args(place.get_args());
        command.arg(binary()).args(&process.arguments).process_group(0);
        command.current_dir(&self.cluster.weir.folder).stdin(Stdio::null());
        command.envs(self.cluster.weir.environment.iter().cloned());
        if let Ok(library) = &self.clocks {
            command.env("LD_PRELOAD", library).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            command.env("FAKETIME_TIMESTAMP_FILE", dir.join("clocks").join(name));
            command.env("FAKETIME_CACHE_DURATION", "1").env("NO_FAKE_STAT", "1");
        }
        command.stdout(log.try_clone().expect("a file")).stderr(log);
        let child = postgres::spawn(command);
        process.pid = child.id();
        process.child = Some(child);
        self.network.started(name, process.pid);
        write_cluster_file(dir, &processes);
        drop(processes);
        // Until it is the program that it is to be, it has another command line.
        wait_until("the process to begin", || {
            let line = std::fs::read(format!("/proc/{}/cmdline", self.cluster.pid(name)));
            let line = line.unwrap_or_default();
            line.is_empty() || line.starts_with(binary().as_os_str().as_encoded_bytes())
        });
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        // They hold what follows: disks and the network.
        let names: Vec<String> = (self.cluster.processes().into_iter())
            .filter(|(_, pid)| self.cluster.is_alive(*pid))
            .map(|(name, _)| name)
            .collect();
        if !std::thread::panicking() {
            self.cluster.kill_each(&names);
        }
    }
}

fn arguments(dir: &Path, name: &str, names: &[String], network: &dyn Network) -> Vec<String> {
    let url = |name: &str| format!("https://{}", network.place(name).called);
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let (kind, number) = name.split_once('-').expect("names are of a kind, with a number");
    let coordinators: Vec<(&str, String)> = (names.iter())
        .filter_map(|name| Some((name.strip_prefix("coordinator-")?, url(name))))
        .collect();
    let of_kind = match kind {
        "coordinator" => {
            let members: Vec<_> =
                coordinators.iter().map(|(number, url)| format!("{number}={url}")).collect();
            let token = text(dir.join("admin.token"));
            let members = members.join(",");
            ["--id", number, "--members", &members, "--admin-token-file", &token]
                .map(str::to_owned)
                .to_vec()
        }
        _ => {
            let urls: Vec<_> = coordinators.iter().map(|(_, url)| url.as_str()).collect();
            ["--id", name, "--coordinators", &urls.join(","), "--slots", "2"]
                .map(str::to_owned)
                .to_vec()
        }
    };
    let tls = |file: String| text(dir.join("tls").join(file));
    let common = [
        ("--listen", network.place(name).listen.to_string()),
        ("--url", url(name)),
        ("--dir", text(dir.join(name))),
        ("--storage", text(dir.join("storage"))),
        ("--tls-authority", tls("authority.pem".to_owned())),
        ("--tls-certificate", tls(format!("{name}.pem"))),
        ("--tls-key", tls(format!("{name}.key"))),
    ];
    let common = common.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
    [kind.to_owned()].into_iter().chain(of_kind).chain(common).collect()
}

/// As `weir cluster up` writes it, so that commands find the cluster by its folder.
fn write_cluster_file(dir: &Path, processes: &BTreeMap<String, Process>) {
    let entries = |kind: &str| -> Vec<_> {
        let of_kind = processes.iter().filter(|(name, _)| name.starts_with(kind));
        of_kind
            .map(|(name, process)| {
                let number = name.rsplit('-').next().and_then(|text| text.parse::<u64>().ok());
                let id = if kind == "coordinator" { json!(number) } else { json!(name) };
                json!({
                    "id": id, "name": name, "url": process.url, "pid": process.pid,
                    "log": dir.join(format!("{name}.log")), "arguments": process.arguments,
                })
            })
            .collect()
    };
    let file = json!({
        "storage": dir.join("storage"),
        "coordinators": entries("coordinator"),
        "executors": entries("executor"),
    });
    let part = dir.join("cluster.json.part");
    std::fs::write(&part, file.to_string()).expect("the disk has room");
    std::fs::rename(part, dir.join("cluster.json")).expect("it is in the same folder");
}

fn disks(dir: &Path, names: &[String]) -> Result<BTreeMap<String, SmallDisk>, String> {
    let mut disks = BTreeMap::new();
    for name in names {
        disks.insert(name.clone(), SmallDisk::mount_if_allowed(&dir.join(name), DISK)?);
    }
    let storage = SmallDisk::mount_if_allowed(&dir.join("storage"), STORAGE_DISK)?;
    disks.insert("storage".to_owned(), storage);
    Ok(disks)
}

fn set_clock(dir: &Path, name: &str, seconds: i64) {
    let part = dir.join("clocks").join(format!("{name}.part"));
    std::fs::write(&part, format!("{seconds:+}")).expect("the disk has room");
    std::fs::rename(part, dir.join("clocks").join(name)).expect("it is in the same folder");
}

/// Debian's package `faketime`.
fn clock_library() -> Result<PathBuf, String> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let paths = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let found = paths.into_iter().find(|path| path.is_file());
    found.ok_or_else(|| "the package faketime is not installed".to_owned())
}

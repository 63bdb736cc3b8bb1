//! What a cluster says of itself over its API, asked every few milliseconds: a command each time could not
//! do that.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Request, Status};
use weir_executor::address;
use weir_executor::tls::TlsFiles;
use weir_proto::v1::cluster_client::ClusterClient;
use weir_proto::v1::runs_client::RunsClient;
use weir_proto::v1::{
    GetRunRequest, ListTasksRequest, Role, Run, RunStatus, StatusRequest, StatusResponse, Task,
    TaskState,
};

use crate::cluster::{Cluster, wait_until};

/// A coordinator that is paused or cut off says nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks all coordinators, whoever of them answers.
#[derive(Debug)]
pub struct Observer {
    runtime: Runtime,
    token: String,
    lines: Vec<Channel>,
    /// Who has answered last.
    leader: usize,
}

/// A run at one moment, as the ledger has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub epoch: u64,
    pub run: Run,
    /// By stage and slice.
    pub tasks: Vec<Task>,
}

/// What one coordinator says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    pub is_leader: bool,
    pub epoch: u64,
    pub applied_index: u64,
    pub state_hash: String,
    /// That it knows, if it leads: name and process.
    pub executors: BTreeMap<String, u32>,
}

impl Observer {
    pub fn of(cluster: &Cluster) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let token = std::fs::read_to_string(cluster.dir.join("admin.token"));
        let tls = TlsFiles { authority: cluster.dir.join("tls/authority.pem"), identity: None };
        let lines = runtime.block_on(async {
            let line = |url: String| {
                let endpoint = address::endpoint(&url, Some(&tls)).expect("the URL is right");
                endpoint.connect_timeout(PATIENCE).connect_lazy()
            };
            cluster.urls().into_iter().map(line).collect()
        });
        let token = token.expect("the cluster has made it").trim().to_owned();
        Self { runtime, token, lines, leader: 0 }
    }

    /// `None` when nobody answers that leads.
    pub fn look(&mut self, run: &str) -> Option<Seen> {
        let order = (0..self.lines.len()).map(|offset| (self.leader + offset) % self.lines.len());
        for number in order.collect::<Vec<_>>() {
            let looking = look(self.lines[number].clone(), self.token.clone(), run.to_owned());
            let looked =
                self.runtime.block_on(async { tokio::time::timeout(PATIENCE, looking).await });
            if let Ok(Ok(seen)) = looked {
                self.leader = number;
                return Some(seen);
            }
        }
        None
    }

    /// Waits for somebody who leads.
    #[track_caller]
    pub fn see(&mut self, run: &str) -> Seen {
        let mut seen = None;
        wait_until("a coordinator to show the run", || {
            seen = self.look(run);
            seen.is_some()
        });
        seen.expect("it has been waited for")
    }

    /// Those that answer.
    pub fn members(&self) -> Vec<Member> {
        let asked: Vec<_> = (self.lines.iter().cloned())
            .map(|line| self.runtime.spawn(status(line, self.token.clone())))
            .collect();
        let mut members = Vec::new();
        for asked in asked {
            if let Ok(Some(answer)) = self.runtime.block_on(asked) {
                members.push(member(answer));
            }
        }
        members
    }

    /// The name of the process that leads. Waits for one.
    #[track_caller]
    pub fn leader(&self) -> String {
        let mut leader = None;
        wait_until("a leader", || {
            // One that has been paused believes for a moment that it still leads.
            let leading = self.members().into_iter().filter(|member| member.is_leader);
            leader = leading.max_by_key(|member| member.epoch).map(|member| member.id);
            leader.is_some()
        });
        format!("coordinator-{}", leader.expect("it has been waited for"))
    }

    /// That the leader knows.
    pub fn executors(&self) -> BTreeMap<String, u32> {
        let leading = self.members().into_iter().filter(|member| member.is_leader);
        leading.max_by_key(|member| member.epoch).map(|leader| leader.executors).unwrap_or_default()
    }
}

async fn look(line: Channel, token: String, run: String) -> Result<Seen, Status> {
    let mut runs = RunsClient::new(line);
    let (mut tasks, mut page_token) = (Vec::new(), String::new());
    let epoch = loop {
        let request = ListTasksRequest { run: run.clone(), page_token, page_size: 0 };
        let page = runs.list_tasks(with(&token, request)).await?.into_inner();
        tasks.extend(page.tasks);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break page.epoch;
        }
    };
    let run = runs.get(with(&token, GetRunRequest { run })).await?.into_inner();
    Ok(Seen { epoch, run, tasks })
}

async fn status(line: Channel, token: String) -> Option<StatusResponse> {
    let mut cluster = ClusterClient::new(line);
    let asking = cluster.status(with(&token, StatusRequest { with_hash: true }));
    Some(tokio::time::timeout(PATIENCE, asking).await.ok()?.ok()?.into_inner())
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let header = format!("Bearer {token}").parse().expect("tokens are ASCII");
    request.metadata_mut().insert("authorization", header);
    request
}

fn member(answer: StatusResponse) -> Member {
    let id = answer.answered_by;
    let mut coordinators = answer.coordinators.iter();
    Member {
        id,
        is_leader: coordinators.any(|other| other.id == id && other.role() == Role::Leader),
        epoch: answer.epoch,
        applied_index: answer.applied_index,
        state_hash: answer.state_hash,
        executors: answer
            .executors
            .into_iter()
            .map(|executor| (executor.id, executor.pid))
            .collect(),
    }
}

impl Seen {
    pub fn is_over(&self) -> bool {
        self.run.status() != RunStatus::Running
    }

    /// How much of the run is done, from 0 to 1: every stage counts the same, a sink's by its rows.
    pub fn progress(&self, rows: u64) -> f64 {
        if self.run.stages.is_empty() {
            return 0.0;
        }
        let done = self.run.stages.iter().map(|stage| match stage.sink.is_empty() {
            true => share(u64::from(stage.slices_done), u64::from(stage.slices)),
            false => share(stage.rows_written, rows),
        });
        done.sum::<f64>() / self.run.stages.len() as f64
    }

    /// Executors that work on it now, each once.
    pub fn at_work(&self) -> Vec<String> {
        let running = self.tasks.iter().filter(|task| task.state() == TaskState::Running);
        let mut executors: Vec<String> =
            running.map(|task| task.executor.clone()).filter(|name| !name.is_empty()).collect();
        executors.sort();
        executors.dedup();
        executors
    }

    /// Attempts at all tasks.
    pub fn attempts(&self) -> u32 {
        self.tasks.iter().map(|task| task.attempts).sum()
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

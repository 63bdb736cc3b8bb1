//! `weir cluster status`: what every coordinator says, side by side.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use crate::args::{ClusterArgs, Global, Output};
use crate::client::{self, Endpoints, Standing};
use crate::cluster_file::ClusterFile;
use crate::failure::Failure;
use crate::output;

const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
struct Report {
    coordinators: Vec<Coordinator>,
    /// As the leader knows them.
    executors: Vec<Executor>,
    /// Executors that are to take no tasks, whether they are here or have left.
    draining: Vec<String>,
    epoch: u64,
}

#[derive(Debug, Serialize)]
struct Coordinator {
    id: Option<u64>,
    pid: Option<u32>,
    url: String,
    role: Role,
    applied_index: Option<u64>,
    /// If it was asked for.
    state_hash: Option<String>,
    /// Why it is unreachable.
    error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    Leader,
    Follower,
    Unreachable,
}

#[derive(Debug, Serialize)]
struct Executor {
    id: String,
    pid: u32,
    host: String,
    slots: u32,
    busy_slots: u32,
    draining: bool,
}

/// Exit code 3 when none leads.
pub(super) async fn status(
    global: &Global,
    with_hash: bool,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let endpoints = Endpoints::required(cluster)?;
    // A ledger of some hundred MB is not hashed within a moment.
    let patience = if with_hash { PATIENCE * 10 } else { PATIENCE };
    let standings =
        client::standings(&endpoints.urls, &endpoints.access, patience, with_hash).await;
    let report = report(&standings, endpoints.file.as_ref());
    if global.output == Output::Json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    let is_led = report.coordinators.iter().any(|coordinator| coordinator.role == Role::Leader);
    Ok(if is_led { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn report(standings: &[Standing], file: Option<&ClusterFile>) -> Report {
    // One that was cut off may still believe that it leads: the newest epoch is right.
    let leader = standings
        .iter()
        .filter(|standing| standing.is_leader())
        .filter_map(|standing| standing.answer.as_ref().ok())
        .max_by_key(|answer| answer.epoch);
    let coordinators = standings.iter().map(|standing| {
        let entry =
            file.and_then(|file| file.coordinators.iter().find(|entry| entry.url == standing.url));
        let answer = standing.answer.as_ref();
        let role = match answer {
            Err(_) => Role::Unreachable,
            Ok(answer) if leader.is_some_and(|leader| leader.answered_by == answer.answered_by) => {
                Role::Leader
            }
            Ok(_) => Role::Follower,
        };
        Coordinator {
            id: standing.id().or(entry.map(|entry| entry.id)),
            pid: entry.map(|entry| entry.process.pid),
            url: standing.url.clone(),
            role,
            applied_index: answer.ok().map(|answer| answer.applied_index),
            state_hash: (answer.ok())
                .map(|answer| answer.state_hash.clone())
                .filter(|hash| !hash.is_empty()),
            error: answer.err().cloned(),
        }
    });
    let executors =
        leader.map_or(&[][..], |leader| &leader.executors).iter().map(|executor| Executor {
            id: executor.id.clone(),
            pid: executor.pid,
            host: executor.host.clone(),
            slots: executor.slots,
            busy_slots: executor.busy_slots,
            draining: executor.draining,
        });
    let epochs = standings.iter().filter_map(|standing| standing.answer.as_ref().ok());
    Report {
        coordinators: coordinators.collect(),
        executors: executors.collect(),
        draining: leader.map(|leader| leader.draining.clone()).unwrap_or_default(),
        epoch: epochs.map(|answer| answer.epoch).max().unwrap_or_default(),
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    let text = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
    let coordinators = report.coordinators.iter().map(|coordinator| {
        let role = match coordinator.role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Unreachable => "unreachable",
        };
        // Enough to see whether two differ.
        let hash = coordinator.state_hash.iter().flat_map(|hash| hash.chars().take(12));
        vec![
            text(coordinator.id),
            text(coordinator.pid.map(u64::from)),
            coordinator.url.clone(),
            role.to_owned(),
            text(coordinator.applied_index),
            hash.collect(),
            coordinator.error.clone().unwrap_or_default(),
        ]
    });
    output::table(
        &["COORDINATOR", "PID", "URL", "ROLE", "APPLIED", "STATE", ""],
        coordinators.collect(),
    )?;
    output::line("")?;
    let executors = report.executors.iter().map(|executor| {
        vec![
            executor.id.clone(),
            executor.pid.to_string(),
            executor.host.clone(),
            format!("{}/{}", executor.busy_slots, executor.slots),
            if executor.draining { "draining".to_owned() } else { String::new() },
        ]
    });
    let has_left = |name: &&String| !report.executors.iter().any(|here| here.id == **name);
    let left = report.draining.iter().filter(has_left).map(|name| {
        let unknown = String::new;
        vec![name.clone(), unknown(), unknown(), unknown(), "has left".to_owned()]
    });
    let executors = executors.chain(left);
    output::table(&["EXECUTOR", "PID", "HOST", "BUSY SLOTS", ""], executors.collect())
}

#[cfg(test)]
mod tests {
    use weir_proto::v1;

    use super::*;

    fn standing(id: u64, epoch: u64) -> Standing {
        let url = format!("http://127.0.0.1:400{id}");
        let itself = v1::Coordinator { id, url: url.clone(), role: v1::Role::Leader.into() };
        let answer = v1::StatusResponse {
            answered_by: id,
            coordinators: vec![itself],
            executors: vec![v1::Executor { id: format!("of-{id}"), ..v1::Executor::default() }],
            epoch,
            applied_index: 9,
            state_hash: "ab".to_owned(),
            draining: Vec::new(),
        };
        Standing { url, answer: Ok(answer) }
    }

    #[test]
    fn of_two_that_believe_to_lead_the_one_with_the_newer_epoch_does() {
        let gone =
            Standing { url: "http://127.0.0.1:4003".to_owned(), answer: Err("gone".to_owned()) };
        let report = report(&[standing(1, 4), standing(2, 7), gone], None);
        let roles: Vec<Role> = report.coordinators.iter().map(|member| member.role).collect();
        assert_eq!(roles, [Role::Follower, Role::Leader, Role::Unreachable]);
        assert_eq!(report.coordinators[2].error.as_deref(), Some("gone"));
        assert_eq!((report.executors[0].id.as_str(), report.epoch), ("of-2", 7));
    }
}

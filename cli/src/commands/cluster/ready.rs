//! Waits for a cluster's processes to find each other.

use std::time::Duration;

use weir_proto::v1::StatusResponse;

use crate::client::{self, Access, Standing};
use crate::cluster_file::ClusterFile;

const PATIENCE: Duration = Duration::from_secs(1);

/// What is missing yet; `None` when a leader knows every executor as the process that it is now, and
/// every coordinator answers.
pub(super) async fn missing(file: &ClusterFile, access: &Access) -> Option<String> {
    let standings = client::standings(&file.urls(), access, PATIENCE, false).await;
    missing_in(file, &standings)
}

/// As [`missing`], of one process alone: the others may be dead, and a coordinator without a leader.
pub(super) async fn missing_of(file: &ClusterFile, access: &Access, name: &str) -> Option<String> {
    let standings = client::standings(&file.urls(), access, PATIENCE, false).await;
    let mut alone = file.clone();
    alone.coordinators.retain(|entry| entry.process.name == name);
    alone.executors.retain(|entry| entry.process.name == name);
    missing_in(&alone, &standings)
}

fn missing_in(file: &ClusterFile, standings: &[Standing]) -> Option<String> {
    for entry in &file.coordinators {
        if !standings.iter().any(|standing| standing.id() == Some(entry.id)) {
            return Some(format!("{} does not answer", entry.process.name));
        }
    }
    if file.executors.is_empty() {
        return None;
    }
    let leader = standings.iter().find(|standing| standing.is_leader());
    let Some(leader) = leader.and_then(|leader| leader.answer.as_ref().ok()) else {
        return Some("no coordinator leads yet".to_owned());
    };
    let absent = file.executors.iter().find(|entry| !knows(leader, &entry.id, entry.process.pid));
    absent.map(|entry| format!("the leader does not know {} yet", entry.process.name))
}

fn knows(leader: &StatusResponse, id: &str, pid: u32) -> bool {
    leader.executors.iter().any(|executor| executor.id == id && executor.pid == pid)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weir_proto::v1::{Coordinator, Executor, Role};

    use super::*;
    use crate::commands::cluster::layout::{self, Common};

    fn standing(id: u64, role: Role, executors: &[(&str, u32)]) -> Standing {
        let url = format!("http://127.0.0.1:400{id}");
        let executors = executors.iter().map(|(id, pid)| Executor {
            id: (*id).to_owned(),
            pid: *pid,
            ..Executor::default()
        });
        let answer = StatusResponse {
            answered_by: id,
            coordinators: vec![Coordinator { id, url: url.clone(), role: role.into() }],
            executors: executors.collect(),
            ..StatusResponse::default()
        };
        Standing { url, answer: Ok(answer) }
    }

    #[test]
    fn a_cluster_is_up_when_all_answer_and_the_leader_knows_the_executors_of_now() {
        let urls = [1, 2].map(|id| format!("http://127.0.0.1:400{id}"));
        let members = [(1, urls[0].clone()), (2, urls[1].clone())];
        let mut file =
            layout::cluster(Path::new("/c"), &members, &urls[..1], None, &Common::default());
        file.executors[0].process.pid = 7;
        let follower = standing(1, Role::Follower, &[]);
        let missing = |standings: &[Standing]| missing_in(&file, standings).unwrap_or_default();
        let leader = |pid| standing(2, Role::Leader, &[("executor-1", pid)]);
        assert_eq!(missing(std::slice::from_ref(&follower)), "coordinator-2 does not answer");
        let second = standing(2, Role::Follower, &[]);
        assert_eq!(missing(&[follower.clone(), second]), "no coordinator leads yet");
        let stale = "the leader does not know executor-1 yet";
        assert_eq!(missing(&[follower.clone(), leader(6)]), stale);
        assert_eq!(missing(&[follower, leader(7)]), "");
    }
}

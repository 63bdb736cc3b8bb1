//! What every coordinator says of the cluster and of itself.

use std::time::Duration;

use weir_proto::v1::cluster_client::ClusterClient;
use weir_proto::v1::{Role, StatusRequest, StatusResponse};

use super::{Access, said};

/// A coordinator, and what it said.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub url: String,
    /// `Err`: why there is no answer.
    pub answer: Result<StatusResponse, String>,
}

impl Standing {
    pub(crate) fn id(&self) -> Option<u64> {
        self.answer.as_ref().ok().map(|answer| answer.answered_by)
    }

    /// As it sees itself.
    pub(crate) fn is_leader(&self) -> bool {
        self.answer.as_ref().is_ok_and(|answer| {
            let mut coordinators = answer.coordinators.iter();
            coordinators.any(|coordinator| {
                coordinator.id == answer.answered_by && coordinator.role() == Role::Leader
            })
        })
    }
}

/// Asks all at once, in the order of the URLs; with the coordinators that these name. The hash of its facts takes a
/// coordinator some time.
pub(crate) async fn standings(
    urls: &[String],
    access: &Access,
    patience: Duration,
    with_hash: bool,
) -> Vec<Standing> {
    let request = StatusRequest { with_hash };
    let mut standings = ask(urls, access, patience, request).await;
    let mut others: Vec<String> = Vec::new();
    for answer in standings.iter().filter_map(|standing| standing.answer.as_ref().ok()) {
        for coordinator in &answer.coordinators {
            let has_answered = standings.iter().any(|other| other.id() == Some(coordinator.id));
            let is_known = urls.contains(&coordinator.url) || others.contains(&coordinator.url);
            if !has_answered && !is_known {
                others.push(coordinator.url.clone());
            }
        }
    }
    standings.extend(ask(&others, access, patience, request).await);
    standings
}

async fn ask(
    urls: &[String],
    access: &Access,
    patience: Duration,
    request: StatusRequest,
) -> Vec<Standing> {
    let asked: Vec<_> = urls
        .iter()
        .map(|url| {
            let (url, access) = (url.clone(), access.clone());
            tokio::spawn(async move { status_of(&url, &access, patience, request).await })
        })
        .collect();
    let mut standings = Vec::new();
    for (url, asked) in urls.iter().zip(asked) {
        let answer = asked.await.unwrap_or_else(|error| Err(error.to_string()));
        standings.push(Standing { url: url.clone(), answer });
    }
    standings
}

async fn status_of(
    url: &str,
    access: &Access,
    patience: Duration,
    request: StatusRequest,
) -> Result<StatusResponse, String> {
    let mut cluster = ClusterClient::new(access.line(url)?);
    match tokio::time::timeout(patience, cluster.status(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(said(&status)),
        Err(_) => Err(format!("no answer within {:.0} s", patience.as_secs_f64())),
    }
}

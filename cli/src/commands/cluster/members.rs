//! `weir cluster members`: who keeps a copy of the ledger.

use std::process::ExitCode;

use serde::Serialize;
use weir_proto::v1;

use crate::args::{ClusterArgs, Global, Output};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Serialize)]
struct Listed {
    id: u64,
    url: String,
    role: &'static str,
    /// It has answered the leader just now, with the ledger that it has joined with.
    answers: bool,
    /// Entries that it has not got yet, as far as the leader knows.
    behind: u64,
}

pub(super) async fn members(global: &Global, cluster: &ClusterArgs) -> Result<ExitCode, Failure> {
    let v1::MembersResponse { members, last_index } = Client::required(cluster)?.members().await?;
    let members = members.into_iter().map(|member| Listed {
        role: match member.role() {
            v1::Role::Leader => "leader",
            v1::Role::Follower => "follower",
            v1::Role::Learner => "learner",
            v1::Role::Unspecified => "",
        },
        id: member.id,
        url: member.url,
        answers: member.answers,
        behind: last_index.saturating_sub(member.matched_index),
    });
    let members: Vec<Listed> = members.collect();
    if global.output == Output::Json {
        output::json(&members)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = members.iter().map(|member| {
        vec![
            member.id.to_string(),
            member.url.clone(),
            member.role.to_owned(),
            member.behind.to_string(),
            if member.answers { String::new() } else { "does not answer".to_owned() },
        ]
    });
    output::table(&["COORDINATOR", "URL", "ROLE", "BEHIND", ""], rows.collect())?;
    let voters = members.iter().filter(|member| member.role != "learner").count();
    if voters % 2 == 0 {
        output::line(&format!(
            "{voters} coordinators survive no more failures than {}: add one, or remove one",
            voters - 1
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

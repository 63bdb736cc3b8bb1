//! `weir cluster audit-log`: who has changed what.

use std::process::ExitCode;

use serde::Serialize;
use weir_proto::v1;

use crate::args::{ClusterArgs, Global, Output};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Serialize)]
struct Entry {
    at: String,
    who: String,
    what: String,
    about: String,
    accepted: bool,
    refused: Option<String>,
    times: u32,
    /// The first of several.
    since: Option<String>,
}

impl From<v1::AuditEntry> for Entry {
    fn from(entry: v1::AuditEntry) -> Self {
        let v1::AuditEntry { at, who, what, about, accepted, refused, times, since } = entry;
        let since = Some(since).filter(|since| !since.is_empty());
        let refused = (!accepted).then_some(refused);
        Self { at, who, what, about, accepted, refused, times, since }
    }
}

pub(super) async fn audit_log(
    global: &Global,
    limit: Option<u32>,
    cluster: &ClusterArgs,
) -> Result<ExitCode, Failure> {
    let entries = Client::required(cluster)?.audit_log(limit.unwrap_or(0)).await?;
    let entries: Vec<Entry> = entries.into_iter().map(Entry::from).collect();
    if global.output == Output::Json {
        output::json(&entries)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = entries.into_iter().map(|entry| {
        let mut outcome = entry.refused.unwrap_or_else(|| "accepted".to_owned());
        if let Some(since) = entry.since {
            outcome += &format!(", {} times since {since}", entry.times);
        }
        vec![entry.at, entry.who, entry.what, entry.about, outcome]
    });
    output::table(&["AT", "WHO", "WHAT", "ABOUT", "OUTCOME"], rows.collect())?;
    Ok(ExitCode::SUCCESS)
}

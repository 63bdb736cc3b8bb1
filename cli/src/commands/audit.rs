//! `weir audit RUN`: the proof. Exit code 1 when something differs.

use std::process::ExitCode;

use weir_connectors::Redactor;
use weir_coordinator::{AuditReport, history};

use super::backfill;
use crate::args::{ClusterArgs, Global, Output};
use crate::client::{Client, convert};
use crate::failure::Failure;
use crate::{files, output};

/// What the ids of backfills begin with.
const BACKFILL_PREFIX: &str = "bf-";

pub(crate) async fn audit(
    global: &Global,
    id: &str,
    cluster: &ClusterArgs,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    if id.starts_with(BACKFILL_PREFIX)
        && let Some(mut client) = Client::named(cluster)?
    {
        return backfill::print_audit(global, &client.audit_backfill(id).await?);
    }
    let report = match Client::named(cluster)? {
        Some(mut client) => convert::report(client.audit(id).await?),
        None => {
            let state_dir = super::state_dir_here(global);
            let frozen = history::frozen(&state_dir, id).await?;
            let context = files::context(global, &frozen.base_dir, redactor)?;
            history::audit(&state_dir, &frozen.run, &context).await?
        }
    };
    if global.output == Output::Json {
        output::json(&report)?;
    } else {
        // A cluster does not tell them.
        if !report.nodes.is_empty() {
            let nodes = report
                .nodes
                .iter()
                .map(|node| {
                    vec![
                        node.node.to_string(),
                        output::count(node.rows_in),
                        output::count(node.rows_out),
                        output::count(node.filtered),
                        output::count(node.dead_lettered),
                        output::count(node.dropped),
                    ]
                })
                .collect();
            output::table(&["NODE", "IN", "OUT", "FILTERED", "DEAD LETTERS", "DROPPED"], nodes)?;
            output::line("")?;
        }
        let sinks = report
            .sinks
            .iter()
            .map(|sink| {
                vec![
                    sink.sink.to_string(),
                    output::count(sink.batches),
                    output::count(sink.rows_in_ledger),
                    output::count(sink.rows_in_target),
                    sink.checksum.clone(),
                ]
            })
            .collect();
        output::table(&["SINK", "BATCHES", "ROWS IN LEDGER", "ROWS IN TARGET", "CHECKSUM"], sinks)?;
        output::line("")?;
        for finding in &report.findings {
            output::line(&format!("DIFFERS  {finding}"))?;
        }
        output::line(&verdict(&report))?;
    }
    Ok(if report.clean { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Only what has been looked at is claimed.
fn verdict(report: &AuditReport) -> String {
    let hidden = report.sinks.iter().filter(|sink| !sink.is_shown);
    let hidden: Vec<String> = hidden.map(|sink| format!("`{}`", sink.sink)).collect();
    match (report.clean, hidden.is_empty()) {
        (false, _) => "NOT clean".to_owned(),
        (true, true) => {
            "clean: every row that was read is accounted for, and the targets agree".to_owned()
        }
        (true, false) => format!(
            "clean so far: every row that was read is accounted for; not shown yet, and therefore not \
             compared: {}",
            hidden.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use weir_coordinator::SinkAudit;
    use weir_spec::NodeName;

    use super::*;

    #[test]
    fn a_target_that_shows_nothing_yet_is_not_said_to_agree() {
        let sink = |name: &str, is_shown| SinkAudit {
            sink: NodeName::new(name),
            batches: 1,
            rows_in_ledger: 2,
            rows_in_target: 0,
            is_shown,
            checksum: String::new(),
            differing: Vec::new(),
        };
        let mut report = AuditReport {
            run: String::new(),
            clean: true,
            nodes: Vec::new(),
            sinks: vec![sink("a", true)],
            findings: Vec::new(),
        };
        assert!(verdict(&report).ends_with("the targets agree"));
        report.sinks.push(sink("b", false));
        assert!(verdict(&report).ends_with("not compared: `b`"), "{}", verdict(&report));
        report.clean = false;
        assert_eq!(verdict(&report), "NOT clean");
    }
}

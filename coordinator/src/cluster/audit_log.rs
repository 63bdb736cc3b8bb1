//! Notes in the ledger of what clients change, or want to: who, what, about what, and whether it was done. No part of
//! a request but the name of what it was about comes here.

use std::cell::RefCell;

use chrono::Utc;
use tonic::{Code, Status};
use weir_ledger::{ClientChange, Command, NoteClientChange};
use weir_proto::v1;

use super::access::{Needed, needed};
use super::convert;
use super::leading::Leading;
use super::node::Node;

/// Names of what changes were about are cut off behind so many bytes.
const LONGEST_ABOUT: usize = 128;

tokio::task_local! {
    static ABOUT: RefCell<String>;
}

/// Says what the change is about that this task answers. Nothing happens where no change is noted.
pub(super) fn about(name: &str) {
    let end = (0..=LONGEST_ABOUT.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    let name = name[..end.unwrap_or(0)].to_owned();
    // A test or a call that changes nothing has no place for it.
    let _ = ABOUT.try_with(|about| about.replace(name));
}

/// Whether calls of a method are noted.
pub(super) fn is_change(path: &str) -> bool {
    let method = path.rsplit('/').next().unwrap_or_default();
    let only_reads = matches!(method, "ListTokens" | "ListAudit" | "Members");
    matches!(needed(path), Needed::Token(role) if role > weir_ledger::Role::Viewer) && !only_reads
}

/// Answers a change, and then notes it.
pub(super) async fn noted<T>(
    node: &Node,
    who: String,
    path: &str,
    answering: impl Future<Output = T>,
    code: impl FnOnce(&T) -> Code,
) -> T {
    let (answer, about) = ABOUT
        .scope(RefCell::default(), async {
            let answer = answering.await;
            (answer, ABOUT.with(RefCell::take))
        })
        .await;
    note(node, who, path, about, code(&answer)).await;
    answer
}

/// Notes a change that was not even tried.
pub(super) async fn note_refusal(node: &Node, who: String, path: &str, code: Code) {
    note(node, who, path, String::new(), code).await;
}

async fn note(node: &Node, who: String, path: &str, about: String, code: Code) {
    // Another coordinator has to answer, or nobody knows such a method.
    if matches!(code, Code::Unavailable | Code::Unimplemented) {
        return;
    }
    let Some(leading) = node.is_leading() else { return };
    let what = path.trim_start_matches("/weir.v1.").to_owned();
    let refused = (code != Code::Ok).then(|| convert::code_name(code).to_owned());
    let change = ClientChange { at: Utc::now(), who, what, about, refused };
    let note = NoteClientChange { epoch: leading.epoch, change };
    if let Err(error) = leading.append(Command::NoteClientChange(note)).await {
        tracing::warn!(target: "weir::access", %error, "a change is not noted");
    }
}

/// The newest `limit`, oldest first; 0: all.
pub(super) async fn list(leading: &Leading, limit: u32) -> Result<v1::ListAuditResponse, Status> {
    let limit = match usize::try_from(limit) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(limit) => limit,
    };
    let entries = leading.with_ledger(|ledger| {
        let changes = &ledger.client_changes;
        changes.iter().skip(changes.len().saturating_sub(limit)).map(entry).collect()
    });
    Ok(v1::ListAuditResponse { entries: entries.await })
}

fn entry(change: &ClientChange) -> v1::AuditEntry {
    v1::AuditEntry {
        at: convert::time(change.at),
        who: change.who.clone(),
        what: change.what.clone(),
        about: change.about.clone(),
        accepted: change.refused.is_none(),
        refused: change.refused.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_reads_is_not_noted() {
        for change in ["Runs/Submit", "Backfills/Pause", "Cluster/CreateToken", "New/Thing"] {
            assert!(is_change(&format!("/weir.v1.{change}")), "{change}");
        }
        for reads in ["Runs/Watch", "Cluster/Status", "Cluster/ListAudit", "Cluster/ListTokens"] {
            assert!(!is_change(&format!("/weir.v1.{reads}")), "{reads}");
        }
        assert!(
            !is_change("/weir.internal.v1.Raft/Vote") && !is_change("/grpc.health.v1.Health/Check")
        );
    }

    #[tokio::test]
    async fn what_a_change_is_about_is_said_by_who_makes_it_and_is_short() {
        about("nobody listens");
        let about_it = ABOUT
            .scope(RefCell::default(), async {
                about(&"ä".repeat(100));
                ABOUT.with(RefCell::take)
            })
            .await;
        assert_eq!(about_it, "ä".repeat(LONGEST_ABOUT / 2));
    }
}

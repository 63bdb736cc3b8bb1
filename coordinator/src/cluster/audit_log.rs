//! Notes in the ledger of what clients change, or want to: who, what, about what, and whether it was done. No part of
//! a request but the name of what it was about comes here. (Whether rows add up is `crate::audit`.)

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// Refusals that are alike are noted together.
const BETWEEN_NOTES: Duration = Duration::from_secs(1);

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

/// How a change was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    pub(super) code: Code,
    /// Nobody knows whether it was done.
    pub(super) is_unknown: bool,
}

impl Answered {
    /// Not what another coordinator has to answer, or what nobody knows a method for.
    fn is_noted(self) -> bool {
        match self.code {
            Code::Unavailable => self.is_unknown,
            Code::Unimplemented => false,
            _ => true,
        }
    }
}

/// Answers a change, and then notes it.
pub(super) async fn noted<T>(
    node: &Node,
    who: String,
    path: &str,
    answering: impl Future<Output = T>,
    answered: impl FnOnce(&T) -> Answered,
) -> T {
    let (answer, about) = ABOUT
        .scope(RefCell::default(), async {
            let answer = answering.await;
            (answer, ABOUT.with(RefCell::take))
        })
        .await;
    note(node, who, path, about, answered(&answer)).await;
    answer
}

/// Changes that were not even tried. Who may change nothing causes a few entries of the ledger's log for each method and
/// second, whatever he sends.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals {
    /// Noted just now, and how many have come since.
    more: Arc<Mutex<BTreeMap<Refusal, u32>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Refusal {
    who: String,
    what: String,
    code: &'static str,
}

impl Refusals {
    /// It goes on by itself: who asks may go away, and so may what waits for his answer.
    pub(super) fn note(&self, node: &Arc<Node>, who: String, path: &str, code: Code) {
        let refusal = Refusal { who, what: what_of(path), code: convert::code_name(code) };
        if !self.is_first(&refusal) {
            return;
        }
        let (refusals, node) = (self.clone(), Arc::clone(node));
        tokio::spawn(async move {
            append(&node, refusal.change(1)).await;
            tokio::time::sleep(BETWEEN_NOTES).await;
            let more = refusals.more().remove(&refusal).unwrap_or_default();
            if more > 0 {
                append(&node, refusal.change(more)).await;
            }
        });
    }

    fn is_first(&self, refusal: &Refusal) -> bool {
        match self.more().entry(refusal.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(0);
                true
            }
            Entry::Occupied(mut more) => {
                *more.get_mut() += 1;
                false
            }
        }
    }

    fn more(&self) -> MutexGuard<'_, BTreeMap<Refusal, u32>> {
        self.more.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Refusal {
    fn change(&self, times: u32) -> ClientChange {
        ClientChange {
            at: Utc::now(),
            who: self.who.clone(),
            what: self.what.clone(),
            about: String::new(),
            refused: Some(self.code.to_owned()),
            times,
            since: None,
        }
    }
}

/// The method of a path, as long as it is one of ours: a path may be as long as its client likes.
fn what_of(path: &str) -> String {
    match weir_proto::METHODS.contains(&path) {
        true => path.trim_start_matches("/weir.v1.").to_owned(),
        false => "unknown".to_owned(),
    }
}

async fn note(node: &Node, who: String, path: &str, about: String, answered: Answered) {
    if !answered.is_noted() {
        return;
    }
    let code = answered.code;
    let refused = (code != Code::Ok).then(|| convert::code_name(code).to_owned());
    let (at, what) = (Utc::now(), what_of(path));
    append(node, ClientChange { at, who, what, about, refused, times: 1, since: None }).await;
}

async fn append(node: &Node, change: ClientChange) {
    let Some(leading) = node.is_leading() else { return };
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
        let mut all: Vec<_> = ledger.client_changes.iter().chain(&ledger.client_refusals).collect();
        all.sort_by_key(|change| change.at);
        all.iter().skip(all.len().saturating_sub(limit)).map(|change| entry(change)).collect()
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
        times: change.times,
        since: change.since.map(convert::time).unwrap_or_default(),
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

    #[test]
    fn what_may_have_been_done_is_noted_and_what_is_asked_of_somebody_else_is_not() {
        let is_noted = |code, is_unknown| Answered { code, is_unknown }.is_noted();
        assert!(is_noted(Code::Ok, false) && is_noted(Code::NotFound, false));
        assert!(!is_noted(Code::Unavailable, false) && is_noted(Code::Unavailable, true));
        assert!(!is_noted(Code::Unimplemented, false));
    }

    #[test]
    fn what_is_asked_for_is_a_method_or_unknown() {
        assert_eq!(what_of("/weir.v1.Runs/Submit"), "Runs/Submit");
        let long = format!("/weir.v1.Runs/{}", "x".repeat(15_000));
        for other in [long.as_str(), "/weir.v1.Runs/Submit/", "/some.Thing/New", ""] {
            assert_eq!(what_of(other), "unknown");
        }
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

//! Who takes part in the ledger, and how that changes: one member at a time, on the leader.
//!
//! ```text
//! add:     introduced ─▶ learner, which gets a copy ─▶ voter (joint consensus)
//! remove:  voter ─▶ gone (joint consensus); the leader itself steps down when it is done
//! ```
//!
//! What an ended leader has left half done is finished by the next one. Whether a change may be made is decided by
//! pure functions of what is known of the members.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, Raft, ServerState};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::member::AppendError;
use super::network::Network;
use super::{Address, MemberId, Types};

/// More would only make every entry slower.
const MOST_VOTERS: usize = 5;
/// What a member has to say who it is.
const LONGEST_INTRODUCTION: Duration = Duration::from_secs(1);
/// A new member that has got nothing more for this long, and does not answer, is not waited for any longer.
const LONGEST_STANDSTILL: Duration = Duration::from_secs(20);
/// Nor one that answers: a snapshot is got as a whole, and it may be large.
const LONGEST_COPY: Duration = Duration::from_secs(600);
/// A change that the members have not agreed on by then may still come.
const LONGEST_CHANGE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);
/// Between two looks of the leader at what is to be done about the members.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// Who answers at an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Introduced {
    /// What its log is called.
    pub(super) disk: String,
    pub(super) has_entries: bool,
}

/// A member, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberState {
    pub id: MemberId,
    pub url: String,
    pub is_leader: bool,
    /// Takes part in decisions. Who does not gets a copy, and may come to do so.
    pub is_voter: bool,
    /// It has said who it is a moment ago, and has the log that it has joined with.
    pub answers: bool,
    /// The last entry that it is known to have.
    pub matched_index: u64,
}

/// Why a change of the members is refused: as they are now, it would do harm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("coordinator {id} is the one at {url}: give each a number of its own")]
    NumberTaken { id: MemberId, url: String },
    #[error("at {url} is coordinator {id} already")]
    UrlTaken { id: MemberId, url: String },
    #[error("there are {MOST_VOTERS} coordinators, and no more are allowed: remove one first")]
    TooMany,
    #[error(
        "no coordinator {id} without a ledger answers at {url} ({why}): start it there with `--join` first"
    )]
    NotThere { id: MemberId, url: String, why: String },
    #[error(
        "coordinator {id} at {url} has a ledger already: start it with `--join` and an empty `--dir`"
    )]
    NotEmpty { id: MemberId, url: String },
    #[error(
        "coordinator {id} at {url} is about to be added, and does not answer: start it, or remove it \
         (one that has lost its log is removed)"
    )]
    Silent { id: MemberId, url: String },
    #[error("coordinator {id} is the only one: its ledger would be gone with it")]
    OnlyOne { id: MemberId },
    #[error(
        "nothing could be decided any more: of the {voters} coordinators that there would be {needed} have to \
         answer, and {} would not: start or remove {} first",
        shown(silent), if silent.len() == 1 { "it" } else { "them" }
    )]
    NoQuorum { voters: usize, needed: usize, silent: Vec<MemberId> },
}

fn shown(ids: &[MemberId]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| format!("coordinator {id}")).collect();
    ids.join(" and ")
}

/// Why the members are as they were, or may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(
        "coordinator {id} is on its way, but has not got the ledger yet: it has come to entry {matched} of {last}, \
         and no further for {seconds} s. Is it reached at {url}? Repeat the request, or remove it"
    )]
    Behind { id: MemberId, url: String, matched: u64, last: u64, seconds: u64 },
}

/// What is to be done to have a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adding {
    Nothing,
    /// It gets a copy already.
    Promote,
    Join,
}

/// What is to be done to be without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removing {
    Nothing,
    Learner,
    Voter,
}

fn decide_adding(members: &[MemberState], id: MemberId, url: &str) -> Result<Adding, Refusal> {
    let known = members.iter().find(|member| member.id == id);
    if let Some(known) = known.filter(|known| known.url != url) {
        return Err(Refusal::NumberTaken { id, url: known.url.clone() });
    }
    if let Some(other) = members.iter().find(|member| member.id != id && member.url == url) {
        return Err(Refusal::UrlTaken { id: other.id, url: url.to_owned() });
    }
    if known.is_some_and(|known| known.is_voter) {
        return Ok(Adding::Nothing);
    }
    let voters: Vec<&MemberState> = members.iter().filter(|member| member.is_voter).collect();
    if voters.len() >= MOST_VOTERS {
        return Err(Refusal::TooMany);
    }
    // That it has once got a copy says nothing: it may have died since.
    if known.is_some_and(|known| !known.answers) {
        return Err(Refusal::Silent { id, url: url.to_owned() });
    }
    // One that is not known yet will have answered before it gets a copy.
    check_quorum(voters.iter().copied(), 1)?;
    Ok(if known.is_some() { Adding::Promote } else { Adding::Join })
}

fn decide_removing(members: &[MemberState], id: MemberId) -> Result<Removing, Refusal> {
    match members.iter().find(|member| member.id == id) {
        None => return Ok(Removing::Nothing),
        Some(known) if !known.is_voter => return Ok(Removing::Learner),
        Some(_) => {}
    }
    let others = || members.iter().filter(|member| member.is_voter && member.id != id);
    if others().next().is_none() {
        return Err(Refusal::OnlyOne { id });
    }
    check_quorum(others(), 0)?;
    Ok(Removing::Voter)
}

/// Whether a member that has got nothing more for this long will get nothing more.
fn is_stuck(stands: Duration, answers: bool) -> bool {
    stands > if answers { LONGEST_COPY } else { LONGEST_STANDSTILL }
}

/// Whether these voters, and so many more that answer, can decide anything.
fn check_quorum<'a>(
    voters: impl Iterator<Item = &'a MemberState>,
    more: usize,
) -> Result<(), Refusal> {
    let (answering, silent): (Vec<_>, Vec<_>) = voters.partition(|voter| voter.answers);
    let voters = answering.len() + silent.len() + more;
    let needed = voters / 2 + 1;
    if answering.len() + more < needed {
        let silent = silent.iter().map(|voter| voter.id).collect();
        return Err(Refusal::NoQuorum { voters, needed, silent });
    }
    Ok(())
}

/// One member's part in changes.
#[derive(Clone)]
pub(super) struct Membership {
    pub(super) member: MemberId,
    pub(super) raft: Raft<Types>,
    pub(super) network: Network,
    /// What its own log is called.
    pub(super) disk: String,
    /// Held by who changes the members: one change at a time.
    pub(super) changing: Arc<Mutex<()>>,
}

impl Membership {
    /// All members, those that are about to become voters included. On the leader.
    pub(super) async fn states(&self) -> Result<Vec<MemberState>, ChangeError> {
        let membership = self.members().await?;
        let metrics = self.raft.metrics().borrow().clone();
        let voters: BTreeSet<MemberId> = membership.voter_ids().collect();
        let last = metrics.last_log_index.unwrap_or(0);
        let states = membership.nodes().map(async |(id, address)| {
            let is_itself = *id == self.member;
            let introduced =
                async { self.network.peer(*id, address).introduce(LONGEST_INTRODUCTION).await };
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id).copied());
            MemberState {
                id: *id,
                url: address.url.clone(),
                is_leader: is_itself,
                is_voter: voters.contains(id),
                answers: is_itself || introduced.await.is_ok(),
                matched_index: match is_itself {
                    true => last,
                    false => matched.flatten().map_or(0, |matched| matched.index),
                },
            }
        });
        Ok(join_all(states).await)
    }

    /// Adds a member, which first gets a copy of everything and then takes part in decisions. Whether anything
    /// has changed: one that is there is left as it is. On the leader only.
    pub(super) async fn add(&self, id: MemberId, url: &str) -> Result<bool, ChangeError> {
        let _changing = self.changing.lock().await;
        self.settle().await?;
        match decide_adding(&self.states().await?, id, url)? {
            Adding::Nothing => return Ok(false),
            Adding::Promote => {}
            Adding::Join => {
                let not_there = |why| Refusal::NotThere { id, url: url.to_owned(), why };
                let there = self.network.peer(id, &Address::at(url));
                let there = there.introduce(LONGEST_INTRODUCTION).await.map_err(not_there)?;
                if there.has_entries {
                    return Err(Refusal::NotEmpty { id, url: url.to_owned() }.into());
                }
                let address = Address { url: url.to_owned(), disk: Some(there.disk) };
                self.change(ChangeMembers::AddNodes(BTreeMap::from([(id, address)]))).await?;
            }
        }
        self.until_caught_up(id, url).await?;
        // What it is known to have is remembered when it has died, and others may have died while it got its copy.
        decide_adding(&self.states().await?, id, url)?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await?;
        tracing::info!(coordinator = id, url, "coordinator added");
        Ok(true)
    }

    /// Takes a member out for good. Whether anything has changed. On the leader only, which steps down if it is
    /// meant itself.
    pub(super) async fn remove(&self, id: MemberId) -> Result<bool, ChangeError> {
        let _changing = self.changing.lock().await;
        self.settle().await?;
        let ids = BTreeSet::from([id]);
        match decide_removing(&self.states().await?, id)? {
            Removing::Nothing => return Ok(false),
            Removing::Learner => self.change(ChangeMembers::RemoveNodes(ids)).await?,
            Removing::Voter => self.change(ChangeMembers::RemoveVoters(ids)).await?,
        }
        tracing::info!(coordinator = id, "coordinator removed");
        Ok(true)
    }

    /// The members as they are at this moment: openraft's metrics follow a moment later. Not for a leader that has
    /// removed itself.
    async fn members(&self) -> Result<openraft::Membership<MemberId, Address>, ChangeError> {
        let looking = self.raft.with_raft_state(|state| {
            let members = state.membership_state.effective().membership().clone();
            (state.server_state == ServerState::Leader).then_some(members)
        });
        let members = looking.await.ok().flatten();
        let members = members.filter(|members| members.voter_ids().any(|id| id == self.member));
        members.ok_or_else(|| self.does_not_lead())
    }

    fn does_not_lead(&self) -> ChangeError {
        AppendError::NotLeader { member: self.member, leader: None }.into()
    }

    /// Ends a change that an earlier leader, or an earlier request, has begun.
    async fn settle(&self) -> Result<(), ChangeError> {
        let members = self.members().await?;
        match members.get_joint_config().as_slice() {
            [_, .., last] => self.change(ChangeMembers::ReplaceAllVoters(last.clone())).await,
            _ => Ok(()),
        }
    }

    async fn change(&self, change: ChangeMembers<MemberId, Address>) -> Result<(), ChangeError> {
        let changing = self.raft.change_membership(change, false);
        match tokio::time::timeout(LONGEST_CHANGE, changing).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(leader)))) => {
                let (member, leader) = (self.member, leader.leader_node);
                Err(AppendError::NotLeader { member, leader }.into())
            }
            Ok(Err(error)) => Err(AppendError::Unknown(error.to_string()).into()),
            Err(_) => Err(AppendError::Unknown(format!(
                "the members have not agreed within {} s",
                LONGEST_CHANGE.as_secs()
            ))
            .into()),
        }
    }

    /// Returns once the member has everything that was in the log when this was called.
    async fn until_caught_up(&self, id: MemberId, url: &str) -> Result<(), ChangeError> {
        let last = self.raft.metrics().borrow().last_log_index.unwrap_or(0);
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            let metrics = self.raft.metrics().borrow().clone();
            let Some(replication) = metrics.replication else {
                return Err(self.does_not_lead());
            };
            let matched = replication.get(&id).copied().flatten().map_or(0, |log| log.index);
            if matched >= last {
                return Ok(());
            }
            if matched > seen {
                (seen, since) = (matched, Instant::now());
            }
            let stands = since.elapsed();
            if stands > LONGEST_STANDSTILL && is_stuck(stands, self.answers(id).await?) {
                let (url, seconds) = (url.to_owned(), stands.as_secs());
                return Err(ChangeError::Behind { id, url, matched, last, seconds });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn answers(&self, id: MemberId) -> Result<bool, ChangeError> {
        let states = self.states().await?;
        Ok(states.iter().any(|member| member.id == id && member.answers))
    }

    /// While it leads: finishes what was left half done, and notes on which disks the first members keep their
    /// logs. Until the member has ended.
    pub(super) async fn run(self) {
        loop {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            let state = self.raft.server_metrics().borrow().state;
            if state != ServerState::Leader {
                if state == ServerState::Shutdown {
                    return;
                }
                continue;
            }
            // Whoever changes something now settles first.
            let Ok(_changing) = self.changing.try_lock() else { continue };
            let kept = async {
                self.settle().await?;
                self.note_disks().await
            };
            if let Err(error) = kept.await {
                tracing::debug!(%error, "the members are not settled");
            }
        }
    }

    async fn note_disks(&self) -> Result<(), ChangeError> {
        let members = self.members().await?;
        let unknown = members.nodes().filter(|(_, address)| address.disk.is_none());
        let asked = join_all(unknown.map(async |(id, address)| {
            let disk = match *id == self.member {
                true => self.disk.clone(),
                false => {
                    let peer = self.network.peer(*id, address);
                    peer.introduce(LONGEST_INTRODUCTION).await.ok()?.disk
                }
            };
            Some((*id, Address { disk: Some(disk), ..address.clone() }))
        }));
        let known: BTreeMap<MemberId, Address> = asked.await.into_iter().flatten().collect();
        match known.is_empty() {
            true => Ok(()),
            false => self.change(ChangeMembers::SetNodes(known)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(id: MemberId) -> String {
        format!("https://c{id}:1")
    }

    /// Voters; those in `silent` do not answer.
    fn voters(ids: &[MemberId], silent: &[MemberId]) -> Vec<MemberState> {
        let state = |id: &MemberId| MemberState {
            id: *id,
            url: url(*id),
            is_leader: *id == ids[0],
            is_voter: true,
            answers: !silent.contains(id),
            matched_index: 9,
        };
        ids.iter().map(state).collect()
    }

    #[test]
    fn a_member_is_added_under_a_number_and_an_address_of_its_own() {
        let three = voters(&[1, 2, 3], &[]);
        assert_eq!(decide_adding(&three, 4, &url(4)), Ok(Adding::Join));
        assert_eq!(decide_adding(&three, 3, &url(3)), Ok(Adding::Nothing), "it is there");
        let taken = Err(Refusal::NumberTaken { id: 3, url: url(3) });
        assert_eq!(decide_adding(&three, 3, &url(4)), taken);
        assert_eq!(
            decide_adding(&three, 4, &url(2)),
            Err(Refusal::UrlTaken { id: 2, url: url(2) })
        );
        assert_eq!(
            decide_adding(&voters(&[1, 2, 3, 4, 5], &[]), 6, &url(6)),
            Err(Refusal::TooMany)
        );
    }

    #[test]
    fn what_was_begun_is_gone_on_with() {
        let mut members = voters(&[1, 2, 3, 4], &[]);
        members[3].is_voter = false;
        assert_eq!(decide_adding(&members, 4, &url(4)), Ok(Adding::Promote));
        assert_eq!(decide_removing(&members, 4), Ok(Removing::Learner));
        assert_eq!(decide_removing(&members, 5), Ok(Removing::Nothing), "it is gone");
    }

    #[test]
    fn a_member_that_does_not_answer_comes_to_take_no_part_in_decisions() {
        let mut members = voters(&[1, 2, 3, 4], &[4]);
        members[3].is_voter = false;
        let silent = Err(Refusal::Silent { id: 4, url: url(4) });
        assert_eq!(decide_adding(&members, 4, &url(4)), silent);
        assert_eq!(decide_removing(&members, 4), Ok(Removing::Learner));
    }

    #[test]
    fn a_member_that_gets_a_snapshot_is_waited_for_as_long_as_it_answers() {
        let after = Duration::from_secs;
        assert!(is_stuck(after(21), false) && !is_stuck(after(19), false));
        assert!(!is_stuck(after(590), true) && is_stuck(after(601), true));
    }

    #[test]
    fn a_change_that_loses_the_quorum_is_refused() {
        let lost = |voters, needed, silent: &[MemberId]| Refusal::NoQuorum {
            voters,
            needed,
            silent: silent.to_vec(),
        };
        let one_is_dead = voters(&[1, 2, 3], &[3]);
        assert_eq!(decide_removing(&one_is_dead, 3), Ok(Removing::Voter));
        assert_eq!(decide_removing(&one_is_dead, 2), Err(lost(2, 2, &[3])));
        assert_eq!(decide_removing(&one_is_dead, 1), Err(lost(2, 2, &[3])), "the leader itself");
        assert_eq!(decide_adding(&one_is_dead, 4, &url(4)), Ok(Adding::Join));
        assert_eq!(decide_removing(&voters(&[1, 2], &[2]), 2), Ok(Removing::Voter));
        assert_eq!(decide_removing(&voters(&[1], &[]), 1), Err(Refusal::OnlyOne { id: 1 }));
        assert_eq!(decide_adding(&voters(&[1], &[]), 2, &url(2)), Ok(Adding::Join));
        let two_are_dead = voters(&[1, 2, 3, 4, 5], &[4, 5]);
        assert_eq!(decide_removing(&two_are_dead, 2), Err(lost(4, 3, &[4, 5])));
        let message = lost(4, 3, &[4, 5]).to_string();
        assert!(message.contains("coordinator 4 and coordinator 5 would not"), "{message}");
    }
}

//! When a follower stands for election. openraft's own timers are off: they take three to four seconds to notice a
//! leader that is gone, split votes by chance for several seconds more, and have a member that was away for a
//! while depose the leader that all others hear.
//!
//! A member that has not heard the leader for the time of a lease asks all others first, which changes nothing for
//! anybody ([`PreVote`]). It stands if a majority would vote for it, and either nobody listens at the leader's
//! address any more or the leader has been silent for much longer: a busy machine is no reason.

use std::time::Duration;

use futures::future::join_all;
use openraft::{LogId, Raft, ServerState, Vote};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::log_store::LastEntry;
use super::network::{Network, NoAnswer};
use super::{Address, MemberId, Types};

/// The longest that a member takes to say whether it would vote.
const LONGEST_ANSWER: Duration = Duration::from_millis(500);
/// After an answer that was no; each member's own is added.
const PAUSE: Duration = Duration::from_millis(100);
/// What a candidate has for the votes and the first entry.
const CANDIDACY: Duration = Duration::from_millis(500);
/// Between the members' pauses, so that not all stand at once.
const STAGGER: Duration = Duration::from_millis(60);

/// Whether the receiver would vote for the sender.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct PreVote {
    /// The sender's last entry.
    pub(super) last: Option<LogId<MemberId>>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct WouldVote(pub(super) bool);

/// What a member knows about who leads.
#[derive(Clone, Copy, Debug)]
struct Knows {
    leads: bool,
    /// Whom a majority has elected last, as far as it knows.
    leader: Option<MemberId>,
    /// Since the leader, or a candidate, was heard. None since the start of this process: any length.
    silence: Option<Duration>,
}

/// One member's part in elections.
#[derive(Clone)]
pub(super) struct Elections {
    pub(super) member: MemberId,
    pub(super) raft: Raft<Types>,
    pub(super) last: LastEntry,
    /// What its log is called.
    pub(super) disk: String,
    /// A leader that was heard within this time is not replaced. openraft has the same.
    pub(super) lease: Duration,
    /// A leader that is silent for longer, and has not ended, is replaced.
    pub(super) patience: Duration,
}

impl Elections {
    /// Until the member has ended.
    pub(super) async fn run(self, network: Network) {
        while let Some(pause) = self.look(&network).await {
            tokio::time::sleep(pause).await;
        }
    }

    /// Stands for election if it is time. How long to wait before the next look.
    async fn look(&self, network: &Network) -> Option<Duration> {
        let knows = self.knows().await?;
        let voters = self.voters();
        if knows.leads || !voters.iter().any(|(id, _)| *id == self.member) {
            return Some(self.lease / 4);
        }
        if let Some(rest) = knows.silence.and_then(|silence| self.lease.checked_sub(silence))
            && knows.leader.is_some()
        {
            return Some(rest + Duration::from_millis(5));
        }
        let request = PreVote { last: self.last.get() };
        let others = voters.iter().filter(|(id, _)| *id != self.member);
        let answers = join_all(others.map(async |(id, address)| {
            (*id, network.peer(*id, address).pre_vote(request, LONGEST_ANSWER).await)
        }));
        let answers = answers.await;
        let own_pause = STAGGER.saturating_mul(u32::try_from(self.member % 8).unwrap_or(0));
        if !stands(&knows, &answers, self.patience) {
            return Some(PAUSE + own_pause);
        }
        // Who has meanwhile heard a leader does not stand.
        if self.knows().await?.leader != knows.leader {
            return Some(PAUSE);
        }
        tracing::info!(member = self.member, silence = ?knows.silence, "stands for election");
        self.raft.trigger().elect().await.ok()?;
        Some(CANDIDACY + own_pause)
    }

    async fn knows(&self) -> Option<Knows> {
        let looking = self.raft.with_raft_state(|state| {
            let (vote, heard) = (state.vote_ref(), state.vote_last_modified());
            let leader = if vote.is_committed() { vote.leader_id().voted_for() } else { None };
            (state.server_state == ServerState::Leader, leader, heard)
        });
        let (leads, leader, heard) = looking.await.ok()?;
        let silence = heard.map(|heard| Instant::now().saturating_duration_since(heard));
        Some(Knows { leads, leader, silence })
    }

    /// What a refusal says: this member's vote and its last entry.
    pub(super) async fn vote(&self) -> Option<(Vote<MemberId>, Option<LogId<MemberId>>)> {
        let vote = self.raft.with_raft_state(|state| *state.vote_ref()).await.ok()?;
        Some((vote, self.last.get()))
    }

    /// Those that take part in decisions.
    pub(super) fn voters(&self) -> Vec<(MemberId, Address)> {
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let voters: std::collections::BTreeSet<MemberId> = membership.voter_ids().collect();
        (membership.nodes())
            .filter(|(id, _)| voters.contains(id))
            .map(|(id, address)| (*id, address.clone()))
            .collect()
    }

    /// The answer to another member, which is what openraft would answer to its request for a vote.
    pub(super) async fn would_vote(&self, request: PreVote) -> WouldVote {
        let Some(knows) = self.knows().await else { return WouldVote(false) };
        let hears_leader =
            knows.leader.is_some() && knows.silence.is_some_and(|silence| silence < self.lease);
        WouldVote(!knows.leads && !hears_leader && self.may_vote(request.last))
    }

    /// Whether a candidate with this last entry has all that this member may have promised to keep. A member with
    /// nothing at all may have lost its disk, and with it entries that only it and one other had: it votes again
    /// once it has got a copy, and in the first election of a new cluster.
    pub(super) fn may_vote(&self, candidate: Option<LogId<MemberId>>) -> bool {
        let own = self.last.get();
        let knows_nothing = own.is_none() && candidate.is_some_and(|last| last.index > 0);
        !knows_nothing && candidate >= own
    }
}

/// Whether to stand, after these answers of the other voters.
fn stands(
    knows: &Knows,
    answers: &[(MemberId, Result<WouldVote, NoAnswer>)],
    patience: Duration,
) -> bool {
    let votes =
        1 + answers.iter().filter(|(_, answer)| matches!(answer, Ok(WouldVote(true)))).count();
    let is_majority = votes * 2 > answers.len() + 1;
    let leader_is_gone = match knows.leader {
        // It was this member, in an earlier life of its process.
        None => true,
        Some(leader) => match answers.iter().find(|(id, _)| *id == leader) {
            // One that would vote for another has ended, and is here again.
            Some((_, answer)) => matches!(answer, Ok(WouldVote(true)) | Err(NoAnswer::Gone)),
            // It has been removed, by itself.
            None => true,
        },
    };
    let is_long = knows.silence.is_none_or(|silence| silence >= patience);
    is_majority && (leader_is_gone || is_long)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YES: Result<WouldVote, NoAnswer> = Ok(WouldVote(true));
    const NO: Result<WouldVote, NoAnswer> = Ok(WouldVote(false));
    const GONE: Result<WouldVote, NoAnswer> = Err(NoAnswer::Gone);
    const SILENT: Result<WouldVote, NoAnswer> = Err(NoAnswer::Silent);
    const PATIENCE: Duration = Duration::from_secs(3);

    /// Member 3 of three, which has not heard leader 1 for so long.
    fn stands_after(
        seconds: f64,
        first: Result<WouldVote, NoAnswer>,
        second: Result<WouldVote, NoAnswer>,
    ) -> bool {
        let silence = Some(Duration::from_secs_f64(seconds));
        let knows = Knows { leads: false, leader: Some(1), silence };
        stands(&knows, &[(1, first), (2, second)], PATIENCE)
    }

    #[test]
    fn a_leader_that_has_ended_is_replaced_at_once() {
        assert!(stands_after(1.0, GONE, YES));
        assert!(stands_after(1.0, YES, SILENT), "it is here again, and leads no longer");
    }

    #[test]
    fn a_leader_that_says_nothing_is_given_more_time() {
        assert!(!stands_after(1.0, SILENT, YES));
        assert!(!stands_after(2.9, SILENT, YES));
        assert!(stands_after(3.0, SILENT, YES));
    }

    #[test]
    fn nobody_stands_without_a_majority() {
        assert!(!stands_after(9.0, GONE, NO), "the other hears a leader, or knows more");
        assert!(!stands_after(9.0, SILENT, SILENT), "this member is cut off");
        assert!(!stands_after(9.0, GONE, GONE));
        assert!(!stands_after(9.0, NO, GONE), "the leader leads, and is not heard");
    }

    #[test]
    fn a_leader_that_has_removed_itself_is_replaced_at_once() {
        let silence = Some(Duration::from_secs(1));
        let knows = Knows { leads: false, leader: Some(9), silence };
        assert!(stands(&knows, &[(1, YES)], PATIENCE));
        assert!(!stands(&knows, &[(1, NO)], PATIENCE));
    }

    #[test]
    fn who_knows_of_no_leader_needs_a_majority_only() {
        let knows = Knows { leads: false, leader: None, silence: None };
        assert!(stands(&knows, &[(1, YES), (2, GONE)], PATIENCE));
        assert!(!stands(&knows, &[(1, NO), (2, GONE)], PATIENCE));
        assert!(stands(&knows, &[], PATIENCE), "one member is a cluster");
    }
}

//! Changes of the coordinators, as clients ask for them.

use std::sync::Arc;

use tonic::Status;
use weir_proto::v1;

use super::convert;
use super::errors::for_now;
use super::node::Node;
use crate::raft::{AppendError, ChangeError, MemberId, MemberState, RaftMember, Refusal};

pub(super) async fn list(node: &Node) -> Result<v1::MembersResponse, Status> {
    node.sure_to_lead().await?;
    let members = node.member.member_states().await.map_err(|error| status(node, &error))?;
    let leader = members.iter().find(|member| member.is_leader);
    Ok(v1::MembersResponse {
        last_index: leader.map(|leader| leader.matched_index).unwrap_or_default(),
        members: members.into_iter().map(member).collect(),
    })
}

fn member(state: MemberState) -> v1::Member {
    let role = match (state.is_leader, state.is_voter) {
        (true, _) => v1::Role::Leader,
        (false, true) => v1::Role::Follower,
        (false, false) => v1::Role::Learner,
    };
    v1::Member {
        id: state.id,
        url: state.url,
        role: role.into(),
        answers: state.answers,
        matched_index: state.matched_index,
    }
}

pub(super) async fn add(node: &Arc<Node>, id: MemberId, url: String) -> Result<bool, Status> {
    let is_url = url.starts_with("https://") || url.starts_with("http://");
    if id == 0 || !is_url {
        return Err(Status::invalid_argument(
            "a coordinator has a number from 1 on, and a URL `https://HOST:PORT`",
        ));
    }
    change(node, async move |member| member.add_member(id, &url).await).await
}

pub(super) async fn remove(node: &Arc<Node>, id: MemberId) -> Result<bool, Status> {
    change(node, async move |member| member.remove_member(id).await).await
}

/// A client that goes away does not leave a change half done.
async fn change<Change, Changing>(node: &Arc<Node>, change: Change) -> Result<bool, Status>
where
    Change: FnOnce(Arc<RaftMember>) -> Changing,
    Changing: Future<Output = Result<bool, ChangeError>> + Send + 'static,
{
    node.sure_to_lead().await?;
    let changing = tokio::spawn(change(Arc::clone(&node.member)));
    let changed = changing.await.map_err(|error| Status::internal(error.to_string()))?;
    changed.map_err(|error| status(node, &error))
}

fn status(node: &Node, error: &ChangeError) -> Status {
    let text = error.to_string();
    match error {
        ChangeError::Refused(Refusal::NumberTaken { .. } | Refusal::UrlTaken { .. }) => {
            Status::already_exists(text)
        }
        ChangeError::Behind { .. } => for_now(Status::failed_precondition(text)),
        ChangeError::Refused(_) => Status::failed_precondition(text),
        ChangeError::Append(AppendError::NotLeader { .. }) => node.not_leading(Status::unavailable),
        ChangeError::Append(AppendError::Unknown(_)) => convert::unknown(Status::unavailable(text)),
    }
}

//! `weir.v1.Cluster`: what a coordinator knows about the cluster.

use std::sync::Arc;

use chrono::Utc;
use tonic::{Request, Response, Status};
use uuid::Uuid;
use weir_connectors::Redactor;
use weir_ledger::{Command, CreateToken, Rejection, RevokeToken, Role};
use weir_proto::v1;
use weir_proto::v1::cluster_server::Cluster;

use super::access::{ANYBODY, BOOTSTRAP, hash};
use super::leading::Leading;
use super::node::Node;
use super::runs_service::check_request_id;
use super::{audit_log, convert, draining, members, requests};
use crate::store::StoreError;

#[derive(Clone, Debug)]
pub(super) struct ClusterService {
    pub(super) node: Arc<Node>,
    pub(super) redactor: Redactor,
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let member = &self.node.member;
        let leading = self.node.is_leading();
        // One that was elected, and must not lead or has not begun to, is no leader for clients.
        let leader = member.leader().filter(|id| *id != self.node.id || leading.is_some());
        let coordinators = (member.members().into_iter())
            .map(|(id, address)| v1::Coordinator {
                id,
                url: address.url,
                role: match leader == Some(id) {
                    true => v1::Role::Leader,
                    false => v1::Role::Follower,
                }
                .into(),
            })
            .collect();
        let (state_hash, applied_index, epoch) = match request.into_inner().with_hash {
            true => self.node.facts().await,
            false => {
                let (ledger, applied) = member.ledger_at().await;
                (String::new(), applied, ledger.current_epoch())
            }
        };
        Ok(Response::new(v1::StatusResponse {
            answered_by: self.node.id,
            coordinators,
            executors: leading.map(|leading| leading.pool.executors()).unwrap_or_default(),
            epoch,
            applied_index,
            state_hash,
            draining: self.node.member.ledger().await.draining.iter().cloned().collect(),
        }))
    }

    async fn members(
        &self,
        _: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        members::list(&self.node).await.map(Response::new)
    }

    async fn add_coordinator(
        &self,
        request: Request<v1::AddCoordinatorRequest>,
    ) -> Result<Response<v1::AddCoordinatorResponse>, Status> {
        let v1::AddCoordinatorRequest { id, url } = request.into_inner();
        audit_log::about(&format!("coordinator-{id}"));
        let changed = members::add(&self.node, id, url).await?;
        Ok(Response::new(v1::AddCoordinatorResponse { changed }))
    }

    async fn remove_coordinator(
        &self,
        request: Request<v1::RemoveCoordinatorRequest>,
    ) -> Result<Response<v1::RemoveCoordinatorResponse>, Status> {
        let id = request.into_inner().id;
        audit_log::about(&format!("coordinator-{id}"));
        let changed = members::remove(&self.node, id).await?;
        Ok(Response::new(v1::RemoveCoordinatorResponse { changed }))
    }

    async fn drain_executor(
        &self,
        request: Request<v1::DrainExecutorRequest>,
    ) -> Result<Response<v1::DrainExecutorResponse>, Status> {
        let changed = draining::set(&self.node, request.into_inner().executor, true).await?;
        Ok(Response::new(v1::DrainExecutorResponse { changed }))
    }

    async fn undrain_executor(
        &self,
        request: Request<v1::UndrainExecutorRequest>,
    ) -> Result<Response<v1::UndrainExecutorResponse>, Status> {
        let changed = draining::set(&self.node, request.into_inner().executor, false).await?;
        Ok(Response::new(v1::UndrainExecutorResponse { changed }))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        let leading = self.node.sure_to_lead().await?;
        audit_log::list(&leading, request.into_inner().limit).await.map(Response::new)
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let leading = self.node.leading(Status::unavailable)?;
        let role = role(request.get_ref().role())?;
        let v1::CreateTokenRequest { name, request_id, token, .. } = request.into_inner();
        audit_log::about(&name);
        check_request_id(&request_id)?;
        check_token_name(&name)?;
        let is_sent = !token.is_empty();
        let token = match is_sent {
            true => sent_token(token)?,
            // 244 random bits.
            false => format!("weir_{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()),
        };
        let (epoch, hash, at) = (leading.epoch, hash(&token), Utc::now());
        let requested = requests::Request::new(
            &request_id,
            "Cluster/CreateToken",
            format!("{name} ({role:?})"),
        );
        let create = CreateToken { epoch, name: name.clone(), role, hash: hash.clone(), at };
        if !self.append(&leading, requested.named(epoch, Command::CreateToken(create))).await? {
            // It was made before. Another one than it has made opens nothing.
            let known = leading.with_ledger(|ledger| ledger.tokens.get(&name).cloned()).await;
            if !is_sent || known.is_some_and(|known| known.hash != hash) {
                return Err(Status::failed_precondition(format!(
                    "request {request_id} has made the token `{name}` before, and only who has got its answer \
                     knows it: revoke it, and make another one"
                )));
            }
        }
        Ok(Response::new(v1::CreateTokenResponse { token }))
    }

    async fn list_tokens(
        &self,
        _: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let leading = self.node.sure_to_lead().await?;
        let tokens = leading.with_ledger(|ledger| {
            (ledger.tokens.iter())
                .map(|(name, facts)| v1::Token {
                    name: name.clone(),
                    role: match facts.role {
                        Role::Viewer => v1::TokenRole::Viewer,
                        Role::Operator => v1::TokenRole::Operator,
                        Role::Admin => v1::TokenRole::Admin,
                    }
                    .into(),
                    created_at: convert::time(facts.created_at),
                })
                .collect()
        });
        Ok(Response::new(v1::ListTokensResponse { tokens: tokens.await }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let leading = self.node.leading(Status::unavailable)?;
        let v1::RevokeTokenRequest { name, request_id } = request.into_inner();
        audit_log::about(&name);
        check_request_id(&request_id)?;
        let requested = requests::Request::new(&request_id, "Cluster/RevokeToken", name.clone());
        let revoke = Command::RevokeToken(RevokeToken { epoch: leading.epoch, name });
        self.append(&leading, requested.named(leading.epoch, revoke)).await?;
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }
}

impl ClusterService {
    /// Whether anything is different now.
    async fn append(&self, leading: &Leading, command: Command) -> Result<bool, Status> {
        match leading.store.append(command).await {
            Ok(changed) => Ok(changed),
            Err(StoreError::Rejected(rejection)) => match rejection {
                Rejection::TokenExists(_) => Err(Status::already_exists(rejection.to_string())),
                Rejection::UnknownToken(_) => Err(Status::not_found(rejection.to_string())),
                Rejection::RequestUsed { .. } => {
                    Err(Status::failed_precondition(rejection.to_string()))
                }
                other => {
                    leading.broken.cancel();
                    Err(Status::unavailable(other.to_string()))
                }
            },
            Err(StoreError::NotLeader(_)) => Err(self.node.not_leading(Status::unavailable)),
            Err(error) => {
                leading.broken.cancel();
                let text = self.redactor.redact(&error.to_string());
                Err(convert::unknown(Status::unavailable(text)))
            }
        }
    }
}

fn check_token_name(name: &str) -> Result<(), Status> {
    let is_name = (1..=64).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if !is_name {
        return Err(Status::invalid_argument(
            "a token's name has 1 to 64 letters, digits, `-`, `_` or `.`",
        ));
    }
    // Who has one of these names without such a token shares nothing with its holder.
    if [BOOTSTRAP, ANYBODY].contains(&name) {
        return Err(Status::invalid_argument(format!(
            "`{name}` is what callers without a token of the ledger are called: choose another name"
        )));
    }
    Ok(())
}

/// One that a client has chosen must be as hard to guess as ours.
fn sent_token(token: String) -> Result<String, Status> {
    let digits = token.strip_prefix("weir_").unwrap_or_default();
    match digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(token),
        false => Err(Status::invalid_argument(
            "a token that a client chooses is `weir_` and 64 random hexadecimal digits",
        )),
    }
}

fn role(role: v1::TokenRole) -> Result<Role, Status> {
    match role {
        v1::TokenRole::Viewer => Ok(Role::Viewer),
        v1::TokenRole::Operator => Ok(Role::Operator),
        v1::TokenRole::Admin => Ok(Role::Admin),
        v1::TokenRole::Unspecified => Err(Status::invalid_argument("the token's role is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_called_as_nobody_else_is() {
        for name in ["olga", "ci-7", "a.b_c", &"x".repeat(64)] {
            check_token_name(name).expect(name);
        }
        for name in ["", "a b", "ä", &"x".repeat(65), "bootstrap", "anybody"] {
            check_token_name(name).expect_err(name);
        }
    }
}

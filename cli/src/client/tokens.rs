//! The tokens of a cluster.

use tonic::Code;
use weir_proto::v1::cluster_client::ClusterClient;
use weir_proto::v1::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, Token, TokenRole};

use super::{CallError, Client, Result};
use crate::failure::Failure;

impl Client {
    /// The token, which nobody can be asked for again.
    pub(crate) async fn create_token(
        &mut self,
        name: &str,
        role: TokenRole,
    ) -> Result<String, Failure> {
        let request = CreateTokenRequest { name: name.to_owned(), role: role.into() };
        let answer = self.call(|line| {
            let request = request.clone();
            async move { ClusterClient::new(line).create_token(request).await }
        });
        match answer.await {
            Ok(answer) => Ok(answer.token),
            // The first request has made it, and its answer was lost.
            Err(CallError::Refused { status, is_repeated: true })
                if status.code() == Code::AlreadyExists =>
            {
                Err(Failure::Run(format!(
                    "the token `{name}` may have been made just now, but the connection broke before \
                     it was here: revoke it, and make it again"
                )))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) async fn tokens(&mut self) -> Result<Vec<Token>> {
        let answer = self.call(|line| async move {
            ClusterClient::new(line).list_tokens(ListTokensRequest {}).await
        });
        Ok(answer.await?.tokens)
    }

    pub(crate) async fn revoke_token(&mut self, name: &str) -> Result<()> {
        let request = RevokeTokenRequest { name: name.to_owned() };
        let answer = self.call(|line| {
            let request = request.clone();
            async move { ClusterClient::new(line).revoke_token(request).await }
        });
        match answer.await {
            Ok(_) => Ok(()),
            // By the first request, whose answer was lost.
            Err(CallError::Refused { status, is_repeated: true })
                if status.code() == Code::NotFound =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

//! The tokens of a cluster.

use weir_proto::v1::cluster_client::ClusterClient;
use weir_proto::v1::{CreateTokenRequest, ListTokensRequest, RevokeTokenRequest, Token, TokenRole};

use super::{Client, Result, new_request_id};

impl Client {
    /// The token, which nobody can be asked for again.
    pub(crate) async fn create_token(&mut self, name: &str, role: TokenRole) -> Result<String> {
        let request = CreateTokenRequest {
            name: name.to_owned(),
            role: role.into(),
            request_id: new_request_id(),
            token: new_token(),
        };
        let answer = self.call(|line| {
            let request = request.clone();
            async move { ClusterClient::new(line).create_token(request).await }
        });
        Ok(answer.await?.token)
    }

    pub(crate) async fn tokens(&mut self) -> Result<Vec<Token>> {
        let answer = self.call(|line| async move {
            ClusterClient::new(line).list_tokens(ListTokensRequest {}).await
        });
        Ok(answer.await?.tokens)
    }

    pub(crate) async fn revoke_token(&mut self, name: &str) -> Result<()> {
        let request = RevokeTokenRequest { name: name.to_owned(), request_id: new_request_id() };
        let answer = self.call(|line| {
            let request = request.clone();
            async move { ClusterClient::new(line).revoke_token(request).await }
        });
        answer.await.map(drop)
    }
}

/// Made here, so that the cluster can answer twice. 244 random bits.
fn new_token() -> String {
    format!("weir_{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

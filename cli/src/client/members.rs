//! The coordinators of a cluster and its executors, and what its clients have changed.

use std::time::Duration;

use weir_proto::v1::cluster_client::ClusterClient;
use weir_proto::v1::{
    AddCoordinatorRequest, AuditEntry, DrainExecutorRequest, ListAuditRequest, MembersRequest,
    MembersResponse, RemoveCoordinatorRequest, StatusRequest, UndrainExecutorRequest,
};

use super::{Client, MAX_MESSAGE_BYTES, Result};

/// Who watches something for long hears so often who the coordinators are.
pub(super) const LEARN_EVERY: Duration = Duration::from_secs(3);
const LONGEST_LESSON: Duration = Duration::from_secs(2);

impl Client {
    pub(crate) async fn members(&mut self) -> Result<MembersResponse> {
        self.call(|line| async move { ClusterClient::new(line).members(MembersRequest {}).await })
            .await
    }

    /// Whether it was not there before. May take as long as a copy of the ledger does.
    pub(crate) async fn add_coordinator(&mut self, id: u64, url: &str) -> Result<bool> {
        let request = AddCoordinatorRequest { id, url: url.to_owned() };
        let answer = self.call(|line| {
            let request = request.clone();
            async move { ClusterClient::new(line).add_coordinator(request).await }
        });
        Ok(answer.await?.changed)
    }

    /// Whether it was there.
    pub(crate) async fn remove_coordinator(&mut self, id: u64) -> Result<bool> {
        let request = RemoveCoordinatorRequest { id };
        let answer = self
            .call(|line| async move { ClusterClient::new(line).remove_coordinator(request).await });
        Ok(answer.await?.changed)
    }

    /// Whether it was not to leave before.
    pub(crate) async fn drain_executor(&mut self, name: &str) -> Result<bool> {
        let request = DrainExecutorRequest { executor: name.to_owned() };
        let answer = self.call(|line| {
            let request = request.clone();
            async move { ClusterClient::new(line).drain_executor(request).await }
        });
        Ok(answer.await?.changed)
    }

    /// Whether it was to leave.
    pub(crate) async fn undrain_executor(&mut self, name: &str) -> Result<bool> {
        let request = UndrainExecutorRequest { executor: name.to_owned() };
        let answer = self.call(|line| {
            let request = request.clone();
            async move { ClusterClient::new(line).undrain_executor(request).await }
        });
        Ok(answer.await?.changed)
    }

    /// The newest `limit`, oldest first; 0: all.
    pub(crate) async fn audit_log(&mut self, limit: u32) -> Result<Vec<AuditEntry>> {
        let request = ListAuditRequest { limit };
        let answer = self.call(|line| async move {
            let client = ClusterClient::new(line).max_decoding_message_size(MAX_MESSAGE_BYTES);
            { client }.list_audit(request).await
        });
        Ok(answer.await?.entries)
    }

    /// All coordinators that were named may be replaced while something is watched. Whom it has been asking knows who
    /// they are by now; if not, nothing changes.
    pub(super) async fn learn(&mut self) {
        let url = self.search.url().to_owned();
        let Ok(line) = self.line(&url) else { return };
        let mut cluster = ClusterClient::new(line);
        let asking = cluster.status(StatusRequest::default());
        if let Ok(Ok(answer)) = tokio::time::timeout(LONGEST_LESSON, asking).await {
            let urls = answer.into_inner().coordinators.into_iter();
            self.search.learn(urls.map(|coordinator| coordinator.url).collect());
        }
    }
}

//! Watermarks of the pipelines of a cluster.

use std::collections::BTreeMap;

use weir_proto::v1::state_client::StateClient;
use weir_proto::v1::{GetStateRequest, ResetWatermarksRequest, SetWatermarkRequest};
use weir_spec::NodeName;

use super::{Client, Result};

impl Client {
    pub(crate) async fn watermarks(
        &mut self,
        pipeline: &str,
    ) -> Result<BTreeMap<NodeName, String>> {
        let request = GetStateRequest { pipeline: pipeline.to_owned() };
        let answer = self.call(move |line| {
            let request = request.clone();
            async move { StateClient::new(line).get(request).await }
        });
        let watermarks = answer.await?.watermarks.into_iter();
        Ok(watermarks.map(|(source, value)| (NodeName::new(source), value)).collect())
    }

    pub(crate) async fn set_watermark(
        &mut self,
        pipeline: &str,
        source: &str,
        value: &str,
    ) -> Result<()> {
        let request = SetWatermarkRequest {
            pipeline: pipeline.to_owned(),
            source: source.to_owned(),
            value: value.to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
        };
        let answer = self.call(move |line| {
            let request = request.clone();
            async move { StateClient::new(line).set_watermark(request).await }
        });
        answer.await.map(drop)
    }

    /// Of one source, or of all.
    pub(crate) async fn reset_watermarks(
        &mut self,
        pipeline: &str,
        source: Option<&str>,
    ) -> Result<()> {
        let request = ResetWatermarksRequest {
            pipeline: pipeline.to_owned(),
            source: source.unwrap_or_default().to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
        };
        let answer = self.call(move |line| {
            let request = request.clone();
            async move { StateClient::new(line).reset_watermarks(request).await }
        });
        answer.await.map(drop)
    }
}

//! The pipelines that are registered with a cluster.

use weir_proto::v1::pipelines_client::PipelinesClient;
use weir_proto::v1::{
    DeletePipelineRequest, GetPipelineRequest, ListPipelinesRequest, ListVersionsRequest, Pipeline,
    PipelineVersion, RegisterPipelineRequest, RegisterPipelineResponse, RegisteredPipeline,
};

use super::access::Line;
use super::{Client, MAX_MESSAGE_BYTES, Result};

impl Client {
    /// Registers nothing twice when it is repeated: the request has an id.
    pub(crate) async fn register(
        &mut self,
        request: RegisterPipelineRequest,
    ) -> Result<RegisterPipelineResponse> {
        self.call(move |line| {
            let request = request.clone();
            async move { pipelines(line).register(request).await }
        })
        .await
    }

    /// 0: the newest version.
    pub(crate) async fn pipeline(
        &mut self,
        name: &str,
        version: u32,
    ) -> Result<RegisteredPipeline> {
        let request = GetPipelineRequest { pipeline: name.to_owned(), version };
        self.call(move |line| {
            let request = request.clone();
            async move { pipelines(line).get(request).await }
        })
        .await
    }

    pub(crate) async fn pipelines(&mut self) -> Result<Vec<Pipeline>> {
        let answer =
            self.call(|line| async move { pipelines(line).list(ListPipelinesRequest {}).await });
        Ok(answer.await?.pipelines)
    }

    pub(crate) async fn versions(&mut self, name: &str) -> Result<Vec<PipelineVersion>> {
        let request = ListVersionsRequest { pipeline: name.to_owned() };
        let answer = self.call(move |line| {
            let request = request.clone();
            async move { pipelines(line).list_versions(request).await }
        });
        Ok(answer.await?.versions)
    }

    pub(crate) async fn delete_pipeline(&mut self, name: &str) -> Result<()> {
        let (pipeline, request_id) = (name.to_owned(), uuid::Uuid::new_v4().to_string());
        let request = DeletePipelineRequest { pipeline, request_id };
        let answer = self.call(move |line| {
            let request = request.clone();
            async move { pipelines(line).delete(request).await }
        });
        answer.await.map(drop)
    }
}

fn pipelines(line: Line) -> PipelinesClient<Line> {
    PipelinesClient::new(line).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

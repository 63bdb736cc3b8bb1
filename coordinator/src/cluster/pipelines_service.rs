//! `weir.v1.Pipelines`: what clients register.

use std::path::PathBuf;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use weir_ledger::PipelineVersion;
use weir_proto::v1;
use weir_proto::v1::pipelines_server::Pipelines;
use weir_spec::PipelineName;

use super::convert::time;
use super::pipelines::not_registered;
use super::runs_service::{self, RunsService};
use super::{audit_log, requests};
use crate::frozen::Registered;

/// Finds the leader, and says what has failed, as the service of runs does.
#[derive(Clone, Debug)]
pub(super) struct PipelinesService(pub(super) RunsService);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Pipelines for PipelinesService {
    async fn register(
        &self,
        request: Request<v1::RegisterPipelineRequest>,
    ) -> Answer<v1::RegisterPipelineResponse> {
        let leading = self.0.leading().await?;
        let v1::RegisterPipelineRequest { text, file_name, base_dir, workspace, request_id } =
            request.into_inner();
        let base_dir = PathBuf::from(base_dir);
        let registered = Registered { text, workspace, file_name, base_dir };
        let parsed = runs_service::parse(&registered)?;
        runs_service::check_request_id(&request_id)?;
        let pipeline = parsed.spec.pipeline;
        audit_log::about(&pipeline.0);
        let subject = format!("{pipeline} (content {})", registered.content_hash());
        let method = requests::Request::new(&request_id, "Pipelines/Register", subject);
        // A client that goes away does not stop what has begun.
        let registering = {
            let (leading, pipeline) = (Arc::clone(&leading), pipeline.clone());
            tokio::spawn(async move { leading.register(pipeline, registered, method).await })
        };
        let done = registering.await.map_err(|error| Status::internal(error.to_string()))?;
        let (version, is_new) = done.map_err(|error| self.0.failed(&error))?;
        let pipeline = pipeline.0;
        Ok(Response::new(v1::RegisterPipelineResponse { pipeline, version, is_new }))
    }

    async fn get(
        &self,
        request: Request<v1::GetPipelineRequest>,
    ) -> Answer<v1::RegisteredPipeline> {
        let leading = self.0.leading().await?;
        let v1::GetPipelineRequest { pipeline, version } = request.into_inner();
        let pipeline = PipelineName(pipeline);
        let found = leading.registered(&pipeline, version).await;
        let (version, registered) = found.map_err(|error| self.0.failed(&error))?;
        let Registered { text, workspace, file_name, base_dir } = registered;
        Ok(Response::new(v1::RegisteredPipeline {
            pipeline: pipeline.0,
            version: version.version,
            content_hash: version.content_hash,
            registered_at: time(version.at),
            text,
            workspace,
            file_name,
            base_dir: base_dir.display().to_string(),
        }))
    }

    async fn list(
        &self,
        _: Request<v1::ListPipelinesRequest>,
    ) -> Answer<v1::ListPipelinesResponse> {
        let leading = self.0.leading().await?;
        let pipelines = leading
            .with_ledger(|ledger| {
                let known = ledger.pipelines.iter();
                known
                    .filter_map(|(pipeline, facts)| {
                        let newest = facts.newest_version()?;
                        let active = facts.active_run.as_ref();
                        Some(v1::Pipeline {
                            pipeline: pipeline.0.clone(),
                            version: newest.version,
                            registered_at: time(newest.at),
                            active_run: active.map(|run| run.0.clone()).unwrap_or_default(),
                        })
                    })
                    .collect()
            })
            .await;
        Ok(Response::new(v1::ListPipelinesResponse { pipelines }))
    }

    async fn list_versions(
        &self,
        request: Request<v1::ListVersionsRequest>,
    ) -> Answer<v1::ListVersionsResponse> {
        let leading = self.0.leading().await?;
        let pipeline = PipelineName(request.into_inner().pipeline);
        let versions = leading.versions(&pipeline).await;
        if versions.is_empty() {
            return Err(self.0.failed(&not_registered(&pipeline)));
        }
        let versions =
            versions.into_iter().map(|PipelineVersion { version, content_hash, at, .. }| {
                v1::PipelineVersion { version, content_hash, registered_at: time(at) }
            });
        Ok(Response::new(v1::ListVersionsResponse { versions: versions.collect() }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeletePipelineRequest>,
    ) -> Answer<v1::DeletePipelineResponse> {
        let leading = self.0.leading().await?;
        let v1::DeletePipelineRequest { pipeline, request_id } = request.into_inner();
        audit_log::about(&pipeline);
        runs_service::check_request_id(&request_id)?;
        let method = requests::Request::new(&request_id, "Pipelines/Delete", pipeline.clone());
        let deleted = leading.delete_pipeline(&PipelineName(pipeline), method).await;
        deleted.map_err(|error| self.0.failed(&error))?;
        Ok(Response::new(v1::DeletePipelineResponse {}))
    }
}

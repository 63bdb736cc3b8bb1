//! `weir.v1.State`: watermarks, looked at and moved by hand.

use tonic::{Request, Response, Status};
use weir_ledger::{Command, NodeRole, Rejection, ResetWatermark, SetWatermark};
use weir_proto::v1;
use weir_proto::v1::state_server::State;
use weir_spec::{NodeName, PipelineName};

use super::leading::Leading;
use super::runs_service::{RunsService, check_request_id};
use super::{audit_log, requests};
use crate::EngineError;

/// A cursor is a value of one column.
const LONGEST_VALUE: usize = 64 << 10;

/// Of a pipeline, or of a source.
const LONGEST_NAME: usize = 256;

/// Finds the leader, and says what has failed, as the service of runs does.
#[derive(Clone, Debug)]
pub(super) struct StateService(pub(super) RunsService);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl State for StateService {
    async fn get(&self, request: Request<v1::GetStateRequest>) -> Answer<v1::PipelineState> {
        let leading = self.0.leading().await?;
        let pipeline = PipelineName(request.into_inner().pipeline);
        let state = leading.state(&pipeline).await;
        Ok(Response::new(state.map_err(|error| self.0.failed(&error))?))
    }

    async fn set_watermark(
        &self,
        request: Request<v1::SetWatermarkRequest>,
    ) -> Answer<v1::PipelineState> {
        let leading = self.0.leading().await?;
        let v1::SetWatermarkRequest { pipeline, source, value, request_id } = request.into_inner();
        audit_log::about(&format!("{pipeline}/{source}"));
        check_request_id(&request_id)?;
        check_names(&pipeline, &source)?;
        if source.is_empty() || value.len() > LONGEST_VALUE {
            return Err(Status::invalid_argument(format!(
                "a watermark has a source and a value of at most {LONGEST_VALUE} bytes"
            )));
        }
        // The same name for another value is another request.
        let value_hash = &blake3::hash(value.as_bytes()).to_hex()[..32];
        let subject = format!("{pipeline}/{source} (value {value_hash})");
        let request = requests::Request::new(&request_id, "State/SetWatermark", subject);
        let pipeline = PipelineName(pipeline);
        let source = NodeName::new(source);
        let known = leading.check_source(&pipeline, &source).await;
        known.map_err(|error| self.0.failed(&error))?;
        let (epoch, name) = (leading.epoch, pipeline.clone());
        let set = SetWatermark { epoch, pipeline: name, source, value };
        let moved = leading.move_watermark(request, Command::SetWatermark(set)).await;
        moved.map_err(|error| self.0.failed(&error))?;
        let state = leading.state(&pipeline).await;
        Ok(Response::new(state.map_err(|error| self.0.failed(&error))?))
    }

    async fn reset_watermarks(
        &self,
        request: Request<v1::ResetWatermarksRequest>,
    ) -> Answer<v1::PipelineState> {
        let leading = self.0.leading().await?;
        let v1::ResetWatermarksRequest { pipeline, source, request_id } = request.into_inner();
        check_request_id(&request_id)?;
        check_names(&pipeline, &source)?;
        let subject = format!("{pipeline}/{source}");
        audit_log::about(&subject);
        let request = requests::Request::new(&request_id, "State/ResetWatermarks", subject);
        let pipeline = PipelineName(pipeline);
        let reset = leading.reset_watermarks(&pipeline, &source, request).await;
        reset.map_err(|error| self.0.failed(&error))?;
        let state = leading.state(&pipeline).await;
        Ok(Response::new(state.map_err(|error| self.0.failed(&error))?))
    }
}

/// They stay in the ledger.
fn check_names(pipeline: &str, source: &str) -> Result<(), Status> {
    match pipeline.len() > LONGEST_NAME || source.len() > LONGEST_NAME {
        true => Err(Status::invalid_argument(format!(
            "the name of a pipeline or source has at most {LONGEST_NAME} bytes"
        ))),
        false => Ok(()),
    }
}

impl Leading {
    /// A watermark of something else would stay for ever, and move nothing. A pipeline that is not known has none at all.
    async fn check_source(
        &self,
        pipeline: &PipelineName,
        source: &NodeName,
    ) -> Result<(), EngineError> {
        let (is_pipeline, is_known) = self
            .with_ledger(|ledger| {
                let facts = ledger.pipelines.get(pipeline);
                let has_one = facts.is_some_and(|facts| facts.watermarks.contains_key(source));
                let runs = ledger.runs.values().filter(|run| run.pipeline == *pipeline);
                let mut stages = runs.flat_map(|run| &run.stages);
                let is_source = |role| matches!(role, Some(NodeRole::Source { .. }));
                let has_read = stages.any(|stage| is_source(stage.role(source)));
                (facts.is_some(), has_one || has_read)
            })
            .await;
        if is_known || !is_pipeline {
            return Ok(());
        }
        // None of its runs has come so far.
        if !self.versions(pipeline).await.is_empty() {
            let (_, registered) = self.registered(pipeline, 0).await?;
            let parsed = weir_spec::parse(&registered.file_name, &registered.text);
            if parsed.is_ok_and(|parsed| parsed.spec.sources.contains_key(source)) {
                return Ok(());
            }
        }
        Err(EngineError::NotFound(format!(
            "source `{source}` of pipeline `{pipeline}`: neither its newest version nor a run of it has one"
        )))
    }

    async fn state(&self, pipeline: &PipelineName) -> Result<v1::PipelineState, EngineError> {
        self.with_ledger(|ledger| {
            let facts = ledger.pipelines.get(pipeline).ok_or_else(|| unknown(pipeline))?;
            let watermarks = facts.watermarks.iter();
            Ok(v1::PipelineState {
                pipeline: pipeline.0.clone(),
                watermarks: watermarks
                    .map(|(source, value)| (source.to_string(), value.clone()))
                    .collect(),
            })
        })
        .await
    }

    /// Of one source, or of all where it is empty.
    async fn reset_watermarks(
        &self,
        pipeline: &PipelineName,
        source: &str,
        request: requests::Request,
    ) -> Result<(), EngineError> {
        if self.is_answered(&request).await? {
            return Ok(());
        }
        let known: Vec<NodeName> = self
            .with_ledger(|ledger| {
                let facts = ledger.pipelines.get(pipeline).ok_or_else(|| unknown(pipeline))?;
                Ok::<_, EngineError>(facts.watermarks.keys().cloned().collect())
            })
            .await?;
        let mut wanted: Vec<NodeName> = known
            .into_iter()
            .filter(|known| source.is_empty() || known.as_str() == source)
            .collect();
        if wanted.is_empty() && !source.is_empty() {
            return Err(EngineError::NotFound(format!(
                "watermark of source `{source}` of pipeline `{pipeline}`"
            )));
        }
        let (epoch, pipeline) = (self.epoch, pipeline.clone());
        let reset = |source| {
            Command::ResetWatermark(ResetWatermark { epoch, pipeline: pipeline.clone(), source })
        };
        // The request is answered with the last one: until then it may be made again.
        let Some(last) = wanted.pop() else { return Ok(()) };
        for source in wanted {
            self.move_watermark(requests::Request::unnamed(), reset(source)).await?;
        }
        self.move_watermark(request, reset(last)).await
    }

    async fn move_watermark(
        &self,
        request: requests::Request,
        command: Command,
    ) -> Result<(), EngineError> {
        match self.append_once(request, command).await? {
            Ok(_) => Ok(()),
            Err(Rejection::UnknownPipeline(pipeline)) => Err(unknown(&PipelineName(pipeline))),
            Err(Rejection::RunActive { active }) => Err(EngineError::Busy(format!(
                "run {active} is going on and would move the watermark at its end: wait for that, or \
                 cancel it (`weir cancel {active}`)"
            ))),
            Err(rejection) => Err(EngineError::Refused(rejection.to_string())),
        }
    }
}

fn unknown(pipeline: &PipelineName) -> EngineError {
    EngineError::NotFound(format!("state of pipeline `{pipeline}`"))
}

//! The leader's work on registered pipelines. What they say is in the storage, in a file for each version; which
//! file is which version is in the ledger.
//!
//! ```text
//! Register ─▶ versions/<file>.json, durable ─▶ RegisterPipeline ─▶ answer
//! ```

use std::collections::BTreeSet;

use weir_ledger::{Command, DeletePipeline, PipelineVersion, RegisterPipeline, Rejection};
use weir_spec::PipelineName;

use super::leading::Leading;
use super::requests::Request;
use crate::EngineError;
use crate::frozen::{Registered, read_registered, remove_registered, write_registered};
use crate::pipeline_files::PipelineFiles;
use crate::surroundings::{new_uuid, now};

impl Leading {
    /// The version that this is, and whether it is a new one.
    pub(super) async fn register(
        &self,
        pipeline: PipelineName,
        registered: Registered,
        request: Request,
    ) -> Result<(u32, bool), EngineError> {
        // What one registers is not removed by another one.
        let _registering = self.registering.lock().await;
        let content_hash = registered.content_hash();
        let file = format!("{content_hash}-{}", new_uuid().simple());
        let mut written = BTreeSet::new();
        if !self.is_answered(&request).await? {
            write_registered(&self.pipeline_files(&pipeline), &file, &registered).await?;
            written.insert(file.clone());
        }
        let before = self.versions(&pipeline).await;
        let command = RegisterPipeline {
            epoch: self.epoch,
            pipeline: pipeline.clone(),
            content_hash: content_hash.clone(),
            file,
            at: now(),
        };
        let appended = self.append_once(request, Command::RegisterPipeline(command)).await?;
        appended.map_err(|rejection| EngineError::Refused(rejection.to_string()))?;
        let versions = self.versions(&pipeline).await;
        // Also what was written for a version that is there already.
        written.extend(files_of(&before));
        self.remove_forgotten(&pipeline, written, &versions).await;
        let is_new = versions.last().map(|newest| newest.version)
            != before.last().map(|newest| newest.version);
        // A request that is answered again means the version that it has made.
        let version = versions.iter().rev().find(|version| version.content_hash == content_hash);
        let version = version.map(|version| version.version).ok_or_else(|| {
            EngineError::Refused(format!(
                "the request has registered pipeline `{pipeline}` before, and that version is no longer \
                 kept: register it with another request id"
            ))
        })?;
        Ok((version, is_new))
    }

    pub(super) async fn delete_pipeline(
        &self,
        pipeline: &PipelineName,
        request: Request,
    ) -> Result<(), EngineError> {
        let _registering = self.registering.lock().await;
        let before = self.versions(pipeline).await;
        let command = DeletePipeline { epoch: self.epoch, pipeline: pipeline.clone() };
        match self.append_once(request, Command::DeletePipeline(command)).await? {
            Ok(_) => {}
            Err(Rejection::UnknownPipeline(_)) => return Err(not_registered(pipeline)),
            Err(Rejection::RunActive { active }) => {
                return Err(EngineError::Busy(format!(
                    "run {active} of pipeline `{pipeline}` is going on: wait for its end, or cancel it \
                     (`weir cancel {active}`) before the pipeline is deleted"
                )));
            }
            Err(rejection) => return Err(EngineError::Refused(rejection.to_string())),
        }
        let forgotten = files_of(&before);
        self.remove_forgotten(pipeline, forgotten, &self.versions(pipeline).await).await;
        Ok(())
    }

    /// Which version a request has meant by the newest one, if it has begun something before.
    pub(super) async fn version_meant(&self, request_id: &str, pipeline: &PipelineName) -> u32 {
        let meant = |ledger: &weir_ledger::Ledger| {
            let run = ledger.run_of_request(request_id).and_then(|run| ledger.run(run));
            let run = run.map(|run| (&run.pipeline, run.version));
            let backfill = || {
                let known = ledger.backfill(ledger.backfill_of_request(request_id)?)?;
                Some((&known.pipeline, known.version))
            };
            let (begun, version) = run.or_else(backfill)?;
            version.filter(|_| begun == pipeline)
        };
        self.with_ledger(meant).await.unwrap_or_default()
    }

    /// A version with all that was registered; 0: the newest.
    pub(super) async fn registered(
        &self,
        pipeline: &PipelineName,
        version: u32,
    ) -> Result<(PipelineVersion, Registered), EngineError> {
        let versions = self.versions(pipeline).await;
        let newest = versions.last().ok_or_else(|| not_registered(pipeline))?;
        let found = match version {
            0 => newest,
            number => (versions.iter().find(|known| known.version == number)).ok_or_else(|| {
                EngineError::NotFound(format!("version {number} of pipeline `{pipeline}`"))
            })?,
        };
        let registered = read_registered(&self.pipeline_files(pipeline), &found.file).await?;
        Ok((found.clone(), registered))
    }

    /// Oldest first; none of a pipeline that is not registered.
    pub(super) async fn versions(&self, pipeline: &PipelineName) -> Vec<PipelineVersion> {
        let versions = |ledger: &weir_ledger::Ledger| {
            ledger.pipelines.get(pipeline).map(|facts| facts.versions.clone())
        };
        self.with_ledger(versions).await.unwrap_or_default()
    }

    fn pipeline_files(&self, pipeline: &PipelineName) -> PipelineFiles {
        PipelineFiles::of(&self.settings.storage, pipeline)
    }

    /// What no version says any more.
    async fn remove_forgotten(
        &self,
        pipeline: &PipelineName,
        files: BTreeSet<String>,
        now: &[PipelineVersion],
    ) {
        for forgotten in files.difference(&files_of(now)) {
            remove_registered(&self.pipeline_files(pipeline), forgotten).await;
        }
    }
}

fn files_of(versions: &[PipelineVersion]) -> BTreeSet<String> {
    versions.iter().map(|version| version.file.clone()).collect()
}

pub(super) fn not_registered(pipeline: &PipelineName) -> EngineError {
    EngineError::NotFound(format!(
        "a registered pipeline `{pipeline}` (`weir pipelines` lists them)"
    ))
}

//! Somebody who wants a pipeline's runs done, one after the other, and asks whichever coordinator answers.

use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use weir_proto::v1::runs_client::RunsClient;
use weir_proto::v1::{
    AuditRunRequest, CancelRunRequest, GetRunRequest, RetryRunRequest, RunStatus, SubmitRequest,
};

use super::pipelines::Pipeline;
use super::shared::Shared;
use crate::raft::simulation::{MEMBERS, address, at_most, connect_lazy};

const LONGEST_CALL: Duration = Duration::from_secs(5);
const BETWEEN_CALLS: Duration = Duration::from_millis(600);

#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) shared: Arc<Shared>,
}

impl Client {
    pub(super) async fn run(self) -> turmoil::Result {
        let pipelines = self.shared.pipelines.iter();
        futures::future::join_all(pipelines.map(|pipeline| self.see_to(pipeline))).await;
        Ok(())
    }

    async fn see_to(&self, pipeline: &Pipeline) {
        for number in 0..pipeline.runs {
            self.shared.state().trace.begin_run(&pipeline.name, number);
            if let Err(status) = self.see_to_run(pipeline, number).await {
                let what = format!("run {number} of {}: {status}", pipeline.name);
                self.shared.state().trace.violated(what);
                return;
            }
        }
        self.shared.state().clients_at_work -= 1;
    }

    /// Returns once it has succeeded.
    async fn see_to_run(&self, pipeline: &Pipeline, number: u64) -> Result<(), Status> {
        let request = SubmitRequest {
            pipeline: pipeline.text.clone(),
            base_dir: "/".to_owned(),
            request_id: format!("{}-{number}", pipeline.name),
            ..SubmitRequest::default()
        };
        let submit = async |mut client: RunsClient<Channel>| client.submit(request.clone()).await;
        let run = self.ask(submit).await?.run;
        loop {
            tokio::time::sleep(at_most(BETWEEN_CALLS)).await;
            let run = run.clone();
            if self.shared.state().to_cancel.remove(&pipeline.name) {
                let request = CancelRunRequest { run: run.clone(), ..Default::default() };
                let cancel =
                    async |mut client: RunsClient<Channel>| client.cancel(request.clone()).await;
                match self.ask(cancel).await {
                    // It has ended before.
                    Err(status) if status.code() != Code::FailedPrecondition => return Err(status),
                    _ => {}
                }
            }
            let request = GetRunRequest { run: run.clone() };
            let get = async |mut client: RunsClient<Channel>| client.get(request.clone()).await;
            match self.ask(get).await?.status() {
                RunStatus::Succeeded => break,
                RunStatus::Failed => {
                    let request = RetryRunRequest { run, ..Default::default() };
                    let retry =
                        async |mut client: RunsClient<Channel>| client.retry(request.clone()).await;
                    match self.ask(retry).await {
                        // Somebody has heard it the first time.
                        Err(status) if status.code() != Code::FailedPrecondition => {
                            return Err(status);
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        let request = AuditRunRequest { run: run.clone() };
        let audit = async |mut client: RunsClient<Channel>| client.audit(request.clone()).await;
        let report = self.ask(audit).await?;
        // Who could not be asked is not at fault.
        let findings = report.findings.into_iter();
        let findings: Vec<_> =
            findings.filter(|what| !what.contains("could not be asked")).collect();
        if findings.is_empty() {
            return Ok(());
        }
        Err(Status::data_loss(format!("the audit finds {findings:?}")))
    }

    /// Until some coordinator gives a definite answer.
    async fn ask<T>(
        &self,
        call: impl AsyncFn(RunsClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        loop {
            for member in MEMBERS {
                let url = address(member).url;
                let endpoint: Endpoint = url.parse().expect("it is a URL");
                let client = RunsClient::new(connect_lazy(&endpoint));
                match tokio::time::timeout(LONGEST_CALL, call(client)).await {
                    Ok(Ok(response)) => return Ok(response.into_inner()),
                    Ok(Err(status)) if is_definite(&status) => return Err(status),
                    _ => {}
                }
            }
            tokio::time::sleep(at_most(BETWEEN_CALLS)).await;
        }
    }
}

fn is_definite(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::NotFound | Code::FailedPrecondition | Code::InvalidArgument | Code::Internal
    )
}

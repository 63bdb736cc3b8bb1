//! A run's tasks as clients get them, a page at a time.

use tonic::Status;
use weir_ledger::{RunFacts, SliceAttempt, SliceFacts, SliceState};
use weir_proto::v1;

/// Of one answer: far below the size of a message, errors included.
const LARGEST_PAGE: usize = 1_000;

/// The tasks behind a page token, and the token of the page behind these. Tasks are numbered over all stages;
/// a plan never changes, so a number means the same task in every page.
pub(super) fn page(
    run: &RunFacts,
    running: &[(SliceAttempt, String)],
    request: &v1::ListTasksRequest,
) -> Result<(Vec<v1::Task>, String), Status> {
    let first = match request.page_token.as_str() {
        "" => 0,
        token => token.parse().map_err(|_| {
            Status::invalid_argument(format!("page token `{token}` is of no answer of this call"))
        })?,
    };
    let size = match usize::try_from(request.page_size) {
        Ok(0) | Err(_) => LARGEST_PAGE,
        Ok(size) => size.min(LARGEST_PAGE),
    };
    let slices = run.stages.iter().zip(0..).flat_map(|(stage, id)| {
        stage.slices.iter().zip(0..).map(move |(slice, number)| (id, number, slice))
    });
    let mut slices = slices.skip(first);
    let tasks: Vec<_> = (slices.by_ref().take(size))
        .map(|(stage, number, slice)| {
            let at_work = running.iter().find(|(task, _)| {
                (task.stage.0, task.slice, task.attempt) == (stage, number, slice.attempts)
            });
            task(stage, number, slice, at_work.map(|(_, executor)| executor.clone()))
        })
        .collect();
    let next = slices.next().map(|_| (first + tasks.len()).to_string());
    Ok((tasks, next.unwrap_or_default()))
}

fn task(stage: u32, number: u32, slice: &SliceFacts, executor: Option<String>) -> v1::Task {
    let (state, epoch, error) = match &slice.state {
        SliceState::Pending => (v1::TaskState::Pending, 0, String::new()),
        SliceState::Running { epoch } | SliceState::Copied { epoch, .. } => {
            (v1::TaskState::Running, *epoch, String::new())
        }
        SliceState::Failed { error, .. } => (v1::TaskState::Failed, 0, error.clone()),
        SliceState::Finished => (v1::TaskState::Finished, 0, String::new()),
    };
    let at_risk = slice.exchange.as_ref().filter(|output| !output.is_durable());
    let holder = at_risk.and_then(|output| output.holder.as_ref());
    v1::Task {
        stage,
        slice: number,
        state: state.into(),
        attempts: slice.attempts,
        epoch,
        executor: executor.unwrap_or_default(),
        failures: slice.failures,
        error,
        batches: slice.next_sequence,
        rows_written: slice.account.rows_written,
        committed_by: (slice.committed_by.iter())
            .map(|by| v1::CommittedBy { from_batch: by.from, attempt: by.attempt })
            .collect(),
        holder: holder.map(|holder| holder.executor.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weir_ledger::{CommittedBy, RunId};
    use weir_plan::StageId;

    use super::*;

    /// Two stages of two slices.
    fn run() -> RunFacts {
        let stage = |name: &str| {
            json!({
                "shape": {
                    "name": name, "slices": 2, "streaming": true, "inputs": [], "nodes": [],
                    "output": "exchange",
                },
                "slices": [SliceFacts::default(), SliceFacts::default()],
                "finished_slices": 0, "run_commit": "open",
            })
        };
        let run = json!({
            "pipeline": "p", "spec_hash": "", "params": {}, "window": null,
            "started_at": "2026-11-25T00:00:00Z", "state": "running", "sessions": 1,
            "graph_hash": "g", "engine_version": null, "stages": [stage("a"), stage("b")],
            "prepared": {}, "cleaned_up": false,
        });
        serde_json::from_value(run).expect("these are a run's facts")
    }

    fn request(page_size: u32, page_token: &str) -> v1::ListTasksRequest {
        v1::ListTasksRequest { run: "r".to_owned(), page_size, page_token: page_token.to_owned() }
    }

    fn places(tasks: &[v1::Task]) -> Vec<(u32, u32)> {
        tasks.iter().map(|task| (task.stage, task.slice)).collect()
    }

    #[test]
    fn pages_follow_each_other_over_all_stages() {
        let run = run();
        let (tasks, next) = page(&run, &[], &request(3, "")).expect("it is right");
        assert_eq!((places(&tasks), next.as_str()), (vec![(0, 0), (0, 1), (1, 0)], "3"));
        let (tasks, next) = page(&run, &[], &request(3, "3")).expect("it is right");
        assert_eq!((places(&tasks), next.as_str()), (vec![(1, 1)], ""));
        let (tasks, next) = page(&run, &[], &request(0, "")).expect("it is right");
        assert_eq!((tasks.len(), next.as_str()), (4, ""));
        assert!(page(&run, &[], &request(3, "x")).is_err());
    }

    #[test]
    fn a_task_says_what_has_been_tried_and_whose_work_counts() {
        let mut run = run();
        *run.stages[1].slices.get_mut(0).expect("it is there") = SliceFacts {
            attempts: 3,
            state: SliceState::Running { epoch: 9 },
            next_sequence: 5,
            committed_by: vec![
                CommittedBy { from: 0, attempt: 1 },
                CommittedBy { from: 4, attempt: 2 },
            ]
            .into(),
            ..SliceFacts::default()
        };
        let attempt = |attempt| SliceAttempt {
            epoch: 9,
            run: RunId("r".to_owned()),
            stage: StageId(1),
            slice: 0,
            attempt,
        };
        // One that is over has not been forgotten yet.
        let running = [(attempt(2), "old".to_owned()), (attempt(3), "new".to_owned())];
        let (tasks, _) = page(&run, &running, &request(0, "")).expect("it is right");
        let task = &tasks[2];
        assert_eq!(task.state(), v1::TaskState::Running);
        assert_eq!((task.attempts, task.epoch, task.batches), (3, 9, 5));
        assert_eq!(task.executor, "new");
        let by: Vec<_> = task.committed_by.iter().map(|by| (by.from_batch, by.attempt)).collect();
        assert_eq!(by, [(0, 1), (4, 2)]);
        assert_eq!((tasks[0].state(), tasks[0].attempts), (v1::TaskState::Pending, 0));
    }
}

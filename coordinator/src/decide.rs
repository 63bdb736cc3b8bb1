//! What to do next: a pure function of the ledger, the time, and what is being done already.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use weir_ledger::{RunCommit, RunFacts, SliceFacts, SliceState, StageFacts};
use weir_plan::StageId;
use weir_spec::CommitMode;

/// Something to be done for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Job {
    /// Ask a target about the slice's open intent.
    Recover { stage: StageId, slice: u32 },
    /// The next attempt at a slice.
    Attempt { stage: StageId, slice: u32 },
    /// Show all rows of a `commit: run` sink.
    CommitRun { stage: StageId },
    /// A second attempt beside one that takes long; see `stragglers`.
    Copy { stage: StageId, slice: u32 },
}

/// What the ledger asks for now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// To be begun at once; never more than there are free slots.
    pub(crate) jobs: Vec<Job>,
    /// When a slice that waits for its next attempt may begin.
    pub(crate) wake_at: Option<DateTime<Utc>>,
    /// Every slice is finished and every sink visible.
    pub(crate) is_complete: bool,
}

/// Decides for a planned, running run in `epoch`.
///
/// Intents of dead attempts come first: until the target has been asked nobody knows where the slice
/// goes on. A stage is ready once all exchanges that it reads are complete. `commit: run` sinks are
/// shown last, when every slice of every stage is finished, so that a run that fails before shows
/// nothing of them.
///
/// `room` says how many more tasks of a stage may begin, because of the connections that they use; what it leaves
/// of the slots is for other stages.
///
/// Takes time for what is at work or has failed, and for what it decides; not for slices that are finished or have
/// their turn later.
pub(crate) fn decide(
    run: &RunFacts,
    epoch: u64,
    slots: usize,
    busy: &BTreeSet<Job>,
    room: &dyn Fn(StageId) -> usize,
    now: DateTime<Utc>,
) -> Decision {
    let mut decision = Decision { is_complete: run.is_complete(), ..Decision::default() };
    let free_slots = slots.saturating_sub(busy.len());
    for (stage, id) in run.stages.iter().zip(0..) {
        if !is_ready(run, stage) {
            continue;
        }
        let stage_id = StageId(id);
        let mut attempts = Vec::new();
        for (slice, facts) in stage.slices.unsettled() {
            let Some((job, at)) = next_of(stage_id, slice, facts, epoch) else { continue };
            // What a lost attempt had said last may settle the batch while the target is still asked about it,
            // which would fence whoever begins meanwhile, or be fenced by him.
            let asking = Job::Recover { stage: stage_id, slice };
            match at {
                _ if busy.contains(&job) || busy.contains(&asking) => {}
                Some(at) if at > now => {
                    let wake_at = decision.wake_at.map_or(at, |known| known.min(at));
                    decision.wake_at = Some(wake_at);
                }
                Some(_) | None if matches!(job, Job::Attempt { .. }) => attempts.push(job),
                Some(_) | None => decision.jobs.push(job),
            }
        }
        // One more than there is room for is turned away, and thereby known to wait.
        let most = free_slots.min(room(stage_id).max(1));
        attempts.truncate(most);
        let is_begun = |slice| {
            busy.contains(&Job::Attempt { stage: stage_id, slice })
                || busy.contains(&Job::Recover { stage: stage_id, slice })
        };
        let fresh = (stage.slices.pending().filter(|slice| !is_begun(*slice)))
            .map(|slice| Job::Attempt { stage: stage_id, slice })
            .take(most - attempts.len());
        decision.jobs.extend(attempts.into_iter().chain(fresh));
    }
    if run.stages.iter().all(StageFacts::are_slices_finished) {
        decision.jobs.extend(
            run_commits(run)
                .map(|stage| Job::CommitRun { stage })
                .filter(|job| !busy.contains(job)),
        );
    }
    // Recoveries sort before attempts, and within each kind earlier stages come first.
    decision.jobs.sort();
    decision.jobs.truncate(free_slots);
    decision
}

fn is_ready(run: &RunFacts, stage: &StageFacts) -> bool {
    (stage.shape.inputs.iter()).all(|input| run.stage(*input).is_some_and(StageFacts::is_complete))
}

/// The job that brings a slice forward, and when it may begin.
fn next_of(
    stage: StageId,
    slice: u32,
    facts: &SliceFacts,
    epoch: u64,
) -> Option<(Job, Option<DateTime<Utc>>)> {
    let at = match &facts.state {
        SliceState::Finished => return None,
        // Of this epoch; or of a later one, whose leader is another process that knows better.
        SliceState::Running { epoch: running } | SliceState::Copied { epoch: running, .. }
            if *running >= epoch =>
        {
            return None;
        }
        // Ends the session of the run: see the driver.
        SliceState::Failed { retry_at: None, .. } => return None,
        SliceState::Pending | SliceState::Running { .. } | SliceState::Copied { .. } => None,
        SliceState::Failed { retry_at: Some(at), .. } => Some(*at),
    };
    match &facts.intent {
        Some(_) => Some((Job::Recover { stage, slice }, at)),
        None => Some((Job::Attempt { stage, slice }, at)),
    }
}

fn run_commits(run: &RunFacts) -> impl Iterator<Item = StageId> {
    run.stages.iter().zip(0..).filter_map(|(stage, id)| {
        let is_open = matches!(stage.sink(), Some((_, CommitMode::Run)))
            && stage.run_commit != RunCommit::Done;
        is_open.then_some(StageId(id))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weir_connectors::Manifest;
    use weir_ledger::{OpenIntent, RunState, SliceMut, StageOutputShape, StageShape};
    use weir_plan::{Commit, RowAccount};
    use weir_spec::{NodeName, PipelineName};

    use super::*;

    const EPOCH: u64 = 7;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).expect("a time of this century")
    }

    fn stage(slices: u32, inputs: &[u32], output: StageOutputShape) -> StageFacts {
        StageFacts {
            shape: StageShape {
                name: "stage".into(),
                slices,
                streaming: true,
                inputs: inputs.iter().copied().map(StageId).collect(),
                nodes: Vec::new(),
                output,
            },
            slices: vec![SliceFacts::default(); slices as usize].into(),
            finished_slices: 0,
            run_commit: RunCommit::Open,
        }
    }

    fn sink(name: &str, commit: CommitMode) -> StageOutputShape {
        StageOutputShape::Sink { node: NodeName::new(name), commit }
    }

    fn run(stages: Vec<StageFacts>) -> RunFacts {
        RunFacts {
            pipeline: PipelineName("orders".into()),
            spec_hash: String::new(),
            params: BTreeMap::new(),
            window: None,
            version: None,
            request_id: None,
            backfill: None,
            replay_of: None,
            started_at: at(0),
            number: 0,
            state: RunState::Running,
            sessions: 1,
            graph_hash: Some("graph".into()),
            engine_version: None,
            stages,
            prepared: BTreeMap::new(),
            cleaned_up: false,
        }
    }

    fn intent(epoch: u64, slice: u32) -> OpenIntent {
        OpenIntent {
            attempt: 1,
            epoch,
            commit: Commit {
                manifest: Manifest {
                    slice,
                    sequence: 0,
                    rows: 0,
                    checksum: 0,
                    epoch,
                    payload: serde_json::Value::Null,
                },
                account: RowAccount::default(),
                resume_at: None,
            },
        }
    }

    fn finish(stage: &mut StageFacts) {
        for slice in 0..stage.shape.slices {
            stage.slices.get_mut(slice).expect("it is there").state = SliceState::Finished;
        }
        stage.finished_slices = stage.shape.slices;
    }

    /// Of the first stage.
    fn slice_of(run: &mut RunFacts, slice: u32) -> SliceMut<'_> {
        run.stages[0].slices.get_mut(slice).expect("it is there")
    }

    fn attempt(stage: u32, slice: u32) -> Job {
        Job::Attempt { stage: StageId(stage), slice }
    }

    fn decide_now(run: &RunFacts, slots: usize, busy: &[Job]) -> Decision {
        let busy = busy.iter().copied().collect();
        decide(run, EPOCH, slots, &busy, &|_| usize::MAX, at(0))
    }

    #[test]
    fn stages_wait_for_the_exchanges_that_they_read() {
        let mut run = run(vec![
            stage(1, &[], StageOutputShape::Exchange),
            stage(2, &[0], sink("kept", CommitMode::Batch)),
        ]);
        assert_eq!(decide_now(&run, 4, &[]).jobs, [attempt(0, 0)]);
        finish(&mut run.stages[0]);
        assert_eq!(decide_now(&run, 4, &[]).jobs, [attempt(1, 0), attempt(1, 1)]);
    }

    #[test]
    fn slots_bound_what_runs_at_once() {
        let mut run = run(vec![stage(5, &[], sink("kept", CommitMode::Batch))]);
        assert_eq!(decide_now(&run, 2, &[]).jobs, [attempt(0, 0), attempt(0, 1)]);
        slice_of(&mut run, 0).state = SliceState::Running { epoch: EPOCH };
        assert_eq!(decide_now(&run, 2, &[attempt(0, 0)]).jobs, [attempt(0, 1)]);
        slice_of(&mut run, 1).state = SliceState::Running { epoch: EPOCH };
        assert_eq!(decide_now(&run, 2, &[attempt(0, 0), attempt(0, 1)]).jobs, []);
    }

    #[test]
    fn a_stage_without_room_leaves_its_slots_to_others() {
        let run = run(vec![
            stage(5, &[], sink("limited", CommitMode::Batch)),
            stage(5, &[], sink("kept", CommitMode::Batch)),
        ]);
        let jobs = |room: usize| {
            let room = |stage| if stage == StageId(0) { room } else { usize::MAX };
            decide(&run, EPOCH, 4, &BTreeSet::new(), &room, at(0)).jobs
        };
        assert_eq!(jobs(2), [attempt(0, 0), attempt(0, 1), attempt(1, 0), attempt(1, 1)]);
        let asks_all_the_same = [attempt(0, 0), attempt(1, 0), attempt(1, 1), attempt(1, 2)];
        assert_eq!(jobs(0), asks_all_the_same, "so that it is known to wait");
    }

    #[test]
    fn attempts_of_an_earlier_epoch_are_dead() {
        let mut run = run(vec![stage(1, &[], sink("kept", CommitMode::Batch))]);
        slice_of(&mut run, 0).state = SliceState::Running { epoch: EPOCH - 1 };
        assert_eq!(decide_now(&run, 1, &[]).jobs, [attempt(0, 0)]);
        slice_of(&mut run, 0).state = SliceState::Running { epoch: EPOCH };
        assert_eq!(decide_now(&run, 1, &[]).jobs, []);
    }

    #[test]
    fn a_leader_that_has_been_replaced_leaves_later_attempts_alone() {
        let mut run = run(vec![stage(1, &[], sink("kept", CommitMode::Batch))]);
        slice_of(&mut run, 0).state = SliceState::Running { epoch: EPOCH + 1 };
        slice_of(&mut run, 0).intent = Some(Box::new(intent(EPOCH + 1, 0)));
        assert_eq!(decide_now(&run, 1, &[]).jobs, []);
    }

    #[test]
    fn an_open_intent_is_resolved_before_the_next_attempt() {
        let mut run = run(vec![stage(2, &[], sink("kept", CommitMode::Batch))]);
        let mut slice = slice_of(&mut run, 1);
        slice.state = SliceState::Running { epoch: EPOCH - 1 };
        slice.intent = Some(Box::new(intent(EPOCH - 1, 1)));
        drop(slice);
        let recover = Job::Recover { stage: StageId(0), slice: 1 };
        assert_eq!(decide_now(&run, 1, &[]).jobs, [recover], "recovery comes first");
        assert_eq!(decide_now(&run, 4, &[recover]).jobs, [attempt(0, 0)], "and only once");
    }

    /// A late report settles the batch while the target is still being asked about it.
    #[test]
    fn a_slice_is_not_attempted_while_its_target_is_asked() {
        let mut run = run(vec![stage(1, &[], sink("kept", CommitMode::Batch))]);
        let asking = Job::Recover { stage: StageId(0), slice: 0 };
        for state in [SliceState::Pending, SliceState::Running { epoch: EPOCH - 1 }] {
            slice_of(&mut run, 0).state = state;
            assert_eq!(decide_now(&run, 4, &[asking]).jobs, []);
            assert_eq!(decide_now(&run, 4, &[]).jobs, [attempt(0, 0)]);
        }
    }

    #[test]
    fn a_failed_slice_waits_for_its_time_and_wakes_the_driver() {
        let mut run = run(vec![stage(2, &[], sink("kept", CommitMode::Batch))]);
        let failed = |second| SliceState::Failed {
            error: "connection refused".into(),
            retry_at: Some(at(second)),
        };
        slice_of(&mut run, 0).state = failed(9);
        slice_of(&mut run, 1).state = failed(5);
        let decision = decide_now(&run, 4, &[]);
        assert_eq!((decision.jobs, decision.wake_at), (vec![], Some(at(5))));
        let later = decide(&run, EPOCH, 4, &BTreeSet::new(), &|_| usize::MAX, at(5));
        assert_eq!((later.jobs, later.wake_at), (vec![attempt(0, 1)], Some(at(9))));
    }

    #[test]
    fn a_slice_that_failed_for_good_is_left_alone() {
        let mut run = run(vec![stage(1, &[], sink("kept", CommitMode::Batch))]);
        slice_of(&mut run, 0).state =
            SliceState::Failed { error: "division by zero".into(), retry_at: None };
        assert_eq!(decide_now(&run, 4, &[]), Decision::default());
    }

    #[test]
    fn run_sinks_are_shown_when_every_slice_of_every_stage_is_finished() {
        let mut run = run(vec![
            stage(1, &[], sink("shown", CommitMode::Run)),
            stage(1, &[], sink("kept", CommitMode::Batch)),
        ]);
        finish(&mut run.stages[0]);
        assert_eq!(decide_now(&run, 4, &[]).jobs, [attempt(1, 0)]);
        finish(&mut run.stages[1]);
        let show = Job::CommitRun { stage: StageId(0) };
        assert_eq!(decide_now(&run, 4, &[]).jobs, [show]);
        run.stages[0].run_commit = RunCommit::Intended;
        assert_eq!(decide_now(&run, 4, &[]).jobs, [show], "an intent without a completion");
        run.stages[0].run_commit = RunCommit::Done;
        assert_eq!(decide_now(&run, 4, &[]), Decision { is_complete: true, ..Decision::default() });
    }

    #[test]
    fn a_stage_without_slices_is_complete_from_the_start() {
        let run = run(vec![stage(0, &[], sink("kept", CommitMode::Batch))]);
        assert!(decide_now(&run, 1, &[]).is_complete);
    }
}

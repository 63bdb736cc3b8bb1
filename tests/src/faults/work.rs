//! Which work was done again after a fault, and whether it had been lost.

use std::collections::BTreeSet;

use weir_proto::v1::{Stage, Task, TaskState};

use super::observer::Seen;

/// A task: stage and slice.
type Place = (u32, u32);

/// What a fault has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Attempts at tasks that had been attempted before.
    pub again: u32,
    /// Tasks whose work was lost.
    pub lost: u32,
}

/// A run just before a fault, and when what it has set off was over.
#[derive(Clone, Debug)]
pub struct Disturbance {
    pub before: Seen,
    pub until: Seen,
    /// Executors whose process or lease is gone.
    pub lost: Vec<String>,
    /// Any task at work may have failed for it, again and again while it lasted: a disk was full, the target
    /// did not answer.
    pub any_task_may_fail: bool,
}

/// Over all faults that a run has met, in their order, and how it has ended.
///
/// A task may be attempted once more for each fault that has met it at work with a lost executor, or at all when
/// another epoch has begun; or that has reset it, as the only copy of what it made or has read was with a
/// lost executor ([`reset_with`]). One that had not begun may have begun in between, and been lost like that.
/// One that is not finished and reads what lost executors kept tries again until their loss is noted: every second,
/// as a reader that cannot read has not failed (decision 0008).
/// No other task may: above all none that was finished and is in the storage.
pub fn only_lost_work_is_done_again(faults: &[Disturbance], end: &Seen) -> Result<Cost, String> {
    let mut cost = Cost::default();
    let planned = faults.iter().position(|fault| !fault.before.tasks.is_empty());
    // Not planned before: nothing could be lost.
    let Some(planned) = planned else { return Ok(cost) };
    let faults = &faults[planned..];
    let sizes = faults.iter().map(|fault| fault.before.tasks.len());
    if sizes.into_iter().any(|size| size != end.tasks.len()) {
        return Err("the run was planned again".to_owned());
    }
    let resets: Vec<_> =
        faults.iter().map(|fault| reset_with(&fault.before, &fault.lost)).collect();
    for (index, is) in end.tasks.iter().enumerate() {
        let was = &faults[0].before.tasks[index];
        let begun = is.attempts.checked_sub(was.attempts);
        let begun = begun.ok_or_else(|| format!("attempts are forgotten: {was:?}, {is:?}"))?;
        let due = match was.state() {
            TaskState::Running | TaskState::Finished => 0,
            // Its next attempt would have begun without any fault.
            TaskState::Pending | TaskState::Failed | TaskState::Unspecified => 1,
        };
        let hits = faults.iter().zip(&resets).filter(|(fault, reset)| {
            let (was, until) = (&fault.before.tasks[index], &fault.until.tasks[index]);
            reset.contains(&place(was)) || is_lost(fault, was, until)
        });
        let hits = u32::try_from(hits.count()).expect("faults are few");
        let again = begun.saturating_sub(due);
        cost.lost += hits;
        cost.again += again;
        let may_fail_often = faults.iter().any(|fault| {
            let (was, until) = (&fault.before.tasks[index], &fault.until.tasks[index]);
            (fault.any_task_may_fail && is_lost(fault, was, until)) || may_read_in_vain(fault, was)
        });
        if again > hits && !may_fail_often {
            return Err(format!(
                "stage {}, slice {} was {} on `{}` before the first fault, and has been attempted \
                 {begun} times since, though its work was lost {hits} times",
                was.stage,
                was.slice,
                was.state().as_str_name(),
                was.executor,
            ));
        }
    }
    Ok(cost)
}

/// Whether a fault has taken an attempt that was at work, or may have.
fn is_lost(fault: &Disturbance, was: &Task, until: &Task) -> bool {
    let is_new_epoch = fault.before.epoch != fault.until.epoch;
    match was.state() {
        TaskState::Finished => false,
        TaskState::Running => {
            // One that nobody had yet, on its way to somebody, may have come to who was lost.
            let may_be_with_lost = was.executor.is_empty() && !fault.lost.is_empty();
            let is_with_lost = fault.lost.contains(&was.executor) || may_be_with_lost;
            is_new_epoch || fault.any_task_may_fail || is_with_lost
        }
        // It has begun meanwhile.
        TaskState::Pending | TaskState::Failed | TaskState::Unspecified => {
            let may_be_lost = is_new_epoch || fault.any_task_may_fail || !fault.lost.is_empty();
            until.attempts > was.attempts && may_be_lost
        }
    }
}

/// Whether a task that is not finished reads what executors keep, one of which was lost.
fn may_read_in_vain(fault: &Disturbance, was: &Task) -> bool {
    let stages = fault.before.run.stages.iter().chain(&fault.until.run.stages);
    let inputs: BTreeSet<u32> = (stages.filter(|stage| stage.stage == was.stage))
        .flat_map(|stage| stage.inputs.iter().copied())
        .collect();
    let tasks = fault.before.tasks.iter().chain(&fault.until.tasks);
    let mut kept = tasks.filter(|task| !task.holder.is_empty() && inputs.contains(&task.stage));
    was.state() != TaskState::Finished && kept.any(|task| fault.lost.contains(&task.holder))
}

/// The documented rule (docs/cluster.md, `checkpoint.exchange: off`): what executors kept and somebody still has
/// to read is computed again, and so is everything that may have read of it, unless that is finished and
/// safe, or read by nobody any more. What is computed again has to read its own inputs again.
fn reset_with(seen: &Seen, lost: &[String]) -> BTreeSet<Place> {
    let mut reset = BTreeSet::new();
    loop {
        let before = reset.len();
        for stage in &seen.run.stages {
            let more = reset_of(stage, seen, lost, &reset);
            reset.extend(more);
        }
        if reset.len() == before {
            return reset;
        }
    }
}

/// Which of the stage's tasks are to begin again when these are.
fn reset_of(stage: &Stage, seen: &Seen, lost: &[String], reset: &BTreeSet<Place>) -> Vec<Place> {
    let of = |stage: u32| seen.tasks.iter().filter(move |task| task.stage == stage);
    let is_finished = |stage: &Stage| {
        let is_done =
            |task: &Task| task.state() == TaskState::Finished && !reset.contains(&place(task));
        of(stage.stage).all(is_done)
    };
    let id = stage.stage;
    let mut readers = seen.run.stages.iter().filter(|reader| reader.inputs.contains(&id));
    let is_still_read = readers.any(|reader| !is_finished(reader));
    let is_durable = of(id).all(|task| task.holder.is_empty());
    let is_safe = is_finished(stage) && (is_durable || !is_still_read);
    let reads_lost = reset.iter().any(|(input, _)| stage.inputs.contains(input));
    match reads_lost && !is_safe {
        true => of(id).map(place).collect(),
        false => {
            of(id).filter(|task| lost.contains(&task.holder) && is_still_read).map(place).collect()
        }
    }
}

fn place(task: &Task) -> Place {
    (task.stage, task.slice)
}

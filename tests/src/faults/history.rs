//! What may never be taken back, over all that was seen of a run, of the coordinators and of a watermark.

use std::collections::BTreeMap;

use weir_proto::v1::{Task, TaskState};

use super::observer::{Member, Seen};

/// Where rows between stages are (`checkpoint.exchange`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// In the storage: what is finished stays so.
    Sync,
    /// With the executors, and later in the storage, too.
    Async,
    /// With the executors.
    Off,
}

impl Exchange {
    /// As a pipeline has it.
    pub fn name(self) -> &'static str {
        match self {
            Exchange::Sync => "sync",
            Exchange::Async => "async",
            Exchange::Off => "off",
        }
    }
}

/// Moments of one run, oldest first: nothing that was accepted is taken back.
pub fn nothing_is_taken_back(seen: &[Seen], exchange: Exchange) -> Result<(), String> {
    for (number, two) in seen.windows(2).enumerate() {
        let [was, is] = two else { unreachable!("windows of two") };
        let wrong = |what: &str| Err(format!("moment {number}: {what}"));
        if is.epoch < was.epoch {
            return wrong(&format!("epoch {} after {}", is.epoch, was.epoch));
        }
        if was.is_over() && was.run.status != is.run.status {
            return wrong("a run that was over is not as it was");
        }
        if !was.tasks.is_empty() && was.tasks.len() != is.tasks.len() {
            return wrong("the run was planned again");
        }
        for (was, is) in was.tasks.iter().zip(&is.tasks) {
            let name = format!("stage {}, slice {}", was.stage, was.slice);
            if is.attempts < was.attempts {
                return wrong(&format!("{name}: attempts have become fewer"));
            }
            if !stays(was, &seen[number], exchange) {
                continue;
            }
            let was_finished = was.state() == TaskState::Finished;
            if was_finished && (is.state() != TaskState::Finished || is.attempts != was.attempts) {
                return wrong(&format!("{name}: a finished task was begun again"));
            }
            if is.batches < was.batches || is.rows_written < was.rows_written {
                return wrong(&format!("{name}: committed batches are gone"));
            }
            if !is.committed_by.starts_with(&was.committed_by) {
                return wrong(&format!("{name}: committed batches belong to another attempt now"));
            }
        }
    }
    Ok(())
}

/// Whether what the task has finished cannot be lost with an executor, nor with what it has read.
fn stays(was: &Task, seen: &Seen, exchange: Exchange) -> bool {
    let stage = seen.run.stages.iter().find(|stage| stage.stage == was.stage);
    let is_sink = stage.is_some_and(|stage| !stage.sink.is_empty());
    let reads_no_other = stage.is_some_and(|stage| stage.inputs.is_empty());
    match exchange {
        Exchange::Sync => true,
        Exchange::Async => is_sink || (reads_no_other && was.holder.is_empty()),
        Exchange::Off => is_sink,
    }
}

/// Coordinators at any moments: whoever has applied the same entries has the same facts.
pub fn facts_agree(members: &[Member]) -> Result<(), String> {
    let mut known: BTreeMap<u64, &Member> = BTreeMap::new();
    for member in members {
        let other = *known.entry(member.applied_index).or_insert(member);
        if other.state_hash != member.state_hash {
            return Err(format!(
                "coordinators {} and {} have applied entry {} and differ: {} and {}",
                other.id, member.id, member.applied_index, other.state_hash, member.state_hash
            ));
        }
    }
    Ok(())
}

/// A watermark at moments, oldest first.
pub fn a_watermark_only_rises(seen: &[Option<i64>]) -> Result<(), String> {
    match seen.windows(2).find(|two| two[1] < two[0]) {
        None => Ok(()),
        Some(two) => Err(format!("the watermark has gone from {:?} to {:?}", two[0], two[1])),
    }
}

/// All rows up to the watermark are in the target, which was read after it.
pub fn a_watermark_follows_commits(
    watermark: Option<i64>,
    source: &[i64],
    target: &[i64],
) -> Result<(), String> {
    let Some(watermark) = watermark else { return Ok(()) };
    let target: std::collections::HashSet<&i64> = target.iter().collect();
    let missing = source.iter().filter(|id| **id <= watermark && !target.contains(id)).count();
    match missing {
        0 => Ok(()),
        _ => Err(format!("the watermark is {watermark}, and {missing} rows up to it are missing")),
    }
}

/// A process that was paused or cut off until others had done its work, and what could be seen of the run and of
/// the target just before it woke up, and when it was back.
pub fn a_zombie_changes_nothing<T: PartialEq + std::fmt::Debug>(
    before: &T,
    after: &T,
) -> Result<(), String> {
    match before == after {
        true => Ok(()),
        false => Err(format!("it has changed something:\n{before:?}\n{after:?}")),
    }
}

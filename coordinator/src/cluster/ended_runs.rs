//! Runs that are over: the newest are in the ledger, which all coordinators have in memory; the others leave it, once
//! the storage has their facts.
//!
//! ```text
//! leaving ─▶ .ended/<run>/<epoch>.json.zst, durable ─▶ ForgetRuns ─▶ found by its id (`Leading::find`)
//! ```
//!
//! Nothing is remembered here: a leader that dies in between has written a file that the next one writes again. Each
//! writes its own, and the newest one counts: whoever was replaced, and has not noticed, does not change what is said of
//! a run that has been taken up and has ended since.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io;
use std::sync::Weak;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use weir_executor::storage::Storage;
use weir_ledger::{Command, EndedRun, ForgetRuns, Ledger, RunFacts, RunId};

use super::leading::Leading;
use crate::EngineError;
use crate::pipeline_files::storage_error;
use crate::surroundings::beside;

/// No pipeline can be called so.
const FOLDER: &str = ".ended";
const SUFFIX: &str = ".json.zst";
const ZSTD_LEVEL: i32 = 1;
/// Between two looks at how many there are.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);
/// Runs that leave in one entry.
const MOST_AT_ONCE: usize = 256;
/// Files that are written at once.
const WRITES_AT_ONCE: usize = 8;

/// How many runs that are over stay in the ledger. One more leaves as soon as nothing is to come of it; the newest run of
/// each pipeline that has been planned stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptRuns {
    pub runs: usize,
    /// Of all of them together.
    pub tasks: usize,
}

impl Default for KeptRuns {
    /// About 30 MB.
    fn default() -> Self {
        Self { runs: 10_000, tasks: 100_000 }
    }
}

/// Runs that are to leave, the oldest first.
fn leaving(ledger: &Ledger, kept: KeptRuns) -> Vec<RunId> {
    // Those of windows leave by themselves.
    let is_over = |run: &RunFacts| run.state.ended_at().is_some() && run.backfill.is_none();
    let mut over: Vec<_> = ledger.runs.iter().filter(|(_, run)| is_over(run)).collect();
    over.sort_unstable_by_key(|(id, run)| Reverse((run.order(), *id)));
    let (mut runs, mut tasks) = (0, 0);
    let mut pipelines = BTreeSet::new();
    let mut leaving = Vec::new();
    for (id, run) in over {
        runs += 1;
        tasks += run.task_count();
        let is_newest = run.is_planned() && pipelines.insert(&run.pipeline);
        let is_one_more = runs > kept.runs || tasks > kept.tasks;
        if is_one_more && !is_newest && run.may_leave() {
            leaving.push(id.clone());
        }
    }
    leaving.reverse();
    leaving
}

impl Leading {
    /// Until this leadership ends.
    pub(super) async fn keep_few_runs(leading: Weak<Self>) {
        let mut is_warned = false;
        loop {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            let Some(leading) = leading.upgrade() else { return };
            match leading.let_runs_leave().await {
                Ok(_) => is_warned = false,
                Err(error @ EngineError::Ledger { .. }) => {
                    return tracing::error!(%error, "runs that are over cannot leave the ledger");
                }
                // The storage, most likely, and for a while.
                Err(error) if !std::mem::replace(&mut is_warned, true) => {
                    tracing::warn!(%error, "runs that are over stay in the ledger; tried again");
                }
                Err(_) => {}
            }
        }
    }

    /// How many were written down. They have left, unless they have gone on meanwhile.
    pub(super) async fn let_runs_leave(&self) -> Result<usize, EngineError> {
        let kept = self.settings.kept_runs;
        // Looked at once, however many there are: of very many that takes a while, and appends wait.
        let leaving = self.with_ledger(|ledger| leaving(ledger, kept)).await;
        let mut count = 0;
        for some in leaving.chunks(MOST_AT_ONCE) {
            let writing = some.iter().cloned().map(|run| self.write_down(run));
            let written = futures::stream::iter(writing).buffered(WRITES_AT_ONCE);
            let written: Vec<Option<EndedRun>> = written.try_collect().await?;
            let runs: Vec<EndedRun> = written.into_iter().flatten().collect();
            if runs.is_empty() {
                continue;
            }
            count += runs.len();
            self.append(Command::ForgetRuns(ForgetRuns { epoch: self.epoch, runs })).await?;
        }
        if count > 0 {
            tracing::debug!(count, "runs have left the ledger");
        }
        Ok(count)
    }

    /// `None`: it has gone on.
    async fn write_down(&self, run: RunId) -> Result<Option<EndedRun>, EngineError> {
        let facts = self.with_ledger(|ledger| ledger.run(&run).cloned()).await;
        let Some(facts) = facts.filter(RunFacts::may_leave) else { return Ok(None) };
        let sessions = facts.sessions;
        write_ended(&self.settings.storage, self.epoch, &run, facts).await?;
        Ok(Some(EndedRun { run, sessions }))
    }

    /// A run that has left the ledger, by its whole id.
    pub(super) async fn run_that_left(
        &self,
        id: &str,
    ) -> Result<Option<(RunId, RunFacts)>, EngineError> {
        // Of anything else there is no folder.
        if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Ok(None);
        }
        let run = RunId(id.to_owned());
        let facts = read_ended(&self.settings.storage, &run).await?;
        Ok(facts.map(|facts| (run, facts)))
    }
}

/// All digits, so that names sort as epochs do.
fn file_name(run: &RunId, epoch: u64) -> String {
    format!("{FOLDER}/{run}/{epoch:020}{SUFFIX}")
}

async fn write_ended(
    storage: &Storage,
    epoch: u64,
    run: &RunId,
    facts: RunFacts,
) -> Result<(), EngineError> {
    let name = file_name(run, epoch);
    let written = async {
        let packed = beside(move || pack(&facts)).await?;
        storage.put(&name, packed).await
    };
    written.await.map_err(|cause| storage_error("write", storage, &name, cause))
}

/// As the last leader has written it that had it in its ledger; `None`: it has never left.
pub(super) async fn read_ended(
    storage: &Storage,
    run: &RunId,
) -> Result<Option<RunFacts>, EngineError> {
    let folder = format!("{FOLDER}/{run}");
    let failed = |name: &str, cause| storage_error("read", storage, name, cause);
    let names = storage.list(&folder).await.map_err(|cause| failed(&folder, cause))?;
    let Some(name) = names.iter().rfind(|name| name.ends_with(SUFFIX)) else { return Ok(None) };
    let read = async {
        let packed = storage.get(name).await?;
        beside(move || unpack(&packed)).await
    };
    read.await.map(Some).map_err(|cause| failed(name, cause))
}

/// Of a run with very many tasks the JSON as a whole would be larger than the facts.
fn pack(facts: &RunFacts) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    serde_json::to_writer(&mut encoder, facts)?;
    encoder.finish()
}

fn unpack(packed: &[u8]) -> io::Result<RunFacts> {
    let decoder = zstd::stream::read::Decoder::new(packed)?;
    Ok(serde_json::from_reader(io::BufReader::new(decoder))?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::DateTime;
    use weir_ledger::{BackfillId, RunState, StageFacts, StageOutputShape, StageShape, WindowOf};
    use weir_spec::PipelineName;

    use super::*;

    fn facts(pipeline: &str, number: u64, tasks: u32) -> RunFacts {
        let shape = StageShape {
            name: "kept".into(),
            slices: tasks,
            streaming: true,
            inputs: vec![],
            nodes: vec![],
            output: StageOutputShape::Exchange,
        };
        let slices = vec![weir_ledger::SliceFacts::default(); tasks as usize].into();
        let run_commit = weir_ledger::RunCommit::Open;
        RunFacts {
            pipeline: PipelineName(pipeline.into()),
            spec_hash: "spec".into(),
            params: BTreeMap::new(),
            window: None,
            version: None,
            request_id: None,
            backfill: None,
            replay_of: None,
            started_at: DateTime::UNIX_EPOCH,
            number,
            state: RunState::Succeeded { at: DateTime::UNIX_EPOCH },
            sessions: 1,
            graph_hash: Some("graph".into()),
            engine_version: None,
            stages: vec![StageFacts { shape, slices, finished_slices: 0, run_commit }],
            prepared: BTreeMap::new(),
            cleaned_up: true,
        }
    }

    fn ledger(runs: impl IntoIterator<Item = (&'static str, RunFacts)>) -> Ledger {
        let runs = runs.into_iter().map(|(id, facts)| (RunId(id.into()), facts));
        Ledger { runs: runs.collect(), ..Ledger::default() }
    }

    fn ids(runs: &[RunId]) -> Vec<&str> {
        runs.iter().map(|run| run.0.as_str()).collect()
    }

    #[test]
    fn the_oldest_runs_leave_when_there_are_too_many_or_they_have_too_many_tasks() {
        // Their ids are no order: a clock was set back.
        let runs = [("d", 1), ("b", 2), ("c", 3), ("a", 4)];
        let ledger = ledger(runs.map(|(id, number)| (id, facts("orders", number, 10))));
        let leave = |runs, tasks| leaving(&ledger, KeptRuns { runs, tasks });
        assert_eq!(ids(&leave(4, 40)), [""; 0]);
        assert_eq!(ids(&leave(2, 40)), ["d", "b"]);
        assert_eq!(ids(&leave(4, 39)), ["d"]);
        assert_eq!(ids(&leave(0, 0)), ["d", "b", "c"], "the newest of its pipeline stays");
    }

    #[test]
    fn what_is_needed_stays_and_counts() {
        let at = DateTime::UNIX_EPOCH;
        let with = |number, state| RunFacts { state, ..facts("orders", number, 1) };
        let window = WindowOf { backfill: BackfillId("bf-a".into()), window: 0 };
        let of_window = RunFacts { backfill: Some(window), ..facts("orders", 2, 1) };
        let ledger = ledger([
            ("queued", with(0, RunState::Queued)),
            ("running", with(1, RunState::Running)),
            ("window", of_window),
            ("staging", RunFacts { cleaned_up: false, ..facts("orders", 3, 1) }),
            ("oldest", facts("orders", 4, 1)),
            ("failed", with(5, RunState::Failed { at, error: "no".into() })),
            ("alone", facts("customers", 6, 1)),
            (
                "skipped",
                RunFacts {
                    graph_hash: None,
                    ..with(7, RunState::Skipped { at, beside: RunId("running".into()) })
                },
            ),
            ("newest", facts("orders", 8, 1)),
        ]);
        let leave = |runs| leaving(&ledger, KeptRuns { runs, tasks: 100 });
        assert_eq!(ids(&leave(4)), ["oldest"], "after newest, skipped, alone, failed");
        assert_eq!(ids(&leave(0)), ["oldest", "failed", "skipped"]);
    }

    #[tokio::test]
    async fn a_run_is_what_the_last_leader_has_written_of_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = Storage::folder(folder.path());
        let run = RunId("20260101-a".into());
        assert!(matches!(read_ended(&storage, &run).await, Ok(None)));
        let (old, new) = (facts("orders", 1, 1), facts("orders", 1, 2));
        for (epoch, facts) in [(9, old.clone()), (10, new.clone()), (9, old)] {
            write_ended(&storage, epoch, &run, facts).await.expect("the disk has room");
        }
        let read = read_ended(&storage, &run).await.expect("readable");
        assert_eq!(read, Some(new), "whoever was replaced wrote last");
    }
}

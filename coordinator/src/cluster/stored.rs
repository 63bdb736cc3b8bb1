//! Outputs that executors keep, and that the storage has got, too (`checkpoint.exchange: async`): put down once the
//! ledger knows the output.

use weir_ledger::{Command, Ledger, OutputStored, RunId, RunState, SliceState};
use weir_plan::StageId;
use weir_proto::internal::to_executor::Message;
use weir_proto::internal::{StoredNoted, StoredOutput};

use super::leading::Leading;

/// What a stored output is to the ledger.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Its task has ended a moment ago.
    NotKnownYet,
    ToBeNoted,
    Noted,
    /// Another attempt has won, or nobody will read the run's rows.
    Unwanted,
}

impl Leading {
    /// Answers once there is nothing left to be told: the executor repeats it until then.
    pub(super) async fn note_stored(&self, executor: &str, boot_id: &str, stored: StoredOutput) {
        let standing = self.with_ledger(|ledger| standing(ledger, self.epoch, &stored)).await;
        let is_wanted = match standing {
            Standing::NotKnownYet => return,
            Standing::Unwanted => false,
            Standing::Noted => true,
            Standing::ToBeNoted => {
                let StoredOutput { run, stage, slice, file_id } = stored.clone();
                let (epoch, run, stage) = (self.epoch, RunId(run), StageId(stage));
                let note = OutputStored { epoch, run, stage, slice, file_id };
                if let Err(error) = self.append(Command::OutputStored(note)).await {
                    tracing::warn!(executor, %error, "that rows are stored is not noted");
                    return;
                }
                true
            }
        };
        let noted = StoredNoted { output: Some(stored), is_wanted };
        self.pool.send(executor, boot_id, Message::StoredNoted(noted));
    }
}

fn standing(ledger: &Ledger, epoch: u64, stored: &StoredOutput) -> Standing {
    let run = ledger.run(&RunId(stored.run.clone())).filter(|run| !run.state.is_terminal());
    let Some(run) = run else { return Standing::Unwanted };
    let slice = run.slice(StageId(stored.stage), stored.slice);
    let Some(slice) = slice else { return Standing::Unwanted };
    match (&slice.exchange, &slice.state) {
        (Some(output), _) if output.file_id != stored.file_id => Standing::Unwanted,
        (Some(output), _) if output.is_durable() => Standing::Noted,
        (Some(_), _) => Standing::ToBeNoted,
        // Attempts of epochs before, and of a run that has failed, are over.
        (None, SliceState::Running { epoch: begun } | SliceState::Copied { epoch: begun, .. })
            if *begun == epoch && run.state == RunState::Running =>
        {
            Standing::NotKnownYet
        }
        (None, _) => Standing::Unwanted,
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use weir_ledger::{
        RunCommit, RunFacts, RunState, SliceFacts, StageFacts, StageOutputShape, StageShape,
    };
    use weir_plan::{ExchangeOutput, Holder, InStorage};
    use weir_spec::PipelineName;

    use super::*;

    fn with_slice(slice: SliceFacts, state: RunState) -> Ledger {
        let stage = StageFacts {
            shape: StageShape {
                name: "part".into(),
                slices: 1,
                streaming: false,
                inputs: vec![],
                nodes: vec![],
                output: StageOutputShape::Exchange,
            },
            slices: vec![slice].into(),
            finished_slices: 0,
            run_commit: RunCommit::Open,
        };
        let run = RunFacts {
            pipeline: PipelineName("p".into()),
            spec_hash: String::new(),
            params: Default::default(),
            window: None,
            request_id: None,
            replay_of: None,
            backfill: None,
            version: None,
            started_at: DateTime::UNIX_EPOCH,
            number: 1,
            state,
            sessions: 1,
            graph_hash: None,
            engine_version: None,
            stages: vec![stage],
            prepared: Default::default(),
            cleaned_up: false,
        };
        let mut ledger = Ledger::default();
        ledger.runs.insert(RunId("run".into()), run);
        ledger
    }

    fn finished(file_id: &str, in_storage: InStorage) -> SliceFacts {
        let holder = Holder { executor: "a".into(), boot_id: "b".into(), url: "http://a".into() };
        let (file_id, holder) = (file_id.to_owned(), Some(holder));
        let output = ExchangeOutput { file_id, first: 0, partitions: 1, holder, in_storage };
        let state = SliceState::Finished;
        SliceFacts { exchange: Some(Box::new(output)), state, ..SliceFacts::default() }
    }

    #[test]
    fn what_is_stored_is_noted_once_its_output_is_known_and_unwanted_when_nobody_reads_it() {
        let stored =
            StoredOutput { run: "run".into(), stage: 0, slice: 0, file_id: "0-7-1".into() };
        let in_state = |state| SliceFacts { state, ..SliceFacts::default() };
        let at_work = |epoch| in_state(SliceState::Running { epoch });
        let at = DateTime::UNIX_EPOCH;
        let failed = || RunState::Failed { at, error: String::new() };
        let (coming, there) = (InStorage::Coming, InStorage::Yes);
        for (slice, state, expected) in [
            (at_work(7), RunState::Running, Standing::NotKnownYet),
            (at_work(6), RunState::Running, Standing::Unwanted),
            (at_work(7), failed(), Standing::Unwanted),
            (in_state(SliceState::Pending), RunState::Running, Standing::Unwanted),
            (finished("0-7-1", coming), RunState::Running, Standing::ToBeNoted),
            (finished("0-7-1", coming), failed(), Standing::ToBeNoted),
            (finished("0-7-1", there), RunState::Running, Standing::Noted),
            (finished("0-7-2", coming), RunState::Running, Standing::Unwanted),
            (finished("0-7-1", there), RunState::Succeeded { at }, Standing::Unwanted),
        ] {
            let shown = format!("{slice:?} {state:?}");
            assert_eq!(standing(&with_slice(slice, state), 7, &stored), expected, "{shown}");
        }
        let unknown = StoredOutput { run: "other".into(), ..stored };
        let ledger = with_slice(finished("0-7-1", coming), RunState::Running);
        assert_eq!(standing(&ledger, 7, &unknown), Standing::Unwanted);
    }
}

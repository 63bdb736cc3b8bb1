//! Keeps the row account of a task: who counted what, which rows were rejected, how far cursors are.

use std::sync::{Arc, Mutex, MutexGuard};

use arrow::array::{Array, RecordBatch};
use datafusion::error::{DataFusionError, Result};
use indexmap::IndexMap;
use tokio::sync::mpsc::UnboundedSender;
use weir_connectors::records::Json;
use weir_connectors::{ConnectorError, SourceBatch};
use weir_plan::operators::NodeFailure;
use weir_plan::{NodeCounts, Rejection, RowAccount, StageId};
use weir_spec::{NodeName, OnError};

use crate::cursor::GreatestCursor;
use crate::dead_letters::DeadLetterBox;
use crate::storage::Storage;
use crate::{ProgressEvent, Task, TaskError};

/// Shared by everything that handles rows of one task. What is recorded between two calls of
/// [`Recorder::take_account`] belongs to one batch.
#[derive(Debug)]
pub(crate) struct Recorder {
    run: String,
    events: UnboundedSender<ProgressEvent>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    account: RowAccount,
    sources: IndexMap<NodeName, SourceNode>,
    dead_letters: DeadLetterBox,
}

#[derive(Debug)]
struct SourceNode {
    on_error: OnError,
    cursor: Option<(String, GreatestCursor)>,
}

impl Recorder {
    pub(crate) fn new(
        task: &Task,
        dead_letters: DeadLetterBox,
        events: UnboundedSender<ProgressEvent>,
    ) -> Arc<Self> {
        let state =
            State { account: RowAccount::default(), sources: IndexMap::new(), dead_letters };
        Arc::new(Self { run: task.run.clone(), events, state: Mutex::new(state) })
    }

    /// Makes a source known before its first batch; each partition of a plan does so. A given source
    /// observes no cursor: rows that are replayed must not move a watermark.
    pub(crate) fn declare_source(&self, node: &NodeName, source: &weir_spec::Source, given: bool) {
        self.state().sources.entry(node.clone()).or_insert_with(|| {
            let incremental = source.incremental().filter(|_| !given);
            SourceNode {
                on_error: source.error_policy().0,
                cursor: incremental
                    .map(|incremental| (incremental.cursor.clone(), GreatestCursor::default())),
            }
        });
    }

    pub(crate) fn on_source_batch(&self, node: &NodeName, batch: &SourceBatch) -> Result<()> {
        let rows = batch.rows.num_rows() as u64;
        let rejected = batch.rejected.len() as u64;
        let mut counts =
            NodeCounts { rows_in: rows + rejected, rows_out: rows, ..NodeCounts::default() };
        let mut state = self.state();
        let State { sources, dead_letters, account, .. } = &mut *state;
        let known = sources.get_mut(node);
        let on_error = known.as_ref().map_or(OnError::Fail, |source| source.on_error);
        if let Some((column, greatest)) = known.and_then(|source| source.cursor.as_mut()) {
            greatest.observe(column, &batch.rows)?;
        }
        match on_error {
            OnError::Fail => {
                if let Some(row) = batch.rejected.first() {
                    let message = format!(
                        "{} (the row: {}); mend the row, or write `on_error: dead_letter` to go on \
                         without it",
                        row.reason, row.raw
                    );
                    return Err(NodeFailure::wrap(node, ConnectorError::data(message)));
                }
            }
            OnError::Drop => counts.dropped = rejected,
            OnError::DeadLetter => {
                counts.dead_lettered = rejected;
                let rows = batch.rejected.iter().map(|row| Rejection {
                    row: Json::String(row.raw.clone()),
                    reasons: vec![row.reason.clone()],
                    offset: row.offset,
                });
                dead_letters.put(node, rows.collect()).map_err(external)?;
            }
        }
        *account.nodes.entry(node.clone()).or_default() += counts;
        drop(state);
        self.report(node, counts.rows_in, memory_bytes(&batch.rows));
        Ok(())
    }

    /// Notes that an exchange is read, even if it turns out to be empty.
    pub(crate) fn on_exchange_rows(&self, stage: StageId, rows: u64) {
        *self.state().account.exchanges_read.entry(stage).or_default() += rows;
    }

    pub(crate) fn count(&self, node: &NodeName, counts: NodeCounts) {
        *self.state().account.nodes.entry(node.clone()).or_default() += counts;
        self.report(node, counts.rows_in, 0);
    }

    pub(crate) fn reject(&self, node: &NodeName, rows: Vec<Rejection>) -> Result<()> {
        self.state().dead_letters.put(node, rows).map_err(external)
    }

    /// Rows that have reached a sink.
    pub(crate) fn on_written(&self, node: &NodeName, rows: &RecordBatch) {
        let count = rows.num_rows() as u64;
        let counts = NodeCounts { rows_in: count, rows_out: count, ..NodeCounts::default() };
        *self.state().account.nodes.entry(node.clone()).or_default() += counts;
        self.report(node, count, memory_bytes(rows));
    }

    /// The account since the last call, without `rows_written` and `checksum`.
    pub(crate) fn take_account(&self) -> Result<RowAccount> {
        let mut state = self.state();
        let mut account = std::mem::take(&mut state.account);
        for (node, source) in &mut state.sources {
            let Some((_, greatest)) = &mut source.cursor else { continue };
            if let Some(cursor) = greatest.take()? {
                account.cursors.insert(node.clone(), cursor);
            }
        }
        Ok(account)
    }

    /// Makes the dead letters since the last call durable, as part of batch `sequence`.
    pub(crate) async fn publish_dead_letters(
        &self,
        sequence: u64,
        storage: &Storage,
    ) -> Result<(), TaskError> {
        let drafts = self.state().dead_letters.take(sequence);
        for draft in drafts {
            draft.publish(storage).await?;
        }
        Ok(())
    }

    /// Progress may be lost: nobody may be listening.
    pub(crate) fn send(&self, event: ProgressEvent) {
        let _ = self.events.send(event);
    }

    fn report(&self, node: &NodeName, rows: u64, bytes: u64) {
        if rows > 0 {
            self.send(ProgressEvent::Rows {
                run: self.run.clone(),
                node: node.clone(),
                rows,
                bytes,
            });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

fn external(error: TaskError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Bytes of the rows themselves: a slice counts for what it shows, not for the buffers it shares.
fn memory_bytes(rows: &RecordBatch) -> u64 {
    let sizes = rows.columns().iter().map(|column| {
        column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
    });
    sizes.sum::<usize>() as u64
}

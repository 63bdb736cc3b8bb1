//! Cuts a slice into morsels while its rows flow through the operators.
//!
//! A morsel is what becomes one committed batch. Nothing is buffered to find its end: the leaf of
//! the plan passes batches on as they are read, and ends its stream at the first *safe place* (where
//! a later attempt can go on) at which the morsel is full.
//!
//! ```text
//!            batch with position            full, or asked to stop
//! ┌────────┐ ───────────────────▶ ┌──────┐ ─────────────────────────▶ end At(position)
//! │ between│                      │ safe │
//! └────────┘ ◀─────────────────── └──────┘ ── last split has ended ─▶ end Finished
//!            batch without
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use weir_plan::{SlicePosition, StageId};
use weir_spec::NodeName;

use crate::reading::{ReadStep, SliceReader};
use crate::recorder::Recorder;

/// How long a task that is asked to stop looks for a safe place before it gives its open batch up.
const STOP_GRACE: Duration =
    if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };
/// How long a full morsel waits to learn whether it was the slice's last one.
const LAST_LOOK: Duration = Duration::from_millis(50);

/// When a morsel is full. Whichever comes first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MorselBounds {
    pub(crate) rows_written: u64,
    pub(crate) rows_read: u64,
    pub(crate) bytes_written: Option<u64>,
    pub(crate) every: Duration,
}

/// What the driver has written of the open morsel; the leaf looks at it between batches.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) rows: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

/// How a morsel has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MorselEnd {
    /// The slice goes on here.
    At(SlicePosition),
    /// The slice has been read to its end.
    Finished,
    /// Asked to stop before a row was read: nothing to commit.
    Idle,
    /// Asked to stop, and no safe place came in time: the open batch must be dropped.
    Abandoned,
}

/// Whose rows these are.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    Source(NodeName),
    Exchange(StageId),
}

/// The input of a streaming stage, shared by its driver and the leaf of its plan.
#[derive(Clone, Debug)]
pub(crate) struct MorselFeed {
    input: Arc<Mutex<SliceInput>>,
    schema: SchemaRef,
}

impl MorselFeed {
    pub(crate) fn new(input: SliceInput, schema: SchemaRef) -> Self {
        Self { input: Arc::new(Mutex::new(input)), schema }
    }

    /// The rows of the open morsel.
    pub(crate) fn stream(&self) -> Result<SendableRecordBatchStream> {
        let input = Arc::clone(&self.input).try_lock_owned().map_err(|_| {
            DataFusionError::Internal("a streaming plan reads its morsel twice".to_owned())
        })?;
        let rows = futures::stream::try_unfold(input, |mut input| async move {
            Ok(input.next().await?.map(|rows| (rows, input)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(SchemaRef::clone(&self.schema), rows)))
    }

    /// Waits until the leaf has let go of the input.
    pub(crate) async fn input(&self) -> MutexGuard<'_, SliceInput> {
        self.input.lock().await
    }
}

#[derive(Debug)]
enum Place {
    Safe(SlicePosition),
    Between,
    Finished,
}

/// The unread rest of a slice.
#[derive(Debug)]
pub(crate) struct SliceInput {
    reader: SliceReader,
    /// Read, and not yet part of a morsel.
    peeked: Option<Result<ReadStep>>,
    origin: Origin,
    split_count: u32,
    bounds: MorselBounds,
    written: Arc<Written>,
    recorder: Arc<Recorder>,
    stop: CancellationToken,
    /// Once asked to stop: until when a safe place is looked for.
    give_up_at: Option<Instant>,
    place: Place,
    /// Of the open morsel.
    rows_read: u64,
    has_read: bool,
    deadline: Instant,
    end: Option<MorselEnd>,
}

impl SliceInput {
    #[expect(clippy::too_many_arguments, reason = "called once, by name-like variables")]
    pub(crate) fn new(
        reader: SliceReader,
        origin: Origin,
        split_count: u32,
        start: SlicePosition,
        bounds: MorselBounds,
        written: Arc<Written>,
        recorder: Arc<Recorder>,
        stop: CancellationToken,
    ) -> Self {
        let place = if start.split >= split_count { Place::Finished } else { Place::Safe(start) };
        Self {
            reader,
            peeked: None,
            origin,
            split_count,
            bounds,
            written,
            recorder,
            stop,
            give_up_at: None,
            place,
            rows_read: 0,
            has_read: false,
            deadline: Instant::now() + bounds.every,
            end: None,
        }
    }

    /// Opens the next morsel.
    pub(crate) fn begin(&mut self) {
        self.written.rows.store(0, Ordering::Relaxed);
        self.written.bytes.store(0, Ordering::Relaxed);
        self.rows_read = 0;
        self.has_read = false;
        self.deadline = Instant::now() + self.bounds.every;
        self.end = None;
        if let Origin::Exchange(stage) = self.origin {
            self.recorder.on_exchange_rows(stage, 0);
        }
    }

    /// Reads the open morsel to its end, past operators that did not want all of it.
    pub(crate) async fn end(&mut self) -> Result<MorselEnd> {
        loop {
            if let Some(end) = &self.end {
                return Ok(end.clone());
            }
            self.next().await?;
        }
    }

    /// The next rows of the open morsel; `None` at its end.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.end.is_none() {
            if !matches!(self.place, Place::Between) && self.is_full() {
                self.look_for_the_end().await?;
            }
            match &self.place {
                Place::Finished => self.end = Some(MorselEnd::Finished),
                Place::Safe(_) if !self.has_read && self.stop.is_cancelled() => {
                    self.end = Some(MorselEnd::Idle);
                }
                Place::Safe(position) if self.is_full() => {
                    self.end = Some(MorselEnd::At(position.clone()));
                }
                Place::Safe(_) | Place::Between => {
                    if let Some(step) = self.receive().await?
                        && let Some(rows) = self.take(step)?
                    {
                        return Ok(Some(rows));
                    }
                }
            }
        }
        Ok(None)
    }

    fn is_full(&self) -> bool {
        let bounds = &self.bounds;
        let bytes_written = self.written.bytes.load(Ordering::Relaxed);
        self.has_read
            && (self.rows_read >= bounds.rows_read
                || self.written.rows.load(Ordering::Relaxed) >= bounds.rows_written
                || bounds.bytes_written.is_some_and(|bytes| bytes_written >= bytes)
                || Instant::now() >= self.deadline
                || self.stop.is_cancelled())
    }

    /// Waits for the next step; `None` when a timer says to look at the bounds again.
    async fn receive(&mut self) -> Result<Option<ReadStep>> {
        if let Some(step) = self.peeked.take() {
            return step.map(Some);
        }
        let is_safe = !matches!(self.place, Place::Between);
        if self.stop.is_cancelled() {
            self.give_up_at.get_or_insert_with(|| Instant::now() + STOP_GRACE);
        }
        let give_up_at = self.give_up_at.unwrap_or(self.deadline);
        tokio::select! {
            biased;
            () = sleep_until(give_up_at), if self.give_up_at.is_some() && !is_safe => {
                self.end = Some(MorselEnd::Abandoned);
                return Ok(None);
            }
            step = self.reader.steps.recv() => {
                if let Some(step) = step {
                    return step.map(Some);
                }
            }
            () = sleep_until(self.deadline), if is_safe && self.has_read => return Ok(None),
            () = self.stop.cancelled(), if self.give_up_at.is_none() => return Ok(None),
        }
        Err(self.reader.failure().await)
    }

    /// Takes the ends of splits that follow a full morsel into it, so that the slice's last batch
    /// says that it is the last.
    async fn look_for_the_end(&mut self) -> Result<()> {
        while self.peeked.is_none() && !matches!(self.place, Place::Finished) {
            match timeout(LAST_LOOK, self.reader.steps.recv()).await {
                Ok(Some(Ok(step @ ReadStep::SplitEnd { .. }))) => {
                    self.take(step)?;
                }
                Ok(Some(other)) => self.peeked = Some(other),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, step: ReadStep) -> Result<Option<RecordBatch>> {
        match step {
            ReadStep::Batch { split, batch } => {
                match &self.origin {
                    Origin::Source(node) => self.recorder.on_source_batch(node, &batch)?,
                    Origin::Exchange(stage) => {
                        self.recorder.on_exchange_rows(*stage, batch.rows.num_rows() as u64);
                    }
                }
                self.has_read = true;
                self.rows_read += (batch.rows.num_rows() + batch.rejected.len()) as u64;
                self.place = match batch.position {
                    Some(inner) => Place::Safe(SlicePosition { split, inner: Some(inner) }),
                    None => Place::Between,
                };
                Ok(Some(batch.rows).filter(|rows| rows.num_rows() > 0))
            }
            ReadStep::SplitEnd { split } => {
                let next = split + 1;
                self.place = if next >= self.split_count {
                    Place::Finished
                } else {
                    Place::Safe(SlicePosition { split: next, inner: None })
                };
                Ok(None)
            }
        }
    }
}

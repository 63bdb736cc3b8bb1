//! Writes the rows of one slice, a transaction a batch.
//!
//! ```text
//! write: encode ─▶ bytes ─▶ session task: BEGIN, COPY … FROM STDIN, bytes, bytes …
//! stage:                    end of COPY, [merge], fences FOR SHARE, ledger row
//! publish:                  COMMIT
//! ```
//! The task owns the connection, so that the server takes in one Arrow batch while the next is being
//! encoded. Dropping the writer ends the task and the connection; the server rolls back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array as _, RecordBatch};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::books::{Books, Entry};
use super::catalog::run;
use super::connect::Server;
use super::encode::{Encoder, HEADER, TRAILER, encode_rows};
use super::error::{classify, sql_state};
use super::plan::{Plan, Route};
use crate::{ConnectorError, ErrorKind, Manifest, SinkTask, SinkWriter};

/// The server starts on a buffer before all of it has arrived.
const CHUNK_BYTES: usize = 64 << 10;
const BUFFERS_IN_FLIGHT: usize = 2;
/// How long a lost connection's transaction is waited for before its batch counts as unknown.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct PostgresWriter {
    plan: Arc<Plan>,
    /// For each written column its place in the rows.
    places: Vec<usize>,
    schema: SchemaRef,
    slice: u32,
    epoch: u64,
    /// Place of the next row in the slice's order of arrival, for plans that merge.
    order: Option<i64>,
    open_bytes: u64,
    commands: mpsc::Sender<Command>,
    /// `None` once its failure has been reported.
    session: Option<JoinHandle<Result<(), ConnectorError>>>,
}

enum Command {
    Rows(Vec<u8>),
    Stage(Entry, oneshot::Sender<()>),
    Publish(oneshot::Sender<()>),
}

impl PostgresWriter {
    pub(super) async fn open(
        server: &Server,
        books: Books,
        plan: Arc<Plan>,
        task: &SinkTask,
    ) -> Result<Self, ConnectorError> {
        let places = plan
            .columns
            .iter()
            .map(|column| {
                task.schema.index_of(&column.name).map_err(|_| {
                    ConnectorError::internal(format!(
                        "{books}: the rows have no column \"{}\"",
                        column.name
                    ))
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let SinkTask { epoch, slice, attempt, .. } = *task;
        let named = server.with_application_name(&books.writer_name(epoch, slice, attempt));
        let mut connection = named.connect().await?;
        let failed = |cause| classify(format!("open {books} at {server}"), cause);
        books.take_over(&mut connection, server, epoch).await?;
        books.raise_attempt(&mut connection, server, epoch, slice, attempt).await?;
        let order = match plan.has_order() {
            true => {
                let rows = books.rows_of_slice(&mut connection, slice).await.map_err(failed)?;
                Some((i64::from(slice) << 40) + rows)
            }
            false => None,
        };
        let backend = Backend::of(&mut connection).await.map_err(failed)?;
        let (commands, receiver) = mpsc::channel(BUFFERS_IN_FLIGHT);
        let session = Session {
            connection,
            backend,
            server: server.clone(),
            books,
            plan: plan.clone(),
            epoch,
            slice,
            attempt,
        };
        Ok(Self {
            plan,
            places,
            schema: task.schema.clone(),
            slice,
            epoch,
            order,
            open_bytes: 0,
            commands,
            session: Some(tokio::spawn(session.run(receiver))),
        })
    }

    fn encode(&mut self, rows: &RecordBatch) -> Result<Vec<u8>, ConnectorError> {
        let mut encoders = Vec::with_capacity(self.places.len() + 1);
        for (column, place) in self.plan.columns.iter().zip(&self.places) {
            let array = rows.column(*place);
            if self.plan.key.contains(&column.name) && array.logical_null_count() > 0 {
                return Err(ConnectorError::data(format!(
                    "key column \"{}\" is null in {} rows; a key cannot be null: filter such rows \
                     out or validate them with not_null",
                    column.name,
                    array.logical_null_count()
                )));
            }
            let field = self.schema.field(*place);
            encoders.push(Encoder::new(field, array, &column.wire, column.staged_type())?);
        }
        if let Some(order) = &mut self.order {
            encoders.push(Encoder::order(*order));
            *order += i64::try_from(rows.num_rows()).expect("a batch has fewer than 2^63 rows");
        }
        let mut out = Vec::with_capacity(rows.get_array_memory_size() + rows.num_rows() * 4);
        encode_rows(&encoders, rows.num_rows(), &mut out)?;
        Ok(out)
    }

    /// Why the session has ended.
    async fn failure(&mut self) -> ConnectorError {
        match self.session.take() {
            None => ConnectorError::internal("a writer was used after it had failed"),
            Some(session) => match session.await {
                Ok(Err(error)) => error,
                Ok(Ok(())) => ConnectorError::internal("a writer's session ended by itself"),
                Err(cause) => ConnectorError::internal(format!("a writer's session died: {cause}")),
            },
        }
    }

    async fn ask(
        &mut self,
        command: impl FnOnce(oneshot::Sender<()>) -> Command,
    ) -> Result<(), ConnectorError> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(command(reply)).await.is_err() || answer.await.is_err() {
            return Err(self.failure().await);
        }
        Ok(())
    }
}

#[async_trait]
impl SinkWriter for PostgresWriter {
    async fn write(&mut self, rows: RecordBatch) -> Result<(), ConnectorError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let bytes = self.encode(&rows)?;
        self.open_bytes += bytes.len() as u64;
        if self.commands.send(Command::Rows(bytes)).await.is_err() {
            return Err(self.failure().await);
        }
        Ok(())
    }

    fn open_bytes(&self) -> u64 {
        self.open_bytes
    }

    async fn stage(
        &mut self,
        sequence: u64,
        rows: u64,
        checksum: u64,
    ) -> Result<Manifest, ConnectorError> {
        let entry = Entry::batch(self.slice, sequence, rows, checksum, self.epoch);
        self.ask(|reply| Command::Stage(entry, reply)).await?;
        self.open_bytes = 0;
        Ok(Manifest {
            slice: self.slice,
            sequence,
            rows,
            checksum,
            epoch: self.epoch,
            payload: serde_json::Value::Null,
        })
    }

    async fn publish(&mut self, _manifest: &Manifest) -> Result<(), ConnectorError> {
        self.ask(Command::Publish).await
    }
}

impl Drop for PostgresWriter {
    fn drop(&mut self) {
        // The session may be waiting for the server; what it holds must not be committed later.
        if let Some(session) = &self.session {
            session.abort();
        }
    }
}

/// A server process, told apart from a later one with the same number.
#[derive(Clone, Debug)]
struct Backend {
    pid: i32,
    started: String,
}

impl Backend {
    async fn of(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let row = sqlx::query(
            "SELECT pid, backend_start::text AS started FROM pg_stat_activity \
             WHERE pid = pg_backend_pid()",
        )
        .persistent(false)
        .fetch_one(connection)
        .await?;
        Ok(Self { pid: row.get("pid"), started: row.get("started") })
    }

    /// Ends the process if it is still there; true once it is gone.
    async fn is_gone(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let ended = sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE pid = $1 AND backend_start::text = $2",
        )
        .bind(self.pid)
        .bind(&self.started)
        .persistent(false)
        .fetch_all(connection)
        .await?;
        Ok(ended.is_empty())
    }
}

/// The connection of a writer.
struct Session {
    connection: PgConnection,
    backend: Backend,
    server: Server,
    books: Books,
    plan: Arc<Plan>,
    epoch: u64,
    slice: u32,
    attempt: u32,
}

impl Session {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Result<(), ConnectorError> {
        while let Some(command) = commands.recv().await {
            if self.batch(command, &mut commands).await?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// One batch from its first command to its commit; `None` when the writer has gone away.
    async fn batch(
        &mut self,
        first: Command,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<Option<()>, ConnectorError> {
        let Some((entry, staged)) = self.copy(first, commands).await? else { return Ok(None) };
        if let Some(merge) = self.plan.merge_batch() {
            let attempt =
                format!("merge a batch into {} at {}", self.plan.table_name(), self.server);
            run(&mut self.connection, &merge).await.map_err(|cause| classify(attempt, cause))?;
        }
        self.books.check_fence(&mut self.connection, &self.server, self.epoch).await?;
        let Self { connection, server, .. } = self;
        self.books.book_batch(connection, server, entry, self.attempt).await?;
        if staged.send(()).is_err() {
            return Ok(None);
        }
        match commands.recv().await {
            None => Ok(None),
            Some(Command::Publish(published)) => {
                self.commit(entry).await?;
                // A writer that has gone away will ask the ledger.
                let _ = published.send(());
                Ok(Some(()))
            }
            Some(_) => Err(ConnectorError::internal("a staged batch must be published first")),
        }
    }

    /// Copies rows until the batch is staged.
    async fn copy(
        &mut self,
        first: Command,
        commands: &mut mpsc::Receiver<Command>,
    ) -> Result<Option<(Entry, oneshot::Sender<()>)>, ConnectorError> {
        let attempt = format!("write rows into {} at {}", self.plan.table_name(), self.server);
        let failed = |cause| classify(&attempt, cause);
        run(&mut self.connection, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
            .await
            .map_err(failed)?;
        if let Some(create) = self.plan.create_batch_table() {
            run(&mut self.connection, &create).await.map_err(failed)?;
        }
        let mut copy =
            self.connection.copy_in_raw(&self.plan.copy_statement()).await.map_err(failed)?;
        copy.send(&HEADER[..]).await.map_err(failed)?;
        let mut command = Some(first);
        loop {
            match command {
                None => return Ok(None),
                Some(Command::Rows(bytes)) => {
                    for chunk in bytes.chunks(CHUNK_BYTES) {
                        copy.send(chunk).await.map_err(failed)?;
                    }
                }
                Some(Command::Stage(entry, reply)) => {
                    copy.send(&TRAILER[..]).await.map_err(failed)?;
                    let rows = copy.finish().await.map_err(failed)?;
                    entry.expect_rows(rows)?;
                    return Ok(Some((entry, reply)));
                }
                Some(Command::Publish(_)) => {
                    return Err(ConnectorError::internal("only a staged batch can be published"));
                }
            }
            command = commands.recv().await;
        }
    }

    async fn commit(&mut self, entry: Entry) -> Result<(), ConnectorError> {
        let Err(cause) = run(&mut self.connection, "COMMIT").await else { return Ok(()) };
        let attempt = format!("commit a batch to {} at {}", self.plan.table_name(), self.server);
        let writer = Some((self.slice, self.attempt));
        let lost = Lost { cause, backend: &self.backend, entry, epoch: self.epoch, writer };
        // If it has landed the writer goes on, and fails with its next batch: the connection is gone.
        lost.settle(&self.server, &self.books, &attempt).await
    }
}

/// A transaction whose `COMMIT` was not answered.
struct Lost<'a> {
    cause: sqlx::Error,
    backend: &'a Backend,
    entry: Entry,
    epoch: u64,
    /// Slice and attempt, of a batch.
    writer: Option<(u32, u32)>,
}

impl Lost<'_> {
    /// Finds out whether the transaction has landed: `Ok` if so.
    async fn settle(
        self,
        server: &Server,
        books: &Books,
        attempt: &str,
    ) -> Result<(), ConnectorError> {
        let Self { cause, backend, entry, epoch, writer } = self;
        if sql_state(&cause).is_some_and(says_rolled_back) {
            return Err(classify(attempt, cause));
        }
        let lost = classify(attempt, cause);
        match ask_ledger(server, books, backend, entry, epoch, writer).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(lost),
            Err(error) if error.kind == ErrorKind::Fenced => Err(error),
            Err(unknown) => Err(ConnectorError::new(
                ErrorKind::Unavailable { retry_after: None, status: None },
                format!("{lost}; whether it has landed is not known yet: {unknown}"),
            )),
        }
    }
}

/// Whether the server itself says that it has rolled back: a deferred constraint, a deadlock. Of
/// `statement_completion_unknown` it does not know.
fn says_rolled_back(code: &str) -> bool {
    code != "40003" && matches!(code.get(..2), Some("22" | "23" | "40"))
}

/// Waits until the server process of a lost transaction is gone, then asks whether its entry is
/// there. `Fenced` if a newer epoch or attempt has taken over: the entry may be theirs.
async fn ask_ledger(
    server: &Server,
    books: &Books,
    backend: &Backend,
    entry: Entry,
    epoch: u64,
    writer: Option<(u32, u32)>,
) -> Result<bool, ConnectorError> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let asked = async {
            let mut connection = server.connect().await?;
            let gone = backend
                .is_gone(&mut connection)
                .await
                .map_err(|cause| classify(format!("end a lost session at {server}"), cause))?;
            if !gone {
                return Ok::<_, ConnectorError>(None);
            }
            let is_booked = books.is_booked(&mut connection, server, entry).await?;
            // Asked afterwards: the entry that was found is older than whoever takes over now.
            books.check_fence(&mut connection, server, epoch).await?;
            if let Some((slice, attempt)) = writer {
                books.check_attempt(&mut connection, server, slice, attempt).await?;
            }
            Ok(Some(is_booked))
        };
        match asked.await {
            Ok(Some(answer)) => return Ok(answer),
            Err(error) if !error.is_retryable() || Instant::now() >= deadline => return Err(error),
            Ok(None) if Instant::now() >= deadline => {
                return Err(ConnectorError::new(
                    ErrorKind::Timeout,
                    format!("a session at {server} does not end"),
                ));
            }
            Ok(None) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Commits a transaction outside of a writer.
pub(super) async fn commit_entry(
    mut connection: PgConnection,
    server: &Server,
    books: &Books,
    (entry, epoch): (Entry, u64),
    attempt: &str,
) -> Result<(), ConnectorError> {
    let backend = Backend::of(&mut connection).await.map_err(|cause| classify(attempt, cause))?;
    let Err(cause) = run(&mut connection, "COMMIT").await else { return Ok(()) };
    Lost { cause, backend: &backend, entry, epoch, writer: None }
        .settle(server, books, attempt)
        .await
}

impl Plan {
    /// Statements that depend on how rows travel.
    fn create_batch_table(&self) -> Option<String> {
        (self.route == Route::Batch).then(|| {
            format!(
                "CREATE TEMPORARY TABLE IF NOT EXISTS {} ({}) ON COMMIT DELETE ROWS",
                Self::BATCH_TABLE,
                self.staged_columns()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::says_rolled_back;

    #[test]
    fn only_a_server_that_knows_decides_without_the_ledger() {
        for code in ["23503", "40001", "40P01", "22003"] {
            assert!(says_rolled_back(code), "{code}");
        }
        for code in ["40003", "08006", "08007", "57P01", "57P02", "58030", "XX000"] {
            assert!(!says_rolled_back(code), "{code}");
        }
    }
}

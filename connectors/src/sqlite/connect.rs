//! Opening a database, its one writer, and what its errors mean.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use weir_spec::SqliteConnection as SqliteConfig;

use crate::{ConnectorContext, ConnectorError, ErrorKind};

/// How long another process may hold the database locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// One queue a database file, for all writers of this process: SQLite's own lock is polled, and
/// starves.
static WRITERS: LazyLock<Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>> =
    LazyLock::new(Mutex::default);

/// A database file.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pub path: PathBuf,
}

impl Database {
    pub(super) fn new(
        config: &SqliteConfig,
        context: &ConnectorContext,
    ) -> Result<Self, ConnectorError> {
        let path = context.path(&context.resolve(&config.path)?);
        // One name for one file, for the queue of writers.
        let folder = path.parent().and_then(|parent| parent.canonicalize().ok());
        let path = match (folder, path.file_name()) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => path,
        };
        Ok(Self { path })
    }

    /// Opens for reading. The file must be there.
    pub(super) async fn read(&self) -> Result<Session, ConnectorError> {
        if !self.path.exists() {
            return Err(ConnectorError::new(
                ErrorKind::NotFound,
                format!(
                    "the SQLite database {} does not exist (relative paths start at the folder of \
                     the pipeline file)",
                    self.path.display()
                ),
            ));
        }
        self.check_size()?;
        self.connect(SqliteConnectOptions::new().read_only(true)).await
    }

    /// Refuses a file that was cut off: SQLite notices it only where it happens to miss a page. Looking
    /// at every page (`PRAGMA quick_check`) would take as long as reading the database.
    fn check_size(&self) -> Result<(), ConnectorError> {
        let failed = |error| ConnectorError::io("read the header of", &self.path, error);
        let Some(first) = missing(&self.path).map_err(failed)? else { return Ok(()) };
        // Pages may still be in a journal. One that was there a moment ago has made the file whole.
        let has_journal = ["-wal", "-journal"].iter().any(|suffix| {
            let mut name = self.path.clone().into_os_string();
            name.push(suffix);
            std::fs::metadata(name).is_ok_and(|file| file.len() > 0)
        });
        if has_journal || missing(&self.path).map_err(failed)? != Some(first) {
            return Ok(());
        }
        let (expected, found) = first;
        Err(ConnectorError::data(format!(
            "the SQLite database {} was cut off: it has {found} of the {expected} bytes that its header \
             names; restore it from a backup",
            self.path.display()
        )))
    }

    /// Waits for this process's turn, opens for writing (creating the file) and begins a
    /// transaction that no other writer can come between. Dropping it rolls back.
    pub(super) async fn begin(&self) -> Result<Transaction, ConnectorError> {
        let queue = WRITERS
            .lock()
            .expect("no holder of this lock panics")
            .entry(self.path.clone())
            .or_default()
            .clone();
        let turn = queue.lock_owned().await;
        let options = SqliteConnectOptions::new()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // Replacing drops the old table: that must not delete rows that refer to it, nor may
            // views and triggers that name the table make its renaming fail.
            .foreign_keys(false)
            .pragma("legacy_alter_table", "ON");
        let mut session = self.connect(options).await?;
        session.execute("begin a transaction in", "BEGIN IMMEDIATE").await?;
        Ok(Transaction { session, _turn: turn })
    }

    async fn connect(&self, options: SqliteConnectOptions) -> Result<Session, ConnectorError> {
        let connection = options
            .filename(&self.path)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging()
            .connect()
            .await
            .map_err(|error| self.error("open", error))?;
        Ok(Session { connection, database: self.clone() })
    }

    /// `failed to <attempt> <path>: <cause>`, classified by SQLite's result code.
    pub(super) fn error(&self, attempt: &str, error: sqlx::Error) -> ConnectorError {
        let path = self.path.display();
        let code = match &error {
            sqlx::Error::Database(cause) => cause.code().and_then(|code| code.parse::<i32>().ok()),
            _ => None,
        };
        let text = error.to_string();
        let (kind, remedy) = match code.map(|code| code & 0xff) {
            Some(10 | 14) if self.path.is_dir() => {
                (ErrorKind::Config, " (it is a folder: name a file in it)")
            }
            Some(5 | 6) => (ErrorKind::Timeout, " (another process has held it locked for 30 s)"),
            Some(13) => (ErrorKind::Exhausted, " (make room on its file system)"),
            // The index of the write-ahead log is made with the database and fails first.
            Some(10) if is_nearly_full(&self.path) => {
                (ErrorKind::Exhausted, " (make room on its file system)")
            }
            Some(7) => (ErrorKind::Exhausted, ""),
            Some(3 | 8 | 23) => (
                ErrorKind::Denied,
                " (allow the user who runs weir to write the file and its folder)",
            ),
            Some(14) => match self.path.parent().is_some_and(Path::exists) {
                true => (ErrorKind::Denied, " (can this user write the file and its folder?)"),
                false => (ErrorKind::NotFound, " (its folder does not exist)"),
            },
            Some(26) => (
                ErrorKind::Data,
                " (the file is not a SQLite database: name another, or move it away)",
            ),
            Some(11) => (ErrorKind::Data, " (the database is damaged: restore it from a backup)"),
            Some(18..=20) => (ErrorKind::Data, ""),
            Some(1) if text.contains("no such table") || text.contains("no such column") => {
                (ErrorKind::NotFound, "")
            }
            Some(1) => (ErrorKind::Config, ""),
            _ => (ErrorKind::Unavailable { retry_after: None, status: None }, ""),
        };
        ConnectorError::caused(kind, format!("failed to {attempt} {path}{remedy}"), error)
    }
}

/// The size that a database's header names and the size of the file, if that is less. `None` too where
/// the header does not know: a program before SQLite 3.7 has written last.
fn missing(path: &Path) -> std::io::Result<Option<(u64, u64)>> {
    let mut header = [0; 100];
    let mut file = std::fs::File::open(path)?;
    if file.read_exact(&mut header).is_err() || !header.starts_with(b"SQLite format 3\0") {
        // Empty, or no database: SQLite says so.
        return Ok(None);
    }
    let number = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    let (change_counter, pages, version_valid_for) = (number(24), number(28), number(92));
    let expected = page * u64::from(pages);
    let found = file.metadata()?.len();
    Ok((change_counter == version_valid_for && found < expected).then_some((expected, found)))
}

fn is_nearly_full(path: &Path) -> bool {
    let folder = path.parent().unwrap_or(path);
    rustix::fs::statvfs(folder)
        .is_ok_and(|status| status.f_bavail.saturating_mul(status.f_frsize) < 256 * 1024)
}

/// An open connection with its database's name for messages.
#[derive(Debug)]
pub(super) struct Session {
    pub connection: SqliteConnection,
    pub database: Database,
}

impl Session {
    pub(super) async fn execute(&mut self, attempt: &str, sql: &str) -> Result<(), ConnectorError> {
        self.execute_with(attempt, sql, SqliteArguments::default()).await.map(drop)
    }

    /// Returns how many rows the statement has changed.
    pub(super) async fn execute_with(
        &mut self,
        attempt: &str,
        sql: &str,
        arguments: SqliteArguments,
    ) -> Result<u64, ConnectorError> {
        sqlx::query_with(AssertSqlSafe(sql), arguments)
            .execute(&mut self.connection)
            .await
            .map(|done| done.rows_affected())
            .map_err(|error| self.database.error(attempt, error))
    }

    pub(super) async fn fetch(
        &mut self,
        attempt: &str,
        sql: &str,
        arguments: SqliteArguments,
    ) -> Result<Vec<SqliteRow>, ConnectorError> {
        sqlx::query_with(AssertSqlSafe(sql), arguments)
            .fetch_all(&mut self.connection)
            .await
            .map_err(|error| self.database.error(attempt, error))
    }
}

/// The database's one open write transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    pub session: Session,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Transaction {
    pub(super) async fn commit(mut self) -> Result<(), ConnectorError> {
        self.session.execute("commit a transaction in", "COMMIT").await?;
        let Session { connection, database } = self.session;
        // The rows are committed; a checkpoint that fails now is made by the next connection.
        if let Err(error) = connection.close().await {
            tracing::debug!(path = %database.path.display(), %error, "closing a database failed");
        }
        Ok(())
    }
}

/// An identifier, quoted.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Identifiers, quoted, with commas.
pub(super) fn quote_all<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quote).collect::<Vec<_>>().join(", ")
}

/// Arguments in order. `Null`s and mixed types are added by the caller.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => {{
        let mut arguments = sqlx::sqlite::SqliteArguments::default();
        $(
            sqlx::Arguments::add(&mut arguments, $value)
                .expect("text and numbers can always be bound");
        )*
        arguments
    }};
}
pub(super) use arguments;

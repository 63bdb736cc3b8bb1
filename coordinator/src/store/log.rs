//! The log's tables: entries chained by digests, and snapshots that keep opening fast.

use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _, Row};
use weir_ledger::{Command, Ledger, Response, apply};

use super::{Connection, Loaded, StoreError};

/// Grows with every change of the tables or of a command that older versions cannot read.
const FORMAT: i64 = 1;

/// Entries between two snapshots.
const SNAPSHOT_EVERY: u64 = 1_000;

/// Where the log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogState {
    last_index: u64,
    /// Of the last entry: covers everything before it as well.
    digest: String,
    last_snapshot: u64,
}

/// A row of the log.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    index: u64,
    command: String,
    digest: String,
}

impl LogState {
    fn empty() -> Self {
        Self { last_index: 0, digest: String::new(), last_snapshot: 0 }
    }

    pub(super) fn next_index(&self) -> u64 {
        self.last_index + 1
    }

    /// Moves the end by one command.
    pub(super) fn entry(&mut self, command: &Command) -> Entry {
        let command = serde_json::to_string(command).expect("every command can be written as JSON");
        self.last_index += 1;
        self.digest = digest(&self.digest, self.last_index, &command);
        Entry { index: self.last_index, command, digest: self.digest.clone() }
    }
}

fn digest(previous: &str, index: u64, text: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(previous.as_bytes());
    hasher.update(&index.to_be_bytes());
    hasher.update(text.as_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}

/// The open file.
pub(super) struct Log {
    path: PathBuf,
    connection: Connection,
}

impl Log {
    pub(super) async fn open_or_create(path: &Path) -> Result<Self, StoreError> {
        let mut log = Self::connect(path, Self::to_write(path)).await?;
        if log.format().await? == 0 {
            log.create_tables().await.map_err(|error| log.open_error(&error))?;
        }
        Ok(log)
    }

    /// `None`: whoever created the file was killed before there was anything in it.
    pub(super) async fn open_existing(path: &Path) -> Result<Option<Self>, StoreError> {
        // Not `read_only`: a reader of a log that nobody has open must be able to make its index.
        let options = SqliteConnectOptions::new().filename(path).pragma("query_only", "on");
        let mut log = Self::connect(path, options).await?;
        if log.format().await? > 0 {
            return Ok(Some(log));
        }
        let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
            .fetch_one(&mut log.connection)
            .await
            .map_err(|error| log.open_error(&error))?;
        if tables == 0 {
            log.close().await;
            return Ok(None);
        }
        Err(StoreError::Open {
            path: path.display().to_string(),
            message: "it is not a ledger".to_owned(),
        })
    }

    fn to_write(path: &Path) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
    }

    async fn connect(path: &Path, options: SqliteConnectOptions) -> Result<Self, StoreError> {
        let options =
            options.busy_timeout(std::time::Duration::from_secs(10)).disable_statement_logging();
        let connection = options.connect().await.map_err(|error| StoreError::Open {
            path: path.display().to_string(),
            message: cause(&error),
        })?;
        Ok(Self { path: path.to_owned(), connection })
    }

    async fn format(&mut self) -> Result<i64, StoreError> {
        let found: i64 = sqlx::query_scalar("PRAGMA user_version")
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| self.open_error(&error))?;
        if found > FORMAT {
            let path = self.path.display().to_string();
            return Err(StoreError::Newer { path, found, known: FORMAT });
        }
        Ok(found)
    }

    async fn create_tables(&mut self) -> Result<(), sqlx::Error> {
        let mut transaction = self.connection.begin().await?;
        for statement in [
            "CREATE TABLE IF NOT EXISTS entries (
                 idx INTEGER PRIMARY KEY, command TEXT NOT NULL, digest TEXT NOT NULL)",
            "CREATE TABLE IF NOT EXISTS snapshots (
                 idx INTEGER PRIMARY KEY, ledger TEXT NOT NULL,
                 entry_digest TEXT NOT NULL, digest TEXT NOT NULL)",
            "PRAGMA user_version = 1",
        ] {
            sqlx::query(statement).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    /// Reads the newest snapshot that is whole, and what follows it.
    pub(super) async fn load(&mut self) -> Result<Loaded, StoreError> {
        // One transaction: a writer may be at work.
        let path = self.path.clone();
        let mut transaction =
            self.connection.begin().await.map_err(|error| read_error(&path, 0, &error))?;
        let Loaded { mut ledger, mut tail } = read_snapshot(&path, &mut transaction).await?;
        let first = to_sql(tail.last_index);
        let mut rows =
            sqlx::query("SELECT idx, command, digest FROM entries WHERE idx > ? ORDER BY idx")
                .bind(first)
                .fetch(&mut *transaction);
        loop {
            let index = tail.next_index();
            let damaged = |message: String| StoreError::Damaged {
                path: path.display().to_string(),
                index,
                message,
            };
            let row = rows.try_next().await.map_err(|error| read_error(&path, index, &error))?;
            let Some(row) = row else { break };
            let found: i64 = row.try_get(0).map_err(|error| read_error(&path, index, &error))?;
            if found != to_sql(index) {
                return Err(damaged(format!("the entry is missing, {found} follows")));
            }
            let text: &str = row.try_get(1).map_err(|error| read_error(&path, index, &error))?;
            let kept: &str = row.try_get(2).map_err(|error| read_error(&path, index, &error))?;
            if digest(&tail.digest, index, text) != kept {
                return Err(damaged("its digest does not fit".to_owned()));
            }
            let command: Command = serde_json::from_str(text)
                .map_err(|error| damaged(format!("it is not a command: {error}")))?;
            let response = apply(&mut ledger, index, &command);
            if response != (Response::Accepted { changed: true }) {
                return Err(damaged("it does not follow from the entries before it".to_owned()));
            }
            tail.last_index = index;
            kept.clone_into(&mut tail.digest);
        }
        drop(rows);
        transaction.rollback().await.map_err(|error| read_error(&path, tail.last_index, &error))?;
        Ok(Loaded { ledger, tail })
    }

    /// Writes entries, and a snapshot when it is time for one: all or nothing, durable on return.
    pub(super) async fn write(
        &mut self,
        entries: &[Entry],
        tail: &mut LogState,
        ledger: &Ledger,
    ) -> Result<(), StoreError> {
        let snapshot = tail.last_index >= tail.last_snapshot + SNAPSHOT_EVERY;
        let written = self.write_all(entries, snapshot.then_some((&*tail, ledger))).await;
        if let Err(error) = written {
            self.reconnect().await;
            return Err(StoreError::Write {
                path: self.path.display().to_string(),
                message: cause(&error),
            });
        }
        if snapshot {
            tail.last_snapshot = tail.last_index;
        }
        Ok(())
    }

    /// After a failed write: SQLite may have rolled back by itself, and the connection then counts a
    /// transaction that is no more.
    async fn reconnect(&mut self) {
        match Self::connect(&self.path, Self::to_write(&self.path)).await {
            Ok(fresh) => {
                let stale = std::mem::replace(&mut self.connection, fresh.connection);
                if let Err(error) = stale.close_hard().await {
                    tracing::debug!(%error, "the ledger's old connection");
                }
            }
            // The next write fails as well, and tries again.
            Err(error) => tracing::warn!(%error, "the ledger is not opened again"),
        }
    }

    async fn write_all(
        &mut self,
        entries: &[Entry],
        snapshot: Option<(&LogState, &Ledger)>,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        for entry in entries {
            sqlx::query("INSERT INTO entries (idx, command, digest) VALUES (?, ?, ?)")
                .bind(to_sql(entry.index))
                .bind(&entry.command)
                .bind(&entry.digest)
                .execute(&mut *transaction)
                .await?;
        }
        if let Some((tail, ledger)) = snapshot {
            let text = serde_json::to_string(ledger).expect("a ledger can be written as JSON");
            sqlx::query(
                "INSERT INTO snapshots (idx, ledger, entry_digest, digest) VALUES (?, ?, ?, ?)",
            )
            .bind(to_sql(tail.last_index))
            .bind(&text)
            .bind(&tail.digest)
            .bind(digest(&tail.digest, tail.last_index, &text))
            .execute(&mut *transaction)
            .await?;
            // The snapshot before the last stays, with its entries, for when the last is damaged.
            for statement in [
                "DELETE FROM snapshots WHERE idx NOT IN \
                 (SELECT idx FROM snapshots ORDER BY idx DESC LIMIT 2)",
                "DELETE FROM entries WHERE idx <= \
                 (SELECT min(idx) FROM snapshots HAVING count(*) = 2)",
            ] {
                sqlx::query(statement).execute(&mut *transaction).await?;
            }
        }
        transaction.commit().await
    }

    /// Folds the log's side files into the ledger's. Best effort: they are read anyway.
    pub(super) async fn close(self) {
        let _ = self.connection.close().await;
    }

    fn open_error(&self, error: &sqlx::Error) -> StoreError {
        StoreError::Open { path: self.path.display().to_string(), message: cause(error) }
    }
}

async fn read_snapshot(path: &Path, connection: &mut Connection) -> Result<Loaded, StoreError> {
    let rows =
        sqlx::query("SELECT idx, ledger, entry_digest, digest FROM snapshots ORDER BY idx DESC")
            .fetch_all(connection)
            .await
            .map_err(|error| read_error(path, 0, &error))?;
    for row in rows {
        let read = || -> Result<Option<Loaded>, sqlx::Error> {
            let index = row.try_get::<i64, _>(0)?.cast_unsigned();
            let text: &str = row.try_get(1)?;
            let entry_digest: &str = row.try_get(2)?;
            if digest(entry_digest, index, text) != row.try_get::<&str, _>(3)? {
                return Ok(None);
            }
            Ok(serde_json::from_str(text).ok().map(|ledger| Loaded {
                ledger,
                tail: LogState {
                    last_index: index,
                    digest: entry_digest.to_owned(),
                    last_snapshot: index,
                },
            }))
        };
        if let Ok(Some(loaded)) = read() {
            return Ok(loaded);
        }
    }
    Ok(Loaded { ledger: Ledger::default(), tail: LogState::empty() })
}

fn read_error(path: &Path, index: u64, error: &sqlx::Error) -> StoreError {
    StoreError::Damaged { path: path.display().to_string(), index, message: cause(error) }
}

fn to_sql(index: u64) -> i64 {
    i64::try_from(index).expect("no log has 2^63 entries")
}

/// SQLite's own words, without sqlx's around them.
fn cause(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => database.message().to_owned(),
        other => other.to_string(),
    }
}

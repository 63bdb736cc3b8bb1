//! The tables in which a target remembers what Weir did: `_weir_ledger`, one row a batch,
//! `_weir_fence`, one row a sink, and `_weir_attempts`, one row a slice (see `attempts`).
//!
//! All stand in the schema of the target table, so that they change in the same transaction as the
//! rows. A writer holds its fence row `FOR SHARE` from the end of a batch to its commit; whoever
//! takes over updates the row, and so waits until such a transaction has either landed or gone.

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::catalog::run;
use super::connect::Server;
use super::error::{classify, sql_state};
use super::quote;
use crate::{ConnectorError, ErrorKind, Manifest, PrepareSink, PublishedBatch};

/// The slice under which the commit of a whole run is booked.
const WHOLE_RUN: i32 = -1;

/// How long a take-over waits for transactions of its predecessor.
pub(super) const TAKE_OVER_SECONDS: u32 = 60;

/// The books of one sink of one run.
#[derive(Clone, Debug)]
pub(super) struct Books {
    pub schema: String,
    pub identity: PrepareSink,
}

/// One line of the ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) slice: i32,
    sequence: i64,
    rows: i64,
    checksum: i64,
    epoch: i64,
}

impl Entry {
    pub(super) fn batch(slice: u32, sequence: u64, rows: u64, checksum: u64, epoch: u64) -> Self {
        Self {
            slice: i32::try_from(slice).expect("a stage has fewer than 2^31 slices"),
            sequence: sequence.cast_signed(),
            rows: rows.cast_signed(),
            checksum: checksum.cast_signed(),
            epoch: epoch.cast_signed(),
        }
    }

    pub(super) fn of(manifest: &Manifest) -> Self {
        Self::batch(
            manifest.slice,
            manifest.sequence,
            manifest.rows,
            manifest.checksum,
            manifest.epoch,
        )
    }

    /// Refuses a count of rows that differs from the entry's.
    pub(super) fn expect_rows(&self, rows: u64) -> Result<(), ConnectorError> {
        if rows == self.rows.cast_unsigned() {
            return Ok(());
        }
        Err(ConnectorError::internal(format!(
            "the target has {rows} rows where {} were written",
            self.rows
        )))
    }

    /// The commit of all batches of a run.
    pub(super) fn whole_run(manifests: &[Manifest], epoch: u64) -> Self {
        let rows: u64 = manifests.iter().map(|manifest| manifest.rows).sum();
        let checksum =
            manifests.iter().fold(0_u64, |sum, manifest| sum.wrapping_add(manifest.checksum));
        Self {
            slice: WHOLE_RUN,
            sequence: 0,
            rows: rows.cast_signed(),
            checksum: checksum.cast_signed(),
            epoch: epoch.cast_signed(),
        }
    }
}

impl Books {
    fn ledger(&self) -> String {
        format!("{}.\"_weir_ledger\"", quote::identifier(&self.schema))
    }

    fn fence(&self) -> String {
        format!("{}.\"_weir_fence\"", quote::identifier(&self.schema))
    }

    /// Short and the same for all runs of a sink: names sessions and staging tables.
    pub(super) fn sink_hash(&self) -> String {
        short_hash(&[&self.identity.ledger_id, &self.identity.pipeline, &self.identity.sink])
    }

    /// `weir <sink> <epoch>`: by this a successor finds sessions that must end.
    pub(super) fn session_name(&self, epoch: u64) -> String {
        format!("weir {} {epoch}", self.sink_hash())
    }

    /// Makes the tables. The caller holds the lock of [`Self::lock_statement`].
    pub(super) async fn create(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        self.create_table(
            connection,
            &self.ledger(),
            "ledger_id text NOT NULL, pipeline text NOT NULL, sink text NOT NULL, run text NOT NULL, \
             slice integer NOT NULL, sequence bigint NOT NULL, rows bigint NOT NULL, checksum bigint \
             NOT NULL, epoch bigint NOT NULL, committed_at timestamptz NOT NULL DEFAULT now(), \
             PRIMARY KEY (ledger_id, run, sink, slice, sequence)",
        )
        .await?;
        self.create_table(
            connection,
            &self.fence(),
            "ledger_id text NOT NULL, pipeline text NOT NULL, sink text NOT NULL, epoch bigint NOT \
             NULL, PRIMARY KEY (ledger_id, pipeline, sink)",
        )
        .await?;
        self.create_attempts(connection).await
    }

    pub(super) async fn create_table(
        &self,
        connection: &mut PgConnection,
        name: &str,
        columns: &str,
    ) -> Result<(), sqlx::Error> {
        // Asked first: CREATE … IF NOT EXISTS needs the right to create even if it is there.
        let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(name)
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
        if !exists {
            run(connection, &format!("CREATE TABLE {name} ({columns})")).await?;
        }
        Ok(())
    }

    /// Serialises those who make tables in one schema, for the transaction.
    pub(super) fn lock_statement(&self) -> String {
        let key = i64::from_str_radix(&short_hash(&["prepare", &self.schema])[..15], 16)
            .expect("fifteen hexadecimal digits");
        format!("SELECT pg_advisory_xact_lock({key})")
    }

    /// Makes `epoch` the least that may publish. Sessions of older epochs are ended; transactions
    /// that have staged a batch are waited for, so that the ledger is final afterwards.
    pub(super) async fn raise_fence(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        let failed = |cause| classify(format!("raise the fence of {self} at {server}"), cause);
        self.end_older_sessions(connection, server, epoch).await?;
        run(connection, &format!("SET lock_timeout = '{TAKE_OVER_SECONDS}s'"))
            .await
            .map_err(failed)?;
        let raised: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "INSERT INTO {} AS fence (ledger_id, pipeline, sink, epoch) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (ledger_id, pipeline, sink) \
             DO UPDATE SET epoch = greatest(fence.epoch, excluded.epoch) RETURNING epoch",
            self.fence()
        )))
        .bind(&self.identity.ledger_id)
        .bind(&self.identity.pipeline)
        .bind(&self.identity.sink)
        .bind(epoch.cast_signed())
        .persistent(false)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
        run(connection, "SET lock_timeout = 0").await.map_err(failed)?;
        if raised.cast_unsigned() > epoch {
            return Err(self.fenced(epoch, raised.cast_unsigned()));
        }
        Ok(())
    }

    /// Ends the sessions of older epochs; their locks go with them.
    async fn end_older_sessions(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        let ended = sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
             AND application_name LIKE $1 AND datname = current_database() \
             AND split_part(application_name, ' ', 3) ~ '^[0-9]+$' \
             AND split_part(application_name, ' ', 3)::numeric < $2::int8",
        )
        .bind(format!("weir {} %", self.sink_hash()))
        .bind(epoch.cast_signed())
        .persistent(false)
        .execute(&mut *connection)
        .await;
        match ended {
            Ok(_) => Ok(()),
            // Sessions of another role, which can only be waited for. Asked outside of a transaction
            // the refusal does no harm.
            Err(cause) if sql_state(&cause) == Some("42501") => Ok(()),
            Err(cause) => Err(classify(format!("raise the fence of {self} at {server}"), cause)),
        }
    }

    /// Raises the fence where it stands below `epoch`: a session that goes on with a run prepares
    /// nothing. `Fenced` if it stands above. A fence that is missing stays missing.
    pub(super) async fn take_over(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        match self.epoch(connection, server, "").await? {
            Some(current) if current < epoch => self.raise_fence(connection, server, epoch).await,
            Some(current) if current > epoch => Err(self.fenced(epoch, current)),
            Some(_) | None => Ok(()),
        }
    }

    /// As [`Self::take_over`], and makes a fence that is missing. A fence that stands is not touched:
    /// writers of the same epoch hold it.
    pub(super) async fn ensure_fence(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        match self.epoch(connection, server, "").await? {
            Some(current) if current == epoch => Ok(()),
            Some(_) | None => self.raise_fence(connection, server, epoch).await,
        }
    }

    async fn epoch(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        lock: &str,
    ) -> Result<Option<u64>, ConnectorError> {
        let current: Option<i64> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT epoch FROM {} WHERE ledger_id = $1 AND pipeline = $2 AND sink = $3{lock}",
            self.fence()
        )))
        .bind(&self.identity.ledger_id)
        .bind(&self.identity.pipeline)
        .bind(&self.identity.sink)
        .persistent(false)
        .fetch_optional(&mut *connection)
        .await
        .map_err(|cause| classify(format!("check the fence of {self} at {server}"), cause))?;
        Ok(current.map(i64::cast_unsigned))
    }

    /// As [`Self::check_fence`], and raises the fence to `epoch` in the same transaction. One that stands there
    /// is held as writers hold it: those of other runs go on.
    pub(super) async fn raise_with_commit(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        let current = self.epoch(connection, server, "").await?;
        if current == Some(epoch) {
            return self.check_fence(connection, server, epoch).await;
        }
        // A fence never goes back: who has been replaced need not wait for the writers of his successor.
        self.allow(current, server, epoch)?;
        self.allow(self.epoch(connection, server, " FOR UPDATE").await?, server, epoch)?;
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE {} SET epoch = $4 WHERE ledger_id = $1 AND pipeline = $2 AND sink = $3 AND epoch < \
             $4",
            self.fence()
        )))
        .bind(&self.identity.ledger_id)
        .bind(&self.identity.pipeline)
        .bind(&self.identity.sink)
        .bind(epoch.cast_signed())
        .persistent(false)
        .execute(connection)
        .await
        .map_err(|cause| classify(format!("raise the fence of {self} at {server}"), cause))?;
        Ok(())
    }

    /// Holds the fence row until the end of the transaction; `Fenced` if a newer epoch has taken
    /// over.
    pub(super) async fn check_fence(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        self.allow(self.epoch(connection, server, " FOR SHARE").await?, server, epoch)
    }

    fn allow(
        &self,
        current: Option<u64>,
        server: &Server,
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        match current {
            Some(current) if current <= epoch => Ok(()),
            Some(current) => Err(self.fenced(epoch, current)),
            None => Err(ConnectorError::new(
                ErrorKind::Changed,
                format!(
                    "the fence row of {self} at {server} has been removed; start the run again"
                ),
            )),
        }
    }

    fn fenced(&self, own: u64, current: u64) -> ConnectorError {
        ConnectorError::new(
            ErrorKind::Fenced,
            format!("{self}: epoch {current} has taken over from epoch {own}"),
        )
    }

    /// Books the commit of a whole run.
    pub(super) async fn book(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        entry: Entry,
    ) -> Result<(), ConnectorError> {
        self.insert(connection, server, entry, "").await.map(drop)
    }

    /// Books an entry if `condition`, the rest of a `SELECT`, holds; returns how many have been booked.
    /// An entry that is already there means that another process has published the batch: `Fenced`.
    pub(super) async fn insert(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        entry: Entry,
        condition: &str,
    ) -> Result<u64, ConnectorError> {
        let booked = sqlx::query(sqlx::AssertSqlSafe(format!(
            "INSERT INTO {} (ledger_id, pipeline, sink, run, slice, sequence, rows, checksum, epoch) \
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9{condition}",
            self.ledger()
        )))
        .bind(&self.identity.ledger_id)
        .bind(&self.identity.pipeline)
        .bind(&self.identity.sink)
        .bind(&self.identity.run)
        .bind(entry.slice)
        .bind(entry.sequence)
        .bind(entry.rows)
        .bind(entry.checksum)
        .bind(entry.epoch)
        .persistent(false)
        .execute(connection)
        .await;
        match booked {
            Ok(done) => Ok(done.rows_affected()),
            Err(cause) if sql_state(&cause) == Some("23505") => Err(ConnectorError::new(
                ErrorKind::Fenced,
                format!(
                    "{self}: batch {} of slice {} has been published by another process",
                    entry.sequence, entry.slice
                ),
            )),
            Err(cause) => Err(classify(format!("write the ledger of {self} at {server}"), cause)),
        }
    }

    /// Whether an entry is visible.
    pub(super) async fn is_booked(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        entry: Entry,
    ) -> Result<bool, ConnectorError> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT EXISTS (SELECT FROM {} WHERE ledger_id = $1 AND run = $2 AND sink = $3 AND slice = \
             $4 AND sequence = $5)",
            self.ledger()
        )))
        .bind(&self.identity.ledger_id)
        .bind(&self.identity.run)
        .bind(&self.identity.sink)
        .bind(entry.slice)
        .bind(entry.sequence)
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(|cause| classify(format!("read the ledger of {self} at {server}"), cause))
    }

    /// Rows that a slice has published in this run.
    pub(super) async fn rows_of_slice(
        &self,
        connection: &mut PgConnection,
        slice: u32,
    ) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT coalesce(sum(rows), 0)::int8 FROM {} WHERE ledger_id = $1 AND run = $2 AND sink = \
             $3 AND slice = $4",
            self.ledger()
        )))
        .bind(&self.identity.ledger_id)
        .bind(&self.identity.run)
        .bind(&self.identity.sink)
        .bind(i32::try_from(slice).expect("a stage has fewer than 2^31 slices"))
        .persistent(false)
        .fetch_one(connection)
        .await
    }

    /// All batches of the run, and whether the run as a whole has been committed.
    pub(super) async fn batches(
        &self,
        connection: &mut PgConnection,
        server: &Server,
    ) -> Result<(Vec<PublishedBatch>, bool), ConnectorError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT slice, sequence, rows, checksum FROM {} WHERE ledger_id = $1 AND run = $2 AND sink \
             = $3 ORDER BY slice, sequence",
            self.ledger()
        )))
        .bind(&self.identity.ledger_id)
        .bind(&self.identity.run)
        .bind(&self.identity.sink)
        .persistent(false)
        .fetch_all(connection)
        .await
        .map_err(|cause| classify(format!("read the ledger of {self} at {server}"), cause))?;
        let mut batches = Vec::new();
        let mut is_committed = false;
        for row in rows {
            match u32::try_from(row.get::<i32, _>("slice")) {
                Ok(slice) => batches.push(PublishedBatch {
                    slice,
                    sequence: row.get::<i64, _>("sequence").cast_unsigned(),
                    rows: row.get::<i64, _>("rows").cast_unsigned(),
                    checksum: Some(row.get::<i64, _>("checksum").cast_unsigned()),
                }),
                Err(_) => is_committed = true,
            }
        }
        Ok((batches, is_committed))
    }
}

impl std::fmt::Display for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sink `{}` of pipeline `{}`", self.identity.sink, self.identity.pipeline)
    }
}

/// Sixteen hexadecimal digits.
pub(super) fn short_hash(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&part.len().to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

//! `_weir_attempts`: which attempt may still publish batches of a slice.
//!
//! Within one epoch an attempt that is given up may be paused, not dead. Its successor, and whoever
//! asks about its open batch, raises the slice's row beyond it. A writer takes that row `FOR SHARE`
//! with the statement that books its batch, so that raising it waits for a transaction that is about
//! to commit, and every later one finds itself overtaken.

use sqlx::postgres::PgConnection;

use super::books::{Books, Entry, TAKE_OVER_SECONDS, short_hash};
use super::catalog::run;
use super::connect::Server;
use super::error::{classify, sql_state};
use super::quote;
use crate::{ConnectorError, ErrorKind};

impl Books {
    fn attempts(&self) -> String {
        format!("{}.\"_weir_attempts\"", quote::identifier(&self.schema))
    }

    /// Makes the table.
    pub(super) async fn create_attempts(
        &self,
        connection: &mut PgConnection,
    ) -> Result<(), sqlx::Error> {
        self.create_table(
            connection,
            &self.attempts(),
            "ledger_id text NOT NULL, run text NOT NULL, sink text NOT NULL, slice integer NOT NULL, \
             attempt bigint NOT NULL, PRIMARY KEY (ledger_id, run, sink, slice)",
        )
        .await
    }

    /// Makes the table for a run that an earlier version has prepared.
    pub(super) async fn ensure_attempts(
        &self,
        connection: &mut PgConnection,
        server: &Server,
    ) -> Result<(), ConnectorError> {
        let failed =
            |cause| classify(format!("create the table _weir_attempts at {server}"), cause);
        run(connection, "BEGIN").await.map_err(failed)?;
        run(connection, &self.lock_statement()).await.map_err(failed)?;
        self.create_attempts(connection).await.map_err(failed)?;
        run(connection, "COMMIT").await.map_err(failed).map(drop)
    }

    /// `weir <sink> <epoch> <run> <slice> <attempt>`: the session of a writer. Several runs of a pipeline may
    /// write at once.
    pub(super) fn writer_name(&self, epoch: u64, slice: u32, attempt: u32) -> String {
        format!("{} {slice} {attempt}", self.session_of_run(epoch))
    }

    fn session_of_run(&self, epoch: u64) -> String {
        format!("{} {}", self.session_name(epoch), &short_hash(&[&self.identity.run])[..8])
    }

    /// Makes `attempt` the least that may publish batches of the slice. Sessions of lesser ones are
    /// ended; a transaction that has staged a batch is waited for, so that the ledger is final about
    /// them afterwards.
    pub(super) async fn raise_attempt(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        epoch: u64,
        slice: u32,
        attempt: u32,
    ) -> Result<(), ConnectorError> {
        let failed = |cause| classify(format!("raise the fence of {self} at {server}"), cause);
        self.end_lesser_sessions(connection, epoch, slice, attempt).await.map_err(failed)?;
        run(connection, &format!("SET lock_timeout = '{TAKE_OVER_SECONDS}s'"))
            .await
            .map_err(failed)?;
        let raised: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "INSERT INTO {} AS fence (ledger_id, run, sink, slice, attempt) VALUES ($1, $2, $3, $4, \
             $5) ON CONFLICT (ledger_id, run, sink, slice) \
             DO UPDATE SET attempt = greatest(fence.attempt, excluded.attempt) RETURNING attempt",
            self.attempts()
        )))
        .bind(&self.identity.ledger_id)
        .bind(&self.identity.run)
        .bind(&self.identity.sink)
        .bind(number(slice))
        .bind(i64::from(attempt))
        .persistent(false)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
        run(connection, "SET lock_timeout = 0").await.map_err(failed)?;
        if raised > i64::from(attempt) { Err(self.overtaken(slice, attempt)) } else { Ok(()) }
    }

    async fn end_lesser_sessions(
        &self,
        connection: &mut PgConnection,
        epoch: u64,
        slice: u32,
        attempt: u32,
    ) -> Result<(), sqlx::Error> {
        let ended = sqlx::query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
             AND application_name LIKE $1 AND datname = current_database() \
             AND split_part(application_name, ' ', 6) ~ '^[0-9]+$' \
             AND split_part(application_name, ' ', 6)::numeric < $2::int8",
        )
        .bind(format!("{} {slice} %", self.session_of_run(epoch)))
        .bind(i64::from(attempt))
        .persistent(false)
        .execute(&mut *connection)
        .await;
        match ended {
            // Sessions of another role can only be waited for.
            Err(cause) if sql_state(&cause) == Some("42501") => Ok(()),
            ended => ended.map(drop),
        }
    }

    /// Books a batch, and holds the slice's row until the end of the transaction. `Fenced` if another
    /// attempt may have been started, or has published the batch.
    pub(super) async fn book_batch(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        entry: Entry,
        attempt: u32,
    ) -> Result<(), ConnectorError> {
        let condition = format!(
            " FROM {} WHERE ledger_id = $1 AND run = $4 AND sink = $3 AND slice = $5 AND attempt = \
             {attempt} FOR SHARE",
            self.attempts()
        );
        match self.insert(connection, server, entry, &condition).await? {
            0 => Err(self.overtaken(entry.slice.cast_unsigned(), attempt)),
            _ => Ok(()),
        }
    }

    /// `Fenced` unless the attempt may still publish batches of the slice.
    pub(super) async fn check_attempt(
        &self,
        connection: &mut PgConnection,
        server: &Server,
        slice: u32,
        attempt: u32,
    ) -> Result<(), ConnectorError> {
        let current: Option<i64> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT attempt FROM {} WHERE ledger_id = $1 AND run = $2 AND sink = $3 AND slice = $4",
            self.attempts()
        )))
        .bind(&self.identity.ledger_id)
        .bind(&self.identity.run)
        .bind(&self.identity.sink)
        .bind(number(slice))
        .persistent(false)
        .fetch_optional(connection)
        .await
        .map_err(|cause| classify(format!("check the fence of {self} at {server}"), cause))?;
        if current == Some(i64::from(attempt)) {
            Ok(())
        } else {
            Err(self.overtaken(slice, attempt))
        }
    }

    fn overtaken(&self, slice: u32, attempt: u32) -> ConnectorError {
        ConnectorError::new(
            ErrorKind::Fenced,
            format!("{self}: attempt {attempt} at slice {slice} has been given up for another one"),
        )
    }
}

fn number(slice: u32) -> i32 {
    i32::try_from(slice).expect("a stage has fewer than 2^31 slices")
}

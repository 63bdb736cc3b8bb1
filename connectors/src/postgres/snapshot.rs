//! One snapshot for all readers of a source.
//!
//! A connection that does nothing else holds a transaction open and exports its snapshot; readers
//! take it over. The snapshot's name lives in the [`Source`](crate::Source) object: it ends with the
//! process, and a source that is opened again takes a new one.

use std::sync::Arc;

use sqlx::postgres::PgConnection;

use super::catalog::run;
use super::connect::Server;
use super::error::{classify, sql_state};
use super::quote;
use crate::ConnectorError;

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Takes the snapshot when the first reader asks for it.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedSnapshot {
    holder: Arc<tokio::sync::Mutex<Option<Holder>>>,
}

#[derive(Debug)]
struct Holder {
    name: String,
    /// Idle in its transaction; dropping it ends the snapshot for readers to come.
    _connection: PgConnection,
}

impl SharedSnapshot {
    /// A connection inside a read-only transaction that sees the shared snapshot. If the holder is
    /// gone (the server was restarted), a new snapshot is taken.
    pub(super) async fn reader(&self, server: &Server) -> Result<PgConnection, ConnectorError> {
        let failed = |cause| classify(format!("share a snapshot at {server}"), cause);
        let mut connection = server.connect().await?;
        let mut holder = self.holder.lock().await;
        if let Some(held) = &*holder {
            match import(&mut connection, &held.name).await {
                Ok(()) => return Ok(connection),
                // The exporting transaction is gone.
                Err(cause) if matches!(sql_state(&cause), Some("22023" | "55000" | "42704")) => {
                    run(&mut connection, "ROLLBACK").await.map_err(failed)?;
                    *holder = None;
                }
                Err(cause) => return Err(failed(cause)),
            }
        }
        let taken = take(server).await?;
        import(&mut connection, &taken.name).await.map_err(failed)?;
        *holder = Some(taken);
        Ok(connection)
    }
}

async fn take(server: &Server) -> Result<Holder, ConnectorError> {
    let failed = |cause| classify(format!("export a snapshot at {server}"), cause);
    let mut connection = server.connect().await?;
    run(&mut connection, BEGIN).await.map_err(failed)?;
    let name: String = sqlx::query_scalar("SELECT pg_export_snapshot()")
        .persistent(false)
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
    Ok(Holder { name, _connection: connection })
}

async fn import(connection: &mut PgConnection, name: &str) -> Result<(), sqlx::Error> {
    run(connection, BEGIN).await?;
    run(connection, &format!("SET TRANSACTION SNAPSHOT {}", quote::text(name))).await?;
    Ok(())
}

/// A connection inside a read-only transaction with a snapshot of its own.
pub(super) async fn own(server: &Server) -> Result<PgConnection, ConnectorError> {
    let mut connection = server.connect().await?;
    run(&mut connection, BEGIN)
        .await
        .map_err(|cause| classify(format!("begin reading at {server}"), cause))?;
    Ok(connection)
}

//! A table of PostgreSQL as a sink.
//!
//! | mode, commit | rows go into | become visible by |
//! | --- | --- | --- |
//! | append, batch | the table | the batch's `COMMIT`, with its ledger row |
//! | upsert, batch | a temporary table | `INSERT … ON CONFLICT` and `COMMIT`, with the ledger row |
//! | append and upsert, run | a logged staging table | one `INSERT … SELECT` with the run's ledger row |
//! | replace | a table beside | a swap of names (or delete and insert), with the run's ledger row |
//!
//! Staging tables are logged: an unlogged one is emptied by a crash of the server, after its batches
//! have been booked. A swap loses no grants, owner, indexes or comment; tables on which something
//! else depends are refilled in place instead. A swap is not visible to a reader in a `REPEATABLE
//! READ` transaction that began before it as the old rows but as whatever its snapshot sees of the
//! new table (as with `TRUNCATE`); readers with ordinary statements see the old rows or the new.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use weir_spec::{CommitMode, PostgresConnection, SchemaPolicy, TableTarget, WriteMode};

use super::books::{Books, Entry, short_hash};
use super::catalog::{Relation, RelationKind, find_relation, run};
use super::connect::Server;
use super::error::{classify, sql_state};
use super::finish;
use super::plan::{Plan, Route};
use super::quote::{self, TableName};
use super::target::{self, WrittenColumn};
use super::writer::PostgresWriter;
use crate::{
    ConnectorContext, ConnectorError, ErrorKind, Manifest, PrepareSink, PreparedSink,
    PublishedBatch, Recovery, Sink, SinkTask, SinkWriter,
};

/// One opened sink node.
#[derive(Debug)]
pub(super) struct PostgresSink {
    name: String,
    server: Server,
    table: TableName,
    mode: WriteMode,
    commit: CommitMode,
    key: Vec<String>,
    policy: SchemaPolicy,
}

impl PostgresSink {
    pub(super) fn new(
        name: &str,
        sink: &weir_spec::Sink,
        target: &TableTarget,
        postgres: &PostgresConnection,
        context: &ConnectorContext,
    ) -> Result<Self, ConnectorError> {
        let text = context.resolve(&target.table)?;
        let table = TableName::parse(&text).ok_or_else(|| {
            ConnectorError::config(format!(
                "sink `{name}`: `{text}` is not a table name; write table or schema.table"
            ))
        })?;
        if let Some(long) = table.too_long() {
            return Err(ConnectorError::config(format!(
                "sink `{name}`: `{long}` has {} bytes, and PostgreSQL cuts names to {}: shorten it",
                long.len(),
                TableName::LONGEST
            )));
        }
        if sink.mode == WriteMode::Upsert && sink.key.is_empty() {
            return Err(ConnectorError::config(format!(
                "sink `{name}`: mode upsert needs a key: the columns that identify a row"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            server: Server::new(&target.connection, postgres, context)?,
            table,
            mode: sink.mode,
            commit: match sink.mode {
                WriteMode::Replace => CommitMode::Run,
                WriteMode::Append | WriteMode::Upsert => sink.commit,
            },
            key: match sink.mode {
                WriteMode::Upsert => sink.key.clone(),
                WriteMode::Append | WriteMode::Replace => Vec::new(),
            },
            policy: sink.schema,
        })
    }

    fn plan(&self, prepared: &PreparedSink) -> Result<(Plan, Books), ConnectorError> {
        let plan: Plan = serde_json::from_value(prepared.payload.clone()).map_err(|cause| {
            let attempt = format!("sink `{}`: failed to read what was prepared", self.name);
            ConnectorError::caused(ErrorKind::Internal, attempt, cause)
        })?;
        let books = Books { schema: plan.schema.clone(), identity: prepared.identity.clone() };
        Ok((plan, books))
    }

    /// Finds the table or makes it, and brings it to what the schema policy asks for.
    async fn agree(
        &self,
        connection: &mut PgConnection,
        schema: &Schema,
        notes: &mut Vec<String>,
    ) -> Result<(Relation, Vec<WrittenColumn>), ConnectorError> {
        target::check_names(&self.name, schema)?;
        let found = match find_relation(connection, &self.server, &self.table).await? {
            Some(found) => found,
            None => {
                self.create(connection, schema).await?;
                notes.push(format!("created table {}", self.table));
                self.find(connection).await?
            }
        };
        if !matches!(found.kind, RelationKind::Stored | RelationKind::Partitioned) {
            return Err(ConnectorError::config(format!(
                "sink `{}`: {} is a view or foreign table; rows can only be written to a table",
                self.name, found.name
            )));
        }
        let mut agreement =
            target::agree(&self.name, &found.name, schema, &found.columns, self.policy)?;
        if self.mode == WriteMode::Upsert {
            let unique = self.unique_indexes(connection, found.oid).await?;
            target::check_key(&self.name, &found.name, &self.key, &agreement, &unique)?;
        }
        for ignored in &agreement.ignored {
            notes.push(format!("column {ignored} is not in table {} and ignored", found.name));
        }
        if agreement.added.is_empty() {
            if agreement.columns.is_empty() {
                return Err(ConnectorError::config(format!(
                    "sink `{}`: no column of the rows is written to table {}",
                    self.name, found.name
                )));
            }
            return Ok((found, agreement.columns));
        }
        let added: Vec<_> = agreement
            .added
            .iter()
            .map(|(name, data_type)| format!("ADD COLUMN {} {data_type}", quote::identifier(name)))
            .collect();
        run(connection, &format!("ALTER TABLE {} {}", found.name.quoted(), added.join(", ")))
            .await
            .map_err(|cause| {
                classify(format!("add columns to {} at {}", found.name, self.server), cause)
            })?;
        for (name, data_type) in &agreement.added {
            notes.push(format!("added column {name} ({data_type}) to table {}", found.name));
        }
        let found = self.find(connection).await?;
        agreement = target::agree(&self.name, &found.name, schema, &found.columns, self.policy)?;
        Ok((found, agreement.columns))
    }

    async fn find(&self, connection: &mut PgConnection) -> Result<Relation, ConnectorError> {
        find_relation(connection, &self.server, &self.table).await?.ok_or_else(|| {
            ConnectorError::new(
                ErrorKind::Changed,
                format!(
                    "table {} at {} was dropped while it was prepared",
                    self.table, self.server
                ),
            )
        })
    }

    async fn create(
        &self,
        connection: &mut PgConnection,
        schema: &Schema,
    ) -> Result<(), ConnectorError> {
        let mut columns = Vec::new();
        for field in schema.fields() {
            let data_type = target::created_type(&self.name, field)?;
            columns.push(format!("{} {data_type}", quote::identifier(field.name())));
        }
        if columns.is_empty() {
            return Err(ConnectorError::config(format!(
                "sink `{}`: the rows have no columns",
                self.name
            )));
        }
        for key in &self.key {
            if schema.field_with_name(key).is_err() {
                return Err(ConnectorError::config(format!(
                    "sink `{}`: the rows have no key column \"{key}\"",
                    self.name
                )));
            }
        }
        if !self.key.is_empty() {
            let key = quote::identifiers(self.key.iter().map(String::as_str));
            columns.push(format!("PRIMARY KEY ({key})"));
        }
        let sql = format!("CREATE TABLE {} ({})", self.table.quoted(), columns.join(", "));
        run(connection, &sql).await.map_err(|cause| match sql_state(&cause) {
            Some("3F000") => ConnectorError::new(
                ErrorKind::NotFound,
                format!(
                    "sink `{}`: the schema of table {} does not exist at {}; run CREATE SCHEMA {}",
                    self.name,
                    self.table,
                    self.server,
                    quote::identifier(self.table.schema.as_deref().unwrap_or("public"))
                ),
            ),
            _ => classify(format!("create table {} at {}", self.table, self.server), cause),
        })?;
        Ok(())
    }

    async fn unique_indexes(
        &self,
        connection: &mut PgConnection,
        oid: i64,
    ) -> Result<Vec<Vec<String>>, ConnectorError> {
        let rows = sqlx::query(
            "SELECT array_agg(a.attname::text) AS columns FROM pg_index i \
             JOIN pg_attribute a ON a.attrelid = i.indrelid \
               AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
             WHERE i.indrelid = $1::int8::oid AND i.indisunique AND i.indisvalid AND i.indimmediate \
               AND i.indpred IS NULL AND i.indexprs IS NULL GROUP BY i.indexrelid",
        )
        .bind(oid)
        .persistent(false)
        .fetch_all(connection)
        .await
        .map_err(|cause| {
            classify(format!("look up the indexes of {} at {}", self.table, self.server), cause)
        })?;
        Ok(rows.iter().map(|row| row.get("columns")).collect())
    }

    /// Chooses the way of the rows.
    async fn route(
        &self,
        connection: &mut PgConnection,
        relation: &Relation,
        columns: &[WrittenColumn],
    ) -> Result<Route, ConnectorError> {
        let is_cast = columns.iter().any(|column| column.sent_as.is_some());
        Ok(match (self.mode, self.commit) {
            (WriteMode::Replace, _) => {
                let can_swap = !is_cast
                    && finish::can_swap(connection, relation.oid).await.map_err(|cause| {
                        classify(format!("inspect {} at {}", self.table, self.server), cause)
                    })?;
                if can_swap { Route::Swap } else { Route::Refill }
            }
            (_, CommitMode::Run) => Route::Run,
            (WriteMode::Upsert, CommitMode::Batch) => Route::Batch,
            (WriteMode::Append, CommitMode::Batch) if is_cast => Route::Batch,
            (WriteMode::Append, CommitMode::Batch) => Route::Direct,
        })
    }

    /// Drops what earlier runs of the sink left behind, unless others may be going on, and makes this run's
    /// staging table.
    async fn make_staging(
        &self,
        connection: &mut PgConnection,
        books: &Books,
        plan: &Plan,
    ) -> Result<(), ConnectorError> {
        let failed =
            |cause| classify(format!("make staging for {} at {}", self.table, self.server), cause);
        run(connection, "SET LOCAL lock_timeout = '60s'").await.map_err(failed)?;
        let left: Vec<String> = sqlx::query_scalar(
            "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relkind = 'r' AND starts_with(c.relname::text, $2)",
        )
        .bind(&plan.schema)
        .bind(staging_prefix(books))
        .persistent(false)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
        let is_alone = !books.identity.has_others_beside;
        for name in left.iter().filter(|name| is_alone && plan.staging.as_ref() != Some(name)) {
            let name = TableName { schema: Some(plan.schema.clone()), table: name.clone() };
            run(connection, &format!("DROP TABLE {}", name.quoted())).await.map_err(failed)?;
        }
        if let (Some(name), Some(staging)) = (&plan.staging, plan.staging_name())
            && !left.contains(name)
        {
            let columns = match plan.route {
                Route::Swap => format!("LIKE {} INCLUDING ALL", plan.table_name().quoted()),
                _ => plan.staged_columns(),
            };
            run(connection, &format!("CREATE TABLE {} ({columns})", staging.quoted()))
                .await
                .map_err(failed)?;
        }
        Ok(())
    }
}

/// Staging tables of one sink: `_weir_<sink>_<run>`; those of runs that may go on beside others are told
/// apart: `_weir_<sink>w_<run>`.
fn staging_prefix(books: &Books) -> String {
    let kind = if books.identity.has_others_beside { "w" } else { "" };
    format!("_weir_{}{kind}_", books.sink_hash())
}

#[async_trait]
impl Sink for PostgresSink {
    fn commit_mode(&self) -> CommitMode {
        self.commit
    }

    async fn prepare(
        &self,
        identity: &PrepareSink,
        schema: &SchemaRef,
    ) -> Result<PreparedSink, ConnectorError> {
        let mut connection = self.server.connect().await?;
        let failed = |cause| classify(format!("prepare {} at {}", self.table, self.server), cause);
        let lock = Books {
            schema: self.table.schema.clone().unwrap_or_default(),
            identity: identity.clone(),
        }
        .lock_statement();
        let mut notes = Vec::new();

        run(&mut connection, "BEGIN").await.map_err(failed)?;
        run(&mut connection, &lock).await.map_err(failed)?;
        let (relation, columns) = self.agree(&mut connection, schema, &mut notes).await?;
        let route = self.route(&mut connection, &relation, &columns).await?;
        let schema_name = relation.name.schema.clone().unwrap_or_default();
        let books = Books { schema: schema_name.clone(), identity: identity.clone() };
        books.create(&mut connection).await.map_err(|cause| {
            classify(
                format!(
                    "create the tables _weir_ledger, _weir_fence and _weir_attempts in schema \
                     {schema_name} at {} (the user {} needs the right to create tables there)",
                    self.server,
                    self.server.user()
                ),
                cause,
            )
        })?;
        run(&mut connection, "COMMIT").await.map_err(failed)?;

        // One that stands is held by writers of other runs of this epoch.
        books.ensure_fence(&mut connection, &self.server, identity.epoch).await?;

        let staging = matches!(route, Route::Run | Route::Refill | Route::Swap)
            .then(|| format!("{}{}", staging_prefix(&books), short_hash(&[&identity.run])));
        let plan = Plan {
            schema: schema_name,
            table: relation.name.table.clone(),
            columns,
            key: self.key.clone(),
            route,
            staging,
        };
        run(&mut connection, "BEGIN").await.map_err(failed)?;
        run(&mut connection, &lock).await.map_err(failed)?;
        // Staging of other runs goes, and may be that of a successor.
        books.check_fence(&mut connection, &self.server, identity.epoch).await?;
        self.make_staging(&mut connection, &books, &plan).await?;
        run(&mut connection, "COMMIT").await.map_err(failed)?;
        Ok(PreparedSink {
            identity: identity.clone(),
            payload: serde_json::to_value(&plan).expect("a plan is plain data"),
            notes,
        })
    }

    async fn writer(&self, task: SinkTask) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        let (plan, books) = self.plan(&task.prepared)?;
        let writer = PostgresWriter::open(&self.server, books, Arc::new(plan), &task).await?;
        Ok(Box::new(writer))
    }

    async fn recover(
        &self,
        prepared: &PreparedSink,
        manifest: &Manifest,
        attempt: u32,
        epoch: u64,
    ) -> Result<Recovery, ConnectorError> {
        let (_, books) = self.plan(prepared)?;
        let mut connection = self.server.connect().await?;
        books.ensure_fence(&mut connection, &self.server, epoch).await?;
        books.ensure_attempts(&mut connection, &self.server).await?;
        let slice = manifest.slice;
        books
            .raise_attempt(&mut connection, &self.server, epoch, slice, attempt.saturating_add(1))
            .await?;
        let is_booked = books.is_booked(&mut connection, &self.server, Entry::of(manifest)).await?;
        Ok(if is_booked { Recovery::Published } else { Recovery::Lost })
    }

    async fn commit_run(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        let (plan, books) = self.plan(prepared)?;
        finish::commit_run(&self.server, &books, &plan, manifests, epoch).await
    }

    async fn published(
        &self,
        prepared: &PreparedSink,
        _manifests: &[Manifest],
    ) -> Result<Vec<PublishedBatch>, ConnectorError> {
        let (_, books) = self.plan(prepared)?;
        let mut connection = self.server.connect().await?;
        let (batches, is_committed) = books.batches(&mut connection, &self.server).await?;
        let is_visible = self.commit == CommitMode::Batch || is_committed;
        Ok(if is_visible { batches } else { Vec::new() })
    }

    async fn clean_up(&self, prepared: &PreparedSink, epoch: u64) -> Result<(), ConnectorError> {
        let (plan, books) = self.plan(prepared)?;
        let Some(staging) = plan.staging_name() else { return Ok(()) };
        let failed = |cause| classify(format!("drop {staging} at {}", self.server), cause);
        let mut connection = self.server.connect().await?;
        if find_relation(&mut connection, &self.server, &staging).await?.is_none() {
            return Ok(());
        }
        run(&mut connection, "SET lock_timeout = '60s'").await.map_err(failed)?;
        run(&mut connection, "BEGIN").await.map_err(failed)?;
        books.raise_with_commit(&mut connection, &self.server, epoch).await?;
        run(&mut connection, &format!("DROP TABLE IF EXISTS {}", staging.quoted()))
            .await
            .map_err(failed)?;
        run(&mut connection, "COMMIT").await.map_err(failed)?;
        Ok(())
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        self.server.check().await
    }
}

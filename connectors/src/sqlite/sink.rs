//! The sink itself: prepares the table, hands out writers, and commits runs.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use weir_spec::{self as spec, CommitMode, SchemaPolicy, WriteMode};

use super::commit::{self, BatchState};
use super::connect::{Database, Session, quote, quote_all};
use super::insert::on_conflict;
use super::table::{self, WrittenColumn};
use super::writer::{Open, SqliteWriter};
use super::{spill, types};
use crate::{
    ConnectorContext, ConnectorError, ErrorKind, Manifest, PrepareSink, PreparedSink,
    PublishedBatch, Recovery, Sink, SinkTask, SinkWriter,
};

/// Columns of staging tables that keep the order of rows: later ones win an upsert.
const ORDER: [&str; 2] = ["_weir_slice", "_weir_sequence"];

/// Opens a table of a SQLite database as a sink. `name` is the node's name, for messages.
pub(crate) fn open_sink(
    name: &str,
    sink: &spec::Sink,
    target: &spec::TableTarget,
    config: &spec::SqliteConnection,
    context: &ConnectorContext,
) -> Result<Arc<dyn Sink>, ConnectorError> {
    let in_node = |error: ConnectorError| ConnectorError {
        message: format!("sink `{name}`: {}", error.message),
        ..error
    };
    let table = context.resolve(&target.table).map_err(in_node)?;
    let table = table.strip_prefix("main.").unwrap_or(&table).to_owned();
    if table.is_empty() || table.starts_with("_weir_") || table.starts_with("sqlite_") {
        return Err(ConnectorError::config(format!(
            "sink `{name}`: `{table}` is no name for a table of your own"
        )));
    }
    if sink.mode == WriteMode::Upsert && sink.key.is_empty() {
        return Err(ConnectorError::config(format!(
            "sink `{name}`: `mode: upsert` needs `key`: the columns that identify a row"
        )));
    }
    let commit_mode = if sink.mode == WriteMode::Replace { CommitMode::Run } else { sink.commit };
    Ok(Arc::new(SqliteSink {
        core: Arc::new(SinkCore {
            database: Database::new(config, context).map_err(in_node)?,
            table,
            mode: sink.mode,
            commit_mode,
            key: if sink.mode == WriteMode::Upsert { sink.key.clone() } else { Vec::new() },
            policy: sink.schema,
        }),
    }))
}

#[derive(Debug)]
struct SqliteSink {
    core: Arc<SinkCore>,
}

/// What writers share.
#[derive(Debug)]
pub(super) struct SinkCore {
    pub database: Database,
    pub table: String,
    pub mode: WriteMode,
    pub commit_mode: CommitMode,
    /// Of upserts; else empty.
    pub key: Vec<String>,
    pub policy: SchemaPolicy,
}

/// The payload of a prepared sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SinkPlan {
    pub columns: Vec<WrittenColumn>,
    /// With `commit: run`: where rows wait. When replacing, it becomes the table itself.
    staging: Option<String>,
    is_ordered: bool,
}

impl SinkPlan {
    pub(super) fn of(prepared: &PreparedSink) -> Result<Self, ConnectorError> {
        serde_json::from_value(prepared.payload.clone()).map_err(|error| {
            ConnectorError::caused(
                ErrorKind::Internal,
                "the prepared sink is not one of a SQLite table",
                error,
            )
        })
    }

    pub(super) fn insert_table<'a>(&'a self, table: &'a str) -> &'a str {
        self.staging.as_deref().unwrap_or(table)
    }

    pub(super) fn constants(&self, manifest: &Manifest) -> Vec<(&'static str, i64)> {
        let values = [i64::from(manifest.slice), manifest.sequence.cast_signed()];
        if self.is_ordered { ORDER.into_iter().zip(values).collect() } else { Vec::new() }
    }
}

impl SinkCore {
    fn staging(&self, identity: &PrepareSink) -> Option<String> {
        match (self.commit_mode, self.mode) {
            (CommitMode::Batch, _) => None,
            (CommitMode::Run, WriteMode::Replace) => {
                Some(format!("{}__weir_{}", self.table, identity.run))
            }
            (CommitMode::Run, _) => {
                Some(format!("__weir_staging_{}_{}", identity.run, identity.sink))
            }
        }
    }

    fn check_schema(&self, schema: &Schema) -> Result<(), ConnectorError> {
        for column in &self.key {
            if schema.column_with_name(column).is_none() {
                let names: Vec<_> =
                    schema.fields().iter().map(|field| field.name().as_str()).collect();
                return Err(ConnectorError::config(format!(
                    "the key names the column `{column}`, which the rows do not have: they have {}",
                    names.join(", ")
                )));
            }
        }
        let mut seen = std::collections::HashSet::new();
        for field in schema.fields() {
            if !seen.insert(field.name().to_ascii_lowercase()) {
                return Err(ConnectorError::config(format!(
                    "two columns are called `{}`: SQLite does not tell upper from lower case",
                    field.name()
                )));
            }
        }
        Ok(())
    }

    async fn prepare(
        &self,
        session: &mut Session,
        identity: &PrepareSink,
        schema: &Schema,
    ) -> Result<(SinkPlan, Vec<String>), ConnectorError> {
        let mut notes = Vec::new();
        commit::create_tables(session).await?;
        commit::fence(session, identity, identity.epoch).await?;
        let staging = self.staging(identity);
        let is_replacing = self.mode == WriteMode::Replace;
        let is_present = table::columns(session, &self.table).await?.is_some();

        if is_replacing {
            let staging = staging.as_deref().expect("replacing always stages");
            if table::columns(session, staging).await?.is_none() {
                let sql = match is_present {
                    true => table::clone_sql(session, &self.table, staging).await?,
                    false => table::create_sql(staging, schema, &self.key),
                };
                session.execute("create a table in", &sql).await?;
            }
            let columns =
                table::align(session, staging, &self.table, schema, self.policy, &mut notes)
                    .await?;
            let plan = SinkPlan { columns, staging: Some(staging.to_owned()), is_ordered: false };
            return Ok((plan, notes));
        }

        if !is_present {
            let sql = table::create_sql(&self.table, schema, &self.key);
            session.execute("create a table in", &sql).await?;
            notes.push(format!("created table {}", self.table));
        }
        let columns =
            table::align(session, &self.table, &self.table, schema, self.policy, &mut notes)
                .await?;
        if !self.key.is_empty() {
            table::ensure_unique(session, &self.table, &self.key, &mut notes).await?;
        }
        if let Some(staging) = &staging {
            let mut parts: Vec<String> = columns
                .iter()
                .map(|column| {
                    let field = schema.field_with_name(&column.source);
                    let declared = match (column.cast, field) {
                        (None, Ok(field)) => types::declared_type(field.data_type()),
                        // Cast values are stored as they come, and take the table's affinity later.
                        _ => "BLOB".to_owned(),
                    };
                    format!("{} {declared}", quote(&column.target))
                })
                .collect();
            parts.extend(ORDER.map(|name| format!("{name} INTEGER")));
            let sql =
                format!("CREATE TABLE IF NOT EXISTS {} ({})", quote(staging), parts.join(", "));
            session.execute("create a staging table in", &sql).await?;
        }
        let is_ordered = staging.is_some();
        Ok((SinkPlan { columns, staging, is_ordered }, notes))
    }

    /// Inside a transaction: merges or swaps, unless it has been done.
    async fn commit_run(
        &self,
        session: &mut Session,
        plan: &SinkPlan,
        identity: &PrepareSink,
        manifests: &[Manifest],
    ) -> Result<(), ConnectorError> {
        let staging = plan.staging.as_deref().expect("runs are committed from staging");
        if table::columns(session, staging).await?.is_none() {
            // It went with the commit, whose ledger rows are in the same transaction.
            for manifest in manifests {
                let state = commit::batch_state(session, identity, manifest).await?;
                if state != BatchState::Committed {
                    return Err(self.lost(manifest));
                }
            }
            return Ok(());
        }
        let staged = commit::batches(session, identity, false).await?;
        for manifest in manifests {
            let is_staged = staged.iter().any(|batch| {
                (batch.slice, batch.sequence, batch.rows)
                    == (manifest.slice, manifest.sequence, manifest.rows)
            });
            if !is_staged {
                return Err(self.lost(manifest));
            }
        }
        if staged.len() != manifests.len() {
            return Err(ConnectorError::new(
                ErrorKind::Changed,
                format!(
                    "{} holds {} staged batches of run {}, the ledger knows {}",
                    self.database.path.display(),
                    staged.len(),
                    identity.run,
                    manifests.len()
                ),
            ));
        }
        if self.mode == WriteMode::Replace {
            self.swap(session, staging).await?;
        } else {
            let names = quote_all(plan.columns.iter().map(|column| column.target.as_str()));
            // `WHERE true` keeps the parser from reading ON CONFLICT as a join condition.
            let sql = format!(
                "INSERT INTO {} ({names}) SELECT {names} FROM {staging} WHERE true \
                 ORDER BY {}, rowid{}",
                quote(&self.table),
                ORDER.join(", "),
                on_conflict(&plan.columns, &self.key),
                staging = quote(staging),
            );
            session.execute(&format!("write rows into table `{}` of", self.table), &sql).await?;
            let sql = format!("DROP TABLE {}", quote(staging));
            session.execute("drop a staging table in", &sql).await?;
        }
        commit::record_run(session, identity).await
    }

    async fn swap(&self, session: &mut Session, staging: &str) -> Result<(), ConnectorError> {
        let attempt = format!("replace table `{}` of", self.table);
        let dependents = table::dependent_sql(session, &self.table).await?;
        let (table, staging) = (quote(&self.table), quote(staging));
        session.execute(&attempt, &format!("DROP TABLE IF EXISTS {table}")).await?;
        session.execute(&attempt, &format!("ALTER TABLE {staging} RENAME TO {table}")).await?;
        for sql in dependents {
            session.execute(&attempt, &sql).await?;
        }
        Ok(())
    }

    fn lost(&self, manifest: &Manifest) -> ConnectorError {
        ConnectorError::new(
            ErrorKind::Changed,
            format!(
                "{} does not hold slice {} batch {} of the run: was the database restored or its \
                 staging table dropped?",
                self.database.path.display(),
                manifest.slice,
                manifest.sequence
            ),
        )
    }
}

#[async_trait]
impl Sink for SqliteSink {
    fn commit_mode(&self) -> CommitMode {
        self.core.commit_mode
    }

    async fn prepare(
        &self,
        identity: &PrepareSink,
        schema: &SchemaRef,
    ) -> Result<PreparedSink, ConnectorError> {
        let core = &self.core;
        core.check_schema(schema)?;
        if let Some(folder) = core.database.path.parent() {
            crate::durable::create_dir_all_durable(folder)
                .map_err(|error| ConnectorError::io("create the folder", folder, error))?;
        }
        let mut transaction = core.database.begin().await?;
        let (plan, notes) = core.prepare(&mut transaction.session, identity, schema).await?;
        transaction.commit().await?;
        let payload = serde_json::to_value(plan).expect("names are always JSON");
        Ok(PreparedSink { identity: identity.clone(), payload, notes })
    }

    async fn writer(&self, task: SinkTask) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        let identity = &task.prepared.identity;
        let folder = spill::folder(&self.core.database.path, &identity.run, &identity.sink);
        let plan = SinkPlan::of(&task.prepared)?;
        Ok(Box::new(SqliteWriter {
            core: self.core.clone(),
            task,
            plan,
            folder,
            open: Open::Nothing,
        }))
    }

    async fn recover(
        &self,
        prepared: &PreparedSink,
        manifest: &Manifest,
        attempt: u32,
        epoch: u64,
    ) -> Result<Recovery, ConnectorError> {
        let mut transaction = self.core.database.begin().await?;
        let session = &mut transaction.session;
        commit::create_tables(session).await?;
        commit::fence(session, &prepared.identity, epoch).await?;
        let next = attempt.saturating_add(1);
        commit::fence_attempt(session, &prepared.identity, manifest.slice, next).await?;
        let state = commit::batch_state(session, &prepared.identity, manifest).await?;
        transaction.commit().await?;
        Ok(match state {
            BatchState::Unknown => Recovery::Lost,
            BatchState::Staged | BatchState::Committed => Recovery::Published,
        })
    }

    async fn commit_run(
        &self,
        prepared: &PreparedSink,
        manifests: &[Manifest],
        epoch: u64,
    ) -> Result<(), ConnectorError> {
        if self.core.commit_mode == CommitMode::Batch {
            return Ok(());
        }
        let plan = SinkPlan::of(prepared)?;
        let mut transaction = self.core.database.begin().await?;
        let session = &mut transaction.session;
        commit::fence(session, &prepared.identity, epoch).await?;
        self.core.commit_run(session, &plan, &prepared.identity, manifests).await?;
        transaction.commit().await
    }

    async fn published(
        &self,
        prepared: &PreparedSink,
        _manifests: &[Manifest],
    ) -> Result<Vec<PublishedBatch>, ConnectorError> {
        let mut session = self.core.database.read().await?;
        commit::batches(&mut session, &prepared.identity, true).await
    }

    async fn clean_up(&self, prepared: &PreparedSink, epoch: u64) -> Result<(), ConnectorError> {
        let identity = &prepared.identity;
        let spilled = spill::folder(&self.core.database.path, &identity.run, &identity.sink);
        if !self.core.database.path.exists() {
            return spill::remove(&spilled);
        }
        let mut transaction = self.core.database.begin().await?;
        let session = &mut transaction.session;
        commit::create_tables(session).await?;
        commit::fence(session, identity, epoch).await?;
        spill::remove(&spilled)?;
        commit::forget_staged(session, identity).await?;
        if let Some(staging) = self.core.staging(identity) {
            let sql = format!("DROP TABLE IF EXISTS {}", quote(&staging));
            session.execute("drop a staging table in", &sql).await?;
        }
        transaction.commit().await
    }

    async fn check(&self) -> Result<String, ConnectorError> {
        let database = &self.core.database;
        if !database.path.exists() {
            return Ok(format!("{} will be created", database.path.display()));
        }
        let mut session = database.read().await?;
        let state = match table::columns(&mut session, &self.core.table).await? {
            Some(columns) => format!("has {} columns", columns.len()),
            None => "will be created".to_owned(),
        };
        Ok(format!("{}: table {} {state}", database.path.display(), self.core.table))
    }
}

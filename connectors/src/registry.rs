//! Opens the source or sink that a node of the pipeline describes.

use std::sync::Arc;

use weir_spec as spec;

use crate::files::csv::CsvFiles;
use crate::files::json::JsonFiles;
use crate::files::parquet::ParquetFiles;
use crate::{ConnectorContext, ConnectorError, Sink, Source, files_out, sqlite};

/// Opens a source node. `name` is the node's name, for messages.
pub fn open_source(
    name: &str,
    source: &spec::Source,
    context: &ConnectorContext,
) -> Result<Arc<dyn Source>, ConnectorError> {
    match source {
        spec::Source::Csv(csv) => Ok(Arc::new(CsvFiles::new(name, csv, context)?)),
        spec::Source::Json(json) => Ok(Arc::new(JsonFiles::new(name, json, context)?)),
        spec::Source::Parquet(parquet) => Ok(Arc::new(ParquetFiles::new(name, parquet, context))),
        spec::Source::Database(database) => open_database(name, database, context),
        spec::Source::Http(http) => Ok(crate::http::open(name, http, context)),
        spec::Source::Unsupported(unsupported) => Err(ConnectorError::config(format!(
            "source `{name}`: type `{}` cannot be read in this version",
            unsupported.type_name
        ))),
    }
}

/// Opens a sink node. `name` is the node's name, for messages.
pub fn open_sink(
    name: &str,
    sink: &spec::Sink,
    context: &ConnectorContext,
) -> Result<Arc<dyn Sink>, ConnectorError> {
    match &sink.target {
        spec::SinkTarget::Files(target) => files_out::open_sink(name, sink, target, context),
        spec::SinkTarget::Table(table) => open_table(name, sink, table, context),
        spec::SinkTarget::Unsupported(node) => Err(ConnectorError::config(format!(
            "sink `{name}`: type `{}` cannot be opened by this version",
            node.type_name
        ))),
    }
}

fn open_database(
    name: &str,
    database: &spec::DatabaseSource,
    context: &ConnectorContext,
) -> Result<Arc<dyn Source>, ConnectorError> {
    match &database.connection.config {
        spec::Connection::Postgres(postgres) => {
            crate::postgres::open_source(name, database, postgres, context)
        }
        spec::Connection::Sqlite(file) => sqlite::open_source(name, database, file, context),
        other => Err(ConnectorError::config(format!(
            "source `{name}`: its connection is no database that can be read yet ({})",
            connection_type(other)
        ))),
    }
}

fn open_table(
    name: &str,
    sink: &spec::Sink,
    table: &spec::TableTarget,
    context: &ConnectorContext,
) -> Result<Arc<dyn Sink>, ConnectorError> {
    match &table.connection.config {
        spec::Connection::Postgres(postgres) => {
            crate::postgres::open_sink(name, sink, table, postgres, context)
        }
        spec::Connection::Sqlite(file) => sqlite::open_sink(name, sink, table, file, context),
        other => Err(ConnectorError::config(format!(
            "sink `{name}`: its connection is no database that can be written yet ({})",
            connection_type(other)
        ))),
    }
}

fn connection_type(connection: &spec::Connection) -> &str {
    match connection {
        spec::Connection::Postgres(_) => "postgres",
        spec::Connection::Sqlite(_) => "sqlite",
        spec::Connection::Http(_) => "http",
        spec::Connection::Unsupported(unsupported) => &unsupported.type_name,
    }
}

//! PostgreSQL as source and sink, with binary `COPY` both ways.
//!
//! ```text
//! COPY (SELECT … ctid range) TO STDOUT ─▶ decode ─▶ Arrow        source, read, snapshot
//! Arrow ─▶ encode ─▶ COPY … FROM STDIN ─▶ ledger row ─▶ COMMIT    sink, writer, books, finish
//! ```
//!
//! Values pass directly between wire bytes and Arrow buffers. Messages name host, port and database,
//! never the connection's URL; statements are not logged.

mod attempts;
mod books;
mod catalog;
mod connect;
mod cursor;
mod decode;
mod encode;
mod error;
mod finish;
mod numeric;
mod plan;
mod quote;
mod read;
mod sink;
mod snapshot;
mod source;
mod target;
mod types;
mod writer;

use std::sync::Arc;

use weir_spec::{DatabaseSource, PostgresConnection, TableTarget};

use crate::{ConnectorContext, ConnectorError, Sink, Source};

/// Opens a table or query. Connects to nothing yet.
pub fn open_source(
    name: &str,
    source: &DatabaseSource,
    postgres: &PostgresConnection,
    context: &ConnectorContext,
) -> Result<Arc<dyn Source>, ConnectorError> {
    Ok(Arc::new(source::PostgresSource::new(name, source, postgres, context)?))
}

/// Opens a table to write to. Connects to nothing yet.
pub fn open_sink(
    name: &str,
    sink: &weir_spec::Sink,
    target: &TableTarget,
    postgres: &PostgresConnection,
    context: &ConnectorContext,
) -> Result<Arc<dyn Sink>, ConnectorError> {
    Ok(Arc::new(sink::PostgresSink::new(name, sink, target, postgres, context)?))
}

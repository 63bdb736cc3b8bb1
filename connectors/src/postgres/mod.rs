//! PostgreSQL as source and sink, with binary `COPY` both ways.
//!
//! ```text
//! COPY (SELECT … ctid range) TO STDOUT ─▶ decode ─▶ Arrow        source, read, snapshot
//! Arrow ─▶ encode ─▶ COPY … FROM STDIN ─▶ ledger row ─▶ COMMIT    sink/
//! ```
//!
//! Values pass directly between wire bytes and Arrow buffers. Messages name host, port and database,
//! never the connection's URL; statements are not logged.

mod catalog;
mod connect;
mod decode;
mod error;
mod numeric;
mod quote;
mod read;
mod snapshot;
mod source;
mod types;

use std::sync::Arc;

use weir_spec::{DatabaseSource, PostgresConnection};

use crate::{ConnectorContext, ConnectorError, Source};

/// Opens a table or query. Connects to nothing yet.
pub fn open_source(
    name: &str,
    source: &DatabaseSource,
    postgres: &PostgresConnection,
    context: &ConnectorContext,
) -> Result<Arc<dyn Source>, ConnectorError> {
    Ok(Arc::new(source::PostgresSource::new(name, source, postgres, context)?))
}

//! Tries a connection that no node need use: `weir connection test`.

use weir_spec as spec;

use crate::{ConnectorContext, ConnectorError, registry};

/// Connects, and reads and writes nothing. Returns a line for people. `name` is the connection's name.
pub async fn check_connection(
    name: &str,
    config: &spec::Connection,
    context: &ConnectorContext,
) -> Result<String, ConnectorError> {
    let connection = spec::ConnectionRef { name: Some(name.to_owned()), config: config.clone() };
    match config {
        spec::Connection::Http(_) => crate::http::check_connection(&connection, context).await,
        spec::Connection::Postgres(_) | spec::Connection::Sqlite(_) => {
            // A query without a table: any database answers it.
            let source = spec::Source::Database(spec::DatabaseSource {
                connection,
                table: None,
                query: Some(spec::TemplateText::new("SELECT 1 AS one")),
                incremental: None,
            });
            registry::open_source(name, &source, context)?.check().await
        }
        spec::Connection::Unsupported(node) => Err(ConnectorError::config(format!(
            "connection `{name}`: type `{}` cannot be opened by this version",
            node.type_name
        ))),
    }
}

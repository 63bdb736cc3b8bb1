//! Connections: how a system is reached. May be shared by several nodes.

use std::num::NonZeroU32;
use std::time::Duration;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::TemplateText;

/// A connection as a node uses it: the shared one it names, or the one written inside the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionRef {
    /// The key under `connections`; `None` when the node carries its connection itself.
    pub name: Option<String>,
    pub config: Connection,
}

/// How to reach a system. `env` and `secret` templates are still unrendered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
#[expect(clippy::large_enum_variant, reason = "one value a node: a box would save nothing")]
pub enum Connection {
    Postgres(PostgresConnection),
    Sqlite(SqliteConnection),
    Http(HttpConnection),
    /// A type of the language that this version cannot open; refused by `validate` by name.
    Unsupported(UnsupportedNode),
}

impl Connection {
    /// The word after `type:`.
    pub fn type_name(&self) -> &str {
        match self {
            Connection::Postgres(_) => "postgres",
            Connection::Sqlite(_) => "sqlite",
            Connection::Http(_) => "http",
            Connection::Unsupported(unsupported) => &unsupported.type_name,
        }
    }

    /// How many tasks may use it at once, over all runs of the cluster.
    pub fn max_tasks(&self) -> Option<NonZeroU32> {
        match self {
            Connection::Postgres(connection) => connection.max_tasks,
            Connection::Sqlite(connection) => connection.max_tasks,
            Connection::Http(connection) => connection.max_tasks,
            Connection::Unsupported(_) => None,
        }
    }

    /// The same connection with another limit.
    pub fn with_max_tasks(mut self, limit: Option<NonZeroU32>) -> Self {
        match &mut self {
            Connection::Postgres(connection) => connection.max_tasks = limit,
            Connection::Sqlite(connection) => connection.max_tasks = limit,
            Connection::Http(connection) => connection.max_tasks = limit,
            Connection::Unsupported(_) => {}
        }
        self
    }
}

/// A node or connection of a type that the language has and this version cannot run yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnsupportedNode {
    pub type_name: String,
}

/// `postgres://user:password@host:port/database?sslmode=…`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PostgresConnection {
    pub url: TemplateText,
    /// Tasks that use the connection at once, over all runs of the cluster; `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tasks: Option<NonZeroU32>,
}

/// A local database file. `path` is relative to the pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SqliteConnection {
    pub path: TemplateText,
    /// Tasks that use the connection at once, over all runs of the cluster; `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tasks: Option<NonZeroU32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpConnection {
    pub base_url: TemplateText,
    pub auth: Option<HttpAuth>,
    pub headers: IndexMap<String, TemplateText>,
    /// Requests per second, shared by all users of the connection.
    pub rate_limit: Option<RateLimit>,
    /// For one request, from connecting to the last byte. Default 30 s.
    pub timeout: Duration,
    /// Tasks that use the connection at once, over all runs of the cluster; `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tasks: Option<NonZeroU32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HttpAuth {
    Bearer(TemplateText),
    Basic {
        username: TemplateText,
        password: TemplateText,
    },
    ApiKey {
        /// Exactly one of `header` and `query` is set.
        header: Option<String>,
        query: Option<String>,
        value: TemplateText,
    },
    /// OAuth2 client credentials; the token is fetched, cached until it expires, and fetched again
    /// once after a 401.
    Oauth2 {
        token_url: TemplateText,
        client_id: TemplateText,
        client_secret: TemplateText,
        scopes: Vec<String>,
    },
}

/// `10/s`, `600/m`, `1000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    pub requests: u32,
    pub per: Duration,
}

//! Connections, shared or written inside a node.

use std::num::NonZeroU32;

use indexmap::IndexMap;

use super::{Decoder, Fields};
use crate::shape::check::{TagResult, shape_of};
use crate::shape::{CONNECTION, format};
use crate::syntax::Node;
use crate::{
    Connection, ConnectionRef, HttpAuth, HttpConnection, PostgresConnection, SqliteConnection,
    TemplateText, UnsupportedNode,
};

impl Decoder<'_, '_> {
    pub(super) fn connections(&mut self, section: Option<&Node>) -> IndexMap<String, Connection> {
        let mut connections = IndexMap::new();
        let Some(map) = section.and_then(Node::as_map) else { return connections };
        for entry in &map.entries {
            let Some(fields) = entry.value.as_map() else { continue };
            let type_name = fields.get("type").and_then(Node::text).unwrap_or_default().to_owned();
            let shape = match shape_of(fields, entry.value.span, &CONNECTION, self.names) {
                TagResult::Shape(shape) => shape,
                TagResult::Mistake { .. } => {
                    let unsupported = Connection::Unsupported(UnsupportedNode { type_name });
                    connections.insert(entry.key.clone(), unsupported);
                    continue;
                }
            };
            let fields = Fields::new(fields, entry.value.span, shape);
            if let Some(connection) = self.connection(&type_name, &fields) {
                let limit = fields.integer("max_tasks").and_then(|limit| u32::try_from(limit).ok());
                let connection = connection.with_max_tasks(limit.and_then(NonZeroU32::new));
                connections.insert(entry.key.clone(), connection);
            }
        }
        connections
    }

    fn connection(&mut self, type_name: &str, fields: &Fields<'_>) -> Option<Connection> {
        Some(match type_name {
            "postgres" => {
                self.postgres_url(fields);
                Connection::Postgres(PostgresConnection {
                    url: fields.template("url")?,
                    max_tasks: None,
                })
            }
            "sqlite" => Connection::Sqlite(SqliteConnection {
                path: fields.template("path")?,
                max_tasks: None,
            }),
            "http" => {
                let headers = templates(fields, "headers");
                Connection::Http(self.http_connection(fields, headers)?)
            }
            _ => Connection::Unsupported(UnsupportedNode { type_name: type_name.to_owned() }),
        })
    }

    /// The connection of a node: `connection: NAME`, or the keys of a connection in the node.
    ///
    /// The headers of an inline HTTP connection are the node's own and not repeated here.
    pub(super) fn connection_of(
        &mut self,
        type_name: &str,
        fields: &Fields<'_>,
        connections: &IndexMap<String, Connection>,
    ) -> Option<ConnectionRef> {
        if let Some(entry) = fields.entry("connection") {
            let name = entry.value.text()?;
            let config =
                connections.get(name).or_else(|| self.shared.connections.get(name))?.clone();
            return Some(ConnectionRef { name: Some(name.to_owned()), config });
        }
        let config = match type_name {
            "http" => Connection::Http(self.http_connection(fields, IndexMap::new())?),
            _ => self.connection(type_name, fields)?,
        };
        Some(ConnectionRef { name: None, config })
    }

    fn http_connection(
        &mut self,
        fields: &Fields<'_>,
        headers: IndexMap<String, TemplateText>,
    ) -> Option<HttpConnection> {
        let base_url = fields.template("base_url")?;
        if let Some(node) = fields.node("base_url")
            && !base_url.as_str().contains("{{")
        {
            self.web_url(node, base_url.as_str());
        }
        Some(HttpConnection {
            base_url,
            auth: match fields.node("auth") {
                Some(node) => Some(http_auth(node)?),
                None => None,
            },
            headers,
            rate_limit: fields.parse("rate_limit", format::rate_limit),
            timeout: fields.duration("timeout")?,
            max_tasks: None,
        })
    }

    fn web_url(&mut self, node: &Node, text: &str) {
        let reason = match url::Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => return,
            Ok(url) => format!("its scheme is `{}`", url.scheme()),
            Err(error) => error.to_string(),
        };
        self.report.error_help(
            "bad-url",
            node.span,
            format!("`base_url` is not a web address: {reason}"),
            "write `https://host/path`",
        );
    }

    fn postgres_url(&mut self, fields: &Fields<'_>) {
        let Some(node) = fields.node("url") else { return };
        let Some(text) = node.text() else { return };
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        if text.contains("{{") || matches!(scheme, Some("postgres" | "postgresql")) {
            return;
        }
        self.report.error_help(
            "bad-url",
            node.span,
            "`url` is not the address of a PostgreSQL database",
            "write `postgres://user:password@host:5432/database`, or a template such as \
             `\"{{ env.DATABASE_URL }}\"`",
        );
    }
}

pub(super) fn templates(fields: &Fields<'_>, name: &str) -> IndexMap<String, TemplateText> {
    let entries = fields.entries(name).iter();
    entries
        .filter_map(|entry| Some((entry.key.clone(), TemplateText::new(entry.value.text()?))))
        .collect()
}

fn http_auth(node: &Node) -> Option<HttpAuth> {
    let auth = Fields::of(Some(node), &crate::shape::HTTP_AUTH);
    let inside = |name: &str| {
        let shape = match auth_shape(name) {
            Some(shape) => shape,
            None => return None,
        };
        auth.node(name).map(|node| Fields::of(Some(node), shape))
    };
    if auth.has("bearer") {
        return auth.template("bearer").map(HttpAuth::Bearer);
    }
    if let Some(basic) = inside("basic") {
        return Some(HttpAuth::Basic {
            username: basic.template("username")?,
            password: basic.template("password")?,
        });
    }
    if let Some(key) = inside("api_key") {
        return Some(HttpAuth::ApiKey {
            header: key.text("header"),
            query: key.text("query"),
            value: key.template("value")?,
        });
    }
    let oauth2 = inside("oauth2")?;
    Some(HttpAuth::Oauth2 {
        token_url: oauth2.template("token_url")?,
        client_id: oauth2.template("client_id")?,
        client_secret: oauth2.template("client_secret")?,
        scopes: oauth2.texts("scopes"),
    })
}

fn auth_shape(name: &str) -> Option<&'static crate::shape::Shape> {
    match crate::shape::HTTP_AUTH.key(name)?.kind {
        crate::shape::Kind::Object(shape) => Some(shape),
        _ => None,
    }
}

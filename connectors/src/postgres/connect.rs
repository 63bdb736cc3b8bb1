//! Opens connections: address for messages, timeouts, session settings.

use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use weir_spec::{ConnectionRef, PostgresConnection};

use super::error::classify;
use crate::{ConnectorContext, ConnectorError, ErrorKind};

/// How long connecting may take, the TLS handshake and authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of every session. Keepalives let the server notice within about 30 s that our machine
/// is gone, and release the locks that we held. A `COMMIT` is only answered once it is on the disk: a
/// database or role may be set to answer before, and a crash of the server would then take back what
/// the ledger holds for done.
const SESSION_SETTINGS: &str = "SET client_min_messages = error; SET statement_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; SET intervalstyle = iso_8601; \
    SET bytea_output = hex; SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; \
    SET tcp_keepalives_count = 3; SELECT set_config('synchronous_commit', 'on', false) \
    WHERE current_setting('synchronous_commit') = 'off'";

/// Where a database is and how to log in. The password stays inside sqlx's options.
#[derive(Clone)]
pub(super) struct Server {
    options: PgConnectOptions,
    /// `host:port/database`: all that messages may say.
    label: String,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({})", self.label)
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.label)
    }
}

impl Server {
    /// Resolves the connection's URL. Opens nothing.
    pub(super) fn new(
        connection: &ConnectionRef,
        postgres: &PostgresConnection,
        context: &ConnectorContext,
    ) -> Result<Self, ConnectorError> {
        let name = connection.name.as_deref().unwrap_or("postgres");
        let text = context.resolve_url(&postgres.url)?;
        let invalid = |what: &str| {
            ConnectorError::config(format!(
                "connection `{name}`: its url {what}; write postgres://user:password@host:5432/database"
            ))
        };
        let url = url::Url::parse(&text).map_err(|_| invalid("is not a URL"))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(invalid("does not start with postgres://"));
        }
        if let Some(password) = url.password() {
            context.redactor.register(password);
            if let Ok(decoded) = percent_decode(password) {
                context.redactor.register(&decoded);
            }
        }
        // The cause is dropped: it may quote parts of the URL.
        let options = PgConnectOptions::from_str(&text)
            .map_err(|_| invalid("has a part that PostgreSQL does not know"))?
            .application_name("weir")
            .disable_statement_logging();
        let label = format!(
            "{}:{}/{}",
            options.get_host(),
            options.get_port(),
            options.get_database().unwrap_or(options.get_username())
        );
        Ok(Self { options, label })
    }

    /// A session that other sessions can recognise in `pg_stat_activity`; at most 63 bytes.
    pub(super) fn with_application_name(&self, name: &str) -> Self {
        Self { options: self.options.clone().application_name(name), label: self.label.clone() }
    }

    pub(super) fn user(&self) -> &str {
        self.options.get_username()
    }

    /// Connects within [`CONNECT_TIMEOUT`].
    pub(super) async fn connect(&self) -> Result<PgConnection, ConnectorError> {
        let attempt = format!("connect to PostgreSQL at {} as {}", self.label, self.user());
        let opening = async {
            let mut connection = self.options.connect().await?;
            sqlx::raw_sql(SESSION_SETTINGS).execute(&mut connection).await?;
            Ok::<_, sqlx::Error>(connection)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(sqlx::Error::Io(cause))) => Err(ConnectorError::caused(
                ErrorKind::Unavailable { retry_after: None, status: None },
                format!("failed to {attempt}; check that the server runs and can be reached"),
                cause,
            )),
            Ok(Err(cause)) => Err(classify(attempt, cause)),
            Err(_) => Err(ConnectorError::new(
                ErrorKind::Unavailable { retry_after: None, status: None },
                format!("failed to {attempt}: no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            )),
        }
    }

    /// Connects and asks for the server's version.
    pub(super) async fn check(&self) -> Result<String, ConnectorError> {
        use sqlx::Connection as _;
        let mut connection = self.connect().await?;
        let version: String = sqlx::query_scalar("SELECT current_setting('server_version')")
            .fetch_one(&mut connection)
            .await
            .map_err(|cause| classify(format!("ask {} for its version", self.label), cause))?;
        // The answer is here already; a failing goodbye changes nothing.
        let _ = connection.close().await;
        Ok(format!("PostgreSQL {version} at {} as {}", self.label, self.user()))
    }
}

fn percent_decode(text: &str) -> Result<String, std::string::FromUtf8Error> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escape = (bytes[index] == b'%')
            .then(|| text.get(index + 1..index + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match escape {
            Some(byte) => {
                decoded.push(byte);
                index += 3;
            }
            None => {
                decoded.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8(decoded)
}

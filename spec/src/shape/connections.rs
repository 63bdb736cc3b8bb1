//! Keys of connections. Node tables repeat the keys that say an inline connection.

use super::{Key, Kind, Place, Shape, Tagged, format};

const CONNECT: Kind = Kind::Template(Place::Connection);

pub(crate) static CONNECTION: Tagged = Tagged {
    name: "connection",
    variants: &[
        ("postgres", &POSTGRES_CONNECTION),
        ("sqlite", &SQLITE_CONNECTION),
        ("http", &HTTP_CONNECTION),
    ],
    unsupported: &[
        "mysql",
        "clickhouse",
        "duckdb",
        "sqlserver",
        "oracle",
        "odbc",
        "flight_sql",
        "adbc",
        "delta",
        "iceberg",
        "redis",
        "elasticsearch",
        "opensearch",
        "databricks",
        "s3",
        "azure",
        "gcs",
        "sftp",
        "sharepoint",
        "slack",
        "email",
        "llm",
    ],
    by_connection: false,
};

const TYPE: Key = Key::new("type", Kind::Text, "The system.").required();

pub(crate) const URL: Key = Key::new(
    "url",
    CONNECT,
    "`postgres://user:password@host:port/database?sslmode=…`; may use `env` and `secret`.",
);
pub(crate) const SQLITE_PATH: Key = Key::new(
    "path",
    CONNECT,
    "The database file, relative to the pipeline file; may use `env` and `secret`.",
);
pub(crate) const BASE_URL: Key =
    Key::new("base_url", CONNECT, "Where paths start; may use `env` and `secret`.");
pub(crate) const AUTH: Key =
    Key::new("auth", Kind::Object(&HTTP_AUTH), "How requests authenticate.");
pub(crate) const HEADERS: Key = Key::new(
    "headers",
    Kind::Map(&format::HEADER_NAME, &CONNECT),
    "Sent with every request; may use `env` and `secret`.",
);
pub(crate) const RATE_LIMIT: Key = Key::new(
    "rate_limit",
    Kind::Format(&format::RATE_LIMIT),
    "Requests per second, minute or hour, shared by all users of the connection.",
);
pub(crate) const TIMEOUT: Key = Key::new(
    "timeout",
    Kind::Format(&format::DURATION),
    "For one request, from connecting to the last byte.",
)
.default("30s");
const MAX_TASKS: Key = Key::new(
    "max_tasks",
    Kind::Integer { min: 1, max: 10_000 },
    "Tasks that use the connection at once, over all runs of the cluster. Default: no limit.",
);

pub(crate) static POSTGRES_CONNECTION: Shape = Shape {
    name: "a postgres connection",
    keys: &[TYPE, URL.required(), MAX_TASKS],
    exactly_one: &[],
};

static SQLITE_CONNECTION: Shape = Shape {
    name: "an sqlite connection",
    keys: &[TYPE, SQLITE_PATH.required(), MAX_TASKS],
    exactly_one: &[],
};

static HTTP_CONNECTION: Shape = Shape {
    name: "an http connection",
    keys: &[TYPE, BASE_URL.required(), AUTH, HEADERS, RATE_LIMIT, TIMEOUT, MAX_TASKS],
    exactly_one: &[],
};

pub(crate) static HTTP_AUTH: Shape = Shape {
    name: "`auth`",
    keys: &[
        Key::new("bearer", CONNECT, "A token for `Authorization: Bearer`."),
        Key::new("basic", Kind::Object(&BASIC_AUTH), "User and password."),
        Key::new("api_key", Kind::Object(&API_KEY_AUTH), "A key in a header or query parameter."),
        Key::new("oauth2", Kind::Object(&OAUTH2_AUTH), "OAuth2 client credentials."),
    ],
    exactly_one: &[&["bearer", "basic", "api_key", "oauth2"]],
};

static BASIC_AUTH: Shape = Shape {
    name: "`basic`",
    keys: &[
        Key::new("username", CONNECT, "The user.").required(),
        Key::new("password", CONNECT, "The password.").required(),
    ],
    exactly_one: &[],
};

static API_KEY_AUTH: Shape = Shape {
    name: "`api_key`",
    keys: &[
        Key::new("header", Kind::Format(&format::HEADER_NAME), "The header that carries the key."),
        Key::new("query", Kind::Text, "The query parameter that carries the key."),
        Key::new("value", CONNECT, "The key itself.").required(),
    ],
    exactly_one: &[&["header", "query"]],
};

static OAUTH2_AUTH: Shape = Shape {
    name: "`oauth2`",
    keys: &[
        Key::new("token_url", CONNECT, "Where tokens are issued.").required(),
        Key::new("client_id", CONNECT, "The client.").required(),
        Key::new("client_secret", CONNECT, "The client's secret.").required(),
        Key::new("scopes", Kind::OneOrMany(&Kind::Text), "Requested scopes."),
    ],
    exactly_one: &[],
};

//! Keys of sources.

use super::connections::{AUTH, BASE_URL, HEADERS, RATE_LIMIT, SQLITE_PATH, TIMEOUT, URL};
use super::{Key, Kind, Place, Shape, Tagged, format};

pub(crate) static SOURCE: Tagged = Tagged {
    name: "source",
    variants: &[
        ("csv", &CSV),
        ("json", &JSON),
        ("parquet", &PARQUET),
        ("postgres", &POSTGRES),
        ("sqlite", &SQLITE),
        ("http", &HTTP),
    ],
    unsupported: &[
        "avro",
        "text",
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
        "webhook",
        "debezium",
        "postgres_cdc",
        "databricks",
    ],
    by_connection: true,
};

pub(super) const TYPE: Key = Key::new("type", Kind::Text, "The kind of system or file.");
pub(super) const CONNECTION: Key =
    Key::new("connection", Kind::Format(&format::CONNECTION_NAME), "A key under `connections`.");
/// SFTP, SharePoint and object stores read files through a connection.
const FILE_CONNECTION: Key =
    Key::new("connection", Kind::Text, "Where the files are, when not local.").unsupported();

const PATH: Key = Key::new(
    "path",
    Kind::Template(Place::Plan),
    "One file, a folder or a glob, relative to the pipeline file.",
)
.required();
pub(super) const COMPRESSION: Kind =
    Kind::Choice { names: &["auto", "none", "gzip", "zstd"], unsupported: &[] };
const SOURCE_COMPRESSION: Key =
    Key::new("compression", COMPRESSION, "`auto` goes by the suffix: `.gz`, `.zst`, else none.")
        .default("auto");
static ONE_COLUMN_TYPE: Kind = Kind::Format(&format::COLUMN_TYPE);
const COLUMNS: Key = Key::new(
    "columns",
    Kind::Map(&format::COLUMN_NAME, &ONE_COLUMN_TYPE),
    "Names and types of the columns. Inferred when absent.",
);
const HIVE_PARTITIONS: Key = Key::new(
    "hive_partitions",
    Kind::Bool,
    "Whether `key=value` folders become string columns. Default: when the path holds such folders.",
);
pub(super) const ON_ERROR: Key = Key::new(
    "on_error",
    Kind::Choice { names: &["dead_letter", "drop", "fail"], unsupported: &[] },
    "What happens to a row that is rejected.",
)
.default("dead_letter");
pub(super) const MAX_ERRORS: Key = Key::new(
    "max_errors",
    Kind::Format(&format::MAX_ERRORS),
    "More rejected rows than this fail the run: a count or a percentage. Default: no limit.",
);
pub(super) const DELIMITER: Key =
    Key::new("delimiter", Kind::Format(&format::BYTE), "Between cells; one ASCII character.")
        .default(",");
pub(super) const QUOTE: Key =
    Key::new("quote", Kind::Format(&format::BYTE), "Around cells; one ASCII character.")
        .default("\"");
pub(super) const HEADER: Key =
    Key::new("header", Kind::Bool, "Whether the first line names the columns.").default("true");

static CSV: Shape = Shape {
    name: "a csv source",
    keys: &[
        TYPE,
        FILE_CONNECTION,
        PATH,
        HEADER,
        DELIMITER,
        QUOTE,
        Key::new("escape", Kind::Format(&format::BYTE), "Before a quote inside a quoted cell."),
        Key::new("comment", Kind::Format(&format::BYTE), "Lines that start with it are skipped."),
        Key::new(
            "null_values",
            Kind::OneOrMany(&Kind::Written),
            "Cells that mean null. Default: the empty cell.",
        ),
        Key::new("multiline", Kind::Bool, "Whether quoted cells may hold line breaks.")
            .default("true"),
        SOURCE_COMPRESSION,
        COLUMNS,
        HIVE_PARTITIONS,
        ON_ERROR,
        MAX_ERRORS,
    ],
    exactly_one: &[],
};

static JSON: Shape = Shape {
    name: "a json source",
    keys: &[
        TYPE,
        FILE_CONNECTION,
        PATH,
        Key::new(
            "format",
            Kind::Choice { names: &["auto", "array", "lines"], unsupported: &["debezium"] },
            "`auto`: an array when the first non-blank byte is `[`, else lines.",
        )
        .default("auto"),
        Key::new(
            "records",
            Kind::Format(&format::JSON_PATH),
            "The records inside one document a file.",
        ),
        SOURCE_COMPRESSION,
        COLUMNS,
        HIVE_PARTITIONS,
        ON_ERROR,
        MAX_ERRORS,
    ],
    exactly_one: &[],
};

static PARQUET: Shape = Shape {
    name: "a parquet source",
    keys: &[TYPE, FILE_CONNECTION, PATH, HIVE_PARTITIONS],
    exactly_one: &[],
};

const TABLE: Key = Key::new("table", Kind::Template(Place::Plan), "`schema.table` or `table`.");
const QUERY: Key = Key::new("query", Kind::Template(Place::Sql), "A SELECT in the database's SQL.");
const TABLES: Key = Key::new(
    "tables",
    Kind::OneOrMany(&Kind::Text),
    "Many tables at once, by pattern, for a sink with `{table}`.",
)
.unsupported();
const DATABASE_INCREMENTAL: Key = Key::new(
    "incremental",
    Kind::Object(&DATABASE_INCREMENTAL_SHAPE),
    "Read only what is new since the last committed cursor.",
);

static POSTGRES: Shape = Shape {
    name: "a postgres source",
    keys: &[TYPE, CONNECTION, URL, TABLE, QUERY, TABLES, DATABASE_INCREMENTAL],
    exactly_one: &[&["connection", "url"], &["table", "query", "tables"]],
};

static SQLITE: Shape = Shape {
    name: "an sqlite source",
    keys: &[TYPE, CONNECTION, SQLITE_PATH, TABLE, QUERY, TABLES, DATABASE_INCREMENTAL],
    exactly_one: &[&["connection", "path"], &["table", "query", "tables"]],
};

const CURSOR: Key =
    Key::new("cursor", Kind::Text, "The column whose greatest committed value is the watermark.")
        .required();
const INITIAL: Key = Key::new("initial", Kind::Written, "The watermark before the first run.");
const LAG: Key = Key::new(
    "lag",
    Kind::Format(&format::DURATION),
    "Subtracted from a time watermark when reading, to catch late rows.",
);

static DATABASE_INCREMENTAL_SHAPE: Shape =
    Shape { name: "`incremental`", keys: &[CURSOR, INITIAL, LAG], exactly_one: &[] };

static HTTP_INCREMENTAL_SHAPE: Shape = Shape {
    name: "`incremental`",
    keys: &[
        CURSOR,
        Key::new("param", Kind::Text, "The query parameter that carries the watermark.").required(),
        INITIAL,
        LAG,
    ],
    exactly_one: &[],
};

static HTTP: Shape = Shape {
    name: "an http source",
    keys: &[
        TYPE,
        CONNECTION,
        BASE_URL,
        AUTH,
        RATE_LIMIT,
        TIMEOUT,
        Key::new("path", Kind::Template(Place::Plan), "Appended to the base URL.").required(),
        Key::new(
            "method",
            Kind::Choice { names: &["GET", "POST"], unsupported: &[] },
            "The request method.",
        )
        .default("GET"),
        Key::new(
            "query",
            Kind::Map(&format::FREE_NAME, &Kind::Template(Place::Plan)),
            "Query parameters.",
        ),
        HEADERS,
        Key::new("body", Kind::Any(Some(Place::Plan)), "The body of a POST, sent as JSON."),
        Key::new("pagination", Kind::Tagged(&PAGINATION), "How the next page is found."),
        Key::new(
            "records",
            Kind::Format(&format::JSON_PATH),
            "The records in a page. Default: `$[*]` for an array, `$` for an object.",
        ),
        Key::new(
            "error_path",
            Kind::Format(&format::JSON_PATH),
            "Makes a page answered with status 200 an error when it matches.",
        ),
        Key::new(
            "incremental",
            Kind::Object(&HTTP_INCREMENTAL_SHAPE),
            "Read only what is new since the last committed cursor.",
        ),
        COLUMNS,
        ON_ERROR,
        MAX_ERRORS,
        Key::new(
            "max_pages",
            Kind::Integer { min: 1, max: i64::MAX },
            "A bound against endless pagination.",
        )
        .default("100000"),
    ],
    exactly_one: &[&["connection", "base_url"]],
};

pub(crate) static PAGINATION: Tagged = Tagged {
    name: "pagination",
    variants: &[
        ("none", &NO_PAGES),
        ("cursor", &CURSOR_PAGES),
        ("header_cursor", &HEADER_CURSOR_PAGES),
        ("next_link", &NEXT_LINK_PAGES),
        ("link_header", &LINK_HEADER_PAGES),
        ("page_number", &NUMBERED_PAGES),
        ("offset", &OFFSET_PAGES),
    ],
    unsupported: &[],
    by_connection: false,
};

const CURSOR_PARAM: Key =
    Key::new("cursor_param", Kind::Text, "The query parameter that sends it back.").required();

static NO_PAGES: Shape = Shape { name: "no pagination", keys: &[TYPE], exactly_one: &[] };

static CURSOR_PAGES: Shape = Shape {
    name: "cursor pagination",
    keys: &[
        TYPE,
        Key::new("cursor_path", Kind::Format(&format::JSON_PATH), "The cursor in the body.")
            .required(),
        CURSOR_PARAM,
    ],
    exactly_one: &[],
};

static HEADER_CURSOR_PAGES: Shape = Shape {
    name: "header-cursor pagination",
    keys: &[
        TYPE,
        Key::new("header", Kind::Format(&format::HEADER_NAME), "The response header.").required(),
        CURSOR_PARAM,
    ],
    exactly_one: &[],
};

static NEXT_LINK_PAGES: Shape = Shape {
    name: "next-link pagination",
    keys: &[
        TYPE,
        Key::new("next_path", Kind::Format(&format::JSON_PATH), "The next URL in the body.")
            .required(),
    ],
    exactly_one: &[],
};

static LINK_HEADER_PAGES: Shape =
    Shape { name: "link-header pagination", keys: &[TYPE], exactly_one: &[] };

static NUMBERED_PAGES: Shape = Shape {
    name: "page-number pagination",
    keys: &[
        TYPE,
        Key::new("page_param", Kind::Text, "The query parameter of the page.").default("page"),
        Key::new("start", Kind::Integer { min: 0, max: i64::MAX }, "The first page.").default("1"),
        Key::new("size_param", Kind::Text, "The query parameter of the page size."),
        Key::new(
            "page_size",
            Kind::Integer { min: 1, max: i64::MAX },
            "Rows a page; a shorter page is the last one.",
        ),
    ],
    exactly_one: &[],
};

static OFFSET_PAGES: Shape = Shape {
    name: "offset pagination",
    keys: &[
        TYPE,
        Key::new("offset_param", Kind::Text, "The query parameter of the offset.")
            .default("offset"),
        Key::new("limit_param", Kind::Text, "The query parameter of the page size.")
            .default("limit"),
        Key::new("limit", Kind::Integer { min: 1, max: i64::MAX }, "Rows a page.").default("100"),
    ],
    exactly_one: &[],
};

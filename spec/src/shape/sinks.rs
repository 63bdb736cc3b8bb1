//! Keys of sinks.

use super::connections::{SQLITE_PATH, URL};
use super::sources::{COMPRESSION, CONNECTION, DELIMITER, HEADER, QUOTE, TYPE};
use super::transforms::{INPUT, INPUTS};
use super::{Key, Kind, Place, Shape, Tagged, format};

pub(crate) static SINK: Tagged = Tagged {
    name: "sink",
    variants: &[
        ("csv", &CSV),
        ("json", &JSON),
        ("parquet", &PARQUET),
        ("postgres", &POSTGRES),
        ("sqlite", &SQLITE),
    ],
    unsupported: &[
        "http",
        "avro",
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
        "webhook_out",
        "slack",
        "email",
    ],
    by_connection: true,
};

const FILE_CONNECTION: Key =
    Key::new("connection", Kind::Text, "Where the files go, when not local.").unsupported();
const PATH: Key =
    Key::new("path", Kind::Template(Place::Plan), "A folder, relative to the pipeline file.")
        .required();
const MODE: Key = Key::new(
    "mode",
    Kind::Choice { names: &["append", "upsert", "replace"], unsupported: &["changes"] },
    "How rows meet what is there.",
)
.default("append");
const KEY: Key = Key::new(
    "key",
    Kind::OneOrMany(&Kind::Text),
    "Columns that identify a row; required by `mode: upsert`.",
);
const COMMIT: Key = Key::new(
    "commit",
    Kind::Choice { names: &["batch", "run"], unsupported: &[] },
    "Rows become visible batch by batch, or all at once at the end of the run. `mode: replace` is \
     always `run`.",
)
.default("batch");
const ROWS: Kind = Kind::Integer { min: 1, max: i64::MAX };
const FILE_BATCH_ROWS: Key =
    Key::new("batch_rows", ROWS, "Rows that become visible together.").default("1000000");
const TABLE_BATCH_ROWS: Key =
    Key::new("batch_rows", ROWS, "Rows that become visible together.").default("50000");
const PARTITION_BY: Key = Key::new(
    "partition_by",
    Kind::OneOrMany(&Kind::Text),
    "Columns of the folders `column=value/`; not repeated inside the files.",
);
const TARGET_FILE_SIZE: Key = Key::new(
    "target_file_size",
    Kind::Format(&format::SIZE),
    "A file is closed once it is about this large.",
)
.default("128MiB");
const TEXT_COMPRESSION: Key = Key::new("compression", COMPRESSION, "`auto`: none.").default("auto");
const PARQUET_COMPRESSION: Key = Key::new(
    "compression",
    Kind::Choice { names: &["auto", "none", "zstd"], unsupported: &["gzip"] },
    "Inside the files; `auto`: snappy.",
)
.default("auto");

static CSV: Shape = Shape {
    name: "a csv sink",
    keys: &[
        TYPE,
        FILE_CONNECTION,
        INPUT,
        INPUTS,
        PATH,
        DELIMITER,
        QUOTE,
        HEADER,
        PARTITION_BY,
        TARGET_FILE_SIZE,
        TEXT_COMPRESSION,
        MODE,
        KEY,
        COMMIT,
        FILE_BATCH_ROWS,
    ],
    exactly_one: &[&["input", "inputs"]],
};

static JSON: Shape = Shape {
    name: "a json sink",
    keys: &[
        TYPE,
        FILE_CONNECTION,
        INPUT,
        INPUTS,
        PATH,
        PARTITION_BY,
        TARGET_FILE_SIZE,
        TEXT_COMPRESSION,
        MODE,
        KEY,
        COMMIT,
        FILE_BATCH_ROWS,
    ],
    exactly_one: &[&["input", "inputs"]],
};

static PARQUET: Shape = Shape {
    name: "a parquet sink",
    keys: &[
        TYPE,
        FILE_CONNECTION,
        INPUT,
        INPUTS,
        PATH,
        PARTITION_BY,
        TARGET_FILE_SIZE,
        PARQUET_COMPRESSION,
        MODE,
        KEY,
        COMMIT,
        FILE_BATCH_ROWS,
    ],
    exactly_one: &[&["input", "inputs"]],
};

const TABLE: Key =
    Key::new("table", Kind::Template(Place::Plan), "`schema.table` or `table`; made when missing.")
        .required();
const SCHEMA: Key =
    Key::new("schema", Kind::Object(&SCHEMA_POLICY), "What to do when rows and table differ.");

static POSTGRES: Shape = Shape {
    name: "a postgres sink",
    keys: &[
        TYPE,
        CONNECTION,
        URL,
        INPUT,
        INPUTS,
        TABLE,
        MODE,
        KEY,
        COMMIT,
        TABLE_BATCH_ROWS,
        SCHEMA,
    ],
    exactly_one: &[&["input", "inputs"], &["connection", "url"]],
};

static SQLITE: Shape = Shape {
    name: "an sqlite sink",
    keys: &[
        TYPE,
        CONNECTION,
        SQLITE_PATH,
        INPUT,
        INPUTS,
        TABLE,
        MODE,
        KEY,
        COMMIT,
        TABLE_BATCH_ROWS,
        SCHEMA,
    ],
    exactly_one: &[&["input", "inputs"], &["connection", "path"]],
};

pub(crate) static SCHEMA_POLICY: Shape = Shape {
    name: "`schema`",
    keys: &[
        Key::new(
            "new_columns",
            Kind::Choice { names: &["add", "ignore", "fail"], unsupported: &[] },
            "A column that the rows have and the table lacks.",
        )
        .default("fail"),
        Key::new(
            "type_changes",
            Kind::Choice { names: &["cast", "fail"], unsupported: &[] },
            "A column whose type differs from the table's.",
        )
        .default("fail"),
        Key::new(
            "missing_columns",
            Kind::Choice { names: &["fill_null", "fail"], unsupported: &[] },
            "A column that the table has and the rows lack.",
        )
        .default("fill_null"),
    ],
    exactly_one: &[],
};

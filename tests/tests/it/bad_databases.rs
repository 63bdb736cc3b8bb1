//! Databases that cannot be reached or refuse: the message names the place and the remedy and hides the
//! password, the exit code is right, and no row is visible.

use std::path::Path;
use std::process::Command;

use weir_tests::postgres::PostgresServer;

use crate::messages::{Case, HIDDEN, Messages};
use crate::targets;

const COLUMNS: &str = "{ id: int64, name: string }";
const ROW: &str = "{\"id\": 1, \"name\": \"a\"}\n";

fn reading(url: &str, keys: &str) -> String {
    Case::reading(&format!("{{ type: postgres, url: \"{url}\", {keys} }}"), &[]).failure()
}

fn writing(url: &str, keys: &str) -> String {
    Case::writing(COLUMNS, ROW, &format!("type: postgres, url: \"{url}\", {keys}")).failure()
}

#[test]
fn postgres_that_cannot_be_reached_is_named_without_its_password() {
    let mut messages = Messages::default();
    let closed = format!("postgres://u:{HIDDEN}@127.0.0.1:1/db");
    messages.add("source: closed port", &reading(&closed, "table: t"));
    messages.add("sink: closed port", &writing(&closed, "table: t"));
    let nowhere = format!("postgres://u:{HIDDEN}@no-such-host.invalid/db");
    messages.add("source: no such host", &reading(&nowhere, "table: t"));
    messages.add("sink: no such host", &writing(&nowhere, "table: t"));
    insta::assert_snapshot!("postgres_unreachable", messages);
}

#[test]
fn postgres_that_refuses_is_named_without_its_password() {
    // The password of `guarded` is asked for; see the harness.
    let url = targets::database("refusing");
    targets::execute(
        &url,
        "CREATE ROLE refused LOGIN;
         CREATE ROLE guarded LOGIN PASSWORD 'the right one';
         CREATE TABLE mine (id bigint PRIMARY KEY, name text);
         INSERT INTO mine VALUES (7, 'g');
         REVOKE ALL ON SCHEMA public FROM PUBLIC;
         GRANT USAGE ON SCHEMA public TO refused;
         GRANT SELECT ON mine TO refused;
         CREATE TABLE secret (id bigint);
         INSERT INTO secret VALUES (1)",
    );
    let port = targets::server_port();
    let at = |user: &str, database: &str| format!("postgres://{user}@127.0.0.1:{port}/{database}");
    let wrong_password = at(&format!("guarded:{HIDDEN}"), "refusing");
    let mut messages = Messages::default();
    messages.add("source: wrong password", &reading(&wrong_password, "table: mine"));
    messages.add("sink: wrong password", &writing(&wrong_password, "table: mine"));
    messages.add("source: no such role", &reading(&at("nobody", "refusing"), "table: mine"));
    messages.add("source: no such database", &reading(&at("refused", "none"), "table: mine"));
    messages.add("sink: no such database", &writing(&at("refused", "none"), "table: mine"));
    messages.add("source: no such table", &reading(&url, "table: mien"));
    messages
        .add("source: a query with a mistake", &reading(&url, "query: \"SELECT idd FROM mine\""));
    messages.add("source: no right to read", &reading(&at("refused", "refusing"), "table: secret"));
    messages.add("sink: no such schema", &writing(&url, "table: nowhere.t"));
    let refused = at("refused", "refusing");
    messages.add("sink: no right to make a table", &writing(&refused, "table: t"));
    messages.add("sink: no right to write", &writing(&refused, "table: mine"));
    messages.add("sink: no right to replace", &writing(&refused, "table: mine, mode: replace"));
    insta::assert_snapshot!("postgres_refusing", messages);
    let rows = targets::rows(&url, "SELECT id || name FROM mine");
    assert_eq!(rows, ["7g"], "nothing was written");
}

/// Rows of `columns` into a table that exists: (name, columns, record, sink keys).
#[test]
fn values_that_postgres_cannot_hold_fail_with_the_column() {
    let url = targets::database("narrow");
    targets::execute(
        &url,
        "CREATE TABLE numbers (id bigint, amount numeric(5,2));
         CREATE TABLE small (id smallint);
         CREATE TABLE required (id bigint, name text NOT NULL);
         CREATE TABLE once (id bigint PRIMARY KEY);
         CREATE TABLE positive (id bigint CHECK (id > 0));
         CREATE TABLE short (name varchar(3))",
    );
    let cast = "schema: { type_changes: cast }";
    let mut messages = Messages::default();
    for (name, columns, records, keys) in [
        (
            "NUL in text",
            "{ id: int64, name: string }",
            r#"{"id": 1, "name": "a\u0000b"}"#,
            "table: texts",
        ),
        (
            "NUL in JSON",
            "{ id: int64, doc: json }",
            r#"{"id": 1, "doc": {"a": "\u0000"}}"#,
            "table: docs",
        ),
        (
            "numeric overflow",
            "{ id: int64, amount: \"decimal(9,2)\" }",
            r#"{"id": 1, "amount": 1000}"#,
            &format!("table: numbers, {cast}"),
        ),
        (
            "numeric overflow is seen before the first row",
            "{ id: int64, amount: \"decimal(9,2)\" }",
            r#"{"id": 1, "amount": 1000}"#,
            "table: numbers",
        ),
        (
            "smallint overflow",
            "{ id: int64 }",
            r#"{"id": 40000}"#,
            &format!("table: small, {cast}"),
        ),
        (
            "smallint overflow is seen before the first row",
            "{ id: int64 }",
            r#"{"id": 40000}"#,
            "table: small",
        ),
        (
            "varchar overflow",
            "{ name: string }",
            r#"{"name": "abcd"}"#,
            &format!("table: short, {cast}"),
        ),
        (
            "null into NOT NULL",
            "{ id: int64, name: string }",
            r#"{"id": 1, "name": null}"#,
            "table: required",
        ),
        ("a column is missing", "{ id: int64 }", r#"{"id": 1}"#, "table: required"),
        ("a column too many", "{ id: int64, more: string }", r#"{"id": 1}"#, "table: positive"),
        ("a key twice", "{ id: int64 }", "{\"id\": 1}\n{\"id\": 1}", "table: once"),
        ("a check", "{ id: int64 }", r#"{"id": -1}"#, "table: positive"),
        (
            "upsert without a unique index",
            "{ id: int64 }",
            r#"{"id": 1}"#,
            "table: positive, mode: upsert, key: [id]",
        ),
        ("a null key", "{ id: int64 }", r#"{"id": null}"#, "table: once, mode: upsert, key: [id]"),
    ] {
        let sink = format!("type: postgres, url: \"{url}\", {keys}");
        messages.add(name, &Case::writing(columns, records, &sink).failure());
    }
    insta::assert_snapshot!("postgres_values", messages);
    for table in ["numbers", "small", "required", "once", "positive", "short", "texts", "docs"] {
        let exists = targets::rows(
            &url,
            &format!("SELECT 'yes'::text FROM pg_tables WHERE tablename = '{table}'"),
        );
        if !exists.is_empty() {
            let rows = targets::rows(&url, &format!("SELECT count(*)::text FROM {table}"));
            assert_eq!(rows, ["0"], "{table}");
        }
    }
}

#[test]
fn a_server_that_does_not_start_again_is_named() {
    let server = PostgresServer::start();
    let url = server.url();
    targets::execute(&url, "CREATE TABLE t (id bigint, name text)");
    let case = Case::writing(COLUMNS, ROW, &format!("type: postgres, url: \"{url}\", table: t"));
    server.stop();
    insta::assert_snapshot!("postgres_stopped", case.failure());
    server.resume();
    case.run().expect_code(0);
    assert_eq!(targets::rows(&url, "SELECT id || name FROM t"), ["1a"]);
}

/// A read-only file system on `folder`, unmounted when dropped: root writes past permissions.
struct ReadOnly(std::path::PathBuf);

impl ReadOnly {
    fn mount(folder: &Path, fill: impl FnOnce(&Path)) -> Self {
        std::fs::create_dir_all(folder).expect("the folder can be made");
        let mount = |options: &str| {
            let status = Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "tmpfs"])
                .arg(folder)
                .status();
            assert!(status.is_ok_and(|status| status.success()), "mounting needs root");
        };
        mount("size=4m");
        fill(folder);
        mount("remount,ro");
        Self(folder.to_owned())
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // The temporary folder cannot be removed while it is mounted.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn make_sqlite(path: &Path) {
    targets::block_on(async {
        use sqlx::{Connection as _, Executor as _};
        let mut connection =
            sqlx::SqliteConnection::connect(&format!("sqlite://{}?mode=rwc", path.display()))
                .await
                .expect("the database can be made");
        connection
            .execute(
                "CREATE TABLE t (id integer PRIMARY KEY, name text); INSERT INTO t VALUES (7, 'g')",
            )
            .await
            .expect("the statements are right");
        connection.close().await.expect("it can be closed");
    });
}

#[test]
fn sqlite_that_is_none_or_cannot_be_written_is_named() {
    let mut messages = Messages::default();
    let mut both = |name: &str, path: &str, prepare: &dyn Fn(&Path)| {
        let source = Case::reading(&format!("{{ type: sqlite, path: {path}, table: t }}"), &[]);
        prepare(&source.folder.path().join(path));
        messages.add(&format!("source: {name}"), &source.failure());
        let sink = Case::writing(COLUMNS, ROW, &format!("type: sqlite, path: {path}, table: t"));
        prepare(&sink.folder.path().join(path));
        messages.add(&format!("sink: {name}"), &sink.failure());
    };
    both("a text file", "file.db", &|path| {
        std::fs::write(path, "this is a text of some length, and no database at all\n".repeat(40))
            .expect("the disk has room");
    });
    both("a folder", "folder.db", &|path| std::fs::create_dir(path).expect("a new folder"));
    both("a file that is cut off", "cut.db", &|path| {
        make_sqlite(path);
        let bytes = std::fs::read(path).expect("it has just been made");
        std::fs::write(path, &bytes[..4096]).expect("the disk has room");
    });
    let missing = Case::reading("{ type: sqlite, path: none.db, table: t }", &[]);
    messages.add("source: no file", &missing.failure());
    let no_table = Case::reading("{ type: sqlite, path: a.db, table: none }", &[]);
    make_sqlite(&no_table.folder.path().join("a.db"));
    messages.add("source: no such table", &no_table.failure());

    let sink = Case::writing(COLUMNS, ROW, "type: sqlite, path: disk/a.db, table: t");
    let disk = ReadOnly::mount(&sink.folder.path().join("disk"), |folder| {
        make_sqlite(&folder.join("a.db"));
    });
    messages.add("sink: not writable", &sink.failure());
    drop(disk);
    let sink = Case::writing(COLUMNS, ROW, "type: sqlite, path: disk/new.db, table: t");
    let disk = ReadOnly::mount(&sink.folder.path().join("disk"), |_| ());
    messages.add("sink: a new file in a folder that is not writable", &sink.failure());
    drop(disk);
    let sink = Case::writing(COLUMNS, ROW, "type: parquet, path: disk/out");
    let disk = ReadOnly::mount(&sink.folder.path().join("disk"), |_| ());
    messages.add("Parquet sink: a folder that is not writable", &sink.failure());
    drop(disk);
    insta::assert_snapshot!("sqlite", messages);
}

//! Destinations of the kill tests: how a pipeline names them, and how another reader reads them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::{Connection as _, Row as _};
use weir_tests::dataset::Checker;
use weir_tests::faults::rows::{Booked, Rows};
use weir_tests::postgres::PostgresServer;

pub(crate) trait Target {
    /// The sink's keys, indented by four.
    fn yaml(&self, batch_rows: i64) -> String;
    /// Empties the destination.
    fn reset(&self);
    /// Reads all that is visible, without Weir.
    fn read(&self, checker: &mut Checker);
    /// Staging that should be gone.
    fn leftovers(&self) -> Option<String>;
}

pub(crate) fn files(folder: &Path, format: &str, mode: &str, commit: &str) -> Box<dyn Target> {
    files_at(folder, "out", format, mode, commit)
}

pub(crate) fn files_at(
    folder: &Path,
    path: &str,
    format: &str,
    mode: &str,
    commit: &str,
) -> Box<dyn Target> {
    Box::new(Files {
        relative: path.to_owned(),
        path: folder.join(path),
        format: format.to_owned(),
        mode: mode.to_owned(),
        commit: commit.to_owned(),
    })
}

struct Files {
    relative: String,
    path: PathBuf,
    format: String,
    mode: String,
    commit: String,
}

/// Files that readers see: no part of their path begins with `_` or `.`.
pub(crate) fn visible_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return files };
    for entry in entries {
        let entry = entry.expect("the folder can be listed");
        if entry.file_name().to_string_lossy().starts_with(['_', '.']) {
            continue;
        }
        if entry.path().is_dir() {
            files.extend(visible_files(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

fn visible_names(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder)
        .expect("the folder can be listed")
        .map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned())
        .collect()
}

impl Target for Files {
    fn yaml(&self, batch_rows: i64) -> String {
        format!(
            "    type: {}\n    path: {}\n    mode: {}\n    commit: {}\n    batch_rows: {batch_rows}\n",
            self.format, self.relative, self.mode, self.commit
        )
    }

    fn reset(&self) {
        if self.path.exists() {
            std::fs::remove_dir_all(&self.path).expect("the destination can be removed");
        }
    }

    fn read(&self, checker: &mut Checker) {
        let schema = Arc::new(arrow::datatypes::Schema::new(vec![
            arrow::datatypes::Field::new("id", arrow::datatypes::DataType::Int64, true),
            arrow::datatypes::Field::new("grp", arrow::datatypes::DataType::Int64, true),
            arrow::datatypes::Field::new("amount", arrow::datatypes::DataType::Float64, true),
            arrow::datatypes::Field::new("name", arrow::datatypes::DataType::Utf8, true),
        ]));
        for path in visible_files(&self.path) {
            let file = File::open(&path).expect("the file is there");
            match self.format.as_str() {
                "parquet" => {
                    let reader =
                        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(
                            file,
                        )
                        .and_then(|builder| builder.build())
                        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    for batch in reader {
                        checker.add_batch(&batch.expect("the file is whole"));
                    }
                }
                "csv" => {
                    let reader = arrow::csv::ReaderBuilder::new(schema.clone())
                        .with_header(true)
                        .build(file)
                        .expect("the file is CSV");
                    for batch in reader {
                        checker.add_batch(&batch.expect("the file is whole"));
                    }
                }
                _ => {
                    let reader = arrow::json::ReaderBuilder::new(schema.clone())
                        .build(std::io::BufReader::new(file))
                        .expect("the file is JSON lines");
                    for batch in reader {
                        checker.add_batch(&batch.expect("the file is whole"));
                    }
                }
            }
        }
    }

    fn leftovers(&self) -> Option<String> {
        let parent = self.path.parent().expect("the destination lies in a folder");
        let beside = std::fs::read_dir(parent).expect("the folder can be listed").flatten();
        for entry in beside {
            let name = entry.file_name().to_string_lossy().into_owned();
            // A replaced folder keeps its fence beside itself.
            let fence =
                |path: &Path| visible_names(path).iter().all(|name| name.starts_with("fence-"));
            if name == "_weir-out" && fence(&entry.path()) {
                continue;
            }
            if !["data", "disk", "out", "pipeline.yaml", ".weir"].contains(&name.as_str()) {
                return Some(entry.path().display().to_string());
            }
        }
        let staging = self.path.join("_weir/staging");
        let left = std::fs::read_dir(&staging).ok()?.next()?;
        Some(left.expect("the folder can be listed").path().display().to_string())
    }
}

pub(crate) fn sqlite(folder: &Path, mode: &str, commit: &str) -> Box<dyn Target> {
    sqlite_at(folder, "out.db", mode, commit)
}

pub(crate) fn sqlite_at(folder: &Path, path: &str, mode: &str, commit: &str) -> Box<dyn Target> {
    Box::new(Sqlite {
        relative: path.to_owned(),
        path: folder.join(path),
        mode: mode.to_owned(),
        commit: commit.to_owned(),
    })
}

struct Sqlite {
    relative: String,
    path: PathBuf,
    mode: String,
    commit: String,
}

fn table_yaml(mode: &str, commit: &str, batch_rows: i64) -> String {
    let key = if mode == "upsert" { "    key: [id]\n" } else { "" };
    format!("    mode: {mode}\n    commit: {commit}\n    batch_rows: {batch_rows}\n{key}")
}

/// A table that is not there yet shows no row.
fn rows_if_any<Row>(answer: sqlx::Result<Vec<Row>>) -> Vec<Row> {
    match answer {
        Ok(rows) => rows,
        Err(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| code == "42P01")
                || error.message().contains("no such table") =>
        {
            Vec::new()
        }
        Err(error) => panic!("the target cannot be read: {error}"),
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime starts")
        .block_on(future)
}

impl Target for Sqlite {
    fn yaml(&self, batch_rows: i64) -> String {
        format!(
            "    type: sqlite\n    path: {}\n    table: target\n{}",
            self.relative,
            table_yaml(&self.mode, &self.commit, batch_rows)
        )
    }

    fn reset(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let path = format!("{}{suffix}", self.path.display());
            match std::fs::remove_file(&path) {
                // The last one who closes the database removes the log beside it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.expect("the destination can be removed"),
            }
        }
    }

    fn read(&self, checker: &mut Checker) {
        block_on(async {
            let mut connection =
                sqlx::SqliteConnection::connect(&format!("sqlite://{}", self.path.display()))
                    .await
                    .expect("the database opens");
            let query = sqlx::query("SELECT id, grp, amount, name FROM target");
            let rows = rows_if_any(query.fetch_all(&mut connection).await);
            for row in rows {
                checker.add(row.get(0), row.get(1), row.get(2), row.get(3));
            }
        });
    }

    fn leftovers(&self) -> Option<String> {
        block_on(async {
            let mut connection =
                sqlx::SqliteConnection::connect(&format!("sqlite://{}", self.path.display()))
                    .await
                    .expect("the database opens");
            sqlx::query_scalar(
                "SELECT name FROM sqlite_master WHERE type = 'table'
                 AND name NOT IN ('target', '_weir_ledger', '_weir_fence', '_weir_attempts')",
            )
            .fetch_optional(&mut connection)
            .await
            .expect("the catalogue can be read")
        })
    }
}

/// One server for all tests of this binary; each test has a database of its own.
fn server() -> &'static PostgresServer {
    PostgresServer::shared()
}

pub(crate) fn server_port() -> u16 {
    server().port()
}

/// The URL of a new, empty database on the tests' server.
pub(crate) fn database(name: &str) -> String {
    execute(&server().url(), &format!("CREATE DATABASE {name}"));
    server().database_url(name)
}

/// Runs statements.
pub(crate) fn execute(url: &str, statements: &str) {
    block_on(async {
        let mut connection = sqlx::PgConnection::connect(url).await.expect("the server answers");
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned()))
            .execute(&mut connection)
            .await
            .expect("the statements are right");
    });
}

/// A session that has run a statement, and holds what that has taken until it is dropped.
pub(crate) struct Held {
    _session: sqlx::PgConnection,
    /// Dropped last: the session needs it.
    _runtime: tokio::runtime::Runtime,
}

pub(crate) fn hold(url: &str, statement: &str) -> Held {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let session = runtime.block_on(async {
        let mut session = sqlx::PgConnection::connect(url).await.expect("the server answers");
        let query = sqlx::query(sqlx::AssertSqlSafe(statement.to_owned()));
        query.execute(&mut session).await.expect("the statement is right");
        session
    });
    Held { _session: session, _runtime: runtime }
}

/// The first column of a query, as text.
pub(crate) fn rows(url: &str, query: &str) -> Vec<String> {
    block_on(async {
        let mut connection = sqlx::PgConnection::connect(url).await.expect("the server answers");
        sqlx::query_scalar(sqlx::AssertSqlSafe(query.to_owned()))
            .fetch_all(&mut connection)
            .await
            .expect("the query is right")
    })
}

/// A hash of each row of a table; none while there is no table.
pub(crate) fn row_hashes(url: &str, table: &str) -> Rows {
    let query = format!("SELECT hashtextextended(t::text, 0) FROM {table} t");
    Rows::new(numbers(url, &query))
}

/// The first column of a query; nothing if the table is not there.
pub(crate) fn numbers(url: &str, query: &str) -> Vec<i64> {
    block_on(async {
        let mut connection = sqlx::PgConnection::connect(url).await.expect("the server answers");
        let query = sqlx::query(sqlx::AssertSqlSafe(query.to_owned()));
        let rows = rows_if_any(query.fetch_all(&mut connection).await);
        rows.iter().map(|row| row.get(0)).collect()
    })
}

/// The batches of a run that a database with one target has booked.
pub(crate) fn booked(url: &str, run: &str) -> Vec<Booked> {
    let query = format!(
        "SELECT slice::bigint, sequence, rows FROM _weir_ledger WHERE run = '{run}' AND slice >= 0"
    );
    let number = |row: &sqlx::postgres::PgRow, index| row.get::<i64, _>(index).cast_unsigned();
    block_on(async {
        let mut connection = sqlx::PgConnection::connect(url).await.expect("the server answers");
        let rows = sqlx::query(sqlx::AssertSqlSafe(query)).fetch_all(&mut connection).await;
        (rows_if_any(rows).iter())
            .map(|row| Booked {
                slice: u32::try_from(number(row, 0)).expect("slices are few"),
                sequence: number(row, 1),
                rows: number(row, 2),
            })
            .collect()
    })
}

pub(crate) fn postgres(mode: &str, commit: &str) -> Box<dyn Target> {
    postgres_named(&format!("kill_{mode}_{commit}"), mode, commit)
}

/// In a new database of that name.
pub(crate) fn postgres_named(name: &str, mode: &str, commit: &str) -> Box<dyn Target> {
    postgres_at(&database(name), mode, commit)
}

/// In a database that is there.
pub(crate) fn postgres_at(url: &str, mode: &str, commit: &str) -> Box<dyn Target> {
    Box::new(Postgres { url: url.to_owned(), mode: mode.to_owned(), commit: commit.to_owned() })
}

/// A database whose tables lie in a folder of their own (see [`give_to_postgres`]). On a server of its
/// own: one whose disk goes away can make no checkpoint any more.
pub(crate) fn postgres_in(
    server: &PostgresServer,
    mode: &str,
    commit: &str,
    folder: &Path,
) -> Box<dyn Target> {
    let url = server.url();
    execute(&url, &format!("CREATE TABLESPACE small LOCATION '{}'", folder.display()));
    execute(&url, "CREATE DATABASE small");
    let url = server.database_url("small");
    // Only the tables go there: the catalogue would not fit.
    execute(&url, "ALTER DATABASE small SET default_tablespace = 'small'");
    Box::new(Postgres { url, mode: mode.to_owned(), commit: commit.to_owned() })
}

/// Lets the server's user write into a folder of the test's.
pub(crate) fn give_to_postgres(folder: &Path) {
    let status = std::process::Command::new("chown").arg("postgres:").arg(folder).status();
    assert!(status.is_ok_and(|status| status.success()), "chown needs root");
}

struct Postgres {
    url: String,
    mode: String,
    commit: String,
}

impl Postgres {
    async fn connect(&self) -> sqlx::PgConnection {
        sqlx::PgConnection::connect(&self.url).await.expect("the server answers")
    }
}

impl Target for Postgres {
    fn yaml(&self, batch_rows: i64) -> String {
        format!(
            "    type: postgres\n    url: \"{}\"\n    table: public.target\n{}",
            self.url,
            table_yaml(&self.mode, &self.commit, batch_rows)
        )
    }

    fn reset(&self) {
        block_on(async {
            sqlx::query("DROP TABLE IF EXISTS public.target")
                .execute(&mut self.connect().await)
                .await
                .expect("the table can be dropped");
        });
    }

    fn read(&self, checker: &mut Checker) {
        block_on(async {
            let query = sqlx::query("SELECT id, grp, amount, name FROM public.target");
            let rows = rows_if_any(query.fetch_all(&mut self.connect().await).await);
            for row in rows {
                checker.add(row.get(0), row.get(1), row.get(2), row.get(3));
            }
        });
    }

    fn leftovers(&self) -> Option<String> {
        block_on(async {
            sqlx::query_scalar(
                "SELECT n.nspname || '.' || c.relname FROM pg_class c
                 JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'p')
                   AND n.nspname NOT IN ('pg_catalog', 'information_schema')
                   AND c.relname NOT IN ('target', '_weir_ledger', '_weir_fence', '_weir_attempts')",
            )
            .fetch_optional(&mut self.connect().await)
            .await
            .expect("the catalogue can be read")
        })
    }
}

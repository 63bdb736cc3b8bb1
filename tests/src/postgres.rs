//! A real PostgreSQL 15 for tests: its own data directory, a free loopback port, gone with the test.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::Connection as _;

const BINARIES: &str = "/usr/lib/postgresql/15/bin";
const FOLDER_PREFIX: &str = "weir-postgres-";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The role `guarded` must give this password; all others are trusted.
pub const GUARDED_PASSWORD: &str = "correct-horse-battery";

/// How a server is run.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Survive a crash of the machine. Off by default: tests are faster, and killing the server does
    /// not lose what it has handed to the kernel.
    pub fsync: bool,
    /// Further settings: `("max_connections", "20")`.
    pub settings: Vec<(String, String)>,
    /// Where the data directory is made; default: the folder for temporary files.
    pub folder: Option<PathBuf>,
}

/// A running (or stopped) server. Stopped and removed when dropped; if the test's process dies, the
/// kernel kills the server.
#[derive(Debug)]
pub struct PostgresServer {
    directory: tempfile::TempDir,
    port: u16,
    options: PostgresOptions,
    postmaster: Mutex<Option<Child>>,
}

impl PostgresServer {
    /// Starts a server with default options.
    ///
    /// Panics when PostgreSQL 15 is not installed, saying how to install it.
    pub fn start() -> Self {
        Self::start_with(PostgresOptions::default())
    }

    pub fn start_with(options: PostgresOptions) -> Self {
        assert!(
            Path::new(BINARIES).join("postgres").is_file(),
            "PostgreSQL 15 is missing ({BINARIES}/postgres): run `apt-get install postgresql-15`"
        );
        let mut builder = tempfile::Builder::new();
        builder.prefix(FOLDER_PREFIX);
        remove_stale_folders();
        let directory = match &options.folder {
            Some(folder) => builder.tempdir_in(folder),
            None => builder.tempdir(),
        }
        .expect("a temporary folder can be made");
        if rustix::process::geteuid().is_root() {
            let status = Command::new("chown")
                .arg("postgres:postgres")
                .arg(directory.path())
                .status()
                .expect("chown is part of every system");
            assert!(status.success(), "the user postgres of package postgresql-15 is missing");
        }
        let output = as_server_user("initdb", directory.path())
            .args(["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8"])
            .args(["--locale=C.UTF-8", "--pgdata"])
            .arg(directory.path().join("data"))
            .output()
            .expect("initdb can be started");
        assert!(
            output.status.success(),
            "initdb failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::write(
            directory.path().join("data/pg_hba.conf"),
            "host all guarded 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n\
             local all all trust\n",
        )
        .expect("the server's files can be written");
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .expect("a port is free")
            .port();
        let server = Self { directory, port, options, postmaster: Mutex::new(None) };
        server.resume();
        server
    }

    /// One server for all tests of a process; each test makes a database of its own.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<PostgresServer> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Of the database `postgres`, as its superuser.
    pub fn url(&self) -> String {
        self.database_url("postgres")
    }

    pub fn database_url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes a database and returns its URL.
    pub async fn create_database(&self, name: &str) -> String {
        let mut connection = connect(&self.url()).await;
        execute(&mut connection, &format!("CREATE DATABASE \"{name}\"")).await;
        self.database_url(name)
    }

    /// Where the server keeps its files.
    pub fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a stopped server again, on its old port and data.
    pub fn resume(&self) {
        let mut command = as_server_user("postgres", self.directory.path());
        command.arg("-D").arg(self.directory.path().join("data"));
        command.arg("-p").arg(self.port.to_string()).arg("-k").arg(self.directory.path());
        let fsync = if self.options.fsync { "on" } else { "off" };
        for setting in [
            "listen_addresses=127.0.0.1",
            &format!("fsync={fsync}"),
            &format!("full_page_writes={fsync}"),
            "shared_buffers=64MB",
            "max_wal_size=1GB",
        ] {
            command.arg("-c").arg(setting);
        }
        for (name, value) in &self.options.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the server's log can be written");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = spawn(command);
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.is_ready() {
            let ended = child.try_wait().expect("a child can be waited for");
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "PostgreSQL did not start: {}",
                std::fs::read_to_string(self.log_path()).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        *self.postmaster.lock().expect("no holder panics") = Some(child);
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn is_ready(&self) -> bool {
        Command::new(Path::new(BINARIES).join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Stops the server as an administrator does: sessions are ended, data is written.
    pub fn stop(&self) {
        self.end(Signal::INT);
    }

    /// Stops it as a crash does: nothing is written, the next start recovers.
    pub fn crash(&self) {
        self.end(Signal::QUIT);
    }

    /// [`Self::crash`] and [`Self::resume`].
    pub fn restart_after_crash(&self) {
        self.crash();
        self.resume();
    }

    fn end(&self, signal: Signal) {
        let Some(mut child) = self.postmaster.lock().expect("no holder panics").take() else {
            return;
        };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.crash();
    }
}

/// A shared server is killed with its process, which then cannot remove the folder: the next one does.
fn remove_stale_folders() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX) {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(entry.path().join("data/postmaster.pid")) else {
            continue;
        };
        let pid = text.lines().next().and_then(|line| line.parse::<i32>().ok());
        // A negative number is that of `initdb`, which is at work.
        let pid = pid.filter(|pid| *pid > 0).and_then(Pid::from_raw);
        let is_running = pid.is_none_or(|pid| {
            !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
        });
        if !is_running {
            // Not ours to remove, perhaps; it does no harm.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A program of PostgreSQL that ends when its parent does; as the user postgres if we are root,
/// which the server refuses to be.
fn as_server_user(program: &str, folder: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "SIGKILL"]);
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.arg(Path::new(BINARIES).join(program)).current_dir(folder).env("HOME", folder);
    command
}

/// Starts a child from a thread that never ends: the kernel kills the child when the *thread* that
/// started it is gone, and tests run in threads of their own.
pub(crate) fn spawn(command: Command) -> Child {
    type Request = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                // The asking test may have panicked.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let (reply, answer) = mpsc::channel();
    spawner
        .lock()
        .expect("no holder panics")
        .send((command, reply))
        .expect("the spawner never ends");
    answer
        .recv()
        .expect("the spawner answers")
        .expect("setpriv (package util-linux) can be started")
}

/// Connects, or panics.
pub async fn connect(url: &str) -> sqlx::PgConnection {
    sqlx::PgConnection::connect(url).await.expect("the server answers")
}

/// Runs statements, or panics with what the server says.
pub async fn execute(connection: &mut sqlx::PgConnection, sql: &str) {
    if let Err(error) = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(connection).await
    {
        panic!("{sql}: {error}");
    }
}

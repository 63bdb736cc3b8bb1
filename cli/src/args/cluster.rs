//! The grammar of what concerns a cluster: its processes, and how it is found.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use weir_coordinator::cluster::{ClientLimits, KeptRuns};
use weir_executor::storage::StorageAddress;

use super::{SecurityArgs, TokenCommand};

/// Where a cluster is asked, in place of a state directory on this machine.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ClusterArgs {
    /// Ask the cluster that was started with `weir cluster up --dir DIR`.
    #[arg(long, value_name = "DIR", conflicts_with = "coordinators")]
    pub dir: Option<PathBuf>,
    /// Ask the cluster that has a coordinator at this URL. May be repeated. Default: those of the
    /// environment variable `WEIR_COORDINATOR`, separated by commas.
    #[arg(long = "coordinator", value_name = "URL")]
    pub coordinators: Vec<String>,
    /// The token that says who asks is in this file. Default: that of `--dir`, or else the
    /// environment variable `WEIR_TOKEN`.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The certificate of the cluster's authority, PEM. Default: the file that the environment
    /// variable `WEIR_TLS_AUTHORITY` names. `--dir` has its own.
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    pub tls_authority: Option<PathBuf>,
}

impl ClusterArgs {
    pub(crate) fn is_named(&self) -> bool {
        self.dir.is_some() || !self.coordinators.is_empty()
    }
}

#[derive(Debug, Args)]
pub(crate) struct CoordinatorArgs {
    /// This coordinator's number among the members.
    #[arg(long, value_name = "N")]
    pub id: u64,
    /// Where it listens.
    #[arg(long, value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// How the others reach it.
    #[arg(long, value_name = "URL")]
    pub url: String,
    /// The first members, itself included.
    #[arg(long, value_name = "N=URL,…", value_parser = parse_members, required_unless_present = "join")]
    pub members: Option<Members>,
    /// Wait until a cluster takes it in (`weir cluster add-coordinator`), in place of `--members`.
    #[arg(long, conflicts_with = "members")]
    pub join: bool,
    /// Its own folder: its copy of the ledger.
    #[arg(long)]
    pub dir: PathBuf,
    /// What all processes of the cluster share: a folder, or s3://BUCKET/PREFIX (az://, gs://) with
    /// credentials from the environment.
    #[arg(long, value_name = "DIR|URL")]
    pub storage: StorageAddress,
    /// Requests a second that the holder of one token may make, on the average.
    #[arg(long, value_name = "N", default_value_t = ClientLimits::default().requests_per_second)]
    pub requests_per_second: NonZeroU32,
    /// Calls of one token that may go on at once; watching something is one.
    #[arg(long, value_name = "N", default_value_t = ClientLimits::default().calls_at_once)]
    pub calls_at_once: NonZeroUsize,
    /// Runs that are over and stay in the ledger, which is in the memory of every coordinator; older ones are in the storage
    /// only.
    #[arg(long, value_name = "N", default_value_t = KeptRuns::default().runs)]
    pub kept_runs: usize,
    /// Tasks that these runs have together.
    #[arg(long, value_name = "N", default_value_t = KeptRuns::default().tasks)]
    pub kept_tasks: usize,
    /// A token of an admin, to make others with. Default: the environment variable
    /// `WEIR_ADMIN_TOKEN`; without one only those count that the cluster knows.
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub admin_token_file: Option<PathBuf>,
    #[command(flatten)]
    pub security: SecurityArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExecutorArgs {
    /// A name that no other executor of the cluster has.
    #[arg(long, value_name = "NAME")]
    pub id: String,
    /// The coordinators; the leader is found among them.
    #[arg(long, value_name = "URL,…", value_delimiter = ',', required = true)]
    pub coordinators: Vec<String>,
    /// Its own folder: what operators spill, and rows that it keeps for other executors.
    #[arg(long)]
    pub dir: PathBuf,
    /// Where other executors read what it keeps.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// How they reach it. Default: the address that it listens on.
    #[arg(long)]
    pub url: Option<String>,
    /// What all processes of the cluster share: a folder, or s3://BUCKET/PREFIX (az://, gs://) with
    /// credentials from the environment.
    #[arg(long, value_name = "DIR|URL")]
    pub storage: StorageAddress,
    /// Tasks at once. Default: `--parallelism`, or else the number of cores.
    #[arg(long, value_name = "N")]
    pub slots: Option<NonZeroUsize>,
    /// Of rows between stages. Not compressing them takes less of the processor where files and other
    /// executors are on this machine.
    #[arg(long, value_enum, default_value_t)]
    pub exchange_compression: Compression,
    #[command(flatten)]
    pub security: SecurityArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Compression {
    #[default]
    Lz4,
    None,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Start a cluster's processes on this machine, and stop them on Ctrl-C.
    Up(UpArgs),
    /// Stop the processes of a cluster that `up` has started.
    Down {
        /// The cluster's folder.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Start one process again, e.g. `executor-2`, that has ended.
    Start {
        /// `coordinator-N` or `executor-N`.
        name: String,
        /// The cluster's folder.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Ask every coordinator for its part, and the leader for the executors.
    Status {
        /// Also the hash of each coordinator's facts, which takes time when the ledger is large.
        #[arg(long)]
        hash: bool,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// List the coordinators, and how far each one's copy of the ledger is.
    Members {
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Add a coordinator. With `--dir`, one is started on this machine; otherwise one that was started with
    /// `weir coordinator --join` is taken in.
    AddCoordinator {
        /// Its number, which no coordinator of the cluster has had. Not with `--dir`.
        #[arg(long, value_name = "N", conflicts_with = "dir", requires = "url")]
        id: Option<u64>,
        /// How the others reach it, as it was told itself. Not with `--dir`.
        #[arg(long, conflicts_with = "dir", requires = "id")]
        url: Option<String>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Take a coordinator out for good. With `--dir` its process is stopped, too.
    RemoveCoordinator {
        /// `coordinator-N`, or its number.
        name: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Let an executor end what it has, and leave. Its process then ends with exit code 0.
    Drain {
        /// The executor's name, e.g. `executor-2`.
        name: String,
        /// Return at once; `weir cluster status` shows whether it has left.
        #[arg(long)]
        detach: bool,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Let an executor take tasks again. One that has left is to be started.
    Undrain {
        /// The executor's name, e.g. `executor-2`.
        name: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show who has changed what: the newest 10,000 changes that clients have made, or wanted to.
    AuditLog {
        /// The newest so many.
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Manage the tokens that clients show.
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Everything the cluster writes by itself, with the logs and `cluster.json`. One that has been
    /// used goes on from the state that it holds.
    #[arg(long)]
    pub dir: PathBuf,
    /// Default: 3, or as many as there were.
    #[arg(long, value_name = "N")]
    pub coordinators: Option<NonZeroU32>,
    /// Default: 3, or as many as there were.
    #[arg(long, value_name = "N")]
    pub executors: Option<NonZeroU32>,
    /// Tasks at once, of each executor. Default: the environment variable `WEIR_PARALLELISM`, or else the
    /// number of cores; `--parallelism` is not handed on.
    #[arg(long, value_name = "N")]
    pub slots: Option<NonZeroUsize>,
    /// What all processes share: a folder, or s3://BUCKET/PREFIX (az://, gs://) with credentials from
    /// the environment. Default: a folder in `--dir`.
    #[arg(long, value_name = "DIR|URL")]
    pub storage: Option<StorageAddress>,
    /// Return once the cluster is up. `weir cluster down` stops it.
    #[arg(long)]
    pub detach: bool,
    /// No TLS and no tokens: whoever is on this machine may do anything.
    #[arg(long)]
    pub insecure: bool,
}

/// URLs of coordinators, by number.
pub(crate) type Members = BTreeMap<u64, String>;

/// `1=http://127.0.0.1:4001,2=http://127.0.0.1:4002`.
fn parse_members(text: &str) -> Result<Members, String> {
    let mut members = Members::new();
    for member in text.split(',') {
        let parsed = member.split_once('=').and_then(|(id, url)| Some((id.parse().ok()?, url)));
        let (id, url) = parsed.ok_or_else(|| format!("write NUMBER=URL, not `{member}`"))?;
        if members.insert(id, url.to_owned()).is_some() {
            return Err(format!("{id} is there twice"));
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_numbered_urls() {
        let members = parse_members("1=http://a:1,2=http://b:2").expect("it is right");
        assert_eq!(members[&2], "http://b:2");
        assert_eq!(parse_members("1=a,1=b"), Err("1 is there twice".to_owned()));
        assert!(parse_members("http://a:1").is_err_and(|error| error.contains("NUMBER=URL")));
    }
}

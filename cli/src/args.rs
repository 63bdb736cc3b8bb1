//! The grammar of the command line. Meaning lives in `commands/`.

mod backfill;
mod cluster;
mod pipelines;
mod security;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use backfill::{BackfillArgs, BackfillCommand, WindowStatus};
pub(crate) use cluster::{
    ClusterArgs, ClusterCommand, Compression, CoordinatorArgs, ExecutorArgs, UpArgs,
};
pub(crate) use pipelines::{PipelineCommand, SubmitArgs};
pub(crate) use security::{SecurityArgs, TokenCommand, TokenRole};

/// Weir runs ETL pipelines: one YAML file in, exactly the right rows out, whatever is killed.
#[derive(Debug, Parser)]
#[command(name = "weir", version, about, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// State folder: ledgers, checkpoints, dead letters. Default: `.weir` in the nearest folder above
    /// that has `.weir` or `weir.yaml`, else in the one with `.git`, else beside the pipeline file.
    #[arg(long, global = true, value_name = "DIR", env = "WEIR_STATE")]
    pub state: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Human)]
    pub output: Output,
    /// Bound on operators' memory (sorts, joins, aggregates); beyond it they spill to the state
    /// folder. Units: B, KB, MB, GB, powers of 1024.
    #[arg(long, global = true, value_name = "SIZE", default_value = "512MB", value_parser = parse_bytes, env = "WEIR_MEMORY")]
    pub memory: u64,
    /// Tasks at once. Default: the number of cores.
    #[arg(long, global = true, value_name = "N", env = "WEIR_PARALLELISM")]
    pub parallelism: Option<NonZeroUsize>,
    /// `NAME=VALUE` lines for `{{ secret.NAME }}`. The environment variable `WEIR_SECRET_NAME`
    /// comes first.
    #[arg(long, global = true, value_name = "FILE", env = "WEIR_SECRETS_FILE")]
    pub secrets_file: Option<PathBuf>,
    /// Log filter for standard error, e.g. `info` or `weir_executor=trace`. Default: `off`, and
    /// `info` for a cluster's processes; a failure is printed anyway.
    #[arg(long, global = true, value_name = "FILTER", env = "WEIR_LOG")]
    pub log: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Human,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a pipeline here and now; resumes it if it was interrupted. `run show ID` shows one run.
    Run(RunArgs),
    /// Report every mistake of pipeline files, with line and column.
    Validate {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print what would run: stages, splits, pushdowns, commit protocol.
    Plan(PlanArgs),
    /// Print the first rows of any node, or of `NODE.errors`. Writes nothing.
    Preview {
        file: PathBuf,
        node: String,
        #[arg(long, default_value_t = 10)]
        limit: usize,
        #[command(flatten)]
        values: Values,
    },
    /// Run the tests inside pipeline files, without touching any system.
    Test {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// List runs, latest first.
    Runs {
        #[arg(long)]
        pipeline: Option<String>,
        #[arg(long, default_value_t = 50)]
        limit: usize,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Print a run's log.
    Logs {
        id: String,
        /// Go on printing until the run ends.
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Go on with an interrupted or failed run, with the plan that it was started with.
    Retry {
        id: String,
        /// On a cluster: show the run until it ends, and end as it does. Here that is done anyway.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Prove a run: add up its row accounts and compare the ledger with the targets. On a cluster also a
    /// backfill, with all of its finished windows.
    Audit {
        id: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show, set or reset the watermarks of incremental sources.
    #[command(subcommand)]
    State(StateCommand),
    /// List, show or replay rejected rows.
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Try a connection.
    #[command(subcommand)]
    Connection(ConnectionCommand),
    /// Register a pipeline with a cluster, and run it there with `--run`.
    // `--version` is that of the pipeline.
    #[command(disable_version_flag = true)]
    Submit(SubmitArgs),
    /// List the pipelines that are registered with a cluster.
    Pipelines {
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Look at a pipeline that is registered with a cluster, or delete it.
    #[command(subcommand)]
    Pipeline(PipelineCommand),
    /// Stop a run on a cluster at its next commits. `weir retry` goes on with it.
    Cancel {
        id: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// List the tasks of a run on a cluster: what has been tried, where, and whose work counts.
    Tasks {
        id: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Load a pipeline window by window on a cluster.
    #[command(subcommand)]
    Backfill(BackfillCommand),
    /// List backfills, latest first.
    Backfills {
        #[arg(long)]
        pipeline: Option<String>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Start, stop and look at a cluster's processes.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Be a coordinator of a cluster.
    Coordinator(CoordinatorArgs),
    /// Be an executor of a cluster.
    Executor(ExecutorArgs),
    /// Print the JSON Schema of the pipeline file, for editors.
    Schema,
    /// Write a small pipeline, with data, into a new folder.
    Init { dir: PathBuf },
    /// Print a shell's completion script.
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The pipeline file, or the word `show`.
    pub file: PathBuf,
    /// With `show`: the run's id, or its beginning.
    pub id: Option<String>,
    #[command(flatten)]
    pub values: Values,
    /// Abandon an unfinished run of this pipeline instead of resuming it.
    #[arg(long)]
    pub fresh: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    pub file: PathBuf,
    #[command(flatten)]
    pub values: Values,
}

/// Values for templates.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Values {
    /// A parameter: `--param country=DE`. May be repeated.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse_param)]
    pub params: Vec<(String, String)>,
    /// `window.start`: RFC 3339, or a date: its midnight in the pipeline's `timezone`.
    #[arg(long, value_name = "TIME", requires = "to")]
    pub from: Option<String>,
    /// `window.end`, exclusive.
    #[arg(long, value_name = "TIME", requires = "from")]
    pub to: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// Print the watermarks of a pipeline.
    Show {
        pipeline: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Set the watermark of a source.
    Set {
        pipeline: String,
        source: String,
        value: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Forget the watermark of a source, or of all sources.
    Reset {
        pipeline: String,
        source: Option<String>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List the rejected rows of a run.
    List {
        run: String,
        #[arg(long)]
        node: Option<String>,
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Show one rejected row with everything that is known about it.
    Show {
        id: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Send the rejected rows of a run through the pipeline again, as they are or mended.
    Replay {
        run: String,
        /// The pipeline file, as mended. Default: the file the run was started from.
        #[arg(long)]
        file: Option<PathBuf>,
        /// The node whose rejected rows are replayed. Default: all.
        #[arg(long)]
        node: Option<String>,
        /// JSON lines of mended rows, in place of the rejected ones. Needs --node.
        #[arg(long, requires = "node")]
        rows: Option<PathBuf>,
        /// On a cluster: show the run until it ends, and end as it does. Here that is done anyway.
        #[arg(long)]
        wait: bool,
        /// On a cluster: what this command is called; given again, nothing is loaded twice. Default: a new id.
        #[arg(long)]
        request_id: Option<String>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConnectionCommand {
    /// Connect, and say what answered.
    Test {
        /// A key under `connections`, or a node that carries its connection itself.
        name: String,
        /// Where the connection is written. Default: `weir.yaml`.
        #[arg(long, default_value = "weir.yaml")]
        file: PathBuf,
    },
}

fn parse_param(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("write NAME=VALUE, not `{text}`"))
}

/// `512MB`, `2GB`, `1048576`. Powers of 1024.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let number: u64 =
        trimmed[..digits].parse().map_err(|_| format!("write a size like 512MB, not `{text}`"))?;
    let factor = match trimmed[digits..].trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1_u64 << 30,
        unit => return Err(format!("unknown unit `{unit}`: use B, KB, MB or GB")),
    };
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse_bytes("512MB"), Ok(512 << 20));
        assert_eq!(parse_bytes("7"), Ok(7));
        assert!(parse_bytes("12 parsecs").is_err());
        assert!(parse_bytes("99999999999999999999GB").is_err());
    }
}

//! The grammar of backfills.

use clap::{Args, Subcommand, ValueEnum};

use super::{ClusterArgs, parse_param};

#[derive(Debug, Subcommand)]
pub(crate) enum BackfillCommand {
    /// Load a pipeline window by window: one run for each step from `--from` to `--to`.
    // `--version` is that of the pipeline.
    #[command(disable_version_flag = true)]
    Start(BackfillArgs),
    /// Print a backfill: its progress, its rows, its first error.
    Show {
        id: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// List the windows of a backfill, each with its run.
    Windows {
        id: String,
        #[arg(long, value_enum)]
        status: Option<WindowStatus>,
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Begin no more windows; those at work come to their end.
    Pause {
        id: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Go on with a paused or cancelled backfill.
    Resume {
        id: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Stop the windows at work at their next commits, and begin no more. `resume` goes on.
    Cancel {
        id: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Of two backfills the one with the greater priority goes first.
    Prioritise {
        id: String,
        #[arg(allow_negative_numbers = true)]
        priority: i32,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Load failed windows again, behind what they have committed.
    Retry {
        id: String,
        /// A failed window's number. May be repeated. Default: all that have failed.
        #[arg(long = "window", value_name = "N")]
        windows: Vec<u32>,
        /// Begin them anew. What they have committed stays in the targets.
        #[arg(long)]
        fresh: bool,
        /// Show the backfill until it ends, and end as it does.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BackfillArgs {
    /// The pipeline file. What it reads depends on `window.start` and `window.end`.
    #[arg(required_unless_present = "pipeline", conflicts_with = "pipeline")]
    pub file: Option<std::path::PathBuf>,
    /// Load a pipeline that is registered already, instead of a file.
    #[arg(long, value_name = "NAME")]
    pub pipeline: Option<String>,
    /// Of the registered pipeline. Default: the newest.
    #[arg(long, value_name = "N", requires = "pipeline")]
    pub version: Option<u32>,
    /// Where the first window starts: RFC 3339, or a date: its midnight in the pipeline's `timezone`.
    #[arg(long, value_name = "TIME")]
    pub from: String,
    /// Where the last window ends, exclusive.
    #[arg(long, value_name = "TIME")]
    pub to: String,
    /// How long a window is: 15m, 1h, 1d, 1w, 1mo. Days, weeks and months are those of the pipeline's
    /// `timezone`.
    #[arg(long)]
    pub step: String,
    /// Windows at once, at most 256.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub parallel: u32,
    /// Of two backfills the one with the greater priority goes first.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub priority: i32,
    /// A parameter: `--param country=DE`. May be repeated.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse_param)]
    pub params: Vec<(String, String)>,
    /// Show the backfill until it ends, and end as it does.
    #[arg(long)]
    pub wait: bool,
    /// The same id begins no second backfill. Default: a new one, for the command's own repetitions.
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WindowStatus {
    Pending,
    Running,
    Finished,
    Failed,
}

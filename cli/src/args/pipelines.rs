//! The grammar of registered pipelines, and of what starts a run of one.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ClusterArgs, Values};

#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// The pipeline file. It becomes the newest version of its pipeline.
    #[arg(required_unless_present = "pipeline", conflicts_with = "pipeline")]
    pub file: Option<PathBuf>,
    /// Run a pipeline that is registered already, instead of a file.
    #[arg(long, value_name = "NAME")]
    pub pipeline: Option<String>,
    /// Of the registered pipeline. Default: the newest.
    #[arg(long, value_name = "N", requires = "pipeline")]
    pub version: Option<u32>,
    /// Start a run of it now.
    #[arg(long)]
    pub run: bool,
    /// As `--run`; show the run until it ends, and end as it does.
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub values: Values,
    /// Abandon an unfinished run of this pipeline instead of resuming it.
    #[arg(long)]
    pub fresh: bool,
    /// The same id registers nothing and starts no run a second time. Default: a new one, for the command's
    /// own repetitions.
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PipelineCommand {
    /// Print a pipeline's file as it was registered.
    // `--version` is that of the pipeline.
    #[command(disable_version_flag = true)]
    Show {
        name: String,
        /// Default: the newest.
        #[arg(long, value_name = "N")]
        version: Option<u32>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// List the versions of a pipeline, latest first.
    Versions {
        name: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Forget what is registered under a name. Its runs and watermarks stay.
    Delete {
        name: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

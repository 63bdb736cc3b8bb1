//! The grammar of who asks, and how those who are asked are known.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use weir_executor::tls::{IdentityFiles, TlsFiles};

use super::ClusterArgs;

/// Of a process of a cluster: with certificates, or without on this machine.
#[derive(Clone, Debug, Args)]
pub(crate) struct SecurityArgs {
    /// The certificate of the cluster's authority, PEM. It has signed the others; read again when it
    /// changes, as the other two.
    #[arg(long, value_name = "FILE", required_unless_present = "insecure")]
    pub tls_authority: Option<PathBuf>,
    /// The certificate of this process, PEM.
    #[arg(long, value_name = "FILE", required_unless_present = "insecure")]
    pub tls_certificate: Option<PathBuf>,
    /// The key of this process, PEM.
    #[arg(long, value_name = "FILE", required_unless_present = "insecure")]
    pub tls_key: Option<PathBuf>,
    /// No TLS and no tokens: whoever reaches a coordinator may do anything. On loopback addresses
    /// only.
    #[arg(long, conflicts_with_all = ["tls_authority", "tls_certificate", "tls_key"])]
    pub insecure: bool,
}

impl SecurityArgs {
    /// `None` with `--insecure`.
    pub(crate) fn files(&self) -> Option<TlsFiles> {
        let identity = IdentityFiles {
            certificate: self.tls_certificate.clone()?,
            key: self.tls_key.clone()?,
        };
        Some(TlsFiles { authority: self.tls_authority.clone()?, identity: Some(identity) })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it. It is shown this once.
    Create {
        /// 1 to 64 letters, digits, `-`, `_` or `.`: under it what the token does is logged.
        name: String,
        /// Each may do what those before it may.
        #[arg(long, value_enum)]
        role: TokenRole,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// List the tokens' names and roles.
    List {
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Make a token worthless, at once.
    Revoke {
        name: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenRole {
    /// Looks at runs, their rejected rows, and backfills.
    Viewer,
    /// Registers and deletes pipelines, starts and changes runs and backfills, sets watermarks.
    Operator,
    /// Manages tokens, coordinators and executors, and reads the audit log.
    Admin,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};

    fn parsed(security: &[&str]) -> Result<Command, String> {
        let line = ["weir", "executor", "--id", "a", "--coordinators", "https://a:1"];
        let folders = ["--dir", "d", "--storage", "s"];
        let line = [&line[..], &folders, security].concat();
        Cli::try_parse_from(line).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn a_process_has_certificates_or_says_that_it_is_insecure() {
        let all = ["--tls-authority", "a", "--tls-certificate", "c", "--tls-key", "k"];
        let Ok(Command::Executor(with)) = parsed(&all) else { panic!("it is right") };
        assert!(with.security.files().is_some());
        let Ok(Command::Executor(without)) = parsed(&["--insecure"]) else { panic!("it is right") };
        assert!(without.security.files().is_none());
        for wrong in [&[][..], &all[..2], &all[..4], &["--insecure", "--tls-key", "k"]] {
            let message = parsed(wrong).expect_err("neither or both");
            assert!(message.contains("--tls-"), "{message}");
        }
    }
}

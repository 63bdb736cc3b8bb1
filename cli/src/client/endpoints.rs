//! Where the coordinators are and how they are spoken to, from the command line, the environment or a
//! cluster's folder.

use std::path::{Path, PathBuf};

use super::Access;
use crate::args::ClusterArgs;
use crate::cluster_file::{self, ClusterFile};
use crate::failure::Failure;
use crate::token::Token;

const VARIABLE: &str = "WEIR_COORDINATOR";
const AUTHORITY: &str = "WEIR_TLS_AUTHORITY";

/// A cluster that was named.
#[derive(Debug)]
pub(crate) struct Endpoints {
    pub urls: Vec<String>,
    /// Of a cluster on this machine.
    pub file: Option<ClusterFile>,
    pub access: Access,
}

impl Endpoints {
    pub(crate) fn named(args: &ClusterArgs) -> Result<Option<Self>, Failure> {
        let found = match &args.dir {
            Some(dir) => Self::of_folder(dir, args)?,
            None => {
                let mut urls = args.coordinators.clone();
                if urls.is_empty() {
                    urls = split(&std::env::var(VARIABLE).unwrap_or_default());
                }
                if urls.is_empty() {
                    return Ok(None);
                }
                let authority = args.tls_authority.clone().or_else(|| {
                    std::env::var_os(AUTHORITY).filter(|file| !file.is_empty()).map(PathBuf::from)
                });
                let token = match &args.token_file {
                    Some(file) => Some(Token::from_file(file)?),
                    None => Token::from_environment()?,
                };
                Self { urls, file: None, access: Access::new(authority.as_deref(), token) }
            }
        };
        for url in &found.urls {
            found.access.check(url)?;
        }
        Ok(Some(found))
    }

    fn of_folder(dir: &Path, args: &ClusterArgs) -> Result<Self, Failure> {
        let file = ClusterFile::read(dir)?;
        let access = match &args.token_file {
            Some(token) if !file.is_insecure() => {
                let authority = cluster_file::authority(dir);
                Access::new(Some(&authority), Some(Token::from_file(token)?))
            }
            _ => Access::of_cluster(dir, &file)?,
        };
        Ok(Self { urls: file.urls(), file: Some(file), access })
    }

    pub(crate) fn required(args: &ClusterArgs) -> Result<Self, Failure> {
        Self::named(args)?.ok_or_else(|| {
            Failure::Usage(format!(
                "which cluster? Give --dir DIR (of `weir cluster up`) or --coordinator URL, or set {VARIABLE}"
            ))
        })
    }
}

fn split(urls: &str) -> Vec<String> {
    urls.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_holds_several() {
        assert_eq!(split(" http://a:1, http://b:2,"), ["http://a:1", "http://b:2"]);
        assert!(split("").is_empty());
    }
}

//! Where the coordinators are, from the command line, the environment or a cluster's folder.

use std::net::IpAddr;

use tonic::transport::Uri;

use crate::args::ClusterArgs;
use crate::cluster_file::ClusterFile;
use crate::failure::Failure;

const VARIABLE: &str = "WEIR_COORDINATOR";

/// A cluster that was named.
#[derive(Debug)]
pub(crate) struct Endpoints {
    pub urls: Vec<String>,
    /// Of a cluster on this machine.
    pub file: Option<ClusterFile>,
}

impl Endpoints {
    pub(crate) fn named(args: &ClusterArgs) -> Result<Option<Self>, Failure> {
        let (urls, file) = if let Some(dir) = &args.dir {
            let file = ClusterFile::read(dir)?;
            (file.urls(), Some(file))
        } else if !args.coordinators.is_empty() {
            (args.coordinators.clone(), None)
        } else {
            (split(&std::env::var(VARIABLE).unwrap_or_default()), None)
        };
        for url in &urls {
            refuse_others_than_loopback(url)?;
        }
        Ok((!urls.is_empty()).then_some(Self { urls, file }))
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

/// There is no TLS yet: whatever is said can be read by others on the way.
pub(crate) fn refuse_others_than_loopback(url: &str) -> Result<(), Failure> {
    let uri: Uri = url.parse().map_err(|error| {
        Failure::Usage(format!("`{url}` is not a URL like http://127.0.0.1:4001: {error}"))
    })?;
    let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return Err(Failure::Usage(format!(
            "`{url}` is not a URL like http://127.0.0.1:4001 (there is no TLS yet)"
        )));
    };
    if uri.port().is_none() {
        return Err(Failure::Usage(format!("`{url}` names no port")));
    }
    let is_loopback = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if is_loopback {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "`{url}` is on another machine: without TLS, which is not there yet, a cluster only uses \
         loopback addresses (127.0.0.1, [::1], localhost)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_taken() {
        for url in ["http://127.0.0.1:4001", "http://[::1]:4001", "http://localhost:4001"] {
            assert!(refuse_others_than_loopback(url).is_ok(), "{url}");
        }
        for (url, why) in [
            ("http://10.0.0.1:4001", "another machine"),
            ("http://localhost.example.com:4001", "another machine"),
            ("https://127.0.0.1:4001", "no TLS yet"),
            ("127.0.0.1:4001", "not a URL"),
            ("http://127.0.0.1", "no port"),
            ("", "not a URL"),
        ] {
            let error = refuse_others_than_loopback(url).expect_err(url);
            assert!(error.message().contains(why), "{}", error.message());
        }
    }

    #[test]
    fn the_variable_holds_several() {
        assert_eq!(split(" http://a:1, http://b:2,"), ["http://a:1", "http://b:2"]);
        assert!(split("").is_empty());
    }
}

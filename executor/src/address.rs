//! How a coordinator is called: with TLS, or without it on this machine only.

use std::net::IpAddr;

use tonic::transport::{Endpoint, Uri};

use crate::identity;
use crate::tls::TlsFiles;

/// A connection to a coordinator that is still to be made: whoever answers must show a coordinator's
/// certificate, and need not be named by his host. The files are read now: whoever asks again for each new
/// connection uses certificates that were renewed.
pub fn endpoint(url: &str, tls: Option<&TlsFiles>) -> Result<Endpoint, String> {
    endpoint_of(url, tls, Some(identity::COORDINATOR))
}

/// As [`endpoint`], to a node of any kind, whose certificate names its host.
pub fn node_endpoint(url: &str, tls: Option<&TlsFiles>) -> Result<Endpoint, String> {
    endpoint_of(url, tls, None)
}

fn endpoint_of(url: &str, tls: Option<&TlsFiles>, name: Option<&str>) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from(check(url, tls.is_some())?).tcp_nodelay(true);
    let Some(files) = tls else { return Ok(endpoint) };
    let mut config = files.client().map_err(|error| error.to_string())?;
    if let Some(name) = name {
        config = config.domain_name(name);
    }
    endpoint.tls_config(config).map_err(|error| {
        format!("the certificates cannot be used: {}", crate::wire::with_causes(&error))
    })
}

/// With TLS nobody is called without it, whoever names the address; without TLS nothing leaves this
/// machine.
pub fn check(url: &str, has_tls: bool) -> Result<Uri, String> {
    let uri: Uri = url
        .parse()
        .map_err(|error| format!("`{url}` is no URL like https://127.0.0.1:4001: {error}"))?;
    let (Some(scheme @ ("http" | "https")), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return Err(format!("`{url}` is no URL like https://127.0.0.1:4001"));
    };
    if uri.port_u16().is_none() {
        return Err(format!("`{url}` names no port"));
    }
    match (scheme, has_tls) {
        ("https", true) => Ok(uri),
        ("https", false) => {
            Err(format!("`{url}` needs TLS: the certificate of the cluster's authority is missing"))
        }
        (_, true) => Err(format!("`{url}` is without TLS, and everything else is with it")),
        (_, false) if is_loopback(host) => Ok(uri),
        (_, false) => Err(format!(
            "`{url}` is on another machine: without TLS only loopback addresses are used \
             (127.0.0.1, [::1], localhost)"
        )),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tls_only_this_machine_is_called() {
        for url in ["http://127.0.0.1:7400", "http://[::1]:7400", "http://localhost:7400"] {
            check(url, false).expect("on this machine");
        }
        for (url, why) in [
            ("http://10.0.0.1:7400", "another machine"),
            ("http://localhost.example.com:7400", "another machine"),
            ("http://127.0.0.1:1@example.com:7400", "another machine"),
            ("https://127.0.0.1:7400", "needs TLS"),
            ("ftp://127.0.0.1:7400", "no URL"),
            ("127.0.0.1:7400", "no URL"),
            ("http://127.0.0.1", "no port"),
            ("http://", "no URL"),
            ("", "no URL"),
        ] {
            let message = check(url, false).expect_err("refused");
            assert!(message.contains(url) && message.contains(why), "{message}");
        }
    }

    #[test]
    fn with_tls_nobody_is_called_without_it() {
        for url in ["https://127.0.0.1:7400", "https://etl.example.com:7400", "https://[::1]:1"] {
            check(url, true).expect("with TLS");
        }
        for url in ["http://127.0.0.1:7400", "http://etl.example.com:7400"] {
            let message = check(url, true).expect_err("refused");
            assert!(message.contains("without TLS"), "{message}");
        }
    }
}

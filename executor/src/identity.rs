//! Who a node is: its certificate says so, in DNS names beside that of its host.
//!
//! ```text
//! coordinator-1:  coordinator.weir, coordinator-1.coordinator.weir
//! executor-1:     executor.weir,    executor-1.executor.weir
//! ```

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

/// In the certificate of every coordinator: who calls one asks for it, so that no other node is taken for one.
pub const COORDINATOR: &str = "coordinator.weir";
/// In the certificate of every executor.
pub const EXECUTOR: &str = "executor.weir";

/// The names of a process, of whichever kind.
pub fn names(kind: &str, name: &str) -> [String; 2] {
    [kind.to_owned(), format!("{name}.{kind}")]
}

/// Whether a certificate, which the authority has signed, is for a node with this name.
pub fn is_for(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let is_for = || {
        let certificate = ParsedCertificate::try_from(certificate).ok()?;
        let name = ServerName::try_from(name).ok()?;
        verify_server_name(&certificate, &name).ok()
    };
    is_for().is_some()
}

//! An authority that signs certificates of processes.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use weir_executor::identity;
use weir_executor::tls::{IdentityFiles, TlsFiles};

/// Of a test, which no cluster knows unless it is told.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key can be made");
        Self(CertifiedIssuer::self_signed(params, key).expect("it signs itself"))
    }
}

impl Authority {
    /// Writes its certificate as `authority.pem`.
    pub fn write(&self, folder: &Path) {
        write(&folder.join("authority.pem"), &self.0.pem());
    }

    /// Writes `<name>.pem` and `<name>.key`, of the kind that the name begins with.
    pub fn issue(&self, folder: &Path, name: &str) {
        self.issue_for(folder, name, "127.0.0.1");
    }

    /// For a process at this address.
    pub fn issue_for(&self, folder: &Path, name: &str, host: &str) {
        let hosts = [host, "localhost", name].map(str::to_owned);
        let is_coordinator = name.starts_with("coordinator");
        let kind = if is_coordinator { identity::COORDINATOR } else { identity::EXECUTOR };
        let names = [&hosts[..], &identity::names(kind, name)[..]].concat();
        let mut params = CertificateParams::new(names).expect("they are names");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.0).expect("it can be signed");
        write(&folder.join(format!("{name}.key")), &key.serialize_pem());
        write(&folder.join(format!("{name}.pem")), &certificate.pem());
    }
}

/// The files of one process in a folder.
pub fn files(folder: &Path, name: &str) -> TlsFiles {
    let file = |extension: &str| folder.join(format!("{name}.{extension}"));
    TlsFiles {
        authority: folder.join("authority.pem"),
        identity: Some(IdentityFiles { certificate: file("pem"), key: file("key") }),
    }
}

/// For the owner's eyes only.
pub(crate) fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the disk has room");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode).expect("it is ours");
}

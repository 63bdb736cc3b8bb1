//! The certificates of a cluster on this machine: an authority of its own, and one certificate for each
//! process. Whatever is there and good for a while yet is kept.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Datelike as _, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use weir_executor::identity;
use weir_executor::tls::IdentityFiles;

use super::private_file;
use crate::cluster_file;
use crate::failure::Failure;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Of the authority, which only `up` uses.
const AUTHORITY_DAYS: u32 = 10 * 365;
const PROCESS_DAYS: u32 = 365;
/// One that ends sooner is replaced.
const LEAST_DAYS: u32 = 30;

/// Where a process finds its own.
pub(super) fn identity(dir: &Path, name: &str) -> IdentityFiles {
    let folder = cluster_file::tls_folder(dir);
    IdentityFiles {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    }
}

/// Makes what is missing or ends soon, for processes with these names.
pub(super) fn provide<'a>(
    dir: &Path,
    names: impl Iterator<Item = &'a str>,
    now: SystemTime,
) -> Result<(), Failure> {
    private_file::make_folder(&cluster_file::tls_folder(dir))?;
    let authority = Authority::of(dir, now)?;
    for name in names {
        let IdentityFiles { certificate, key } = identity(dir, name);
        let identity = identity_names(name)[1].clone();
        let at = now + LEAST_DAYS * DAY;
        if !(key.is_file() && authority.vouches_for(&certificate, &identity, at)) {
            authority.issue(name, now, &certificate, &key)?;
        }
    }
    Ok(())
}

struct Authority {
    certificate: CertificateDer<'static>,
    key: PathBuf,
}

impl Authority {
    /// The one that is there, or a new one.
    fn of(dir: &Path, now: SystemTime) -> Result<Self, Failure> {
        let path = cluster_file::authority(dir);
        let key = path.with_extension("key");
        if !path.exists() {
            let params = authority_params(now);
            let pair = KeyPair::generate().map_err(|error| unmade(&path, &error))?;
            let made = params.self_signed(&pair).map_err(|error| unmade(&path, &error))?;
            // The certificate comes last: without it both are made again.
            private_file::write(&key, &pair.serialize_pem())?;
            private_file::write(&path, &made.pem())?;
        }
        let certificate =
            CertificateDer::from_pem_file(&path).map_err(|error| unusable(&path, &error))?;
        Ok(Self { certificate, key })
    }

    /// Whether a node that has it would be believed at that time.
    fn vouches_for(&self, certificate: &Path, name: &str, at: SystemTime) -> bool {
        let check = || {
            let certificate = CertificateDer::from_pem_file(certificate).ok()?;
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.clone()).ok()?;
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
            let name = ServerName::try_from(name.to_owned()).ok()?;
            let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).ok()?);
            let verifier = verifier.build().ok()?;
            verifier.verify_server_cert(&certificate, &[], &name, &[], at).ok()
        };
        check().is_some()
    }

    fn issue(
        &self,
        name: &str,
        now: SystemTime,
        certificate: &Path,
        key: &Path,
    ) -> Result<(), Failure> {
        let pem =
            std::fs::read_to_string(&self.key).map_err(|error| unusable(&self.key, &error))?;
        let pair = KeyPair::from_pem(&pem).map_err(|error| unusable(&self.key, &error))?;
        let issuer = Issuer::new(authority_params(now), pair);
        let (pair, made) = KeyPair::generate()
            .and_then(|pair| {
                let made = process_params(name, now)?.signed_by(&pair, &issuer)?;
                Ok((pair, made))
            })
            .map_err(|error| unmade(certificate, &error))?;
        // A key never stands beside the certificate of another one.
        match std::fs::remove_file(certificate) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(unmade(certificate, &error));
            }
            _ => {}
        }
        private_file::write(key, &pair.serialize_pem())?;
        private_file::write(certificate, &made.pem())
    }
}

/// The same each time but for the days, so that the authority can sign again.
fn authority_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("weir cluster authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_days(&mut params, now, AUTHORITY_DAYS);
    params
}

fn process_params(name: &str, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let hosts = ["127.0.0.1", "::1", "localhost", name].map(str::to_owned);
    let names = [&hosts[..], &identity_names(name)[..]].concat();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = named(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Coordinators call each other, and so do executors.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_days(&mut params, now, PROCESS_DAYS);
    Ok(params)
}

/// Which node it is, as the others ask for it.
fn identity_names(name: &str) -> [String; 2] {
    let is_coordinator = name.starts_with("coordinator-");
    let kind = if is_coordinator { identity::COORDINATOR } else { identity::EXECUTOR };
    identity::names(kind, name)
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// From yesterday on, for clocks that are behind.
fn set_days(params: &mut CertificateParams, now: SystemTime, count: u32) {
    let day = |at: SystemTime| {
        let date = DateTime::<Utc>::from(at).date_naive();
        let part = |part: u32| u8::try_from(part).expect("months and days are small");
        rcgen::date_time_ymd(date.year(), part(date.month()), part(date.day()))
    };
    params.not_before = day(now - DAY);
    params.not_after = day(now + count * DAY);
}

fn unmade(path: &Path, error: &impl Display) -> Failure {
    Failure::Run(format!("failed to make {}: {error}", path.display()))
}

fn unusable(path: &Path, error: &impl Display) -> Failure {
    Failure::Usage(format!("failed to use {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn certificates_are_kept_until_they_end_soon_and_keys_are_for_the_owner_only() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let dir = folder.path();
        let now = SystemTime::now();
        let read = |name: &str| std::fs::read(dir.join("tls").join(name)).expect("it is there");
        provide(dir, ["coordinator-1"].into_iter(), now).expect("they can be made");
        let first = (read("authority.pem"), read("coordinator-1.pem"), read("coordinator-1.key"));
        provide(dir, ["coordinator-1", "executor-1"].into_iter(), now + 300 * DAY)
            .expect("they can be made");
        assert_eq!(
            first,
            (read("authority.pem"), read("coordinator-1.pem"), read("coordinator-1.key"))
        );
        assert_eq!(mode(&dir.join("tls")), 0o700);
        for key in ["authority.key", "coordinator-1.key", "executor-1.key"] {
            assert_eq!(mode(&dir.join("tls").join(key)), 0o600, "{key}");
        }

        // In a month it would be too late.
        provide(dir, ["coordinator-1"].into_iter(), now + 340 * DAY).expect("they can be made");
        assert_eq!(first.0, read("authority.pem"));
        assert_ne!(first.1, read("coordinator-1.pem"));
        let authority = Authority::of(dir, now).expect("it is there");
        let certificate = dir.join("tls/coordinator-1.pem");
        let vouches = |name, at| authority.vouches_for(&certificate, name, at);
        assert!(vouches("coordinator-1", now + 700 * DAY) && vouches("::1", now + 700 * DAY));
        assert!(!vouches("executor-1", now + 700 * DAY) && !vouches("::1", now + 710 * DAY));
        let read = |name: &str| {
            CertificateDer::from_pem_file(dir.join("tls").join(name)).expect("it is there")
        };
        let (coordinator, executor) = (read("coordinator-1.pem"), read("executor-1.pem"));
        for (name, is_coordinator) in [
            ("coordinator.weir", true),
            ("coordinator-1.coordinator.weir", true),
            ("executor.weir", false),
            ("executor-1.executor.weir", false),
        ] {
            assert_eq!(identity::is_for(&coordinator, name), is_coordinator, "{name}");
            assert_eq!(identity::is_for(&executor, name), !is_coordinator, "{name}");
        }
        assert!(!identity::is_for(&executor, "executor-2.executor.weir"));
        assert!(!identity::is_for(&executor, "no name"));

        // Nothing can be signed without the authority's key; what is there is good as it is.
        std::fs::remove_file(dir.join("tls/authority.key")).expect("it is there");
        provide(dir, ["executor-1"].into_iter(), now + 301 * DAY).expect("nothing is missing");
        let failure = provide(dir, ["executor-2"].into_iter(), now).expect_err("no key");
        assert!(failure.message().contains("authority.key"), "{}", failure.message());
    }
}

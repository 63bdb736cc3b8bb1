//! TLS between the processes of a cluster. One authority, the cluster's own, signs the certificates of
//! all nodes; clients need its certificate, and a token instead of one of their own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// A node that does not answer in this time is given up: connections to one that has stopped are made, and
/// then nothing more is said.
const LONGEST_ANSWER: Duration = Duration::from_secs(2);
/// Who does not finish a handshake in this time is cut off.
const LONGEST_HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once; further connections wait.
const HANDSHAKES: usize = 256;
/// How often the files are looked at.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Files in PEM. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the cluster's authority.
    pub authority: PathBuf,
    /// A node's own. Clients have none.
    pub identity: Option<IdentityFiles>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl TlsFiles {
    /// For connections to nodes.
    pub fn client(&self) -> io::Result<ClientTlsConfig> {
        let config = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(&self.authority)?))
            .timeout(LONGEST_ANSWER);
        Ok(match &self.identity {
            None => config,
            Some(IdentityFiles { certificate, key }) => {
                config.identity(Identity::from_pem(read(certificate)?, read(key)?))
            }
        })
    }

    fn server(&self) -> io::Result<Arc<ServerConfig>> {
        let identity = self.identity.as_ref();
        let IdentityFiles { certificate, key } =
            identity.ok_or_else(|| io::Error::other("a server needs a certificate of its own"))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(&self.authority)? {
            roots.add(authority).map_err(|error| invalid(&self.authority, error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                // Who shows none is no node, and may do only what its token allows.
                .allow_unauthenticated()
                .build()
                .map_err(|error| invalid(&self.authority, error))?;
        let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| invalid(key, error))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(certificate)?, key_der)
            .map_err(|error| invalid(certificate, error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    fn modified(&self) -> Vec<Option<SystemTime>> {
        let identity = self.identity.iter().flat_map(|files| [&files.certificate, &files.key]);
        std::iter::once(&self.authority)
            .chain(identity)
            .map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
            .collect()
    }
}

/// The connections that come in, once their handshake is done. A handshake that fails is logged, and
/// holds nobody up.
pub fn accept(
    listener: TcpListener,
    files: TlsFiles,
) -> io::Result<ReceiverStream<io::Result<TlsStream<TcpStream>>>> {
    let config = Reloading::new(files)?;
    let (sender, receiver) = mpsc::channel(HANDSHAKES);
    tokio::spawn(async move {
        let places = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let Ok((stream, peer)) = accepted else {
                // Too many open files, most likely: it passes.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let acceptor = TlsAcceptor::from(config.current());
            let sender = sender.clone();
            tokio::spawn(async move {
                let _place = place;
                let _ = stream.set_nodelay(true);
                match tokio::time::timeout(LONGEST_HANDSHAKE, acceptor.accept(stream)).await {
                    // The server may have ended.
                    Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::warn!(%peer, %error, "TLS handshake refused"),
                    Err(_) => tracing::warn!(%peer, "TLS handshake took too long"),
                }
            });
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// The server's configuration, read again when its files have changed. What cannot be read leaves the
/// one before in place.
struct Reloading {
    files: TlsFiles,
    state: Mutex<Read>,
}

struct Read {
    looked_at: std::time::Instant,
    modified: Vec<Option<SystemTime>>,
    config: Arc<ServerConfig>,
}

impl Reloading {
    fn new(files: TlsFiles) -> io::Result<Self> {
        let read = Read {
            looked_at: std::time::Instant::now(),
            modified: files.modified(),
            config: files.server()?,
        };
        Ok(Self { files, state: Mutex::new(read) })
    }

    fn current(&self) -> Arc<ServerConfig> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked_at.elapsed() >= BETWEEN_LOOKS {
            state.looked_at = std::time::Instant::now();
            let modified = self.files.modified();
            if modified != state.modified {
                match self.files.server() {
                    Ok(config) => {
                        tracing::info!("certificates read again");
                        state.modified = modified;
                        state.config = config;
                    }
                    Err(error) => tracing::warn!(%error, "the new certificates cannot be used"),
                }
            }
        }
        Arc::clone(&state.config)
    }
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| invalid(path, error))?;
    let read: Result<Vec<_>, _> = read.collect();
    let read = read.map_err(|error| invalid(path, error))?;
    if read.is_empty() { Err(invalid(path, "it has no certificate")) } else { Ok(read) }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| invalid(path, error))
}

fn invalid(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("failed to use {}: {error}", path.display()))
}

//! An object store: S3 and what speaks its protocol, Azure Blob Storage, Google Cloud Storage.
//!
//! Objects appear whole or not at all, so that nothing here is renamed. A store that does not answer is asked
//! again, ever more slowly, for as long as the caller's patience lasts.

use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{
    Attribute, AttributeValue, ClientConfigKey, Error, GetOptions, GetRange, ObjectStore,
    ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, RetryConfig,
    WriteMultipart,
};
use tokio::io::AsyncReadExt as _;

use super::address::Service;

/// Of an object that is read as a stream; one is read ahead.
const PIECE_BYTES: u64 = 4 << 20;
/// Of an upload. Larger files have larger parts: stores take 10,000 of them.
const PART_BYTES: u64 = 8 << 20;
const MOST_PARTS: u64 = 9_000;
const PARTS_AT_ONCE: usize = 2;
const DELETES_AT_ONCE: usize = 8;

const SHORTEST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Between two warnings about a store that does not answer.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(10);

/// The metadata that tells who has created an object. A word that is a name in all stores.
const TOKEN: &str = "weirtoken";

#[derive(Clone, Debug)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// For messages; without a `/` at its end.
    url: String,
    /// Below the bucket.
    root: String,
    /// `None`: without end.
    patience: Option<Duration>,
}

/// How an attempt has failed.
enum Failure {
    /// Another one may succeed.
    Again(String),
    Final(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let other = || Failure::Final(io::Error::other(text.clone()));
        let of_kind = |kind| Failure::Final(io::Error::new(kind, text.clone()));
        match &error {
            // Not the object: all that could be there is missing.
            Error::NotFound { .. } if is_missing_bucket(&text) => other(),
            Error::NotFound { .. } => of_kind(io::ErrorKind::NotFound),
            Error::AlreadyExists { .. } => of_kind(io::ErrorKind::AlreadyExists),
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                of_kind(io::ErrorKind::PermissionDenied)
            }
            // No answer, or one that blames the store.
            Error::Generic { .. } if !is_refusal(&text) => Failure::Again(text),
            _ => other(),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Final(error)
    }
}

fn is_missing_bucket(text: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]
        .iter()
        .any(|said| text.contains(said))
}

/// Whether the store says that the request is wrong. The crate tells the status only in words.
fn is_refusal(text: &str) -> bool {
    let Some((_, status)) = text.split_once("status code: ") else { return false };
    status.starts_with('4') && !status.starts_with("408") && !status.starts_with("429")
}

impl Objects {
    /// The variables are those that each service's own tools know: `AWS_…`, `AZURE_…`, `GOOGLE_…`.
    pub(super) fn open(
        service: Service,
        bucket: &str,
        prefix: &str,
        environment: &[(String, String)],
    ) -> Result<Self, String> {
        // The crate's own attempts are for what passes at once; the rest is ours.
        let retry = RetryConfig {
            max_retries: 2,
            retry_timeout: Duration::from_secs(5),
            ..RetryConfig::default()
        };
        let failed = |error: Error| error.to_string();
        let store: Arc<dyn ObjectStore> = match service {
            Service::S3 => {
                let mut builder = AmazonS3Builder::new().with_bucket_name(bucket).with_retry(retry);
                for (key, value) in settings::<AmazonS3ConfigKey>(environment, "AWS_") {
                    builder = builder.with_config(key, value);
                }
                let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
                if endpoint.is_some_and(|endpoint| is_this_machine(&endpoint)) {
                    let allow = AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp);
                    builder = builder.with_config(allow, "true");
                }
                Arc::new(builder.build().map_err(failed)?)
            }
            Service::Azure => {
                let mut builder =
                    MicrosoftAzureBuilder::new().with_container_name(bucket).with_retry(retry);
                for (key, value) in settings::<AzureConfigKey>(environment, "AZURE_") {
                    builder = builder.with_config(key, value);
                }
                Arc::new(builder.build().map_err(failed)?)
            }
            Service::Gcs => {
                let mut builder =
                    GoogleCloudStorageBuilder::new().with_bucket_name(bucket).with_retry(retry);
                for (key, value) in settings::<GoogleConfigKey>(environment, "GOOGLE_") {
                    builder = builder.with_config(key, value);
                }
                Arc::new(builder.build().map_err(failed)?)
            }
        };
        let url = format!("{}://{bucket}/{prefix}", service.scheme());
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { store, url, root: prefix.to_owned(), patience: Some(super::PATIENCE) })
    }

    pub(super) fn with_patience(self, patience: Option<Duration>) -> Self {
        Self { patience, ..self }
    }

    pub(super) fn within(&self, folder: &str) -> Self {
        let root = format!("{}/{folder}", self.root);
        let url = format!("{}/{folder}", self.url);
        Self { root, url, ..self.clone() }
    }

    pub(super) fn shown(&self, name: &str) -> String {
        format!("{}/{name}", self.url).trim_end_matches('/').to_owned()
    }

    fn location(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.root))
    }

    pub(super) async fn get(&self, name: &str) -> io::Result<Bytes> {
        let location = &self.location(name);
        self.trying("read", name, || {
            async { Ok(self.store.get(location).await?.bytes().await?) }.boxed()
        })
        .await
    }

    pub(super) async fn read(
        &self,
        name: &str,
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let (first, size) = self.piece(name, 0).await?;
        let (objects, name) = (self.clone(), name.to_owned());
        // Each is asked for by itself: a slow reader may take longer than a request may.
        let starts = (1..size.div_ceil(PIECE_BYTES)).map(|number| number * PIECE_BYTES);
        let rest = stream::iter(starts.collect::<Vec<_>>())
            .map(move |start| {
                let (objects, name) = (objects.clone(), name.clone());
                async move { objects.piece(&name, start).await.map(|(piece, _)| piece) }.boxed()
            })
            .buffered(2);
        Ok(stream::iter([Ok(first)]).chain(rest).boxed())
    }

    /// A part of an object from `start` on, and the size of the whole.
    async fn piece(&self, name: &str, start: u64) -> io::Result<(Bytes, u64)> {
        let location = &self.location(name);
        self.trying("read", name, || {
            async {
                let range = Some(GetRange::Bounded(start..start + PIECE_BYTES));
                let found =
                    self.store.get_opts(location, GetOptions { range, ..Default::default() });
                let found = match found.await {
                    // There is no first byte of nothing.
                    Err(error) if error.to_string().contains("status code: 416") && start == 0 => {
                        return Ok((Bytes::new(), 0));
                    }
                    found => found?,
                };
                let size = found.meta.size;
                Ok((found.bytes().await?, size))
            }
            .boxed()
        })
        .await
    }

    pub(super) async fn put(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let location = &self.location(name);
        self.trying("write", name, || {
            async {
                self.store.put(location, PutPayload::from(bytes.clone())).await?;
                Ok(())
            }
            .boxed()
        })
        .await
    }

    /// "It exists already" may be the echo of an own attempt whose answer was lost, or, on S3, a conflict of
    /// several in which none has landed: whose token is there decides.
    pub(super) async fn create(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let location = &self.location(name);
        let token = uuid::Uuid::new_v4().simple().to_string();
        let (key, token) = (Attribute::Metadata(TOKEN.into()), AttributeValue::from(token));
        let mut options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        options.attributes.insert(key.clone(), token.clone());
        self.trying("create", name, || {
            async {
                let payload = PutPayload::from(bytes.clone());
                let exists = match self.store.put_opts(location, payload, options.clone()).await {
                    Ok(_) => return Ok(()),
                    Err(error @ Error::AlreadyExists { .. }) => error,
                    Err(error) => return Err(error.into()),
                };
                let head = GetOptions { head: true, ..GetOptions::default() };
                match self.store.get_opts(location, head).await {
                    Ok(found) if found.attributes.get(&key) == Some(&token) => Ok(()),
                    Ok(_) => Err(exists.into()),
                    Err(Error::NotFound { .. }) => Err(Failure::Again(exists.to_string())),
                    Err(error) => Err(error.into()),
                }
            }
            .boxed()
        })
        .await
    }

    pub(super) async fn upload(&self, file: &std::path::Path, name: &str) -> io::Result<()> {
        let location = &self.location(name);
        self.trying("write", name, || {
            async {
                let mut file = tokio::fs::File::open(file).await?;
                let length = file.metadata().await?.len();
                let part = PART_BYTES.max(length.div_ceil(MOST_PARTS));
                if length <= part {
                    let whole = next_part(&mut file, part).await?;
                    self.store.put(location, PutPayload::from(whole)).await?;
                    return Ok(());
                }
                let options = PutMultipartOptions::default();
                let upload = self.store.put_multipart_opts(location, options).await?;
                let part_bytes = usize::try_from(part).unwrap_or(usize::MAX);
                let mut upload = WriteMultipart::new_with_chunk_size(upload, part_bytes);
                loop {
                    let next = match upload.wait_for_capacity(PARTS_AT_ONCE).await {
                        Ok(()) => next_part(&mut file, part).await.map_err(Failure::from),
                        Err(error) => Err(error.into()),
                    };
                    match next {
                        Ok(bytes) if bytes.is_empty() => break,
                        Ok(bytes) => upload.put(bytes),
                        Err(failure) => {
                            // A store that does not answer forgets the parts by a rule of its own.
                            let _ = upload.abort().await;
                            return Err(failure);
                        }
                    }
                }
                upload.finish().await?;
                Ok(())
            }
            .boxed()
        })
        .await
    }

    /// Whether the bucket answers.
    pub(super) async fn check(&self) -> io::Result<()> {
        let location = self.location("");
        self.trying("look into", "", || {
            async {
                self.store.list(Some(&location)).try_next().await?;
                Ok(())
            }
            .boxed()
        })
        .await
    }

    pub(super) async fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let (root, location) = (Path::from(self.root.as_str()), self.location(folder));
        let mut names = self
            .trying("list", folder, || {
                async {
                    let found = self.store.list(Some(&location));
                    let named = found.map_ok(|object| {
                        let name = object.location.as_ref().strip_prefix(root.as_ref());
                        name.unwrap_or_default().trim_start_matches('/').to_owned()
                    });
                    Ok(named.try_collect::<Vec<_>>().await?)
                }
                .boxed()
            })
            .await?;
        names.sort();
        Ok(names)
    }

    pub(super) async fn delete(&self, name: &str) -> io::Result<()> {
        let location = &self.location(name);
        self.trying("delete", name, || {
            async {
                match self.store.delete(location).await {
                    Err(error @ Error::NotFound { .. })
                        if !is_missing_bucket(&error.to_string()) =>
                    {
                        Ok(())
                    }
                    deleted => Ok(deleted?),
                }
            }
            .boxed()
        })
        .await
    }

    pub(super) async fn delete_each(&self, names: Vec<String>) -> io::Result<()> {
        let deleting =
            stream::iter(names).map(|name| async move { self.delete(&name).await }.boxed());
        deleting.buffer_unordered(DELETES_AT_ONCE).try_collect().await
    }

    async fn trying<'attempt, T>(
        &self,
        attempting: &'static str,
        name: &str,
        attempt: impl Fn() -> BoxFuture<'attempt, Result<T, Failure>> + Send + Sync,
    ) -> io::Result<T> {
        let started = Instant::now();
        let mut wait = SHORTEST_WAIT;
        let mut warned: Option<Instant> = None;
        let mut last = "it has not answered".to_owned();
        loop {
            let left = self.patience.map(|patience| patience.saturating_sub(started.elapsed()));
            let done = match left {
                None => Some(attempt().await),
                Some(left) => tokio::time::timeout(left, attempt()).await.ok(),
            };
            match done {
                Some(Ok(done)) => {
                    if warned.is_some() {
                        tracing::info!(place = self.shown(name), "the storage answers again");
                    }
                    return Ok(done);
                }
                Some(Err(Failure::Final(error))) => return Err(error),
                Some(Err(Failure::Again(why))) => last = why,
                None => {}
            }
            let waited = started.elapsed();
            if self.patience.is_some_and(|patience| waited + wait >= patience) {
                let why =
                    format!("the storage has not answered for {} s: {last}", waited.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            if warned.is_none_or(|at| at.elapsed() >= BETWEEN_WARNINGS) {
                let place = self.shown(name);
                tracing::warn!(
                    attempting,
                    place,
                    error = last,
                    "the storage does not answer; tried again"
                );
                warned = Some(Instant::now());
            }
            tokio::time::sleep(wait.mul_f64(0.5 + jitter() / 2.0)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

/// The next bytes of a file, fewer only at its end.
async fn next_part(file: &mut tokio::fs::File, bytes: u64) -> io::Result<Bytes> {
    let mut part = Vec::new();
    file.take(bytes).read_to_end(&mut part).await?;
    Ok(part.into())
}

/// What the environment says, as far as the crate knows it.
fn settings<Key: FromStr>(
    environment: &[(String, String)],
    prefix: &str,
) -> impl Iterator<Item = (Key, String)> {
    (environment.iter())
        .filter(move |(name, _)| name.starts_with(prefix))
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.clone())))
}

/// Whether an endpoint is without TLS, and on this machine: there is nobody in between.
fn is_this_machine(endpoint: &str) -> bool {
    let Ok(url) = url::Url::parse(endpoint) else { return false };
    let is_loopback = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "http" && is_loopback
}

/// Between 0 and 1.
fn jitter() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_store_refuses_is_not_asked_again_and_what_it_does_not_answer_is() {
        let generic = |text: &str| {
            Failure::from(Error::Generic { store: "S3", source: text.to_owned().into() })
        };
        let said = "Server returned non-2xx status code: ";
        for again in ["HTTP error: error sending request", "503 Slow Down", "429 Too Many", "408 "]
        {
            let failure = generic(&format!("{said}{again}"));
            assert!(matches!(failure, Failure::Again(_)), "{again}");
        }
        let refused =
            generic(&format!("{said}400 Bad Request: <Code>AuthorizationHeaderMalformed"));
        assert!(matches!(refused, Failure::Final(_)));
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_file() {
        let missing = |text: &str| {
            let (path, source) = ("a".to_owned(), text.to_owned().into());
            match Failure::from(Error::NotFound { path, source }) {
                Failure::Final(error) => error.kind(),
                Failure::Again(why) => panic!("{why}"),
            }
        };
        assert_eq!(missing("404 <Code>NoSuchKey</Code>"), io::ErrorKind::NotFound);
        assert_eq!(missing("404 <Code>NoSuchBucket</Code>"), io::ErrorKind::Other);
    }

    #[test]
    fn only_this_machine_is_spoken_to_without_tls() {
        for own in ["http://127.0.0.1:9000", "http://localhost:9000/", "http://[::1]:1"] {
            assert!(is_this_machine(own), "{own}");
        }
        for other in ["https://127.0.0.1:9000", "http://10.0.0.1", "http://s3.example", "no URL"] {
            assert!(!is_this_machine(other), "{other}");
        }
    }
}

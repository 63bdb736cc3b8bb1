//! `weir coordinator` and `weir executor`: the processes of a cluster.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;
use weir_connectors::Redactor;
use weir_coordinator::cluster::{self, ClientLimits, CoordinatorOptions, KeptRuns};
use weir_executor::node::{self, NodeOptions};
use weir_executor::storage::{SECRET_VARIABLES, Storage, StorageAddress};
use weir_executor::tls::TlsFiles;
use weir_executor::{ExchangeCompression, address};

use crate::args::{Compression, CoordinatorArgs, ExecutorArgs, Global};
use crate::failure::Failure;
use crate::{files, signals, token};

pub(crate) async fn coordinator(
    global: &Global,
    arguments: CoordinatorArgs,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    let tls = arguments.security.files();
    if tls.is_none() && !arguments.listen.ip().is_loopback() {
        return Err(Failure::Usage(format!(
            "--listen {}: with --insecure a coordinator only listens on loopback addresses \
             (127.0.0.1, [::1])",
            arguments.listen
        )));
    }
    let members = arguments.members.as_ref();
    let urls = members.into_iter().flat_map(|members| members.values());
    check(urls.chain([&arguments.url]), tls.as_ref())?;
    if members.is_some_and(|members| members.get(&arguments.id) != Some(&arguments.url)) {
        return Err(Failure::Usage(format!(
            "--members must name this coordinator as `{}={}`",
            arguments.id, arguments.url
        )));
    }
    let security = match tls {
        None => cluster::Security::Insecure,
        Some(files) => {
            let bootstrap_token = token::admin(arguments.admin_token_file.as_deref())?;
            if let Some(token) = &bootstrap_token {
                redactor.register(token);
            }
            cluster::Security::Tls { files, bootstrap_token }
        }
    };
    let options = CoordinatorOptions {
        id: arguments.id,
        listen: arguments.listen,
        url: arguments.url,
        members: arguments.members,
        dir: arguments.dir,
        storage: storage(&arguments.storage, redactor)?,
        context: files::context(global, Path::new("."), redactor)?,
        memory_bytes: global.memory,
        security,
        limits: ClientLimits {
            requests_per_second: arguments.requests_per_second,
            calls_at_once: arguments.calls_at_once,
        },
        kept_runs: KeptRuns { runs: arguments.kept_runs, tasks: arguments.kept_tasks },
    };
    serve(async |stop| cluster::serve(options, stop).await.map_err(|error| error.to_string())).await
}

pub(crate) async fn executor(
    global: &Global,
    arguments: ExecutorArgs,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    let tls = arguments.security.files();
    check(arguments.coordinators.iter(), tls.as_ref())?;
    if tls.is_none() {
        tracing::warn!("INSECURE: it does what any process on this machine may tell it");
    }
    let memory_bytes = NonZeroU64::new(global.memory)
        .ok_or_else(|| Failure::Usage("--memory: an executor needs some".to_owned()))?;
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let options = NodeOptions {
        name: arguments.id,
        coordinators: arguments.coordinators,
        tls,
        dir: arguments.dir,
        listen: arguments.listen,
        url: arguments.url,
        storage: storage(&arguments.storage, redactor)?,
        slots: arguments.slots.or(global.parallelism).unwrap_or(cores),
        compression: match arguments.exchange_compression {
            Compression::Lz4 => ExchangeCompression::Lz4,
            Compression::None => ExchangeCompression::None,
        },
        memory_bytes,
        context: files::context(global, Path::new("."), redactor)?,
    };
    serve(async |stop| node::serve(options, stop).await.map_err(|error| error.to_string())).await
}

/// What opens it is in the environment, and in no log.
fn storage(address: &StorageAddress, redactor: &Redactor) -> Result<Storage, Failure> {
    for value in SECRET_VARIABLES.iter().filter_map(|name| std::env::var(name).ok()) {
        redactor.register(&value);
    }
    Storage::open(address).map_err(Failure::Usage)
}

/// That every coordinator can be called as it is named, and the own files are nobody else's.
fn check<'a>(
    mut urls: impl Iterator<Item = &'a String>,
    tls: Option<&TlsFiles>,
) -> Result<(), Failure> {
    if let Some(identity) = tls.and_then(|files| files.identity.as_ref()) {
        files::warn_if_open(&identity.key);
    }
    urls.try_for_each(|url| address::check(url, tls.is_some()).map(drop).map_err(Failure::Usage))
}

/// Until it ends, or is asked to stop: the second time at once.
async fn serve(
    process: impl AsyncFnOnce(CancellationToken) -> Result<(), String>,
) -> Result<ExitCode, Failure> {
    let stop = CancellationToken::new();
    let signals = tokio::spawn({
        let stop = stop.clone();
        async move {
            signals::stop_asked().await;
            stop.cancel();
            signals::stop_asked().await;
            std::process::exit(1);
        }
    });
    let result = process(stop).await;
    signals.abort();
    result.map_err(Failure::Run)?;
    Ok(ExitCode::SUCCESS)
}

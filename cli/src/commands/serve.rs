//! `weir coordinator` and `weir executor`: the processes of a cluster.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;
use weir_connectors::Redactor;
use weir_coordinator::cluster::{self, CoordinatorOptions};
use weir_executor::node::{self, NodeOptions};

use crate::args::{CoordinatorArgs, ExecutorArgs, Global};
use crate::client::refuse_others_than_loopback;
use crate::failure::Failure;
use crate::{files, signals};

pub(crate) async fn coordinator(
    global: &Global,
    arguments: CoordinatorArgs,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    if !arguments.listen.ip().is_loopback() {
        return Err(Failure::Usage(format!(
            "--listen {}: without TLS, which is not there yet, a coordinator only listens on loopback \
             addresses (127.0.0.1, [::1])",
            arguments.listen
        )));
    }
    refuse_others_than_loopback(&arguments.url)?;
    for url in arguments.members.values() {
        refuse_others_than_loopback(url)?;
    }
    if arguments.members.get(&arguments.id) != Some(&arguments.url) {
        return Err(Failure::Usage(format!(
            "--members must name this coordinator as `{}={}`",
            arguments.id, arguments.url
        )));
    }
    let options = CoordinatorOptions {
        id: arguments.id,
        listen: arguments.listen,
        url: arguments.url,
        members: arguments.members,
        dir: arguments.dir,
        storage: arguments.storage,
        context: files::context(global, Path::new("."), redactor)?,
        memory_bytes: global.memory,
        security: cluster::Security::Insecure,
    };
    serve(async |stop| cluster::serve(options, stop).await.map_err(|error| error.to_string())).await
}

pub(crate) async fn executor(
    global: &Global,
    arguments: ExecutorArgs,
    redactor: &Redactor,
) -> Result<ExitCode, Failure> {
    for url in &arguments.coordinators {
        refuse_others_than_loopback(url)?;
    }
    let memory_bytes = NonZeroU64::new(global.memory)
        .ok_or_else(|| Failure::Usage("--memory: an executor needs some".to_owned()))?;
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let options = NodeOptions {
        name: arguments.id,
        coordinators: arguments.coordinators,
        dir: arguments.dir,
        storage: arguments.storage,
        slots: arguments.slots.or(global.parallelism).unwrap_or(cores),
        memory_bytes,
        context: files::context(global, Path::new("."), redactor)?,
    };
    serve(async |stop| node::serve(options, stop).await.map_err(|error| error.to_string())).await
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

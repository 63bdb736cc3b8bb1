//! The peer: Ballista's own cluster, a scheduler and executors in this process, by the parts of its standalone mode.
//!
//! ```text
//! ballista-cluster EXECUTORS SLOTS [OPTION=VALUE…] -- NAME=PATH…
//! ```
//!
//! Options are those of its session, e.g. `datafusion.optimizer.prefer_hash_join=true`; NAME is the table of a Parquet
//! file. Prints `ready`, then takes a line `OUT_DIR QUERY.sql` after the other: writes the query's rows into OUT_DIR as
//! Parquet and answers with the seconds that it took, or with `failed: …`.

use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ballista::prelude::{SessionConfigExt as _, SessionContextExt as _};
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match serve(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

/// Until standard input ends.
async fn serve(arguments: &[String]) -> Result<()> {
    let usage = || {
        let text = "usage: ballista-cluster EXECUTORS SLOTS [OPTION=VALUE…] -- NAME=PATH…";
        DataFusionError::Execution(text.to_owned())
    };
    let mut halves = arguments.split(|argument| argument == "--");
    let (Some([executors, slots, options @ ..]), Some(tables)) = (halves.next(), halves.next())
    else {
        return Err(usage());
    };
    let executors: usize = executors.parse().map_err(|_| usage())?;
    let slots: usize = slots.parse().map_err(|_| usage())?;
    let context = cluster(executors, slots, &pairs(options)?).await?;
    for (name, path) in pairs(tables)? {
        context.register_parquet(name, path, ParquetReadOptions::default()).await?;
    }
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (folder, query) = line.split_once(' ').ok_or_else(usage)?;
        match seconds(&context, folder, query).await {
            Ok(seconds) => println!("{seconds:.4}"),
            Err(error) => println!("failed: {}", error.to_string().replace('\n', " ")),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn pairs(texts: &[String]) -> Result<Vec<(&str, &str)>> {
    let failed = |text: &str| DataFusionError::Execution(format!("`{text}` is no NAME=VALUE"));
    texts.iter().map(|text| text.split_once('=').ok_or_else(|| failed(text))).collect()
}

async fn seconds(context: &SessionContext, folder: &str, query: &str) -> Result<f64> {
    let query = std::fs::read_to_string(query)?;
    let start = Instant::now();
    let rows = context.sql(&query).await?;
    rows.write_parquet(folder, DataFrameWriteOptions::new(), None).await?;
    Ok(start.elapsed().as_secs_f64())
}

/// A scheduler and executors with so many slots each, and a context whose queries they run.
async fn cluster(
    executors: usize,
    slots: usize,
    options: &[(&str, &str)],
) -> Result<SessionContext> {
    let failed = |error: &dyn std::fmt::Display| DataFusionError::Execution(error.to_string());
    let mut config =
        SessionConfig::new_with_ballista().with_target_partitions((executors * slots).max(1));
    for (name, value) in options {
        config.options_mut().set(name, value)?;
    }
    let state = SessionStateBuilder::new().with_config(config).with_default_features().build();
    let address = ballista_scheduler::standalone::new_standalone_scheduler_from_state(&state)
        .await
        .map_err(|error| failed(&error))?;
    let url = format!("http://localhost:{}", address.port());
    for _ in 0..executors {
        let scheduler = loop {
            match SchedulerGrpcClient::connect(url.clone()).await {
                Ok(scheduler) => break scheduler,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        ballista_executor::new_standalone_executor_from_state(scheduler, slots, &state)
            .await
            .map_err(|error| failed(&error))?;
    }
    let remote = format!("df://localhost:{}", address.port());
    SessionContext::remote_with_state(&remote, state).await
}

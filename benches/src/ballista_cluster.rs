//! The peer: Ballista's own cluster, a scheduler and executors in this process, by the parts of its standalone mode.
//!
//! `ballista-cluster EXECUTORS SLOTS REPEAT OUT_DIR QUERY.sql NAME=PATH…` runs the query so often, one after the
//! other, writes its rows as Parquet into OUT_DIR/0, OUT_DIR/1, …, and prints the seconds of each as a line. The start
//! of the cluster is not counted.

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
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [executors, slots, repeat, output, query, tables @ ..] = arguments.as_slice() else {
        eprintln!("usage: ballista-cluster EXECUTORS SLOTS REPEAT OUT_DIR QUERY.sql NAME=PATH…");
        return ExitCode::from(2);
    };
    let numbers = (executors.parse(), slots.parse(), repeat.parse());
    let (Ok(executors), Ok(slots), Ok(repeat)) = numbers else {
        eprintln!("EXECUTORS, SLOTS and REPEAT are numbers");
        return ExitCode::from(2);
    };
    match measure(executors, slots, repeat, output, query, tables).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

async fn measure(
    executors: usize,
    slots: usize,
    repeat: usize,
    output: &str,
    query: &str,
    tables: &[&str],
) -> Result<()> {
    let context = cluster(executors, slots).await?;
    for table in tables {
        let (name, path) = table
            .split_once('=')
            .ok_or_else(|| DataFusionError::Execution(format!("{table} is not NAME=PATH")))?;
        context.register_parquet(name, path, ParquetReadOptions::default()).await?;
    }
    let query = std::fs::read_to_string(query)?;
    for number in 0..repeat {
        let start = Instant::now();
        let rows = context.sql(&query).await?;
        let folder = format!("{output}/{number}");
        rows.write_parquet(&folder, DataFrameWriteOptions::new(), None).await?;
        println!("{:.3}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// A scheduler and executors with so many slots each, and a context whose queries they run.
async fn cluster(executors: usize, slots: usize) -> Result<SessionContext> {
    let failed = |error: &dyn std::fmt::Display| DataFusionError::Execution(error.to_string());
    let config =
        SessionConfig::new_with_ballista().with_target_partitions((executors * slots).max(1));
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

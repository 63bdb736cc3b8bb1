//! The floor: the same DataFusion, without Weir.
//!
//! `plain-datafusion csv-to-parquet IN.csv OUT_DIR COLUMNS` reads a CSV file with the declared columns
//! (`name:type,…`) and writes Parquet. `plain-datafusion query OUT_DIR QUERY.sql NAME=PATH…` registers
//! Parquet files as tables and writes the query's rows as Parquet. Both with the number of partitions
//! and the compression that Weir uses.

use std::process::ExitCode;

use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::config::{ParquetOptions, TableParquetOptions};
use datafusion::dataframe::{DataFrame, DataFrameWriteOptions};
use datafusion::error::{DataFusionError, Result};
use datafusion::prelude::{CsvReadOptions, ParquetReadOptions, SessionConfig, SessionContext};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["csv-to-parquet", input, output, columns] => csv_to_parquet(input, output, columns).await,
        ["query", output, query, tables @ ..] => run_query(output, query, tables).await,
        _ => {
            eprintln!(
                "usage: plain-datafusion csv-to-parquet IN OUT COLUMNS | query OUT SQL NAME=PATH…"
            );
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}

async fn csv_to_parquet(input: &str, output: &str, columns: &str) -> Result<()> {
    let context = context();
    let fields = columns
        .split(',')
        .map(|column| {
            let (name, column_type) = column.split_once(':').unwrap_or((column, "string"));
            Ok(Field::new(name, data_type(column_type)?, true))
        })
        .collect::<Result<Vec<_>>>()?;
    let schema = Schema::new(fields);
    let options = CsvReadOptions::new().has_header(true).schema(&schema);
    write(context.read_csv(input, options).await?, output).await
}

async fn run_query(output: &str, query: &str, tables: &[&str]) -> Result<()> {
    let context = context();
    for table in tables {
        let (name, path) = table
            .split_once('=')
            .ok_or_else(|| DataFusionError::Execution(format!("{table} is not NAME=PATH")))?;
        context.register_parquet(name, path, ParquetReadOptions::default()).await?;
    }
    let sql = std::fs::read_to_string(query)?;
    write(context.sql(&sql).await?, output).await
}

fn context() -> SessionContext {
    let partitions = std::thread::available_parallelism().map_or(1, usize::from);
    SessionContext::new_with_config(SessionConfig::new().with_target_partitions(partitions))
}

async fn write(frame: DataFrame, output: &str) -> Result<()> {
    let options = TableParquetOptions {
        global: ParquetOptions { compression: Some("snappy".to_owned()), ..Default::default() },
        ..Default::default()
    };
    frame.write_parquet(output, DataFrameWriteOptions::new(), Some(options)).await?;
    Ok(())
}

fn data_type(name: &str) -> Result<DataType> {
    Ok(match name {
        "int64" => DataType::Int64,
        "int32" => DataType::Int32,
        "float64" => DataType::Float64,
        "date" => DataType::Date32,
        "string" => DataType::Utf8,
        "decimal" => DataType::Decimal128(15, 2),
        other => return Err(DataFusionError::Execution(format!("unknown type {other}"))),
    })
}

//! How fast an executor sends the rows that it keeps: over Flight, against a plain TCP copy of the same file.
//!
//! ```text
//! exchange-bandwidth DIR TABLE.parquet ROUNDS     DIR is that of a local cluster with two executors, with TLS or without
//! ```
//!
//! The table is written as an exchange is, into the folder of executor 1, and read in turn by Flight as executor 2
//! reads it, to the last decoded row, and by a socket whose reader throws the bytes away.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use datafusion::arrow::ipc::CompressionType;
use datafusion::arrow::ipc::writer::{FileWriter, IpcWriteOptions};
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_stream::StreamExt as _;
use weir_executor::address::node_endpoint;
use weir_executor::tls::{IdentityFiles, TlsFiles};

/// As exchanges are written.
const BATCH_ROWS: usize = 8192;
const MOST_ROWS: u64 = 3_000_000;
const RUN_FOLDER: &str = "bandwidth";

#[derive(Deserialize)]
struct Cluster {
    executors: Vec<Executor>,
}

#[derive(Deserialize)]
struct Executor {
    id: String,
    url: String,
}

#[derive(Serialize)]
struct Measured {
    rows: u64,
    /// Of the file, and of its rows in memory.
    file_bytes: u64,
    memory_bytes: u64,
    /// Of each round.
    flight_seconds: Vec<f64>,
    tcp_seconds: Vec<f64>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, table, rounds] = arguments.as_slice() else {
        return Err("usage: exchange-bandwidth DIR TABLE.parquet ROUNDS".into());
    };
    let (dir, rounds) = (Path::new(dir), rounds.parse::<usize>()?);
    let cluster: Cluster =
        serde_json::from_reader(BufReader::new(File::open(dir.join("cluster.json"))?))?;
    let [from, to, ..] = cluster.executors.as_slice() else {
        return Err("two executors are needed".into());
    };
    let folder = dir.join(&from.id).join("exchange").join(RUN_FOLDER).join("exchange/0/0-1-1");
    let file = folder.join("0.arrow");
    std::fs::create_dir_all(&folder)?;
    let (rows, memory_bytes) = write_exchange(Path::new(table), &file)?;
    let mut measured = Measured {
        rows,
        file_bytes: file.metadata()?.len(),
        memory_bytes,
        flight_seconds: Vec::new(),
        tcp_seconds: Vec::new(),
    };
    for _ in 0..rounds {
        let start = Instant::now();
        let read = read_by_flight(&from.url, tls_of(dir, &to.id)).await?;
        measured.flight_seconds.push(start.elapsed().as_secs_f64());
        if read != rows {
            return Err(format!("{read} of {rows} rows have come").into());
        }
        let copied = file.clone();
        let seconds = tokio::task::spawn_blocking(move || copy_by_tcp(copied)).await?;
        measured.tcp_seconds.push(seconds?);
    }
    std::fs::remove_dir_all(dir.join(&from.id).join("exchange").join(RUN_FOLDER))?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Rows, and their bytes in memory.
fn write_exchange(table: &Path, file: &Path) -> Result<(u64, u64), Box<dyn Error>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(table)?)?;
    let reader = reader.with_batch_size(BATCH_ROWS).build()?;
    let options = IpcWriteOptions::default();
    let options = options.try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let schema = datafusion::arrow::array::RecordBatchReader::schema(&reader);
    let mut writer = FileWriter::try_new_with_options(File::create(file)?, &schema, options)?;
    let (mut rows, mut bytes) = (0, 0);
    for batch in reader {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        bytes += batch.get_array_memory_size() as u64;
        writer.write(&batch)?;
        if rows >= MOST_ROWS {
            break;
        }
    }
    writer.finish()?;
    Ok((rows, bytes))
}

/// `None` for a cluster without TLS.
fn tls_of(dir: &Path, name: &str) -> Option<TlsFiles> {
    let file = |name: &str| dir.join("tls").join(name);
    let authority = file("authority.pem");
    authority.exists().then(|| TlsFiles {
        authority,
        identity: Some(IdentityFiles {
            certificate: file(&format!("{name}.pem")),
            key: file(&format!("{name}.key")),
        }),
    })
}

async fn read_by_flight(url: &str, tls: Option<TlsFiles>) -> Result<u64, Box<dyn Error>> {
    let channel = node_endpoint(url, tls.as_ref())?.connect().await?;
    let mut client = FlightServiceClient::new(channel).max_decoding_message_size(1 << 30);
    let ticket =
        json!({ "run_folder": RUN_FOLDER, "stage": 0, "file_id": "0-1-1", "partition": 0 });
    let answer = client.do_get(Ticket::new(ticket.to_string())).await?.into_inner();
    let data = answer.map(|data| data.map_err(FlightError::from));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
    let mut rows = 0;
    while let Some(batch) = batches.next().await {
        rows += batch?.num_rows() as u64;
    }
    Ok(rows)
}

fn copy_by_tcp(file: PathBuf) -> std::io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let start = Instant::now();
    let sending = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept()?;
        let mut file = File::open(file)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                read => socket.write_all(&buffer[..read])?,
            }
        }
    });
    let mut socket = TcpStream::connect(address)?;
    let mut buffer = vec![0; 256 << 10];
    while socket.read(&mut buffer)? > 0 {}
    let sent: std::io::Result<()> = sending.join().expect("the sender does not panic");
    sent.map(|()| start.elapsed().as_secs_f64())
}

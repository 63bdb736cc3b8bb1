//! Rows that one process keeps and another one reads, over the network.

use std::sync::Arc;
use std::time::Duration;

use arrow::compute::concat_batches;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Criteria, Ticket};
use futures::TryStreamExt;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use weir_plan::{ExchangeOutput, Holder, InStorage, StageId};
use weir_proto::internal::TaskId;
use weir_spec::ExchangeDurability;

use super::fakes::*;
use crate::exchange::{
    ExchangeCompression, ExchangeFolder, FlightClients, Keeping, Places, read_files, serve,
};
use crate::storage::Storage;
use crate::{RunFolder, TaskError};

const RUN_FOLDER: &str = "orders/runs/1";
const ROWS: i64 = 50_000;

/// A process that keeps rows and serves them.
struct Server {
    root: TempDir,
    url: String,
    stop: CancellationToken,
}

impl Server {
    async fn start() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, None, root.path().join("exchange"), stop.clone()));
        Self { root, url, stop }
    }

    fn keeping(&self, executor: &str) -> Keeping {
        Keeping {
            root: self.root.path().join("exchange"),
            holder: self.holder(executor),
            clients: Arc::new(FlightClients::new(None)),
            compression: ExchangeCompression::default(),
        }
    }

    fn holder(&self, executor: &str) -> Holder {
        Holder { executor: executor.into(), boot_id: "boot".into(), url: self.url.clone() }
    }

    /// Partition 2 of a slice's output.
    fn write(&self, file_id: &str, ids: impl Iterator<Item = i64>) -> ExchangeOutput {
        self.write_as(ExchangeDurability::Off, file_id, ids)
    }

    fn write_as(
        &self,
        durability: ExchangeDurability,
        file_id: &str,
        ids: impl Iterator<Item = i64>,
    ) -> ExchangeOutput {
        let places = self.places("one");
        let (folder, holder, in_storage) = places.output(durability);
        let folder = ExchangeFolder::create(&folder, StageId(4), file_id, false).expect("writable");
        let mut writer = folder.writer(2, &row_schema()).expect("writable");
        writer.write(rows_of(ids)).expect("written");
        writer.finish().expect("finished");
        folder.publish().expect("published");
        ExchangeOutput { file_id: file_id.to_owned(), first: 2, partitions: 1, holder, in_storage }
    }

    /// Takes it to the storage.
    async fn store(&self, kept: &ExchangeOutput) {
        let task = TaskId { run: "1".to_owned(), stage: 4, ..TaskId::default() };
        let job = self.places("one").to_store(&task, kept).expect("it keeps them");
        let (places, unwanted) = (Semaphore::new(1), CancellationToken::new());
        job.store(&places, &unwanted).await.expect("stored");
    }

    fn places(&self, executor: &str) -> Places {
        let storage = RunFolder::new(Storage::folder(self.root.path().join("storage")));
        Places { storage, keeping: Some((self.keeping(executor), RUN_FOLDER.to_owned())) }
    }
}

async fn read(
    places: &Places,
    outputs: &[ExchangeOutput],
) -> Result<Vec<arrow::array::RecordBatch>, datafusion::error::DataFusionError> {
    let inputs = [(StageId(4), outputs.to_vec())].into();
    let files = places.files_of(&inputs, StageId(4), 2).expect("it is there");
    read_files(files, "reader", |_| {}).try_collect().await
}

/// As the reader's task ends with it.
fn classified(error: datafusion::error::DataFusionError) -> TaskError {
    let site = crate::failure::FailureSite {
        stage: "joined",
        spill: std::path::Path::new("/spill"),
        memory_bytes: 1,
    };
    site.classify(error)
}

#[tokio::test]
async fn rows_come_from_whoever_keeps_them() {
    let server = Server::start().await;
    let outputs = [server.write("0-1-1", 0..ROWS), server.write("1-1-3", ROWS..2 * ROWS)];
    // The same name, another process: what is below its own root is not meant.
    for reader in ["one", "two"] {
        let mut places = server.places(reader);
        if reader == "two" {
            let elsewhere = server.root.path().join("elsewhere");
            places.keeping.as_mut().expect("it keeps").0.root = elsewhere;
        }
        let batches = read(&places, &outputs).await.expect("readable");
        let rows = concat_batches(&row_schema(), &batches).expect("one schema");
        assert_eq!(rows, rows_of(0..2 * ROWS), "read by {reader}");
    }
}

/// A merge goes on with one of its inputs while it leaves the others alone.
#[tokio::test]
async fn streams_that_wait_keep_no_other_stream_from_its_end() {
    let server = Server::start().await;
    let mut places = server.places("two");
    places.keeping.as_mut().expect("it keeps").0.root = server.root.path().join("elsewhere");
    // Nothing that shrinks on the way.
    let scattered = |id: i64| id.wrapping_mul(0x1e37_79b9_7f4a_7c15);
    let reading = async {
        let mut streams = Vec::new();
        for number in 0..8 {
            let output = server.write(&format!("{number}-1-1"), (0..4 * ROWS).map(scattered));
            let inputs = [(StageId(4), vec![output])].into();
            let files = places.files_of(&inputs, StageId(4), 2).expect("it is there");
            let mut stream = read_files(files, "reader", |_| {});
            let first = stream.try_next().await.expect("readable").expect("it has rows");
            streams.push((first.num_rows(), stream));
        }
        let mut rows = Vec::new();
        for (first, stream) in streams.into_iter().rev() {
            let rest: Vec<_> = stream.try_collect().await.expect("readable");
            rows.push(rest.iter().fold(first, |rows, batch| rows + batch.num_rows()));
        }
        rows
    };
    let read = tokio::time::timeout(Duration::from_secs(60), reading).await;
    let each = usize::try_from(4 * ROWS).expect("it is small");
    assert_eq!(read.expect("none waits for another"), [each; 8]);
}

/// Of local files as well as of those that others keep, to either side.
#[test]
fn files_that_are_open_and_not_read_take_no_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .expect("threads can be started");
    let reading = async {
        let server = Server::start().await;
        let mut elsewhere = server.places("two");
        let root = server.root.path().join("elsewhere");
        elsewhere.keeping.as_mut().expect("it keeps").0.root = root;
        for (places, attempt) in [(server.places("one"), 1), (elsewhere, 2)] {
            let mut streams = Vec::new();
            for number in 0..6 {
                let output = server.write(&format!("{number}-1-{attempt}"), 0..4 * ROWS);
                let inputs = [(StageId(4), vec![output])].into();
                let files = places.files_of(&inputs, StageId(4), 2).expect("it is there");
                let mut stream = read_files(files, "reader", |_| {});
                stream.try_next().await.expect("readable").expect("it has rows");
                streams.push(stream);
            }
            for stream in streams.into_iter().rev() {
                stream.try_collect::<Vec<_>>().await.expect("readable");
            }
        }
    };
    let read = async { tokio::time::timeout(Duration::from_secs(60), reading).await };
    runtime.block_on(read).expect("none waits for the thread of another");
}

#[tokio::test]
async fn rows_that_are_gone_are_no_fault_of_the_reader() {
    let server = Server::start().await;
    let there = server.write("0-1-1", 0..10);
    let gone = ExchangeOutput { file_id: "0-1-2".to_owned(), ..there.clone() };
    let error = classified(read(&server.places("two"), &[gone]).await.expect_err("it is gone"));
    assert!(matches!(error, TaskError::InputLost { .. }), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains("stage `joined`: rows of stage 4 that executor one keeps"),
        "{message}"
    );
    assert!(message.contains("does not have the rows"), "{message}");

    server.stop.cancel();
    let nobody = Holder { url: "http://127.0.0.1:9".to_owned(), ..server.holder("one") };
    let unreachable = ExchangeOutput { holder: Some(nobody), ..there };
    let error =
        classified(read(&server.places("two"), &[unreachable]).await.expect_err("nobody is there"));
    assert!(matches!(error, TaskError::InputLost { .. }), "{error:?}");
}

#[tokio::test]
async fn rows_that_were_stored_are_read_from_the_storage_when_their_holder_is_gone() {
    let server = Server::start().await;
    let kept = server.write_as(ExchangeDurability::Async, "0-1-1", 0..ROWS);
    assert_eq!(kept.in_storage, InStorage::Coming);
    let nobody = Holder { url: "http://127.0.0.1:9".to_owned(), ..server.holder("one") };
    let coming = ExchangeOutput { holder: Some(nobody), ..kept.clone() };
    let nowhere = read(&server.places("two"), std::slice::from_ref(&coming)).await;
    let error = classified(nowhere.expect_err("nobody has them"));
    assert!(matches!(error, TaskError::InputLost { .. }), "{error:?}");

    // A storage that has refused them does not make it worse.
    let in_the_way = server.root.path().join("storage/exchange/4/0-1-1");
    std::fs::create_dir_all(in_the_way.parent().expect("a folder")).expect("writable");
    std::fs::write(&in_the_way, "").expect("writable");
    let refused = read(&server.places("two"), std::slice::from_ref(&coming)).await;
    let error = classified(refused.expect_err("nobody has them"));
    assert!(matches!(error, TaskError::InputLost { .. }), "{error:?}");
    std::fs::remove_file(&in_the_way).expect("it was there");

    server.store(&kept).await;
    server.stop.cancel();
    // The reader may have begun before the ledger has heard of it; and the leader may know that the holder is gone.
    let stored = ExchangeOutput { in_storage: InStorage::Yes, ..coming.clone() };
    let known = ExchangeOutput { holder: None, ..stored.clone() };
    for output in [coming, stored, known] {
        let batches = read(&server.places("two"), &[output]).await.expect("the storage has them");
        let rows = concat_batches(&row_schema(), &batches).expect("one schema");
        assert_eq!(rows, rows_of(0..ROWS));
    }
}

#[tokio::test]
async fn a_reader_goes_on_in_the_storage_when_the_holder_falls_silent() {
    let server = Server::start().await;
    let kept = server.write_as(ExchangeDurability::Async, "0-1-1", 0..ROWS);
    server.store(&kept).await;
    // It can be read up to the middle.
    let file =
        server.root.path().join("exchange").join(RUN_FOLDER).join("exchange/4/0-1-1/2.arrow");
    let length = std::fs::metadata(&file).expect("it is there").len();
    let cut = std::fs::File::options().write(true).open(&file).expect("it can be written");
    cut.set_len(length / 2).expect("it can be cut");
    let batches = read(&server.places("two"), &[kept]).await.expect("the storage has the rest");
    assert!(batches.len() > 1);
    let rows = concat_batches(&row_schema(), &batches).expect("one schema");
    assert_eq!(rows, rows_of(0..ROWS));
}

#[tokio::test]
async fn nothing_but_outputs_is_served() {
    let server = Server::start().await;
    server.write("0-1-1", 0..10);
    std::fs::write(server.root.path().join("secret"), "hidden").expect("writable");
    let channel = crate::address::endpoint(&server.url, None).expect("a URL").connect_lazy();
    let mut client = FlightServiceClient::new(channel);
    let ticket = |run_folder: &str, file_id: &str| {
        format!(r#"{{"run_folder":"{run_folder}","stage":4,"file_id":"{file_id}","partition":2}}"#)
    };
    for refused in [
        ticket("../exchange/orders/runs/1", "0-1-1"),
        ticket("/etc", "0-1-1"),
        ticket("orders/../../exchange/orders/runs/1", "0-1-1"),
        ticket("", "0-1-1"),
        ticket(r"orders/runs/1\u0000", "0-1-1"),
        ticket(RUN_FOLDER, "../4/0-1-1"),
        ticket(RUN_FOLDER, "0-1"),
        ticket(RUN_FOLDER, "0-1-"),
        ticket(RUN_FOLDER, ".0-1-2.tmp"),
        r#"{"path":"/etc/passwd"}"#.to_owned(),
        "not json".to_owned(),
    ] {
        let status = client.do_get(Ticket::new(refused.clone())).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{refused}: {status:?}");
    }
    let missing = client.do_get(Ticket::new(ticket(RUN_FOLDER, "7-1-1"))).await;
    assert_eq!(missing.expect_err("there is none").code(), Code::NotFound);
    let listed = client.list_flights(Criteria::default()).await;
    assert_eq!(listed.expect_err("nothing is listed").code(), Code::Unimplemented);
    let large = Ticket::new(vec![b' '; 1 << 20]);
    assert_eq!(client.do_get(large).await.expect_err("too large").code(), Code::OutOfRange);
    let served = client.do_get(Ticket::new(ticket(RUN_FOLDER, "0-1-1"))).await;
    served.expect("and what is there is served");
}

//! File sinks against the conformance suite, and what is special about files.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Decimal128Array, ListArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use async_trait::async_trait;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use weir_spec::{
    CommitMode, Compression, FileFormat, FileTarget, InputRef, NodeName, SchemaPolicy, SinkTarget,
    TemplateText, WriteMode,
};

use crate::sink_conformance::{
    SinkUnderTest, TestRow, check_sink, test_batch, test_identity, test_rows, test_schema,
};
use crate::{
    ConnectorContext, ConnectorError, ErrorKind, PreparedSink, Redactor, Secrets, Sink, SinkTask,
    SinkWriter,
};

const CSV: FileFormat = FileFormat::Csv { delimiter: b',', quote: b'"', header: true };

fn file_sink(
    path: &Path,
    format: FileFormat,
    mode: WriteMode,
    commit: CommitMode,
    change: impl FnOnce(&mut FileTarget),
) -> Result<Arc<dyn Sink>, ConnectorError> {
    let mut target = FileTarget {
        path: TemplateText::new(path.to_str().expect("temporary paths are UTF-8")),
        format,
        partition_by: Vec::new(),
        target_file_size_bytes: NonZeroU64::new(128 << 20).expect("not zero"),
        compression: Compression::Auto,
    };
    change(&mut target);
    let sink = weir_spec::Sink {
        inputs: vec![InputRef { node: NodeName::new("in"), errors: false }],
        target: SinkTarget::Files(target),
        mode,
        key: Vec::new(),
        commit,
        batch_rows: NonZeroU64::new(1000).expect("not zero"),
        schema: SchemaPolicy::default(),
    };
    let context = ConnectorContext::new("/", Secrets::default(), Redactor::default());
    crate::registry::open_sink("out", &sink, &context)
}

/// Data files below a folder, without what readers skip.
fn data_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return files };
    for entry in entries {
        let entry = entry.expect("the folder can be listed");
        if entry.file_name().to_string_lossy().starts_with('_') {
            continue;
        }
        if entry.path().is_dir() {
            files.extend(data_files(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

fn read_text(path: &Path) -> String {
    let bytes = fs::read(path).expect("the file can be read");
    let name = path.to_string_lossy();
    let mut text = String::new();
    if name.ends_with(".gz") {
        use std::io::Read as _;
        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("is gzip");
    } else if name.ends_with(".zst") {
        text = String::from_utf8(zstd::decode_all(&bytes[..]).expect("is zstd")).expect("is UTF-8");
    } else {
        text = String::from_utf8(bytes).expect("is UTF-8");
    }
    text
}

fn read_rows(path: &Path) -> Vec<TestRow> {
    let name = path.to_string_lossy();
    if name.ends_with(".parquet") {
        let file = fs::File::open(path).expect("the file opens");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("is Parquet");
        let mut rows = Vec::new();
        for batch in reader.build().expect("can be read") {
            let batch = batch.expect("can be read");
            let ids = batch.column(0).as_primitive::<Int64Type>().clone();
            let labels =
                batch.column_by_name("label").map(|array| array.as_string::<i32>().clone());
            for row in 0..batch.num_rows() {
                let label = labels.as_ref().filter(|labels| labels.is_valid(row));
                rows.push((ids.value(row), label.map(|labels| labels.value(row).to_owned())));
            }
        }
        rows
    } else if name.contains(".jsonl") {
        let text = read_text(path);
        text.lines()
            .map(|line| {
                let row: serde_json::Value = serde_json::from_str(line).expect("is JSON");
                (row["id"].as_i64().expect("is a number"), row["label"].as_str().map(str::to_owned))
            })
            .collect()
    } else {
        let text = read_text(path);
        let reader = arrow::csv::ReaderBuilder::new(test_schema())
            .with_header(true)
            .build(std::io::Cursor::new(text))
            .expect("is CSV");
        let mut rows = Vec::new();
        for batch in reader {
            let batch = batch.expect("is CSV");
            let labels = batch.column(1).as_string::<i32>();
            for (row, id) in batch.column(0).as_primitive::<Int64Type>().values().iter().enumerate()
            {
                let label = labels.is_valid(row).then(|| labels.value(row).to_owned());
                rows.push((*id, label));
            }
        }
        rows
    }
}

struct FilesUnderTest {
    folder: tempfile::TempDir,
    format: FileFormat,
    compression: Compression,
    mode: WriteMode,
    commit: CommitMode,
}

#[async_trait]
impl SinkUnderTest for FilesUnderTest {
    fn mode(&self) -> WriteMode {
        self.mode
    }
    fn open(&self) -> Arc<dyn Sink> {
        let path = self.folder.path().join("out");
        file_sink(&path, self.format.clone(), self.mode, self.commit, |target| {
            target.compression = self.compression;
        })
        .expect("the sink is well configured")
    }
    async fn visible(&self) -> Vec<TestRow> {
        let files = data_files(&self.folder.path().join("out"));
        files.iter().flat_map(|path| read_rows(path)).collect()
    }
    async fn leftovers(&self) -> Vec<String> {
        let controls = [self.folder.path().join("out/_weir"), self.folder.path().join("_weir-out")];
        let mut found = Vec::new();
        for control in controls {
            let Ok(entries) = fs::read_dir(&control) else { continue };
            for entry in entries {
                let name = entry.expect("the folder can be listed").file_name();
                let name = name.to_string_lossy().into_owned();
                let is_kept = name.starts_with("fence-")
                    || ["folder.json", "manifests"].contains(&name.as_str());
                if !is_kept {
                    found.push(name);
                }
            }
        }
        found
    }
}

async fn check_files(
    format: FileFormat,
    compression: Compression,
    mode: WriteMode,
    commit: CommitMode,
) {
    check_sink(&|| {
        let format = format.clone();
        Box::pin(async move {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let target = FilesUnderTest { folder, format, compression, mode, commit };
            Box::new(target) as Box<dyn SinkUnderTest>
        })
    })
    .await;
}

#[tokio::test]
async fn parquet_batches_conform() {
    check_files(FileFormat::Parquet, Compression::Auto, WriteMode::Append, CommitMode::Batch).await;
}

#[tokio::test]
async fn parquet_runs_conform() {
    check_files(FileFormat::Parquet, Compression::Zstd, WriteMode::Append, CommitMode::Run).await;
}

#[tokio::test]
async fn parquet_replacements_conform() {
    check_files(FileFormat::Parquet, Compression::None, WriteMode::Replace, CommitMode::Run).await;
}

#[tokio::test]
async fn csv_batches_conform() {
    check_files(CSV, Compression::None, WriteMode::Append, CommitMode::Batch).await;
}

#[tokio::test]
async fn csv_runs_conform() {
    check_files(CSV, Compression::Gzip, WriteMode::Append, CommitMode::Run).await;
}

#[tokio::test]
async fn csv_replacements_conform() {
    check_files(CSV, Compression::Zstd, WriteMode::Replace, CommitMode::Run).await;
}

#[tokio::test]
async fn json_batches_conform() {
    check_files(FileFormat::Json, Compression::Gzip, WriteMode::Append, CommitMode::Batch).await;
}

#[tokio::test]
async fn json_runs_conform() {
    check_files(FileFormat::Json, Compression::Zstd, WriteMode::Append, CommitMode::Run).await;
}

#[tokio::test]
async fn json_replacements_conform() {
    check_files(FileFormat::Json, Compression::Auto, WriteMode::Replace, CommitMode::Run).await;
}

/// A prepared sink with its writer of slice 0.
async fn writer_of(
    sink: &Arc<dyn Sink>,
    schema: &SchemaRef,
) -> Result<Box<dyn SinkWriter>, ConnectorError> {
    let prepared = sink.prepare(&test_identity("r1", 1), schema).await?;
    let task = SinkTask { prepared, epoch: 1, slice: 0, attempt: 1, schema: schema.clone() };
    sink.writer(task).await
}

async fn write_batch(sink: &Arc<dyn Sink>, rows: &RecordBatch) {
    let mut writer = writer_of(sink, &rows.schema()).await.expect("the sink can be prepared");
    writer.write(rows.clone()).await.expect("rows can be written");
    let staged = writer.stage(0, rows.num_rows() as u64, 0).await.expect("can be staged");
    writer.publish(&staged).await.expect("can be published");
}

/// One row with the types that text formats have to render, and one of nulls.
fn rich_batch() -> RecordBatch {
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]);
    let json = Field::new("doc", DataType::Utf8, true)
        .with_metadata([("weir.type".to_owned(), "json".to_owned())].into());
    let fields = vec![
        Field::new("amount", DataType::Decimal128(10, 2), true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("raw", DataType::Binary, true),
        Field::new("items", list.data_type().clone(), true),
        json,
        Field::new("text", DataType::Utf8, true),
    ];
    let amounts = Decimal128Array::from(vec![Some(-1205), None])
        .with_precision_and_scale(10, 2)
        .expect("fits");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(amounts),
        Arc::new(
            TimestampMicrosecondArray::from(vec![Some(1_700_000_000_123_456), None])
                .with_timezone("UTC"),
        ),
        Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\x00\xff!"), None])),
        Arc::new(list),
        Arc::new(StringArray::from(vec![Some("{\"a\":\n 1.50}"), None])),
        Arc::new(StringArray::from(vec![Some(""), None])),
    ];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("the columns fit")
}

async fn text_of(format: FileFormat) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let sink = file_sink(folder.path(), format, WriteMode::Append, CommitMode::Batch, |_| ())
        .expect("the sink is well configured");
    write_batch(&sink, &rich_batch()).await;
    let files = data_files(folder.path());
    assert_eq!(files.len(), 1);
    read_text(&files[0])
}

#[tokio::test]
async fn csv_cells_keep_every_type_and_tell_null_from_empty() {
    assert_eq!(
        text_of(CSV).await,
        "amount,at,raw,items,doc,text\n\
         -12.05,2023-11-14T22:13:20.123456Z,AP8h,\"[1,null]\",\"{\"\"a\"\":\n 1.50}\",\"\"\n\
         ,,,,,\n"
    );
}

#[tokio::test]
async fn json_lines_keep_every_type_and_explicit_nulls() {
    assert_eq!(
        text_of(FileFormat::Json).await,
        "{\"amount\":-12.05,\"at\":\"2023-11-14T22:13:20.123456Z\",\"raw\":\"AP8h\",\
         \"items\":[1,null],\"doc\":{\"a\":  1.50},\"text\":\"\"}\n\
         {\"amount\":null,\"at\":null,\"raw\":null,\"items\":null,\"doc\":null,\"text\":null}\n"
    );
}

#[tokio::test]
async fn partitions_become_folders_and_leave_the_files() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let sink = file_sink(
        folder.path(),
        FileFormat::Parquet,
        WriteMode::Append,
        CommitMode::Batch,
        |target| target.partition_by = vec!["label".to_owned()],
    )
    .expect("the sink is well configured");
    let rows: Vec<TestRow> = [Some("a/b=c"), None, Some("Zürich"), Some("a/b=c")]
        .into_iter()
        .zip(0..)
        .map(|(label, id)| (id, label.map(str::to_owned)))
        .collect();
    write_batch(&sink, &test_batch(&rows)).await;
    let found: BTreeSet<(String, Vec<TestRow>)> = data_files(folder.path())
        .iter()
        .map(|path| {
            let parent = path.parent().and_then(Path::file_name).expect("is in a folder");
            (parent.to_string_lossy().into_owned(), read_rows(path))
        })
        .collect();
    let expected = [
        ("label=Zürich".to_owned(), vec![(2, None)]),
        ("label=__HIVE_DEFAULT_PARTITION__".to_owned(), vec![(1, None)]),
        ("label=a%2Fb%3Dc".to_owned(), vec![(0, None), (3, None)]),
    ];
    assert_eq!(found, expected.into_iter().collect());
}

#[tokio::test]
async fn more_partitions_than_open_files_lose_no_row() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let sink = file_sink(folder.path(), CSV, WriteMode::Append, CommitMode::Batch, |target| {
        target.partition_by = vec!["label".to_owned()];
    })
    .expect("the sink is well configured");
    let rows: Vec<TestRow> = (0..600).map(|id| (id, Some(format!("p{}", id % 150)))).collect();
    write_batch(&sink, &test_batch(&rows)).await;
    let lines: usize =
        data_files(folder.path()).iter().map(|path| read_text(path).lines().count() - 1).sum();
    assert_eq!(lines, 600);
    let prepared = sink.prepare(&test_identity("r1", 1), &test_schema()).await.expect("prepared");
    let published = sink.published(&prepared, &[]).await.expect("can be audited");
    assert_eq!(published.iter().map(|batch| batch.rows).sum::<u64>(), 600);
}

#[tokio::test]
async fn files_are_rolled_at_their_target_size() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let sink = file_sink(
        folder.path(),
        FileFormat::Parquet,
        WriteMode::Append,
        CommitMode::Batch,
        |target| target.target_file_size_bytes = NonZeroU64::new(20_000).expect("not zero"),
    )
    .expect("the sink is well configured");
    let mut writer = writer_of(&sink, &test_schema()).await.expect("the sink can be prepared");
    for part in 0..10 {
        writer.write(test_batch(&test_rows(part * 1000, 1000))).await.expect("can be written");
        assert!(writer.open_bytes() > 0);
    }
    let staged = writer.stage(0, 10_000, 0).await.expect("can be staged");
    assert_eq!(writer.open_bytes(), 0);
    writer.publish(&staged).await.expect("can be published");
    let files = data_files(folder.path());
    assert!(files.len() > 2, "{files:?}");
    let rows: usize = files.iter().map(|path| read_rows(path).len()).sum();
    assert_eq!(rows, 10_000);
}

#[tokio::test]
async fn replacing_refuses_a_folder_with_foreign_files() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let target = folder.path().join("out");
    fs::create_dir(&target).expect("can be created");
    fs::write(target.join("notes.txt"), "mine").expect("can be written");
    let sink = file_sink(&target, CSV, WriteMode::Replace, CommitMode::Run, |_| ())
        .expect("the sink is well configured");
    let error = writer_of(&sink, &test_schema()).await.err().expect("foreign files are kept");
    assert_eq!(error.kind, ErrorKind::Config);
    assert!(error.message.contains("notes.txt"), "{error}");
    // Appending to it does not make it Weir's either.
    let appending = file_sink(&target, CSV, WriteMode::Append, CommitMode::Batch, |_| ())
        .expect("the sink is well configured");
    write_batch(&appending, &test_batch(&test_rows(0, 3))).await;
    let error = writer_of(&sink, &test_schema()).await.err().expect("foreign files are kept");
    assert_eq!(error.kind, ErrorKind::Config);
    assert_eq!(fs::read_to_string(target.join("notes.txt")).expect("is there"), "mine");
}

#[tokio::test]
async fn an_interrupted_exchange_is_finished_from_every_step() {
    // Steps: 0 files partly moved, 1 the old folder renamed aside, 2 exchanged, not yet removed.
    for step in 0..3 {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let target = folder.path().join("out");
        let control = folder.path().join("_weir-out");
        let open = || {
            file_sink(&target, CSV, WriteMode::Replace, CommitMode::Run, |_| ())
                .expect("the sink is well configured")
        };
        let mut rounds = Vec::new();
        for (run, first) in [("r1", 0), ("r2", 100)] {
            let sink = open();
            let identity = test_identity(run, 1);
            let prepared = sink.prepare(&identity, &test_schema()).await.expect("prepared");
            let task = SinkTask {
                prepared: prepared.clone(),
                epoch: 1,
                slice: 0,
                attempt: 1,
                schema: test_schema(),
            };
            let mut writer = sink.writer(task).await.expect("a writer");
            let mut manifests = Vec::new();
            for sequence in 0..2 {
                let rows = test_rows(first + 10 * sequence as i64, 10);
                writer.write(test_batch(&rows)).await.expect("can be written");
                let manifest = writer.stage(sequence, 10, 0).await.expect("can be staged");
                writer.publish(&manifest).await.expect("can be published");
                manifests.push(manifest);
            }
            if run == "r1" {
                sink.commit_run(&prepared, &manifests, 1).await.expect("can be committed");
                sink.clean_up(&prepared, 1).await.expect("can be cleaned up");
            }
            rounds.push((prepared, manifests));
        }
        let (prepared, manifests) = &rounds[1];
        match step {
            0 => {
                let staged = &manifests[0].payload["files"][0];
                let next = control.join("next-r2-out");
                fs::create_dir_all(&next).expect("can be created");
                let text = |key: &str| staged[key].as_str().expect("is text").to_owned();
                fs::rename(
                    control.join("staging/r2/out").join(text("staged")),
                    next.join(text("target")),
                )
                .expect("can be moved");
            }
            1 => {
                open().commit_run(prepared, manifests, 1).await.expect("can be committed");
                fs::rename(&target, control.join("next-r2-out")).expect("can be moved");
                fs::create_dir(control.join("old-r2-out")).expect("can be created");
            }
            _ => {
                open().commit_run(prepared, manifests, 1).await.expect("can be committed");
                fs::create_dir(control.join("next-r2-out")).expect("can be created");
                fs::write(control.join("next-r2-out/old.csv"), "old").expect("can be written");
            }
        }
        for _ in 0..2 {
            open().commit_run(prepared, manifests, 2).await.expect("can be finished");
        }
        let rows: Vec<TestRow> =
            data_files(&target).iter().flat_map(|path| read_rows(path)).collect();
        assert_eq!(rows, test_rows(100, 20), "after step {step}");
        open().clean_up(prepared, 2).await.expect("can be cleaned up");
        let left: Vec<_> = fs::read_dir(&control)
            .expect("is there")
            .map(|entry| entry.expect("can be listed").file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with("fence-"))
            .collect();
        assert_eq!(left, Vec::<String>::new(), "after step {step}");
        let (first, batches) = &rounds[0];
        let error = open().published(first, batches).await.expect_err("r1 has been replaced");
        assert!(error.message.contains("run r2 has replaced it"), "{error}");
    }
}

#[tokio::test]
async fn a_partly_renamed_batch_is_finished_or_taken_back_whole() {
    for is_lost in [false, true] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let sink = file_sink(
            folder.path(),
            FileFormat::Json,
            WriteMode::Append,
            CommitMode::Batch,
            |target| target.partition_by = vec!["label".to_owned()],
        )
        .expect("the sink is well configured");
        let mut writer = writer_of(&sink, &test_schema()).await.expect("the sink can be prepared");
        let rows: Vec<TestRow> = (0..6).map(|id| (id, Some(format!("p{}", id % 3)))).collect();
        writer.write(test_batch(&rows)).await.expect("can be written");
        let manifest = writer.stage(0, 6, 0).await.expect("can be staged");
        // The process is paused after the first of three renames.
        let files = manifest.payload["files"].as_array().expect("is a list").clone();
        let staging = folder.path().join("_weir/staging/r1/out");
        let to = folder.path().join(files[0]["target"].as_str().expect("is text"));
        fs::create_dir_all(to.parent().expect("is in a folder")).expect("can be created");
        fs::rename(staging.join(files[0]["staged"].as_str().expect("is text")), to)
            .expect("can be moved");
        if is_lost {
            fs::remove_file(staging.join(files[2]["staged"].as_str().expect("is text")))
                .expect("can be removed");
        }
        let prepared =
            sink.prepare(&test_identity("r1", 1), &test_schema()).await.expect("prepared");
        let recovery = sink.recover(&prepared, &manifest, 1, 1).await.expect("can be asked");
        let (expected, count) = match is_lost {
            false => (crate::Recovery::Published, 3),
            true => (crate::Recovery::Lost, 0),
        };
        assert_eq!(recovery, expected);
        assert_eq!(data_files(folder.path()).len(), count);
        // It wakes up, in the same epoch.
        assert_eq!(writer.publish(&manifest).await.is_err(), is_lost);
        assert_eq!(data_files(folder.path()).len(), count);
    }
}

#[tokio::test]
async fn nobody_waits_for_a_writer_that_is_paused_while_it_renames() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let sink = file_sink(folder.path(), CSV, WriteMode::Append, CommitMode::Batch, |_| {})
        .expect("the sink is well configured");
    let identity = test_identity("r1", 1);
    let mut writer = writer_of(&sink, &test_schema()).await.expect("the sink can be prepared");
    writer.write(test_batch(&test_rows(0, 5))).await.expect("can be written");
    let manifest = writer.stage(0, 5, 0).await.expect("can be staged");
    let prepared = PreparedSink { identity, payload: serde_json::Value::Null, notes: Vec::new() };
    let layout = super::layout::Layout::inside(folder.path().to_owned());
    let _paused = super::fence::hold(&layout, &prepared.identity, 1).expect("nobody else is here");
    let (schema, epoch) = (test_schema(), 1);
    let next = SinkTask { prepared: prepared.clone(), epoch, slice: 0, attempt: 2, schema };
    let going_on = async {
        let recovery = sink.recover(&prepared, &manifest, 1, 1).await.expect("can be asked");
        assert_eq!(recovery, crate::Recovery::Published);
        sink.writer(next).await.map(drop).expect("a writer can be opened");
    };
    let limit = std::time::Duration::from_secs(10);
    tokio::time::timeout(limit, going_on).await.expect("nothing is waited for");
}

#[tokio::test]
async fn parquet_files_have_the_codec_that_the_file_names() {
    use parquet::basic::Compression as Codec;
    for (compression, is_right) in [
        (Compression::Auto, (|codec| codec == Codec::SNAPPY) as fn(Codec) -> bool),
        (Compression::None, |codec| codec == Codec::UNCOMPRESSED),
        (Compression::Zstd, |codec| matches!(codec, Codec::ZSTD(_))),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let sink = file_sink(
            folder.path(),
            FileFormat::Parquet,
            WriteMode::Append,
            CommitMode::Batch,
            |target| target.compression = compression,
        )
        .expect("the compression is possible");
        write_batch(&sink, &test_batch(&test_rows(0, 100))).await;
        let files = data_files(folder.path());
        let [file] = files.as_slice() else { panic!("one file is written: {files:?}") };
        let file = fs::File::open(file).expect("the file is there");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("the file is Parquet");
        let codec = reader.metadata().row_group(0).column(0).compression();
        assert!(is_right(codec), "{compression:?} is written as {codec:?}");
    }
}

#[tokio::test]
async fn mistakes_are_named_before_the_first_row() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let open = |mode, change: &dyn Fn(&mut FileTarget)| {
        file_sink(folder.path(), FileFormat::Parquet, mode, CommitMode::Batch, |target| {
            change(target);
        })
    };
    let error = open(WriteMode::Upsert, &|_| ()).expect_err("files have no keys");
    assert!(error.message.contains("cannot be upserted"), "{error}");
    let error = open(WriteMode::Append, &|target| target.compression = Compression::Gzip)
        .expect_err("no Parquet with gzip");
    assert!(error.message.contains("zstd"), "{error}");
    let partitioned = |columns: &[&str]| {
        let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
        open(WriteMode::Append, &|target| target.partition_by = columns.clone())
            .expect("checked with the schema")
    };
    for (columns, message) in
        [(&["nope"][..], "they have id, label"), (&["id", "label"][..], "names all columns")]
    {
        let error = writer_of(&partitioned(columns), &test_schema()).await.err().expect("refused");
        assert_eq!(error.kind, ErrorKind::Config);
        assert!(error.message.contains(message), "{error}");
    }
    let file = folder.path().join("file");
    fs::write(&file, "").expect("can be written");
    let sink = file_sink(&file.join("out"), CSV, WriteMode::Append, CommitMode::Batch, |_| ())
        .expect("the sink is well configured");
    let error = sink.check().await.expect_err("a file is no folder");
    assert_eq!(error.kind, ErrorKind::Config, "{error}");
    let error = writer_of(&sink, &test_schema()).await.err().expect("a file is no folder");
    assert_eq!(error.kind, ErrorKind::Config, "{error}");
}

#[test]
fn a_full_disk_is_told_with_what_is_free() {
    let full = std::io::Error::from_raw_os_error(28);
    let error = super::durable::io_error("write", Path::new("/tmp/out"), full);
    assert_eq!(error.kind, ErrorKind::Exhausted);
    assert!(
        error.message.contains("/tmp/out") && error.message.contains("KiB are free"),
        "{error}"
    );
}

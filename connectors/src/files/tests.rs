//! What holds for files of every format.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use futures::StreamExt as _;
use weir_spec::{ParquetSource, TemplateText};

use crate::files::csv::CsvFiles;
use crate::files::csv::tests::csv_source;
use crate::files::json::JsonFiles;
use crate::files::json::tests::json_source;
use crate::files::parquet::ParquetFiles;
use crate::{
    ConnectorContext, ConnectorError, ErrorKind, Redactor, ScanRequest, Secrets, Source, Split,
};

const ROWS: i64 = 120_000;
const NAMES: [&str; 4] = ["a.csv", "lines.json", "array.json", "a.parquet"];

fn content(name: &str, from: i64) -> Vec<u8> {
    let ids = from..from + ROWS;
    let records = ids.clone().map(|id| format!("{{\"id\": {id}}}"));
    match name {
        "a.csv" => {
            format!("id\n{}\n", ids.map(|id| id.to_string()).collect::<Vec<_>>().join("\n")).into()
        }
        "lines.json" => records.collect::<Vec<_>>().join("\n").into(),
        "array.json" => format!("[{}]", records.collect::<Vec<_>>().join(",")).into(),
        _ => {
            let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
            let rows = RecordBatch::try_from_iter([("id", ids)]).expect("a batch");
            let mut bytes = Vec::new();
            let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, rows.schema(), None)
                .expect("a writer");
            writer.write(&rows).expect("written");
            writer.close().expect("written");
            bytes
        }
    }
}

fn open(folder: &Path, name: &str) -> Box<dyn Source> {
    let context = ConnectorContext::new(folder, Secrets::default(), Redactor::default());
    match name.rsplit_once('.').expect("a suffix").1 {
        "csv" => Box::new(CsvFiles::new("n", &csv_source(name), &context).expect("a source")),
        "json" => Box::new(JsonFiles::new("n", &json_source(name), &context).expect("a source")),
        _ => {
            let source = ParquetSource { path: TemplateText::new(name), hive_partitions: None };
            Box::new(ParquetFiles::new("n", &source, &context))
        }
    }
}

/// Reads all, and calls `meanwhile` behind the first batch.
async fn read(
    source: &dyn Source,
    split: &Split,
    meanwhile: impl FnOnce(),
) -> Result<usize, ConnectorError> {
    let mut batches = source.open(split, &ScanRequest::default(), None).await?;
    let mut rows = batches.next().await.expect("a batch")?.rows.num_rows();
    meanwhile();
    while let Some(batch) = batches.next().await {
        rows += batch?.rows.num_rows();
    }
    Ok(rows)
}

#[tokio::test]
async fn file_that_is_overwritten_while_it_is_read_is_noticed() {
    for name in NAMES {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, content(name, 100_000)).expect("a file");
        let source = open(folder.path(), name);
        let splits = source.splits(&ScanRequest::default(), 1).await.expect("splits");
        let overwrite = || std::fs::write(&path, content(name, 500_000)).expect("written again");
        let error = read(source.as_ref(), &splits[0], overwrite).await.expect_err("it changed");
        assert_eq!(error.kind, ErrorKind::Changed, "{name}: {error}");

        let splits = source.splits(&ScanRequest::default(), 1).await.expect("splits");
        let cut = || std::fs::write(&path, "").expect("cut off");
        let error = read(source.as_ref(), &splits[0], cut).await.expect_err("it changed");
        assert_eq!(error.kind, ErrorKind::Changed, "{name}: {error}");
    }
}

#[tokio::test]
async fn file_that_is_replaced_while_it_is_read_is_read_to_its_end_and_noticed_by_the_next() {
    for name in NAMES {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, content(name, 100_000)).expect("a file");
        let source = open(folder.path(), name);
        let splits = source.splits(&ScanRequest::default(), 1).await.expect("splits");
        let replace = || {
            let other = folder.path().join("_other");
            std::fs::write(&other, content(name, 500_000)).expect("a file");
            std::fs::rename(&other, &path).expect("replaced");
        };
        let rows = read(source.as_ref(), &splits[0], replace).await.expect("all rows");
        assert_eq!(rows, usize::try_from(ROWS).expect("few rows"), "{name}");
        let error = read(source.as_ref(), &splits[0], || {}).await.expect_err("another file");
        assert_eq!(error.kind, ErrorKind::Changed, "{name}: {error}");
    }
}

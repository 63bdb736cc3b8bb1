use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::{StreamExt as _, TryStreamExt as _};
use weir_spec::{ColumnType, Compression, OnError, TemplateText};

use super::*;
use crate::conformance::{RowCounts, check_source, count};
use crate::{ErrorKind, Redactor, RejectedRow, Secrets, SourceBatch};

pub(crate) fn json_source(path: &str) -> JsonSource {
    JsonSource {
        path: TemplateText::new(path),
        format: JsonFormat::Auto,
        records: None,
        compression: Compression::Auto,
        columns: None,
        hive_partitions: None,
        on_error: OnError::DeadLetter,
        max_errors: None,
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
            std::fs::write(path, content).expect("a file");
        }
        Self(folder)
    }

    fn open(&self, source: &JsonSource) -> JsonFiles {
        let context = ConnectorContext::new(self.0.path(), Secrets::default(), Redactor::default());
        JsonFiles::new("events", source, &context).expect("a source")
    }
}

async fn read_all(files: &JsonFiles) -> Result<Vec<SourceBatch>, ConnectorError> {
    let request = ScanRequest::default();
    let mut batches = Vec::new();
    for split in files.splits(&request, 2).await? {
        let stream = files.open(&split, &request, None).await?;
        batches.extend(stream.try_collect::<Vec<_>>().await?);
    }
    Ok(batches)
}

fn rows_of(batches: &[SourceBatch]) -> Vec<String> {
    let mut counts = RowCounts::new();
    count(batches, &mut counts);
    counts.into_keys().filter(|row| !row.starts_with("rejected")).collect()
}

fn rejected_of(batches: &[SourceBatch]) -> Vec<&RejectedRow> {
    batches.iter().flat_map(|batch| &batch.rejected).collect()
}

#[tokio::test]
async fn lines_with_nested_values_are_read() {
    let folder = Folder::with(&[(
        "a.jsonl",
        b"\xef\xbb\xbf{\"id\": 1, \"tags\": [\"x\"], \"at\": {\"city\": \"A\"}, \"mixed\": 1}\r\n\n  \n{\"id\": 2, \"mixed\": [true]}",
    )]);
    let files = folder.open(&json_source("a.jsonl"));
    let rows = check_source(&files, 2, 1).await.expect("a conforming source");
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["1|[x]|{city: A}|1", "2|∅|∅|[true]"]);
}

#[tokio::test]
async fn bad_lines_are_rejected_with_their_place() {
    let mut source = json_source("a.jsonl");
    source.columns = Some(
        [("id".to_owned(), ColumnType::Int32), ("raw".to_owned(), ColumnType::Json)]
            .into_iter()
            .collect(),
    );
    let content = b"{\"id\": 1, \"raw\": {\"b\": [1]}}\n{\"id\": 3000000000}\n{\"id\": \n[1]\n{\"id\": 5, \"raw\": \"\xff\"}\n{\"id\":6}\n{\"id\": 7";
    let folder = Folder::with(&[("a.jsonl", content)]);
    check_source(&folder.open(&source), 2, 1).await.expect("a conforming source");
    let batches = read_all(&folder.open(&source)).await.expect("batches");
    assert_eq!(rows_of(&batches), ["1|{\"b\":[1]}", "6|∅"]);
    let rejected = rejected_of(&batches);
    let reasons: Vec<&str> = rejected.iter().map(|row| row.reason.as_str()).collect();
    assert_eq!(
        reasons[0],
        "a.jsonl line 2 (byte offset 29): column id: 3000000000 is not an int32"
    );
    assert!(
        reasons[1].starts_with("a.jsonl line 3 (byte offset 48): not valid JSON"),
        "{reasons:?}"
    );
    assert_eq!(reasons[2], "a.jsonl line 4 (byte offset 56): [1] is not a JSON object");
    assert!(reasons[3].contains("line 5"), "{reasons:?}");
    assert!(reasons[4].contains("line 7"), "{reasons:?}");
    assert_eq!(rejected[3].raw, "{\"id\": 5, \"raw\": \"\\xFF\"}");
}

#[tokio::test]
async fn arrays_stream_and_resume() {
    let elements: Vec<String> = (0..20_000)
        .map(|id| {
            format!("{{\"id\": {id}, \"text\": \"[{{,}}]\\\"\\\\ {id}\", \"list\": [{id}, []]}}")
        })
        .collect();
    let text = format!("\n[{}]\n", elements.join(" ,\n"));
    let zstd = zstd::encode_all(text.as_bytes(), 1).expect("compressed");
    let folder = Folder::with(&[("a/a.json", text.as_bytes()), ("z/a.json.zst", &zstd)]);
    let rows = check_source(&folder.open(&json_source("a")), 2, 1).await.expect("conforming");
    assert_eq!(rows.values().sum::<usize>(), 20_000);
    let compressed = check_source(&folder.open(&json_source("z")), 2, 1).await.expect("conforming");
    assert!(compressed == rows);
}

#[tokio::test]
async fn empty_arrays_and_files_have_no_rows() {
    let mut source = json_source("in");
    source.columns = Some([("id".to_owned(), ColumnType::Int64)].into_iter().collect());
    let folder = Folder::with(&[("in/a.json", b"[]"), ("in/b.json", b""), ("in/c.json", b" [ ] ")]);
    assert!(read_all(&folder.open(&source)).await.expect("batches").is_empty());
    let error = folder.open(&json_source("in")).describe().await.expect_err("no columns");
    assert!(error.message.contains("declare them"), "{error}");
}

#[tokio::test]
async fn broken_array_yields_what_came_before_and_then_an_error_with_the_offset() {
    let mut source = json_source("a.json");
    source.columns = Some([("id".to_owned(), ColumnType::Int64)].into_iter().collect());
    let cases: &[(&[u8], &str)] = &[
        (b"[{\"id\": 1}, {\"id\": 2", "byte offset 12: the file ends inside"),
        (b"[{\"id\": 1}, ", "byte offset 12: the file ends before"),
        (b"[{\"id\": 1}", "byte offset 10: the file ends before"),
        (b"[{\"id\": 1} {\"id\": 2}]", "byte offset 11: `,` or `]`"),
        (b"[{\"id\": 1}, {id: 2}]", "byte offset 12: not valid JSON"),
        (b"[{\"id\": 1}] x", "byte offset 12: the array has ended"),
    ];
    for (content, expected) in cases {
        let folder = Folder::with(&[("a.json", content)]);
        let files = folder.open(&source);
        let request = ScanRequest::default();
        let splits = files.splits(&request, 1).await.expect("splits");
        let mut stream = files.open(&splits[0], &request, None).await.expect("a stream");
        let first = stream.next().await.expect("a batch").expect("a batch");
        assert_eq!(first.rows.column(0).as_primitive::<Int64Type>().values(), &[1]);
        let error = stream.next().await.expect("an error").expect_err("an error");
        assert_eq!(error.kind, ErrorKind::Data);
        assert!(error.message.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn records_are_found_by_their_path() {
    let folder = Folder::with(&[(
        "a.json",
        br#"{"meta": 1, "data": {"items": [{"id": 1}, {"id": "x"}, {"id": 3}]}}"#,
    )]);
    let mut source = json_source("a.json");
    source.columns = Some([("id".to_owned(), ColumnType::Int64)].into_iter().collect());
    for path in ["$.data.items[*]", "$.data.items"] {
        source.records = Some(path.to_owned());
        check_source(&folder.open(&source), 2, 1).await.expect("a conforming source");
        let batches = read_all(&folder.open(&source)).await.expect("batches");
        assert_eq!(rows_of(&batches), ["1", "3"]);
        assert_eq!(
            rejected_of(&batches)[0].reason,
            "a.json record 2: column id: \"x\" is not an int64"
        );
        assert_eq!(rejected_of(&batches)[0].raw, "{\"id\":\"x\"}");
    }

    std::fs::write(folder.0.path().join("a.json"), "{\"data\":\n [1,").expect("a file");
    let error = read_all(&folder.open(&source)).await.expect_err("a cut document");
    assert!(error.message.contains("a.json is broken at byte offset 1"), "{error}");

    let mut large = b"{\"data\": \"".to_vec();
    large.resize(documents::MAX_DOCUMENT_BYTES + 1, b'x');
    std::fs::write(folder.0.path().join("a.json"), large).expect("a file");
    let error = read_all(&folder.open(&source)).await.expect_err("a large document");
    assert!(error.message.contains("larger than 64 MiB"), "{error}");
}

#[tokio::test]
async fn large_files_of_lines_are_cut_and_long_lines_rejected() {
    let mut text = String::new();
    for id in 0..50_000 {
        text.push_str(&format!("{{\"id\": {id}, \"name\": \"name of {id}\"}}\n"));
    }
    let folder = Folder::with(&[("a.jsonl", text.as_bytes())]);
    let files = folder.open(&json_source("a.jsonl")).with_min_split_bytes(1024);
    assert_eq!(files.splits(&ScanRequest::default(), 3).await.expect("splits").len(), 3);
    let rows = check_source(&files, 3, 2).await.expect("a conforming source");
    assert_eq!(rows.values().sum::<usize>(), 50_000);

    let mut long = b"{\"id\": 1}\n{\"id\": \"".to_vec();
    long.resize(20 * 1024 * 1024, b'x');
    long.extend_from_slice(b"\"}\n{\"id\": 3}\n");
    let folder = Folder::with(&[("a.jsonl", &long)]);
    let batches = read_all(&folder.open(&json_source("a.jsonl"))).await.expect("batches");
    assert_eq!(rows_of(&batches), ["1", "3"]);
    assert!(
        rejected_of(&batches)[0].reason.contains("line 2 (byte offset 10): the record is longer")
    );
}

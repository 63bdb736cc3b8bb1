use std::io::Write as _;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Decimal128Type, Int32Type, Int64Type};
use futures::TryStreamExt as _;
use indexmap::IndexMap;
use weir_spec::{ColumnType, Compression, OnError, TemplateText};

use super::*;
use crate::conformance::check_source;
use crate::{ErrorKind, Redactor, RejectedRow, Secrets, SourceBatch};

pub(crate) fn csv_source(path: &str) -> CsvSource {
    CsvSource {
        path: TemplateText::new(path),
        header: true,
        delimiter: b',',
        quote: b'"',
        escape: None,
        comment: None,
        null_values: vec![String::new()],
        multiline: true,
        compression: Compression::Auto,
        columns: None,
        hive_partitions: None,
        on_error: OnError::DeadLetter,
        max_errors: None,
    }
}

fn declared(columns: &[(&str, ColumnType)]) -> Option<IndexMap<String, ColumnType>> {
    Some(columns.iter().map(|(name, kind)| ((*name).to_owned(), kind.clone())).collect())
}

struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    fn with(files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
            std::fs::write(path, content).expect("a file");
        }
        Self { folder }
    }

    fn open(&self, source: &CsvSource) -> CsvFiles {
        let context =
            ConnectorContext::new(self.folder.path(), Secrets::default(), Redactor::default());
        CsvFiles::new("orders", source, &context).expect("a source")
    }
}

async fn read_all(files: &CsvFiles) -> Result<Vec<SourceBatch>, ConnectorError> {
    let request = ScanRequest::default();
    let mut batches = Vec::new();
    for split in files.splits(&request, 2).await? {
        let stream = files.open(&split, &request, None).await?;
        batches.extend(stream.try_collect::<Vec<_>>().await?);
    }
    Ok(batches)
}

/// Rows as text, and what was rejected, of one file `a.csv`.
async fn read(source: &CsvSource, content: &[u8]) -> (Vec<String>, Vec<RejectedRow>) {
    let folder = Folder::with(&[("a.csv", content)]);
    let files = folder.open(source);
    check_source(&files, 2, 1).await.expect("a conforming source");
    let batches = read_all(&files).await.expect("batches");
    let rejected = batches.iter().flat_map(|batch| batch.rejected.clone()).collect();
    let mut rows = Vec::new();
    for batch in &batches {
        let text = arrow::csv::WriterBuilder::new().with_header(false).with_null("∅".to_owned());
        let mut bytes = Vec::new();
        text.build(&mut bytes).write(&batch.rows).expect("text");
        rows.extend(String::from_utf8(bytes).expect("text").lines().map(str::to_owned));
    }
    (rows, rejected)
}

#[tokio::test]
async fn types_are_inferred_and_values_read() {
    let folder = Folder::with(&[(
        "a.csv",
        b"id,price,paid,day,at,zip\n1,1.5,true,2024-01-02,2024-01-02T03:04:05,01234\n2,,,,,\n",
    )]);
    let files = folder.open(&csv_source("a.csv"));
    let schema = files.describe().await.expect("a description").schema;
    let types: Vec<String> = schema
        .fields()
        .iter()
        .map(|field| crate::types::type_name(field.data_type(), false))
        .collect();
    assert_eq!(types, ["int64", "float64", "bool", "date", "timestamp", "string"]);
    let batches = read_all(&files).await.expect("batches");
    let rows = &batches[0].rows;
    assert_eq!(rows.num_rows(), 2);
    assert_eq!(rows.column(5).as_string::<i32>().value(0), "01234");
    assert!((1..6).all(|column| rows.column(column).is_null(1)));
}

#[tokio::test]
async fn unusual_but_sound_files_are_read_whole() {
    let source = csv_source("a.csv");
    let cases: &[(&str, &[u8], &[&str])] = &[
        ("CR LF", b"a,b\r\n1,x\r\n2,y\r\n", &["1,x", "2,y"]),
        ("CR LF, last line open", b"a,b\r\n1,x\r\n2,y", &["1,x", "2,y"]),
        ("byte order mark", b"\xef\xbb\xbfa,b\n1,x\n", &["1,x"]),
        ("blank lines", b"\na,b\n\n\n1,x\n\n2,y\n\n", &["1,x", "2,y"]),
        ("no final line break", b"a,b\n1,x", &["1,x"]),
        ("header only", b"a,b\n", &[]),
        ("header only, open", b"a,b", &[]),
        ("quotes", b"a,b\n1,\"x,\"\"y\"\"\"\n", &["1,\"x,\"\"y\"\"\""]),
        ("last quote at the end", b"a,b\n1,\"x\"", &["1,x"]),
    ];
    for (case, content, expected) in cases {
        let (rows, rejected) = read(&source, content).await;
        assert_eq!(&rows, expected, "{case}");
        assert!(rejected.is_empty(), "{case}: {rejected:?}");
    }
    let (rows, _) = read(&source, b"a,b\n1,\"x\ny\"\n").await;
    assert_eq!(rows, ["1,\"x", "y\""]);
}

#[tokio::test]
async fn dialect_is_respected() {
    let mut source = csv_source("a.csv");
    source.header = false;
    source.delimiter = b';';
    source.quote = b'\'';
    source.escape = Some(b'\\');
    source.comment = Some(b'#');
    source.null_values = vec!["NA".to_owned(), "-".to_owned()];
    let content = b"#'comment\n1;'it\\'s; here';NA\n# more\n2;-;x\n";
    let (rows, rejected) = read(&source, content).await;
    assert_eq!(rows, ["1,it's; here,∅", "2,∅,x"]);
    assert!(rejected.is_empty(), "{rejected:?}");
}

#[tokio::test]
async fn bad_rows_are_rejected_and_the_others_read() {
    let mut source = csv_source("a.csv");
    source.columns = declared(&[
        ("id", ColumnType::Int32),
        ("amount", ColumnType::Decimal { precision: 10, scale: 2 }),
        ("day", ColumnType::Date),
    ]);
    let content = b"id,amount,day\n1,1.50,2024-01-01\nx,\"y\n\",soon\n3000000000,1,\n2,2\n3,3,,4\n4,4.00,2024-01-04\n";
    let (rows, rejected) = read(&source, content).await;
    assert_eq!(rows, ["1,1.50,2024-01-01", "4,4.00,2024-01-04"]);
    let reasons: Vec<&str> = rejected.iter().map(|row| row.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "a.csv line 3 (byte offset 32): column id: \"x\" is not an int32; column amount: \"y\\n\" is \
             not a decimal(10,2); column day: \"soon\" is not a date",
            "a.csv line 5 (byte offset 44): column id: \"3000000000\" is not an int32",
            "a.csv line 6 (byte offset 58): it has 2 cells where 3 are expected",
            "a.csv line 7 (byte offset 62): it has 4 cells where 3 are expected",
        ]
    );
    assert_eq!(rejected[0].raw, "x,\"y\n\",soon");
    assert_eq!(rejected[1].offset, Some(44));
}

#[tokio::test]
async fn decimals_fit_exactly_or_are_rejected() {
    let mut source = csv_source("t/price=0.10");
    source.columns = declared(&[
        ("amount", ColumnType::Decimal { precision: 5, scale: 2 }),
        ("price", ColumnType::Decimal { precision: 5, scale: 2 }),
    ]);
    let long = "1".repeat(256);
    let text = format!("amount\n1.50\n1.505\n1.500\n1000\n{long}\n1e2\n");
    let folder = Folder::with(&[("t/price=0.10/a.csv", text.as_bytes())]);
    let batches = read_all(&folder.open(&source)).await.expect("batches");
    let amounts = batches[0].rows.column(0).as_primitive::<Decimal128Type>();
    assert_eq!(amounts.values(), &[150, 150, 10_000]);
    assert_eq!(batches[0].rows.column(1).as_primitive::<Decimal128Type>().value(0), 10);
    let reasons: Vec<&str> = batches[0].rejected.iter().map(|row| row.reason.as_str()).collect();
    assert_eq!(
        reasons[..2],
        [
            "t/price=0.10/a.csv line 3 (byte offset 12): column amount: \"1.505\" does not fit decimal(5,2) \
             exactly",
            "t/price=0.10/a.csv line 5 (byte offset 24): column amount: \"1000\" does not fit decimal(5,2) \
             exactly",
        ]
    );
    assert_eq!(reasons.len(), 3);

    source.path = TemplateText::new("t");
    for price in ["0.105", &"1".repeat(200)] {
        let folder = Folder::with(&[(&format!("t/price={price}/a.csv"), b"amount\n1\n")]);
        let error = read_all(&folder.open(&source)).await.expect_err("a price that does not fit");
        assert!(error.message.contains("does not fit the declared type decimal(5,2)"), "{error}");
    }
}

#[tokio::test]
async fn nul_bytes_and_invalid_utf8_are_rejected() {
    let (rows, rejected) = read(&csv_source("a.csv"), b"a,b\n1,x\0y\n2,\xff\n3,z\n").await;
    assert_eq!(rows, ["3,z"]);
    assert_eq!(
        rejected[0].reason,
        "a.csv line 2 (byte offset 4): it has a NUL byte, at byte 3 of the record"
    );
    assert_eq!(
        rejected[1].reason,
        "a.csv line 3 (byte offset 10): it is not valid UTF-8, from byte 2 of the record"
    );
    assert_eq!(rejected[1].raw, "2,\\xFF");
}

#[tokio::test]
async fn text_behind_a_closing_quote_rejects_its_row() {
    let (rows, rejected) =
        read(&csv_source("a.csv"), b"a,b\n1,x\n2,\"y\"z\n3,\"\"\"w\"\n\"4\" ,v\n5,u\"u\n").await;
    assert_eq!(rows, ["1,x", "3,\"\"\"w\"", "5,\"u\"\"u\""]);
    let reasons: Vec<&str> = rejected.iter().map(|row| row.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "a.csv line 3 (byte offset 8): text follows a closing quote, at byte 5 of the record",
            "a.csv line 5 (byte offset 23): text follows a closing quote, at byte 3 of the record",
        ]
    );
    assert_eq!((rejected[0].raw.as_str(), rejected[0].offset), ("2,\"y\"z", Some(8)));
}

#[tokio::test]
async fn quote_that_is_never_closed_rejects_only_its_line() {
    let (rows, rejected) = read(&csv_source("a.csv"), b"a,b\n1,x\n2,\"y\n3,z\n4,w\n").await;
    assert_eq!(rows, ["1,x", "3,z", "4,w"]);
    assert_eq!(rejected.len(), 1);
    assert!(rejected[0].reason.starts_with("a.csv line 3 (byte offset 8): a quote opens a cell"));
    assert_eq!(rejected[0].raw, "2,\"y");

    let mut source = csv_source("a.csv");
    source.multiline = false;
    let (rows, rejected) = read(&source, b"a,b\n1,x\n2,\"y\n3,\"z\"\n").await;
    assert_eq!(rows, ["1,x", "3,z"]);
    assert!(rejected[0].reason.contains("multiline: false"), "{rejected:?}");
}

#[tokio::test]
async fn record_of_more_than_16_mib_is_rejected() {
    for quote in ["", "\""] {
        let mut content = format!("a,b\n1,x\n2,{quote}").into_bytes();
        content.resize(20 * 1024 * 1024, b'y');
        content.extend_from_slice(b"\n3,z\n");
        let folder = Folder::with(&[("a.csv", &content)]);
        let batches = read_all(&folder.open(&csv_source("a.csv"))).await.expect("batches");
        let rows: usize = batches.iter().map(|batch| batch.rows.num_rows()).sum();
        let rejected: Vec<&RejectedRow> =
            batches.iter().flat_map(|batch| &batch.rejected).collect();
        assert_eq!((rows, rejected.len()), (2, 1));
        assert!(rejected[0].reason.contains("16 MiB"), "{}", rejected[0].reason);
        assert!(rejected[0].raw.len() <= 1024 * 1024);
    }
}

#[tokio::test]
async fn declared_columns_are_found_by_name() {
    let mut source = csv_source("a.csv");
    source.columns = declared(&[("b", ColumnType::Int64), ("a", ColumnType::String)]);
    let (rows, _) = read(&source, b"a,skipped,b\nx,?,1\n").await;
    assert_eq!(rows, ["1,x"]);

    source.columns = declared(&[("c", ColumnType::Int64)]);
    let folder = Folder::with(&[("a.csv", b"a,b\n1,2\n")]);
    let error = read_all(&folder.open(&source)).await.expect_err("a missing column");
    assert!(error.message.contains("a.csv does not have column `c`; it has: a, b"), "{error}");
}

#[tokio::test]
async fn lists_binary_and_json_are_read_from_text() {
    let mut source = csv_source("a.csv");
    source.columns = declared(&[
        ("tags", ColumnType::List(Box::new(ColumnType::Int64))),
        ("bytes", ColumnType::Binary),
        ("raw", ColumnType::Json),
    ]);
    let folder = Folder::with(&[("a.csv", b"tags,bytes,raw\n\"[1,2]\",\\x6162,{}\n[x],,\n")]);
    let batches = read_all(&folder.open(&source)).await.expect("batches");
    let rows = &batches[0].rows;
    assert_eq!(rows.num_rows(), 1);
    let tags = rows.column(0).as_list::<i32>().value(0);
    assert_eq!(tags.as_primitive::<Int64Type>().values(), &[1, 2]);
    assert_eq!(rows.column(1).as_binary::<i32>().value(0), b"ab");
    assert!(batches[0].rejected[0].reason.contains("column tags: \"[x]\" is not JSON"));
}

#[tokio::test]
async fn empty_files_have_no_rows() {
    let folder = Folder::with(&[("in/a.csv", b""), ("in/b.csv", b"id\n1\n")]);
    let files = folder.open(&csv_source("in"));
    let batches = read_all(&files).await.expect("batches");
    assert_eq!(batches.len(), 1);
    let error = folder.open(&csv_source("in/a.csv")).describe().await.expect_err("no columns");
    assert!(error.message.contains("declare them"), "{error}");
}

#[tokio::test]
async fn partitions_become_columns() {
    let folder = Folder::with(&[
        ("t/year=2024/country=DE/a.csv", b"id\n1\n"),
        ("t/year=2025/country=__HIVE_DEFAULT_PARTITION__/b.csv", b"id\n2\n"),
    ]);
    let mut source = csv_source("t/**/*.csv");
    let rows = check_source(&folder.open(&source), 2, 1).await.expect("a conforming source");
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["1|2024|DE", "2|2025|∅"]);
    source.columns = declared(&[("id", ColumnType::Int64), ("year", ColumnType::Int32)]);
    let batches = read_all(&folder.open(&source)).await.expect("batches");
    assert_eq!(batches[0].rows.column(1).as_primitive::<Int32Type>().value(0), 2024);
}

#[tokio::test]
async fn compressed_files_are_read_and_resumed() {
    let mut text = String::from("id,name\n");
    for id in 0..30_000 {
        text.push_str(&format!("{id},name {id}\n"));
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).expect("compressed");
    let gzip = gzip.finish().expect("compressed");
    let zstd = zstd::encode_all(text.as_bytes(), 1).expect("compressed");
    let folder = Folder::with(&[
        ("in/a.csv.gz", &gzip),
        ("in/b.csv.zst", &zstd),
        ("cut.csv.gz", &gzip[..gzip.len() / 2]),
    ]);
    let rows = check_source(&folder.open(&csv_source("in")), 2, 2).await.expect("conforming");
    assert_eq!(rows.values().sum::<usize>(), 60_000);
    let error = read_all(&folder.open(&csv_source("cut.csv.gz"))).await.expect_err("cut");
    assert_eq!(error.kind, ErrorKind::Data);
    assert!(error.message.contains("cut.csv.gz is not a complete gzip file"), "{error}");
}

#[tokio::test]
async fn file_that_changed_after_planning_is_refused() {
    let folder = Folder::with(&[("a.csv", b"id\n1\n")]);
    let files = folder.open(&csv_source("a.csv"));
    let request = ScanRequest::default();
    let splits = files.splits(&request, 1).await.expect("splits");
    std::fs::write(folder.folder.path().join("a.csv"), "id\n1\n2\n").expect("a file");
    let error = files.open(&splits[0], &request, None).await.err().expect("a changed file");
    assert_eq!(error.kind, ErrorKind::Changed);
    assert!(error.message.contains("had 5 bytes and has 7"), "{error}");
    std::fs::remove_file(folder.folder.path().join("a.csv")).expect("removed");
    let error = files.open(&splits[0], &request, None).await.err().expect("a file that is gone");
    assert_eq!(error.kind, ErrorKind::Changed);
}

#[tokio::test]
async fn large_files_are_cut_at_records() {
    let mut text = String::from("id,text\n");
    for id in 0..5_000 {
        text.push_str(&format!("{id},\"line\n{id},\"\"x\"\"\"\n"));
    }
    let folder = Folder::with(&[("a.csv", text.as_bytes())]);
    let files = folder.open(&csv_source("a.csv")).with_min_split_bytes(1024);
    let splits = files.splits(&ScanRequest::default(), 4).await.expect("splits");
    // The scan goes by chunks, so a small file has fewer cuts than were asked for.
    assert_eq!(splits.len(), 1);
    text = text.repeat(30).replace("id,text\n", "9,x\n").replacen("9,x\n", "id,text\n", 1);
    let folder = Folder::with(&[("a.csv", text.as_bytes())]);
    for multiline in [true, false] {
        let mut source = csv_source("a.csv");
        source.multiline = multiline;
        if !multiline {
            std::fs::write(folder.folder.path().join("a.csv"), text.replace('"', ""))
                .expect("a file");
            source.columns = declared(&[("id", ColumnType::String)]);
        }
        let files = folder.open(&source).with_min_split_bytes(1024);
        let splits = files.splits(&ScanRequest::default(), 4).await.expect("splits");
        assert_eq!(splits.len(), 4, "{splits:?}");
        let cut = check_source(&files, 4, 20).await.expect("a conforming source");
        let whole = check_source(&files, 1, 200).await.expect("a conforming source");
        assert!(cut == whole);
        assert!(cut.values().sum::<usize>() >= 150_000);
    }
}

#[tokio::test]
async fn limit_ends_the_reading_early() {
    let mut text = String::from("id\n");
    text.extend((0..100_000).map(|id| format!("{id}\n")));
    let folder = Folder::with(&[("a.csv", text.as_bytes())]);
    let files = folder.open(&csv_source("a.csv"));
    let request = ScanRequest { limit: Some(10), ..ScanRequest::default() };
    let splits = files.splits(&request, 1).await.expect("splits");
    let stream = files.open(&splits[0], &request, None).await.expect("a stream");
    assert_eq!(stream.try_collect::<Vec<_>>().await.expect("batches").len(), 1);
}

#[tokio::test]
async fn two_hundred_thousand_rows_with_a_few_bad_ones_come_through() {
    let mut text = String::from("id,amount,comment\n");
    for id in 0..200_000_u32 {
        let amount = if id % 20_011 == 7 { "broken".to_owned() } else { format!("{}.25", id % 97) };
        text.push_str(&format!("{id},{amount},\"some, quoted \"\"text\"\" of row {id}\"\n"));
    }
    let folder = Folder::with(&[("a.csv", text.as_bytes())]);
    let mut source = csv_source("a.csv");
    source.columns = declared(&[
        ("id", ColumnType::Int32),
        ("amount", ColumnType::Decimal { precision: 12, scale: 2 }),
        ("comment", ColumnType::String),
    ]);
    let batches = read_all(&folder.open(&source)).await.expect("batches");
    let mut sum = 0;
    let mut rejected = 0;
    for batch in &batches {
        rejected += batch.rejected.len();
        sum += batch.rows.column(1).as_primitive::<Decimal128Type>().values().iter().sum::<i128>();
    }
    let is_good = |id: &u32| id % 20_011 != 7;
    let expected: i128 =
        (0..200_000).filter(is_good).map(|id| i128::from(id % 97) * 100 + 25).sum();
    assert_eq!((sum, rejected), (expected, 10));
}

//! Broken files: good rows arrive, bad ones become dead letters or end the run with a message that says
//! what, where and how to mend it; exit codes are right; nothing half-written is visible.

use std::io::Write as _;

use crate::messages::{Case, Messages};

const COLUMNS: &str = "columns: { id: int32, name: string }";
const GOOD: [&str; 2] = [r#"{"id":1,"name":"a"}"#, r#"{"id":4,"name":"d"}"#];

fn csv(keys: &str, bytes: &[u8]) -> Case {
    Case::reading(&format!("{{ type: csv, path: in.csv, {keys} }}"), &[("in.csv", bytes)])
}

fn json(keys: &str, bytes: &[u8]) -> Case {
    Case::reading(&format!("{{ type: json, path: in.json, {keys} }}"), &[("in.json", bytes)])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("writing to memory does not fail");
    encoder.finish().expect("writing to memory does not fail")
}

/// Bad lines of a CSV file, each alone between two good ones.
#[test]
fn bad_csv_lines_become_dead_letters_that_name_line_and_column() {
    let mut messages = Messages::default();
    let bad: &[(&str, &[u8])] = &[
        ("text for a number", b"x,b"),
        ("integer overflow", b"3000000000,b"),
        ("a fraction for an integer", b"2.5,b"),
        ("too few cells", b"2"),
        ("too many cells", b"2,b,c"),
        ("invalid UTF-8", b"2,\xff\xfe"),
        ("NUL", b"2,a\0b"),
    ];
    for (name, line) in bad {
        let bytes = [b"id,name\n1,a\n".as_slice(), line, b"\n4,d\n"].concat();
        messages.add(name, &csv(COLUMNS, &bytes).letters(&GOOD, 1));
    }
    let unclosed = csv(COLUMNS, b"id,name\n1,a\n4,d\n2,\"open\n");
    messages.add("a quote that is never closed", &unclosed.letters(&GOOD, 1));
    let long = [b"id,name\n1,a\n2,".as_slice(), &vec![b'x'; 24 << 20], b"\n4,d\n"].concat();
    messages.add("a row of 24 MiB", &csv(COLUMNS, &long).letters(&GOOD, 1));
    insta::assert_snapshot!("csv_lines", messages);
}

/// Each value is one too much for its declared type.
#[test]
fn values_that_overflow_their_declared_type_become_dead_letters() {
    let mut messages = Messages::default();
    for (declared, value) in [
        ("int8", "128"),
        ("int16", "-32769"),
        ("int32", "2147483648"),
        ("int64", "9223372036854775808"),
        ("uint8", "-1"),
        ("uint64", "18446744073709551616"),
        ("float32", "1e39"),
        ("decimal(5,2)", "1000.00"),
        ("bool", "2"),
        ("date", "2026-02-30"),
        ("time", "25:00:00"),
        ("timestamp", "2026-01-01 24:61:00"),
        ("timestamp_tz", "99999999-01-01T00:00:00Z"),
    ] {
        let keys = format!("columns: {{ value: \"{declared}\" }}");
        let from_csv = csv(&keys, format!("value\n{value}\n").as_bytes());
        messages.add(&format!("{value} from CSV into {declared}"), &from_csv.letters(&[], 1));
        let is_number = value.parse::<f64>().is_ok() && declared != "bool";
        let written = if is_number { value.to_owned() } else { format!("\"{value}\"") };
        let from_json = json(&keys, format!("{{\"value\": {written}}}\n").as_bytes());
        messages.add(&format!("{value} from JSON into {declared}"), &from_json.letters(&[], 1));
    }
    insta::assert_snapshot!("type_overflow", messages);
}

#[test]
fn broken_csv_files_fail_by_name() {
    let mut messages = Messages::default();
    let strict = format!("{COLUMNS}, on_error: fail");
    messages.add("on_error: fail", &csv(&strict, b"id,name\n1,a\ny,b\n").failure());
    let limited = csv(&format!("{COLUMNS}, max_errors: 1"), b"id,name\nx,a\ny,b\nz,c\n");
    let output = limited.run().expect_code(1);
    messages.add("max_errors: 1", &crate::messages::told(limited.folder.path(), &output));
    let misspelt = csv("columns: { id: int32, nmae: string }", b"id,name\n1,a\n");
    messages.add("a declared column that the header lacks", &misspelt.failure());
    messages.add("a column twice in the header", &csv(COLUMNS, b"id,name,id\n1,a,2\n").failure());
    messages.add("a header that is not UTF-8", &csv(COLUMNS, b"id,na\xff\n1,a\n").failure());
    messages.add("UTF-16", &csv(COLUMNS, b"\xff\xfei\0d\0,\0n\0\n\0").failure());
    let cut = gzip(b"id,name\n1,a\n");
    let zipped = |bytes: &[u8]| csv(&format!("{COLUMNS}, compression: gzip"), bytes).failure();
    messages.add("gzip that is cut off", &zipped(&cut[..cut.len() - 9]));
    messages.add("gzip that is none", &zipped(b"id,name\n1,a\n"));
    let zstd = csv(&format!("{COLUMNS}, compression: zstd"), b"id,name\n1,a\n");
    messages.add("zstd that is none", &zstd.failure());
    let missing = Case::reading(&format!("{{ type: csv, path: \"none/*.csv\", {COLUMNS} }}"), &[]);
    messages.add("no file", &missing.failure());
    insta::assert_snapshot!("csv_files", messages);
}

#[test]
fn bad_json_lines_become_dead_letters() {
    let mut messages = Messages::default();
    let bad: &[(&str, &[u8])] = &[
        ("a value is missing", b"{\"id\": 2, \"name\": }"),
        ("text for a number", b"{\"id\": \"x\", \"name\": \"b\"}"),
        ("integer overflow", b"{\"id\": 3000000000, \"name\": \"b\"}"),
        ("an array", b"[1, 2]"),
        ("cut off", b"{\"id\": 2"),
        ("invalid UTF-8", b"{\"id\": 2, \"name\": \"\xff\xfe\"}"),
        ("two mistakes", b"{\"id\": [], \"name\": \"\\ud800\"}"),
    ];
    for (name, line) in bad {
        let bytes = [
            b"{\"id\": 1, \"name\": \"a\"}\n".as_slice(),
            line,
            b"\n{\"id\": 4, \"name\": \"d\"}\n",
        ];
        let case = json(&format!("format: lines, {COLUMNS}"), &bytes.concat());
        messages.add(name, &case.letters(&GOOD, 1));
    }
    insta::assert_snapshot!("json_lines", messages);
}

#[test]
fn broken_json_files_fail_and_say_where() {
    let mut messages = Messages::default();
    let array = |bytes: &[u8]| json(&format!("format: array, {COLUMNS}"), bytes).failure();
    messages.add(
        "an array that is cut off",
        &array(b"[{\"id\": 1, \"name\": \"a\"}, {\"id\": 2, \"na"),
    );
    messages.add("an array without its end", &array(b"[{\"id\": 1, \"name\": \"a\"}"));
    messages.add("an array with text behind it", &array(b"[{\"id\": 1, \"name\": \"a\"}] x"));
    messages.add("no array", &array(b"{\"id\": 1}"));
    messages.add("invalid UTF-8", &array(b"[{\"id\": 1, \"name\": \"\xff\"}]"));
    let document =
        |bytes: &[u8]| json(&format!("records: \"$.data[*]\", {COLUMNS}"), bytes).failure();
    messages
        .add("a document that is cut off", &document(b"{\"data\": [{\"id\": 1, \"name\": \"a\"}"));
    messages.add("a document that is invalid UTF-8", &document(b"{\"data\": \"\xff\"}"));
    messages.add("a document without the records", &document(b"{\"rows\": []}"));
    let zipped = json(&format!("{COLUMNS}, compression: gzip"), b"{\"id\": 1}\n");
    messages.add("gzip that is none", &zipped.failure());
    let strict = json(&format!("{COLUMNS}, on_error: fail"), b"{\"id\": 1}\n{\"id\": \"x\"}\n");
    messages.add("on_error: fail", &strict.failure());
    insta::assert_snapshot!("json_files", messages);
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("writing to memory does not fail")
}

/// Unusual files that are sound, and unusual files that are not.
#[test]
fn unusual_files_are_read_whole_or_refused_by_name() {
    const ROWS: &[u8] = b"id,name\n1,a\n4,d\n";
    const RECORDS: &[u8] = b"{\"id\": 1, \"name\": \"a\"}\n{\"id\": 4, \"name\": \"d\"}";
    let packed = |codec: &str| format!("{COLUMNS}, compression: {codec}");
    let with_crlf =
        |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\n', "\r\n").into_bytes();
    let with_bom = |bytes: &[u8]| [b"\xef\xbb\xbf", bytes].concat();
    let members = [gzip(&ROWS[..10]), gzip(&ROWS[10..])].concat();
    let frames = [zstd(&ROWS[..10]), zstd(&ROWS[10..])].concat();
    let sound: [(&str, Case); 9] = [
        ("two gzip members", csv(&packed("gzip"), &members)),
        ("two zstd frames", csv(&packed("zstd"), &frames)),
        ("gzip with an empty member", csv(&packed("gzip"), &[gzip(ROWS), gzip(b"")].concat())),
        ("CSV with CR LF and BOM", csv(COLUMNS, &with_bom(&with_crlf(ROWS)))),
        ("CSV without a last line break", csv(COLUMNS, &ROWS[..ROWS.len() - 1])),
        ("JSON lines with BOM", json(COLUMNS, &with_bom(RECORDS))),
        ("JSON lines with CR LF", json(COLUMNS, &with_crlf(RECORDS))),
        (
            "JSON lines in gzip members",
            json(&packed("gzip"), &[gzip(RECORDS), gzip(b"\n")].concat()),
        ),
        (
            "a JSON array with BOM",
            json(COLUMNS, &with_bom(b"[{\"id\":1,\"name\":\"a\"},{\"id\":4,\"name\":\"d\"}]\r\n")),
        ),
    ];
    for (name, case) in sound {
        assert_eq!(case.letters(&GOOD, 0), "", "{name}");
    }
    let empty: [(&str, Case); 8] = [
        ("an empty CSV file", csv(COLUMNS, b"")),
        ("a header only", csv(COLUMNS, b"id,name\n")),
        ("a header without its line break", csv(COLUMNS, b"id,name")),
        ("only a BOM", csv(COLUMNS, b"\xef\xbb\xbf")),
        ("gzip of nothing", csv(&packed("gzip"), &gzip(b""))),
        ("zstd of nothing", csv(&packed("zstd"), &zstd(b""))),
        ("an empty JSON file", json(COLUMNS, b"")),
        ("an empty JSON array", json(COLUMNS, b"[]")),
    ];
    for (name, case) in empty {
        assert_eq!(case.letters(&[], 0), "", "{name}");
    }
    let mut messages = Messages::default();
    let (cut, cut_frame) = (gzip(ROWS), zstd(ROWS));
    for (name, codec, bytes) in [
        ("gzip without a byte", "gzip", &b""[..]),
        ("zstd without a byte", "zstd", b""),
        ("zstd that is cut off", "zstd", &cut_frame[..cut_frame.len() - 3]),
        (
            "gzip with a second member that is cut off",
            "gzip",
            &[gzip(b"id,name\n"), cut[..cut.len() - 9].to_vec()].concat(),
        ),
        ("gzip with text behind it", "gzip", &[cut.clone(), b"text".to_vec()].concat()),
        ("zstd with text behind it", "zstd", &[cut_frame.clone(), b"text".to_vec()].concat()),
    ] {
        messages.add(name, &csv(&packed(codec), bytes).failure());
    }
    insta::assert_snapshot!("unusual_files", messages);
}

/// Names that are no readable files.
#[test]
fn names_that_are_no_readable_files_are_refused_by_name() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut messages = Messages::default();
    let reading = |path: &str| {
        let source = format!("{{ type: csv, path: \"{path}\", {COLUMNS} }}");
        Case::reading(&source, &[("in.csv", b"id,name\n1,a\n4,d\n")])
    };
    let case = reading("*.csv");
    std::fs::create_dir(case.folder.path().join("folder.csv")).expect("a folder");
    assert_eq!(case.letters(&GOOD, 0), "", "a folder that matches the glob is no file");

    let case = reading("*.csv");
    std::os::unix::fs::symlink("nowhere", case.folder.path().join("link.csv")).expect("a link");
    messages.add("a link that leads nowhere, by a glob", &case.failure());
    let case = reading("link.csv");
    std::os::unix::fs::symlink("nowhere", case.folder.path().join("link.csv")).expect("a link");
    messages.add("a link that leads nowhere", &case.failure());

    for path in ["pipe.csv", "*.csv"] {
        let case = reading(path);
        let made =
            std::process::Command::new("mkfifo").arg(case.folder.path().join("pipe.csv")).status();
        assert!(made.expect("mkfifo is installed").success());
        messages.add(&format!("a pipe, by {path}"), &case.failure());
    }

    let case = reading("*.csv");
    let name = std::ffi::OsStr::from_bytes(b"\xff.csv");
    std::fs::write(case.folder.path().join(name), "id,name\n2,b\n").expect("a file");
    messages.add("a name that is not UTF-8", &case.failure());
    insta::assert_snapshot!("no_files", messages);
}

/// The batch that would exceed the limit is not shown, nor any behind it.
#[test]
fn no_batch_is_shown_once_max_errors_is_exceeded() {
    let lines: String = (0..50_000)
        .map(|id| if id % 1_000 == 999 { "x,a\n".to_owned() } else { format!("{id},a\n") })
        .collect();
    let limited = |limit: &str, sink: &str| {
        let keys = format!("{COLUMNS}, max_errors: {limit}");
        let case = csv(&keys, format!("id,name\n{lines}").as_bytes());
        let path = case.folder.path().join("pipeline.yaml");
        let pipeline = std::fs::read_to_string(&path).expect("it has just been written");
        std::fs::write(&path, pipeline.replace("path: out", &format!("path: out, {sink}")))
            .expect("the disk has room");
        case
    };
    let mut messages = Messages::default();
    for (limit, shown) in [("0", 0..1), ("20", 1..20_001), ("50", 49_950..49_951)] {
        let case = limited(limit, "batch_rows: 5000");
        let output = case.run().expect_code(i32::from(limit != "50"));
        messages.add(limit, &crate::messages::told(case.folder.path(), &output));
        assert!(shown.contains(&case.rows().len()), "{limit}: {} rows", case.rows().len());
        assert!(case.reasons().len() <= limit.parse().expect("a number"), "{:?}", case.reasons());
        // It is read again, and refused again.
        let rows = case.rows();
        case.run().expect_code(i32::from(limit != "50"));
        assert!(limit == "50" || case.rows() == rows, "a resumed run shows no more");
    }
    for limit in ["20", "0.05%"] {
        let case = limited(limit, "batch_rows: 5000, commit: run");
        messages.add(&format!("{limit}, commit: run"), &case.failure());
    }
    insta::assert_snapshot!("max_errors", messages);
}

#[test]
fn dead_letters_are_read_no_further_than_asked_for() {
    let lines: String =
        (0..50_000).map(|id| format!("{}{id},a\n", "x".repeat(id / 49_999))).collect();
    let case = csv(COLUMNS, format!("id,name\nx,a\ny,a\n{lines}").as_bytes());
    let path = case.folder.path().join("pipeline.yaml");
    let pipeline = std::fs::read_to_string(&path).expect("it has just been written");
    std::fs::write(&path, pipeline.replace("path: out", "path: out, batch_rows: 5000"))
        .expect("the disk has room");
    case.run().expect_code(0);
    let run = case.weir.latest_run();
    let folder = case.folder.path().join(format!(".weir/bad/runs/{run}/dead-letters/input"));
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("there are dead letters")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(files.len() > 1, "{files:?}");
    std::fs::write(&files[files.len() - 1], "broken").expect("the disk has room");
    let list = |limit: &str| case.weir.run(&["dead-letters", "list", &run, "--limit", limit]);
    let output = list("2").expect_code(0);
    assert!(output.stdout.contains("1 more: --limit 3"), "{}", output.stdout);
    list("3").expect_code(1);
}

/// A Parquet file with one column `id` of the values' type.
fn parquet_file(ids: arrow::array::ArrayRef) -> Vec<u8> {
    let rows = arrow::array::RecordBatch::try_from_iter([("id", ids)]).expect("one column");
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, rows.schema(), None)
        .expect("the schema can be written");
    writer.write(&rows).expect("writing to memory does not fail");
    writer.close().expect("writing to memory does not fail");
    bytes
}

#[test]
fn broken_parquet_is_refused_by_name() {
    let mut messages = Messages::default();
    let numbers: arrow::array::ArrayRef =
        std::sync::Arc::new(arrow::array::Int64Array::from_iter_values(0..5_000));
    let whole = parquet_file(numbers);
    let mut scribbled = whole.clone();
    scribbled[8..400].fill(0xAA);
    let broken: [(&str, &[u8]); 6] = [
        ("an empty file", b""),
        ("only the magic", b"PAR1"),
        ("text", b"not parquet at all, only text"),
        ("a footer without meaning", b"PAR1xxxxxxxxPAR1"),
        ("cut in the middle", &whole[..whole.len() / 2]),
        ("damaged pages", &scribbled),
    ];
    for (name, bytes) in broken {
        let case = Case::reading("{ type: parquet, path: in.parquet }", &[("in.parquet", bytes)]);
        messages.add(name, &case.failure());
    }
    let texts: arrow::array::ArrayRef =
        std::sync::Arc::new(arrow::array::StringArray::from_iter_values(["a"]));
    let two = Case::reading(
        "{ type: parquet, path: \"*.parquet\" }",
        &[("a.parquet", &whole), ("b.parquet", &parquet_file(texts))],
    );
    messages.add("two types of one column", &two.failure());
    let missing = Case::reading("{ type: parquet, path: none.parquet }", &[]);
    messages.add("no file", &missing.failure());
    insta::assert_snapshot!("parquet", messages);
}

#[test]
fn source_file_that_changes_between_sessions_is_noticed() {
    let good: String = (0..30_000).map(|id| format!("{id},a\n")).collect();
    let case =
        csv(&format!("{COLUMNS}, on_error: fail"), format!("id,name\n{good}x,b\n").as_bytes());
    let path = case.folder.path().join("pipeline.yaml");
    let pipeline = std::fs::read_to_string(&path).expect("it has just been written");
    std::fs::write(&path, pipeline.replace("path: out", "path: out, batch_rows: 5000"))
        .expect("the disk has room");
    case.run().expect_code(1);
    assert!(!case.rows().is_empty(), "some batches are visible");
    std::fs::write(case.folder.path().join("in.csv"), "id,name\n1,a\n2,b\n5,e\n").expect("room");
    let output = case.run().expect_code(1);
    insta::assert_snapshot!("changed_file", crate::messages::told(case.folder.path(), &output));
    case.weir.run(&["run", "pipeline.yaml", "--fresh"]).expect_code(0);
}

//! Broken input: good rows arrive, bad ones become dead letters or end the run with a message that says
//! what, where and how to mend it; exit codes are right; nothing half-written is visible.

use std::path::Path;

use weir_tests::weir::{Output, Weir};

use crate::targets;

struct Case {
    folder: tempfile::TempDir,
    weir: Weir,
}

/// A pipeline with one source that is copied into JSON lines.
fn case(source: &str, files: &[(&str, &[u8])]) -> Case {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("the disk has room");
    }
    let pipeline = format!(
        "pipeline: bad\nsources:\n  input: {source}\n\
         sinks:\n  output: {{ input: input, type: json, path: out }}\nretry: {{ max_attempts: 1 }}\n"
    );
    std::fs::write(folder.path().join("pipeline.yaml"), pipeline).expect("the disk has room");
    let weir = Weir::new(folder.path());
    Case { folder, weir }
}

impl Case {
    fn run(&self) -> Output {
        self.weir.run(&["run", "pipeline.yaml"])
    }

    /// Visible rows as JSON, sorted.
    fn rows(&self) -> Vec<String> {
        visible_rows(&self.folder.path().join("out"))
    }

    /// Reasons of the dead letters.
    fn reasons(&self) -> Vec<String> {
        let run = self.weir.latest_run();
        let letters = self
            .weir
            .run(&["dead-letters", "list", &run, "--output", "json"])
            .expect_code(0)
            .json();
        letters
            .as_array()
            .expect("a list")
            .iter()
            .map(|letter| letter["reasons"].to_string())
            .collect()
    }

    /// The run fails with a message that holds all of `words`, and shows no row.
    #[track_caller]
    fn fails(&self, code: i32, words: &[&str]) {
        let output = self.run().expect_code(code);
        for word in words {
            assert!(output.stderr.contains(word), "`{word}` is missing in: {}", output.stderr);
        }
        assert_eq!(self.rows(), Vec::<String>::new());
    }
}

fn visible_rows(folder: &Path) -> Vec<String> {
    let mut rows: Vec<String> = targets::visible_files(folder)
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(file).expect("JSON lines are text");
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    rows.sort();
    rows
}

const COLUMNS: &str = "columns: { id: int32, name: string }";

/// Bad lines of a CSV file, each alone between two good ones.
#[test]
fn bad_csv_lines_become_dead_letters_that_name_line_and_column() {
    let bad: &[(&[u8], &[&str])] = &[
        (b"x,b", &["line 3", "id", "int32"]),
        (b"3000000000,b", &["line 3", "id", "int32"]),
        (b"2", &["line 3"]),
        (b"2,b,c", &["line 3"]),
        (b"2,\xff\xfe", &["line 3", "UTF-8"]),
        (b"2,a\0b", &["line 3", "NUL"]),
        (b"2.5,b", &["line 3", "id"]),
    ];
    for (line, words) in bad {
        let bytes = [b"id,name\n1,a\n".as_slice(), line, b"\n4,d\n"].concat();
        let case = case(
            &format!("{{ type: csv, path: in.csv, {COLUMNS} }}"),
            &[("in.csv", bytes.as_slice())],
        );
        case.run().expect_code(0);
        assert_eq!(case.rows(), [r#"{"id":1,"name":"a"}"#, r#"{"id":4,"name":"d"}"#]);
        let reasons = case.reasons();
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        for word in *words {
            assert!(
                reasons[0].contains(word),
                "`{word}` is missing in {reasons:?} of {}",
                String::from_utf8_lossy(line)
            );
        }
        case.weir.assert_audit_clean();
    }
}

#[test]
fn quote_that_is_never_closed_is_a_dead_letter() {
    let case = case(
        &format!("{{ type: csv, path: in.csv, {COLUMNS} }}"),
        &[("in.csv", b"id,name\n1,a\n2,\"open\n3,c\n")],
    );
    case.run().expect_code(0);
    assert_eq!(case.rows(), [r#"{"id":1,"name":"a"}"#, r#"{"id":3,"name":"c"}"#]);
    assert!(case.reasons()[0].contains("quote"), "{:?}", case.reasons());
}

#[test]
fn too_many_bad_rows_fail_the_run() {
    let case = case(
        &format!("{{ type: csv, path: in.csv, {COLUMNS}, max_errors: 1 }}"),
        &[("in.csv", b"id,name\nx,a\ny,b\nz,c\n")],
    );
    case.run().expect_code(1);
    let strict = self::case(
        &format!("{{ type: csv, path: in.csv, {COLUMNS}, on_error: fail }}"),
        &[("in.csv", b"id,name\n1,a\ny,b\n")],
    );
    strict.fails(1, &["line 3", "id"]);
}

#[test]
fn declared_column_that_the_header_lacks_is_named() {
    let case = case(
        "{ type: csv, path: in.csv, columns: { id: int32, nmae: string } }",
        &[("in.csv", b"id,name\n1,a\n")],
    );
    case.fails(1, &["nmae", "in.csv"]);
}

#[test]
fn missing_files_are_named() {
    case("{ type: csv, path: \"none/*.csv\", columns: { id: int32 } }", &[])
        .fails(1, &["none/*.csv"]);
    case("{ type: parquet, path: none.parquet }", &[]).fails(1, &["none.parquet"]);
}

#[test]
fn bad_json_lines_become_dead_letters() {
    for (line, word) in [
        ("{\"id\": 2, \"name\": }", "line 2"),
        ("{\"id\": \"x\", \"name\": \"b\"}", "id"),
        ("[1, 2]", "object"),
        ("{\"id\": 2", "line 2"),
    ] {
        let text =
            format!("{{\"id\": 1, \"name\": \"a\"}}\n{line}\n{{\"id\": 4, \"name\": \"d\"}}\n");
        let case = case(
            &format!("{{ type: json, path: in.jsonl, format: lines, {COLUMNS} }}"),
            &[("in.jsonl", text.as_bytes())],
        );
        case.run().expect_code(0);
        assert_eq!(case.rows(), [r#"{"id":1,"name":"a"}"#, r#"{"id":4,"name":"d"}"#], "{line}");
        assert!(case.reasons()[0].contains(word), "{:?}", case.reasons());
    }
}

#[test]
fn truncated_json_array_fails_and_says_where() {
    let case = case(
        &format!("{{ type: json, path: in.json, format: array, {COLUMNS} }}"),
        &[("in.json", b"[{\"id\": 1, \"name\": \"a\"}, {\"id\": 2, \"na")],
    );
    let output = case.run().expect_code(1);
    assert!(output.stderr.contains("in.json"), "{}", output.stderr);
    assert!(output.stderr.contains("offset"), "{}", output.stderr);
}

#[test]
fn broken_parquet_is_refused_by_name() {
    let broken: &[&[u8]] = &[b"", b"PAR1", b"not parquet at all, only text", b"PAR1xxxxxxxxPAR1"];
    for bytes in broken {
        case("{ type: parquet, path: in.parquet }", &[("in.parquet", bytes)])
            .fails(1, &["in.parquet"]);
    }
}

#[test]
fn source_file_that_changes_between_sessions_is_noticed() {
    let good: String = (0..30_000).map(|id| format!("{id},a\n")).collect();
    let text = format!("id,name\n{good}x,b\n");
    let case = case(
        &format!("{{ type: csv, path: in.csv, {COLUMNS}, on_error: fail }}"),
        &[("in.csv", text.as_bytes())],
    );
    let path = case.folder.path().join("pipeline.yaml");
    let pipeline = std::fs::read_to_string(&path).expect("it has just been written");
    std::fs::write(&path, pipeline.replace("path: out", "path: out, batch_rows: 5000"))
        .expect("the disk has room");
    case.run().expect_code(1);
    assert!(!case.rows().is_empty(), "some batches are visible");
    std::fs::write(case.folder.path().join("in.csv"), "id,name\n1,a\n2,b\n5,e\n").expect("room");
    let output = case.run().expect_code(1);
    assert!(output.stderr.contains("--fresh"), "{}", output.stderr);
    assert!(output.stderr.contains("in.csv"), "{}", output.stderr);
    case.weir.run(&["run", "pipeline.yaml", "--fresh"]).expect_code(0);
}

#[test]
fn databases_that_cannot_be_reached_are_named_without_their_password() {
    for (url, words) in [
        ("postgres://u:hidden-pw@127.0.0.1:1/db", &["127.0.0.1", "1"][..]),
        ("postgres://u:hidden-pw@no-such-host.invalid/db", &["no-such-host.invalid"]),
    ] {
        let case = case(&format!("{{ type: postgres, url: \"{url}\", table: t }}"), &[]);
        let output = case.run();
        assert!([1, 2].contains(&output.code()), "{output:?}");
        for word in words {
            assert!(output.stderr.contains(word), "`{word}` is missing in {}", output.stderr);
        }
        assert!(!output.all().contains("hidden-pw"), "{}", output.stderr);
    }
}

#[test]
fn nul_bytes_for_postgres_are_refused_with_the_column() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let url = targets::database("nul");
    std::fs::write(folder.path().join("in.jsonl"), "{\"id\": 1, \"name\": \"a\\u0000b\"}\n")
        .expect("the disk has room");
    std::fs::write(
        folder.path().join("pipeline.yaml"),
        format!(
            "pipeline: bad\nsources:\n  input: {{ type: json, path: in.jsonl, {COLUMNS} }}\n\
             sinks:\n  output: {{ input: input, type: postgres, url: \"{url}\", table: t }}\n"
        ),
    )
    .expect("the disk has room");
    let output = Weir::new(folder.path()).run(&["run", "pipeline.yaml"]).expect_code(1);
    for word in ["name", "NUL"] {
        assert!(output.stderr.contains(word), "`{word}` is missing in {}", output.stderr);
    }
}

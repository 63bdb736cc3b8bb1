//! Runs over several sessions: resume, refusal, two at once, Ctrl-C, watermarks, replay.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use weir_tests::dataset::{self, Checker};
use weir_tests::weir::Weir;

use crate::targets::{self, Target};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the disk has room");
}

/// A copy of 400,000 rows into CSV, long enough to be met while it goes on.
fn long_pipeline(folder: &Path, extra: &str) -> Box<dyn Target> {
    dataset::write_csv(&folder.join("data"), 400_000, 4);
    let target = targets::files(folder, "csv", "append", "batch");
    write(
        &folder.join("pipeline.yaml"),
        &format!(
            "pipeline: long\n{extra}sources:\n\
             \x20 rows: {{ type: csv, path: \"data/*.csv\", columns: {} }}\n\
             sinks:\n  target:\n    input: rows\n{}",
            dataset::COLUMNS,
            target.yaml(5_000)
        ),
    );
    target
}

/// Waits until a run is under way.
fn wait_until_running(weir: &Weir) {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        let runs = weir.run(&["runs", "--output", "json"]).json();
        if runs[0]["status"] == "running" && runs[0]["rows_written"]["target"].as_u64() > Some(0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no run is under way after 30 s");
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()), "kill -{name} {pid}");
}

#[test]
fn ctrl_c_stops_at_a_commit_and_says_how_to_resume() {
    let folder = folder();
    let target = long_pipeline(folder.path(), "");
    let weir = Weir::new(folder.path());
    let running = weir.start(&["run", "pipeline.yaml"]);
    wait_until_running(&weir);
    signal(running.pid(), "INT");
    let output = running.wait().expect_code(1);
    assert!(output.stderr.contains("weir retry"), "{}", output.stderr);
    let runs = weir.run(&["runs", "--output", "json"]).json();
    assert_eq!(runs[0]["status"], "interrupted");
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    let mut checker = Checker::default();
    target.read(&mut checker);
    checker.assert_complete(400_000);
    let runs = weir.run(&["runs", "--output", "json"]).json();
    assert_eq!(runs.as_array().map(Vec::len), Some(1), "the same run went on: {runs:#}");
    weir.assert_audit_clean();
}

#[test]
fn second_run_of_a_pipeline_waits_for_the_first() {
    let folder = folder();
    let target = long_pipeline(folder.path(), "");
    let weir = Weir::new(folder.path());
    let first = weir.start(&["run", "pipeline.yaml"]);
    wait_until_running(&weir);
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    first.wait().expect_code(0);
    let mut ids = 0;
    for file in targets::visible_files(&folder.path().join("out")) {
        let text = std::fs::read_to_string(file).expect("CSV is text");
        ids += text.matches("\n").count();
    }
    assert!(ids > 800_000, "two whole runs have appended");
    drop(target);
    let runs = weir.run(&["runs", "--output", "json"]).json();
    assert_eq!(runs.as_array().map(Vec::len), Some(2), "{runs:#}");
}

#[test]
fn second_run_is_skipped_where_the_file_says_so() {
    let folder = folder();
    let target = long_pipeline(folder.path(), "concurrency: { runs: 1, on_overlap: skip }\n");
    let weir = Weir::new(folder.path());
    let first = weir.start(&["run", "pipeline.yaml"]);
    wait_until_running(&weir);
    let second = weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    assert!(second.stdout.contains("skipped"), "{}", second.stdout);
    first.wait().expect_code(0);
    let mut checker = Checker::default();
    target.read(&mut checker);
    checker.assert_complete(400_000);
}

#[test]
fn changed_file_is_refused_while_a_run_is_unfinished() {
    let folder = folder();
    let target = long_pipeline(folder.path(), "");
    let weir = Weir::new(folder.path());
    let running = weir.start(&["run", "pipeline.yaml"]);
    wait_until_running(&weir);
    drop(running);
    let path = folder.path().join("pipeline.yaml");
    let text = std::fs::read_to_string(&path).expect("it has just been written");
    write(
        &path,
        &text.replace("input: rows", "input: kept").replace(
            "sinks:",
            "transforms:\n  kept: { sql: \"SELECT * FROM rows WHERE id < 10\" }\nsinks:",
        ),
    );
    let output = weir.run(&["run", "pipeline.yaml"]).expect_code(2);
    assert!(output.stderr.contains("weir retry"), "{}", output.stderr);
    assert!(output.stderr.contains("--fresh"), "{}", output.stderr);
    let run = weir.latest_run();
    weir.run(&["retry", &run]).expect_code(0);
    let mut checker = Checker::default();
    target.read(&mut checker);
    checker.assert_complete(400_000);
}

#[test]
fn watermark_advances_with_the_commit_and_not_before() {
    let folder = folder();
    let url = targets::database("watermark");
    targets::execute(
        &url,
        "CREATE TABLE input (id bigint PRIMARY KEY, name text NOT NULL);
         INSERT INTO input SELECT n, 'n' || n FROM generate_series(1, 1000) n",
    );
    write(
        &folder.path().join("pipeline.yaml"),
        &format!(
            "pipeline: incremental\nconnections:\n  db: {{ type: postgres, url: \"{url}\" }}\n\
             sources:\n  input: {{ connection: db, table: input, incremental: {{ cursor: id }} }}\n\
             sinks:\n  output: {{ input: input, connection: db, table: output, mode: append }}\n"
        ),
    );
    let weir = Weir::new(folder.path());
    let count = || targets::rows(&url, "SELECT count(*)::text FROM output")[0].clone();
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    assert_eq!(count(), "1000");
    let state = weir.run(&["state", "show", "incremental", "--output", "json"]).json();
    assert_eq!(state["input"], "1000", "{state}");
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    assert_eq!(count(), "1000", "nothing is new");

    targets::execute(
        &url,
        "INSERT INTO input SELECT n, 'n' || n FROM generate_series(1001, 1500) n",
    );
    // The target refuses rows: the watermark must stay.
    targets::execute(&url, "ALTER TABLE output ADD CONSTRAINT small CHECK (id <= 1000)");
    weir.run(&["run", "pipeline.yaml"]).expect_code(1);
    let state = weir.run(&["state", "show", "incremental", "--output", "json"]).json();
    assert_eq!(state["input"], "1000", "{state}");
    targets::execute(&url, "ALTER TABLE output DROP CONSTRAINT small");
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    assert_eq!(count(), "1500");
    let state = weir.run(&["state", "show", "incremental", "--output", "json"]).json();
    assert_eq!(state["input"], "1500", "{state}");

    weir.run(&["state", "set", "incremental", "input", "1400"]).expect_code(0);
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    assert_eq!(count(), "1600", "append loads 1401 to 1500 again, as asked");
}

#[test]
fn dead_letters_are_replayed_once_mended() {
    let folder = folder();
    write(&folder.path().join("in.jsonl"), "{\"id\": 1, \"n\": 5}\n{\"id\": 2, \"n\": -5}\n");
    write(
        &folder.path().join("pipeline.yaml"),
        "pipeline: letters\n\
         sources:\n  input: { type: json, path: in.jsonl, columns: { id: int64, n: int64 } }\n\
         transforms:\n  valid: { input: input, validate: [{ column: n, between: [0, 10] }] }\n\
         sinks:\n  output: { input: valid, type: json, path: out }\n",
    );
    let weir = Weir::new(folder.path());
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    let run = weir.latest_run();
    let letters = weir.run(&["dead-letters", "list", &run, "--output", "json"]).json();
    assert_eq!(letters[0]["row"]["id"], 2, "{letters:#}");
    let id = letters[0]["id"].as_str().expect("an id");
    let shown = weir.run(&["dead-letters", "show", id]).expect_code(0);
    assert!(shown.stdout.contains("not between"), "{}", shown.stdout);

    write(&folder.path().join("mended.jsonl"), "{\"id\": 2, \"n\": 6}\n");
    weir.run(&["dead-letters", "replay", &run, "--node", "valid", "--rows", "mended.jsonl"])
        .expect_code(0);
    let mut rows: Vec<String> = targets::visible_files(&folder.path().join("out"))
        .iter()
        .map(|file| std::fs::read_to_string(file).expect("JSON lines are text"))
        .collect();
    rows.sort();
    assert_eq!(rows.concat(), "{\"id\":1,\"n\":5}\n{\"id\":2,\"n\":6}\n");
}

/// Dead letters are JSON, which has no decimals, dates and times: the types come from the run's plan.
#[test]
fn replayed_rows_have_the_types_of_the_others() {
    let folder = folder();
    write(
        &folder.path().join("in.csv"),
        "id,amount,on_day,at\n1,1.50,2026-01-02,2026-01-02 03:04:05\n\
         -2,2.25,2026-01-03,2026-01-03 03:04:05\n",
    );
    let pipeline = |lowest: i64| {
        format!(
            "pipeline: typed\nsources:\n\
             \x20 input: {{ type: csv, path: in.csv, columns: {{ id: int64, \
             amount: \"decimal(10,2)\", on_day: date, at: timestamp }} }}\n\
             transforms:\n\
             \x20 valid: {{ input: input, validate: [{{ column: id, between: [{lowest}, 9] }}] }}\n\
             sinks:\n  output: {{ input: valid, type: parquet, path: out }}\n"
        )
    };
    write(&folder.path().join("pipeline.yaml"), &pipeline(0));
    let weir = Weir::new(folder.path());
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    write(&folder.path().join("mended.yaml"), &pipeline(-9));
    let run = weir.latest_run();
    weir.run(&["dead-letters", "replay", &run, "--file", "mended.yaml"]).expect_code(0);
    let batches: Vec<_> = targets::visible_files(&folder.path().join("out"))
        .into_iter()
        .map(|path| {
            let file = std::fs::File::open(path).expect("the file is there");
            let reader =
                parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file)
                    .and_then(|builder| builder.build())
                    .expect("the file is Parquet");
            let batches: Vec<_> = reader.map(|batch| batch.expect("it is whole")).collect();
            batches.into_iter().next().expect("a batch")
        })
        .collect();
    assert_eq!(batches.len(), 2);
    assert_eq!(batches[0].schema(), batches[1].schema());
    let rows = arrow::util::pretty::pretty_format_batches(&batches).expect("rows can be shown");
    assert!(
        rows.to_string().contains("| -2 | 2.25   | 2026-01-03 | 2026-01-03T03:04:05 |"),
        "{rows}"
    );
}

#[test]
fn target_that_loses_a_row_fails_the_audit() {
    let folder = folder();
    dataset::write_csv(&folder.path().join("data"), 1_000, 1);
    let target = targets::files(folder.path(), "csv", "append", "batch");
    write(
        &folder.path().join("pipeline.yaml"),
        &format!(
            "pipeline: audited\nsources:\n\
             \x20 rows: {{ type: csv, path: \"data/*.csv\", columns: {} }}\n\
             sinks:\n  target:\n    input: rows\n{}",
            dataset::COLUMNS,
            target.yaml(100)
        ),
    );
    let weir = Weir::new(folder.path());
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    weir.assert_audit_clean();
    let victim = &targets::visible_files(&folder.path().join("out"))[0];
    std::fs::remove_file(victim).expect("the file is there");
    let run = weir.latest_run();
    let report = weir.run(&["audit", &run, "--output", "json"]).expect_code(1).json();
    assert_eq!(report["clean"], false);
    assert!(!report["findings"].as_array().expect("a list").is_empty(), "{report:#}");
}

/// Rows that move between splits while they are read: with one snapshot for all tasks each is read once.
#[test]
fn tasks_of_one_run_read_a_table_under_one_snapshot() {
    const ROWS: i64 = 300_000;
    let folder = folder();
    let url = targets::database("snapshot");
    targets::execute(
        &url,
        &format!(
            "CREATE TABLE input (id bigint PRIMARY KEY, version int, filler text);
             INSERT INTO input SELECT n, 0, repeat('x', 100) FROM generate_series(1, {ROWS}) n;
             ANALYZE input"
        ),
    );
    write(
        &folder.path().join("pipeline.yaml"),
        &format!(
            "pipeline: snapshot\nconnections:\n  db: {{ type: postgres, url: \"{url}\" }}\n\
             sources:\n  input: {{ connection: db, table: input }}\n\
             sinks:\n  output: {{ input: input, type: csv, path: out, batch_rows: 10000 }}\n"
        ),
    );
    let weir = Weir::new(folder.path());
    let running = weir.start(&["run", "pipeline.yaml", "--parallelism", "2"]);
    let end = Instant::now() + Duration::from_secs(30);
    while targets::visible_files(&folder.path().join("out")).is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    // Every row gets a new version at the end of the table, behind all readers.
    targets::execute(&url, "UPDATE input SET version = 1");
    running.wait().expect_code(0);
    let mut ids: Vec<i64> = Vec::new();
    for file in targets::visible_files(&folder.path().join("out")) {
        let text = std::fs::read_to_string(file).expect("CSV is text");
        for line in text.lines().skip(1) {
            let cells: Vec<&str> = line.split(',').collect();
            assert_eq!(cells[1], "0", "a row was read under a later snapshot: {line}");
            ids.push(cells[0].parse().expect("an id"));
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, (1..=ROWS).collect::<Vec<_>>());
}

#[test]
fn cursor_that_no_sink_uses_still_moves_the_watermark() {
    let folder = folder();
    let url = targets::database("unused_cursor");
    targets::execute(
        &url,
        "CREATE TABLE input (id bigint PRIMARY KEY, name text);
         INSERT INTO input SELECT n, 'n' || n FROM generate_series(1, 100) n",
    );
    write(
        &folder.path().join("pipeline.yaml"),
        &format!(
            "pipeline: unused\nconnections:\n  db: {{ type: postgres, url: \"{url}\" }}\n\
             sources:\n  input: {{ connection: db, table: input, incremental: {{ cursor: id }} }}\n\
             transforms:\n  names: {{ sql: SELECT name FROM input }}\n\
             sinks:\n  output: {{ input: names, connection: db, table: output }}\n"
        ),
    );
    let weir = Weir::new(folder.path());
    for _ in 0..2 {
        weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    }
    assert_eq!(targets::rows(&url, "SELECT count(*)::text FROM output"), ["100"]);
    let state = weir.run(&["state", "show", "unused", "--output", "json"]).json();
    assert_eq!(state["input"], "100", "{state}");
}

/// Rows come into blocks that are read already, and a later row would carry the watermark past them.
#[test]
fn rows_that_come_while_a_run_is_interrupted_are_left_to_the_next() {
    const ROWS: i64 = 300_000;
    let folder = folder();
    let url = targets::database("interrupted_cursor");
    targets::execute(
        &url,
        &format!(
            "CREATE TABLE input (id bigint, filler text) WITH (autovacuum_enabled = false);
             INSERT INTO input SELECT n, repeat('x', 100) FROM generate_series(-1000, {ROWS}) n;
             DELETE FROM input WHERE id <= 0"
        ),
    );
    // The first blocks get room for new rows.
    targets::execute(&url, "VACUUM ANALYZE input");
    write(
        &folder.path().join("pipeline.yaml"),
        &format!(
            "pipeline: cursor\nconnections:\n  db: {{ type: postgres, url: \"{url}\" }}\n\
             sources:\n  input: {{ connection: db, table: input, incremental: {{ cursor: id }} }}\n\
             sinks:\n  output: {{ input: input, type: csv, path: out, batch_rows: 10000 }}\n"
        ),
    );
    let weir = Weir::new(folder.path());
    let arguments = ["run", "pipeline.yaml", "--parallelism", "1"];
    let running = weir.start(&arguments);
    let end = Instant::now() + Duration::from_secs(60);
    while targets::visible_files(&folder.path().join("out")).is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(running);
    targets::execute(
        &url,
        &format!(
            "INSERT INTO input SELECT n, 'new' FROM generate_series({ROWS} + 1, {ROWS} + 100) n;
             UPDATE input SET id = 1000000 WHERE id = {ROWS}"
        ),
    );
    let early = targets::rows(&url, "SELECT max(ctid)::text FROM input WHERE filler = 'new'");
    assert!(
        early[0].starts_with("(0,") || early[0].starts_with("(1,"),
        "the rows are in blocks that were read first: {early:?}"
    );
    weir.run(&arguments).expect_code(0);
    weir.run(&arguments).expect_code(0);
    let runs = weir.run(&["runs", "--output", "json"]).json();
    assert_eq!(runs.as_array().map(Vec::len), Some(2), "the first run was resumed: {runs:#}");
    let mut ids: Vec<i64> = Vec::new();
    for file in targets::visible_files(&folder.path().join("out")) {
        let text = std::fs::read_to_string(file).expect("CSV is text");
        ids.extend(text.lines().skip(1).map(|line| {
            line.split(',').next().and_then(|id| id.parse::<i64>().ok()).expect("an id")
        }));
    }
    ids.sort_unstable();
    let expected: Vec<i64> = (1..ROWS).chain(ROWS + 1..=ROWS + 100).chain([1_000_000]).collect();
    assert!(ids == expected, "{} rows instead of {}", ids.len(), expected.len());
}

/// A pipeline whose one row is rejected, run once.
fn rejecting(folder: &Path) -> Weir {
    write(&folder.join("in.jsonl"), "{\"id\": 2, \"n\": -5}\n");
    write(
        &folder.join("pipeline.yaml"),
        "pipeline: letters\n\
         sources:\n  input: { type: json, path: in.jsonl, columns: { id: int64, n: int64 } }\n\
         transforms:\n  valid: { input: input, validate: [{ column: n, between: [0, 10] }] }\n\
         sinks:\n  output: { input: valid, type: json, path: out }\n",
    );
    let weir = Weir::new(folder);
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    weir
}

#[test]
fn replay_touches_nothing_while_another_process_has_the_pipeline() {
    let folder = folder();
    let weir = rejecting(folder.path());
    let run = weir.latest_run();
    let lock = std::fs::File::open(folder.path().join(".weir/letters/lock")).expect("it is there");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("nobody has it");
    let replay = weir.start(&["dead-letters", "replay", &run]);
    let end = Instant::now() + Duration::from_secs(60);
    while !replay.printed().contains("waiting for") && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    let rows = folder.path().join(".weir/letters/replay");
    assert!(replay.printed().contains("waiting for") && !rows.exists(), "it does not wait");
    drop(lock);
    replay.wait().expect_code(0);
    assert!(rows.exists());
}

#[test]
fn old_run_is_not_retried_after_a_later_one_has_loaded() {
    let folder = folder();
    let url = targets::database("old_retry");
    targets::execute(
        &url,
        "CREATE TABLE input (id bigint PRIMARY KEY);
         INSERT INTO input SELECT generate_series(1, 100);
         CREATE TABLE output (id bigint CONSTRAINT none CHECK (id < 0))",
    );
    write(
        &folder.path().join("pipeline.yaml"),
        &format!(
            "pipeline: old\nconnections:\n  db: {{ type: postgres, url: \"{url}\" }}\n\
             sources:\n  input: {{ connection: db, table: input, incremental: {{ cursor: id }} }}\n\
             sinks:\n  output: {{ input: input, connection: db, table: output }}\n"
        ),
    );
    let weir = Weir::new(folder.path());
    weir.run(&["run", "pipeline.yaml"]).expect_code(1);
    let old = weir.latest_run();
    targets::execute(&url, "ALTER TABLE output DROP CONSTRAINT none");
    // Ids of one second are not ordered by time.
    std::thread::sleep(Duration::from_millis(1100));
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    let refused = weir.run(&["retry", &old]).expect_code(2);
    assert!(refused.stderr.contains("would load a second time"), "{}", refused.stderr);
    assert_eq!(targets::rows(&url, "SELECT count(*)::text FROM output"), ["100"]);
}

//! A full disk under each sink: a clear error, nothing half-visible, and the same command goes on once
//! there is room. The disk is a small tmpfs, so these tests need the right to mount.

use std::path::Path;

use weir_tests::dataset::{self, Checker};
use weir_tests::faults::disks::SmallDisk;
use weir_tests::postgres::PostgresServer;
use weir_tests::weir::Weir;

use crate::messages::{Messages, told};
use crate::targets::{self, Target};

const ROWS: i64 = 60_000;

fn pipeline(sink: &str) -> String {
    format!(
        "pipeline: full\nsources:\n  rows: {{ type: csv, path: \"data/*.csv\", columns: {} }}\n\
         sinks:\n  target:\n    input: rows\n{sink}",
        dataset::COLUMNS
    )
}

/// Runs on a full disk, looks, makes room, runs again. What the first run says. `is_atomic`: all rows
/// appear at once.
fn full_then_roomy(
    folder: &Path,
    disk: &SmallDisk,
    target: &dyn Target,
    files: i64,
    is_atomic: bool,
) -> String {
    dataset::write_csv(&folder.join("data"), ROWS, files);
    std::fs::write(folder.join("pipeline.yaml"), pipeline(&target.yaml(5_000))).expect("room");
    let weir = Weir::new(folder);
    let output = weir.run(&["run", "pipeline.yaml"]).expect_code(1);
    // What is visible is whole batches of right rows (the checker panics on a wrong value).
    let mut checker = Checker::default();
    target.read(&mut checker);
    if is_atomic {
        assert_eq!(checker.count(), 0, "rows are visible before all are");
    }
    let problem = checker.problem(ROWS).expect("not everything can have been written");
    assert!(problem.contains("is missing"), "{problem}");
    disk.grow("256m");
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    let mut checker = Checker::default();
    target.read(&mut checker);
    checker.assert_complete(ROWS);
    assert_eq!(target.leftovers(), None);
    weir.assert_audit_clean();
    // Which batch and which call meet the end of the disk is not always the same, nor how much is
    // left.
    let text = without_numbers(&told(folder, &output));
    text.replace("failed to complete", "failed to write")
        .replace("failed to create", "failed to write")
}

/// Numbers of batches, attempts and files in paths, and what is free, become `<n>`.
fn without_numbers(text: &str) -> String {
    let numbered = |part: &str| {
        let stem = part.split(['.', '"', ':']).next().unwrap_or_default();
        let is_number = !part.contains("<port>")
            && stem.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
            && stem.bytes().any(|byte| byte.is_ascii_digit());
        if is_number { part.replacen(stem, "<n>", 1) } else { part.to_owned() }
    };
    let mut words: Vec<String> = Vec::new();
    for word in text.split(' ') {
        if word == "KiB"
            && let Some(number) = words.last_mut()
        {
            let digits = number.trim_start_matches('(').to_owned();
            *number = number.replace(&digits, "<n>");
        }
        let parts: Vec<String> = match word.contains('/') {
            true => word.split('/').map(numbered).collect(),
            false => vec![word.to_owned()],
        };
        words.push(parts.join("/"));
    }
    words.join(" ")
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

#[test]
fn full_disk_under_files() {
    let mut messages = Messages::default();
    for (format, mode, commit) in [
        ("csv", "append", "batch"),
        ("json", "append", "run"),
        ("parquet", "append", "batch"),
        ("parquet", "replace", "run"),
        ("csv", "replace", "run"),
        ("json", "replace", "run"),
    ] {
        let folder = folder();
        let disk = SmallDisk::mount(&folder.path().join("disk"), "512k");
        let target = targets::files_at(folder.path(), "disk/out", format, mode, commit);
        let text = full_then_roomy(folder.path(), &disk, target.as_ref(), 2, commit == "run");
        messages.add(&format!("{format}, mode: {mode}, commit: {commit}"), &text);
    }
    insta::assert_snapshot!("full_disk_under_files", messages);
}

#[test]
fn full_disk_under_sqlite() {
    for (mode, commit) in
        [("append", "batch"), ("replace", "run"), ("append", "run"), ("upsert", "batch")]
    {
        let folder = folder();
        let disk = SmallDisk::mount(&folder.path().join("disk"), "1m");
        let target = targets::sqlite_at(folder.path(), "disk/out.db", mode, commit);
        let text = full_then_roomy(folder.path(), &disk, target.as_ref(), 2, commit == "run");
        // Rows that are to be published and the database share the disk: either may meet its end first.
        if commit == "run" && text.contains("unpublished rows") {
            assert!(text.contains("_weir-out.db") && text.contains("No space left"), "{text}");
            continue;
        }
        insta::assert_snapshot!(format!("full_disk_under_sqlite_{mode}_{commit}"), text);
    }
}

#[test]
fn full_disk_under_postgres() {
    let mut messages = Messages::default();
    for (mode, commit) in
        [("append", "batch"), ("append", "run"), ("upsert", "batch"), ("replace", "run")]
    {
        let folder = folder();
        let disk = SmallDisk::mount(&folder.path().join("disk"), "2m");
        targets::give_to_postgres(folder.path());
        targets::give_to_postgres(&folder.path().join("disk"));
        let server = PostgresServer::start();
        let target = targets::postgres_in(&server, mode, commit, &folder.path().join("disk"));
        let text = full_then_roomy(folder.path(), &disk, target.as_ref(), 2, commit == "run");
        server.stop();
        messages.add(&format!("mode: {mode}, commit: {commit}"), &text);
    }
    insta::assert_snapshot!("full_disk_under_postgres", messages);
}

#[test]
fn full_disk_under_the_state_folder() {
    let folder = folder();
    let disk = SmallDisk::mount(&folder.path().join(".weir"), "192k");
    let target = targets::files(folder.path(), "parquet", "append", "batch");
    // Many slices: their progress never fits, whichever task is the faster.
    let text = full_then_roomy(folder.path(), &disk, target.as_ref(), 60, false);
    // The ledger and the checkpoints of tasks share the disk: either may meet its end first.
    match text.contains("ledger.db") {
        true => insta::assert_snapshot!("full_disk_under_the_ledger", text),
        false => assert!(text.contains(".weir") && text.contains("No space left"), "{text}"),
    }
}

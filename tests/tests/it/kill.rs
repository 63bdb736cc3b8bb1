//! The promise: SIGKILL at any moment, run again, and the destination is exactly right.
//!
//! For each sink and mode, a run over 200,000 rows is killed at seeded random moments and started again
//! until it ends, at least [`KILLS`] times in all (with a fresh destination when one run has ended
//! too early); with `commit: run` every second kill meets the moment in which the rows are shown. Then:
//! every row exactly once with the right values, audit clean, no staging left. The same for a join
//! with rejected rows and for a PostgreSQL source. In a longer run the rows read again are fewer than
//! one batch, and what is read ahead of it, a task and kill. `WEIR_TEST_SEED` changes the moments.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use weir_tests::dataset::{self, Checker};
use weir_tests::moments::Moments;
use weir_tests::weir::Weir;

use crate::targets::{self, Target};

const ROWS: i64 = 200_000;
const KILLS: u32 = 10;
const BATCH_ROWS: i64 = 10_000;
/// The source reads ahead of the open batch by a few of its own batches of 8,192 rows.
const READ_AHEAD_ROWS: i64 = 6 * 8_192;
const PARALLELISM: i64 = 2;
/// A run that is killed as soon as it shows its rows is killed within this time.
const SHOWING: Duration = Duration::from_millis(60);

/// What is run, killed and looked at.
struct Scenario<'test> {
    label: &'test str,
    folder: &'test Path,
    rows: i64,
    target: &'test dyn Target,
    /// Where the rows go that a rule rejects, and how many they are.
    rejected: Option<(&'test dyn Target, usize)>,
    environment: &'test [(&'test str, &'test str)],
}

/// A copy of CSV files through SQL.
fn copy(target: &dyn Target) -> String {
    format!(
        "pipeline: killed\n\
         sources:\n  rows: {{ type: csv, path: \"data/*.csv\", columns: {columns} }}\n\
         transforms:\n  kept: {{ sql: \"SELECT id, grp, amount, name FROM rows WHERE id >= 0\" }}\n\
         sinks:\n  target:\n    input: kept\n{target}",
        columns = dataset::COLUMNS,
        target = target.yaml(BATCH_ROWS),
    )
}

struct Tally {
    kills: u32,
    /// Of all kills: what had been committed when they came.
    rows_committed_before: i64,
    rows_read: i64,
    wrong: Option<String>,
}

impl Scenario<'_> {
    fn weir(&self) -> Weir {
        let weir = Weir::new(self.folder).env("WEIR_LOG", "error,weir_executor=debug");
        self.environment.iter().fold(weir, |weir, (name, value)| weir.env(name, value))
    }

    fn reset(&self) {
        self.target.reset();
        if let Some((rejected, _)) = self.rejected {
            rejected.reset();
        }
        let state = self.weir().state;
        if state.exists() {
            std::fs::remove_dir_all(&state).expect("the old state can be removed");
        }
    }

    /// Runs to the end, undisturbed.
    fn run(&self) -> Duration {
        self.reset();
        let start = Instant::now();
        self.weir().run(&["run", "pipeline.yaml", "--parallelism", "2"]).expect_code(0);
        let undisturbed = start.elapsed();
        assert_eq!(self.problem(), None, "{}, undisturbed", self.label);
        undisturbed
    }

    /// Kills until the run ends; then checks everything.
    fn kill_until_done(&self, moments: &mut Moments, undisturbed: Duration) -> Tally {
        self.reset();
        let weir = self.weir();
        let (mut kills, mut rows_committed_before) = (0, 0);
        loop {
            // Start-up takes a good part of a short run: most moments must lie behind it. The machine
            // may have become slower since: what cannot be done again and again gets more time.
            let delay = (undisturbed / 8 + moments.below(undisturbed / 2)) * (10 + kills) / 10;
            let into_showing = moments.below(SHOWING);
            let running = weir.start(&["run", "pipeline.yaml", "--parallelism", "2"]);
            let shown_before = times_shown(&weir.state);
            let shown_at = Cell::new(None);
            let output = running.kill_when(|elapsed| {
                if kills % 2 == 1 && shown_at.get().is_none() {
                    let is_shown = times_shown(&weir.state) > shown_before;
                    shown_at.set(is_shown.then_some(elapsed));
                }
                match shown_at.get() {
                    Some(at) => elapsed >= at + into_showing,
                    None => elapsed >= delay,
                }
            });
            match output {
                None => {
                    kills += 1;
                    let runs = weir.run(&["runs", "--output", "json"]).expect_code(0).json();
                    rows_committed_before +=
                        runs[0]["rows_written"]["target"].as_i64().unwrap_or_default();
                    // Killed between its last entry and its exit: it has succeeded, and another
                    // `weir run` would be another run.
                    if runs[0]["status"] == "succeeded" {
                        break;
                    }
                }
                Some(output) => {
                    output.expect_code(0);
                    break;
                }
            }
            let label = self.label;
            assert!(kills < 200, "{label}: a run of {undisturbed:?} does not end");
        }
        let wrong = self.problem();
        Tally { kills, rows_committed_before, rows_read: rows_read(&weir.state), wrong }
    }

    /// What is wrong with the destination, if anything is.
    fn problem(&self) -> Option<String> {
        let mut checker = Checker::default();
        self.target.read(&mut checker);
        let weir = self.weir();
        if let Some((rejected, count)) = self.rejected {
            let before = checker.count();
            rejected.read(&mut checker);
            let found = checker.count() - before;
            if found != count {
                return Some(format!("{found} rejected rows for {count}"));
            }
            let run = weir.latest_run();
            let list = ["dead-letters", "list", &run, "--limit", "1000", "--output", "json"];
            let letters = weir.run(&list);
            let letters = letters.expect_code(0).json().as_array().map_or(0, Vec::len);
            if letters != count {
                return Some(format!("{letters} dead letters for {count}"));
            }
        }
        if let Some(problem) = checker.problem(self.rows) {
            return Some(problem);
        }
        weir.assert_audit_clean();
        self.target.leftovers().map(|left| format!("staging is left behind: {left}"))
    }

    fn killed_runs_end_exactly_right(&self) {
        let undisturbed = self.run();
        let mut moments = Moments::seeded(self.label);
        let mut kills = 0;
        let mut rounds = 0;
        while kills < KILLS {
            let tally = self.kill_until_done(&mut moments, undisturbed);
            assert_eq!(tally.wrong, None, "{} after {} kills", self.label, tally.kills);
            kills += tally.kills;
            rounds += 1;
            assert!(
                rounds < 30,
                "{}: runs of {undisturbed:?} end before they are killed",
                self.label
            );
        }
        println!("{}: {kills} kills in {rounds} runs; undisturbed {undisturbed:?}", self.label);
    }
}

fn log(state: &Path) -> String {
    std::fs::read_to_string(state.join("killed/log.jsonl")).unwrap_or_default()
}

/// How often sinks have begun to show the rows of a run.
fn times_shown(state: &Path) -> usize {
    log(state).matches("showing all rows").count()
}

/// Rows that all sessions together have read, from the executor's log (which a kill cannot lose).
fn rows_read(state: &Path) -> i64 {
    log(state)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|entry| entry["message"] == "read source batch")
        .map(|entry| entry["rows"].as_i64().expect("the event carries its rows"))
        .sum()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

fn write_pipeline(folder: &Path, text: &str) {
    std::fs::write(folder.join("pipeline.yaml"), text).expect("the disk has room");
}

fn killed_copies_end_exactly_right(label: &str, target: impl FnOnce(&Path) -> Box<dyn Target>) {
    let folder = folder();
    let folder = folder.path();
    dataset::write_csv(&folder.join("data"), ROWS, 4);
    let target = target(folder);
    write_pipeline(folder, &copy(target.as_ref()));
    let target = target.as_ref();
    Scenario { label, folder, rows: ROWS, target, rejected: None, environment: &[] }
        .killed_runs_end_exactly_right();
}

macro_rules! killed {
    ($($test:ident => $target:expr;)*) => {
        $(#[test]
        fn $test() {
            killed_copies_end_exactly_right(stringify!($test), $target);
        })*
    };
}

killed! {
    csv_append => |folder| targets::files(folder, "csv", "append", "batch");
    csv_append_visible_at_the_end => |folder| targets::files(folder, "csv", "append", "run");
    csv_replace => |folder| targets::files(folder, "csv", "replace", "run");
    json_append => |folder| targets::files(folder, "json", "append", "batch");
    json_append_visible_at_the_end => |folder| targets::files(folder, "json", "append", "run");
    json_replace => |folder| targets::files(folder, "json", "replace", "run");
    parquet_append => |folder| targets::files(folder, "parquet", "append", "batch");
    parquet_append_visible_at_the_end => |folder| targets::files(folder, "parquet", "append", "run");
    parquet_replace => |folder| targets::files(folder, "parquet", "replace", "run");
    sqlite_append => |folder| targets::sqlite(folder, "append", "batch");
    sqlite_append_visible_at_the_end => |folder| targets::sqlite(folder, "append", "run");
    sqlite_upsert => |folder| targets::sqlite(folder, "upsert", "batch");
    sqlite_upsert_visible_at_the_end => |folder| targets::sqlite(folder, "upsert", "run");
    sqlite_replace => |folder| targets::sqlite(folder, "replace", "run");
    postgres_append => |_| targets::postgres("append", "batch");
    postgres_append_visible_at_the_end => |_| targets::postgres("append", "run");
    postgres_upsert => |_| targets::postgres("upsert", "batch");
    postgres_upsert_visible_at_the_end => |_| targets::postgres("upsert", "run");
    postgres_replace => |_| targets::postgres("replace", "run");
}

/// A join is computed as a whole, its rows go through an exchange, a rule and two sinks.
#[test]
fn join_with_rejected_rows() {
    let folder = folder();
    let folder = folder.path();
    dataset::write_csv(&folder.join("data"), ROWS, 4);
    let groups: String = (0..97).map(|group| format!("{group}\n")).collect();
    std::fs::write(folder.join("data/groups.txt"), format!("grp\n{groups}")).expect("room");
    let target = targets::postgres_named("kill_join", "upsert", "batch");
    let rejected = targets::files(folder, "json", "append", "run");
    write_pipeline(
        folder,
        &format!(
            "pipeline: killed\n\
             sources:\n  rows: {{ type: csv, path: \"data/*.csv\", columns: {columns} }}\n\
             \x20 groups: {{ type: csv, path: data/groups.txt, columns: {{ grp: int64 }} }}\n\
             transforms:\n  joined:\n    sql: \"SELECT r.id, r.grp, r.amount, r.name FROM rows r \
             JOIN groups g ON r.grp = g.grp\"\n\
             \x20 valid: {{ input: joined, validate: [ {{ check: \"id % 1000 <> 7\" }} ] }}\n\
             sinks:\n  target:\n    input: valid\n{target}\
             \x20 rejected:\n    input: valid.errors\n{rejected}",
            columns = dataset::COLUMNS,
            target = target.yaml(BATCH_ROWS),
            rejected = rejected.yaml(BATCH_ROWS),
        ),
    );
    let count = usize::try_from(ROWS / 1000).expect("a small number");
    Scenario {
        label: "join_with_rejected_rows",
        folder,
        rows: ROWS,
        target: target.as_ref(),
        rejected: Some((rejected.as_ref(), count)),
        environment: &[],
    }
    .killed_runs_end_exactly_right();
}

/// Splits of a table are read under a snapshot that ends with its process.
#[test]
fn postgres_source() {
    let folder = folder();
    let folder = folder.path();
    let url = targets::database("kill_source");
    targets::execute(
        &url,
        &format!(
            "CREATE TABLE rows AS SELECT id, id % 97 AS grp, id * 0.25::float8 AS amount, \
             CASE id % 5 WHEN 0 THEN 'plain ' || id WHEN 1 THEN 'comma, ' || id \
             WHEN 2 THEN 'quote \"' || id || '\"' WHEN 3 THEN 'línea ' || id \
             ELSE E'two\\nlines ' || id END AS name FROM generate_series(0::int8, {}) id",
            ROWS - 1
        ),
    );
    let target = targets::files(folder, "parquet", "append", "batch");
    write_pipeline(
        folder,
        &format!(
            "pipeline: killed\n\
             sources:\n  rows: {{ type: postgres, url: \"{url}\", table: rows }}\n\
             sinks:\n  target:\n    input: rows\n{}",
            target.yaml(BATCH_ROWS)
        ),
    );
    Scenario {
        label: "postgres_source",
        folder,
        rows: ROWS,
        target: target.as_ref(),
        rejected: None,
        environment: &[],
    }
    .killed_runs_end_exactly_right();
}

/// Only the open batch of each task is read again. The run is long enough for starting over to be
/// noticed: that is checked as well.
#[test]
fn work_done_again_is_less_than_a_batch_for_each_task() {
    const LONG: i64 = 2_000_000;
    let folder = folder();
    let folder = folder.path();
    dataset::write_csv(&folder.join("data"), LONG, 4);
    let target = targets::files(folder, "csv", "append", "batch");
    write_pipeline(folder, &copy(target.as_ref()));
    let scenario = Scenario {
        label: "work_done_again",
        folder,
        rows: LONG,
        target: target.as_ref(),
        rejected: None,
        environment: &[],
    };
    // Kills come early, so that they are many.
    let often = scenario.run() / 4;
    let tally = scenario.kill_until_done(&mut Moments::seeded("work done again"), often);
    assert_eq!(tally.wrong, None);
    let allowed = i64::from(tally.kills) * PARALLELISM * (BATCH_ROWS + READ_AHEAD_ROWS);
    let again = tally.rows_read - LONG;
    let Tally { kills, rows_committed_before, .. } = tally;
    println!(
        "{again} rows were read again in {kills} kills, {allowed} are allowed; starting over would \
         have read {rows_committed_before} of them again"
    );
    assert!((0..=allowed).contains(&again), "{again} rows were read again in {kills} kills");
    assert!(rows_committed_before > allowed, "starting over would not be noticed");
}

/// The checker of this file can fail: with the ledger's memory switched off, rows come twice.
#[test]
fn without_the_ledger_check_rows_come_twice() {
    let folder = folder();
    let folder = folder.path();
    dataset::write_csv(&folder.join("data"), ROWS, 4);
    let target = targets::files(folder, "csv", "append", "batch");
    write_pipeline(folder, &copy(target.as_ref()));
    let label = "negative control";
    let (rows, target) = (ROWS, target.as_ref());
    let undisturbed =
        Scenario { label, folder, rows, target, rejected: None, environment: &[] }.run();
    let environment = [("WEIR_TEST_IGNORE_LEDGER", "1")];
    let scenario =
        Scenario { label, folder, rows, target, rejected: None, environment: &environment };
    let mut moments = Moments::seeded(label);
    for _ in 0..10 {
        if let Some(wrong) = scenario.kill_until_done(&mut moments, undisturbed).wrong {
            assert!(wrong.contains("twice"), "{wrong}");
            return;
        }
    }
    panic!("the kill test does not notice that the ledger is ignored");
}

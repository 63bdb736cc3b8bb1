//! The promise: SIGKILL at any moment, run again, and the destination is exactly right.
//!
//! For each sink and mode, a run over 200,000 rows is killed at seeded random moments and started again
//! until it ends, at least [`KILLS`] times in all (with a fresh destination when one run has ended
//! too early). Then: every row exactly once with the right values, audit clean, no staging left, and
//! the rows read again are fewer than one batch, and what is read ahead of it, a task and kill.
//! `WEIR_TEST_SEED` changes the moments.

use std::path::Path;
use std::time::{Duration, Instant};

use weir_tests::dataset::{self, Checker};
use weir_tests::weir::Weir;

use crate::targets::{self, Target};

const ROWS: i64 = 200_000;
const KILLS: u32 = 10;
const BATCH_ROWS: i64 = 10_000;
/// The source reads ahead of the open batch by a few of its own batches of 8,192 rows.
const READ_AHEAD_ROWS: i64 = 6 * 8_192;
const PARALLELISM: i64 = 2;

/// A small generator with a seed (xorshift), so that a failure can be seen again.
struct Moments(u64);

impl Moments {
    fn seeded(label: &str) -> Self {
        let seed = std::env::var("WEIR_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or(20_261_122_u64);
        let mixed = label
            .bytes()
            .fold(seed, |seed, byte| seed.wrapping_mul(0x0100_0000_01b3) ^ u64::from(byte));
        println!("{label}: WEIR_TEST_SEED={seed}");
        Self(mixed | 1)
    }

    /// Uniform in `[0, bound)`.
    fn below(&mut self, bound: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        bound.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

fn pipeline(target: &dyn Target) -> String {
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
    wrong: Option<String>,
}

/// Kills until the run ends; then checks everything.
fn kill_until_done(
    label: &str,
    folder: &Path,
    target: &dyn Target,
    moments: &mut Moments,
    undisturbed: Duration,
    environment: &[(&str, &str)],
) -> Tally {
    target.reset();
    let mut weir = Weir::new(folder).env("WEIR_LOG", "error,weir_executor=debug");
    for (name, value) in environment {
        weir = weir.env(name, value);
    }
    if weir.state.exists() {
        std::fs::remove_dir_all(&weir.state).expect("the old state can be removed");
    }
    let mut kills = 0;
    loop {
        // Start-up takes a good part of a short run: most moments must lie behind it.
        let delay = undisturbed / 8 + moments.below(undisturbed / 2);
        let running = weir.start(&["run", "pipeline.yaml", "--parallelism", "2"]);
        match running.kill_after(delay) {
            None => {
                kills += 1;
                // Killed between its last entry and its exit: it has succeeded, and another `weir run`
                // would be another run.
                if has_succeeded(&weir) {
                    break;
                }
            }
            Some(output) => {
                output.expect_code(0);
                break;
            }
        }
        assert!(kills < 200, "{label}: a run of {undisturbed:?} does not end: no progress is kept");
    }
    let mut checker = Checker::default();
    target.read(&mut checker);
    let mut wrong = checker.problem(ROWS);
    if wrong.is_none() {
        weir.assert_audit_clean();
        wrong = target.leftovers().map(|left| format!("staging is left behind: {left}"));
    }
    if wrong.is_none() {
        let read = rows_read(&weir.state);
        let bound = ROWS + i64::from(kills) * PARALLELISM * (BATCH_ROWS + READ_AHEAD_ROWS);
        if read > bound || read < ROWS {
            wrong = Some(format!(
                "{read} rows were read in {kills} kills; {ROWS} to {bound} are right"
            ));
        }
    }
    Tally { kills, wrong }
}

fn has_succeeded(weir: &Weir) -> bool {
    let runs = weir.run(&["runs", "--output", "json"]).expect_code(0).json();
    runs[0]["status"] == "succeeded"
}

/// Rows that all sessions together have read, from the executor's log (which a kill cannot lose).
fn rows_read(state: &Path) -> i64 {
    let log =
        std::fs::read_to_string(state.join("killed/log.jsonl")).expect("a run writes its log");
    log.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|entry| entry["message"] == "read source batch")
        .map(|entry| entry["rows"].as_i64().expect("the event carries its rows"))
        .sum()
}

fn killed_runs_end_exactly_right(label: &str, target: impl FnOnce(&Path) -> Box<dyn Target>) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let folder = folder.path();
    dataset::write_csv(&folder.join("data"), ROWS, 4);
    let target = target(folder);
    std::fs::write(folder.join("pipeline.yaml"), pipeline(target.as_ref())).expect("disk has room");

    target.reset();
    let weir = Weir::new(folder);
    let start = Instant::now();
    weir.run(&["run", "pipeline.yaml", "--parallelism", "2"]).expect_code(0);
    let undisturbed = start.elapsed();
    let mut checker = Checker::default();
    target.read(&mut checker);
    checker.assert_complete(ROWS);

    let mut moments = Moments::seeded(label);
    let mut kills = 0;
    let mut rounds = 0;
    while kills < KILLS {
        let tally = kill_until_done(label, folder, target.as_ref(), &mut moments, undisturbed, &[]);
        assert_eq!(tally.wrong, None, "{label} after {} kills", tally.kills);
        kills += tally.kills;
        rounds += 1;
        assert!(rounds < 30, "{label}: runs of {undisturbed:?} end before they can be killed");
    }
    println!("{label}: {kills} kills in {rounds} runs; undisturbed {undisturbed:?}");
}

macro_rules! killed {
    ($($test:ident => $target:expr;)*) => {
        $(#[test]
        fn $test() {
            killed_runs_end_exactly_right(stringify!($test), $target);
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

/// The checker of this file can fail: with the ledger's memory switched off, rows come twice.
#[test]
fn without_the_ledger_check_rows_come_twice() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let folder = folder.path();
    dataset::write_csv(&folder.join("data"), ROWS, 4);
    let target = targets::files(folder, "csv", "append", "batch");
    std::fs::write(folder.join("pipeline.yaml"), pipeline(target.as_ref())).expect("disk has room");
    let start = Instant::now();
    Weir::new(folder).run(&["run", "pipeline.yaml", "--parallelism", "2"]).expect_code(0);
    let undisturbed = start.elapsed();
    let mut moments = Moments::seeded("negative control");
    for _ in 0..10 {
        let tally = kill_until_done(
            "negative control",
            folder,
            target.as_ref(),
            &mut moments,
            undisturbed,
            &[("WEIR_TEST_IGNORE_LEDGER", "1")],
        );
        if let Some(wrong) = tally.wrong {
            assert!(wrong.contains("twice"), "{wrong}");
            return;
        }
    }
    panic!("the kill test does not notice that the ledger is ignored");
}

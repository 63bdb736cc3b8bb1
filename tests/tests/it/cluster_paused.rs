//! An executor that is paused far beyond its lease, in the middle of batches: what it still has in hand when it
//! wakes up is refused, and neither the ledger nor the target has anything of it.
//! `WEIR_TEST_PAUSE` makes the pause longer (seconds).

use std::time::{Duration, Instant};

use serde_json::Value;
use weir_tests::cluster::{Cluster, wait_until};
use weir_tests::dataset::{self, Checker};

use crate::targets;

const ROWS: i64 = 60_000;
const BATCH_ROWS: i64 = 2_000;
/// Longer than the lease of an executor (3 s).
const PAUSE: Duration = Duration::from_secs(8);

/// Batches end when nobody holds the lock 7: so a pause can fall into their middle for certain.
const GATE: &str =
    "CREATE TABLE public.target (id bigint, grp bigint, amount double precision, name text);
    CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END';
    CREATE TRIGGER gate AFTER INSERT ON public.target FOR EACH STATEMENT EXECUTE FUNCTION gate();";

/// `<slice> <attempt> <backend>` of the sessions that wait at the gate.
const WAITING: &str = "SELECT split_part(application_name, ' ', 4) || ' ' || \
    split_part(application_name, ' ', 5) || ' ' || pid FROM pg_stat_activity \
    WHERE application_name LIKE 'weir %' AND wait_event_type = 'Lock' AND wait_event = 'advisory' \
    ORDER BY 1";

/// What the target has, and what it knows of each slice.
const HELD: &str = "SELECT count(*) || ' rows, ' || sum(hashtextextended(t::text, 0)::numeric) \
    FROM public.target t UNION ALL \
    SELECT 'slice ' || slice || ': ' || count(*) || ' batches, ' || sum(rows) FROM _weir_ledger \
    GROUP BY slice ORDER BY 1";

#[test]
fn what_an_executor_writes_after_a_long_pause_is_refused_by_ledger_and_target() {
    let pause = std::env::var("WEIR_TEST_PAUSE").ok().and_then(|text| text.parse().ok());
    let pause = pause.map_or(PAUSE, Duration::from_secs);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path();
    dataset::write_csv(&path.join("data"), ROWS, 6);
    let url = targets::database("cluster_paused");
    targets::execute(&url, GATE);
    let target = targets::postgres_at(&url, "append", "batch");
    let text = format!(
        "pipeline: paused\n\
         sources: {{ rows: {{ type: csv, path: \"data/*.csv\", columns: {} }} }}\n\
         sinks:\n  target:\n    input: rows\n{}",
        dataset::COLUMNS,
        target.yaml(BATCH_ROWS)
    );
    std::fs::write(path.join("pipeline.yaml"), text).expect("the disk has room");
    let cluster = Cluster::up(path);
    let gate = targets::hold(&url, "SELECT pg_advisory_lock(7)");
    let run = cluster.submit("pipeline.yaml", "paused");
    let mut waiting = Vec::new();
    wait_until("every executor to be in the middle of a batch", || {
        waiting = targets::rows(&url, WAITING);
        waiting.len() >= 3
    });
    let victim = cluster.working_on(&run).remove(0);
    let slices = slices_of(&cluster.show(&run), &victim);
    cluster.pause(&victim);
    let paused_at = Instant::now();
    drop(gate);

    // The others do its work meanwhile, to the end.
    let shown = cluster.wait(&run);
    let (held, facts) = (targets::rows(&url, HELD), facts(&cluster));
    println!("the run has ended {:.1?} after the pause began: {held:#?}", paused_at.elapsed());
    std::thread::sleep(pause.saturating_sub(paused_at.elapsed()));
    println!("{victim} wakes up after {:.1?}", paused_at.elapsed());
    cluster.resume(&victim);

    // It has tried, and was told.
    wait_until("the target to refuse", || {
        let log = cluster.log(&victim);
        slices.iter().all(|slice| {
            log.lines().any(|line| {
                line.contains("task failed")
                    && line.contains(&format!("slice={slice} "))
                    && line.contains("terminating connection due to administrator command")
            })
        })
    });
    wait_until("the executor to be back", || cluster.executors().contains(&victim));
    for slice in &slices {
        let least = format!("SELECT attempt::text FROM _weir_attempts WHERE slice = {slice}");
        assert_eq!(targets::rows(&url, &least), ["2"], "the target knows a later attempt");
    }
    assert_eq!(targets::rows(&url, HELD), held);
    assert_eq!(self::facts(&cluster), facts, "the ledger has taken nothing of it");
    assert_eq!(cluster.show(&run), shown);
    let mut checker = Checker::default();
    target.read(&mut checker);
    checker.assert_complete(ROWS);
    cluster.assert_audit_clean(&run);
}

/// That an executor works on.
fn slices_of(shown: &Value, executor: &str) -> Vec<u64> {
    let stages = shown["stages"].as_array().expect("a list");
    let running = stages.iter().filter_map(|stage| stage["running"].as_array()).flatten();
    (running.filter(|attempt| attempt["executor"] == executor))
        .map(|attempt| attempt["slice"].as_u64().expect("a number"))
        .collect()
}

/// The hash of all facts of the ledger, as the leader has them.
fn facts(cluster: &Cluster) -> Value {
    let status = cluster.status();
    let coordinators = status["coordinators"].as_array().expect("a list");
    let leader = coordinators.iter().find(|coordinator| coordinator["role"] == "leader");
    leader.expect("somebody leads")["state_hash"].clone()
}

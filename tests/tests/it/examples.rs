//! Every pipeline in `examples/` runs, and does what its first comment says.

use std::path::{Path, PathBuf};

use sqlx::{Connection as _, Row as _};
use weir_tests::rest_server::{API_KEY, RestServer};
use weir_tests::weir::{self, Weir};

use crate::targets;

/// A copy of an example's folder, so that nothing is written into the checkout.
pub(crate) fn copied(example: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    copy(&weir::repository().join("examples").join(example), folder.path());
    let path = folder.path().to_owned();
    (folder, path)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the folder can be made");
    for entry in std::fs::read_dir(from).expect("the example is there").flatten() {
        let target = to.join(entry.file_name());
        if entry.file_name() == "out" || entry.file_name() == ".weir" {
            continue;
        }
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("the file can be copied");
        }
    }
}

#[test]
fn every_example_is_valid() {
    for entry in std::fs::read_dir(weir::repository().join("examples")).expect("examples/ is there")
    {
        let path = entry.expect("examples/ can be listed").path().join("pipeline.yaml");
        Weir::new(&weir::repository())
            .run(&["validate", &path.display().to_string()])
            .expect_code(0);
    }
}

#[test]
fn quickstart_fills_parquet_and_sqlite_and_keeps_dead_letters() {
    let (_guard, folder) = copied("quickstart");
    let weir = Weir::new(&folder);
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    weir.assert_audit_clean();

    let mut sales = 0;
    for file in targets::visible_files(&folder.join("out/sales")) {
        let file = std::fs::File::open(file).expect("the file is there");
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|builder| builder.build())
            .expect("the file is Parquet");
        sales += reader.map(|batch| batch.expect("the file is whole").num_rows()).sum::<usize>();
    }
    // Two lines of orders.csv are broken; the orders of customer 3 have no valid contact.
    let text = std::fs::read_to_string(folder.join("data/orders.csv")).expect("the data is there");
    let of_customer_3 = text
        .lines()
        .filter(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            cells.len() >= 4
                && cells[1] == "3"
                && cells[3].parse::<f64>().is_ok()
                && cells[0] != "1120"
        })
        .count();
    assert_eq!(sales, 200 - of_customer_3);

    let letters = weir
        .run(&["dead-letters", "list", &weir.latest_run(), "--output", "json"])
        .expect_code(0)
        .json();
    let nodes: Vec<&str> = letters
        .as_array()
        .expect("a list")
        .iter()
        .map(|letter| letter["node"].as_str().expect("a node"))
        .collect();
    assert_eq!(nodes.iter().filter(|node| **node == "orders").count(), 2, "{letters:#}");
    assert_eq!(nodes.iter().filter(|node| **node == "valid_contacts").count(), 1, "{letters:#}");

    let total = targets::block_on(async {
        let path = folder.join("out/report.db");
        let mut connection =
            sqlx::SqliteConnection::connect(&format!("sqlite://{}", path.display()))
                .await
                .expect("the database opens");
        sqlx::query("SELECT sum(orders) FROM sales_by_city")
            .fetch_one(&mut connection)
            .await
            .expect("the table is there")
            .get::<i64, _>(0)
    });
    assert_eq!(usize::try_from(total), Ok(sales));

    // Again: replace and upsert leave the same.
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    weir.assert_audit_clean();
}

#[test]
fn quickstart_tests_pass() {
    let (_guard, folder) = copied("quickstart");
    let weir = Weir::new(&folder);
    let output = weir.run(&["test", "pipeline.yaml"]).expect_code(0);
    assert!(output.stdout.contains("2 passed"), "{}", output.stdout);
    assert!(!folder.join("out").exists(), "tests touch no system");
    assert!(!weir.state.exists(), "tests leave no state");
}

#[test]
fn tests_of_a_file_fail_when_they_should() {
    let (_guard, folder) = copied("quickstart");
    let path = folder.join("pipeline.yaml");
    let text = std::fs::read_to_string(&path).expect("the example is there");
    for (right, wrong) in [
        ("customer: Konrad Zuse, city: Hünfeld", "customer: Konrad Zuse, city: Berlin"),
        ("_error: email does not match", "_error: id is null"),
        ("      valid_contacts: []", "      valid_contacts: [{ id: 3 }]"),
    ] {
        assert!(text.contains(right), "`{right}` is in the example");
        std::fs::write(&path, text.replace(right, wrong)).expect("the disk has room");
        let output = Weir::new(&folder).run(&["test", "pipeline.yaml"]).expect_code(1);
        assert!(output.stdout.contains("1 passed, 1 failed"), "{wrong}: {}", output.stdout);
    }
}

#[test]
fn events_go_from_postgres_to_one_folder_a_day() {
    let (_guard, folder) = copied("postgres-to-parquet");
    let url = targets::database("example_events");
    targets::execute(
        &url,
        "CREATE TABLE events (id bigint PRIMARY KEY, kind text, happened_at timestamptz, payload jsonb);
         INSERT INTO events
         SELECT n, 'click', timestamptz '2025-12-31 00:00Z' + n * interval '1 hour', '{\"n\": 1}'
         FROM generate_series(0, 71) n",
    );
    let weir = Weir::new(&folder).env("DATABASE_URL", &url);
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    weir.assert_audit_clean();
    let days: Vec<String> = std::fs::read_dir(folder.join("out/events"))
        .expect("the lake is there")
        .map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('_'))
        .collect();
    assert_eq!(days.len(), 2, "{days:?}");
    assert!(days.contains(&"day=2026-01-01".to_owned()), "{days:?}");
}

#[test]
fn full_sync_replaces_the_table() {
    let (_guard, folder) = copied("full-sync");
    let url = targets::database("example_prices");
    let weir = Weir::new(&folder).env("DATABASE_URL", &url);
    let prices = || {
        targets::rows(
            &url,
            "SELECT sku || ' ' || price || ' ' || currency FROM price_list ORDER BY 1",
        )
    };
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    assert_eq!(prices(), ["A-1 9.99 EUR", "A-2 19.50 EUR", "B-8 1200.00 USD"]);
    std::fs::write(folder.join("data/prices.csv"), "sku,price,currency\nc-1,1.00,EUR\n")
        .expect("the disk has room");
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    assert_eq!(prices(), ["C-1 1.00 EUR"]);
    weir.assert_audit_clean();
}

#[test]
fn items_of_an_api_are_upserted_and_then_only_the_newer_ones_read() {
    const RECORDS: usize = 250;
    let (_guard, folder) = copied("rest-to-postgres");
    let url = targets::database("example_items");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let server = runtime.block_on(RestServer::start(RECORDS)).expect("a port is free");
    let weir = Weir::new(&folder)
        .env("ITEMS_API", server.url())
        .env("WEIR_SECRET_ITEMS_KEY", API_KEY)
        .env("WAREHOUSE_URL", &url);
    let items = |condition: &str| {
        let query = format!("SELECT name FROM public.items WHERE {condition} ORDER BY id");
        targets::rows(&url, &query)
    };
    // Everything, page by page.
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    weir.assert_audit_clean();
    assert_eq!(items("true").len(), RECORDS);
    assert_eq!(items("id = 7"), ["record 7"]);
    let first = server.requests();
    assert_eq!(first.iter().filter(|uri| uri.contains("cursor=")).count(), 2, "{first:?}");
    assert!(first.iter().all(|uri| uri.contains("updated_since=2020-01-01")), "{first:?}");

    // Nothing is new: only the five minutes of the lag are read again.
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    weir.assert_audit_clean();
    assert_eq!(items("true").len(), RECORDS);
    let second = server.requests().split_off(first.len());
    assert_eq!(second.len(), 1, "{second:?}");
    assert!(second[0].contains("updated_since=2024-01-01T04%3A04%3A00Z"), "{second:?}");

    // One record changes, one is new: the one is updated, the other inserted, no other is touched.
    targets::execute(&url, "UPDATE public.items SET name = 'kept' WHERE id = 8");
    server.update(7, "renamed");
    server.add(1);
    weir.run(&["run", "pipeline.yaml"]).expect_code(0);
    weir.assert_audit_clean();
    assert_eq!(items("true").len(), RECORDS + 1);
    assert_eq!(items("id IN (7, 8, 250)"), ["renamed", "kept", "record 250"]);
    let state = weir.run(&["state", "show", "items", "--output", "json"]).expect_code(0);
    let newest = weir_tests::rest_server::updated_at(RECORDS + 1);
    assert!(state.stdout.contains(&newest[..16]), "{newest}: {}", state.stdout);
}

/// An example that no test runs would rot.
#[test]
fn every_example_is_run_by_a_test() {
    let tests = concat!(include_str!("examples.rs"), include_str!("cluster_tpch.rs"));
    let examples = std::fs::read_dir(weir::repository().join("examples"));
    for entry in examples.expect("examples/ is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(tests.contains(&format!("copied(\"{name}\")")), "no test runs examples/{name}");
    }
}

/// Of every example; those without tests say so.
#[test]
fn tests_of_the_examples_pass() {
    for entry in std::fs::read_dir(weir::repository().join("examples")).expect("examples/ is there")
    {
        let name = entry.expect("examples/ can be listed").file_name();
        let (_guard, folder) = copied(&name.to_string_lossy());
        let has_tests = std::fs::read_to_string(folder.join("pipeline.yaml"))
            .expect("the pipeline is there")
            .contains("\ntests:");
        let output = Weir::new(&folder).run(&["test", "pipeline.yaml"]);
        assert_eq!(output.code(), 0, "{name:?}: {}{}", output.stdout, output.stderr);
        assert_eq!(!output.stdout.contains("no tests"), has_tests, "{name:?}: {}", output.stdout);
    }
}

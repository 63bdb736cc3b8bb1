//! `weir test FILE…`: a file's own tests. Rows are given, nothing is opened, nothing is written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use chrono::{NaiveDate, SecondsFormat};
use serde_json::{Map, Value};
use weir_connectors::records::{Json, same_number};
use weir_plan::testing::{self, InMemoryServices};
use weir_plan::{PlanScope, plan_node};
use weir_spec::{DeclaredColumns, InputRef, NodeName, PipelineSpec, Source, TestCase};

use crate::args::{Global, Output};
use crate::failure::Failure;
use crate::{files, output};

pub(crate) async fn test(global: &Global, paths: &[PathBuf]) -> Result<ExitCode, Failure> {
    let mut results = Vec::new();
    for path in paths {
        let loaded = files::load_valid(path)?;
        let spec = &loaded.parsed.spec;
        if spec.tests.is_empty() && global.output == Output::Human {
            output::line(&format!("{}: no tests", path.display()))?;
        }
        for case in &spec.tests {
            let problem = run_case(spec, case).await.err();
            if global.output == Output::Human {
                let place = format!("{}:{}: {}", path.display(), case.line, case.name);
                match &problem {
                    None => output::line(&format!("ok      {place}"))?,
                    Some(problem) => output::line(&format!("FAILED  {place}\n{problem}"))?,
                }
            }
            results.push((path.clone(), case.name.clone(), problem));
        }
    }
    let failed = results.iter().filter(|(_, _, problem)| problem.is_some()).count();
    if global.output == Output::Json {
        let results: Vec<Value> = results
            .iter()
            .map(|(file, name, problem)| {
                serde_json::json!({
                    "file": file, "test": name, "passed": problem.is_none(), "problem": problem,
                })
            })
            .collect();
        output::json(&results)?;
    } else {
        output::line(&format!("{} passed, {failed} failed", results.len() - failed))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// `Err` says what differs.
async fn run_case(spec: &PipelineSpec, case: &TestCase) -> Result<(), String> {
    let mut given = BTreeMap::new();
    for (name, source) in &spec.sources {
        let rows = case.given.get(name).map_or(&[][..], Vec::as_slice);
        let table = testing::table(rows, declared(source))
            .map_err(|error| format!("  given rows of `{name}`: {error}"))?;
        given.insert(name.clone(), table);
    }
    let scope = scope(spec);
    for (node, expected) in &case.expect {
        let input = match node.strip_suffix(".errors") {
            Some(node) => InputRef { node: NodeName::new(node), errors: true },
            None => InputRef { node: NodeName::new(node.clone()), errors: false },
        };
        let services = InMemoryServices::new(given.clone());
        let catalog = services.catalog(spec);
        let stage = plan_node(spec, &catalog, &scope, &input, None)
            .await
            .map_err(|error| format!("  {error}"))?;
        let batches = services
            .run_node(&stage)
            .await
            .map_err(|error| format!("  `{node}` failed: {}", error.strip_backtrace()))?;
        let actual = output::rows_as_json(&batches).map_err(|error| error.message().to_owned())?;
        compare(node, expected, &actual)?;
    }
    Ok(())
}

/// Columns of a source that the file declares: given rows then have these types, and a source without
/// given rows has these columns.
fn declared(source: &Source) -> Option<&DeclaredColumns> {
    match source {
        Source::Csv(csv) => csv.columns.as_ref(),
        Source::Json(json) => json.columns.as_ref(),
        Source::Http(http) => http.columns.as_ref(),
        Source::Parquet(_) | Source::Database(_) | Source::Unsupported(_) => None,
    }
}

/// Parameters at their defaults, and fixed values for everything that a run would bring.
fn scope(spec: &PipelineSpec) -> PlanScope {
    let text = |text: &str| Value::String(text.to_owned());
    let midnight = |day: u32| {
        let start = NaiveDate::from_ymd_opt(2026, 1, day).and_then(|day| spec.start_of_day(day));
        start.map_or(Value::Null, |start| {
            Value::String(start.to_rfc3339_opts(SecondsFormat::Secs, true))
        })
    };
    let params = spec
        .params
        .iter()
        .filter_map(|(name, param)| Some((name.clone(), param.default.clone()?)))
        .collect();
    PlanScope {
        params,
        run: BTreeMap::from([
            ("id".to_owned(), text("test")),
            ("pipeline".to_owned(), text(&spec.pipeline.0)),
            ("started_at".to_owned(), text("2026-01-01T00:00:00Z")),
        ]),
        window: BTreeMap::from([
            ("start".to_owned(), midnight(1)),
            ("end".to_owned(), midnight(2)),
        ]),
        state: BTreeMap::new(),
        parallelism: 1,
        distributed: false,
    }
}

/// Each expected row is matched with a row of its own that agrees in the columns that it names; the
/// number of rows must be equal.
fn compare(node: &str, expected: &[Map<String, Value>], actual: &[Json]) -> Result<(), String> {
    let mut left: Vec<&Json> = actual.iter().collect();
    let mut missing = Vec::new();
    // Rows that say more are matched first, so that a vague row does not take a precise one's match.
    let mut order: Vec<&Map<String, Value>> = expected.iter().collect();
    order.sort_by_key(|row| std::cmp::Reverse(row.len()));
    for row in order {
        match left.iter().position(|candidate| agrees(row, candidate)) {
            Some(index) => {
                left.remove(index);
            }
            None => missing.push(row),
        }
    }
    if missing.is_empty() && left.is_empty() {
        return Ok(());
    }
    let mut lines =
        vec![format!("  `{node}`: {} rows expected, {} are there", expected.len(), actual.len())];
    lines.extend(
        missing.iter().map(|row| format!("  - missing     {}", Value::Object((*row).clone()))),
    );
    lines.extend(left.iter().map(|row| format!("  + unexpected  {row}")));
    Err(lines.join("\n"))
}

fn agrees(expected: &Map<String, Value>, actual: &Json) -> bool {
    expected.iter().all(|(column, value)| actual.get(column).is_some_and(|cell| equal(value, cell)))
}

/// Numbers by value (`10.5` and `10.50`), times and dates by their text's beginning, structures by
/// their parts.
fn equal(expected: &Value, actual: &Json) -> bool {
    match (expected, actual) {
        (Value::Number(a), Json::Number(b)) => same_number(&a.to_string(), b),
        (Value::Number(a), Json::String(b)) => same_number(&a.to_string(), b),
        (Value::String(a), Json::Number(b)) => same_number(a, b),
        (Value::String(a), Json::String(b)) => a == b || same_instant(a, b),
        (Value::Array(a), Json::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), actual @ Json::Object(_)) => agrees(a, actual),
        (Value::Bool(a), Json::Bool(b)) => a == b,
        (Value::Null, Json::Null) => true,
        _ => false,
    }
}

/// `2026-01-31 10:00:00`, `2026-01-31T10:00:00` and `2026-01-31T10:00:00Z` are one time.
fn same_instant(a: &str, b: &str) -> bool {
    let parse = |text: &str| {
        let text = text.trim_end_matches('Z').replace(' ', "T");
        text.parse::<chrono::NaiveDateTime>().ok().or_else(|| {
            text.parse::<chrono::NaiveDate>().ok().and_then(|date| date.and_hms_opt(0, 0, 0))
        })
    };
    matches!((parse(a), parse(b)), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(json: Value) -> Vec<Map<String, Value>> {
        serde_json::from_value(json).expect("the test's rows are objects")
    }

    #[test]
    fn only_named_columns_are_compared_in_any_order() {
        let expected = rows(serde_json::json!([{ "id": 2 }, { "id": 1, "name": "a" }]));
        let actual = [
            serde_json::json!({ "id": 1, "name": "a", "more": true }),
            serde_json::json!({ "id": 2, "name": "b", "more": null }),
        ]
        .map(Json::from);
        assert_eq!(compare("n", &expected, &actual), Ok(()));
    }

    #[test]
    fn missing_and_unexpected_rows_are_named() {
        let expected = rows(serde_json::json!([{ "id": 1 }]));
        let actual = [serde_json::json!({ "id": 2 }).into()];
        let problem = compare("n", &expected, &actual).expect_err("the rows differ");
        assert!(problem.contains("missing") && problem.contains("unexpected"), "{problem}");
        let more = [serde_json::json!({ "id": 1 }), serde_json::json!({ "id": 1 })].map(Json::from);
        assert!(compare("n", &expected, &more).is_err(), "the number of rows counts");
    }

    #[test]
    fn numbers_and_times_are_compared_by_value() {
        let equal = |expected: Value, actual: &str| {
            equal(&expected, &Json::parse(actual.as_bytes()).expect("JSON"))
        };
        assert!(equal(serde_json::json!(10.5), "10.50"));
        assert!(equal(serde_json::json!("0.12345678901234567890"), "0.1234567890123456789"));
        assert!(!equal(serde_json::json!("0.12345678901234567891"), "0.1234567890123456789"));
        assert!(!equal(serde_json::json!(9_007_199_254_740_992_i64), "9007199254740993"));
        assert!(equal(serde_json::json!("2026-01-01"), "\"2026-01-01T00:00:00Z\""));
        assert!(!equal(serde_json::json!(1), "null"));
        assert!(!equal(serde_json::json!("a"), "\"b\""));
    }
}

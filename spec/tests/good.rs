//! Files without mistakes, and the whole language by example.

mod common;

use weir_spec::{
    Connection, PipelineSpec, SinkTarget, Source, WriteMode, parse, parse_with, parse_workspace,
    render_diagnostics,
};

use common::{files, read};

fn parsed(text: &str) -> PipelineSpec {
    match parse("good.yaml", text) {
        Ok(parsed) => parsed.spec,
        Err(found) => panic!("{}", render_diagnostics(&found, text)),
    }
}

#[test]
fn good_files_parse_and_survive_a_round_trip() {
    for file in files("good", "yaml") {
        let text = read(&file);
        let spec = parsed(&text);
        let json = serde_json::to_string(&spec).expect("a spec is plain data");
        let back: PipelineSpec = serde_json::from_str(&json).expect("what was written can be read");
        assert_eq!(spec, back, "{}", file.display());
    }
}

#[test]
fn the_whole_language_parses_up_to_what_is_not_supported_yet() {
    let text = include_str!("language.yaml");
    let found = parse("language.yaml", text).expect_err("parts of it cannot run yet");
    let errors: Vec<_> =
        found.iter().filter(|found| found.severity == weir_spec::Severity::Error).collect();
    assert!(
        errors.iter().all(|found| found.code == "not-supported-yet"),
        "{}",
        render_diagnostics(&found, text)
    );
    common::compare("language.txt", &render_diagnostics(&found, text));
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let spec = parsed(
        "pipeline: p\nsources: { a: { type: csv, path: a.csv }, d: { type: sqlite, path: d.db, table: t } }\n\
         sinks: { f: { input: a, type: parquet, path: out }, t: { input: d, type: sqlite, path: o.db, table: t } }\n",
    );
    assert_eq!(spec.timezone, "UTC");
    assert_eq!(spec.retry, weir_spec::RetryPolicy::default());
    assert_eq!(spec.checkpoint, weir_spec::CheckpointPolicy::default());
    assert_eq!(spec.concurrency, weir_spec::Concurrency::default());
    let Source::Csv(csv) = &spec.sources[0] else { panic!("a csv source") };
    assert!(csv.header && csv.multiline && csv.delimiter == b',' && csv.quote == b'"');
    assert_eq!(csv.null_values, [""]);
    assert_eq!(spec.sinks[0].batch_rows.get(), 1_000_000);
    assert_eq!(spec.sinks[1].batch_rows.get(), 50_000);
    assert_eq!(spec.sinks[1].mode, WriteMode::Append);
    assert_eq!(spec.sinks[1].schema, weir_spec::SchemaPolicy::default());
    let SinkTarget::Files(files) = &spec.sinks[0].target else { panic!("a file sink") };
    assert_eq!(files.target_file_size_bytes.get(), 128 << 20);
}

#[test]
fn sql_inputs_are_found_in_the_text() {
    let spec = parsed(
        "pipeline: p\nsources: { a: { type: csv, path: a.csv }, b: { type: csv, path: b.csv } }\n\
         transforms:\n  t: { sql: \"WITH x AS (SELECT * FROM a) SELECT * FROM x JOIN b USING (id)\" }\n\
         sinks: { s: { input: t, type: csv, path: out } }\n",
    );
    let inputs: Vec<String> = spec.transforms[0].inputs.iter().map(ToString::to_string).collect();
    assert_eq!(inputs, ["a", "b"]);
}

#[test]
fn shared_connections_come_from_the_workspace_and_the_file_hides_them() {
    let shared = parse_workspace(
        "weir.yaml",
        "connections:\n  warehouse: { type: postgres, url: \"{{ env.W }}\" }\n  unused: { type: sqlite, path: x.db }\n",
    )
    .expect("a good workspace");
    let text = "pipeline: p\nsources: { a: { connection: warehouse, table: t } }\n\
                sinks: { s: { input: a, type: csv, path: out } }\n";
    let spec = parse_with("p.yaml", text, &shared).expect("the connection is known").spec;
    assert_eq!(spec.connections.keys().collect::<Vec<_>>(), ["warehouse"]);
    let hidden = format!("{text}connections: {{ warehouse: {{ type: sqlite, path: w.db }} }}\n");
    let spec = parse_with("p.yaml", &hidden, &shared).expect("the file has its own").spec;
    assert!(matches!(spec.connections["warehouse"], Connection::Sqlite(_)));
    assert!(parse("p.yaml", text).is_err());
}

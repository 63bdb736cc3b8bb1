//! A canary secret, used wherever a secret may be used, is found nowhere afterwards: not under the state
//! folder, not in a log at TRACE, not in any output, whether the run succeeds or fails.

use std::path::Path;

use base64::Engine as _;
use weir_tests::weir::{Output, Weir};

use crate::targets;

/// With characters that URLs, JSON and HTML escape.
const CANARY: &str = "canary-7f3a91@w4rb/do#not%41\"t3ll<&";

/// Every form in which the canary may leak. No escape changes letters and digits.
fn forms() -> Vec<String> {
    let base64 = base64::engine::general_purpose::STANDARD;
    vec![
        "7f3a91".to_owned(),
        "w4rb".to_owned(),
        "t3ll".to_owned(),
        base64.encode(CANARY),
        base64.encode(format!("user:{CANARY}")),
    ]
}

#[track_caller]
fn assert_absent(place: &str, bytes: &[u8]) {
    for form in forms() {
        let found = bytes.windows(form.len()).position(|window| window == form.as_bytes());
        if let Some(at) = found {
            let from = at.saturating_sub(200);
            panic!("the secret is in {place}: …{}", String::from_utf8_lossy(&bytes[from..at]));
        }
    }
}

fn assert_absent_below(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("the folder can be listed").flatten() {
        if entry.path().is_dir() {
            assert_absent_below(&entry.path());
        } else {
            let bytes = std::fs::read(entry.path()).expect("the file can be read");
            assert_absent(&entry.path().display().to_string(), &bytes);
        }
    }
}

fn check(weir: &Weir, outputs: &[Output]) {
    for output in outputs {
        assert_absent("standard output", output.stdout.as_bytes());
        assert_absent("standard error", output.stderr.as_bytes());
    }
    if weir.state.exists() {
        assert_absent_below(&weir.state);
    }
}

/// Runs every command that could show something of a pipeline.
fn exercise(folder: &Path, pipeline: &str, connections: &[&str]) {
    std::fs::write(folder.join("pipeline.yaml"), pipeline).expect("the disk has room");
    let weir = Weir::new(folder).env("WEIR_SECRET_CANARY", CANARY).env("WEIR_LOG", "trace");
    let mut outputs = vec![
        weir.run(&["validate", "pipeline.yaml"]).expect_code(0),
        weir.run(&["plan", "pipeline.yaml", "--output", "json"]),
        weir.run(&["run", "pipeline.yaml"]),
        weir.run(&["runs", "--output", "json"]),
    ];
    for connection in connections {
        outputs.push(weir.run(&["connection", "test", connection, "--file", "pipeline.yaml"]));
    }
    let runs = weir.run(&["runs", "--output", "json"]).json();
    if let Some(run) = runs[0]["run"].as_str() {
        for command in ["audit", "logs", "retry"] {
            outputs.push(weir.run(&[command, run]));
        }
        outputs.push(weir.run(&["run", "show", run]));
    }
    check(&weir, &outputs);
}

fn postgres_url(port: u16) -> String {
    format!("postgres://postgres:{{{{ secret.CANARY }}}}@127.0.0.1:{port}")
}

#[test]
fn password_of_a_database_leaks_nowhere() {
    let url = targets::database("secrets");
    targets::execute(&url, "CREATE TABLE input (id bigint); INSERT INTO input VALUES (1), (2)");
    let port = targets::server_port();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for (port, table) in [(port, "input"), (port, "missing"), (1, "input")] {
        let url = format!("{}/secrets", postgres_url(port));
        let pipeline = format!(
            "pipeline: secrets\nconnections:\n  db: {{ type: postgres, url: \"{url}\" }}\n\
             sources:\n  input: {{ connection: db, table: {table} }}\n\
             sinks:\n  output: {{ input: input, connection: db, table: output }}\n\
             retry: {{ max_attempts: 1 }}\n"
        );
        exercise(folder.path(), &pipeline, &["db"]);
    }
}

#[test]
fn credentials_of_an_api_leak_nowhere() {
    // The server answers as long as its runtime lives.
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let server = runtime
        .block_on(weir_tests::rest_server::RestServer::start(10))
        .expect("the server starts");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let secret = "{{ secret.CANARY }}";
    let auths = [
        format!("{{ bearer: \"{secret}\" }}"),
        format!("{{ basic: {{ username: user, password: \"{secret}\" }} }}"),
        format!("{{ api_key: {{ header: X-Key, value: \"{secret}\" }} }}"),
        format!("{{ api_key: {{ query: key, value: \"{secret}\" }} }}"),
        format!(
            "{{ oauth2: {{ token_url: \"{}/token\", client_id: me, client_secret: \"{secret}\" }} }}",
            server.url()
        ),
    ];
    for auth in auths {
        // The first base answers, the second refuses connections.
        for base in [server.url().to_owned(), "http://127.0.0.1:1".to_owned()] {
            let pipeline = format!(
                "pipeline: secrets\nconnections:\n  api:\n    type: http\n    base_url: {base}\n\
                 \x20   auth: {auth}\n    headers: {{ X-Extra: \"{secret}\" }}\n\
                 sources:\n  records:\n    connection: api\n    path: /none\n\
                 \x20   columns: {{ id: int64 }}\n\
                 sinks:\n  output: {{ input: records, type: csv, path: out }}\n\
                 retry: {{ max_attempts: 1 }}\n"
            );
            exercise(folder.path(), &pipeline, &["api"]);
        }
    }
}

#[test]
fn missing_secret_is_named_with_its_remedy() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    std::fs::write(
        folder.path().join("pipeline.yaml"),
        "pipeline: secrets\nsources:\n  input:\n    type: postgres\n\
         \x20   url: \"postgres://u:{{ secret.NOT_SET }}@127.0.0.1/db\"\n    table: t\n\
         sinks:\n  output: { input: input, type: csv, path: out }\n",
    )
    .expect("the disk has room");
    let output = Weir::new(folder.path()).run(&["run", "pipeline.yaml"]).expect_code(1);
    assert!(output.stderr.contains("WEIR_SECRET_NOT_SET"), "{}", output.stderr);
}

/// Who may run a pipeline would else be whoever has started the process.
#[test]
fn tokens_of_the_process_are_not_for_pipelines() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for name in ["WEIR_TOKEN", "WEIR_ADMIN_TOKEN"] {
        std::fs::write(
            folder.path().join("pipeline.yaml"),
            format!(
                "pipeline: secrets\nsources:\n  input: {{ type: csv, path: in.csv }}\n\
                 sinks:\n  output:\n    input: input\n    type: postgres\n    table: t\n\
                 \x20   url: \"postgres://u:{{{{ env.{name} }}}}@127.0.0.1:1/db\"\n"
            ),
        )
        .expect("the disk has room");
        std::fs::write(folder.path().join("in.csv"), "id\n1\n").expect("the disk has room");
        let weir = Weir::new(folder.path()).env(name, CANARY);
        let output = weir.run(&["run", "pipeline.yaml"]).expect_code(1);
        assert!(output.stderr.contains(name), "{}", output.stderr);
        check(&weir, &[output]);
    }
}

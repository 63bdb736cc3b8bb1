//! What a user reads when something is wrong, in a form that snapshots can hold.

use std::fmt::Write as _;
use std::path::Path;

use weir_tests::weir::{Output, Weir};

use crate::targets;

/// Part of every URL with credentials in these tests; may appear in no message.
pub(crate) const HIDDEN: &str = "hidden-pw";

/// A folder with a pipeline, and the command that runs it.
pub(crate) struct Case {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) weir: Weir,
}

impl Case {
    /// `nodes` are the sources, transforms and sinks.
    pub(crate) fn new(nodes: &str, files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).expect("the disk has room");
        }
        let pipeline = format!("pipeline: bad\n{nodes}retry: {{ max_attempts: 1 }}\n");
        std::fs::write(folder.path().join("pipeline.yaml"), pipeline).expect("the disk has room");
        let weir = Weir::new(folder.path());
        Self { folder, weir }
    }

    /// A source that is copied into JSON lines.
    pub(crate) fn reading(source: &str, files: &[(&str, &[u8])]) -> Self {
        let nodes = format!(
            "sources:\n  input: {source}\nsinks:\n  output: {{ input: input, type: json, path: out }}\n"
        );
        Self::new(&nodes, files)
    }

    /// Records that are copied from JSON lines into a sink.
    pub(crate) fn writing(columns: &str, records: &str, sink: &str) -> Self {
        let nodes = format!(
            "sources:\n  input: {{ type: json, path: in.jsonl, columns: {columns} }}\n\
             sinks:\n  output: {{ input: input, {sink} }}\n"
        );
        Self::new(&nodes, &[("in.jsonl", records.as_bytes())])
    }

    pub(crate) fn run(&self) -> Output {
        self.weir.run(&["run", "pipeline.yaml"])
    }

    /// Visible rows as JSON, sorted.
    pub(crate) fn rows(&self) -> Vec<String> {
        let mut rows: Vec<String> = targets::visible_files(&self.folder.path().join("out"))
            .iter()
            .flat_map(|file| {
                let text = std::fs::read_to_string(file).expect("JSON lines are text");
                text.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        rows.sort();
        rows
    }

    /// Reasons of the dead letters of the latest run.
    pub(crate) fn reasons(&self) -> Vec<String> {
        let run = self.weir.latest_run();
        let letters =
            self.weir.run(&["dead-letters", "list", &run, "--output", "json"]).expect_code(0);
        let letters = letters.json();
        let reasons = |letter: &serde_json::Value| {
            let reasons = letter["reasons"].as_array().expect("a list").iter();
            reasons.map(|reason| reason.as_str().expect("text").to_owned()).collect::<Vec<_>>()
        };
        letters.as_array().expect("a list").iter().flat_map(reasons).collect()
    }

    /// The run fails, and shows no row. What it says.
    #[track_caller]
    pub(crate) fn failure(&self) -> String {
        let output = self.run();
        assert!([1, 2].contains(&output.code()), "{output:?}");
        assert_eq!(self.rows(), Vec::<String>::new());
        told(self.folder.path(), &output)
    }

    /// The run succeeds with these rows and dead letters. What the letters say.
    #[track_caller]
    pub(crate) fn letters(&self, rows: &[&str], count: usize) -> String {
        self.run().expect_code(0);
        assert_eq!(self.rows(), rows);
        self.weir.assert_audit_clean();
        let reasons = self.reasons();
        assert_eq!(reasons.len(), count, "{reasons:?}");
        let reasons = reasons.iter().map(|reason| format!("dead letter: {reason}\n"));
        plain(self.folder.path(), &reasons.collect::<String>())
    }
}

/// Exit code and error of a command, without what differs from run to run and without progress.
pub(crate) fn told(folder: &Path, output: &Output) -> String {
    assert!(!output.all().contains(HIDDEN), "a password is shown: {}", output.stderr);
    let error = output.stderr.find("error").map_or("", |start| &output.stderr[start..]);
    format!("exit {}\n{}", output.code(), plain(folder, error))
}

/// A text without run ids, ports and the name of the test's folder.
pub(crate) fn plain(folder: &Path, text: &str) -> String {
    let mut text = text.replace(&folder.display().to_string(), "<folder>");
    let is_run_id = |word: &str| {
        let parts: Vec<&str> = word.split('-').collect();
        matches!(parts[..], [day, time, random]
            if day.len() == 8 && time.len() == 6 && random.len() == 6
                && [day, time].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit())))
    };
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let mut ids: Vec<String> = words.filter(|word| is_run_id(word)).map(str::to_owned).collect();
    ids.dedup();
    for id in ids {
        text = text.replace(&id, "<run>");
    }
    let mut rest = text.as_str();
    let mut shown = String::new();
    while let Some(at) = rest.find("127.0.0.1:") {
        let (before, after) = rest.split_at(at + "127.0.0.1:".len());
        shown.push_str(before);
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
        shown.push_str("<port>");
    }
    shown + rest
}

/// Several messages in one snapshot.
#[derive(Default)]
pub(crate) struct Messages(String);

impl Messages {
    pub(crate) fn add(&mut self, name: &str, text: &str) {
        let separator = if self.0.is_empty() { "" } else { "\n" };
        write!(self.0, "{separator}## {name}\n{text}").expect("writing into a String cannot fail");
    }
}

impl std::fmt::Display for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

//! Every broken file with all that is said about it. `UPDATE=1` rewrites the `.txt` files.

mod common;

use weir_spec::{Severity, parse, render_diagnostics};

#[test]
fn every_mistake_has_its_message() {
    let files = common::files("broken", "yaml");
    assert!(files.len() >= 45, "only {} broken files", files.len());
    for file in files {
        let text = common::read(&file);
        let stem = file.file_stem().and_then(|stem| stem.to_str()).expect("plain file names");
        let found = parse(&format!("{stem}.yaml"), &text)
            .expect_err(&format!("{stem}.yaml has no mistake"));
        assert!(found.iter().any(|found| found.severity == Severity::Error), "{stem}");
        assert!(found.iter().all(|found| found.line > 0 && found.column > 0), "{stem}");
        common::compare(&format!("broken/{stem}.txt"), &render_diagnostics(&found, &text));
    }
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let text = format!("pipeline: p # {}", "x".repeat(1 << 20));
    let found = parse("large.yaml", &text).expect_err("it is too large");
    assert_eq!(found[0].code, "file-too-large");
}

//! Files of these tests, and comparing text with checked-in text.

use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// The files of a folder with an extension, by name.
#[allow(dead_code)]
pub(crate) fn files(below: &str, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder().join(below)).expect("the folder is checked in");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no files in {below}");
    files
}

#[allow(dead_code)]
pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares with a checked-in file; `UPDATE=1` writes it instead.
#[allow(dead_code)]
pub(crate) fn compare(name: &str, actual: &str) {
    let path = folder().join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, actual).expect("the tests folder can be written");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == actual,
        "{name} differs; run the tests with UPDATE=1 and look at the difference\n--- now\n{actual}"
    );
}

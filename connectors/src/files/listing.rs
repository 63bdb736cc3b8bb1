//! Which files a path means: one file, a folder (with everything below), or a glob.

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use regex::Regex;

use crate::{ConnectorContext, ConnectorError, ErrorKind};

/// Deeper folders are taken for a loop of symbolic links.
const MAX_DEPTH: usize = 64;

/// One file as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceFile {
    /// As messages and splits name it: relative to the pipeline's folder where it is below it.
    pub name: String,
    pub path: PathBuf,
    pub size: u64,
    pub modified_ns: i64,
    /// Hive partitions of its folders, in order; `None` is null.
    pub partitions: Vec<(String, Option<String>)>,
}

/// The files that `path` means, sorted by name. Names beginning with `_` or `.` are skipped.
/// Blocking.
pub(crate) fn list(
    context: &ConnectorContext,
    path: &str,
    hive_partitions: Option<bool>,
) -> Result<Vec<SourceFile>, ConnectorError> {
    if let Some((scheme, _)) = path.split_once("://").filter(|(scheme, _)| *scheme != "file") {
        return Err(ConnectorError::config(format!(
            "path `{path}`: only local files can be read in this version, not {scheme}://"
        )));
    }
    let absolute = context.path(path);
    let text = absolute.to_str().ok_or_else(|| {
        ConnectorError::config(format!("path `{}` is not valid UTF-8", absolute.display()))
    })?;
    let mut found = Vec::new();
    let exact = std::fs::metadata(&absolute);
    match exact {
        Ok(metadata) if metadata.is_dir() => walk(&absolute, None, 0, &mut found)?,
        Ok(metadata) if metadata.is_file() => found.push(absolute.clone()),
        Ok(_) => return Err(no_file(&absolute)),
        Err(_) if text.contains(['*', '?', '[', '{']) => {
            let root = glob_root(text);
            if root.is_dir() {
                let pattern = glob_to_regex(text).map_err(|reason| {
                    ConnectorError::config(format!("path `{path}` is not a valid glob: {reason}"))
                })?;
                walk(&root, Some(&pattern), 0, &mut found)?;
            }
        }
        Err(error) => {
            let attempt = format!(
                "find path `{path}` (relative paths start at the folder of the pipeline file) at"
            );
            return Err(ConnectorError::io(&attempt, &absolute, error));
        }
    }
    if found.is_empty() {
        return Err(ConnectorError::new(
            ErrorKind::NotFound,
            format!(
                "no file matches path `{path}` (looked for {}; names beginning with `_` or `.` are \
                 skipped)",
                absolute.display()
            ),
        ));
    }
    found.sort();
    let files: Vec<SourceFile> = found
        .into_iter()
        .map(|path| describe(context, path, hive_partitions != Some(false)))
        .collect::<Result<_, _>>()?;
    check_partitions(&files)?;
    Ok(files)
}

/// What a split remembers of a file: size and modification time in nanoseconds.
pub(crate) fn stamp_of(metadata: &std::fs::Metadata) -> std::io::Result<(u64, i64)> {
    let modified = metadata.modified()?;
    let nanos = match modified.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, std::ops::Neg::neg)
        }
    };
    Ok((metadata.len(), nanos))
}

fn describe(
    context: &ConnectorContext,
    path: PathBuf,
    hive_partitions: bool,
) -> Result<SourceFile, ConnectorError> {
    let (size, modified_ns) = std::fs::metadata(&path)
        .and_then(|metadata| stamp_of(&metadata))
        .map_err(|error| ConnectorError::io("look at", &path, error))?;
    let relative = path.strip_prefix(&context.base_dir).unwrap_or(&path);
    let name = relative.to_str().map(str::to_owned).ok_or_else(|| {
        ConnectorError::config(format!(
            "the name of file {} is not valid UTF-8: rename it",
            path.display()
        ))
    })?;
    let partitions = if hive_partitions { partitions_of(&name) } else { Vec::new() };
    Ok(SourceFile { name, path, size, modified_ns, partitions })
}

fn partitions_of(name: &str) -> Vec<(String, Option<String>)> {
    let Some((folders, _)) = name.rsplit_once('/') else { return Vec::new() };
    folders
        .split('/')
        .filter_map(|folder| folder.split_once('='))
        .filter(|(key, _)| !key.is_empty())
        .map(|(key, value)| {
            let value = (value != "__HIVE_DEFAULT_PARTITION__").then(|| percent_decode(value));
            (percent_decode(key), value)
        })
        .collect()
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let digits = bytes
            .get(index + 1..index + 3)
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match digits {
            Some(byte) if bytes[index] == b'%' => {
                decoded.push(byte);
                index += 3;
            }
            _ => {
                decoded.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|_| text.to_owned())
}

fn check_partitions(files: &[SourceFile]) -> Result<(), ConnectorError> {
    let Some((first, rest)) = files.split_first() else { return Ok(()) };
    let keys = |file: &SourceFile| -> Vec<String> {
        file.partitions.iter().map(|(key, _)| key.clone()).collect()
    };
    let expected = keys(first);
    match rest.iter().find(|file| keys(file) != expected) {
        None => Ok(()),
        Some(other) => Err(ConnectorError::config(format!(
            "files differ in their partition folders: {} has [{}], {} has [{}]; \
             set `hive_partitions: false` to read them without",
            first.name,
            expected.join(", "),
            other.name,
            keys(other).join(", ")
        ))),
    }
}

fn walk(
    folder: &Path,
    pattern: Option<&Regex>,
    depth: usize,
    found: &mut Vec<PathBuf>,
) -> Result<(), ConnectorError> {
    if depth > MAX_DEPTH {
        return Err(ConnectorError::config(format!(
            "folder {} is more than {MAX_DEPTH} levels deep: is there a loop of symbolic links?",
            folder.display()
        )));
    }
    let failed = |error| ConnectorError::io("list folder", folder, error);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let hidden =
            name.as_encoded_bytes().first().is_some_and(|byte| matches!(byte, b'_' | b'.'));
        if hidden {
            continue;
        }
        let path = entry.path();
        // A name that is not UTF-8 is refused later, and not passed over here.
        let is_wanted = pattern.is_none_or(|pattern| pattern.is_match(&path.to_string_lossy()));
        // Follows symbolic links.
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => walk(&path, pattern, depth + 1, found)?,
            _ if !is_wanted => {}
            Ok(metadata) if metadata.is_file() => found.push(path),
            Ok(_) => return Err(no_file(&path)),
            // Removed since the folder was listed.
            Err(_) if path.symlink_metadata().is_err() => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ConnectorError::new(
                    ErrorKind::NotFound,
                    format!(
                        "{} is a symbolic link that leads nowhere: restore what it leads to, or keep \
                         it out of the source's `path`",
                        path.display()
                    ),
                ));
            }
            Err(error) => return Err(ConnectorError::io("look at", &path, error)),
        }
    }
    Ok(())
}

/// Reading a pipe would wait for a writer, and could not be repeated.
fn no_file(path: &Path) -> ConnectorError {
    ConnectorError::config(format!(
        "{} is neither a file nor a folder (a pipe, socket or device): write its data to a file, or \
         keep it out of the source's `path`",
        path.display()
    ))
}

/// The folder that holds everything a glob can match.
fn glob_root(pattern: &str) -> PathBuf {
    let first_magic = pattern.find(['*', '?', '[', '{']).unwrap_or(pattern.len());
    let end = pattern[..first_magic].rfind('/').unwrap_or(0);
    PathBuf::from(if end == 0 { "/" } else { &pattern[..end] })
}

/// `*` and `?` stay within a name, `**/` spans folders, `[a-z]`, `[!a]` and `{a,b}` are choices.
fn glob_to_regex(pattern: &str) -> Result<Regex, String> {
    let mut regex = String::from("(?s)^");
    let mut rest = pattern;
    let mut depth = 0;
    while let Some(next) = rest.chars().next() {
        let mut taken = next.len_utf8();
        match next {
            '*' if rest.starts_with("**/") => {
                regex.push_str("(?:[^/]+/)*");
                taken = 3;
            }
            '*' if rest.starts_with("**") => {
                regex.push_str(".*");
                taken = 2;
            }
            '*' => regex.push_str("[^/]*"),
            '?' => regex.push_str("[^/]"),
            '[' => {
                let end = rest[1..].find(']').ok_or("`[` without `]`")? + 1;
                let class = rest[1..end].replace('\\', "\\\\").replace('[', "\\[");
                regex.push('[');
                regex.push_str(
                    &class.strip_prefix('!').map_or(class.clone(), |not| format!("^{not}")),
                );
                regex.push(']');
                taken = end + 1;
            }
            '{' => {
                depth += 1;
                regex.push_str("(?:");
            }
            '}' if depth > 0 => {
                depth -= 1;
                regex.push(')');
            }
            ',' if depth > 0 => regex.push('|'),
            other => regex.push_str(&regex::escape(&other.to_string())),
        }
        rest = &rest[taken..];
    }
    if depth > 0 {
        return Err("`{` without `}`".to_owned());
    }
    regex.push('$');
    Regex::new(&regex).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Redactor, Secrets};

    fn folder(files: &[&str]) -> (tempfile::TempDir, ConnectorContext) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
            std::fs::write(path, "x").expect("a file");
        }
        let context = ConnectorContext::new(folder.path(), Secrets::default(), Redactor::default());
        (folder, context)
    }

    fn names(context: &ConnectorContext, path: &str) -> Vec<String> {
        list(context, path, None).expect("files").into_iter().map(|file| file.name).collect()
    }

    #[test]
    fn folder_and_globs_are_sorted_and_skip_hidden_names() {
        let (_folder, context) = folder(&[
            "in/b.csv",
            "in/a.csv",
            "in/.c.csv",
            "in/_d.csv",
            "in/x/e.csv",
            "in/_t/f.csv",
            "in/g.txt",
        ]);
        assert_eq!(names(&context, "in"), ["in/a.csv", "in/b.csv", "in/g.txt", "in/x/e.csv"]);
        assert_eq!(names(&context, "in/*.csv"), ["in/a.csv", "in/b.csv"]);
        assert_eq!(names(&context, "in/**/*.csv"), ["in/a.csv", "in/b.csv", "in/x/e.csv"]);
        assert_eq!(names(&context, "in/{a,g}.*"), ["in/a.csv", "in/g.txt"]);
        assert_eq!(names(&context, "in/[!b].csv"), ["in/a.csv"]);
        assert_eq!(names(&context, "in/a.csv"), ["in/a.csv"]);
    }

    #[test]
    fn nothing_found_names_what_was_looked_for() {
        let (_folder, context) = folder(&["in/b.csv"]);
        for path in ["in/*.json", "missing/*.csv", "in/none.csv"] {
            let error = list(&context, path, None).expect_err("no such file");
            assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
            assert!(error.message.contains(path), "{error}");
        }
    }

    #[test]
    fn partition_folders_are_decoded_and_must_agree() {
        let (_folder, context) = folder(&[
            "t/year=2024/city=A%2FB/x.csv",
            "t/year=__HIVE_DEFAULT_PARTITION__/city=C/x.csv",
        ]);
        let files = list(&context, "t", None).expect("files");
        let year = ("year".to_owned(), Some("2024".to_owned()));
        assert_eq!(files[0].partitions, [year, ("city".to_owned(), Some("A/B".to_owned()))]);
        assert_eq!(files[1].partitions[0].1, None);
        assert!(list(&context, "t", Some(false)).expect("files")[0].partitions.is_empty());

        let (_folder, context) = folder(&["t/year=2024/x.csv", "t/y.csv"]);
        let error = list(&context, "t", None).expect_err("different folders");
        assert!(error.message.contains("t/y.csv has []"), "{error}");
    }
}

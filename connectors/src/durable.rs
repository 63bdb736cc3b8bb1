//! Folders that are still there after a power cut.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Creates a folder and its missing parents; the entry of each in its own parent is on the disk.
/// Whether any was missing.
pub fn create_dir_all_durable(folder: &Path) -> io::Result<bool> {
    let changed = changed_parents(folder, Path::is_dir);
    if changed.is_empty() {
        return Ok(false);
    }
    fs::create_dir_all(folder)?;
    for parent in changed {
        match File::open(&parent).and_then(|parent| parent.sync_all()) {
            // May be entered but not read. Its own owner has made the entry; losing an empty folder
            // loses no rows.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        }
    }
    Ok(true)
}

/// The folders that get a new entry, innermost first.
fn changed_parents(folder: &Path, exists: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    folder
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !exists(ancestor))
        .filter_map(|missing| {
            let parent = missing.parent()?;
            let here = Path::new(".");
            Some(if parent.as_os_str().is_empty() { here } else { parent }.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_of_each_new_folder_is_synchronised() {
        let parents = |folder: &str, there: &str| -> Vec<String> {
            let changed =
                changed_parents(Path::new(folder), |path| Path::new(there).starts_with(path));
            changed.iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(parents("/a/b/c/d", "/a/b"), ["/a/b/c", "/a/b"]);
        assert_eq!(parents("/a/b", "/a/b/c"), [""; 0]);
        assert_eq!(parents("a/b", "x"), ["a", "."]);
    }

    #[test]
    fn missing_folders_are_made_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a/b/c");
        assert!(create_dir_all_durable(&path).expect("created"));
        assert!(path.is_dir());
        assert!(!create_dir_all_durable(&path).expect("it is there"));
        fs::write(folder.path().join("file"), "").expect("a file");
        assert!(create_dir_all_durable(&folder.path().join("file/x")).is_err());
    }
}

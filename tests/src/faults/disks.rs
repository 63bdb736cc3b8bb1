//! A small disk in memory, which can be full.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Unmounted when it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Panics without the right to mount.
    pub fn mount(folder: &Path, size: &str) -> Self {
        Self::mount_if_allowed(folder, size)
            .unwrap_or_else(|why| panic!("{why}: this test needs root to mount a small disk"))
    }

    /// `Err`: why it may not.
    pub fn mount_if_allowed(folder: &Path, size: &str) -> Result<Self, String> {
        std::fs::create_dir_all(folder).expect("the folder can be made");
        let disk = Self { folder: folder.to_owned() };
        let mounted = disk.call("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        mounted.map(|()| disk)
    }

    pub fn grow(&self, size: &str) {
        self.call("mount", &["-o", &format!("remount,size={size}")]).expect("it is mounted");
    }

    /// Until nothing more can be written.
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a file can be made");
        let mut size = 1 << 20;
        while size > 0 {
            match file.write(&vec![0; size]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => size /= 4,
                Err(error) => panic!("{}: {error}", self.folder.display()),
            }
        }
    }

    /// Makes the room again that [`fill`](Self::fill) has taken.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }

    fn call(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let status = Command::new(program).args(arguments).arg(&self.folder).status();
        match status.as_ref().is_ok_and(|status| status.success()) {
            true => Ok(()),
            false => Err(format!("{program} {arguments:?} failed ({status:?})")),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The temporary folder cannot be removed while it is mounted.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.folder)
            .stderr(std::process::Stdio::null())
            .status();
    }
}

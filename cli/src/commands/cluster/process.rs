//! One process of a cluster: starts it, tells whether it lives, signals it.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::cluster_file::ProcessEntry;
use crate::failure::Failure;

/// Starts it in a process group of its own: Ctrl-C at the terminal reaches `up` alone.
pub(super) fn spawn(entry: &mut ProcessEntry) -> Result<Child, Failure> {
    let started = (|| {
        let log = OpenOptions::new().create(true).append(true).open(&entry.log)?;
        Command::new(std::env::current_exe()?)
            .args(&entry.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
    })();
    let child = started
        .map_err(|error| Failure::Run(format!("failed to start {}: {error}", entry.name)))?;
    entry.pid = child.id();
    Ok(child)
}

/// Whether its pid is still that of the process that was started so. One lives until its last thread has
/// ended, and with it has closed what it listened at; one that nobody has waited for since does not.
pub(super) fn is_alive(entry: &ProcessEntry) -> bool {
    let read = |name: &str| std::fs::read(format!("/proc/{}/{name}", entry.pid));
    let (Ok(stat), Ok(line)) = (read("stat"), read("cmdline")) else { return false };
    let is_ending = line.is_empty();
    let threads = std::fs::read_dir(format!("/proc/{}/task", entry.pid)).map_or(0, Iterator::count);
    (is_ending || is_command_line_of(&line, &entry.arguments)) && (threads > 1 || !has_ended(&stat))
}

/// `/proc/<pid>/stat`: the state follows the name, in which anything may stand.
fn has_ended(stat: &[u8]) -> bool {
    let behind = stat.iter().rposition(|byte| *byte == b')').map_or(0, |at| at + 2);
    matches!(stat.get(behind), None | Some(b'Z' | b'X'))
}

/// `/proc/<pid>/cmdline`: program and arguments, each followed by a zero.
fn is_command_line_of(line: &[u8], arguments: &[String]) -> bool {
    let mut words = line.strip_suffix(&[0]).unwrap_or_default().split(|byte| *byte == 0);
    words.next().is_some() && words.eq(arguments.iter().map(String::as_bytes))
}

/// Asks it to end at a moment of its choice. A stopped one goes on, so that it can.
pub(super) fn terminate(entry: &ProcessEntry) {
    signal(entry, Signal::TERM);
    signal(entry, Signal::CONT);
}

pub(super) fn kill(entry: &ProcessEntry) {
    signal(entry, Signal::KILL);
}

fn signal(entry: &ProcessEntry, signal: Signal) {
    let pid = i32::try_from(entry.pid).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid
        && is_alive(entry)
    {
        // It may have ended in between.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The end of its log, for messages.
pub(super) fn log_tail(entry: &ProcessEntry) -> String {
    const LINES: usize = 10;
    let text = std::fs::read(&entry.log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LINES)..];
    tail.iter().map(|line| format!("\n  {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_under_the_same_pid_is_not_taken_for_it() {
        let arguments = ["executor".to_owned(), "--id".to_owned(), "executor-1".to_owned()];
        assert!(is_command_line_of(b"/bin/weir\0executor\0--id\0executor-1\0", &arguments));
        assert!(!is_command_line_of(b"/bin/weir\0executor\0--id\0executor-10\0", &arguments));
        assert!(!is_command_line_of(b"/bin/weir\0executor\0--id\0", &arguments));
        assert!(!is_command_line_of(b"", &arguments));
    }

    #[test]
    fn a_process_that_nobody_has_waited_for_has_ended() {
        assert!(has_ended(b"12 (a) b) Z 1 12"));
        assert!(!has_ended(b"12 (Z) S 1 12"));
        assert!(has_ended(b""));
    }

    #[test]
    fn a_process_lives_until_it_has_ended() {
        let arguments = vec!["60".to_owned()];
        let mut child =
            Command::new("sleep").args(&arguments).spawn().expect("there is such a program");
        let entry = ProcessEntry {
            name: "sleep".to_owned(),
            pid: child.id(),
            log: "log".into(),
            arguments,
        };
        // Between fork and exec it still has the command line of this test.
        while !is_alive(&entry) {
            std::thread::yield_now();
        }
        kill(&entry);
        while is_alive(&entry) {
            std::thread::yield_now();
        }
        child.wait().expect("it is a child");
        assert!(!is_alive(&entry));
    }
}

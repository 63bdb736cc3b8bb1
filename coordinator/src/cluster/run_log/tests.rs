//! Logs of runs: what is read is what was written, once, in order, also across leaders.

use std::path::Path;

use tempfile::TempDir;

use super::*;

fn log(folder: &Path, epoch: u64) -> Arc<RunLog> {
    log_of(folder, epoch, 0)
}

fn log_of(folder: &Path, epoch: u64, session: u64) -> Arc<RunLog> {
    let redactor = Redactor::default();
    redactor.register("canary");
    Arc::new(RunLog::new(Storage::folder(folder), Author { epoch, session }, redactor))
}

fn at(epoch: u64, session: u64, line: u64) -> Position {
    Position { author: Author { epoch, session }, line }
}

fn say(log: &RunLog, text: &str) {
    log.add(Entry::new(Level::Info, text));
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// All messages behind a position, read file by file.
async fn stored(folder: &Path, mut position: Option<Position>) -> Vec<String> {
    let folder = Storage::folder(folder);
    let mut messages = Vec::new();
    loop {
        let lines = read_after(&folder, position).await.expect("it can be read");
        let Some(last) = lines.last() else { return messages };
        position = Some(last.position);
        messages.extend(lines.into_iter().map(|line| line.entry.message));
    }
}

#[tokio::test]
async fn the_lines_of_all_leaders_are_read_in_order_and_once() {
    let folder = folder();
    let first = log(folder.path(), 7);
    say(&first, "a");
    first.write().await;
    say(&first, "b");
    first.write().await;
    // Written again, it says the same.
    first.write().await;
    let second = log(folder.path(), 12);
    say(&second, "c");
    second.write().await;
    assert_eq!(stored(folder.path(), None).await, ["a", "b", "c"]);
    assert_eq!(stored(folder.path(), Some(at(7, 0, 0))).await, ["b", "c"]);
    // A leader that was followed and is gone: its last line was never stored.
    assert_eq!(stored(folder.path(), Some(at(7, 0, 5))).await, ["c"]);
    assert_eq!(stored(folder.path(), Some(at(12, 0, 0))).await, Vec::<String>::new());
}

/// A run is tried again by the leader under which it has failed.
#[tokio::test]
async fn what_a_session_has_written_stays_when_the_same_leader_begins_another() {
    let folder = folder();
    let first = log_of(folder.path(), 7, 4);
    say(&first, "a");
    first.add_end(Entry::new(Level::Error, "run failed"));
    first.write().await;
    let second = log_of(folder.path(), 7, 9);
    say(&second, "b");
    assert_eq!(second.after(Some(at(7, 4, 1))).0.len(), 1, "it is new to who has read the first");
    assert!(!second.after(Some(at(7, 4, 0))).1, "and there may be more that is");
    second.write().await;
    assert_eq!(stored(folder.path(), None).await, ["a", "run failed", "b"]);
    assert_eq!(stored(folder.path(), Some(at(7, 4, 0))).await, ["run failed", "b"]);
    assert_eq!(stored(folder.path(), Some(at(7, 4, 1))).await, ["b"]);
}

#[tokio::test]
async fn what_is_in_memory_is_handed_on_without_the_storage() {
    let folder = folder();
    let log = log(folder.path(), 7);
    say(&log, "a");
    say(&log, "b");
    let after = |position: Option<Position>| {
        let (lines, is_all) = log.after(position);
        let messages: Vec<String> = lines.into_iter().map(|line| line.entry.message).collect();
        (messages.concat(), is_all)
    };
    // An earlier leader may have written something that comes first.
    assert_eq!(after(None), ("ab".to_owned(), false));
    assert_eq!(after(Some(at(3, 0, 9))), ("ab".to_owned(), false));
    assert_eq!(after(Some(at(7, 0, 0))), ("b".to_owned(), true));
    assert_eq!(after(Some(at(7, 0, 1))), (String::new(), true));
}

#[tokio::test]
async fn full_segments_leave_the_memory_once_they_are_written() {
    let folder = folder();
    let log = log(folder.path(), 1);
    let long = "x".repeat(SEGMENT_BYTES / 4);
    for number in 0..10 {
        say(&log, &format!("{number} {long}"));
    }
    let is_all_in_memory = || log.after(Some(at(1, 0, 0))).1;
    assert!(is_all_in_memory());
    log.write().await;
    assert!(!is_all_in_memory(), "some of it is in the storage only");
    let numbers: Vec<String> = stored(folder.path(), None)
        .await
        .iter()
        .filter_map(|message| Some(message.split_once(' ')?.0.to_owned()))
        .collect();
    assert_eq!(numbers, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
}

#[tokio::test]
async fn a_log_has_a_limit_for_all_leaders_together_and_says_so_and_how_it_ends() {
    let folder = folder();
    let first = log(folder.path(), 1);
    let long = "x".repeat(SEGMENT_BYTES);
    for _ in 0..100 {
        say(&first, &long);
        first.write().await;
    }
    first.add_end(Entry::new(Level::Error, "run failed"));
    first.write().await;
    let second = log(folder.path(), 2);
    second.write().await;
    say(&second, "too much");
    second.add_end(Entry::new(Level::Info, "run succeeded"));
    second.write().await;
    let messages = stored(folder.path(), None).await;
    let bytes: u64 = messages.iter().map(|message| message.len() as u64).sum();
    assert!(bytes < LOG_BYTES + SEGMENT_BYTES as u64, "{bytes} bytes");
    let short: Vec<&str> =
        messages.iter().map(String::as_str).filter(|message| message.len() < 100).collect();
    let full = "the log has 16 MiB: further lines are left out";
    assert_eq!(short, [full, "run failed", "run succeeded"]);
}

#[tokio::test]
async fn a_storage_that_takes_nothing_costs_bounded_memory_and_no_error() {
    let folder = folder();
    let file = folder.path().join("file");
    std::fs::write(&file, "no folder").expect("room");
    let log = log(&file.join("log"), 1);
    let long = "x".repeat(SEGMENT_BYTES);
    for _ in 0..30 {
        say(&log, &long);
        log.write().await;
    }
    assert!(log.state().segments.len() <= MOST_WAITING + 1);
}

#[tokio::test]
async fn no_secret_is_in_a_line() {
    let folder = folder();
    let log = log(folder.path(), 1);
    say(&log, "failed to connect to postgres://u:canary@db");
    log.write().await;
    let messages = stored(folder.path(), None).await;
    assert!(
        messages[0].contains("postgres://u:") && !messages[0].contains("canary"),
        "{messages:?}"
    );
}

#[test]
fn a_position_is_written_and_read() {
    let position = at(12, 3, 345);
    assert_eq!(position.to_string().parse(), Ok(position));
    assert_eq!("12-345".parse(), Ok(at(12, 0, 345)), "of an earlier version");
    for wrong in ["12", "a-b-c", "1-2-3-4", ""] {
        wrong.parse::<Position>().expect_err(wrong);
    }
}

#[tokio::test]
async fn who_gives_up_a_write_leaves_the_next_one_the_last_word() {
    let folder = folder();
    let log = log(folder.path(), 1);
    for number in 0..50 {
        say(&log, &number.to_string());
        // Begun, and given up at once, as at the end of a run.
        let _ = futures::poll!(std::pin::pin!(log.write()));
    }
    say(&log, "the end");
    log.write().await;
    let stored = stored(folder.path(), None).await;
    assert_eq!((stored.len(), stored.last().map(String::as_str)), (51, Some("the end")));
    let files = std::fs::read_dir(folder.path().join("log")).expect("it is there");
    assert_eq!(files.count(), 1, "nothing unfinished is left");
}

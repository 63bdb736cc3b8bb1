use std::path::PathBuf;
use std::sync::Arc;

use chrono::DateTime;
use futures::future::join_all;
use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};
use weir_ledger::{
    Command, Ledger, NewEpoch, Rejection, ResetWatermark, RunId, RunOutcome, SetWatermark, StartRun,
};
use weir_spec::{NodeName, PipelineName};

use super::{LedgerStore, StoreError};
use crate::lock::PipelineLock;
use crate::state_dir::{PipelineDir, StateDir};

struct Place {
    _folder: tempfile::TempDir,
    pipeline: PipelineDir,
}

fn place() -> Place {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipeline = StateDir::new(folder.path()).pipeline(&PipelineName("orders".into()));
    Place { _folder: folder, pipeline }
}

impl Place {
    fn path(&self) -> PathBuf {
        self.pipeline.ledger()
    }

    async fn open(&self) -> LedgerStore {
        self.try_open().await.expect("the ledger opens")
    }

    async fn try_open(&self) -> Result<LedgerStore, StoreError> {
        let lock = PipelineLock::try_acquire(&self.pipeline).expect("the folder is writable");
        LedgerStore::open_writer(&self.path(), lock.expect("nobody else writes")).await
    }

    async fn read(&self) -> Ledger {
        LedgerStore::open_reader(&self.path()).await.expect("the ledger can be read")
    }

    /// Changes the file behind the store's back.
    async fn tamper(&self, statement: &'static str) {
        let mut connection = SqliteConnectOptions::new()
            .filename(self.path())
            .connect()
            .await
            .expect("the file opens");
        sqlx::query(statement).execute(&mut connection).await.expect("the statement is valid");
        connection.close().await.expect("the file closes");
    }
}

fn epoch() -> Command {
    Command::NewEpoch(NewEpoch {
        ledger_id: "ledger".into(),
        boot_id: "boot".into(),
        pid: 1,
        host: "here".into(),
        at: DateTime::UNIX_EPOCH,
    })
}

fn start(epoch: u64) -> Command {
    Command::StartRun(StartRun {
        epoch,
        run: RunId("first".into()),
        pipeline: PipelineName("orders".into()),
        spec_hash: "spec".into(),
        params: [("ratio".to_owned(), serde_json::json!(0.1))].into(),
        window: None,
        version: None,
        request_id: None,
        backfill: None,
        replay_of: None,
        at: DateTime::UNIX_EPOCH,
    })
}

fn abandon(epoch: u64) -> Command {
    Command::FinishRun(weir_ledger::FinishRun {
        epoch,
        run: RunId("first".into()),
        outcome: RunOutcome::Abandoned,
        at: DateTime::UNIX_EPOCH,
    })
}

fn watermark(epoch: u64, source: u64, value: u64) -> Command {
    Command::SetWatermark(SetWatermark {
        epoch,
        pipeline: PipelineName("orders".into()),
        source: NodeName::new(format!("source_{source}")),
        value: value.to_string(),
    })
}

/// An idle pipeline in epoch 1 with three entries.
async fn filled(place: &Place) -> LedgerStore {
    let store = place.open().await;
    for command in [epoch(), start(1), abandon(1)] {
        assert!(store.append(command).await.expect("the command is valid"));
    }
    store
}

#[tokio::test]
async fn what_was_appended_is_there_after_reopening() {
    let place = place();
    let store = filled(&place).await;
    let before = store.ledger().await.clone();
    store.close().await;
    let store = place.open().await;
    assert_eq!(*store.ledger().await, before);
    assert_eq!(before.last_index, 3);
    assert!(store.append(watermark(1, 0, 7)).await.expect("entries go on"));
    assert_eq!(store.ledger().await.last_index, 4);
}

#[tokio::test]
async fn many_appends_at_once_all_become_durable_over_a_snapshot() {
    let place = place();
    let store = Arc::new(filled(&place).await);
    let appends = (0..2_500).map(|number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.append(watermark(1, number % 50, number)).await })
    });
    for appended in join_all(appends).await {
        appended.expect("no panic").expect("durable");
    }
    let before = store.ledger().await.clone();
    assert_eq!(place.read().await, before, "readers need no lock");
    Arc::into_inner(store).expect("no one else has it").close().await;
    assert_eq!(place.read().await, before);

    place
        .tamper("UPDATE snapshots SET ledger = '{}' WHERE idx = (SELECT max(idx) FROM snapshots)")
        .await;
    assert_eq!(place.read().await, before, "the snapshot before a damaged one is used");
}

#[tokio::test]
async fn a_repetition_is_accepted_and_not_kept() {
    let place = place();
    let store = filled(&place).await;
    assert!(store.append(watermark(1, 0, 7)).await.expect("valid"));
    assert!(!store.append(watermark(1, 0, 7)).await.expect("valid"));
    assert_eq!(store.ledger().await.last_index, 4);
}

#[tokio::test]
async fn a_rejected_command_is_an_error_and_leaves_no_entry() {
    let place = place();
    let store = filled(&place).await;
    store.append(epoch()).await.expect("a second epoch");
    let old = store.append(watermark(1, 0, 7)).await.expect_err("epoch 1 is over");
    let expected = Rejection::OldEpoch { given: 1, current: 4 };
    assert!(matches!(old, StoreError::Rejected(rejection) if rejection == expected));
    store.close().await;
    assert_eq!(place.read().await.last_index, 4);
}

#[tokio::test]
async fn an_entry_that_was_changed_or_lost_is_named() {
    for (statement, message) in [
        ("UPDATE entries SET command = replace(command, 'spec', 'spek') WHERE idx = 2", "digest"),
        ("DELETE FROM entries WHERE idx = 2", "missing"),
    ] {
        let place = place();
        filled(&place).await.close().await;
        place.tamper(statement).await;
        let error = place.try_open().await.expect_err("the log is damaged").to_string();
        let file = place.path().display().to_string();
        assert!(error.contains(&format!("{file} is damaged at entry 2")), "{error}");
        assert!(error.contains(message), "{error}");
    }
}

#[tokio::test]
async fn an_entry_that_was_torn_off_mid_write_leaves_what_was_durable() {
    let place = place();
    let store = filled(&place).await;
    let before = store.ledger().await.clone();
    store.append(watermark(1, 0, 7)).await.expect("valid");
    // As after a power cut: the file, and the first half of what the log's last write was.
    let copy = place_with_torn_log(&place);
    let ledger = copy.read().await;
    assert!(ledger == before || ledger == *store.ledger().await);
    assert_eq!(ledger, before);
}

fn place_with_torn_log(place: &Place) -> Place {
    let copy = self::place();
    copy.pipeline.create().expect("the folder can be made");
    std::fs::copy(place.path(), copy.path()).expect("the ledger is there");
    let wal = |path: PathBuf| path.with_extension("db-wal");
    let bytes = std::fs::read(wal(place.path())).expect("the log is there");
    std::fs::write(wal(copy.path()), &bytes[..bytes.len() - 2_000]).expect("a copy can be made");
    copy
}

#[tokio::test]
async fn a_file_that_is_no_ledger_is_refused_by_name() {
    let place = place();
    place.pipeline.create().expect("the folder can be made");
    std::fs::write(place.path(), "not a database, whatever its name says".repeat(200))
        .expect("writable");
    let error = place.try_open().await.expect_err("not a database").to_string();
    assert!(error.contains(&place.path().display().to_string()), "{error}");
}

#[tokio::test]
async fn a_file_whose_creator_was_killed_is_an_empty_ledger() {
    let place = place();
    place.pipeline.create().expect("the folder can be made");
    std::fs::write(place.path(), b"").expect("the folder can be written");
    assert_eq!(place.read().await, Ledger::default());
    place.open().await.close().await;
    assert_eq!(place.read().await, Ledger::default());
}

#[tokio::test]
async fn a_failed_write_leaves_neither_the_file_nor_the_memory_ahead() {
    let place = place();
    let store = filled(&place).await;
    let before = store.ledger().await.clone();
    place.tamper("ALTER TABLE entries RENAME TO hidden").await;
    let error = store.append(watermark(1, 0, 7)).await.expect_err("there is no table");
    assert!(matches!(error, StoreError::Write { .. }), "{error}");
    place.tamper("ALTER TABLE hidden RENAME TO entries").await;
    assert!(
        store.append(watermark(1, 0, 8)).await.is_err() || store.ledger().await.last_index == 4
    );
    store.close().await;
    let after = place.read().await;
    assert!(after.last_index <= before.last_index + 1);
    assert_ne!(
        after.watermark(&PipelineName("orders".into()), &NodeName::new("source_0")),
        Some("7")
    );
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let place = place();
    filled(&place).await.close().await;
    place.tamper("PRAGMA user_version = 99").await;
    assert!(matches!(place.try_open().await, Err(StoreError::Newer { found: 99, .. })));
}

#[tokio::test]
async fn resetting_what_was_never_set_changes_nothing() {
    let place = place();
    let store = filled(&place).await;
    let reset = Command::ResetWatermark(ResetWatermark {
        epoch: 1,
        pipeline: PipelineName("orders".into()),
        source: NodeName::new("source_0"),
    });
    assert!(!store.append(reset).await.expect("valid"));
}

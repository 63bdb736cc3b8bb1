//! Rejected rows that are sent through their pipeline again.

use indexmap::IndexMap;
use weir_connectors::{Manifest, Position};
use weir_executor::{DeadLetterLine, RunFolder};
use weir_ledger::{CommitDone, CommitIntent, SliceAttempt, StartAttempt};
use weir_plan::{Commit, NodeCounts, RowAccount, SlicePosition, StageId};
use weir_spec::NodeName;

use super::*;
use crate::cluster::replays::{Rows, WantedReplay};

/// One that has committed a batch, whose source has rejected a row, and was then stopped.
async fn stopped_half_way(place: &Place, leading: &Arc<Leading>) -> RunId {
    let run = place.submit(leading, "p", "1").await;
    planned(leading, &run).await;
    let (epoch, node) = (leading.epoch, NodeName::new("a"));
    let task = SliceAttempt { epoch, run: run.clone(), stage: StageId(0), slice: 0, attempt: 1 };
    let manifest = Manifest {
        slice: 0,
        sequence: 0,
        rows: 0,
        checksum: 0,
        epoch,
        payload: serde_json::Value::Null,
    };
    let counts = NodeCounts { rows_in: 1, rows_out: 0, dead_lettered: 1, dropped: 0 };
    let account =
        RowAccount { nodes: IndexMap::from([(node.clone(), counts)]), ..RowAccount::default() };
    let resume_at = Some(SlicePosition { split: 0, inner: Some(Position("1".into())) });
    for command in [
        Command::StartAttempt(StartAttempt { task: task.clone() }),
        Command::CommitIntent(CommitIntent {
            task: task.clone(),
            commit: Commit { manifest, account, resume_at },
        }),
        Command::CommitDone(CommitDone { task, sequence: 0 }),
    ] {
        leading.append(command).await.expect("the ledger is there");
    }
    let line = DeadLetterLine {
        run: run.0.clone(),
        node: node.clone(),
        stage: StageId(0),
        slice: 0,
        attempt: 1,
        at: Utc::now(),
        reasons: vec!["it is no number".to_owned()],
        row: serde_json::from_value(serde_json::json!({ "id": "x" })).expect("it is JSON"),
        offset: None,
    };
    let files = leading.files(&facts(leading, &run).await);
    let name = RunFolder::dead_letter_file(&node, StageId(0), 0, 0, 1);
    let line = serde_json::to_vec(&line).expect("it is JSON");
    files.run(&run).storage().put(&name, line).await.expect("room");
    leading.cancel(&run.0, "").await.expect("it goes on");
    run
}

#[tokio::test]
async fn a_replay_that_is_refused_leaves_no_rows() {
    let place = Place::new().await;
    let leading = place.leading().await;
    let run = stopped_half_way(&place, &leading).await;
    let wanted = WantedReplay { run: run.0.clone(), node: None, mended: None, request_id: None };
    let refused = leading.replay(wanted, Rows::Rejected).await.expect_err("it is half done");
    assert!(refused.to_string().contains("is not finished"), "{refused}");
    let replays = std::fs::read_dir(place.storage().join("p/replay"));
    assert_eq!(replays.expect("the rows were there").count(), 0);
}

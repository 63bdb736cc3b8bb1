//! A run over a replicated ledger: when its leader is gone, the next one goes on with it.

use std::sync::Arc;

use super::*;
use crate::raft::tests::Cluster;
use crate::store::LedgerStore;

/// Works on the run at the leader; stops at the `batches`-th commit as a crash would.
async fn work(
    place: &Place,
    cluster: &Cluster,
    spec: &PipelineSpec,
    batches: usize,
) -> Option<crate::RunSummary> {
    let leader = cluster.leader().await;
    let store = Arc::new(LedgerStore::replicated(Arc::clone(&cluster.running[&leader].member)));
    let files = StateDir::new(place.state()).pipeline(&spec.pipeline).files();
    let (events, mut received) = mpsc::unbounded_channel();
    let (request, stop) = (RunRequest::default(), CancellationToken::new());
    let engine = place.engine().await;
    let running = engine.run_locked(spec, "", request, events, stop, &files, &store);
    let crash = async {
        let mut seen = 0;
        while let Some(event) = received.recv().await {
            seen += usize::from(matches!(
                event,
                RunEvent::Progress(ProgressEvent::BatchCommitted { .. })
            ));
            if seen >= batches {
                return;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        result = running => Some(result.expect("the run succeeds")),
        () = crash => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_goes_on_with_a_run() {
    let place = Place::new().await;
    let spec = spec_with_two_sinks();
    let mut cluster = Cluster::start(3).await;
    let ended = work(&place, &cluster, &spec, 3).await;
    assert_eq!(ended, None, "the run ended too early to be disturbed");
    let first = cluster.leader().await;
    cluster.stop(first).await;

    let summary = work(&place, &cluster, &spec, usize::MAX).await.expect("undisturbed");
    assert_eq!(summary.status, RunStatus::Succeeded);
    assert_eq!(summary.sessions, 2, "one run, taken up");
    assert_eq!(place.target("kept").await, ALL);
    assert_eq!(place.target("shown").await, ALL);
    let second = cluster.leader().await;
    assert_ne!(first, second);
    let ledger = cluster.running[&second].member.ledger().await.clone();
    assert_eq!(ledger.runs.len(), 1);
    let audit = ledger.audit(&weir_ledger::RunId(summary.run)).expect("a known run");
    assert_eq!(audit.findings, Vec::<String>::new());
}

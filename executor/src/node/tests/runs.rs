//! How long a run is kept, and who shares it.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weir_plan::Holder;
use weir_proto::internal::{Assign, TaskId};

use crate::exchange::{ExchangeCompression, FlightClients, Keeping};
use crate::node::runs::Runs;
use crate::node::work_threads::WorkThreads;
use crate::storage::Storage;
use crate::tests::fakes::{FakeSink, FakeSource, FakeSystems};
use crate::{Resources, Systems};

fn runs(folder: &std::path::Path) -> Runs {
    let memory = NonZeroU64::new(1 << 20).expect("some memory");
    let slots = NonZeroUsize::new(2).expect("two is not zero");
    let resources = Resources::new(folder.join("spill"), memory, slots).expect("prepared");
    let systems = |_: &std::path::Path| -> Arc<dyn Systems> {
        let (source, sink) = (Arc::new(FakeSource::default()), Arc::new(FakeSink::default()));
        Arc::new(FakeSystems { source, sink, plan: None })
    };
    let holder = Holder {
        executor: "executor".to_owned(),
        boot_id: "boot".to_owned(),
        url: "http://127.0.0.1:9".to_owned(),
    };
    let clients = Arc::new(FlightClients::new(None));
    let (root, compression) = (folder.join("exchange"), ExchangeCompression::default());
    let keeping = Keeping { root, holder, clients, compression };
    let threads = WorkThreads::start().expect("threads start");
    Runs::new(Storage::folder(folder), Arc::new(resources), Arc::new(systems), keeping, threads)
}

#[tokio::test]
async fn a_run_is_shared_by_its_tasks_and_forgotten_some_time_after_the_last() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut runs = runs(folder.path());
    let task = TaskId { run: "run".to_owned(), epoch: 1, ..TaskId::default() };
    let assign = Assign { run_folder: "p/runs/run".to_owned(), ..Assign::default() };
    let first = runs.open(&task, &assign).expect("opened");
    let second = runs.open(&TaskId { slice: 1, ..task.clone() }, &assign).expect("opened");
    assert!(Arc::ptr_eq(&first.env, &second.env));
    let later = runs.open(&TaskId { epoch: 2, ..task.clone() }, &assign).expect("opened");
    assert!(!Arc::ptr_eq(&first.env, &later.env), "sources are opened anew");
    drop((second, later));
    let mut count_after = |seconds| {
        runs.drop_idle(Instant::now() + Duration::from_secs(seconds));
        runs.count()
    };
    assert_eq!(count_after(50), 2);
    assert_eq!(count_after(100), 1);
    drop(first);
    assert_eq!(count_after(150), 1);
    assert_eq!(count_after(200), 0);
}

#[tokio::test]
async fn what_is_kept_of_runs_that_are_over_is_removed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut runs = runs(folder.path());
    runs.forget_others(&[]);
    let kept = |run_folder: &str| folder.path().join("exchange").join(run_folder);
    for run_folder in ["p/runs/goes-on", "p/runs/failed", "p/runs/open", "q/runs/cancelled"] {
        std::fs::create_dir_all(kept(run_folder).join("3/0-1-1")).expect("room");
        std::fs::write(kept(run_folder).join("3/0-1-1/0.arrow"), "rows").expect("room");
    }
    // The leader may have looked before it began.
    let task = TaskId { run: "open".to_owned(), epoch: 1, ..TaskId::default() };
    let assign = Assign { run_folder: "p/runs/open".to_owned(), ..Assign::default() };
    let _open = runs.open(&task, &assign).expect("opened");
    let all_gone = async {
        while kept("p/runs/failed").exists() || kept("q/runs/cancelled").exists() {
            runs.forget_others(&["p/runs/goes-on".to_owned()]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all_gone).await.expect("they are removed");
    for run_folder in ["p/runs/goes-on", "p/runs/open"] {
        assert!(kept(run_folder).join("3/0-1-1/0.arrow").exists(), "{run_folder}");
    }
}

//! How long a run is kept, and who shares it.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use weir_plan::Holder;
use weir_proto::internal::{Assign, TaskId};

use crate::exchange::{FlightClients, Keeping};
use crate::node::runs::Runs;
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
    let keeping = Keeping { root: folder.join("exchange"), holder, clients };
    Runs::new(Storage::folder(folder), Arc::new(resources), Arc::new(systems), keeping)
}

#[test]
fn a_run_is_shared_by_its_tasks_and_forgotten_some_time_after_the_last() {
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

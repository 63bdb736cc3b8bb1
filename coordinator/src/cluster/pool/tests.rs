use tokio_util::sync::CancellationToken;
use weir_executor::{CommitLog, CommitLogError};
use weir_plan::{Commit, EncodedPlan, SliceStart, Stage, StageId, StageKind, StageOutput};
use weir_spec::ExchangeDurability;

use super::*;

fn share(pipeline: &str, of: &str) -> Share {
    Share { pipeline: pipeline.to_owned(), of: of.to_owned() }
}

fn anywhere() -> Wanted {
    Wanted {
        connections: Arc::default(),
        rows: BTreeMap::new(),
        not_with: None,
        waited: Duration::ZERO,
    }
}

fn hello(name: &str, boot_id: &str) -> Hello {
    Hello { executor: name.to_owned(), boot_id: boot_id.to_owned(), slots: 2, ..Hello::default() }
}

fn welcome(receiver: &mut UnboundedReceiver<Outgoing>) -> Welcome {
    match receiver.try_recv().expect("a first message").expect("no refusal").message {
        Some(Message::Welcome(welcome)) => welcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_executor_that_comes_back_keeps_its_tasks_and_another_process_does_not() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let (first, mut messages) = pool.join(hello("a", "boot-1")).expect("joined");
    assert!(!welcome(&mut messages).keeps_tasks);
    let (_, mut messages) = pool.join(hello("a", "boot-1")).expect("joined");
    assert!(welcome(&mut messages).keeps_tasks);
    // The end of the stream before is no news.
    pool.stream_ended("a", first);
    assert_eq!(pool.join(hello("a", "boot-2")).err(), Some(NotJoined::NameTaken));
    let (second, _) = pool.join(hello("a", "boot-1")).expect("joined");
    pool.stream_ended("a", second);
    let (_, mut messages) = pool.join(hello("a", "boot-2")).expect("joined");
    assert!(!welcome(&mut messages).keeps_tasks);
}

#[derive(Debug)]
struct NoLog;

#[async_trait::async_trait]
impl CommitLog for NoLog {
    async fn intent(&self, _: &Task, _: &Commit) -> Result<(), CommitLogError> {
        Ok(())
    }

    async fn done(&self, _: &Task, _: u64) -> Result<(), CommitLogError> {
        Ok(())
    }
}

/// An attempt at a slice of a run's only stage.
fn task(slice: u32) -> (SliceAttempt, Arc<Task>, TaskContext) {
    let stage = Stage {
        id: StageId(0),
        name: "kept".to_owned(),
        nodes: Vec::new(),
        inputs: Vec::new(),
        kind: StageKind::Whole {
            plan: EncodedPlan(Vec::new()),
            partitions: 2,
            slices: 2,
            durability: ExchangeDurability::Sync,
        },
        output: StageOutput::Exchange,
        display: String::new(),
    };
    let task = Task {
        run: "run-1".to_owned(),
        pipeline: "orders".to_owned(),
        stage: Arc::new(stage),
        slice,
        attempt: 1,
        epoch: 7,
        start: SliceStart::default(),
        inputs: BTreeMap::new(),
        prepared: None,
    };
    let run = RunId("run-1".to_owned());
    let key = SliceAttempt { epoch: 7, run, stage: StageId(0), slice, attempt: 1 };
    let (log, progress) = (Arc::new(NoLog), unbounded_channel().0);
    (key, Arc::new(task), TaskContext { log, progress, stop: CancellationToken::new() })
}

/// One that was given up while nothing could be told to its executor is not among them.
#[test]
fn an_executor_that_comes_back_is_told_which_tasks_it_keeps() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let (run, _joined) =
        (share("orders", "run-1"), pool.join(hello("a", "boot-1")).expect("joined"));
    let _places = [0, 1].map(|slice| {
        let place = pool.take_place(&run, &anywhere()).expect("a place");
        let (key, task, context) = task(slice);
        let assign = Assign { task: Some(task_id(&key)), ..Assign::default() };
        let ended = pool.assign(&place, key, task, context, assign);
        (place, ended)
    });
    let (given_up, kept) = (task(0).0, task(1).0);
    pool.forget(&given_up);
    let (_, mut messages) = pool.join(hello("a", "boot-1")).expect("joined");
    assert_eq!(welcome(&mut messages).tasks, [task_id(&kept)]);
}

#[test]
fn places_are_given_back_and_never_exceeded() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let run = share("orders", "run-1");
    assert!(pool.take_place(&run, &anywhere()).is_err());
    let _joined = pool.join(hello("a", "boot-1")).expect("joined");
    let (one, two) = (pool.take_place(&run, &anywhere()), pool.take_place(&run, &anywhere()));
    assert!(one.is_ok() && two.is_ok() && pool.take_place(&run, &anywhere()).is_err());
    drop(one);
    assert!(pool.take_place(&run, &anywhere()).is_ok());
}

#[test]
fn an_executor_that_is_silent_for_its_lease_is_lost() {
    let pool = Pool::new(7, Duration::ZERO);
    let _joined = pool.join(hello("a", "boot-1")).expect("joined");
    std::thread::sleep(Duration::from_millis(2));
    pool.expire();
    assert_eq!((pool.capacity(), pool.executors().len()), (0, 0));
}

#[test]
fn nobody_joins_where_nobody_leads() {
    let pool = Pool::new(7, Duration::from_secs(3));
    pool.close();
    assert_eq!(pool.join(hello("a", "boot-1")).err(), Some(NotJoined::Closed));
}

/// Numbers of reports begin anew with every process.
#[test]
fn what_a_process_has_asked_is_not_answered_to_the_next_one_of_its_name() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let (first, _) = pool.join(hello("a", "boot-1")).expect("joined");
    pool.stream_ended("a", first);
    let (_, mut messages) = pool.join(hello("a", "boot-2")).expect("joined");
    welcome(&mut messages);
    let answer = || Message::Answer(weir_proto::internal::Answer::default());
    pool.send("a", "boot-1", answer());
    assert!(messages.try_recv().is_err());
    pool.send("a", "boot-2", answer());
    assert!(messages.try_recv().is_ok());
}

#[test]
fn what_comes_late_on_a_stream_says_nothing_of_the_next_process() {
    let pool = Pool::new(7, Duration::from_millis(50));
    let (first, _) = pool.join(hello("a", "boot-1")).expect("joined");
    pool.stream_ended("a", first);
    let (second, _second) = pool.join(hello("a", "boot-2")).expect("joined");
    pool.heard("a", first, Some(true));
    assert_eq!(pool.capacity(), 2, "it is not the one that leaves");
    std::thread::sleep(Duration::from_millis(80));
    pool.heard("a", first, None);
    pool.expire();
    assert_eq!(pool.capacity(), 0, "nothing was heard of it");
    pool.heard("a", second, None);
}

#[test]
fn a_place_of_a_process_that_was_given_up_is_none_when_it_joins_again() {
    let pool = Pool::new(7, Duration::ZERO);
    let run = share("orders", "run-1");
    let _first = pool.join(hello("a", "boot-1")).expect("joined");
    let before = pool.take_place(&run, &anywhere());
    assert!(before.is_ok());
    std::thread::sleep(Duration::from_millis(2));
    pool.expire();
    let _second = pool.join(hello("a", "boot-1")).expect("joined");
    let _places = [pool.take_place(&run, &anywhere()), pool.take_place(&run, &anywhere())];
    drop(before);
    assert!(pool.take_place(&run, &anywhere()).is_err(), "it has two slots");
}

fn of_connection(limits: &[(&str, u32)]) -> Wanted {
    let limits = limits.iter().map(|(name, most)| ConnectionLimit {
        connection: ConnectionKey::for_tests(name),
        most: *most,
    });
    Wanted { connections: limits.collect(), ..anywhere() }
}

#[test]
fn a_connection_has_no_more_tasks_than_it_may_have_whichever_runs_they_are_of() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let _a = pool.join(Hello { slots: 9, ..hello("a", "boot-1") }).expect("joined");
    let (orders, customers) = (share("orders", "run-1"), share("customers", "run-2"));
    let crm = of_connection(&[("crm", 2)]);
    let one = pool.take_place(&orders, &crm).expect("a place");
    let two = pool.take_place(&customers, &crm).expect("a place");
    assert_eq!(pool.room(&crm.connections), 0);
    assert_eq!(pool.take_place(&orders, &crm).err(), Some(NoPlace::Limited));
    assert!(pool.take_place(&orders, &anywhere()).is_ok(), "what does not use it goes on");
    assert!(pool.take_place(&customers, &of_connection(&[("shop", 1)])).is_ok());
    drop((one, two));
    assert!(pool.take_place(&orders, &of_connection(&[("crm", 2), ("shop", 1)])).is_ok());
    assert_eq!(pool.room(&crm.connections), 2);
}

#[test]
fn who_waits_for_a_connection_gets_it_before_who_has_it() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let _a = pool.join(Hello { slots: 9, ..hello("a", "boot-1") }).expect("joined");
    let (orders, customers) = (share("orders", "run-1"), share("customers", "run-2"));
    let crm = of_connection(&[("crm", 2)]);
    let mut first = vec![pool.take_place(&orders, &crm), pool.take_place(&orders, &crm)];
    assert!(pool.take_place(&customers, &crm).is_err());
    first.pop();
    assert!(pool.take_place(&orders, &crm).is_err(), "it has one, the other none");
    assert!(pool.take_place(&customers, &crm).is_ok());
}

#[test]
fn a_lost_executor_uses_no_connection() {
    let pool = Pool::new(7, Duration::ZERO);
    let _a = pool.join(hello("a", "boot-1")).expect("joined");
    let crm = of_connection(&[("crm", 1)]);
    let place = pool.take_place(&share("orders", "run-1"), &crm).expect("a place");
    std::thread::sleep(Duration::from_millis(2));
    pool.expire();
    // Its driver hears of it, and drops the place.
    drop(place);
    assert_eq!(pool.room(&crm.connections), 1);
}

#[test]
fn a_pipeline_with_many_runs_has_no_more_places_than_one_with_one() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let _a = pool.join(Hello { slots: 4, ..hello("a", "boot-1") }).expect("joined");
    let mut many: Vec<_> = (0..4)
        .map(|run| pool.take_place(&share("many", &format!("run-{run}")), &anywhere()))
        .collect();
    let one = share("one", "run-9");
    assert!(pool.take_place(&one, &anywhere()).is_err());
    many.truncate(2);
    let new = share("many", "run-5");
    assert!(pool.take_place(&new, &anywhere()).is_err(), "its pipeline has two");
    let places = [pool.take_place(&one, &anywhere()), pool.take_place(&one, &anywhere())];
    assert!(places.iter().all(Result::is_ok));
}

#[test]
fn a_task_is_placed_with_the_process_that_has_its_rows() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let _a = pool.join(hello("a", "boot-1")).expect("joined");
    let _b = pool.join(hello("b", "boot-2")).expect("joined");
    let run = share("orders", "run-1");
    let kept_by = |executor: &str, boot_id: &str| {
        let (executor, boot_id) = (executor.to_owned(), boot_id.to_owned());
        let holder = Holder { executor, boot_id, url: String::new() };
        Wanted { rows: BTreeMap::from([(holder, 1_000_000)]), ..anywhere() }
    };
    let near = [(); 2].map(|()| pool.take_place(&run, &kept_by("b", "boot-2")).expect("a place"));
    assert!(near.iter().all(|place| place.executor == "b"));
    let full = pool.take_place(&run, &kept_by("b", "boot-2"));
    assert_eq!(full.err(), Some(NoPlace::Elsewhere));
    let of_a_process_before = pool.take_place(&run, &kept_by("b", "boot-1")).expect("a place");
    assert_eq!(of_a_process_before.executor, "a");
}

#[test]
fn a_copy_gets_a_place_elsewhere_that_nobody_else_wants() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let _a = pool.join(Hello { slots: 9, ..hello("a", "boot-1") }).expect("joined");
    let (run, other) = (share("orders", "run-1"), share("customers", "run-2"));
    let copy = Wanted { not_with: Some("a".to_owned()), ..anywhere() };
    assert_eq!(pool.take_place(&run, &copy).err(), Some(NoPlace::Full), "not beside itself");
    assert!(pool.take_place(&other, &anywhere()).is_ok(), "and nobody waits for it");
    let _b = pool.join(Hello { slots: 1, ..hello("b", "boot-2") }).expect("joined");
    let place = pool.take_place(&run, &copy).expect("a place");
    assert_eq!(place.executor, "b");
}

#[test]
fn a_copy_that_has_no_connection_keeps_nobody_else_from_it() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let _a = pool.join(Hello { slots: 9, ..hello("a", "boot-1") }).expect("joined");
    let _b = pool.join(Hello { slots: 9, ..hello("b", "boot-2") }).expect("joined");
    let (few, many) = (share("orders", "run-1"), share("customers", "run-2"));
    let crm = of_connection(&[("crm", 4)]);
    let _one = pool.take_place(&few, &crm).expect("a place");
    let mut others = [(); 3].map(|()| Some(pool.take_place(&many, &crm).expect("a place")));
    let copy = Wanted { not_with: Some("a".to_owned()), ..crm.clone() };
    assert_eq!(pool.take_place(&few, &copy).err(), Some(NoPlace::Limited));
    others[0] = None;
    assert!(pool.take_place(&many, &crm).is_ok(), "though it has more");
}

#[test]
fn an_executor_that_is_to_leave_gets_nothing_and_is_sent_away_once_nothing_needs_it() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let run = share("orders", "run-1");
    let names = BTreeSet::from(["a".to_owned()]);
    assert!(!pool.set_to_leave(&names), "it is not here");
    let (_, mut messages) = pool.join(hello("a", "boot-1")).expect("joined");
    welcome(&mut messages);
    assert!(pool.set_to_leave(&names));
    assert_eq!((pool.capacity(), pool.take_place(&run, &anywhere()).is_err()), (0, true));
    assert!(pool.executors()[0].draining);

    let holder = |boot_id: &str| Holder {
        executor: "a".to_owned(),
        boot_id: boot_id.to_owned(),
        url: String::new(),
    };
    let idle = pool.idle_to_leave();
    pool.let_leave(&idle, &BTreeSet::from([holder("boot-1")]));
    assert!(messages.try_recv().is_err(), "others still read what it keeps");
    pool.let_leave(&idle, &BTreeSet::from([holder("boot-0")]));
    let message = messages.try_recv().expect("a message").expect("no refusal").message;
    assert!(matches!(message, Some(Message::Leave(_))), "{message:?}");
    assert!(!pool.set_to_leave(&names), "it has been told");

    pool.set_to_leave(&BTreeSet::new());
    let (_, mut messages) = pool.join(hello("a", "boot-1")).expect("joined");
    welcome(&mut messages);
    assert!(pool.take_place(&run, &anywhere()).is_ok(), "it may stay after all");
}

#[test]
fn an_executor_that_is_to_leave_is_not_idle_while_a_place_is_held() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let (_, mut messages) = pool.join(hello("a", "boot-1")).expect("joined");
    welcome(&mut messages);
    let place = pool.take_place(&share("orders", "run-1"), &anywhere()).expect("a place");
    pool.set_to_leave(&BTreeSet::from(["a".to_owned()]));
    assert!(pool.idle_to_leave().is_empty(), "its output is on its way into the ledger");
    drop(place);
    pool.let_leave(&pool.idle_to_leave(), &BTreeSet::new());
    let message = messages.try_recv().expect("a message").expect("no refusal").message;
    assert!(matches!(message, Some(Message::Leave(_))), "{message:?}");
}

#[test]
fn what_is_done_to_its_end_where_nothing_begins_keeps_nobody_from_free_places_elsewhere() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let (run, other) = (share("orders", "run-1"), share("customers", "run-2"));
    let _a = pool.join(hello("a", "boot-1")).expect("joined");
    let _b = pool.join(hello("b", "boot-2")).expect("joined");
    let mut places: Vec<Place> =
        (0..4).map(|_| pool.take_place(&run, &anywhere()).expect("a place")).collect();
    pool.set_to_leave(&BTreeSet::from(["a".to_owned()]));
    assert_eq!((pool.capacity(), pool.capacity_for(&run), pool.capacity_for(&other)), (2, 4, 2));
    // Those at `b` are done, those at `a` take hours.
    places.retain(|place| place.executor == "a");
    let free = pool.capacity_for(&run) - places.len();
    let more: Vec<_> = (0..free).map(|_| pool.take_place(&run, &anywhere())).collect();
    assert_eq!((more.len(), more.iter().all(Result::is_ok)), (2, true));
    assert!(pool.take_place(&run, &anywhere()).is_err());
    drop(places);
    assert_eq!(pool.capacity_for(&run), 2);
}

#[test]
fn executors_hear_of_it_when_the_coordinators_change() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let urls = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    pool.set_coordinators(urls(&["a", "b"]));
    let (_, mut messages) = pool.join(hello("e", "boot-1")).expect("joined");
    assert_eq!(welcome(&mut messages).coordinators, ["a", "b"]);
    pool.set_coordinators(urls(&["a", "b"]));
    assert!(messages.try_recv().is_err(), "nothing has changed");
    pool.set_coordinators(urls(&["b", "c"]));
    let message = messages.try_recv().expect("a message").expect("no refusal").message;
    let Some(Message::Coordinators(told)) = message else { panic!("{message:?}") };
    assert_eq!(told.urls, ["b", "c"]);
}

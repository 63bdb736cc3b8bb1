use super::*;

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

#[test]
fn places_are_given_back_and_never_exceeded() {
    let pool = Pool::new(7, Duration::from_secs(3));
    let run = RunId("run-1".to_owned());
    assert!(pool.take_place(&run.0).is_none());
    let _joined = pool.join(hello("a", "boot-1")).expect("joined");
    let (one, two) = (pool.take_place(&run.0), pool.take_place(&run.0));
    assert!(one.is_some() && two.is_some() && pool.take_place(&run.0).is_none());
    drop(one);
    assert!(pool.take_place(&run.0).is_some());
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
    let run = RunId("run-1".to_owned());
    let _first = pool.join(hello("a", "boot-1")).expect("joined");
    let before = pool.take_place(&run.0);
    assert!(before.is_some());
    std::thread::sleep(Duration::from_millis(2));
    pool.expire();
    let _second = pool.join(hello("a", "boot-1")).expect("joined");
    let _places = [pool.take_place(&run.0), pool.take_place(&run.0)];
    drop(before);
    assert!(pool.take_place(&run.0).is_none(), "it has two slots");
}

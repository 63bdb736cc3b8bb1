//! What is decided, event by event.

use weir_proto::internal::answer::Outcome;
use weir_proto::internal::report::Fact;
use weir_proto::internal::{Answer, Assign, Report, TaskId};

use crate::node::state::{Effect, Event, State};

fn task(slice: u32, epoch: u64) -> TaskId {
    TaskId { run: "run".to_owned(), stage: 1, slice, attempt: 1, epoch }
}

fn assign(task: &TaskId) -> Box<Assign> {
    Box::new(Assign { task: Some(task.clone()), ..Assign::default() })
}

fn report(number: u64, task: &TaskId, fact: Fact) -> Effect {
    Effect::Send(Report { number, task: Some(task.clone()), fact: Some(fact) })
}

fn answer(number: u64, outcome: Outcome) -> Event {
    Event::Answered(Answer { number, outcome: outcome.into(), message: "why".to_owned() })
}

fn settled(task: &TaskId, outcome: Outcome) -> Effect {
    Effect::Settle { task: task.clone(), outcome, message: "why".to_owned() }
}

fn end() -> Fact {
    Fact::End(b"end".to_vec())
}

impl State {
    fn report(&mut self, task: &TaskId, fact: Fact) -> Vec<Effect> {
        self.step(Event::Reported { task: task.clone(), fact })
    }

    fn welcome(&mut self, epoch: u64, keeps_tasks: bool) -> Vec<Effect> {
        let tasks = (0..9).map(|slice| task(slice, epoch)).collect();
        self.step(Event::Welcomed { epoch, keeps_tasks, tasks })
    }
}

/// In epoch 1, connected, with these slices of a stage running.
fn running(slices: u32) -> State {
    let mut state = State::default();
    assert_eq!(state.welcome(1, false), []);
    for slice in 0..slices {
        let assign = assign(&task(slice, 1));
        assert_eq!(state.step(Event::Assigned(assign.clone())), [Effect::Start(assign)]);
    }
    state
}

#[test]
fn a_task_is_started_once_until_its_end_is_answered() {
    let mut state = running(1);
    let task = task(0, 1);
    assert_eq!(state.step(Event::Assigned(assign(&task))), []);
    assert_eq!(state.report(&task, end()), [report(1, &task, end())]);
    assert_eq!(state.step(Event::Assigned(assign(&task))), []);
    assert_eq!(state.step(answer(1, Outcome::Accepted)), []);
    assert_eq!(state.task_count(), 0);
}

#[test]
fn assignments_of_another_epoch_are_not_begun() {
    let mut state = running(0);
    assert_eq!(state.step(Event::Assigned(assign(&task(0, 2)))), []);
    assert_eq!(state.task_count(), 0);
}

#[test]
fn answers_may_come_twice_and_in_any_order() {
    let mut state = running(2);
    let (first, second) = (task(0, 1), task(1, 1));
    assert_eq!(state.report(&first, Fact::Done(0)), [report(1, &first, Fact::Done(0))]);
    assert_eq!(state.report(&second, Fact::Done(0)), [report(2, &second, Fact::Done(0))]);
    let accepted = |task| [settled(task, Outcome::Accepted)];
    assert_eq!(state.step(answer(2, Outcome::Accepted)), accepted(&second));
    assert_eq!(state.step(answer(2, Outcome::Fenced)), []);
    assert_eq!(state.step(answer(1, Outcome::Accepted)), accepted(&first));
    assert_eq!(state.step(answer(1, Outcome::Accepted)), []);
    assert_eq!(state.step(answer(9, Outcome::Accepted)), []);
}

#[test]
fn what_is_not_answered_is_sent_again_in_order_on_the_next_stream() {
    let mut state = running(2);
    let (first, second) = (task(0, 1), task(1, 1));
    state.report(&first, Fact::Done(4));
    state.report(&second, Fact::Done(5));
    assert_eq!(state.step(Event::Disconnected), []);
    // Nothing is sent into the void; it waits.
    assert_eq!(state.report(&second, end()), []);
    state.step(answer(1, Outcome::Accepted));
    let again = [report(2, &second, Fact::Done(5)), report(3, &second, end())];
    assert_eq!(state.welcome(1, true), again);
    // An end that is answered takes everything about its task with it.
    assert_eq!(state.step(answer(3, Outcome::Accepted)), []);
    assert_eq!(state.welcome(1, true), []);
    assert_eq!(state.task_count(), 1);
}

#[test]
fn a_new_epoch_drops_tasks_and_what_they_had_to_say() {
    let mut state = running(2);
    let (first, second) = (task(0, 1), task(1, 1));
    state.report(&first, Fact::Done(0));
    state.report(&second, end());
    assert_eq!(state.welcome(2, true), [Effect::Abort(first.clone())]);
    assert_eq!(state.task_count(), 0);
    assert_eq!(state.step(answer(1, Outcome::Accepted)), []);
    // The work may still have had something to say.
    let late = state.report(&first, Fact::Done(1));
    assert!(matches!(&late[..], [Effect::Settle { outcome: Outcome::Fenced, .. }]), "{late:?}");
    // Numbers go on: they are the process's.
    let new = task(0, 2);
    state.step(Event::Assigned(assign(&new)));
    assert_eq!(state.report(&new, end()), [report(3, &new, end())]);
}

#[test]
fn a_leader_that_has_given_the_tasks_up_drops_them_in_the_same_epoch() {
    let mut state = running(1);
    assert_eq!(state.welcome(1, false), [Effect::Abort(task(0, 1))]);
    let mut state = running(1);
    assert_eq!(state.welcome(1, true), []);
    assert_eq!(state.task_count(), 1);
}

/// It has told that to a stream that was gone.
#[test]
fn a_task_that_was_given_up_while_nobody_was_heard_is_dropped() {
    let mut state = running(3);
    let (kept, ended) = (task(0, 1), task(2, 1));
    state.report(&ended, end());
    let welcomed = Event::Welcomed { epoch: 1, keeps_tasks: true, tasks: vec![kept.clone()] };
    assert_eq!(state.step(welcomed), [Effect::Abort(task(1, 1))]);
    assert_eq!(state.task_count(), 1);
    assert_eq!(state.report(&kept, end()), [report(2, &kept, end())]);
}

#[test]
fn refusals_reach_the_task_that_waits() {
    for outcome in [Outcome::Fenced, Outcome::Refused, Outcome::Unavailable] {
        let mut state = running(1);
        let task = task(0, 1);
        state.report(&task, Fact::Intent(Vec::new()));
        assert_eq!(state.step(answer(1, outcome)), [settled(&task, outcome)]);
        assert_eq!(state.welcome(1, true), []);
    }
}

#[test]
fn an_end_is_kept_while_the_ledger_cannot_be_written() {
    let mut state = running(1);
    let task = task(0, 1);
    state.report(&task, end());
    assert_eq!(state.step(answer(1, Outcome::Unavailable)), []);
    assert_eq!(state.step(Event::Tick), [report(1, &task, end())]);
    assert_eq!(state.step(Event::Tick), []);
    for outcome in [Outcome::Accepted, Outcome::Fenced, Outcome::Refused] {
        let mut state = running(1);
        state.report(&task, end());
        assert_eq!(state.step(answer(1, outcome)), []);
        assert_eq!(state.task_count(), 0);
    }
}

#[test]
fn a_process_that_leaves_stops_its_tasks_and_waits_for_their_ends() {
    let mut state = running(2);
    let (first, second) = (task(0, 1), task(1, 1));
    state.report(&first, end());
    assert_eq!(state.step(Event::Draining), [Effect::Stop(second.clone())]);
    assert!(!state.may_leave());
    // The leader may not know yet.
    let late = assign(&task(2, 1));
    let begun_and_stopped = [Effect::Start(late.clone()), Effect::Stop(task(2, 1))];
    assert_eq!(state.step(Event::Assigned(late)), begun_and_stopped);
    state.report(&second, end());
    state.report(&task(2, 1), end());
    for number in 1..=3 {
        assert!(!state.may_leave());
        state.step(answer(number, Outcome::Accepted));
    }
    assert!(state.may_leave());
}

#[test]
fn only_running_tasks_are_stopped() {
    let mut state = running(1);
    let task = task(0, 1);
    assert_eq!(state.step(Event::StopAsked(task.clone())), [Effect::Stop(task.clone())]);
    state.report(&task, end());
    assert_eq!(state.step(Event::StopAsked(task.clone())), []);
}

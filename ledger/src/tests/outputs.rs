use weir_plan::{ExchangeOutput, Holder, InStorage, NodeCounts, RowAccount, StageId};
use weir_spec::{CommitMode, NodeName};

use super::support::*;
use crate::*;

/// ```text
/// 0: two slices ─┐
/// 1: two slices ─┴▶ 2: two slices, durable ─▶ 3: sink
/// ```
fn cut_shapes() -> Vec<StageShape> {
    let exchange = |inputs: &[u32]| StageShape {
        name: "part".into(),
        slices: 2,
        streaming: false,
        inputs: inputs.iter().copied().map(StageId).collect(),
        nodes: vec![],
        output: StageOutputShape::Exchange,
    };
    let sink = StageOutputShape::Sink { node: NodeName::new("kept"), commit: CommitMode::Batch };
    let streaming = StageShape { streaming: true, output: sink, ..exchange(&[2]) };
    vec![exchange(&[]), exchange(&[]), exchange(&[0, 1]), streaming]
}

struct World {
    ledger: Ledger,
    index: u64,
    run: RunId,
}

impl World {
    fn new() -> Self {
        let mut world = Self { ledger: Ledger::default(), index: 0, run: run_id(1) };
        world.accept(new_epoch());
        world.accept(start_run(1, &run_id(1)));
        let Command::PlanRun(plan) = plan_run(1, &run_id(1)) else { unreachable!() };
        world.accept(Command::PlanRun(PlanRun { stages: cut_shapes(), ..plan }));
        world
    }

    fn apply(&mut self, command: &Command) -> Response {
        self.index += 1;
        apply(&mut self.ledger, self.index, command)
    }

    fn accept(&mut self, command: Command) {
        assert_eq!(self.apply(&command), Response::Accepted { changed: true }, "{command:?}");
    }

    fn finish(&self, task: &SliceAttempt, holder: Option<&str>) -> Command {
        let holder = holder.map(|executor| Holder {
            executor: executor.into(),
            boot_id: "boot".into(),
            url: String::new(),
        });
        let file_id = format!("{}-1-{}", task.slice, task.attempt);
        let output =
            ExchangeOutput { file_id, first: 0, partitions: 2, holder, in_storage: InStorage::No };
        let counts = NodeCounts { rows_in: 5, rows_out: 4, dead_lettered: 1, dropped: 0 };
        let nodes = [(NodeName::new("orders"), counts)].into();
        let account = RowAccount { rows_written: 5, nodes, ..RowAccount::default() };
        Command::FinishExchange(FinishExchange { task: task.clone(), output, account })
    }

    fn compute(&mut self, stage: u32, slice: u32, holder: Option<&str>) {
        let attempts = self.run().slice(StageId(stage), slice).unwrap().attempts;
        let attempt = task(1, &self.run, stage, slice, attempts + 1);
        self.accept(start(&attempt));
        self.accept(self.finish(&attempt, holder));
    }

    fn run(&self) -> &RunFacts {
        self.ledger.run(&self.run).unwrap()
    }

    fn lost(&self, executor: &str) -> Vec<LostOutput> {
        self.run().lost_outputs(&|holder| holder.executor == executor)
    }

    fn lose(&mut self, executor: &str) -> Response {
        let outputs = self.lost(executor);
        let lose = LoseOutputs { epoch: 1, run: self.run.clone(), outputs };
        self.apply(&Command::LoseOutputs(lose))
    }

    /// Finished slices by stage.
    fn finished(&self) -> Vec<Vec<bool>> {
        let stages = self.run().stages.iter();
        let slices =
            |stage: &StageFacts| stage.slices.iter().map(SliceFacts::is_finished).collect();
        let finished: Vec<Vec<bool>> = stages.map(slices).collect();
        for (stage, slices) in self.run().stages.iter().zip(&finished) {
            let count = slices.iter().filter(|is_finished| **is_finished).count();
            assert_eq!(stage.finished_slices as usize, count, "the count is kept");
            for node in ["orders", "valid"].map(NodeName::new) {
                let counted = stage.account().nodes.get(&node).copied().unwrap_or_default();
                assert_eq!(stage.slices.counts(&node), counted, "so are the sums");
            }
        }
        finished
    }
}

#[test]
fn only_what_a_lost_executor_had_kept_is_computed_again() {
    let mut world = World::new();
    for (stage, slice, holder) in [(0, 0, "a"), (0, 1, "b"), (1, 0, "b"), (1, 1, "a")] {
        world.compute(stage, slice, Some(holder));
    }
    assert_eq!(world.lose("c"), Response::Accepted { changed: false });
    assert_eq!(world.lose("a"), Response::Accepted { changed: true });
    let rest = [vec![false, true], vec![true, false], vec![false; 2], vec![false; 2]];
    assert_eq!(world.finished(), rest);
    assert_eq!(world.lost("a"), []);
    assert_eq!(world.run().slice(StageId(0), 0).unwrap().account, PackedAccount::default());
    world.compute(0, 0, Some("b"));
}

#[test]
fn what_has_read_of_lost_rows_reads_again_and_a_late_result_does_not_count() {
    let mut world = World::new();
    for (stage, slice) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        world.compute(stage, slice, Some(if slice == 0 { "a" } else { "b" }));
    }
    world.compute(2, 0, None);
    let late = task(1, &world.run, 2, 1, 1);
    world.accept(start(&late));
    assert_eq!(world.lose("a"), Response::Accepted { changed: true });
    let rest = [vec![false, true], vec![false, true], vec![false; 2], vec![false; 2]];
    assert_eq!(world.finished(), rest);
    let finish = world.finish(&late, None);
    assert!(matches!(world.apply(&finish), Response::Rejected(Rejection::OldAttempt { .. })));
    for (stage, slice) in [(0, 0), (1, 0), (2, 0), (2, 1)] {
        world.compute(stage, slice, Some("b").filter(|_| stage < 2));
    }
    assert_eq!(world.finished()[..3], [vec![true; 2], vec![true; 2], vec![true; 2]]);
}

#[test]
fn what_is_computed_again_finds_its_own_inputs_lost() {
    let mut world = World::new();
    for stage in 0..2 {
        for slice in 0..2 {
            world.compute(stage, slice, Some("a"));
        }
    }
    // Kept too, as if there were another part behind it.
    world.compute(2, 0, Some("a"));
    world.compute(2, 1, Some("b"));
    assert_eq!(world.lost("a").len(), 1, "nobody reads the first stages any more");
    assert_eq!(world.lose("a"), Response::Accepted { changed: true });
    assert_eq!(world.lost("a").len(), 4, "now somebody does");
    assert_eq!(world.lose("a"), Response::Accepted { changed: true });
    assert_eq!(world.lost("a"), []);
    assert_eq!(world.finished()[..3], [vec![false; 2], vec![false; 2], vec![false; 2]]);
}

#[test]
fn what_nobody_reads_any_more_may_be_lost() {
    let mut world = World::new();
    for stage in 0..3 {
        for slice in 0..2 {
            world.compute(stage, slice, Some("a").filter(|_| stage < 2));
        }
    }
    assert_eq!(world.lost("a"), []);
    // A late decision changes nothing either.
    let output = LostOutput { stage: StageId(2), slice: 0, file_id: "other".into() };
    let lose = LoseOutputs { epoch: 1, run: world.run.clone(), outputs: vec![output] };
    assert_eq!(world.apply(&Command::LoseOutputs(lose)), Response::Accepted { changed: false });
}

#[test]
fn who_keeps_rows_is_needed_until_they_have_been_read() {
    let mut world = World::new();
    let needed = |world: &World| -> Vec<String> {
        world.ledger.holders_needed().into_iter().map(|holder| holder.executor).collect()
    };
    world.compute(0, 0, Some("a"));
    world.compute(0, 1, Some("b"));
    world.compute(1, 0, Some("a"));
    world.compute(1, 1, None);
    assert_eq!(needed(&world), ["a", "b"]);
    world.compute(2, 0, None);
    assert_eq!(needed(&world), ["a", "b"], "the other half is still to be read");
    world.compute(2, 1, None);
    assert_eq!(needed(&world), Vec::<String>::new());
}

fn stored(stage: u32, slice: u32, file_id: &str) -> Command {
    let (run, stage, file_id) = (run_id(1), StageId(stage), file_id.to_owned());
    Command::OutputStored(OutputStored { epoch: 1, run, stage, slice, file_id })
}

#[test]
fn what_is_in_the_storage_is_not_lost_with_its_executor() {
    let mut world = World::new();
    for (stage, slice) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        world.compute(stage, slice, Some("a"));
    }
    world.compute(2, 0, None);
    let decided = world.lost("a");
    for slice in 0..2 {
        let other = stored(0, slice, "9-1-1");
        assert_eq!(world.apply(&other), Response::Accepted { changed: false }, "another output");
        let stored = stored(0, slice, &format!("{slice}-1-1"));
        world.accept(stored.clone());
        assert_eq!(world.apply(&stored), Response::Accepted { changed: false }, "told again");
    }
    assert_eq!(world.lost("a").len(), 2, "those of the other stage");

    // Decided before it was stored: only what is really lost is computed again, and who has read of it.
    let lose = LoseOutputs { epoch: 1, run: world.run.clone(), outputs: decided };
    assert_eq!(world.apply(&Command::LoseOutputs(lose)), Response::Accepted { changed: true });
    let rest = [vec![true; 2], vec![false; 2], vec![false; 2], vec![false; 2]];
    assert_eq!(world.finished(), rest);
    assert_eq!(world.lost("a"), []);
    for slice in 0..2 {
        world.compute(1, slice, Some("b"));
    }
    assert_eq!(world.lost("b").len(), 2);
    assert_eq!(world.lost("a"), [], "it is gone, and nothing is missing");
}

#[test]
fn a_finished_stage_that_is_in_the_storage_is_not_computed_again_with_what_it_has_read() {
    let mut world = World::new();
    for (stage, slice) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)] {
        world.compute(stage, slice, Some("a"));
    }
    assert_eq!(world.lost("a").len(), 2, "what is still read");
    world.accept(stored(2, 0, "0-1-1"));
    assert_eq!(world.lost("a").len(), 1);
    world.accept(stored(2, 1, "1-1-1"));
    assert_eq!(world.lost("a"), [], "nobody reads the rest any more");
}

#[test]
fn what_is_stored_counts_while_its_run_can_still_be_taken_up() {
    let mut world = World::new();
    world.compute(0, 0, Some("a"));
    let finish = |outcome| FinishRun { epoch: 1, run: run_id(1), outcome, at: at(9) };
    world.accept(Command::FinishRun(finish(RunOutcome::Failed { error: "no".into() })));
    world.accept(stored(0, 0, "0-1-1"));
    world.accept(Command::FinishRun(finish(RunOutcome::Abandoned)));
    assert_eq!(world.apply(&stored(0, 0, "0-1-1")), Response::Accepted { changed: false });
    let Command::OutputStored(known) = stored(0, 0, "0-1-1") else { unreachable!() };
    let unknown = OutputStored { run: run_id(7), ..known.clone() };
    assert!(matches!(world.apply(&Command::OutputStored(unknown)), Response::Rejected(_)));
    let old = OutputStored { epoch: 0, ..known };
    assert!(matches!(world.apply(&Command::OutputStored(old)), Response::Rejected(_)));
}

#[test]
fn who_keeps_rows_is_not_needed_once_the_storage_has_them() {
    let mut world = World::new();
    world.compute(0, 0, Some("a"));
    world.compute(0, 1, Some("a"));
    world.accept(stored(0, 0, "0-1-1"));
    assert_eq!(world.ledger.holders_needed().len(), 1, "it has more");
    world.accept(stored(0, 1, "1-1-1"));
    assert_eq!(world.ledger.holders_needed().len(), 0);
    let written = serde_json::to_vec(&world.ledger).expect("ledgers are JSON");
    let read: Ledger = serde_json::from_slice(&written).expect("readable");
    assert_eq!(read, world.ledger);
    assert!(!read.runs[&world.run].stages[0].slices.are_at_risk());
    assert!(read.runs[&world.run].stages[0].slices.are_held());
}

//! What clients want done: pipelines whose rows are numbers, and which of them each sink has to have at the end.

use std::collections::BTreeMap;

use rand::Rng;
use weir_spec::CommitMode;

use crate::tests::target::Kind;

/// Of a run: to resume a slice several batches are needed.
const ROWS: u64 = 40;

/// A pipeline with what is around it.
#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    pub(super) name: String,
    /// The file's text.
    pub(super) text: String,
    pub(super) sources: BTreeMap<String, SourcePlan>,
    pub(super) sinks: BTreeMap<String, SinkPlan>,
    /// Runs, one after the other.
    pub(super) runs: u64,
    /// Rows between stages are kept by executors.
    pub(super) is_kept: bool,
}

#[derive(Clone, Debug)]
pub(super) struct SourcePlan {
    /// Tells its rows from those of others.
    number: u64,
    /// Rows that each run finds that no run before it has found.
    rows: u64,
    /// Whether a run reads only what is new.
    pub(super) is_incremental: bool,
    pub(super) is_resumable: bool,
}

#[derive(Clone, Debug)]
pub(super) struct SinkPlan {
    pub(super) kind: Kind,
    pub(super) commit: CommitMode,
    sources: Vec<String>,
}

impl SourcePlan {
    /// The number of the row at a place of the table; places begin at 1.
    pub(super) fn row(&self, place: u64) -> u64 {
        self.number << 32 | place
    }

    /// Places behind `since` that the table has in run `run` (0, 1, …).
    pub(super) fn places(&self, since: u64, run: u64) -> std::ops::RangeInclusive<u64> {
        since + 1..=self.rows * (run + 1)
    }

    pub(super) fn last_cursor(&self, run: u64) -> u64 {
        self.rows * (run + 1)
    }

    pub(super) fn read_by(&self, run: u64) -> impl Iterator<Item = u64> {
        let since = if self.is_incremental { self.rows * run } else { 0 };
        self.places(since, run).map(|place| self.row(place))
    }
}

/// Where a row is in its table.
pub(super) fn place_of(row: u64) -> u64 {
    row & 0xffff_ffff
}

impl Pipeline {
    /// What a run has to write into a sink: each row as often as it is here.
    pub(super) fn rows_of(&self, sink: &str, run: u64) -> BTreeMap<u64, u32> {
        let mut rows = BTreeMap::new();
        for source in &self.sinks[sink].sources {
            for row in self.sources[source].read_by(run) {
                *rows.entry(row).or_default() += 1;
            }
        }
        rows
    }

    pub(super) fn is_fed_by(&self, sink: &str, source: &str) -> bool {
        self.sinks[sink].sources.iter().any(|known| known == source)
    }

    pub(super) fn random(number: u64, random: &mut impl Rng) -> Self {
        let mut draft = Draft::new(number);
        let (one, two) = ("a", "b");
        match random.gen_range(0..6) {
            0 => {
                draft.source(one, random.gen_bool(0.6), true, random);
                draft.sink("x", one, &[one], random);
            }
            1 => {
                // Read twice, and therefore computed once.
                draft.source(one, random.gen_bool(0.5), true, random);
                draft.sink("x", one, &[one], random);
                draft.sink("y", one, &[one], random);
            }
            2 => {
                draft.source(one, random.gen_bool(0.5), false, random);
                draft.sink("x", one, &[one], random);
            }
            3 => {
                draft.source(one, false, true, random);
                draft.source(two, false, true, random);
                draft.sink("x", one, &[one], random);
                draft.sink("y", two, &[two], random);
            }
            4 => {
                draft.source(one, false, true, random);
                draft.source(two, false, true, random);
                draft.join("c", one, two);
                draft.sink("x", "c", &[one, two], random);
            }
            _ => {
                draft.source(one, false, true, random);
                draft.source(two, false, true, random);
                draft.join("c", one, two);
                draft.count("d", "c");
                draft.sink("x", "d", &[one, two], random);
                if random.gen_bool(0.5) {
                    draft.sink("y", "c", &[one, two], random);
                }
            }
        }
        draft.finish(random)
    }
}

struct Draft {
    number: u64,
    sources: BTreeMap<String, SourcePlan>,
    sinks: BTreeMap<String, SinkPlan>,
    source_text: String,
    transform_text: String,
    sink_text: String,
}

impl Draft {
    fn new(number: u64) -> Self {
        let (sources, sinks) = (BTreeMap::new(), BTreeMap::new());
        let [source_text, transform_text, sink_text] = [const { String::new() }; 3];
        Self { number, sources, sinks, source_text, transform_text, sink_text }
    }

    /// Unique in the world.
    fn name(&self, node: &str) -> String {
        format!("{node}_{}", self.number)
    }

    fn source(
        &mut self,
        node: &str,
        is_incremental: bool,
        is_resumable: bool,
        random: &mut impl Rng,
    ) {
        let name = self.name(node);
        let incremental = if is_incremental { ", incremental: { cursor: id }" } else { "" };
        self.source_text +=
            &format!("  {name}: {{ type: sqlite, path: in.db, table: {name}{incremental} }}\n");
        let number = self.number * 10 + self.sources.len() as u64 + 1;
        let rows = random.gen_range(1..ROWS);
        self.sources.insert(name, SourcePlan { number, rows, is_incremental, is_resumable });
    }

    fn join(&mut self, node: &str, one: &str, two: &str) {
        let [name, one, two] = [node, one, two].map(|node| self.name(node));
        self.transform_text += &format!(
            "  {name}: {{ sql: \"SELECT {one}.id, {two}.amount FROM {one} JOIN {two} ON {one}.id = {two}.id\" }}\n"
        );
    }

    fn count(&mut self, node: &str, input: &str) {
        let [name, input] = [node, input].map(|node| self.name(node));
        self.transform_text += &format!(
            "  {name}: {{ sql: \"SELECT amount, count(*) AS id FROM {input} GROUP BY amount\" }}\n"
        );
    }

    fn sink(&mut self, node: &str, input: &str, sources: &[&str], random: &mut impl Rng) {
        let [name, input] = [node, input].map(|node| self.name(node));
        let (commit, text) = match random.gen_bool(0.6) {
            true => (CommitMode::Batch, "batch"),
            false => (CommitMode::Run, "run"),
        };
        self.sink_text += &format!(
            "  {name}: {{ input: {input}, type: sqlite, path: out.db, table: {name}, mode: append, \
             commit: {text} }}\n"
        );
        let kind = [Kind::Late, Kind::Early, Kind::Files][random.gen_range(0..3)];
        let sources = sources.iter().map(|source| self.name(source)).collect();
        self.sinks.insert(name, SinkPlan { kind, commit, sources });
    }

    fn finish(self, random: &mut impl Rng) -> Pipeline {
        let name = format!("pipeline-{}", self.number);
        let is_kept = random.gen_bool(0.4);
        let exchange = if is_kept { "off" } else { "sync" };
        let transforms = match self.transform_text.as_str() {
            "" => String::new(),
            text => format!("transforms:\n{text}"),
        };
        let text = format!(
            "pipeline: {name}\n\
             retry: {{ max_attempts: 100, delay: 200ms, backoff: constant }}\n\
             checkpoint: {{ every: 1s, exchange: {exchange} }}\n\
             sources:\n{}{transforms}sinks:\n{}",
            self.source_text, self.sink_text
        );
        let runs = if random.gen_bool(0.3) { 2 } else { 1 };
        Pipeline { name, text, sources: self.sources, sinks: self.sinks, runs, is_kept }
    }
}

//! What a run has to do: a random stage graph, with the rows that each slice reads.

use indexmap::IndexMap;
use weir_ledger::{NodeRole, NodeShape, RunId, StageOutputShape, StageShape};
use weir_plan::{NodeCounts, RowAccount, StageId};
use weir_spec::{CommitMode, NodeName, PipelineName};

use super::random::{Random, mix};
use crate::tests::target::Kind;

#[derive(Debug)]
pub(super) struct RunPlan {
    pub(super) id: RunId,
    pub(super) pipeline: PipelineName,
    pub(super) stages: Vec<StagePlan>,
}

#[derive(Debug)]
pub(super) struct StagePlan {
    pub(super) shape: StageShape,
    /// Of each slice of a streaming stage, what it reads; of a whole stage, what each partition of its
    /// exchange holds.
    pub(super) rows: Vec<u64>,
    /// Rejects some rows.
    validates: bool,
    /// Reads a source of its own; otherwise an exchange.
    source: Option<NodeName>,
    pub(super) target: Option<(Kind, CommitMode)>,
}

impl RunPlan {
    pub(super) fn random(number: usize, random: &mut Random) -> Self {
        let count = random.between(1, 5);
        let mut stages: Vec<StagePlan> = Vec::new();
        for id in 0..count {
            let exchanges: Vec<usize> =
                (0..stages.len()).filter(|stage| stages[*stage].target.is_none()).collect();
            let stage = match id + 1 < count && random.percent(35) {
                true => StagePlan::whole(id, &exchanges, random),
                false => StagePlan::streaming(id, &exchanges, &stages, random),
            };
            stages.push(stage);
        }
        Self {
            id: RunId(format!("run-{number}")),
            pipeline: PipelineName(format!("pipeline-{number}")),
            stages,
        }
    }
}

impl StagePlan {
    /// One slice: only streaming stages have several.
    fn whole(id: u64, exchanges: &[usize], random: &mut Random) -> Self {
        let inputs: Vec<usize> = exchanges.iter().copied().filter(|_| random.percent(40)).collect();
        let source = inputs.is_empty().then(|| NodeName::new(format!("source-{id}")));
        let rows = (0..random.between(1, 3)).map(|_| random.between(0, 6)).collect();
        Self::new(id, 1, &inputs, source, StageOutputShape::Exchange, rows, None, random)
    }

    fn streaming(id: u64, exchanges: &[usize], before: &[Self], random: &mut Random) -> Self {
        let input = random.pick(exchanges).filter(|_| random.percent(60));
        let (rows, source) = match input {
            Some(input) => (before[input].rows.clone(), None),
            None => {
                let rows = (0..random.between(0, 6)).map(|_| random.between(0, 8)).collect();
                (rows, Some(NodeName::new(format!("source-{id}"))))
            }
        };
        let commit = if random.percent(60) { CommitMode::Batch } else { CommitMode::Run };
        let kinds = [Kind::Late, Kind::Early, Kind::Files];
        let kind = random.pick(&kinds).expect("there are some");
        let output = StageOutputShape::Sink { node: NodeName::new(format!("sink-{id}")), commit };
        let slices = u32::try_from(rows.len()).expect("few");
        let inputs: Vec<usize> = input.into_iter().collect();
        Self::new(id, slices, &inputs, source, output, rows, Some((kind, commit)), random)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a stage")]
    fn new(
        id: u64,
        slices: u32,
        inputs: &[usize],
        source: Option<NodeName>,
        output: StageOutputShape,
        rows: Vec<u64>,
        target: Option<(Kind, CommitMode)>,
        random: &mut Random,
    ) -> Self {
        let validates = target.is_some() && random.percent(50);
        let mut nodes = Vec::new();
        if let Some(name) = &source {
            let role = NodeRole::Source { incremental: random.percent(60) };
            nodes.push(NodeShape { name: name.clone(), role });
        }
        if validates {
            let name = NodeName::new(format!("valid-{id}"));
            nodes.push(NodeShape { name, role: NodeRole::Validate });
        }
        if let StageOutputShape::Sink { node, .. } = &output {
            nodes.push(NodeShape { name: node.clone(), role: NodeRole::Sink });
        }
        let inputs = inputs.iter().map(|input| StageId(u32::try_from(*input).expect("few")));
        let shape = StageShape {
            name: format!("stage-{id}"),
            slices,
            streaming: target.is_some(),
            inputs: inputs.collect(),
            nodes,
            output,
        };
        Self { shape, rows, validates, source, target }
    }

    /// Whether the row reaches the sink.
    pub(super) fn accepts(&self, slice: u32, row: u64) -> bool {
        !self.validates || !(row * 7 + u64::from(slice)).is_multiple_of(4)
    }

    pub(super) fn incremental_source(&self) -> Option<&NodeName> {
        let role = NodeRole::Source { incremental: true };
        self.shape.nodes.iter().find(|node| node.role == role).map(|node| &node.name)
    }

    /// The greatest cursor of all rows.
    pub(super) fn last_cursor(&self) -> Option<u64> {
        if self.target.is_none() {
            return self.cursor(0, self.rows.iter().sum());
        }
        (0..).zip(&self.rows).filter_map(|(slice, rows)| self.cursor(slice, *rows)).max()
    }

    /// Of the row before `to`.
    fn cursor(&self, slice: u32, to: u64) -> Option<u64> {
        (to > 0).then_some(u64::from(slice) * 100 + to)
    }

    /// Of a batch of a streaming stage.
    pub(super) fn batch_account(&self, slice: u32, from: u64, to: u64) -> RowAccount {
        let read = to - from;
        let kept: Vec<u64> = (from..to).filter(|row| self.accepts(slice, *row)).collect();
        let written = u64::try_from(kept.len()).expect("few");
        let mut account = RowAccount { rows_written: written, ..RowAccount::default() };
        for row in kept {
            account.checksum = account.checksum.wrapping_add(mix(u64::from(slice) << 32 | row));
        }
        for node in &self.shape.nodes {
            let (rows_in, rows_out) = match node.role {
                NodeRole::Source { .. } => (read, read),
                NodeRole::Validate => (read, written),
                NodeRole::Sink | NodeRole::Sql | NodeRole::Deduplicate => (written, written),
            };
            let dead_lettered = rows_in - rows_out;
            let counts = NodeCounts { rows_in, rows_out, dead_lettered, dropped: 0 };
            account.nodes.insert(node.name.clone(), counts);
        }
        match &self.source {
            Some(_) => self.add_cursor(slice, to, read, &mut account),
            None => {
                account.exchanges_read = IndexMap::from([(self.shape.inputs[0], read)]);
            }
        }
        account
    }

    /// Of a finished exchange.
    pub(super) fn exchange_account(&self) -> RowAccount {
        let rows = self.rows.iter().sum();
        let mut account = RowAccount { rows_written: rows, ..RowAccount::default() };
        if let Some(source) = &self.source {
            let counts = NodeCounts { rows_in: rows, rows_out: rows, dead_lettered: 0, dropped: 0 };
            account.nodes.insert(source.clone(), counts);
            self.add_cursor(0, rows, rows, &mut account);
        }
        account
    }

    fn add_cursor(&self, slice: u32, to: u64, read: u64, account: &mut RowAccount) {
        if let Some(source) = self.incremental_source()
            && let Some(cursor) = self.cursor(slice, to).filter(|_| read > 0)
        {
            account.cursors.insert(source.clone(), cursor.to_string());
        }
    }
}

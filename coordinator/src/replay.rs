//! The pipeline of a replay: rejected rows in place of what rejected them, and only what follows.

use std::collections::BTreeSet;
use std::path::PathBuf;

use indexmap::IndexMap;
use weir_spec::{
    Compression, DeclaredColumns, InputRef, JsonFormat, JsonSource, NodeName, OnError,
    PipelineSpec, Source, TemplateText, WriteMode,
};

/// `given`: JSON lines by node. Rows given to a source take its place, with its declared columns; rows
/// given to a transform become its only input, with the columns that `inputs` names for it. Sinks that no given row can reach are left out, and so
/// is everything that only they need. `Err` says why the rows cannot be replayed.
pub fn replayed(
    spec: &PipelineSpec,
    given: &IndexMap<NodeName, PathBuf>,
    inputs: &IndexMap<NodeName, DeclaredColumns>,
) -> Result<PipelineSpec, String> {
    let mut replay = spec.clone();
    for (node, path) in given {
        if let Some(source) = spec.sources.get(node) {
            let columns = match source {
                Source::Csv(csv) => csv.columns.clone(),
                Source::Json(json) => json.columns.clone(),
                Source::Http(http) => http.columns.clone(),
                Source::Parquet(_) | Source::Database(_) | Source::Unsupported(_) => None,
            };
            replay.sources.insert(node.clone(), rows_of(path, columns));
        } else if let Some(transform) = replay.transforms.get_mut(node) {
            let rows = NodeName::new(format!("{node}_replayed"));
            transform.inputs = vec![InputRef { node: rows.clone(), errors: false }];
            replay.sources.insert(rows, rows_of(path, inputs.get(node).cloned()));
        } else {
            return Err(format!("the pipeline has no source or transform `{node}`"));
        }
    }
    let reached = |sink: &NodeName| {
        let needed = needed_by(spec, [sink]);
        given.keys().any(|node| needed.contains(node))
    };
    replay.sinks.retain(|sink, _| reached(sink));
    if replay.sinks.is_empty() {
        return Err("no sink is fed by the nodes whose rows are replayed".to_owned());
    }
    let replaced = replay.sinks.iter().find(|(_, sink)| sink.mode == WriteMode::Replace);
    if let Some((sink, _)) = replaced {
        return Err(format!(
            "sink `{sink}` replaces its whole target: a replay would leave only the replayed rows \
             there; mend the source and run the pipeline again"
        ));
    }
    let needed = needed_by(&replay, replay.sinks.keys());
    replay.transforms.retain(|node, _| needed.contains(node));
    replay.sources.retain(|node, _| needed.contains(node));
    Ok(replay)
}

/// Why rows that are raw text are not replayed: what they should have been only a person can say.
pub fn unreadable_rows(node: &NodeName) -> String {
    format!(
        "rejected rows of `{node}` are raw text that could not be read: write them as JSON lines with the \
         columns of `{node}`, and replay with --node {node} --rows FILE; or replay another node alone with \
         --node"
    )
}

fn rows_of(path: &std::path::Path, columns: Option<DeclaredColumns>) -> Source {
    Source::Json(JsonSource {
        path: TemplateText::new(path.display().to_string()),
        format: JsonFormat::Lines,
        records: None,
        compression: Compression::None,
        columns,
        hive_partitions: Some(false),
        on_error: OnError::DeadLetter,
        max_errors: None,
    })
}

/// The given sinks and everything upstream of them.
fn needed_by<'a>(
    spec: &PipelineSpec,
    sinks: impl IntoIterator<Item = &'a NodeName>,
) -> BTreeSet<NodeName> {
    let mut needed = BTreeSet::new();
    let mut open: Vec<NodeName> = sinks.into_iter().cloned().collect();
    while let Some(node) = open.pop() {
        let inputs = (spec.sinks.get(&node).map(|sink| &sink.inputs))
            .or_else(|| spec.transforms.get(&node).map(|transform| &transform.inputs));
        open.extend(inputs.into_iter().flatten().map(|input| input.node.clone()));
        needed.insert(node);
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPELINE: &str = "
pipeline: p
sources:
  a: { type: csv, path: a.csv, columns: { id: int64 } }
  b: { type: csv, path: b.csv, columns: { id: int64 } }
transforms:
  valid: { input: a, validate: [{ column: id, not_null: true }] }
  joined: { sql: SELECT valid.id FROM valid JOIN b ON b.id = valid.id }
sinks:
  one: { input: joined, type: json, path: one }
  two: { input: b, type: json, path: two }
  whole: { input: b, type: json, path: whole, mode: replace }
";

    fn given(node: &str) -> IndexMap<NodeName, PathBuf> {
        IndexMap::from([(NodeName::new(node), PathBuf::from("/rows.jsonl"))])
    }

    fn names<'a>(names: impl Iterator<Item = &'a NodeName>) -> Vec<&'a str> {
        names.map(NodeName::as_str).collect()
    }

    #[test]
    fn replay_of_a_transform_keeps_only_what_follows() {
        let spec = weir_spec::parse("p.yaml", PIPELINE).expect("the pipeline is valid").spec;
        let replay =
            replayed(&spec, &given("valid"), &IndexMap::new()).expect("it can be replayed");
        assert_eq!(names(replay.sinks.keys()), ["one"]);
        assert_eq!(names(replay.sources.keys()), ["b", "valid_replayed"]);
        assert_eq!(
            replay.transforms[&NodeName::new("valid")].inputs[0].node.as_str(),
            "valid_replayed"
        );
    }

    #[test]
    fn replay_never_replaces_a_target() {
        let spec = weir_spec::parse("p.yaml", PIPELINE).expect("the pipeline is valid").spec;
        let error =
            replayed(&spec, &given("b"), &IndexMap::new()).expect_err("`whole` would be replaced");
        assert!(error.contains("whole"), "{error}");
        assert!(replayed(&spec, &given("nothing"), &IndexMap::new()).is_err());
    }
}

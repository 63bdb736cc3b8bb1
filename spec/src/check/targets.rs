//! Sinks that would take each other's rows away: two that write one target, and at least one replaces
//! it.

use crate::diagnostic::Report;
use crate::syntax::Node;
use crate::{NodeName, PipelineSpec, Sink, SinkTarget, WriteMode};

pub(crate) fn check(root: &Node, spec: &PipelineSpec, report: &mut Report<'_>) {
    let sinks: Vec<(&NodeName, &Sink)> = spec.sinks.iter().collect();
    for (index, (name, sink)) in sinks.iter().enumerate() {
        let other = sinks[..index].iter().find(|(_, other)| takes_away(sink, other));
        let Some((other, _)) = other else { continue };
        let entry = (root.as_map())
            .and_then(|root| root.get("sinks"))
            .and_then(Node::as_map)
            .and_then(|sinks| sinks.entries.iter().find(|entry| entry.key == name.as_str()));
        let Some(entry) = entry else { continue };
        report.error_help(
            "shared-target",
            entry.key_span,
            format!(
                "sinks `{other}` and `{name}` write the same target, and `mode: replace` would take the \
                 other's rows away"
            ),
            "give each a target of its own, or feed one sink with `inputs` of both",
        );
    }
}

fn takes_away(one: &Sink, other: &Sink) -> bool {
    let replaces = |sink: &Sink| sink.mode == WriteMode::Replace;
    match (&one.target, &other.target) {
        (SinkTarget::Files(a), SinkTarget::Files(b)) => {
            let (a, b) = (parts(a.path.as_str()), parts(b.path.as_str()));
            (replaces(one) && b.starts_with(&a)) || (replaces(other) && a.starts_with(&b))
        }
        (SinkTarget::Table(a), SinkTarget::Table(b)) => {
            (replaces(one) || replaces(other))
                && a.table == b.table
                && a.connection.config == b.connection.config
        }
        _ => false,
    }
}

/// The folders of a path, as far as its text tells.
fn parts(path: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let path = path.strip_prefix("file://").unwrap_or(path);
    if path.starts_with('/') {
        parts.push("/");
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| !["..", "/"].contains(last)) => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_compared_by_the_folders_that_they_mean() {
        assert_eq!(parts("./a//b/../c/"), ["a", "c"]);
        assert_eq!(parts("file:///a/b"), ["/", "a", "b"]);
        assert_eq!(parts("../../a"), ["..", "..", "a"]);
    }
}

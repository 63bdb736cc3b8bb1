//! What only the whole file can tell: references, cycles, columns, targets. And templates, which the walk
//! over single values calls.

mod columns;
mod references;
mod targets;
pub(crate) mod templates;

use crate::PipelineSpec;
use crate::diagnostic::Report;
use crate::shape::check::Names;
use crate::syntax::Node;

/// Checks across the nodes of the file. `spec` is there when everything could be decoded; columns
/// are checked only then, and only when no reference is broken.
pub(crate) fn check_file(
    root: &Node,
    _names: &Names,
    spec: Option<&PipelineSpec>,
    report: &mut Report<'_>,
) {
    let references_hold = references::check(root, report);
    if let Some(spec) = spec
        && references_hold
    {
        columns::check(root, spec, report);
        targets::check(root, spec, report);
    }
}

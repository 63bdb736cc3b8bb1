//! Templates of one text: syntax, roots, and whether they may stand where they stand.

use std::collections::BTreeSet;

use crate::diagnostic::{Report, did_you_mean, listed, nearest};
use crate::shape::Place;
use crate::shape::check::Names;
use crate::sql::misplaced_expressions;
use crate::syntax::{Node, Span};
use crate::template::{
    CONNECT_ROOTS, PLAN_ROOTS, Piece, TemplateError, environment, misplaced_reason, pieces,
    plain_connect_reference,
};

/// Reports every mistake in the templates of `text`, the value of `node`.
pub(crate) fn check(node: &Node, text: &str, place: Place, names: &Names, report: &mut Report<'_>) {
    let found = match pieces(text) {
        Ok(found) => found,
        Err(TemplateError::Syntax { offset, reason }) => {
            let span = report.source.inside(node, offset, 2);
            report.error_help(
                "bad-template",
                span,
                format!("the template is broken: {reason}"),
                "write `{{ params.name }}`",
            );
            return;
        }
        Err(other) => return report.error("bad-template", node.span, other.to_string()),
    };
    let misplaced = if place == Place::Sql { misplaced_expressions(text) } else { Vec::new() };
    let mut number = 0;
    for piece in found {
        let Piece::Expression { inner, written, offset } = piece else { continue };
        let span = report.source.inside(node, offset, written.chars().count());
        Expression { inner, span, place, names }.check(report);
        if let Some((_, reason)) = misplaced.iter().find(|(index, _)| *index == number) {
            report.error_help(
                "template-in-quotes",
                span,
                format!("`{written}` cannot become a value here: {}", misplaced_reason(*reason)),
                "in SQL a template is replaced by a typed, quoted literal",
            );
        }
        number += 1;
    }
}

struct Expression<'e> {
    inner: &'e str,
    span: Span,
    place: Place,
    names: &'e Names,
}

impl Expression<'_> {
    fn check(&self, report: &mut Report<'_>) {
        let Self { inner, span, .. } = *self;
        let environment = environment();
        let used: BTreeSet<String> = match environment.compile_expression(inner) {
            Ok(expression) => expression.undeclared_variables(true).into_iter().collect(),
            Err(error) => {
                let reason = error.detail().unwrap_or("bad syntax");
                let reason =
                    if inner.is_empty() { "it is empty".to_owned() } else { reason.to_owned() };
                return report.error_help(
                    "bad-template",
                    span,
                    format!("`{{{{ {inner} }}}}` is no expression: {reason}"),
                    "write for example `{{ params.name }}`",
                );
            }
        };
        let root_of = |name: &str| name.split(['.', '[']).next().unwrap_or_default().to_owned();
        let roots: BTreeSet<String> = used.iter().map(|name| root_of(name)).collect();
        let uses = |known: &[&str]| roots.iter().any(|root| known.contains(&root.as_str()));
        for root in &roots {
            self.known_root(root, report);
        }
        if uses(&CONNECT_ROOTS) {
            self.connect_time(uses(&PLAN_ROOTS), report);
        }
        for name in &used {
            self.known_name(name, report);
        }
    }

    fn known_root(&self, root: &str, report: &mut Report<'_>) {
        let known = PLAN_ROOTS.iter().chain(&CONNECT_ROOTS).copied();
        if known.clone().any(|name| name == root) {
            return;
        }
        let is_param =
            self.names.params.as_ref().is_some_and(|params| params.iter().any(|p| p == root));
        let help = match nearest(root, known) {
            _ if is_param => format!("write `params.{root}`"),
            _ if root == "secrets" => String::from("write `secret.NAME`"),
            Some(name) => format!("did you mean `{name}`?"),
            None => {
                format!("templates know {}", listed(PLAN_ROOTS.into_iter().chain(CONNECT_ROOTS)))
            }
        };
        report.error_help(
            "unknown-template-root",
            self.span,
            format!("`{root}` is not known in templates"),
            help,
        );
    }

    fn connect_time(&self, mixed: bool, report: &mut Report<'_>) {
        let Self { inner, span, .. } = *self;
        if self.place != Place::Connection {
            report.error_help(
                "secret-not-allowed",
                span,
                format!("`{{{{ {inner} }}}}` may not be used here"),
                "`env` and `secret` are known only inside connections (url, path, base_url, auth, \
                 headers) and headers of http nodes; use a parameter",
            );
        } else if mixed {
            report.error_help(
                "mixed-template",
                span,
                format!("`{{{{ {inner} }}}}` mixes values known at different times"),
                "use one expression for `env` or `secret` and another for the rest",
            );
        } else if plain_connect_reference(inner).is_none() {
            report.error_help(
                "bad-template",
                span,
                format!("`{{{{ {inner} }}}}` is more than a name"),
                "write `{{ env.NAME }}` or `{{ secret.NAME }}` alone, without filters",
            );
        }
    }

    fn known_name(&self, name: &str, report: &mut Report<'_>) {
        let mut parts = name.split('.');
        match (parts.next(), parts.next()) {
            (Some("params"), Some(param)) => {
                let Some(params) = &self.names.params else { return };
                if params.iter().any(|known| known == param) {
                    return;
                }
                let help = did_you_mean(param, params.iter().map(String::as_str))
                    .unwrap_or_else(|| format!("add `{param}` under `params`"));
                report.error_help(
                    "unknown-param",
                    self.span,
                    format!("there is no parameter `{param}`"),
                    help,
                );
            }
            (Some("window"), Some(edge)) if !matches!(edge, "start" | "end") => {
                report.error_help(
                    "unknown-template-name",
                    self.span,
                    format!("a window has no `{edge}`"),
                    "write `window.start` or `window.end`",
                );
            }
            (Some(root), None) if PLAN_ROOTS.contains(&root) || CONNECT_ROOTS.contains(&root) => {
                report.error_help(
                    "unknown-template-name",
                    self.span,
                    format!("`{root}` alone is no value"),
                    format!("write `{root}.NAME`"),
                );
            }
            _ => {}
        }
    }
}

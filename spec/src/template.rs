//! `{{ … }}`: who may use it where, and how it is rendered.
//!
//! Two phases. When a run is planned, `params`, `run`, `window` and `state` are rendered by
//! [`render_plan_time`] (or [`render_sql`], as typed, quoted literals); `env` and `secret`
//! expressions are left as they are. When a connector opens its connection, on the machine that
//! opens it, [`render_connect_time`] renders those. One expression may not use both.
//!
//! A value is never read as a template again, in either phase.

use chrono::{DateTime, Utc};
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, UndefinedBehavior};

use crate::TemplateText;
use crate::sql::{Misplaced, misplaced_expressions};

/// Why a template could not be rendered. Never holds a value, only names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("`{{{{ {expression} }}}}` cannot be rendered: {reason}")]
    Render { expression: String, reason: String },
    #[error("{root}.{name} is not set: {remedy}")]
    Missing { root: String, name: String, remedy: String },
    /// Not a template at all.
    #[error("the template is broken at character {}: {reason}", offset + 1)]
    Syntax { offset: usize, reason: String },
}

/// Which SQL a rendered text is for; they differ in how a time is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SqlDialect {
    /// Transforms (DataFusion) and PostgreSQL: `TIMESTAMP '2024-01-01 00:00:00'`.
    #[default]
    Standard,
    /// SQLite has no timestamps: `'2024-01-01 00:00:00'`.
    Sqlite,
}

pub(crate) const PLAN_ROOTS: [&str; 4] = ["params", "run", "window", "state"];
pub(crate) const CONNECT_ROOTS: [&str; 2] = ["env", "secret"];

/// One evaluation may do so many steps of the expression machine.
const FUEL: u64 = 10_000;

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Piece<'t> {
    Text(&'t str),
    Expression {
        /// Without braces, trimmed.
        inner: &'t str,
        /// With braces.
        written: &'t str,
        /// Of the braces, in characters.
        offset: usize,
    },
}

/// Splits a text into literal text and expressions.
pub(crate) fn pieces(text: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut offset = 0;
    while let Some(start) = next_opening(rest) {
        let (before, opened) = rest.split_at(start);
        offset += before.chars().count();
        if !before.is_empty() {
            found.push(Piece::Text(before));
        }
        if !opened.starts_with("{{") {
            return Err(TemplateError::Syntax {
                offset,
                reason: format!(
                    "`{}` is not part of the language; only `{{{{ … }}}}` is",
                    &opened[..2]
                ),
            });
        }
        let Some(length) = expression_length(opened) else {
            return Err(TemplateError::Syntax {
                offset,
                reason: String::from("`{{` has no closing `}}`"),
            });
        };
        let written = &opened[..length];
        let inner = written[2..length - 2].trim();
        found.push(Piece::Expression { inner, written, offset });
        offset += written.chars().count();
        rest = &opened[length..];
    }
    if !rest.is_empty() {
        found.push(Piece::Text(rest));
    }
    Ok(found)
}

fn next_opening(text: &str) -> Option<usize> {
    ["{{", "{%", "{#"].iter().filter_map(|opening| text.find(opening)).min()
}

/// Bytes from `{{` to behind `}}`, skipping quoted strings and nested braces of the expression.
fn expression_length(opened: &str) -> Option<usize> {
    let bytes = opened.as_bytes();
    let (mut index, mut depth) = (2, 0usize);
    let mut quote: Option<u8> = None;
    while index < bytes.len() {
        match (quote, bytes[index]) {
            (Some(_), b'\\') => index += 1,
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, byte @ (b'\'' | b'"')) => quote = Some(byte),
            (None, b'{') => depth += 1,
            (None, b'}') if depth > 0 => depth -= 1,
            (None, b'}') if bytes.get(index + 1) == Some(&b'}') => return Some(index + 2),
            (None, _) => {}
        }
        index += 1;
    }
    None
}

pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment
}

/// `(root, name)` of a plain `env.NAME` or `secret.NAME`.
pub(crate) fn plain_connect_reference(inner: &str) -> Option<(&str, &str)> {
    let (root, name) = inner.split_once('.')?;
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (CONNECT_ROOTS.contains(&root) && is_name).then_some((root, name))
}

/// Renders `params`, `run`, `window` and `state` from `scope`; leaves `env` and `secret` as written.
///
/// A value that would read as a template in the connect phase is refused.
pub fn render_plan_time(
    text: &TemplateText,
    scope: &serde_json::Map<String, serde_json::Value>,
) -> Result<TemplateText, TemplateError> {
    let environment = environment();
    let mut rendered = String::new();
    let pieces = pieces(text.as_str())?;
    for (index, piece) in pieces.iter().enumerate() {
        match *piece {
            Piece::Text(text) => rendered.push_str(text),
            Piece::Expression { inner, written, .. } => {
                if plain_connect_reference(inner).is_some() {
                    rendered.push_str(written);
                    continue;
                }
                let value = evaluate(&environment, inner, scope)?;
                let value = as_text(inner, &value)?;
                // Neither the value nor the value with its neighbours may open a template.
                let after = match pieces.get(index + 1) {
                    Some(Piece::Text(text)) => text.chars().next(),
                    Some(Piece::Expression { .. }) => Some('{'),
                    None => None,
                };
                let joined: String =
                    rendered.chars().last().into_iter().chain(value.chars()).chain(after).collect();
                if joined.contains("{{") {
                    return Err(render_error(inner, "its value holds or completes a `{{`"));
                }
                rendered.push_str(&value);
            }
        }
    }
    Ok(TemplateText(rendered))
}

/// Renders each expression as one SQL literal: `'It''s'`, `42`, `TRUE`, `NULL`, `(1, 2)`, and for
/// a time of `window` or `run` `TIMESTAMP '…'` in UTC. The result holds no templates.
///
/// Fails when an expression stands inside quotes or a comment, where a literal could break out.
pub fn render_sql(
    text: &TemplateText,
    scope: &serde_json::Map<String, serde_json::Value>,
) -> Result<String, TemplateError> {
    render_sql_for(text, scope, SqlDialect::Standard)
}

/// [`render_sql`] for a database's own SQL.
pub fn render_sql_for(
    text: &TemplateText,
    scope: &serde_json::Map<String, serde_json::Value>,
    dialect: SqlDialect,
) -> Result<String, TemplateError> {
    let pieces = pieces(text.as_str())?;
    let expressions: Vec<&str> = pieces
        .iter()
        .filter_map(|piece| match piece {
            Piece::Expression { inner, .. } => Some(*inner),
            Piece::Text(_) => None,
        })
        .collect();
    if let Some((number, misplaced)) = misplaced_expressions(text.as_str()).first() {
        let inner = expressions.get(*number).copied().unwrap_or_default();
        return Err(render_error(inner, misplaced_reason(*misplaced)));
    }
    let environment = environment();
    let mut rendered = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => rendered.push_str(text),
            Piece::Expression { inner, .. } => {
                let value = evaluate(&environment, inner, scope)?;
                let json = serde_json::to_value(&value)
                    .map_err(|_| render_error(inner, "its value is no plain value"))?;
                let is_time = inner.starts_with("window.") || inner.starts_with("run.");
                rendered.push_str(&sql_literal(inner, &json, is_time, dialect)?);
            }
        }
    }
    Ok(rendered)
}

pub(crate) fn misplaced_reason(misplaced: Misplaced) -> &'static str {
    match misplaced {
        Misplaced::InString => "it stands inside quotes; remove them: values are quoted by Weir",
        Misplaced::InIdentifier => "it stands inside a quoted name; names cannot be templates",
        Misplaced::InComment => "it stands inside a comment; remove it",
        Misplaced::Glued => "it touches a name, quote or other template; put spaces around it",
    }
}

fn render_error(expression: &str, reason: impl Into<String>) -> TemplateError {
    TemplateError::Render { expression: expression.to_owned(), reason: reason.into() }
}

fn evaluate(
    environment: &Environment<'_>,
    inner: &str,
    scope: &serde_json::Map<String, serde_json::Value>,
) -> Result<Value, TemplateError> {
    let failed = |error: minijinja::Error| {
        // The kind only: a detail may quote a value.
        let kind = error.kind();
        render_error(
            inner,
            match kind {
                minijinja::ErrorKind::SyntaxError => {
                    error.detail().unwrap_or("bad syntax").to_owned()
                }
                _ => kind.to_string(),
            },
        )
    };
    let expression = environment.compile_expression(inner).map_err(failed)?;
    let value = expression.eval(Value::from(minijinja::value::Serde(scope))).map_err(failed)?;
    if value.is_undefined() {
        return Err(render_error(inner, "it is not defined"));
    }
    Ok(value)
}

fn as_text(inner: &str, value: &Value) -> Result<String, TemplateError> {
    match value.kind() {
        ValueKind::String | ValueKind::Number | ValueKind::Bool => Ok(value.to_string()),
        ValueKind::None => Err(render_error(inner, "its value is null")),
        kind => Err(render_error(inner, format!("a value of kind {kind} is no text"))),
    }
}

fn sql_literal(
    inner: &str,
    value: &serde_json::Value,
    is_time: bool,
    dialect: SqlDialect,
) -> Result<String, TemplateError> {
    Ok(match value {
        serde_json::Value::Null => String::from("NULL"),
        serde_json::Value::Bool(true) => String::from("TRUE"),
        serde_json::Value::Bool(false) => String::from("FALSE"),
        // In parentheses, so that `-{{ x }}` is no comment.
        serde_json::Value::Number(number) if number.to_string().starts_with('-') => {
            format!("({number})")
        }
        serde_json::Value::Number(number) => number.to_string(),
        serde_json::Value::String(text) => {
            match DateTime::parse_from_rfc3339(text).ok().filter(|_| is_time) {
                Some(time) => {
                    let time = time.with_timezone(&Utc).format("%Y-%m-%d %H:%M:%S%.f");
                    match dialect {
                        SqlDialect::Standard => format!("TIMESTAMP '{time}'"),
                        SqlDialect::Sqlite => format!("'{time}'"),
                    }
                }
                None => quoted(inner, text)?,
            }
        }
        serde_json::Value::Array(items) if items.is_empty() => {
            return Err(render_error(inner, "an empty list has no SQL literal"));
        }
        serde_json::Value::Array(items) => {
            let items: Vec<String> = items
                .iter()
                .map(|item| match item {
                    serde_json::Value::Array(_) => {
                        Err(render_error(inner, "a list inside a list has no SQL literal"))
                    }
                    item => sql_literal(inner, item, is_time, dialect),
                })
                .collect::<Result<_, _>>()?;
            format!("({})", items.join(", "))
        }
        serde_json::Value::Object(_) => {
            return Err(render_error(
                inner,
                "a mapping has no SQL literal; name one of its values",
            ));
        }
    })
}

fn quoted(inner: &str, text: &str) -> Result<String, TemplateError> {
    if text.contains('\0') {
        return Err(render_error(inner, "its value holds a NUL character"));
    }
    Ok(format!("'{}'", text.replace('\'', "''")))
}

/// Renders `env.NAME` and `secret.NAME` with `lookup(root, name)`.
pub fn render_connect_time(
    text: &TemplateText,
    lookup: &dyn Fn(&str, &str) -> Option<String>,
) -> Result<String, TemplateError> {
    let mut rendered = String::new();
    for piece in pieces(text.as_str())? {
        let expression = match piece {
            Piece::Text(text) => {
                rendered.push_str(text);
                continue;
            }
            Piece::Expression { inner, .. } => inner,
        };
        let Some((root, name)) = plain_connect_reference(expression) else {
            return Err(render_error(
                expression,
                "only `env.NAME` and `secret.NAME` are known where a connection is opened",
            ));
        };
        let Some(value) = lookup(root, name) else {
            return Err(TemplateError::Missing {
                root: root.to_owned(),
                name: name.to_owned(),
                remedy: match root {
                    "secret" => format!("set the environment variable WEIR_SECRET_{name}"),
                    _ => format!("set the environment variable {name}"),
                },
            });
        };
        rendered.push_str(&value);
    }
    Ok(rendered)
}

//! `{{ … }}`: who may use it where, and how it is rendered.
//!
//! Two phases. When a run is planned, `params`, `run`, `window` and `state` are rendered by
//! [`render_plan_time`] (or [`render_sql`], as typed, quoted literals); `env` and `secret`
//! expressions are left as they are. When a connector opens its connection, on the machine that
//! opens it, [`render_connect_time`] renders those. One expression may not use both.

use crate::TemplateText;

/// Why a template could not be rendered. Never holds a value, only names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("`{{{{ {expression} }}}}` cannot be rendered: {reason}")]
    Render { expression: String, reason: String },
    #[error("{root}.{name} is not set: {remedy}")]
    Missing { root: String, name: String, remedy: String },
}

/// Renders `env.NAME` and `secret.NAME` with `lookup(root, name)`.
pub fn render_connect_time(
    text: &TemplateText,
    lookup: &dyn Fn(&str, &str) -> Option<String>,
) -> Result<String, TemplateError> {
    let mut rendered = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find("{{") {
        let Some(length) = rest[start..].find("}}") else { break };
        rendered.push_str(&rest[..start]);
        let expression = rest[start + 2..start + length].trim();
        let value = expression.split_once('.').and_then(|(root, name)| lookup(root, name));
        let Some(value) = value else {
            let (root, name) = expression.split_once('.').unwrap_or(("", expression));
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
        rest = &rest[start + length + 2..];
    }
    rendered.push_str(rest);
    Ok(rendered)
}

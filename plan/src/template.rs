//! Templates inside SQL: values of the plan's scope as typed, quoted literals.

use serde_json::Value;
use weir_spec::{NodeName, TemplateText};

use crate::{PlanError, PlanScope};

/// Renders `{{ params.x }}`, `{{ run.x }}`, `{{ window.x }}` and `{{ state.x }}` as SQL literals.
pub(crate) fn render_sql(
    node: &NodeName,
    text: &TemplateText,
    scope: &PlanScope,
) -> Result<String, PlanError> {
    let mut rendered = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find("{{") {
        rendered.push_str(&rest[..start]);
        let Some(length) = rest[start..].find("}}") else {
            return Err(PlanError::node(node, "`{{` has no closing `}}`"));
        };
        let expression = rest[start + 2..start + length].trim();
        rendered.push_str(&literal(lookup(node, expression, scope)?));
        rest = &rest[start + length + 2..];
    }
    rendered.push_str(rest);
    Ok(rendered)
}

fn lookup<'scope>(
    node: &NodeName,
    expression: &str,
    scope: &'scope PlanScope,
) -> Result<&'scope Value, PlanError> {
    let (root, name) = expression.split_once('.').unwrap_or((expression, ""));
    let values = match root {
        "params" => &scope.params,
        "run" => &scope.run,
        "window" => &scope.window,
        "state" => &scope.state,
        "env" | "secret" => {
            return Err(PlanError::node(
                node,
                format!("`{{{{ {expression} }}}}`: `{root}` is only known to connections"),
            ));
        }
        _ => {
            return Err(PlanError::node(
                node,
                format!(
                    "`{{{{ {expression} }}}}` is not a value that SQL knows; write params.NAME, \
                     run.NAME, window.start, window.end or state.SOURCE"
                ),
            ));
        }
    };
    values.get(name).ok_or_else(|| {
        let known = crate::names::did_you_mean(name, values.keys().map(String::as_str));
        PlanError::node(node, format!("`{{{{ {expression} }}}}` is not set{known}"))
    })
}

fn literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(value) => format!("'{}'", value.replace('\'', "''")),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(literal).collect::<Vec<_>>().join(", "))
        }
        Value::Object(_) => literal(&Value::String(value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_quoted_literals_and_never_text() {
        let mut scope = PlanScope::default();
        scope.params.insert("country".into(), Value::String("x' OR '1'='1".into()));
        scope.params.insert("least".into(), Value::from(3));
        let text = TemplateText::new("a = {{ params.country }} AND b > {{params.least}}");
        assert_eq!(
            render_sql(&NodeName::new("n"), &text, &scope),
            Ok("a = 'x'' OR ''1''=''1' AND b > 3".to_owned())
        );
    }

    #[test]
    fn unknown_and_secret_values_are_refused() {
        let scope = PlanScope::default();
        for text in ["{{ params.x }}", "{{ secret.X }}", "{{ x }}", "{{ params.x"] {
            assert!(render_sql(&NodeName::new("n"), &TemplateText::new(text), &scope).is_err());
        }
    }
}

//! Fills in what is known when a run is planned: `params`, `run`, `window` and `state`. `env` and
//! `secret` stay as they are written until a connector opens its connection.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weir_plan::PlanScope;
use weir_spec::PipelineSpec;

/// The pipeline with the plan-time templates of its sources and sinks rendered. SQL is rendered by
/// the planner, as quoted literals. Errors name the node.
pub(crate) fn render_nodes(spec: &PipelineSpec, scope: &PlanScope) -> Result<PipelineSpec, String> {
    let mut rendered = spec.clone();
    for (name, source) in &mut rendered.sources {
        *source = render(source, scope).map_err(|reason| format!("source `{name}`: {reason}"))?;
    }
    for (name, sink) in &mut rendered.sinks {
        *sink = render(sink, scope).map_err(|reason| format!("sink `{name}`: {reason}"))?;
    }
    Ok(rendered)
}

/// Renders every text inside a node.
fn render<T: Serialize + DeserializeOwned>(node: &T, scope: &PlanScope) -> Result<T, String> {
    let mut value = serde_json::to_value(node).map_err(|error| error.to_string())?;
    render_value(&mut value, scope)?;
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn render_value(value: &mut Value, scope: &PlanScope) -> Result<(), String> {
    match value {
        Value::String(text) if text.contains("{{") => *text = render_text(text, scope)?,
        Value::Array(items) => {
            for item in items {
                render_value(item, scope)?;
            }
        }
        Value::Object(fields) => {
            for (_, field) in fields.iter_mut() {
                render_value(field, scope)?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    Ok(())
}

fn render_text(text: &str, scope: &PlanScope) -> Result<String, String> {
    let mut rendered = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        let Some(length) = rest[start..].find("}}") else { break };
        let end = start + length + 2;
        rendered.push_str(&rest[..start]);
        let expression = rest[start + 2..start + length].trim();
        match lookup(expression, scope)? {
            Some(Value::String(text)) => rendered.push_str(text),
            Some(value) => rendered.push_str(&value.to_string()),
            None => rendered.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    rendered.push_str(rest);
    Ok(rendered)
}

/// `None`: known only when a connection is opened.
fn lookup<'scope>(
    expression: &str,
    scope: &'scope PlanScope,
) -> Result<Option<&'scope Value>, String> {
    let (root, name) = expression.split_once('.').unwrap_or((expression, ""));
    let values = match root {
        "params" => &scope.params,
        "run" => &scope.run,
        "window" => &scope.window,
        "state" => &scope.state,
        _ => return Ok(None),
    };
    match (values.get(name), root) {
        (Some(value), _) => Ok(Some(value)),
        (None, "window") => Err(format!(
            "`{{{{ {expression} }}}}` needs a window: give the run one with --from and --to"
        )),
        (None, _) => Err(format!("`{{{{ {expression} }}}}` is not set")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_time_values_are_filled_in_and_secrets_left_alone() {
        let mut scope = PlanScope::default();
        scope.params.insert("country".into(), Value::from("DE"));
        scope.params.insert("page".into(), Value::from(5));
        let text = "/{{ params.country }}/{{params.page}}?key={{ secret.KEY }}&x={{ env.X }}";
        assert_eq!(
            render_text(text, &scope),
            Ok("/DE/5?key={{ secret.KEY }}&x={{ env.X }}".to_owned())
        );
        assert!(render_text("{{ params.city }}", &scope).is_err());
        assert!(render_text("{{ window.start }}", &scope).expect_err("none").contains("--from"));
    }
}

//! Fills in what is known when a run is planned: `params`, `run`, `window` and `state`. `env` and
//! `secret` stay as they are written until a connector opens its connection.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use weir_plan::{PlanScope, template_values};
use weir_spec::template::{SqlDialect, render_plan_time, render_sql_for};
use weir_spec::{Connection, PipelineSpec, Source, TemplateText};

/// The pipeline with the plan-time templates of its sources and sinks rendered: text as text, a
/// database's query as SQL with typed, quoted literals. The SQL of transforms is rendered by the
/// planner. Errors name the node.
pub(crate) fn render_nodes(spec: &PipelineSpec, scope: &PlanScope) -> Result<PipelineSpec, String> {
    let values = template_values(scope);
    let mut rendered = spec.clone();
    for (name, source) in &mut rendered.sources {
        let in_source = |reason: String| format!("source `{name}`: {reason}");
        // Taken out, so that its values are not rendered as plain text.
        let query = match source {
            Source::Database(database) => {
                let dialect = match &database.connection.config {
                    Connection::Sqlite(_) => SqlDialect::Sqlite,
                    _ => SqlDialect::Standard,
                };
                database.query.take().map(|query| (query, dialect))
            }
            _ => None,
        };
        *source = render(source, &values).map_err(in_source)?;
        if let (Source::Database(database), Some((query, dialect))) = (source, query) {
            let query = render_sql_for(&query, &values, dialect)
                .map_err(|error| in_source(explained(&values, &query, error.to_string())))?;
            // The connector looks for `env` and `secret` in it, which are refused inside SQL.
            if query.contains("{{") {
                return Err(in_source("a value in the query holds `{{`".to_owned()));
            }
            database.query = Some(TemplateText::new(query));
        }
    }
    for (name, sink) in &mut rendered.sinks {
        *sink = render(sink, &values).map_err(|reason| format!("sink `{name}`: {reason}"))?;
    }
    Ok(rendered)
}

/// Renders every text inside a node.
fn render<T: Serialize + DeserializeOwned>(
    node: &T,
    values: &Map<String, Value>,
) -> Result<T, String> {
    let mut value = serde_json::to_value(node).map_err(|error| error.to_string())?;
    render_value(&mut value, values)?;
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn render_value(value: &mut Value, values: &Map<String, Value>) -> Result<(), String> {
    match value {
        Value::String(text) if text.contains("{{") => {
            let template = TemplateText::new(text.clone());
            *text = render_plan_time(&template, values)
                .map_err(|error| explained(values, &template, error.to_string()))?
                .0;
        }
        Value::Array(items) => {
            for item in items {
                render_value(item, values)?;
            }
        }
        Value::Object(fields) => {
            for (_, field) in fields.iter_mut() {
                render_value(field, values)?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    Ok(())
}

/// Says how to give a run its window where that is what is missing.
fn explained(values: &Map<String, Value>, template: &TemplateText, error: String) -> String {
    let has_window = values["window"].as_object().is_some_and(|window| !window.is_empty());
    if template.as_str().contains("window.") && !has_window {
        format!("{error}; give the run a window with --from and --to")
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(query: &str, scope: &PlanScope) -> Result<String, String> {
        let text = format!(
            "pipeline: p\nparams: {{ name: {{ type: string, default: x }}, n: {{ type: int64, default: 1 }} }}\n\
             sources:\n  s: {{ type: sqlite, path: a.db, query: \"{query}\" }}\n\
             sinks:\n  out: {{ input: s, type: json, path: \"out/{{{{ params.name }}}}\" }}\n"
        );
        let spec = weir_spec::parse("p.yaml", &text).expect("the pipeline is valid").spec;
        let spec = render_nodes(&spec, scope)?;
        let Some((_, Source::Database(database))) = spec.sources.first() else {
            panic!("the source is a database")
        };
        Ok(database.query.clone().expect("it has a query").0)
    }

    #[test]
    fn values_in_a_query_are_quoted_literals() {
        let mut scope = PlanScope::default();
        scope.params.insert("name".into(), Value::from("x' OR '1'='1"));
        scope.params.insert("n".into(), Value::from(5));
        assert_eq!(
            rendered("SELECT * FROM t WHERE a = {{ params.name }} AND b = {{ params.n }}", &scope),
            Ok("SELECT * FROM t WHERE a = 'x'' OR ''1''=''1' AND b = 5".to_owned())
        );
    }

    #[test]
    fn values_that_read_as_templates_are_refused() {
        let mut scope = PlanScope::default();
        scope.params.insert("name".into(), Value::from("{{ secret.KEY }}"));
        scope.params.insert("n".into(), Value::from(5));
        assert!(rendered("SELECT 1", &scope).is_err(), "as text");
        scope.params.insert("name".into(), Value::from("x"));
        assert_eq!(rendered("SELECT 1", &scope), Ok("SELECT 1".to_owned()));
    }

    #[test]
    fn missing_window_is_explained() {
        let mut scope = PlanScope::default();
        scope.params.insert("name".into(), Value::from("x"));
        let error = rendered("SELECT * FROM t WHERE at >= {{ window.start }}", &scope)
            .expect_err("there is no window");
        assert!(error.contains("--from"), "{error}");
    }
}

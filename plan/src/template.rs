//! Templates inside SQL: values of the plan's scope as typed, quoted literals.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use weir_spec::{NodeName, TemplateText};

use crate::{PlanError, PlanScope};

/// Renders `params`, `run`, `window` and `state`; a failure names the node.
pub(crate) fn render_sql(
    node: &NodeName,
    text: &TemplateText,
    scope: &PlanScope,
) -> Result<String, PlanError> {
    weir_spec::template::render_sql(text, &template_values(scope))
        .map_err(|error| PlanError::node(node, error.to_string()))
}

/// The scope as templates see it.
pub fn template_values(scope: &PlanScope) -> Map<String, Value> {
    let object = |values: &BTreeMap<String, Value>| {
        Value::Object(values.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    };
    Map::from_iter([
        ("params".to_owned(), object(&scope.params)),
        ("run".to_owned(), object(&scope.run)),
        ("window".to_owned(), object(&scope.window)),
        ("state".to_owned(), object(&scope.state)),
    ])
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

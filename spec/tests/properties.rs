//! No text makes the parser panic, and no value breaks out of its SQL literal.

mod common;

use proptest::prelude::*;
use serde_json::json;
use weir_spec::template::{render_connect_time, render_plan_time, render_sql};
use weir_spec::{TemplateText, json_schema, parse, parse_workspace, render_diagnostics};

fn never_panics(text: &str) {
    if let Err(found) = parse("p.yaml", text) {
        assert!(!found.is_empty());
        render_diagnostics(&found, text);
    }
    if let Err(found) = parse_workspace("weir.yaml", text) {
        render_diagnostics(&found, text);
    }
}

fn good_text() -> String {
    common::read(&common::files("good", "yaml")[0])
}

/// Reads `'…'` as SQL does; gives the value and what follows.
fn read_literal(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text.strip_prefix('\'')?;
    loop {
        let end = rest.find('\'')?;
        value.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('\'') {
            Some(after) => {
                value.push('\'');
                rest = after;
            }
            None => return Some((value, rest)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        never_panics(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn random_yaml_does_not_panic(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("pipeline: "), Just("sources:"), Just("sinks:"), Just("transforms:"), Just("\n"),
                Just("  "), Just("- "), Just("{ "), Just(" }"), Just("["), Just("]"), Just(": "),
                Just("type: csv"), Just("sql: "), Just("FROM a"), Just("'"), Just("\""), Just("|\n"),
                Just("{{ "), Just(" }}"), Just("params.x"), Just("&a "), Just("*a"), Just("? "),
                Just(", "), Just("é"), Just("a"), Just("input: a"), Just("#"), Just("!!str "),
                Just("connections:"), Just("tests:"), Just("validate:"), Just("null"), Just("5%"),
            ],
            0..60,
        )
    ) {
        never_panics(&parts.concat());
    }

    #[test]
    fn mutated_good_files_do_not_panic(
        at in any::<prop::sample::Index>(),
        length in 0usize..30,
        insert in "[ -~é\n]{0,8}",
    ) {
        let mut characters: Vec<char> = good_text().chars().collect();
        let start = at.index(characters.len());
        let end = (start + length).min(characters.len());
        characters.splice(start..end, insert.chars());
        never_panics(&characters.into_iter().collect::<String>());
    }

    #[test]
    fn a_string_literal_cannot_break_out_of_its_quotes(value in "[^\0]{0,40}|['{}\\\\;-]{0,20}") {
        let scope = json!({ "params": { "x": value } });
        let text = TemplateText::new("SELECT {{ params.x }} AS rest");
        let rendered = render_sql(&text, scope.as_object().expect("an object")).expect("it renders");
        let (read, rest) = read_literal(&rendered["SELECT ".len()..]).expect("a literal");
        prop_assert_eq!(read, value);
        prop_assert_eq!(rest, " AS rest");
    }

    #[test]
    fn a_value_never_becomes_a_template(value in "[{} a-z.]{0,12}|\\{\\{ secret\\.KEY \\}\\}") {
        let scope = json!({ "params": { "x": value } });
        let text = TemplateText::new("a{{ params.x }}{ secret.KEY }}{{ env.HOST }}");
        if let Ok(planned) = render_plan_time(&text, scope.as_object().expect("an object")) {
            let lookup = |root: &str, _: &str| Some(format!("<{root}>"));
            if let Ok(rendered) = render_connect_time(&planned, &lookup) {
                prop_assert!(!rendered.contains("<secret>"), "{}", rendered);
            }
        }
    }
}

#[test]
fn sql_values_are_typed_literals() {
    let scope = json!({
        "params": { "s": "It's", "n": -5, "f": 1.5, "b": true, "z": null, "l": [1, "a"], "o": {} },
        "window": { "start": "2024-03-01T00:00:00+01:00" },
    });
    let scope = scope.as_object().expect("an object");
    let render = |text: &str| render_sql(&TemplateText::new(text), scope);
    assert_eq!(render("x = {{ params.s }}").as_deref(), Ok("x = 'It''s'"));
    assert_eq!(render("x -{{ params.n }}").as_deref(), Ok("x -(-5)"));
    assert_eq!(
        render("{{ params.f }} {{ params.b }} {{ params.z }}").as_deref(),
        Ok("1.5 TRUE NULL")
    );
    assert_eq!(render("x IN {{ params.l }}").as_deref(), Ok("x IN (1, 'a')"));
    assert_eq!(
        render("t >= {{ window.start }}").as_deref(),
        Ok("t >= TIMESTAMP '2024-02-29 23:00:00'")
    );
    for wrong in
        ["'{{ params.s }}'", "{{ params.o }}", "{{ params.none }}", "E{{ params.s }}", "{% x %}"]
    {
        assert!(render(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn env_and_secret_stay_as_written_when_planned() {
    let scope = json!({ "params": { "db": "app" } });
    let text = TemplateText::new("postgres://u:{{secret.PW}}@h/{{ params.db }}");
    let planned =
        render_plan_time(&text, scope.as_object().expect("an object")).expect("it renders");
    assert_eq!(planned.as_str(), "postgres://u:{{secret.PW}}@h/app");
}

#[test]
fn the_checked_in_schema_is_the_schema_of_the_decoder() {
    let schema = serde_json::to_string_pretty(&json_schema()).expect("plain data") + "\n";
    common::compare("../pipeline.schema.json", &schema);
}

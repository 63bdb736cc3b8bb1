//! Keys of transforms.

use super::sources::{MAX_ERRORS, ON_ERROR};
use super::{Key, Kind, Place, Shape, format};

pub(super) const INPUT: Key = Key::new("input", Kind::Format(&format::INPUT), "The node to read.");
static ONE_INPUT: Kind = Kind::Format(&format::INPUT);
pub(super) const INPUTS: Key =
    Key::new("inputs", Kind::List(&ONE_INPUT), "Several nodes, unioned by column name.");

pub(crate) static TRANSFORM: Shape = Shape {
    name: "a transform",
    keys: &[
        INPUT,
        INPUTS,
        Key::new(
            "sql",
            Kind::Template(Place::Sql),
            "One SELECT; nodes are its tables. Templates become quoted literals.",
        ),
        Key::new(
            "validate",
            Kind::List(&Kind::Object(&RULE)),
            "Rules that every row must pass; the others go to `NODE.errors` and dead letters.",
        ),
        Key::new("deduplicate", Kind::Object(&DEDUPLICATE), "Keep one row of each key."),
        Key::new("extract", Kind::Any(None), "Structured extraction by a language model.")
            .unsupported(),
        ON_ERROR,
        MAX_ERRORS,
    ],
    exactly_one: &[&["sql", "validate", "deduplicate", "extract"]],
};

pub(crate) static RULE: Shape = Shape {
    name: "a rule",
    keys: &[
        Key::new("name", Kind::Prose, "The reason in a dead letter. Default: from the condition."),
        Key::new("column", Kind::Text, "The column that the condition is about."),
        Key::new("not_null", Kind::Bool, "`true`: the column may not be null."),
        Key::new("matches", Kind::Format(&format::REGEX), "A regular expression; null passes."),
        Key::new(
            "between",
            Kind::List(&Kind::Written),
            "`[low, high]`, both included; null passes.",
        ),
        Key::new("one_of", Kind::List(&Kind::Written), "The allowed values; null passes."),
        Key::new(
            "min_length",
            Kind::Integer { min: 0, max: i64::MAX },
            "In characters; null passes.",
        ),
        Key::new(
            "max_length",
            Kind::Integer { min: 0, max: i64::MAX },
            "In characters; null passes.",
        ),
        Key::new("check", Kind::Template(Place::Sql), "Any SQL condition; false and null fail."),
    ],
    exactly_one: &[&[
        "not_null",
        "matches",
        "between",
        "one_of",
        "min_length",
        "max_length",
        "check",
    ]],
};

pub(crate) static DEDUPLICATE: Shape = Shape {
    name: "`deduplicate`",
    keys: &[
        Key::new("key", Kind::OneOrMany(&Kind::Text), "Columns that identify a row.").required(),
        Key::new(
            "keep",
            Kind::Choice { names: &["first", "last"], unsupported: &[] },
            "Which row of a key stays.",
        )
        .default("last"),
        Key::new(
            "order_by",
            Kind::OneOrMany(&Kind::Text),
            "Columns, most significant first; ties are broken by all other columns.",
        ),
    ],
    exactly_one: &[],
};

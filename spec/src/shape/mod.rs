//! The language as data: every key of the file, its kind, default and meaning.
//!
//! One table drives three readers, which therefore cannot disagree: [`check`](mod@check) finds
//! unknown keys and wrong values, the decoder takes values and defaults by key, and the JSON
//! Schema is written from it.

pub(crate) mod check;
pub(crate) mod format;
pub(crate) mod schema;

mod connections;
mod pipeline;
mod sinks;
mod sources;
mod transforms;

pub(crate) use connections::{CONNECTION, HTTP_AUTH};
pub(crate) use format::Format;
pub(crate) use pipeline::{
    CHECKPOINT, CONCURRENCY, HMAC, PARAM, PIPELINE, RETRY, TEST, TRIGGER, VERIFY, WEBHOOK,
    WORKSPACE,
};
pub(crate) use sinks::{SCHEMA_POLICY, SINK};
pub(crate) use sources::{PAGINATION, SOURCE};
pub(crate) use transforms::{DEDUPLICATE, RULE, TRANSFORM};

/// A mapping with known keys.
pub(crate) struct Shape {
    /// For messages: `an HTTP source`.
    pub(crate) name: &'static str,
    pub(crate) keys: &'static [Key],
    /// Groups of keys of which exactly one must be written.
    pub(crate) exactly_one: &'static [&'static [&'static str]],
}

pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) required: bool,
    pub(crate) doc: &'static str,
    /// As it would be written.
    pub(crate) default: Option<&'static str>,
    /// The language has it, this version cannot run it.
    pub(crate) unsupported: bool,
}

impl Key {
    pub(crate) const fn new(name: &'static str, kind: Kind, doc: &'static str) -> Self {
        Self { name, kind, required: false, doc, default: None, unsupported: false }
    }

    pub(crate) const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    pub(crate) const fn default(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    pub(crate) const fn unsupported(mut self) -> Self {
        self.unsupported = true;
        self
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Text for people; braces mean nothing in it.
    Prose,
    /// Text without templates.
    Text,
    /// Text, a number or a boolean, used as written.
    Written,
    Template(Place),
    Bool,
    Integer {
        min: i64,
        max: i64,
    },
    Format(&'static Format),
    Choice {
        names: &'static [&'static str],
        unsupported: &'static [&'static str],
    },
    List(&'static Kind),
    /// A list, or one item without the brackets.
    OneOrMany(&'static Kind),
    /// Keys are free, but must have the format.
    Map(&'static Format, &'static Kind),
    Object(&'static Shape),
    Tagged(&'static Tagged),
    /// Any value; templates inside it are rendered at plan time when a place is given.
    Any(Option<Place>),
}

/// A mapping whose keys depend on its `type`.
pub(crate) struct Tagged {
    /// For messages: `source`.
    pub(crate) name: &'static str,
    pub(crate) variants: &'static [(&'static str, &'static Shape)],
    /// Types that the language has and this version cannot run.
    pub(crate) unsupported: &'static [&'static str],
    /// Whether `connection: NAME` may say the type instead.
    pub(crate) by_connection: bool,
}

/// Which templates a text may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `params`, `run`, `window`, `state`.
    Plan,
    /// Those, and `env` and `secret`: fields of connections.
    Connection,
    /// Those of `Plan`, rendered as SQL literals.
    Sql,
}

impl Shape {
    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

impl Tagged {
    pub(crate) fn shape(&self, type_name: &str) -> Option<&'static Shape> {
        self.variants.iter().find(|(name, _)| *name == type_name).map(|(_, shape)| *shape)
    }

    /// The type of a shape of this table.
    pub(crate) fn name_of(&self, shape: &'static Shape) -> &'static str {
        let found = self.variants.iter().find(|(_, known)| std::ptr::eq(*known, shape));
        found.map_or("", |(name, _)| name)
    }

    pub(crate) fn type_names(&self) -> impl Iterator<Item = &'static str> + Clone {
        self.variants.iter().map(|(name, _)| *name)
    }
}

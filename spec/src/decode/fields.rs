//! Typed reading of one mapping, with the defaults of its table.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::TemplateText;
use crate::shape::{Shape, format};
use crate::syntax::{Entry, Map, Node, Span};

/// A mapping together with the table of its keys.
///
/// Reading a key that the table lacks is a defect of the decoder and panics in debug builds, so
/// that no key can exist here and not in the JSON Schema.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'n> {
    map: &'n Map,
    pub(crate) span: Span,
    shape: &'static Shape,
}

static EMPTY: std::sync::LazyLock<Map> = std::sync::LazyLock::new(Map::default);

impl<'n> Fields<'n> {
    pub(crate) fn new(map: &'n Map, span: Span, shape: &'static Shape) -> Self {
        Self { map, span, shape }
    }

    /// Nothing written: all defaults.
    pub(crate) fn of(node: Option<&'n Node>, shape: &'static Shape) -> Self {
        let map = node.and_then(Node::as_map);
        let span = node.map(|node| node.span).unwrap_or_default();
        Self { map: map.unwrap_or(&EMPTY), span, shape }
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&'n Entry> {
        debug_assert!(self.shape.key(name).is_some(), "`{name}` is no key of {}", self.shape.name);
        self.map.entry(name)
    }

    pub(crate) fn node(&self, name: &str) -> Option<&'n Node> {
        self.entry(name).map(|entry| &entry.value)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// The written text, else the default of the table.
    fn written(&self, name: &str) -> Option<&'n str> {
        match self.node(name) {
            Some(node) => node.text(),
            None => self.shape.key(name).and_then(|key| key.default),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.written(name).map(str::to_owned)
    }

    pub(crate) fn template(&self, name: &str) -> Option<TemplateText> {
        self.written(name).map(TemplateText::new)
    }

    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        self.written(name)?.to_lowercase().parse().ok()
    }

    pub(crate) fn integer(&self, name: &str) -> Option<u64> {
        self.parse(name, |text| text.parse::<u64>().map_err(|error| error.to_string()))
    }

    pub(crate) fn non_zero(&self, name: &str) -> Option<NonZeroU64> {
        self.integer(name).and_then(NonZeroU64::new)
    }

    pub(crate) fn duration(&self, name: &str) -> Option<Duration> {
        self.parse(name, format::duration)
    }

    pub(crate) fn byte(&self, name: &str) -> Option<u8> {
        self.parse(name, format::byte)
    }

    pub(crate) fn parse<T>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(self.written(name)?).ok()
    }

    /// One of the names that serde knows for `T`.
    pub(crate) fn choice<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_value(serde_json::Value::from(self.written(name)?)).ok()
    }

    /// The items of a list, or the one item written without brackets.
    pub(crate) fn items(&self, name: &str) -> &'n [Node] {
        match self.node(name) {
            Some(node) if node.is_null() => &[],
            Some(node) => node.as_list().unwrap_or(std::slice::from_ref(node)),
            None => &[],
        }
    }

    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        self.items(name).iter().filter_map(|node| node.text().map(str::to_owned)).collect()
    }

    pub(crate) fn entries(&self, name: &str) -> &'n [Entry] {
        self.node(name).and_then(Node::as_map).map_or(&[], |map| map.entries.as_slice())
    }
}

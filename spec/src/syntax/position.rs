//! Places in a file.

use super::{Node, Value};

/// Where a key or value stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// 1-based.
    pub(crate) line: u32,
    /// 1-based, in characters.
    pub(crate) column: u32,
    /// In characters; may run over the end of the line.
    pub(crate) length: u32,
}

/// The text of a file with its lines found once.
pub(crate) struct SourceText<'a> {
    pub(crate) file: &'a str,
    lines: Vec<&'a str>,
}

impl<'a> SourceText<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, lines: text.lines().collect() }
    }

    fn line(&self, number: u32) -> Option<&'a str> {
        self.lines.get((number as usize).checked_sub(1)?).copied()
    }

    /// The part of a span on its first line, at least one character.
    pub(crate) fn visible_length(&self, span: Span) -> u32 {
        let line = self.line(span.line).unwrap_or("").trim_end();
        let rest = line.chars().count().saturating_sub((span.column as usize).saturating_sub(1));
        span.length.min(u32::try_from(rest).unwrap_or(u32::MAX)).max(1)
    }

    /// Where the characters `offset..offset + length` of a scalar's text stand in the file.
    ///
    /// Exact for block literals and for scalars written on one line without escapes; otherwise the
    /// place of the whole scalar.
    pub(crate) fn inside(&self, node: &Node, offset: usize, length: usize) -> Span {
        let Value::Scalar(scalar) = &node.value else { return node.span };
        self.locate(node.span, &scalar.text, offset, length).unwrap_or(node.span)
    }

    fn locate(&self, span: Span, text: &str, offset: usize, length: usize) -> Option<Span> {
        let before: String = text.chars().take(offset).collect();
        let line_index = before.matches('\n').count();
        let column_in_text = before.chars().rev().take_while(|c| *c != '\n').count();
        let text_line = text.lines().nth(line_index)?;
        let length = u32::try_from(length.max(1)).ok()?;
        let source_line = self.line(span.line)?;
        if !text.contains('\n') || text.trim_end_matches('\n') == text_line {
            // On the line of the scalar itself: right at its start, or after the quote.
            let from = (span.column as usize).checked_sub(1)?;
            for quote in 0..=1 {
                let written = source_line.chars().skip(from + quote);
                if text_line.chars().eq(written.take(text_line.chars().count())) {
                    let column = u32::try_from(from + quote + column_in_text + 1).ok()?;
                    return Some(Span { line: span.line, column, length });
                }
            }
        }
        // A block literal: its lines follow, each indented.
        for first in 0..=1 {
            let number = span.line + first + u32::try_from(line_index).ok()?;
            let source_line = self.line(number)?;
            if let Some(indent) = source_line.strip_suffix(text_line)
                && indent.chars().all(|c| c == ' ')
            {
                let column = u32::try_from(indent.len() + column_in_text + 1).ok()?;
                return Some(Span { line: number, column, length });
            }
        }
        None
    }
}

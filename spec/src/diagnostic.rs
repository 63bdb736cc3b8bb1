//! A mistake in a file: what is wrong, where, and what to write instead.

use std::fmt;

use serde::Serialize;

use crate::syntax::{SourceText, Span};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// One finding about a file. Holds names and text of the file, never a resolved secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// Kebab-case and stable: tools may match on it.
    pub code: &'static str,
    pub message: String,
    pub file: String,
    /// 1-based.
    pub line: u32,
    /// 1-based, in characters.
    pub column: u32,
    /// Characters from `column` on that the message is about; at least 1, never past the line.
    pub length: u32,
    /// What to write instead.
    pub help: Option<String>,
}

/// `file:line:column: error[code]: message`, on one line, without the excerpt.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, code, message, .. } = self;
        write!(f, "{file}:{line}:{column}: {}[{code}]: {message}", self.severity_word())
    }
}

impl Diagnostic {
    fn severity_word(&self) -> &'static str {
        match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// The longest piece of a source line that an excerpt shows, in characters.
const EXCERPT_WIDTH: usize = 160;

/// Renders diagnostics for people, each with the line of `text` that it is about.
///
/// ```text
/// error[unknown-key]: unknown key `qurey` in an HTTP source
///   ┌ customers.yaml:12:5
/// 12 │     qurey: { country: DE }
///   │     ^^^^^
///   = help: write `query` instead
/// ```
pub fn render_diagnostics(diagnostics: &[Diagnostic], text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut rendered = String::new();
    for diagnostic in diagnostics {
        if !rendered.is_empty() {
            rendered.push('\n');
        }
        render_one(diagnostic, &lines, &mut rendered);
    }
    rendered
}

fn render_one(diagnostic: &Diagnostic, lines: &[&str], rendered: &mut String) {
    let Diagnostic { code, message, file, line, column, .. } = diagnostic;
    let number = line.to_string();
    let gutter = " ".repeat(number.len());
    let mut push = |text: String| {
        rendered.push_str(&text);
        rendered.push('\n');
    };
    push(format!("{}[{code}]: {message}", diagnostic.severity_word()));
    push(format!("{gutter} ┌ {file}:{line}:{column}"));
    let source_line = (*line as usize).checked_sub(1).and_then(|index| lines.get(index));
    if let Some(source_line) = source_line {
        let start = (*column as usize).saturating_sub(1);
        // A long line is shown from a little before the mistake on.
        let skipped = start.saturating_sub(EXCERPT_WIDTH / 2);
        let shown: String = source_line
            .chars()
            .skip(skipped)
            .take(EXCERPT_WIDTH)
            .map(|character| if character.is_control() { ' ' } else { character })
            .collect();
        let marked = (diagnostic.length.max(1) as usize).min(EXCERPT_WIDTH / 2);
        push(format!("{number} │ {}", shown.trim_end()));
        push(format!("{gutter} │ {}{}", " ".repeat(start - skipped), "^".repeat(marked)));
    }
    if let Some(help) = &diagnostic.help {
        push(format!("{gutter} = help: {help}"));
    }
}

/// Collects everything found about one file.
pub(crate) struct Report<'a> {
    pub(crate) source: &'a SourceText<'a>,
    found: Vec<Diagnostic>,
}

impl<'a> Report<'a> {
    pub(crate) fn new(source: &'a SourceText<'a>) -> Self {
        Self { source, found: Vec::new() }
    }

    pub(crate) fn error(&mut self, code: &'static str, span: Span, message: impl Into<String>) {
        self.push(Severity::Error, code, span, message.into(), None);
    }

    pub(crate) fn error_help(
        &mut self,
        code: &'static str,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Severity::Error, code, span, message.into(), Some(help.into()));
    }

    /// An error whose help is optional: mostly a "did you mean".
    pub(crate) fn error_hint(
        &mut self,
        code: &'static str,
        span: Span,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.push(Severity::Error, code, span, message.into(), help);
    }

    pub(crate) fn warn(
        &mut self,
        code: &'static str,
        span: Span,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Severity::Warning, code, span, message.into(), Some(help.into()));
    }

    fn push(
        &mut self,
        severity: Severity,
        code: &'static str,
        span: Span,
        message: String,
        help: Option<String>,
    ) {
        let diagnostic = Diagnostic {
            severity,
            code,
            message,
            file: self.source.file.to_owned(),
            line: span.line,
            column: span.column,
            length: self.source.visible_length(span),
            help,
        };
        // An aliased node is checked at each use; its mistakes are reported once.
        if !self.found.contains(&diagnostic) {
            self.found.push(diagnostic);
        }
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.found.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// In file order; at one place in the order of discovery.
    pub(crate) fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
        self.found
    }
}

/// ``did you mean `x`?`` for the known name nearest to `written`, when one is near enough.
pub(crate) fn did_you_mean<'n>(
    written: &str,
    known: impl IntoIterator<Item = &'n str>,
) -> Option<String> {
    nearest(written, known).map(|name| format!("did you mean `{name}`?"))
}

/// The known name nearest to `written`, if it could be a slip of the finger.
pub(crate) fn nearest<'n>(
    written: &str,
    known: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    if written.chars().count() > 100 {
        return None;
    }
    let lower = written.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| {
            *distance <= 1 + name.len().max(lower.len()) / 4
                && *distance < name.len().min(lower.len())
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `` `a`, `b` or `c` ``
pub(crate) fn listed<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        None => String::from("nothing"),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

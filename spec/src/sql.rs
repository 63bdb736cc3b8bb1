//! A cheap reading of SQL: which tables it names, and where its quotes are.
//!
//! Not a parser. Where it is not sure that a word is a table it says nothing; DataFusion reports
//! unknown tables when the pipeline is planned.

use std::collections::HashSet;

use crate::template::{Piece, pieces};
use crate::{InputRef, NodeName};

/// A table named after FROM or JOIN that can only be a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TableReference {
    pub(crate) input: InputRef,
    /// In characters, into the text.
    pub(crate) offset: usize,
    pub(crate) length: usize,
}

/// Why a `{{ … }}` cannot be replaced by a literal where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misplaced {
    InString,
    InIdentifier,
    InComment,
    /// Touches a letter or quote: `E{{ … }}`, `x{{ … }}`.
    Glued,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// Lower case unless quoted.
    Word {
        text: String,
        quoted: bool,
    },
    Symbol(char),
    /// A string, number or template.
    Literal,
}

struct Placed {
    token: Token,
    offset: usize,
    length: usize,
}

struct Lexed {
    tokens: Vec<Placed>,
    /// Number of the expression, and what is wrong with its place.
    misplaced: Vec<(usize, Misplaced)>,
}

/// The expressions of `text` (numbered from 0) that stand where no literal can stand.
pub(crate) fn misplaced_expressions(text: &str) -> Vec<(usize, Misplaced)> {
    lex(text).misplaced
}

/// Tables after FROM and JOIN, without those that a WITH defines.
pub(crate) fn table_references(text: &str) -> Vec<TableReference> {
    let tokens = lex(text).tokens;
    References { ctes: common_tables(&tokens), tokens: &tokens, found: Vec::new() }.find()
}

/// Where `WITH RECURSIVE` stands: offset and length in characters.
pub(crate) fn recursive_with(text: &str) -> Option<(usize, usize)> {
    let tokens = lex(text).tokens;
    let at = (1..tokens.len()).find(|at| {
        word(&tokens, at - 1) == Some("with") && word(&tokens, *at) == Some("recursive")
    })?;
    let start = tokens[at - 1].offset;
    Some((start, tokens[at].offset + tokens[at].length - start))
}

fn lex(text: &str) -> Lexed {
    // An expression becomes one private-use character, so that the lexer sees one stream.
    const EXPRESSION: char = '\u{f8ff}';
    let mut characters: Vec<(char, usize, usize)> = Vec::new();
    let mut offset = 0;
    let scanned = pieces(text).unwrap_or_else(|_| vec![Piece::Text(text)]);
    for piece in scanned {
        match piece {
            Piece::Text(text) => {
                for character in text.chars() {
                    let plain = if character == EXPRESSION { '?' } else { character };
                    characters.push((plain, offset, 1));
                    offset += 1;
                }
            }
            Piece::Expression { written, .. } => {
                let length = written.chars().count();
                characters.push((EXPRESSION, offset, length));
                offset += length;
            }
        }
    }
    Lexer { characters, position: 0, tokens: Vec::new(), misplaced: Vec::new(), expressions: 0 }
        .run(EXPRESSION)
}

struct Lexer {
    characters: Vec<(char, usize, usize)>,
    position: usize,
    tokens: Vec<Placed>,
    misplaced: Vec<(usize, Misplaced)>,
    expressions: usize,
}

impl Lexer {
    fn run(mut self, expression: char) -> Lexed {
        while let Some(character) = self.peek(0) {
            let start = self.position;
            let token = match character {
                c if c == expression => {
                    self.expression();
                    Some(Token::Literal)
                }
                '-' if self.peek(1) == Some('-') => {
                    self.skip_until(expression, Misplaced::InComment, |lexer| {
                        (lexer.peek(0) == Some('\n')).then_some(1)
                    });
                    None
                }
                '/' if self.peek(1) == Some('*') => {
                    self.block_comment(expression);
                    None
                }
                '\'' => {
                    let escapes = start > 0
                        && matches!(self.characters[start - 1].0, 'e' | 'E')
                        && (start < 2 || !is_word(self.characters[start - 2].0));
                    self.quoted('\'', escapes, expression, Misplaced::InString);
                    Some(Token::Literal)
                }
                '"' | '`' => {
                    let text = self.quoted(character, false, expression, Misplaced::InIdentifier);
                    Some(Token::Word { text, quoted: true })
                }
                '$' => self.dollar_quoted(expression),
                c if c.is_alphabetic() || c == '_' => {
                    let mut text = String::new();
                    while let Some(c) = self.peek(0).filter(|c| is_word(*c)) {
                        text.extend(c.to_lowercase());
                        self.position += 1;
                    }
                    Some(Token::Word { text, quoted: false })
                }
                c if c.is_ascii_digit() => {
                    while self.peek(0).is_some_and(|c| is_word(c) || c == '.') {
                        self.position += 1;
                    }
                    Some(Token::Literal)
                }
                c => {
                    self.position += 1;
                    (!c.is_whitespace()).then_some(Token::Symbol(c))
                }
            };
            if let Some(token) = token {
                let offset = self.characters[start].1;
                let length = self.characters[start..self.position].iter().map(|c| c.2).sum();
                self.tokens.push(Placed { token, offset, length });
            }
        }
        Lexed { tokens: self.tokens, misplaced: self.misplaced }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.characters.get(self.position + ahead).map(|(character, ..)| *character)
    }

    /// An expression outside quotes and comments.
    fn expression(&mut self) {
        let before =
            self.position.checked_sub(1).map(|before| self.characters[before].0).unwrap_or(' ');
        let after = self.peek(1).unwrap_or(' ');
        let glues = |c: char| is_word(c) || matches!(c, '\'' | '"' | '`' | '&' | '\\' | '\u{f8ff}');
        if glues(before) || glues(after) {
            self.misplaced.push((self.expressions, Misplaced::Glued));
        }
        self.expressions += 1;
        self.position += 1;
    }

    /// Skips to the end that `end` finds (as a number of characters to take with it).
    fn skip_until(
        &mut self,
        expression: char,
        place: Misplaced,
        end: impl Fn(&Self) -> Option<usize>,
    ) {
        while let Some(character) = self.peek(0) {
            if let Some(length) = end(self) {
                self.position += length;
                return;
            }
            if character == expression {
                self.misplaced.push((self.expressions, place));
                self.expressions += 1;
            }
            self.position += 1;
        }
    }

    fn block_comment(&mut self, expression: char) {
        let mut depth = 0usize;
        while let Some(character) = self.peek(0) {
            match (character, self.peek(1)) {
                ('/', Some('*')) => {
                    depth += 1;
                    self.position += 2;
                }
                ('*', Some('/')) => {
                    depth -= 1;
                    self.position += 2;
                    if depth == 0 {
                        return;
                    }
                }
                _ => {
                    if character == expression {
                        self.misplaced.push((self.expressions, Misplaced::InComment));
                        self.expressions += 1;
                    }
                    self.position += 1;
                }
            }
        }
    }

    /// The text between quotes, doubled quotes undone.
    fn quoted(&mut self, quote: char, escapes: bool, expression: char, place: Misplaced) -> String {
        let mut text = String::new();
        self.position += 1;
        while let Some(character) = self.peek(0) {
            self.position += 1;
            if character == quote {
                if self.peek(0) != Some(quote) {
                    return text;
                }
                self.position += 1;
            } else if character == '\\' && escapes {
                self.position += 1;
            } else if character == expression {
                self.misplaced.push((self.expressions, place));
                self.expressions += 1;
            }
            text.push(character);
        }
        text
    }

    /// `$tag$ … $tag$`, as PostgreSQL has it; else the symbol `$`.
    fn dollar_quoted(&mut self, expression: char) -> Option<Token> {
        let mut tag = vec!['$'];
        while let Some(character) = self.peek(tag.len()).filter(|c| is_word(*c) && *c != '$') {
            tag.push(character);
        }
        let starts_with_digit = tag.get(1).is_some_and(char::is_ascii_digit);
        if self.peek(tag.len()) != Some('$') || starts_with_digit {
            self.position += 1;
            return Some(Token::Symbol('$'));
        }
        tag.push('$');
        self.position += tag.len();
        self.skip_until(expression, Misplaced::InString, |lexer| {
            let is_end = (0..tag.len()).all(|ahead| lexer.peek(ahead) == Some(tag[ahead]));
            is_end.then_some(tag.len())
        });
        Some(Token::Literal)
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_' || character == '$'
}

/// A WITH name, and the token from which on it means the WITH and no node.
struct CommonTable {
    name: String,
    from: usize,
}

/// `NAME [(columns)] AS [[NOT] MATERIALIZED] ( … )`, wherever it stands.
fn common_tables(tokens: &[Placed]) -> Vec<CommonTable> {
    let mut found = Vec::new();
    let recursive = (1..tokens.len()).any(|i| word(tokens, i) == Some("recursive"));
    for (index, placed) in tokens.iter().enumerate() {
        let Token::Word { text, .. } = &placed.token else { continue };
        let follows = index.checked_sub(1).is_some_and(|before| {
            matches!(word(tokens, before), Some("with" | "recursive"))
                || symbol(tokens, before) == Some(',')
        });
        if !follows {
            continue;
        }
        let mut next = index + 1;
        if symbol(tokens, next) == Some('(') {
            next = closing(tokens, next) + 1;
        }
        if word(tokens, next) != Some("as") {
            continue;
        }
        next += 1;
        while matches!(word(tokens, next), Some("not" | "materialized")) {
            next += 1;
        }
        if symbol(tokens, next) != Some('(') {
            continue;
        }
        let from = if recursive { 0 } else { closing(tokens, next) };
        found.push(CommonTable { name: text.clone(), from });
    }
    found
}

fn word(tokens: &[Placed], index: usize) -> Option<&str> {
    match tokens.get(index).map(|placed| &placed.token) {
        Some(Token::Word { text, quoted: false }) => Some(text),
        _ => None,
    }
}

fn symbol(tokens: &[Placed], index: usize) -> Option<char> {
    match tokens.get(index).map(|placed| &placed.token) {
        Some(Token::Symbol(symbol)) => Some(*symbol),
        _ => None,
    }
}

/// The token that closes the parenthesis at `open`.
fn closing(tokens: &[Placed], open: usize) -> usize {
    let mut depth = 0usize;
    for index in open..tokens.len() {
        match symbol(tokens, index) {
            Some('(') => depth += 1,
            Some(')') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return index;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

struct References<'t> {
    tokens: &'t [Placed],
    ctes: Vec<CommonTable>,
    found: Vec<TableReference>,
}

/// Functions whose arguments hold a FROM that names no table.
const FROM_FUNCTIONS: [&str; 6] =
    ["extract", "trim", "substring", "overlay", "position", "date_part"];

/// Words that end a table item, and so are no alias.
const AFTER_TABLE: [&str; 24] = [
    "where",
    "join",
    "left",
    "right",
    "full",
    "inner",
    "cross",
    "natural",
    "on",
    "using",
    "group",
    "order",
    "having",
    "limit",
    "offset",
    "union",
    "intersect",
    "except",
    "window",
    "qualify",
    "tablesample",
    "fetch",
    "for",
    "lateral",
];

impl References<'_> {
    fn find(mut self) -> Vec<TableReference> {
        let mut function_parens: Vec<bool> = Vec::new();
        for index in 0..self.tokens.len() {
            match &self.tokens[index].token {
                Token::Symbol('(') => {
                    let name = index.checked_sub(1).and_then(|before| word(self.tokens, before));
                    function_parens.push(name.is_some_and(|name| FROM_FUNCTIONS.contains(&name)));
                }
                Token::Symbol(')') => {
                    function_parens.pop();
                }
                Token::Word { text, quoted: false } if text == "from" || text == "join" => {
                    let in_function = function_parens.last().copied().unwrap_or(false);
                    let is_distinct_from = index.checked_sub(1).is_some_and(|before| {
                        word(self.tokens, before) == Some("distinct")
                            && before.checked_sub(1).is_some_and(|before| {
                                matches!(word(self.tokens, before), Some("is" | "not"))
                            })
                    });
                    let names_no_table = is_distinct_from || (in_function && text == "from");
                    if !names_no_table {
                        self.items(index + 1, text == "from");
                    }
                }
                _ => {}
            }
        }
        let mut seen = HashSet::new();
        self.found.retain(|found| seen.insert(found.offset));
        self.found
    }

    /// One table item, or several after FROM.
    fn items(&mut self, mut index: usize, several: bool) {
        loop {
            while symbol(self.tokens, index) == Some('(') {
                // A subquery has its own FROM; `(a JOIN b)` starts with a table.
                if matches!(word(self.tokens, index + 1), Some("select" | "with" | "values")) {
                    break;
                }
                index += 1;
            }
            index = if symbol(self.tokens, index) == Some('(') {
                closing(self.tokens, index) + 1
            } else {
                self.item(index)
            };
            // An alias, and its columns.
            if word(self.tokens, index) == Some("as") {
                index += 1;
            }
            let is_alias = match self.tokens.get(index).map(|placed| &placed.token) {
                Some(Token::Word { text, quoted }) => {
                    *quoted || !AFTER_TABLE.contains(&text.as_str())
                }
                _ => false,
            };
            if is_alias {
                index += 1;
                if symbol(self.tokens, index) == Some('(') {
                    index = closing(self.tokens, index) + 1;
                }
            }
            match if several { self.next_comma(index) } else { None } {
                Some(comma) => index = comma + 1,
                None => return,
            }
        }
    }

    /// The next comma of this FROM clause: behind joins and their conditions, outside parentheses.
    fn next_comma(&self, mut index: usize) -> Option<usize> {
        const ENDS: [&str; 14] = [
            "where",
            "group",
            "order",
            "having",
            "limit",
            "offset",
            "union",
            "intersect",
            "except",
            "window",
            "qualify",
            "fetch",
            "select",
            "from",
        ];
        loop {
            match &self.tokens.get(index)?.token {
                Token::Symbol(',') => return Some(index),
                Token::Symbol(')' | ';') => return None,
                Token::Symbol('(') => index = closing(self.tokens, index) + 1,
                Token::Word { text, quoted: false } if ENDS.contains(&text.as_str()) => {
                    return None;
                }
                _ => index += 1,
            }
        }
    }

    /// Reads a name at `index`; answers the token after it.
    fn item(&mut self, mut index: usize) -> usize {
        while matches!(word(self.tokens, index), Some("lateral" | "only")) {
            index += 1;
        }
        let start = index;
        let mut parts: Vec<&str> = Vec::new();
        while let Some(Token::Word { text, .. }) = self.tokens.get(index).map(|p| &p.token) {
            parts.push(text);
            index += 1;
            if symbol(self.tokens, index) != Some('.') {
                break;
            }
            index += 1;
        }
        if symbol(self.tokens, index) == Some('(') {
            return closing(self.tokens, index) + 1;
        }
        let input = match parts.as_slice() {
            [name] if !matches!(*name, "select" | "values" | "unnest" | "table") => {
                let is_common = self.ctes.iter().any(|cte| cte.name == *name && start >= cte.from);
                (!is_common).then(|| InputRef { node: NodeName::new(*name), errors: false })
            }
            [name, "errors"] => Some(InputRef { node: NodeName::new(*name), errors: true }),
            _ => None,
        };
        if let (Some(input), Some(first), Some(last)) =
            (input, self.tokens.get(start), self.tokens.get(index.saturating_sub(1)))
        {
            let length = (last.offset + last.length).saturating_sub(first.offset);
            self.found.push(TableReference { input, offset: first.offset, length });
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(text: &str) -> Vec<String> {
        table_references(text).iter().map(|found| found.input.to_string()).collect()
    }

    #[test]
    fn finds_tables_after_from_and_join() {
        assert_eq!(
            tables("SELECT * FROM a JOIN b ON a.x = b.x LEFT JOIN C USING (y)"),
            ["a", "b", "c"]
        );
        assert_eq!(
            tables("select 1 from a x, b as y, (select * from c) z, d"),
            ["a", "b", "d", "c"]
        );
        assert_eq!(
            tables("SELECT * FROM (a JOIN b ON true) WHERE EXISTS (SELECT 1 FROM c)"),
            ["a", "b", "c"]
        );
        assert_eq!(
            tables("SELECT * FROM a JOIN b USING (x), c d JOIN e ON f(1, 2), g"),
            ["a", "c", "g", "b", "e"]
        );
        assert_eq!(tables("SELECT * FROM valid.errors e"), ["valid.errors"]);
        assert_eq!(tables(r#"SELECT * FROM "a" UNION ALL SELECT * FROM b"#), ["a", "b"]);
    }

    #[test]
    fn stays_silent_where_from_names_no_table() {
        assert!(tables("SELECT extract(year FROM now()), trim(both 'x' FROM y)").is_empty());
        assert!(tables("SELECT 'FROM a' -- FROM b\n /* FROM c /* JOIN d */ */").is_empty());
        assert!(tables("SELECT 1 WHERE a IS NOT DISTINCT FROM b").is_empty());
        assert!(tables("SELECT * FROM unnest([1, 2])").is_empty());
        assert!(tables("SELECT * FROM generate_series(1, 3) g").is_empty());
        assert!(tables("SELECT * FROM information_schema.tables").is_empty());
        assert!(tables("SELECT $$ FROM a $$, $x$ JOIN b $x$").is_empty());
    }

    #[test]
    fn a_common_table_hides_a_node_only_after_its_definition() {
        assert_eq!(tables("WITH a AS (SELECT * FROM a) SELECT * FROM a"), ["a"]);
        assert_eq!(
            tables(
                "WITH x AS (SELECT * FROM a), y (c) AS NOT MATERIALIZED (SELECT * FROM x) SELECT * FROM y, b"
            ),
            ["a", "b"]
        );
        assert_eq!(
            tables("WITH RECURSIVE n AS (SELECT 1 UNION ALL SELECT * FROM n) SELECT * FROM n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn an_expression_is_misplaced_in_quotes_and_comments() {
        assert_eq!(
            misplaced_expressions(
                "SELECT {{ a }}, '{{ b }}', \"{{ c }}\" -- {{ d }}\n, e{{ e }}, $${{ f }}$$, ({{ g }})"
            ),
            [
                (1, Misplaced::InString),
                (2, Misplaced::InIdentifier),
                (3, Misplaced::InComment),
                (4, Misplaced::Glued),
                (5, Misplaced::InString),
            ]
        );
    }
}

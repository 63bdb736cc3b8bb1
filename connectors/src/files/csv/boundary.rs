//! Finds where records end, without cutting them into cells.
//!
//! A line break ends a record unless it is inside quotes. Quotes open only at the start of a cell;
//! anywhere else they are ordinary characters, exactly as the decoder sees it. The scan jumps from
//! quote to quote, so that its cost is far below that of decoding.

use memchr::{memchr, memchr2, memchr3, memrchr};

use crate::files::csv::dialect::Dialect;

/// Scans a buffer that starts at a record and grows at its end.
#[derive(Clone, Debug)]
pub(crate) struct BoundaryScanner {
    dialect: Dialect,
    in_quotes: bool,
    /// Everything before has been looked at.
    scanned: usize,
    /// End of the last complete record.
    boundary: usize,
    /// Behind the last closing quote.
    last_close: usize,
    /// Behind closing quotes that no cell ends with.
    strays: Vec<usize>,
}

/// What a scan of the buffer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// Records are complete up to here; what follows may go on.
    CompleteTo(usize),
    /// Records are complete up to here; the one that starts here has a quote that is never closed.
    Unclosed(usize),
}

impl BoundaryScanner {
    pub(crate) fn new(dialect: &Dialect) -> Self {
        let dialect = dialect.clone();
        Self {
            dialect,
            in_quotes: false,
            scanned: 0,
            boundary: 0,
            last_close: 0,
            strays: Vec::new(),
        }
    }

    /// The first `taken` bytes have left the buffer; they end with a record.
    pub(crate) fn take(&mut self, taken: usize) {
        self.scanned = self.scanned.saturating_sub(taken);
        self.boundary = self.boundary.saturating_sub(taken);
        self.last_close = self.last_close.saturating_sub(taken);
        self.strays.retain_mut(|stray| {
            let is_left = *stray >= taken;
            *stray = stray.saturating_sub(taken);
            is_left
        });
    }

    /// Whether the record behind the last complete one has an open quote, as far as was scanned.
    pub(crate) fn is_in_quotes(&self) -> bool {
        self.in_quotes
    }

    /// Starts again at a record.
    pub(crate) fn reset(&mut self) {
        self.in_quotes = false;
        self.scanned = 0;
        self.boundary = 0;
        self.last_close = 0;
        self.strays.clear();
    }

    /// Where text follows a closing quote, in the buffer: `"a"b`, which the decoder reads as `ab`.
    pub(crate) fn strays(&self) -> &[usize] {
        &self.strays
    }

    /// Looks at what is new in `buffer`. With `at_end` nothing follows, and a last record without a
    /// line break is complete.
    pub(crate) fn scan(&mut self, buffer: &[u8], at_end: bool) -> Scan {
        let quote = self.dialect.quote;
        loop {
            if self.in_quotes {
                let rest = &buffer[self.scanned..];
                let escape = self.dialect.escape.unwrap_or(quote);
                let found = if self.dialect.multiline {
                    memchr2(quote, escape, rest)
                } else {
                    memchr3(quote, escape, b'\n', rest)
                };
                let Some(found) = found.map(|found| found + self.scanned) else {
                    self.scanned = buffer.len();
                    break;
                };
                let next = buffer.get(found + 1);
                if !self.dialect.multiline && buffer[found] == b'\n' {
                    return Scan::Unclosed(self.boundary);
                }
                if next.is_none() && !at_end {
                    self.scanned = found;
                    break;
                }
                if buffer[found] != quote || next == Some(&quote) {
                    // An escaped character or a doubled quote.
                    self.scanned = (found + 2).min(buffer.len());
                } else {
                    self.in_quotes = false;
                    self.scanned = found + 1;
                    self.last_close = self.scanned;
                    if next.is_some_and(|next| !self.ends_cell(*next)) {
                        self.strays.push(self.scanned);
                    }
                }
            } else {
                let found = memchr(quote, &buffer[self.scanned..]);
                let end = found.map_or(buffer.len(), |found| found + self.scanned);
                if let Some(line_break) = memrchr(b'\n', &buffer[self.scanned..end]) {
                    self.boundary = self.scanned + line_break + 1;
                }
                if found.is_none() {
                    self.scanned = end;
                    break;
                }
                self.in_quotes = self.opens_cell(buffer, end);
                self.scanned = end + 1;
            }
        }
        if at_end {
            if self.in_quotes {
                return Scan::Unclosed(self.boundary);
            }
            self.boundary = buffer.len();
        }
        Scan::CompleteTo(self.boundary)
    }

    fn ends_cell(&self, byte: u8) -> bool {
        byte == self.dialect.delimiter || matches!(byte, b'\n' | b'\r')
    }

    fn opens_cell(&self, buffer: &[u8], quote_at: usize) -> bool {
        let at_cell_start = match quote_at.checked_sub(1).map(|before| buffer[before]) {
            None => true,
            Some(before) => before == self.dialect.delimiter || matches!(before, b'\n' | b'\r'),
        };
        at_cell_start && !self.in_comment(buffer, quote_at)
    }

    fn in_comment(&self, buffer: &[u8], at: usize) -> bool {
        let Some(comment) = self.dialect.comment else { return false };
        let line = memchr::memrchr2(b'\n', b'\r', &buffer[..at]).map_or(0, |before| before + 1);
        // A line break inside quotes starts no line.
        line >= self.last_close && buffer[line] == comment && line < at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::csv::tests::csv_source;

    fn scan_in_pieces(text: &str, piece: usize, change: impl Fn(&mut Dialect)) -> Scan {
        let mut dialect = Dialect::new(&csv_source("x")).expect("a dialect");
        change(&mut dialect);
        let mut scanner = BoundaryScanner::new(&dialect);
        let mut end = 0;
        while end < text.len() {
            end = (end + piece).min(text.len());
            if let unclosed @ Scan::Unclosed(_) = scanner.scan(&text.as_bytes()[..end], false) {
                return unclosed;
            }
        }
        scanner.scan(text.as_bytes(), false)
    }

    #[test]
    fn line_breaks_count_only_outside_quotes_however_the_buffer_grows() {
        for piece in 1..20 {
            let scan = |text| scan_in_pieces(text, piece, |_| {});
            assert_eq!(scan("a,b\nc,d\ne"), Scan::CompleteTo(8));
            assert_eq!(scan("a,\"b\nc\",d\ne"), Scan::CompleteTo(10));
            assert_eq!(scan("a,\"b\"\"\nc\"\ne"), Scan::CompleteTo(10));
            assert_eq!(scan("a\"b,c\nd\""), Scan::CompleteTo(6), "a quote inside a cell");
            assert_eq!(scan("\"a\"b\"c\nd"), Scan::CompleteTo(7), "a quote behind a closed one");
            assert_eq!(scan("\"a\n"), Scan::CompleteTo(0));
        }
    }

    #[test]
    fn text_behind_a_closing_quote_is_found() {
        let strays = |text: &str| {
            let dialect = Dialect::new(&csv_source("x")).expect("a dialect");
            let mut scanner = BoundaryScanner::new(&dialect);
            scanner.scan(text.as_bytes(), true);
            scanner.strays().to_vec()
        };
        assert_eq!(strays("\"a\",\"b\"\"\"\r\n\"c\"\n\"\""), [0; 0]);
        assert_eq!(strays("a\"b,\"c\"d\n\"e\" ,f"), [7, 12]);
    }

    #[test]
    fn comments_and_escapes_are_seen() {
        for piece in 1..20 {
            let comment = |dialect: &mut Dialect| dialect.comment = Some(b'#');
            assert_eq!(scan_in_pieces("#,\"x\na\n", piece, comment), Scan::CompleteTo(7));
            assert_eq!(
                scan_in_pieces("\"a\n#\",\"b\nc\"\nd", piece, comment),
                Scan::CompleteTo(12)
            );
            let escape = |dialect: &mut Dialect| dialect.escape = Some(b'\\');
            assert_eq!(scan_in_pieces("\"a\\\"\nb\"\nc", piece, escape), Scan::CompleteTo(8));
        }
    }

    #[test]
    fn without_multiline_a_quote_ends_with_its_line() {
        let single = |dialect: &mut Dialect| dialect.multiline = false;
        assert_eq!(scan_in_pieces("a\n\"b\nc\n", 3, single), Scan::Unclosed(2));
    }
}

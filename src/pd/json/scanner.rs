//! The scanner: one pass over a document, iterative, so that a deeply nested body cannot use up the stack.

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr2, memrchr};
use simdutf8::basic::from_utf8;

use super::{Error, Kind, MAX_DEPTH, Member};

/// The part of a string that is scanned in one step, in bytes: smaller than the smallest first-level cache.
pub(super) const STRING_STEP: usize = 16 << 10;

/// The part of an array of integers that is scanned in one step, in bytes: a short first one, because most arrays are
/// short or hold no integers, then longer ones.
const INTEGERS_STEP: [usize; 2] = [32, 512];

/// A position in a text. Each method that takes a value leaves the scanner at the first byte after it.
#[derive(Debug)]
pub struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Scanner<'a> {
    /// A scanner at the start of `bytes`.
    ///
    /// # Errors
    /// The bytes are not UTF-8, or begin with a byte order mark.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        // The fast check gives no position; only a text that fails it is checked again for one.
        let text = from_utf8(bytes).or_else(|_| std::str::from_utf8(bytes));
        let text = text.map_err(|e| Error::Syntax {
            offset: e.valid_up_to(),
            what: "bytes that are not UTF-8",
        })?;
        if text.starts_with('\u{feff}') {
            return Err(syntax(0, "a byte order mark"));
        }
        Ok(Self {
            text,
            bytes,
            at: 0,
            depth: 0,
        })
    }

    /// The offset of the next byte, from the start of the text.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The text of a span that the scanner gave.
    pub fn slice(&self, span: Range<usize>) -> &'a str {
        &self.text[span]
    }

    /// The kind of the next value. Skips white space before it.
    ///
    /// # Errors
    /// No value begins here.
    pub fn kind(&mut self) -> Result<Kind, Error> {
        self.skip_space();
        match self.peek() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::Text),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            _ => Err(self.error("a value was expected")),
        }
    }

    /// Whether the next value is an array whose first element is a number.
    pub fn is_array_of_numbers(&mut self) -> bool {
        self.skip_space();
        let inside = self.bytes[self.at..].strip_prefix(b"[");
        let first = inside.and_then(|inside| inside.trim_ascii_start().first());
        first.is_some_and(|first| *first == b'-' || first.is_ascii_digit())
    }

    /// Takes one value of any kind and returns its span.
    ///
    /// # Errors
    /// The value is not JSON.
    pub fn skip(&mut self) -> Result<Range<usize>, Error> {
        let outer = self.depth;
        // The lowest bit is the innermost open container: 1 for an object, 0 for an array.
        let mut objects = 0u128;
        self.skip_space();
        let start = self.at;
        loop {
            let kind = self.kind()?;
            if matches!(kind, Kind::Object | Kind::Array) {
                self.open()?;
                objects = objects << 1 | u128::from(kind == Kind::Object);
                if self.take_close(kind == Kind::Object) {
                    objects >>= 1;
                } else {
                    if kind == Kind::Object {
                        self.key()?;
                    } else {
                        self.at += plain_integers(&self.bytes[self.at..]);
                    }
                    continue;
                }
            } else {
                self.scalar(kind)?;
            }
            loop {
                if self.depth == outer {
                    return Ok(start..self.at);
                }
                let object = objects & 1 == 1;
                if self.take_close(object) {
                    objects >>= 1;
                } else {
                    self.comma(object)?;
                    if object {
                        self.key()?;
                    }
                    break;
                }
            }
        }
    }

    /// Takes an object and returns the offset of its closing brace. `visit` is called before each value, and must take
    /// exactly that value.
    ///
    /// # Errors
    /// The value is not an object or not JSON, or `visit` has failed.
    pub fn object<F>(&mut self, mut visit: F) -> Result<usize, Error>
    where
        F: FnMut(&mut Self, Member<'a>) -> Result<(), Error>,
    {
        if self.kind()? != Kind::Object {
            return Err(self.error("an object was expected"));
        }
        self.open()?;
        let mut comma = None;
        if !self.take_close(true) {
            loop {
                self.skip_space();
                let start = self.at;
                let name = self.key()?;
                visit(self, Member { name, start, comma })?;
                if self.take_close(true) {
                    break;
                }
                comma = Some(self.comma(true)?);
            }
        }
        Ok(self.at - 1)
    }

    /// Takes an array and returns the offset of its closing bracket. `visit` is called before each element with its index,
    /// and must take exactly that element.
    ///
    /// # Errors
    /// The value is not an array or not JSON, or `visit` has failed.
    pub fn array<F>(&mut self, mut visit: F) -> Result<usize, Error>
    where
        F: FnMut(&mut Self, usize) -> Result<(), Error>,
    {
        if self.kind()? != Kind::Array {
            return Err(self.error("an array was expected"));
        }
        self.open()?;
        if !self.take_close(false) {
            for element in 0.. {
                visit(self, element)?;
                if self.take_close(false) {
                    break;
                }
                self.comma(false)?;
            }
        }
        Ok(self.at - 1)
    }

    /// Takes a string and returns it unescaped. A string with a lone surrogate escape, which no Rust string can hold, is
    /// returned as written.
    ///
    /// # Errors
    /// The value is not a string or not JSON.
    pub fn text(&mut self) -> Result<Cow<'a, str>, Error> {
        if self.kind()? != Kind::Text {
            return Err(self.error("a string was expected"));
        }
        let start = self.at;
        let escaped = self.string()?;
        let raw = &self.text[start + 1..self.at - 1];
        let spelled = if escaped {
            serde_json::from_str(&self.text[start..self.at]).ok()
        } else {
            None
        };
        Ok(spelled.map_or(Cow::Borrowed(raw), Cow::Owned))
    }

    /// Checks that only white space is left.
    ///
    /// # Errors
    /// Something else is left.
    pub fn end(&mut self) -> Result<(), Error> {
        self.skip_space();
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            Err(self.error("text after the end of the value"))
        }
    }

    fn key(&mut self) -> Result<Cow<'a, str>, Error> {
        self.skip_space();
        if self.peek() != Some(b'"') {
            return Err(self.error("a key was expected"));
        }
        let name = self.text()?;
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.error("a colon was expected"));
        }
        self.at += 1;
        Ok(name)
    }

    fn comma(&mut self, object: bool) -> Result<usize, Error> {
        self.skip_space();
        if self.peek() != Some(b',') {
            return Err(self.error(if object {
                "a comma or a closing brace was expected"
            } else {
                "a comma or a closing bracket was expected"
            }));
        }
        self.at += 1;
        Ok(self.at - 1)
    }

    fn open(&mut self) -> Result<(), Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::TooDeep { offset: self.at });
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    /// Takes the closing bracket of an object or array, if it is next.
    fn take_close(&mut self, object: bool) -> bool {
        self.skip_space();
        let closes = self.peek() == Some(if object { b'}' } else { b']' });
        if closes {
            self.depth -= 1;
            self.at += 1;
        }
        closes
    }

    fn scalar(&mut self, kind: Kind) -> Result<(), Error> {
        match kind {
            Kind::Text => self.string().map(drop),
            Kind::Number => self.number(),
            _ => self.literal(),
        }
    }

    fn literal(&mut self) -> Result<(), Error> {
        let rest = &self.bytes[self.at..];
        let literal = [&b"true"[..], b"false", b"null"]
            .into_iter()
            .find(|word| rest.starts_with(word));
        let word = literal.ok_or_else(|| self.error("a value was expected"))?;
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), Error> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Error> {
        let rest = &self.bytes[self.at..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return Err(self.error("a digit was expected"));
        }
        self.at += digits;
        Ok(())
    }

    /// Takes a string whose opening quote is the next byte, and returns whether it contains an escape.
    fn string(&mut self) -> Result<bool, Error> {
        let mut from = self.at + 1;
        let mut escaped = false;
        loop {
            // In steps, so that the second pass over the same bytes finds them in the cache.
            let piece = &self.bytes[from..self.bytes.len().min(from + STRING_STEP)];
            let plain = memchr2(b'"', b'\\', piece).unwrap_or(piece.len());
            // Without an early exit, because only then it compiles to vector instructions.
            if piece[..plain]
                .iter()
                .fold(false, |found, &byte| found | (byte < 0x20))
            {
                let control = piece.iter().position(|&byte| byte < 0x20);
                let at = from + control.unwrap_or_default();
                return Err(syntax(at, "a control character in a string"));
            }
            let stop = from + plain;
            if plain == STRING_STEP {
                from = stop;
                continue;
            }
            match self.bytes.get(stop) {
                None => return Err(syntax(stop, "a string without an end")),
                Some(b'"') => {
                    self.at = stop + 1;
                    return Ok(escaped);
                }
                Some(_) => {
                    escaped = true;
                    from = self.escape(stop)?;
                }
            }
        }
    }

    /// The offset after the escape that begins at `start`.
    fn escape(&self, start: usize) -> Result<usize, Error> {
        match self.bytes.get(start + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(start + 2),
            Some(b'u') => match self.bytes.get(start + 2..start + 6) {
                Some(hex) if hex.iter().all(u8::is_ascii_hexdigit) => Ok(start + 6),
                _ => Err(syntax(start, "an escape without four hexadecimal digits")),
            },
            _ => Err(syntax(start, "an unknown escape")),
        }
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn error(&self, what: &'static str) -> Error {
        let what = if self.at < self.bytes.len() {
            what
        } else {
            "the text ends too early"
        };
        syntax(self.at, what)
    }
}

/// The number of bytes, from the start of an element of an array, that hold only elements with their commas: integers
/// without a sign, separated by a comma and at most one space. A fast path for token ids, of which a prompt has
/// thousands; it may stop early, and the scanner takes the rest one by one.
fn plain_integers(bytes: &[u8]) -> usize {
    let (mut passed, [mut step, longer]) = (0, INTEGERS_STEP);
    while let Some(piece) = bytes.get(passed..passed + step) {
        if !digit(piece[0]) || piece[0] == b'0' && digit(piece[1]) {
            break;
        }
        // Without an early exit, as in `string`.
        let around = piece.iter().zip(&piece[1..]).zip(&piece[2..]);
        let plain = around.fold(true, |plain, ((&before, &here), &after)| {
            let is_digit = digit(here) & ((here != b'0') | digit(before) | !digit(after));
            let is_comma = (here == b',') & digit(before);
            let is_space = (here == b' ') & (before == b',');
            plain & (is_digit | is_comma | is_space)
        });
        if !plain {
            break;
        }
        let Some(comma) = memrchr(b',', &piece[..step - 1]) else {
            break;
        };
        passed += comma + 1 + usize::from(piece[comma + 1] == b' ');
        step = longer;
    }
    passed
}

fn digit(byte: u8) -> bool {
    byte.wrapping_sub(b'0') < 10
}

fn syntax(offset: usize, what: &'static str) -> Error {
    Error::Syntax { offset, what }
}

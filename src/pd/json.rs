//! The JSON scanner: finds the spans of keys and values in a document, and refuses what is not JSON.
//!
//! What lives here: the grammar of RFC 8259 over a byte slice, iterative (a hostile body cannot use up the
//! stack), and the arithmetic of cutting members out of an object. What may not: any name of a field, any
//! tree of values, any number turned into a float; who reads a body decides what it looks for.
//!
//! Stricter than Python's `json`, which the workers use: NaN and Infinity, a byte order mark and UTF-16
//! are refused here. As there, lone surrogate escapes (`"\ud800"`) pass.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use memchr::{memchr2, memrchr};
use simdutf8::basic::from_utf8;

/// How many arrays and objects may be open at once. Chat bodies with tool schemas nest about ten deep;
/// 128 is also where serde_json stops. The open containers are kept in the bits of one `u128`.
pub const MAX_DEPTH: usize = 128;

/// How much of a string is looked at in one go, in bytes: less than the smallest cache holds.
const PIECE: usize = 16 << 10;

/// How much of an array of integers is looked at in one go, in bytes: first, because most arrays are short or not of
/// integers, and then.
const INTEGERS: [usize; 2] = [32, 512];

/// Why a text is not taken as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The text breaks the grammar.
    Syntax {
        /// Where, in bytes from the start.
        offset: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// The text nests deeper than [`MAX_DEPTH`].
    TooDeep {
        /// Where the first bracket too many stands, in bytes from the start.
        offset: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { offset, what } => write!(f, "{what} at byte {offset}"),
            Self::TooDeep { offset } => {
                write!(f, "more than {MAX_DEPTH} levels deep at byte {offset}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// What a value is, told from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `{...}`
    Object,
    /// `[...]`
    Array,
    /// `"..."`
    Text,
    /// A number of any length.
    Number,
    /// `true` or `false`
    Bool,
    /// `null`
    Null,
}

/// A member of an object, as the scanner stands before its value.
#[derive(Debug)]
pub struct Member<'a> {
    /// The key, unescaped.
    pub name: Cow<'a, str>,
    /// Where the key begins (its opening quote).
    pub start: usize,
    /// The comma in front of the member; none for the first.
    pub comma: Option<usize>,
}

/// A position in a text. Every method that takes a value leaves the scanner right behind it.
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
    /// When the bytes are not UTF-8 or begin with a byte order mark.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        // The quick check says only that something is wrong, the slow one where.
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

    /// The offset of the next byte to be read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The text of a span.
    pub fn slice(&self, span: Range<usize>) -> &'a str {
        &self.text[span]
    }

    /// What the next value is; white space before it is passed over.
    ///
    /// # Errors
    /// When no value begins here.
    pub fn kind(&mut self) -> Result<Kind, Error> {
        self.space();
        match self.peek() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::Text),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            _ => Err(self.wrong("a value was expected")),
        }
    }

    /// Whether this is an array that begins with a number.
    pub fn is_array_of_numbers(&mut self) -> bool {
        self.space();
        let inside = self.bytes[self.at..].strip_prefix(b"[");
        let first = inside.and_then(|inside| inside.trim_ascii_start().first());
        first.is_some_and(|first| *first == b'-' || first.is_ascii_digit())
    }

    /// Takes one value of any kind and gives its span.
    ///
    /// # Errors
    /// When the value is not JSON.
    pub fn skip(&mut self) -> Result<Range<usize>, Error> {
        let outer = self.depth;
        // The lowest bit is the innermost open container: 1 for an object, 0 for an array.
        let mut objects = 0u128;
        self.space();
        let start = self.at;
        loop {
            let kind = self.kind()?;
            if matches!(kind, Kind::Object | Kind::Array) {
                self.open()?;
                objects = objects << 1 | u128::from(kind == Kind::Object);
                if self.closes(kind == Kind::Object) {
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
                if self.closes(object) {
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

    /// Takes an object; `visit` is called before every value and must take exactly that value.
    /// Gives the offset of the closing brace.
    ///
    /// # Errors
    /// When this is not an object, when it is not JSON, and whatever `visit` gives.
    pub fn object<F>(&mut self, mut visit: F) -> Result<usize, Error>
    where
        F: FnMut(&mut Self, Member<'a>) -> Result<(), Error>,
    {
        if self.kind()? != Kind::Object {
            return Err(self.wrong("an object was expected"));
        }
        self.open()?;
        let mut comma = None;
        if !self.closes(true) {
            loop {
                self.space();
                let start = self.at;
                let name = self.key()?;
                visit(self, Member { name, start, comma })?;
                if self.closes(true) {
                    break;
                }
                comma = Some(self.comma(true)?);
            }
        }
        Ok(self.at - 1)
    }

    /// Takes an array; `visit` is called before every element, with its number from 0, and must take
    /// exactly that value. Gives the offset of the closing bracket.
    ///
    /// # Errors
    /// When this is not an array, when it is not JSON, and whatever `visit` gives.
    pub fn array<F>(&mut self, mut visit: F) -> Result<usize, Error>
    where
        F: FnMut(&mut Self, usize) -> Result<(), Error>,
    {
        if self.kind()? != Kind::Array {
            return Err(self.wrong("an array was expected"));
        }
        self.open()?;
        if !self.closes(false) {
            for element in 0.. {
                visit(self, element)?;
                if self.closes(false) {
                    break;
                }
                self.comma(false)?;
            }
        }
        Ok(self.at - 1)
    }

    /// Takes a string and gives what it spells. One that no Rust string can spell, because of a lone
    /// surrogate escape, is given as it is written.
    ///
    /// # Errors
    /// When this is not a string or not JSON.
    pub fn text(&mut self) -> Result<Cow<'a, str>, Error> {
        if self.kind()? != Kind::Text {
            return Err(self.wrong("a string was expected"));
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

    /// Makes sure that nothing but white space is left.
    ///
    /// # Errors
    /// When something is.
    pub fn end(&mut self) -> Result<(), Error> {
        self.space();
        if self.at == self.bytes.len() {
            Ok(())
        } else {
            Err(self.wrong("text after the end of the value"))
        }
    }

    fn key(&mut self) -> Result<Cow<'a, str>, Error> {
        self.space();
        if self.peek() != Some(b'"') {
            return Err(self.wrong("a key was expected"));
        }
        let name = self.text()?;
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.wrong("a colon was expected"));
        }
        self.at += 1;
        Ok(name)
    }

    fn comma(&mut self, object: bool) -> Result<usize, Error> {
        self.space();
        if self.peek() != Some(b',') {
            return Err(self.wrong(if object {
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

    fn closes(&mut self, object: bool) -> bool {
        self.space();
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
        let found = [&b"true"[..], b"false", b"null"]
            .into_iter()
            .find(|word| rest.starts_with(word));
        let word = found.ok_or_else(|| self.wrong("a value was expected"))?;
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
            return Err(self.wrong("a digit was expected"));
        }
        self.at += digits;
        Ok(())
    }

    /// Takes a string of which the opening quote is next; tells whether it has an escape.
    fn string(&mut self) -> Result<bool, Error> {
        let mut from = self.at + 1;
        let mut escaped = false;
        loop {
            // Piece by piece, so that the second look finds it in the cache.
            let piece = &self.bytes[from..self.bytes.len().min(from + PIECE)];
            let plain = memchr2(b'"', b'\\', piece).unwrap_or(piece.len());
            // Without an early exit, so that it compiles to vector instructions.
            if piece[..plain]
                .iter()
                .fold(false, |found, &byte| found | (byte < 0x20))
            {
                let control = piece.iter().position(|&byte| byte < 0x20);
                let at = from + control.unwrap_or_default();
                return Err(syntax(at, "a control character in a string"));
            }
            let stop = from + plain;
            if plain == PIECE {
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

    /// The offset behind the escape that begins at `start`.
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

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn wrong(&self, what: &'static str) -> Error {
        let what = if self.at < self.bytes.len() {
            what
        } else {
            "the text ends too early"
        };
        syntax(self.at, what)
    }
}

/// What goes when members are cut out of an object: the members, and one comma for each of them, so
/// that the rest is JSON again. White space stays where it is.
#[derive(Debug, Default)]
pub struct Cuts {
    ranges: Vec<Range<usize>>,
    kept: bool,
}

impl Cuts {
    /// The next member stays.
    pub fn keep(&mut self, comma: Option<usize>) {
        if let (Some(comma), false) = (comma, self.kept) {
            self.ranges.push(comma..comma + 1);
        }
        self.kept = true;
    }

    /// The next member goes; it reaches from its key's opening quote to the end of its value.
    pub fn cut(&mut self, comma: Option<usize>, member: Range<usize>) {
        self.ranges.extend(comma.map(|comma| comma..comma + 1));
        self.ranges.push(member);
    }

    /// The spans to leave out, in order.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Whether no member stays.
    pub fn leaves_nothing(&self) -> bool {
        !self.kept
    }
}

/// How many bytes of an array, from where an element begins, are certainly elements with their commas: integers
/// without a sign, separated by a comma and at most one space. Token ids are that, and a prompt has many of them.
fn plain_integers(bytes: &[u8]) -> usize {
    let (mut passed, [mut wanted, more]) = (0, INTEGERS);
    while let Some(piece) = bytes.get(passed..passed + wanted) {
        if !digit(piece[0]) || piece[0] == b'0' && digit(piece[1]) {
            break;
        }
        // Without an early exit, as for strings.
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
        let Some(comma) = memrchr(b',', &piece[..wanted - 1]) else {
            break;
        };
        passed += comma + 1 + usize::from(piece[comma + 1] == b' ');
        wanted = more;
    }
    passed
}

fn digit(byte: u8) -> bool {
    byte.wrapping_sub(b'0') < 10
}

fn syntax(offset: usize, what: &'static str) -> Error {
    Error::Syntax { offset, what }
}

#[cfg(test)]
mod tests;

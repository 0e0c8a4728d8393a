//! JSON without a tree: the spans of keys and values in a document, and cutting members out of an object.
//!
//! What lives here: the grammar of RFC 8259 over a byte slice ([`Scanner`]), and the arithmetic of removing members
//! ([`Cuts`]). What may not: the name of a field, a tree of values, a number as a float; each reader of a body decides
//! which fields it looks for.
//!
//! Stricter than Python's `json`, which the workers use: NaN and Infinity, a byte order mark and UTF-16 are refused
//! here. As in Python, lone surrogate escapes (`"\ud800"`) pass.

mod cuts;
mod scanner;

use std::borrow::Cow;
use std::fmt;

pub use cuts::Cuts;
pub use scanner::Scanner;

/// The most arrays and objects that may be open at once. Chat bodies with tool schemas nest about ten deep; 128 is also
/// serde_json's limit. The scanner keeps the open containers in the bits of one `u128`.
pub const MAX_DEPTH: usize = 128;

/// Why a text is refused as JSON. Offsets are in bytes from the start of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The text breaks the grammar.
    Syntax {
        /// The first byte that is wrong.
        offset: usize,
        /// The mistake, for a message that ends with the offset.
        what: &'static str,
    },
    /// The text nests deeper than [`MAX_DEPTH`].
    TooDeep {
        /// The first bracket beyond the limit.
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

/// The kind of a value, which its first byte tells.
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

/// A member of an object, while the scanner is in front of its value. Offsets are in bytes from the start of the text.
#[derive(Debug)]
pub struct Member<'a> {
    /// The key, unescaped.
    pub name: Cow<'a, str>,
    /// The opening quote of the key.
    pub start: usize,
    /// The comma before the member; `None` for the first member.
    pub comma: Option<usize>,
}

#[cfg(test)]
mod tests;

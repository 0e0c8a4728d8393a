//! CONCEAL: a worker's error response without what was injected into the request.
//!
//! A worker often quotes the request that it refuses: as JSON, as Python writes a dict, or as the bytes of the body, and
//! the quote stands in a JSON string, where quotes are escaped once more. The members that [`super::bootstrap`] has
//! injected are cut out of it, so that the client reads what an ordinary server would have quoted. Where the quote has
//! another form, the values are replaced by `***`.
//!
//! What may not live here: which responses are errors.
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/http_server.py` (`validation_exception_handler`); Pydantic 2, `input` of an
//! error.

use std::collections::HashSet;
use std::ops::Range;

use memchr::memmem;

use super::bootstrap::{Fields, Injected};

/// Stands in the place of an injected value.
const HIDDEN: &[u8] = b"***";

/// The members in the order in which they are injected. Not every request has a rank and an id of ours.
const MEMBERS: [Name; 5] = [Name::Host, Name::Port, Name::Room, Name::Rank, Name::Rid];

/// An injected member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Host,
    Port,
    Room,
    Rank,
    Rid,
}

impl Name {
    const fn text(self) -> &'static [u8] {
        match self {
            Self::Host => b"bootstrap_host",
            Self::Port => b"bootstrap_port",
            Self::Room => b"bootstrap_room",
            Self::Rank => b"disagg_prefill_dp_rank",
            Self::Rid => b"rid",
        }
    }
}

/// The response `text` of a worker to the request `sent`, which has these fields, without them. `None` where nothing of
/// them is in it.
pub fn conceal(text: &[u8], sent: &Injected, fields: &Fields<'_>) -> Option<Vec<u8>> {
    let cut = replaced(text, &members(text, fields));
    let lone = lone_members(cut.as_deref().unwrap_or(text), fields);
    let cut = replaced(cut.as_deref().unwrap_or(text), &lone).or(cut);
    let words = words(cut.as_deref().unwrap_or(text), sent, fields);
    replaced(cut.as_deref().unwrap_or(text), &words).or(cut)
}

/// A part of a text, and what takes its place.
type Edit = (Range<usize>, &'static [u8]);

/// The text with these edits, which are in order; `None` without any.
fn replaced(text: &[u8], edits: &[Edit]) -> Option<Vec<u8>> {
    if edits.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(text.len());
    let mut from = 0;
    for (range, by) in edits {
        if range.start < from {
            continue;
        }
        out.extend_from_slice(&text[from..range.start]);
        out.extend_from_slice(by);
        from = range.end;
    }
    out.extend_from_slice(&text[from..]);
    Some(out)
}

/// The cuts of all members where they stand together, each with one comma.
fn members(text: &[u8], fields: &Fields<'_>) -> Vec<Edit> {
    memmem::find_iter(text, Name::Host.text())
        .filter_map(|name| Some((together(text, name, fields)?, &b""[..])))
        .collect()
}

/// The span of the members that stand together, from the one whose name is at `name`.
fn together(text: &[u8], name: usize, fields: &Fields<'_>) -> Option<Range<usize>> {
    let quote = quote_before(text, name)?;
    let start = name - quote.len();
    let mut at = At { text, at: start };
    for (index, name) in MEMBERS.into_iter().enumerate() {
        let mut member = at;
        if index > 0 && !(member.take(b",") && member.spaces())
            || !member.member(name, quote, fields)
        {
            match name {
                Name::Rank | Name::Rid => continue,
                Name::Host | Name::Port | Name::Room => return None,
            }
        }
        at = member;
    }
    let before = text[..start].trim_ascii_end();
    if before.ends_with(b",") {
        return Some(before.len() - 1..at.at);
    }
    // The first members of the object: the comma behind them goes.
    if at.take(b",") {
        at.spaces();
    }
    Some(start..at.at)
}

/// The values of single members, where the quote is that of an object with all its fields, or where the client has sent
/// `null` for one: an ordinary server has none there.
fn lone_members(text: &[u8], fields: &Fields<'_>) -> Vec<Edit> {
    let mut edits: Vec<Edit> = Vec::new();
    for name in MEMBERS {
        for start in memmem::find_iter(text, name.text()) {
            edits.extend(lone(text, start, name, fields));
        }
    }
    edits.sort_by_key(|(range, _)| range.start);
    edits
}

fn lone(text: &[u8], start: usize, name: Name, fields: &Fields<'_>) -> Option<Edit> {
    let mut at = At { text, at: start };
    at.take(name.text());
    let none: &[u8] = match quote_before(text, start) {
        Some(quote) => {
            if !(at.take(quote) && at.spaces() && at.take(b":") && at.spaces()) {
                return None;
            }
            if quote.ends_with(b"\"") {
                b"null"
            } else {
                b"None"
            }
        }
        // As an argument of a constructor, which is how Python writes an object.
        None if start > 0 && is_word(text[start - 1]) || !at.take(b"=") => return None,
        None => b"None",
    };
    let value = at.at;
    let hides = at.value(name, fields) && !matches!(&text[value..at.at], b"null" | b"None");
    hides.then_some((value..at.at, none))
}

/// The injected values wherever they stand: rooms and ids, which nothing else has, and the address where the client has
/// not written it itself.
fn words(text: &[u8], sent: &Injected, fields: &Fields<'_>) -> Vec<Edit> {
    let rooms: HashSet<u64> = fields.rooms.iter().map(|room| room.number()).collect();
    let rids = fields.rids.unwrap_or_default();
    let rids: HashSet<u128> = rids.iter().map(|rid| rid.0).collect();
    let is_hidden = |word: &str| match word.len() {
        1..=19 => word.parse().is_ok_and(|room| rooms.contains(&room)),
        32 => u128::from_str_radix(word, 16).is_ok_and(|rid| rids.contains(&rid)),
        _ => false,
    };
    let mut edits: Vec<Edit> = Vec::new();
    let mut from = 0;
    for word in text.split(|byte| !byte.is_ascii_alphanumeric()) {
        if std::str::from_utf8(word).is_ok_and(is_hidden) {
            edits.push((from..from + word.len(), HIDDEN));
        }
        from += word.len() + 1;
    }
    let host = fields.bootstrap.host().as_bytes();
    // A short name may be a word of the message.
    let is_address = host.contains(&b'.') || host.contains(&b':');
    if is_address && memmem::find(sent.client_part(), host).is_none() {
        let port = fields.bootstrap.port().map(|port| format!(":{port}"));
        for start in memmem::find_iter(text, host) {
            let mut at = At { text, at: start };
            at.take(host);
            if let Some(port) = &port {
                at.take(port.as_bytes());
            }
            let is_part = |byte: Option<&u8>| byte.is_some_and(|&byte| is_word(byte));
            if !is_part(start.checked_sub(1).and_then(|before| text.get(before)))
                && !is_part(text.get(at.at))
            {
                edits.push((start..at.at, HIDDEN));
            }
        }
    }
    edits.sort_by_key(|(range, _)| range.start);
    edits
}

/// The quote that opens the name at `name`, with the backslashes that escape it; `None` where there is none.
fn quote_before(text: &[u8], name: usize) -> Option<&[u8]> {
    let before = &text[..name];
    let (quote, rest) = before.split_last()?;
    if !matches!(quote, b'"' | b'\'') {
        return None;
    }
    let escapes = rest.iter().rev().take_while(|byte| **byte == b'\\').count();
    Some(&before[rest.len() - escapes..])
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// A place in a text.
#[derive(Clone, Copy)]
struct At<'a> {
    text: &'a [u8],
    at: usize,
}

impl At<'_> {
    /// Goes behind this token, if it is next.
    fn take(&mut self, token: &[u8]) -> bool {
        let is_next = self.text[self.at..].starts_with(token);
        if is_next {
            self.at += token.len();
        }
        is_next
    }

    /// Goes behind blanks, if there are any.
    fn spaces(&mut self) -> bool {
        while self.take(b" ") {}
        true
    }

    /// Goes behind an injected member whose name has these quotes.
    fn member(&mut self, name: Name, quote: &[u8], fields: &Fields<'_>) -> bool {
        self.take(quote)
            && self.take(name.text())
            && self.take(quote)
            && self.spaces()
            && self.take(b":")
            && self.spaces()
            && self.value(name, fields)
    }

    /// Goes behind the injected value of a member: that of the only prompt, or the list of those of all prompts.
    fn value(&mut self, name: Name, fields: &Fields<'_>) -> bool {
        if !self.take(b"[") {
            return self.scalar(name, 0, fields);
        }
        let all = (0..fields.rooms.len()).all(|prompt| {
            (prompt == 0 || self.take(b",") && self.spaces()) && self.scalar(name, prompt, fields)
        });
        all && self.take(b"]")
    }

    fn scalar(&mut self, name: Name, prompt: usize, fields: &Fields<'_>) -> bool {
        match name {
            Name::Host => self.quoted(fields.bootstrap.host().as_bytes()),
            Name::Port => match fields.bootstrap.port() {
                Some(port) => self.number(u64::from(port)),
                None => self.take(b"null") || self.take(b"None"),
            },
            Name::Room => {
                let room = fields.rooms.get(prompt);
                room.is_some_and(|room| self.number(room.number()))
            }
            Name::Rank => fields.rank.is_some_and(|rank| self.number(rank.into())),
            Name::Rid => {
                let rid = fields.rids.and_then(|rids| rids.get(prompt));
                rid.is_some_and(|rid| self.quoted(rid.to_string().as_bytes()))
            }
        }
    }

    fn number(&mut self, number: u64) -> bool {
        let taken = self.take(number.to_string().as_bytes());
        taken && !self.text.get(self.at).is_some_and(u8::is_ascii_digit)
    }

    /// Goes behind this text in quotes of any kind.
    fn quoted(&mut self, text: &[u8]) -> bool {
        let escapes = self.text[self.at..].iter();
        let escapes = escapes.take_while(|byte| **byte == b'\\').count();
        let Some(quote) = self.text.get(self.at..=self.at + escapes) else {
            return false;
        };
        matches!(quote.last(), Some(b'"' | b'\''))
            && self.take(quote)
            && self.take(text)
            && self.take(quote)
    }
}

#[cfg(test)]
mod tests;

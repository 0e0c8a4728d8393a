//! The change of an event of a running stream, without a scan of its JSON: nearly all events are of this kind.
//!
//! What lives here: events exactly as SGLang writes them, with one choice in a chunk. They are known by the bytes of a chunk
//! that was scanned before, and by texts that cannot stand inside a JSON string, because their quotes would be escaped
//! there. What may not: any other event, which [`super::event`] scans. Nothing here is allocated but the output.

use bytes::BytesMut;
use memchr::memchr2;
use memchr::memmem::Finder;

use super::super::super::Route;
use super::super::request::Batch;
use super::Gather;
use super::openai::OpenAi;

const BEGIN: &[u8] = b"data: {";
const CHUNK_BEGIN: &[u8] = b"data: {\"id\":\"";
const END: &[u8] = b"}\n\n";

/// The texts by which a chunk is recognised.
#[derive(Debug)]
pub(super) struct Quick {
    another_choice: Finder<'static>,
    runs: Finder<'static>,
}

/// The begin of one sample's chunks, which is the same in all of them, but for the id, which is its own for each prompt.
#[derive(Debug)]
pub(super) struct Head {
    /// From behind the id to the index of the first choice.
    seen: Vec<u8>,
    /// The same as the client gets it.
    sent: Vec<u8>,
}

impl Head {
    /// The begin of a chunk that was scanned, with another `created`; `None` where the chunk begins otherwise than SGLang's.
    /// Offsets of `read` are those of `event` from `start`.
    pub(super) fn new(event: &[u8], start: usize, read: &OpenAi, created: &[u8]) -> Option<Self> {
        let id = read.id.as_ref()?;
        let own = read.created.as_ref()?;
        let choice = read.choices.as_ref()?.list.first()?;
        let (_, index) = choice.index.as_ref()?;
        let is_first = event.starts_with(CHUNK_BEGIN) && start + id.start + 1 == CHUNK_BEGIN.len();
        if !is_first || own.start < id.end || index.start < own.end {
            return None;
        }
        let text = |from: usize, to: usize| &event[start + from..start + to];
        Some(Self {
            seen: text(id.end, index.start).to_vec(),
            sent: [text(id.end, own.start), created, text(own.end, index.start)].concat(),
        })
    }
}

impl Quick {
    pub(super) fn new() -> Self {
        Self {
            another_choice: Finder::new(br#"},{"index":"#),
            runs: Finder::new(br#""finish_reason":null"#),
        }
    }

    /// Adds a chunk with the flat index of its only choice, and with the `created` of all samples. Whether it did: nothing
    /// is added for any other event, or in a chat stream for a chunk with a `finish_reason`.
    pub(super) fn chunk(
        &self,
        gather: &Gather,
        sample: usize,
        head: &Head,
        event: &[u8],
        out: &mut BytesMut,
    ) -> bool {
        let Some((id_end, rest)) = behind_head(event, head) else {
            return false;
        };
        let Some((prompt, rest)) = number(rest) else {
            return false;
        };
        if gather.check(prompt).is_err()
            || self.another_choice.find(rest).is_some()
            || gather.route == Route::ChatCompletions && self.runs.find(rest).is_none()
        {
            return false;
        }
        out.reserve(event.len() + MOST_DIGITS);
        out.extend_from_slice(&event[..id_end]);
        out.extend_from_slice(&head.sent);
        push_number(out, gather.flat(prompt, sample));
        out.extend_from_slice(rest);
        true
    }
}

/// The end of the id in a chunk, and what follows the head: the index of the choice.
fn behind_head<'a>(event: &'a [u8], head: &Head) -> Option<(usize, &'a [u8])> {
    let id = event.strip_prefix(CHUNK_BEGIN)?;
    let end = memchr2(b'"', b'\\', id).filter(|end| id[*end] == b'"')? + 1;
    let rest = id[end..].strip_prefix(&head.seen[..])?;
    Some((CHUNK_BEGIN.len() + end, rest))
}

/// Adds an event of `/generate` with the flat index as its last member. Whether it did: nothing is added for any other
/// event.
pub(super) fn generate(gather: &Gather, sample: usize, event: &[u8], out: &mut BytesMut) -> bool {
    let (Some(inside), true) = (
        event
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.strip_suffix(END)),
        is_one_line(event),
    ) else {
        return false;
    };
    if inside.is_empty() || inside.starts_with(b"\"error\"") {
        return false;
    }
    let (prompt, kept) = match gather.batch {
        Batch::Single => (0, inside),
        Batch::Of(prompts) => match last_index(inside) {
            Some((prompt, kept)) if prompt < prompts => (prompt, kept),
            _ => return false,
        },
    };
    out.reserve(event.len() + ",\"index\":".len() + MOST_DIGITS);
    out.extend_from_slice(BEGIN);
    out.extend_from_slice(kept);
    out.extend_from_slice(b",\"index\":");
    push_number(out, gather.flat(prompt, sample));
    out.extend_from_slice(END);
    true
}

/// Whether an event is one line.
fn is_one_line(event: &[u8]) -> bool {
    let line = event.strip_suffix(b"\n\n");
    line.is_some_and(|line| memchr2(b'\n', b'\r', line).is_none())
}

/// The `index` that is the last member of an object, and what is before it.
fn last_index(inside: &[u8]) -> Option<(usize, &[u8])> {
    let digits = inside
        .iter()
        .rev()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let (rest, index) = inside.split_at(inside.len() - digits);
    let (index, _) = number(index)?;
    Some((index, rest.strip_suffix(b",\"index\":")?))
}

/// The integer at the start of a text, and what follows it; `None` for one of more than nine digits.
fn number(text: &[u8]) -> Option<(usize, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = text.split_at(digits);
    if digits == 0 || digits > 9 || matches!(rest.first(), Some(b'.' | b'e' | b'E')) {
        return None;
    }
    let add = |sum, digit: &u8| sum * 10 + usize::from(digit - b'0');
    Some((number.iter().fold(0, add), rest))
}

/// The digits of the largest `usize`.
const MOST_DIGITS: usize = 20;

/// Adds a number as JSON writes it.
fn push_number(out: &mut BytesMut, mut number: usize) {
    let mut digits = [0; MOST_DIGITS];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

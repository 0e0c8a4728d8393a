//! The change of an event of a running stream, without a scan of its JSON: nearly all events are of this kind.
//!
//! What lives here: events exactly as SGLang writes them, found by texts that cannot stand inside a JSON string, because
//! their quotes would be escaped there. What may not: any other event, which [`super::event`] scans. Nothing here is
//! allocated but the output.

use std::ops::Range;

use bytes::BytesMut;
use memchr::memchr2;
use memchr::memmem::Finder;

use super::super::super::Route;
use super::super::request::Batch;
use super::Gather;

const BEGIN: &[u8] = b"data: {";
const END: &[u8] = b"}\n\n";

/// The texts by which an event is recognised.
#[derive(Debug)]
pub(super) struct Quick {
    choice: Finder<'static>,
    another_choice: Finder<'static>,
    runs: Finder<'static>,
}

/// The `created` of one sample's chunks, which is the same in all of them, and at the same offset.
#[derive(Debug)]
pub(super) struct Created {
    /// Where the value begins in the event.
    at: usize,
    value: Vec<u8>,
}

impl Created {
    /// The value at this span of an event.
    pub(super) fn new(event: &[u8], span: Range<usize>) -> Self {
        Self {
            at: span.start,
            value: event[span].to_vec(),
        }
    }

    /// Whether the event has this value there.
    fn is_in(&self, event: &[u8]) -> bool {
        let parts = event.split_at_checked(self.at);
        parts.is_some_and(|(before, rest)| {
            let after = rest.strip_prefix(&self.value[..]);
            before.ends_with(b"\"created\":") && after.is_some_and(|after| after.starts_with(b","))
        })
    }
}

impl Quick {
    pub(super) fn new() -> Self {
        Self {
            choice: Finder::new(br#""choices":[{"index":"#),
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
        own: &Created,
        common: &[u8],
        event: &[u8],
        out: &mut BytesMut,
    ) -> bool {
        if !own.is_in(event) || own.value.len() != common.len() || !is_one_line(event) {
            return false;
        }
        // Behind `created`, so that its offset is the same in the output.
        let Some(found) = self.choice.find(&event[own.at..]) else {
            return false;
        };
        let at = own.at + found + self.choice.needle().len();
        let Some((prompt, length)) = number(&event[at..]) else {
            return false;
        };
        let rest = &event[at + length..];
        let runs = || self.runs.find(rest).is_some();
        if prompt >= gather.batch.prompts()
            || self.another_choice.find(rest).is_some()
            || gather.route == Route::ChatCompletions && !runs()
        {
            return false;
        }
        let start = out.len();
        out.reserve(event.len() + 2);
        out.extend_from_slice(&event[..at]);
        push_number(out, prompt * gather.samples + sample);
        out.extend_from_slice(rest);
        if own.value != common {
            out[start + own.at..][..common.len()].copy_from_slice(common);
        }
        true
    }
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
    out.reserve(event.len() + 16);
    out.extend_from_slice(BEGIN);
    out.extend_from_slice(kept);
    out.extend_from_slice(b",\"index\":");
    push_number(out, prompt * gather.samples + sample);
    out.extend_from_slice(END);
    true
}

/// Whether the event has one `data:` line, and nothing else.
fn is_one_line(event: &[u8]) -> bool {
    event.starts_with(BEGIN)
        && event
            .strip_suffix(b"\n\n")
            .is_some_and(|line| memchr2(b'\n', b'\r', line).is_none())
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

/// The number at the start of a text, and its length; `None` for one of more than nine digits.
fn number(text: &[u8]) -> Option<(usize, usize)> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 || digits > 9 {
        return None;
    }
    let number = text[..digits]
        .iter()
        .fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    Some((number, digits))
}

/// Adds a number as JSON writes it.
fn push_number(out: &mut BytesMut, mut number: usize) {
    let mut digits = [0; 20];
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

//! The request side: how many samples, which requests an ordinary server refuses, and the body of one sample.
//!
//! What may not live here: limits of the proxy. All of it runs on requests with `n > 1` only, but [`samples`], which
//! reads `n` on the one pass over a body.
//!
//! Source: SGLang 0.5.23, `srt/managers/io_struct.py` (`_handle_parallel_sampling`, `_normalize_rid`,
//! `_normalize_logprob_params`, `_normalize_custom_logit_processor`, `_validate_rid_uniqueness`).

use std::fmt::Write;
use std::num::IntErrorKind;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::super::super::Route;
use super::super::super::json::{self, Cuts, Kind, Scanner};
use super::super::request::{Batch, Facts, Invalid};
use super::Refusal;

/// The options of `/generate` that may be no list, in the order in which the engine looks at them.
const NO_LISTS: [&str; 5] = [
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_sampling_mask",
    "sampling_logprobs_mode",
];

/// The `n` of `sampling_params`: of one object, or the largest of a list of objects. `None` where it is absent, below 1,
/// or no integer as the worker reads one, which the worker refuses in its own words.
///
/// `beams` becomes whether any of them asks for a beam search. `visit` is called with each member: the place of its object
/// in the list, its name, and its value as written.
pub(in crate::pd::sglang) fn samples(
    s: &mut Scanner<'_>,
    beams: &mut bool,
    mut visit: impl FnMut(usize, &str, &str),
) -> Result<Option<u64>, json::Error> {
    *beams = false;
    let (mut largest, mut readable) = (None, true);
    if s.kind()? == Kind::Array {
        s.array(|s, element| {
            let n = samples_of_one(s, beams, |name, value| visit(element, name, value))?;
            readable &= n != Count::Unreadable;
            largest = largest.max(n.number());
            Ok(())
        })?;
    } else {
        largest = samples_of_one(s, beams, |name, value| visit(0, name, value))?.number();
    }
    let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
    Ok(largest.filter(|_| readable).and_then(positive))
}

/// The value of one `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Absent,
    Number(i64),
    Unreadable,
}

impl Count {
    /// An integer in any length, as in Python: one that does not fit becomes the largest or smallest that does.
    fn read(value: &str) -> Self {
        match value.parse() {
            Ok(n) => Self::Number(n),
            Err(error) => match error.kind() {
                IntErrorKind::PosOverflow => Self::Number(i64::MAX),
                IntErrorKind::NegOverflow => Self::Number(i64::MIN),
                _ => Self::Unreadable,
            },
        }
    }

    fn number(self) -> Option<i64> {
        match self {
            Self::Absent => Some(1),
            Self::Number(n) => Some(n),
            Self::Unreadable => None,
        }
    }
}

fn samples_of_one(
    s: &mut Scanner<'_>,
    beams: &mut bool,
    mut visit: impl FnMut(&str, &str),
) -> Result<Count, json::Error> {
    let (mut n, mut beam) = (Count::Absent, false);
    if s.kind()? == Kind::Object {
        s.object(|s, member| {
            let value = s.skip()?;
            let value = s.slice(value);
            visit(&member.name, value);
            if member.name == "n" {
                n = Count::read(value);
            } else if member.name == "beam_width" {
                beam = value.parse().is_ok_and(|width: u64| width > 1);
            }
            Ok(())
        })?;
    } else {
        // The worker's schema refuses it, but for null in place of all.
        s.skip()?;
        n = Count::Unreadable;
    }
    *beams |= beam;
    Ok(n)
}

/// Checks a request with `n > 1`, as an ordinary server does before it generates. One without a prompt passes: the worker
/// looks for that first, and has its own words. `stream` says whether the response would be a stream.
///
/// # Errors
/// The server refuses the request.
pub(in crate::pd::sglang) fn check(
    route: Route,
    body: &[u8],
    batch: Batch,
    stream: bool,
) -> Result<(), Invalid> {
    let mut found = Found::default();
    let mut scanner = Scanner::new(body)?;
    scanner.object(|s, member| found.read(route, s, &member.name))?;
    if !found.has_prompt(route) {
        return Ok(());
    }
    match found.refusal(batch) {
        Some(message) => Err(Invalid::Samples(Refusal::new(route, message, stream))),
        None => Ok(()),
    }
}

/// What a request has that may be at odds with `n > 1`.
#[derive(Debug, Default)]
struct Found {
    /// Of [`PROMPTS`].
    prompts: [Given; PROMPTS.len()],
    samples_differ: bool,
    /// Of [`NO_LISTS`]: whether it is a list.
    lists: [bool; NO_LISTS.len()],
    token_ids_logprob: bool,
    custom_logit_processor: bool,
    rids: Option<Vec<String>>,
}

/// The prompts of `/generate` in the order in which the engine looks at them, and those of the other routes.
const PROMPTS: [&str; 5] = ["text", "input_ids", "input_embeds", "prompt", "messages"];

/// What a field has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Given {
    /// Null counts as absent.
    #[default]
    Absent,
    /// An empty text or list.
    Empty,
    Filled,
}

impl Given {
    fn read(kind: Kind, value: &str) -> Self {
        let inside = value.get(1..value.len() - 1).unwrap_or_default();
        match kind {
            Kind::Null => Self::Absent,
            Kind::Text if inside.is_empty() => Self::Empty,
            Kind::Array if inside.trim_ascii().is_empty() => Self::Empty,
            _ => Self::Filled,
        }
    }
}

impl Found {
    /// Whether there is a prompt that passes the checks before those of `n`.
    fn has_prompt(&self, route: Route) -> bool {
        let [text, input_ids, input_embeds, prompt, messages] = self.prompts;
        match route {
            Route::Generate => match (text, input_ids) {
                (Given::Absent, Given::Absent) => input_embeds != Given::Absent,
                (Given::Absent, input_ids) => input_ids == Given::Filled,
                // All three are one too many.
                (_, Given::Empty | Given::Filled) => input_embeds == Given::Absent,
                _ => true,
            },
            Route::ChatCompletions => messages == Given::Filled,
            _ => prompt == Given::Filled,
        }
    }

    fn read(&mut self, route: Route, s: &mut Scanner<'_>, name: &str) -> Result<(), json::Error> {
        if let Some(prompt) = PROMPTS.iter().position(|prompt| *prompt == name) {
            let kind = s.kind()?;
            let value = s.skip()?;
            self.prompts[prompt] = Given::read(kind, s.slice(value));
            return Ok(());
        }
        if name == "rid" {
            self.rids = texts(s)?;
            return Ok(());
        }
        if route != Route::Generate {
            return s.skip().map(drop);
        }
        let list = s.kind()? == Kind::Array;
        match name {
            "sampling_params" if list => {
                let mut first = None;
                self.samples_differ = false;
                s.array(|s, _| {
                    let n = samples_of_one(s, &mut false, |_, _| {})?;
                    self.samples_differ |= first.get_or_insert(n.number()) != &n.number();
                    Ok(())
                })?;
                return Ok(());
            }
            "token_ids_logprob" => {
                self.token_ids_logprob = false;
                if list {
                    s.array(|s, element| {
                        self.token_ids_logprob |= element == 0 && s.kind()? == Kind::Array;
                        s.skip().map(drop)
                    })?;
                    return Ok(());
                }
            }
            "custom_logit_processor" => self.custom_logit_processor = list,
            _ => {
                if let Some(option) = NO_LISTS.iter().position(|option| *option == name) {
                    self.lists[option] = list;
                }
            }
        }
        s.skip().map(drop)
    }

    /// The engine's words, in the order of its checks.
    fn refusal(&self, batch: Batch) -> Option<String> {
        let no_list = |name: &str| {
            Some(format!(
                "Cannot use list {name} with parallel_sample_num > 1"
            ))
        };
        if self.samples_differ {
            let differ =
                "The parallel_sample_num should be the same for all samples in sample params.";
            return Some(differ.to_owned());
        }
        let rids = self.rids.as_deref();
        if rids.is_some_and(|rids| rids.len() != batch.prompts()) {
            let mismatch =
                "The specified rids length mismatch with the batch_size for batch processing.";
            return Some(mismatch.to_owned());
        }
        if let Some(option) = self.lists.iter().position(|list| *list) {
            return no_list(NO_LISTS[option]);
        }
        if self.token_ids_logprob {
            return no_list("token_ids_logprob");
        }
        if self.custom_logit_processor {
            return no_list("custom_logit_processor");
        }
        duplicates(rids?)
    }
}

/// Takes a value; its texts if it is a list of texts. Any other list is refused by the worker.
fn texts(s: &mut Scanner<'_>) -> Result<Option<Vec<String>>, json::Error> {
    if s.kind()? != Kind::Array {
        return s.skip().map(|_| None);
    }
    let (mut texts, mut all) = (Vec::new(), true);
    s.array(|s, _| {
        if s.kind()? == Kind::Text {
            texts.push(s.text()?.into_owned());
        } else {
            all = false;
            s.skip()?;
        }
        Ok(())
    })?;
    Ok(all.then_some(texts))
}

/// The refusal of ids that are there more than once.
fn duplicates(rids: &[String]) -> Option<String> {
    let mut sorted: Vec<&str> = rids.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let again = |rid: &str| {
        let first = sorted.partition_point(|known| *known < rid);
        sorted.get(first + 1).is_some_and(|next| *next == rid)
    };
    // In the order in which they are first seen, as in the engine's message.
    let mut listed: Vec<&str> = Vec::new();
    for rid in rids.iter().filter(|rid| again(rid)) {
        if !listed.contains(&rid.as_str()) && listed.len() < MAX_LISTED {
            listed.push(rid);
        }
    }
    if listed.is_empty() {
        return None;
    }
    let mut message = "Duplicate request IDs detected within the request: [".to_owned();
    for (place, rid) in listed.iter().enumerate() {
        message.push_str(if place == 0 { "" } else { ", " });
        quote(rid, &mut message);
    }
    message.push(']');
    Some(message)
}

/// The most duplicates that a message lists: it is no way to make the proxy compare every id with every other.
const MAX_LISTED: usize = 16;

/// Adds a text as Python's `repr` writes it, but for characters that cannot be printed, which stay.
fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii_control() => {
                let written = write!(out, "\\x{:02x}", u32::from(c));
                debug_assert!(written.is_ok(), "a String grows as needed");
            }
            c => out.push(c),
        }
    }
    out.push(mark);
}

/// The body of each sample: the client's without `n`, and without its `rid`, because each sample has an id of its own (an
/// id that is no text stays, and the worker refuses it). A
/// list of one `sampling_params` for one prompt that is no list becomes its only element, since only a request with
/// `n > 1` may write it so. Nothing else changes.
///
/// `facts` must have been read from this `body`.
pub fn sample_body(route: Route, body: &[u8], facts: &Facts) -> Bytes {
    // The body was parsed before, so that it is an object.
    let gaps = gaps(route, body, facts.batch).unwrap_or_default();
    let mut sample = BytesMut::with_capacity(body.len());
    let mut at = 0;
    for gap in gaps {
        sample.extend_from_slice(&body[at..gap.start]);
        at = gap.end;
    }
    sample.extend_from_slice(&body[at..]);
    sample.freeze()
}

/// The spans that a sample's body lacks, in order and without overlap.
fn gaps(route: Route, body: &[u8], batch: Batch) -> Result<Vec<Range<usize>>, json::Error> {
    let (mut cuts, mut inner) = (Cuts::default(), Vec::new());
    Scanner::new(body)?.object(|s, member| {
        let cut = match (route, &*member.name) {
            (_, "rid") => match s.kind()? {
                Kind::Array => texts(s)?.is_some(),
                kind => {
                    s.skip()?;
                    kind == Kind::Text
                }
            },
            (Route::Generate, "sampling_params") => {
                cut_samples(s, batch, &mut inner)?;
                false
            }
            (route, name) => {
                s.skip()?;
                route != Route::Generate && name == "n"
            }
        };
        if cut {
            cuts.cut(member.comma, member.start..s.at());
        } else {
            cuts.keep(member.comma);
        }
        Ok(())
    })?;
    inner.extend_from_slice(cuts.ranges());
    inner.sort_unstable_by_key(|gap: &Range<usize>| gap.start);
    Ok(inner)
}

/// Takes the value of `sampling_params`, and adds what a sample's lacks.
fn cut_samples(
    s: &mut Scanner<'_>,
    batch: Batch,
    gaps: &mut Vec<Range<usize>>,
) -> Result<(), json::Error> {
    if s.kind()? != Kind::Array {
        return cut_samples_of_one(s, gaps);
    }
    let (open, mut first_end, mut found) = (s.at(), None, Vec::new());
    let close = s.array(|s, _| {
        cut_samples_of_one(s, &mut found)?;
        first_end.get_or_insert(s.at());
        Ok(())
    })?;
    match (batch, first_end) {
        // One prompt takes the parameters of the first element.
        (Batch::Single, Some(end)) => {
            gaps.push(open..open + 1);
            gaps.extend(found.into_iter().filter(|gap| gap.end <= end));
            gaps.push(end..close + 1);
        }
        _ => gaps.append(&mut found),
    }
    Ok(())
}

fn cut_samples_of_one(
    s: &mut Scanner<'_>,
    gaps: &mut Vec<Range<usize>>,
) -> Result<(), json::Error> {
    if s.kind()? != Kind::Object {
        return s.skip().map(drop);
    }
    let mut cuts = Cuts::default();
    s.object(|s, member| {
        let value = s.skip()?;
        if member.name == "n" {
            cuts.cut(member.comma, member.start..value.end);
        } else {
            cuts.keep(member.comma);
        }
        Ok(())
    })?;
    gaps.extend_from_slice(cuts.ranges());
    Ok(())
}

#[cfg(test)]
mod tests;

//! The workers' answers, as far as merging has to know them: where in a document the few values lie that
//! are taken or replaced, and how an answer can be wrong. What may not live here: what is done with them.
//!
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (`add_logprob_to_meta_info`) and
//! `srt/entrypoints/openai/protocol.py`; captured answers under `tests/fixtures/`.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::BytesMut;

use super::super::Role;
use super::super::json::{self, Cuts, Kind, Scanner};
use super::super::sse;
use super::request::Batch;

/// Why two answers cannot be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeError {
    /// An answer is not JSON, or not an object or list where it should be.
    Malformed {
        /// Whose answer.
        leg: Role,
        /// What is wrong with it.
        error: json::Error,
    },
    /// An answer is compressed.
    Encoded {
        /// Whose answer.
        leg: Role,
    },
    /// An answer tells of an error.
    Failed {
        /// Whose answer.
        leg: Role,
    },
    /// An answer lacks something.
    Missing {
        /// Whose answer.
        leg: Role,
        /// The key that is not there.
        what: &'static str,
    },
    /// An answer is not for as many prompts as the request has.
    Count {
        /// Whose answer.
        leg: Role,
        /// Prompts of the request.
        expected: usize,
        /// Prompts of the answer.
        found: usize,
    },
    /// An answer speaks of a prompt that the request does not have.
    Index {
        /// Whose answer.
        leg: Role,
        /// The prompt's number, from 0.
        index: usize,
        /// Prompts of the request.
        prompts: usize,
    },
}

impl fmt::Display for MergeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { leg, error } => {
                write!(f, "the answer of {leg} is malformed: {error}")
            }
            Self::Encoded { leg } => write!(f, "the answer of {leg} is compressed"),
            Self::Failed { leg } => write!(f, "the answer of {leg} is an error"),
            Self::Missing { leg, what } => write!(f, "the answer of {leg} has no {what}"),
            Self::Count {
                leg,
                expected,
                found,
            } => {
                write!(
                    f,
                    "the answer of {leg} is for {found} prompts, not for {expected}"
                )
            }
            Self::Index {
                leg,
                index,
                prompts,
            } => {
                write!(
                    f,
                    "the answer of {leg} has index {index}, the request {prompts} prompts"
                )
            }
        }
    }
}

impl std::error::Error for MergeError {}

/// The items of an answer of `/generate`, as many as the request has prompts.
pub(super) fn items(batch: Batch, document: &[u8], leg: Role) -> Result<Vec<Item<'_>>, MergeError> {
    let items = read(document, leg, |s| {
        let mut items = Vec::new();
        if matches!(batch, Batch::Of(_)) && s.kind()? == Kind::Array {
            s.array(|s, _| {
                items.push(Item::read(s)?);
                Ok(())
            })?;
        } else {
            items.push(Item::read(s)?);
        }
        Ok(items)
    })?;
    sound(leg, items.iter().any(|item| item.failed))?;
    expect(leg, batch.prompts(), items.len())?;
    Ok(items)
}

pub(super) fn completion(document: &[u8], leg: Role) -> Result<Completion, MergeError> {
    let completion = read(document, leg, Completion::read)?;
    sound(leg, completion.failed)?;
    if completion.has_choices {
        Ok(completion)
    } else {
        Err(missing(leg, "choices"))
    }
}

pub(super) fn read<'a, T, F>(document: &'a [u8], leg: Role, read: F) -> Result<T, MergeError>
where
    F: FnOnce(&mut Scanner<'a>) -> Result<T, json::Error>,
{
    let all = |mut s: Scanner<'a>| {
        let value = read(&mut s)?;
        s.end()?;
        Ok(value)
    };
    Scanner::new(document)
        .and_then(all)
        .map_err(|error| MergeError::Malformed { leg, error })
}

/// Where the JSON object that an event carries lies; `None` when it carries something else.
pub(super) fn object_payload(event: &[u8]) -> Option<Range<usize>> {
    sse::data_span(event).filter(|span| event.get(span.start) == Some(&b'{'))
}

pub(super) fn expect(leg: Role, expected: usize, found: usize) -> Result<(), MergeError> {
    if found == expected {
        Ok(())
    } else {
        Err(MergeError::Count {
            leg,
            expected,
            found,
        })
    }
}

pub(super) fn sound(leg: Role, failed: bool) -> Result<(), MergeError> {
    if failed {
        Err(MergeError::Failed { leg })
    } else {
        Ok(())
    }
}

pub(super) fn missing(leg: Role, what: &'static str) -> MergeError {
    MergeError::Missing { leg, what }
}

/// One item of `/generate`, or one event of its stream.
#[derive(Default)]
pub(super) struct Item<'a> {
    pub(super) index: usize,
    pub(super) meta_info: Option<MetaInfo<'a>>,
    pub(super) failed: bool,
}

/// What of a `meta_info` is of interest. Offsets count from the start of the document.
#[derive(Default)]
pub(super) struct MetaInfo<'a> {
    /// The logprob keys of the prompt.
    pub(super) slots: Vec<Slot<'a>>,
    /// The first row of `output_token_ids_logprobs`.
    pub(super) row: Option<Row>,
    /// What would go if the nested top logprobs of the prompt went.
    pub(super) cuts: Cuts,
    /// The closing brace.
    pub(super) close: usize,
}

pub(super) struct Slot<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) start: usize,
    pub(super) value: Range<usize>,
}

pub(super) struct Row {
    pub(super) span: Range<usize>,
    /// It is null or `[]`.
    pub(super) empty: bool,
}

/// The most logprob keys of a prompt. SGLang 0.5.23 sends seven; each is compared with each.
const MAX_SLOTS: usize = 64;

/// The top logprobs of the prompt in their usual form.
pub(super) const NESTED: &str = "input_top_logprobs";

impl<'a> Item<'a> {
    pub(super) fn read(s: &mut Scanner<'a>) -> Result<Self, json::Error> {
        let mut item = Self::default();
        s.object(|s, member| {
            match &*member.name {
                "meta_info" if s.kind()? == Kind::Object => {
                    item.meta_info = Some(MetaInfo::read(s)?)
                }
                "index" => item.index = index(s)?,
                name => item.failed |= is_failure(s, name)?,
            }
            Ok(())
        })?;
        Ok(item)
    }
}

impl<'a> MetaInfo<'a> {
    pub(super) fn read(s: &mut Scanner<'a>) -> Result<Self, json::Error> {
        let mut info = Self::default();
        info.close = s.object(|s, member| {
            if member.name == "output_token_ids_logprobs" && s.kind()? == Kind::Array {
                info.row = first_row(s)?;
            } else {
                let value = s.skip()?;
                if member.name.starts_with("input_") && member.name.contains("logprobs") {
                    let (name, start, value) = (member.name.clone(), member.start, value.clone());
                    info.note(Slot { name, start, value })?;
                }
                if member.name == NESTED {
                    info.cuts.cut(member.comma, member.start..value.end);
                    return Ok(());
                }
            }
            info.cuts.keep(member.comma);
            Ok(())
        })?;
        Ok(info)
    }

    /// A repeated key counts as Python counts it: the last one wins.
    fn note(&mut self, slot: Slot<'a>) -> Result<(), json::Error> {
        self.slots.retain(|known| known.name != slot.name);
        if self.slots.len() == MAX_SLOTS {
            let what = "more logprob keys than any worker has";
            let offset = slot.start;
            return Err(json::Error::Syntax { offset, what });
        }
        self.slots.push(slot);
        Ok(())
    }
}

fn first_row(s: &mut Scanner<'_>) -> Result<Option<Row>, json::Error> {
    let mut first = None;
    s.array(|s, element| {
        let span = s.skip()?;
        if element == 0 {
            let row = s.slice(span.clone());
            let inside = row.strip_prefix('[').and_then(|row| row.strip_suffix(']'));
            let empty = row == "null" || inside.is_some_and(|row| row.trim_ascii().is_empty());
            first = Some(Row { span, empty });
        }
        Ok(())
    })?;
    Ok(first)
}

/// An answer of `/v1/completions`, or one event of its stream.
#[derive(Default)]
pub(super) struct Completion {
    pub(super) choices: Vec<Choice>,
    pub(super) has_choices: bool,
    pub(super) failed: bool,
}

#[derive(Default)]
pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) logprobs: Option<Lists>,
}

/// In the order of [`LISTS`].
pub(super) type Lists = [Option<List>; 4];

/// A list of a document.
pub(super) struct List {
    /// From behind the opening bracket to the end of the last element but one.
    pub(super) head: Range<usize>,
    pub(super) elements: usize,
}

impl Completion {
    pub(super) fn read(s: &mut Scanner<'_>) -> Result<Self, json::Error> {
        let mut completion = Self::default();
        s.object(|s, member| {
            match &*member.name {
                "choices" if s.kind()? == Kind::Array => {
                    completion.has_choices = true;
                    completion.choices.clear();
                    s.array(|s, _| {
                        completion.choices.push(Choice::read(s)?);
                        Ok(())
                    })?;
                }
                name => completion.failed |= is_failure(s, name)?,
            }
            Ok(())
        })?;
        Ok(completion)
    }
}

impl Choice {
    pub(super) fn read(s: &mut Scanner<'_>) -> Result<Self, json::Error> {
        let mut choice = Self::default();
        s.object(|s, member| {
            match &*member.name {
                "index" => choice.index = index(s)?,
                "logprobs" if s.kind()? == Kind::Object => choice.logprobs = Some(read_lists(s)?),
                _ => {
                    s.skip()?;
                }
            }
            Ok(())
        })?;
        Ok(choice)
    }
}

fn read_lists(s: &mut Scanner<'_>) -> Result<Lists, json::Error> {
    let mut lists = Lists::default();
    s.object(|s, member| {
        match LISTS.iter().position(|name| *name == member.name) {
            Some(place) if s.kind()? == Kind::Array => lists[place] = Some(List::read(s)?),
            _ => {
                s.skip()?;
            }
        }
        Ok(())
    })?;
    Ok(lists)
}

impl List {
    /// The scanner stands at the opening bracket.
    pub(super) fn read(s: &mut Scanner<'_>) -> Result<Self, json::Error> {
        let start = s.at() + 1;
        let (mut head, mut last, mut elements) = (start, start, 0);
        s.array(|s, _| {
            head = last;
            last = s.skip()?.end;
            elements += 1;
            Ok(())
        })?;
        Ok(Self {
            head: start..head,
            elements,
        })
    }
}

/// The index of a prompt; what is no index is beyond every prompt.
fn index(s: &mut Scanner<'_>) -> Result<usize, json::Error> {
    let value = s.skip()?;
    Ok(s.slice(value).parse().unwrap_or(usize::MAX))
}

/// Takes the value of a member, and tells whether that member marks its object as an error.
fn is_failure(s: &mut Scanner<'_>, name: &str) -> Result<bool, json::Error> {
    let value = s.skip()?;
    Ok(match name {
        "error" => s.slice(value) != "null",
        "object" => s.slice(value) == "\"error\"",
        _ => false,
    })
}

/// The four lists of a choice's `logprobs`. Source: SGLang 0.5.23,
/// `srt/entrypoints/openai/protocol.py` (`LogProbs`).
pub(super) const LISTS: [&str; 4] = ["tokens", "token_logprobs", "text_offset", "top_logprobs"];

/// What changes in a document, in any order.
#[derive(Default)]
pub(super) struct Edits<'a> {
    edits: Vec<(Range<usize>, &'a [u8])>,
}

impl<'a> Edits<'a> {
    pub(super) fn replace(&mut self, span: Range<usize>, text: &'a [u8]) {
        self.edits.push((span, text));
    }

    /// Texts that are inserted at one place stand there in the order of insertion.
    pub(super) fn insert(&mut self, at: usize, text: &'a [u8]) {
        self.replace(at..at, text);
    }

    /// Adds the changed document to `out`.
    pub(super) fn splice(mut self, document: &[u8], out: &mut BytesMut) {
        // A stable sort, for the insertions at one place.
        self.edits.sort_by_key(|(span, _)| span.start);
        let added: usize = self.edits.iter().map(|(_, text)| text.len()).sum();
        out.reserve(document.len() + added);
        let mut at = 0;
        for (span, text) in self.edits {
            out.extend_from_slice(&document[at..span.start]);
            out.extend_from_slice(text);
            at = span.end;
        }
        out.extend_from_slice(&document[at..]);
    }
}

//! The workers' responses, as far as a merge must read them.
//!
//! What lives here: the spans of the values that are taken or replaced, and the errors of a response. What may not: the
//! merge itself, see [`super::merge`].
//!
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (`add_logprob_to_meta_info`) and
//! `srt/entrypoints/openai/protocol.py`; captured responses under `tests/fixtures/`.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::BytesMut;

use super::super::Role;
use super::super::json::{self, Cuts, Kind, Scanner};
use super::super::sse;
use super::request::Batch;

/// Why two responses cannot be merged. `leg` is the worker whose response is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeError {
    /// The response is not JSON, or not an object or list where one belongs.
    Malformed {
        /// The leg.
        leg: Role,
        /// The mistake.
        error: json::Error,
    },
    /// The response reports an error.
    Failed {
        /// The leg.
        leg: Role,
    },
    /// The response lacks a key.
    Missing {
        /// The leg.
        leg: Role,
        /// The key.
        key: &'static str,
    },
    /// The response has more or fewer prompts than the request.
    Count {
        /// The leg.
        leg: Role,
        /// Prompts of the request.
        expected: usize,
        /// Prompts of the response.
        found: usize,
    },
    /// The response has an index that is no prompt of the request.
    Index {
        /// The leg.
        leg: Role,
        /// The index, from 0.
        index: usize,
        /// Prompts of the request.
        prompts: usize,
    },
}

impl fmt::Display for MergeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { leg, error } => {
                write!(f, "{leg}'s response is malformed: {error}")
            }
            Self::Failed { leg } => write!(f, "{leg}'s response is an error"),
            Self::Missing { leg, key } => write!(f, "{leg}'s response has no {key}"),
            Self::Count {
                leg,
                expected,
                found,
            } => {
                write!(
                    f,
                    "{leg}'s response is for {found} prompts, not for {expected}"
                )
            }
            Self::Index {
                leg,
                index,
                prompts,
            } => {
                write!(
                    f,
                    "{leg}'s response has index {index}, but the request has {prompts} prompts"
                )
            }
        }
    }
}

impl std::error::Error for MergeError {}

/// The items of a document of `/generate`: one for each prompt of the request.
pub(super) fn items(batch: Batch, document: &[u8], leg: Role) -> Result<Vec<Item<'_>>, MergeError> {
    let items = parse_document(document, leg, |s| {
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
    reject_failed(leg, items.iter().any(|item| item.failed))?;
    check_count(leg, batch.prompts(), items.len())?;
    Ok(items)
}

/// A document of `/v1/completions`.
pub(super) fn completion(document: &[u8], leg: Role) -> Result<Completion, MergeError> {
    let completion = parse_document(document, leg, Completion::read)?;
    reject_failed(leg, completion.failed)?;
    if completion.has_choices {
        Ok(completion)
    } else {
        Err(missing_key(leg, "choices"))
    }
}

/// Reads a whole document with `read`, which must take its only value.
pub(super) fn parse_document<'a, T, F>(
    document: &'a [u8],
    leg: Role,
    read: F,
) -> Result<T, MergeError>
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

/// The span of the JSON object that an event carries; `None` when it carries something else.
pub(super) fn object_payload(event: &[u8]) -> Option<Range<usize>> {
    sse::data_span(event).filter(|span| event.get(span.start) == Some(&b'{'))
}

pub(super) fn check_count(leg: Role, expected: usize, found: usize) -> Result<(), MergeError> {
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

pub(super) fn reject_failed(leg: Role, failed: bool) -> Result<(), MergeError> {
    if failed {
        Err(MergeError::Failed { leg })
    } else {
        Ok(())
    }
}

pub(super) fn missing_key(leg: Role, key: &'static str) -> MergeError {
    MergeError::Missing { leg, key }
}

/// One item of a document of `/generate`, or one event of its stream.
#[derive(Default)]
pub(super) struct Item<'a> {
    pub(super) index: usize,
    pub(super) meta_info: Option<MetaInfo<'a>>,
    /// Whether it reports an error.
    pub(super) failed: bool,
}

/// The parts of a `meta_info` that a merge needs. Offsets are in bytes from the start of the document.
#[derive(Default)]
pub(super) struct MetaInfo<'a> {
    /// The members with logprobs of the prompt.
    pub(super) prompt_logprobs: Vec<LogprobMember<'a>>,
    /// The first row of `output_token_ids_logprobs`.
    pub(super) first_row: Option<FirstRow>,
    /// The bytes to leave out in order to remove the nested top logprobs of the prompt.
    pub(super) cuts: Cuts,
    /// The offset of the closing brace.
    pub(super) close: usize,
}

/// A member of `meta_info` with logprobs of the prompt.
pub(super) struct LogprobMember<'a> {
    pub(super) name: Cow<'a, str>,
    /// The offset of the opening quote of the name.
    pub(super) start: usize,
    pub(super) value: Range<usize>,
}

/// The first row of `output_token_ids_logprobs`.
pub(super) struct FirstRow {
    pub(super) span: Range<usize>,
    /// Whether it is null or `[]`.
    pub(super) empty: bool,
}

/// The most members with logprobs of a prompt, because each is compared with all others. SGLang 0.5.23 sends seven.
const MAX_PROMPT_LOGPROBS: usize = 64;

/// The key of the top logprobs of the prompt as nested lists; the flat form has keys that begin with this one.
pub(super) const NESTED_TOP_LOGPROBS: &str = "input_top_logprobs";

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
                info.first_row = first_row(s)?;
            } else {
                let value = s.skip()?;
                if member.name.starts_with("input_") && member.name.contains("logprobs") {
                    let (name, start, value) = (member.name.clone(), member.start, value.clone());
                    info.add(LogprobMember { name, start, value })?;
                }
                if member.name == NESTED_TOP_LOGPROBS {
                    info.cuts.cut(member.comma, member.start..value.end);
                    return Ok(());
                }
            }
            info.cuts.keep(member.comma);
            Ok(())
        })?;
        Ok(info)
    }

    /// A repeated key counts as in Python: the last one wins.
    fn add(&mut self, member: LogprobMember<'a>) -> Result<(), json::Error> {
        self.prompt_logprobs
            .retain(|known| known.name != member.name);
        if self.prompt_logprobs.len() == MAX_PROMPT_LOGPROBS {
            let what = "more logprob keys than any worker has";
            let offset = member.start;
            return Err(json::Error::Syntax { offset, what });
        }
        self.prompt_logprobs.push(member);
        Ok(())
    }
}

/// Takes the list of rows.
fn first_row(s: &mut Scanner<'_>) -> Result<Option<FirstRow>, json::Error> {
    let mut first = None;
    s.array(|s, element| {
        let span = s.skip()?;
        if element == 0 {
            let row = s.slice(span.clone());
            let inside = row.strip_prefix('[').and_then(|row| row.strip_suffix(']'));
            let empty = row == "null" || inside.is_some_and(|row| row.trim_ascii().is_empty());
            first = Some(FirstRow { span, empty });
        }
        Ok(())
    })?;
    Ok(first)
}

/// A document of `/v1/completions`, or one event of its stream.
#[derive(Default)]
pub(super) struct Completion {
    pub(super) choices: Vec<Choice>,
    pub(super) has_choices: bool,
    /// Whether it reports an error.
    pub(super) failed: bool,
}

/// One choice of a completion.
#[derive(Default)]
pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) logprobs: Option<LogprobLists>,
}

/// The lists of a choice's `logprobs`, in the order of [`LOGPROB_LISTS`].
pub(super) type LogprobLists = [Option<LogprobList>; 4];

/// One of those lists.
pub(super) struct LogprobList {
    /// From after the opening bracket to the end of the last element but one: the prompt's part of prefill's list.
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

fn read_lists(s: &mut Scanner<'_>) -> Result<LogprobLists, json::Error> {
    let mut lists = LogprobLists::default();
    s.object(|s, member| {
        match LOGPROB_LISTS.iter().position(|name| *name == member.name) {
            Some(index) if s.kind()? == Kind::Array => lists[index] = Some(LogprobList::read(s)?),
            _ => {
                s.skip()?;
            }
        }
        Ok(())
    })?;
    Ok(lists)
}

impl LogprobList {
    /// Reads a list whose opening bracket is the next byte.
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

/// The index of a prompt. A value that is no index becomes one beyond every prompt.
fn index(s: &mut Scanner<'_>) -> Result<usize, json::Error> {
    let value = s.skip()?;
    Ok(s.slice(value).parse().unwrap_or(usize::MAX))
}

/// Takes the value of a member, and returns whether that member marks its object as an error.
fn is_failure(s: &mut Scanner<'_>, name: &str) -> Result<bool, json::Error> {
    let value = s.skip()?;
    Ok(match name {
        "error" => s.slice(value) != "null",
        "object" => s.slice(value) == "\"error\"",
        _ => false,
    })
}

/// The keys of the lists of a choice's `logprobs`.
///
/// Source: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py` (`LogProbs`).
pub(super) const LOGPROB_LISTS: [&str; 4] =
    ["tokens", "token_logprobs", "text_offset", "top_logprobs"];

/// The changes of a document, in any order.
#[derive(Default)]
pub(super) struct Edits<'a> {
    edits: Vec<(Range<usize>, Cow<'a, [u8]>)>,
}

impl<'a> Edits<'a> {
    pub(super) fn replace(&mut self, span: Range<usize>, text: &'a [u8]) {
        self.edits.push((span, Cow::Borrowed(text)));
    }

    /// As [`Self::replace`], by a text of its own.
    pub(super) fn rewrite(&mut self, span: Range<usize>, text: impl Into<Vec<u8>>) {
        self.edits.push((span, Cow::Owned(text.into())));
    }

    /// Several texts inserted at one offset keep the order of insertion.
    pub(super) fn insert(&mut self, at: usize, text: &'a [u8]) {
        self.replace(at..at, text);
    }

    /// Adds the changed document to `out`.
    pub(super) fn splice(mut self, document: &[u8], out: &mut BytesMut) {
        // A stable sort, which keeps the order of insertions at one offset.
        self.edits.sort_by_key(|(span, _)| span.start);
        let added: usize = self.edits.iter().map(|(_, text)| text.len()).sum();
        out.reserve(document.len() + added);
        let mut at = 0;
        for (span, text) in self.edits {
            out.extend_from_slice(&document[at..span.start]);
            out.extend_from_slice(&text);
            at = span.end;
        }
        out.extend_from_slice(&document[at..]);
    }
}

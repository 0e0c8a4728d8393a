//! MERGE: what only prefill knows of the prompt goes into decode's answer.
//!
//! What lives here: the shapes of the two answers and the splice. It takes whole documents and whole
//! events, never chunks, and copies bytes without reading a number. What may not: waiting for either leg.
//!
//! Decode's answer is complete but for the prompt. On `/generate` its `meta_info` has the `input_*` logprob
//! keys without content and null in place of the first row of `output_token_ids_logprobs`; prefill has
//! both, and an ordinary server sends the former with every event of a stream. On `/v1/completions` with
//! `echo` and `logprobs`, prefill's four lists cover the prompt and one generated token; the prompt's part
//! belongs in front of decode's lists, in a stream into the first event of each choice.
//!
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (`add_logprob_to_meta_info`),
//! `srt/disaggregation/decode.py` ("Prefill omits these scores"),
//! `srt/entrypoints/openai/serving_completions.py`; captured answers under `tests/fixtures/`.

use std::fmt;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::Role;
use super::answer::{Completion, Edits, Item, LISTS, List, Lists, MetaInfo, NESTED, Slot};
use super::json::{self, Kind, Scanner};
use super::request::{Batch, Merge};
use super::sse::{self, EventTooLong, Splitter};

/// What prefill knows of each prompt: slices of prefill's own answer.
#[derive(Clone, Debug)]
pub struct PromptSide {
    batch: Batch,
    prompts: Prompts,
}

impl PromptSide {
    /// Reads prefill's whole answer to a request without streaming.
    ///
    /// # Errors
    /// When the answer is not JSON, tells of an error, or lacks what is to be merged.
    pub fn from_body(merge: Merge, batch: Batch, body: Bytes) -> Result<Self, MergeError> {
        let mut prompts = Found::new(merge, batch);
        match merge {
            Merge::None => {}
            Merge::InputLogprobs => {
                for (index, item) in items(batch, &body, Role::Prefill)?.into_iter().enumerate() {
                    prompts.item(index, &body, item)?;
                }
            }
            Merge::Echo => prompts.choices(&body, completion(&body, Role::Prefill)?)?,
        }
        prompts.complete()
    }

    /// Reads prefill's whole stream.
    ///
    /// # Errors
    /// As [`Self::from_body`].
    pub fn from_stream(merge: Merge, batch: Batch, body: Bytes) -> Result<Self, MergeError> {
        let mut prompts = Found::new(merge, batch);
        let mut splitter = Splitter::new(body.len());
        splitter.push(body);
        while let Some(event) = splitter.next_event().map_err(MergeError::EventTooLong)? {
            let Some(payload) = object_payload(&event) else {
                continue;
            };
            let payload = event.slice(payload);
            match merge {
                Merge::None => {}
                Merge::InputLogprobs => {
                    let item = read(&payload, Role::Prefill, Item::read)?;
                    prompts.item(item.index, &payload, item)?;
                }
                Merge::Echo => {
                    let completion = read(&payload, Role::Prefill, Completion::read)?;
                    prompts.choices(&payload, completion)?;
                }
            }
        }
        prompts.complete()
    }
}

/// Makes the client's answer of decode's whole answer to a request without streaming.
///
/// # Errors
/// When decode's answer is not JSON, tells of an error, or is not of the shape of the request.
pub fn body(side: &PromptSide, decode: Bytes) -> Result<Bytes, MergeError> {
    let mut edits = Edits::default();
    match &side.prompts {
        Prompts::Nothing => return Ok(decode),
        Prompts::Logprobs(prompts) => {
            for (prompt, item) in prompts
                .iter()
                .zip(items(side.batch, &decode, Role::Decode)?)
            {
                let meta_info = item.meta_info.ok_or(missing(Role::Decode, "meta_info"))?;
                prompt.edit(&meta_info, &mut edits);
            }
        }
        Prompts::Echo(prompts) => {
            let choices = completion(&decode, Role::Decode)?.choices;
            expect(Role::Decode, prompts.len(), choices.len())?;
            for choice in choices {
                let logprobs = choice.logprobs.ok_or(missing(Role::Decode, "logprobs"))?;
                prompt_of(prompts, choice.index, Role::Decode)?.edit(&logprobs, &mut edits);
            }
        }
    }
    let mut merged = BytesMut::new();
    edits.splice(&decode, &mut merged);
    Ok(merged.freeze())
}

/// Makes the client's events of decode's.
#[derive(Debug)]
pub struct StreamMerger {
    side: PromptSide,
    /// For each choice of `/v1/completions`: the prompt's part was sent.
    echoed: Vec<bool>,
}

impl StreamMerger {
    /// A merger at the start of decode's stream.
    pub fn new(side: PromptSide) -> Self {
        let echoed = vec![false; side.batch.prompts()];
        Self { side, echoed }
    }

    /// Adds the client's event for one whole event of decode to `out`. The end of the stream, comments,
    /// errors and whatever else carries nothing to be merged pass unchanged.
    ///
    /// # Errors
    /// When the event begins like JSON and is not, or speaks of a prompt that the request does not have.
    /// Nothing is added to `out` then.
    pub fn event(&mut self, event: &[u8], out: &mut BytesMut) -> Result<(), MergeError> {
        let Some(span) = object_payload(event) else {
            out.extend_from_slice(event);
            return Ok(());
        };
        let payload = &event[span.clone()];
        let mut edits = Edits::default();
        match &self.side.prompts {
            Prompts::Nothing => {}
            Prompts::Logprobs(prompts) => {
                let item = read(payload, Role::Decode, Item::read)?;
                if let Some(meta_info) = item.meta_info {
                    prompt_of(prompts, item.index, Role::Decode)?.edit(&meta_info, &mut edits);
                }
            }
            Prompts::Echo(prompts) => {
                for choice in read(payload, Role::Decode, Completion::read)?.choices {
                    let prompt = prompt_of(prompts, choice.index, Role::Decode)?;
                    if let (Some(logprobs), false) = (choice.logprobs, self.echoed[choice.index]) {
                        prompt.edit(&logprobs, &mut edits);
                        self.echoed[choice.index] = true;
                    }
                }
            }
        }
        out.extend_from_slice(&event[..span.start]);
        edits.splice(payload, out);
        out.extend_from_slice(&event[span.end..]);
        Ok(())
    }
}

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
    /// An event of prefill's stream is too long.
    EventTooLong(EventTooLong),
}

impl fmt::Display for MergeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { leg, error } => {
                write!(f, "the answer of {leg} is malformed: {error}")
            }
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
            Self::EventTooLong(error) => write!(f, "the answer of prefill: {error}"),
        }
    }
}

impl std::error::Error for MergeError {}

/// The prompts' data, by index.
#[derive(Clone, Debug)]
enum Prompts {
    Nothing,
    Logprobs(Vec<Logprobs>),
    Echo(Vec<Echo>),
}

/// Prefill's part of one item of `/generate`.
#[derive(Clone, Debug)]
struct Logprobs {
    entries: Vec<Entry>,
    /// The first row of `output_token_ids_logprobs`.
    first_row: Option<Bytes>,
    /// Whether the top logprobs come as flat arrays only, so that nested ones must not stand beside them.
    flat: bool,
}

/// One logprob key of the prompt.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    value: Bytes,
    /// Key, colon and value.
    member: Bytes,
}

impl Logprobs {
    fn new(document: &Bytes, meta_info: &MetaInfo<'_>) -> Self {
        let entry = |slot: &Slot<'_>| Entry {
            name: slot.name.clone().into_owned(),
            value: document.slice(slot.value.clone()),
            member: document.slice(slot.start..slot.value.end),
        };
        let entries: Vec<Entry> = meta_info.slots.iter().map(entry).collect();
        let named = |name: &str| entries.iter().any(|entry| entry.name == name);
        let some_flat = entries
            .iter()
            .any(|entry| entry.name.starts_with("input_top_logprobs_"));
        let flat = some_flat && !named(NESTED);
        let row = meta_info.row.as_ref().filter(|row| !row.empty);
        let first_row = row.map(|row| document.slice(row.span.clone()));
        Self {
            entries,
            first_row,
            flat,
        }
    }

    /// What has to change in an item of decode.
    fn edit<'a>(&'a self, meta_info: &MetaInfo<'_>, edits: &mut Edits<'a>) {
        let slot = |entry: &Entry| meta_info.slots.iter().find(|slot| slot.name == entry.name);
        let mut empty =
            meta_info.cuts.leaves_nothing() && (self.flat || meta_info.slots.is_empty());
        for entry in &self.entries {
            match slot(entry) {
                Some(slot) => edits.replace(slot.value.clone(), &entry.value),
                None => {
                    let comma: &[u8] = if empty { b"" } else { b"," };
                    edits.insert(meta_info.close, comma);
                    edits.insert(meta_info.close, &entry.member);
                    empty = false;
                }
            }
        }
        if self.flat {
            for range in meta_info.cuts.ranges() {
                edits.replace(range.clone(), b"");
            }
        }
        // In an incremental stream only the first event begins with token 0; a later row is not null.
        let empty_row = meta_info.row.as_ref().filter(|row| row.empty);
        if let (Some(first_row), Some(row)) = (&self.first_row, empty_row) {
            edits.replace(row.span.clone(), first_row);
        }
    }
}

/// Prefill's part of one choice of `/v1/completions`: the elements of each list that belong to the prompt,
/// which are all but the last, without the brackets.
#[derive(Clone, Debug)]
struct Echo {
    heads: [Bytes; 4],
}

impl Echo {
    fn new(document: &Bytes, lists: &Lists) -> Result<Self, MergeError> {
        if lists[0].is_none() {
            return Err(missing(Role::Prefill, LISTS[0]));
        }
        let head =
            |list: &Option<List>| list.as_ref().map(|list| document.slice(list.head.clone()));
        Ok(Self {
            heads: lists.each_ref().map(|list| head(list).unwrap_or_default()),
        })
    }

    fn edit<'a>(&'a self, lists: &Lists, edits: &mut Edits<'a>) {
        for (head, list) in self.heads.iter().zip(lists) {
            if let (Some(list), false) = (list, head.is_empty()) {
                edits.insert(list.head.start, head);
                edits.insert(list.head.start, if list.elements == 0 { b"" } else { b"," });
            }
        }
    }
}

/// What was found in prefill's answer so far, by index.
struct Found {
    merge: Merge,
    batch: Batch,
    logprobs: Vec<Option<Logprobs>>,
    echoes: Vec<Option<Echo>>,
}

impl Found {
    fn new(merge: Merge, batch: Batch) -> Self {
        let prompts = |wanted| if merge == wanted { batch.prompts() } else { 0 };
        Self {
            merge,
            batch,
            logprobs: vec![None; prompts(Merge::InputLogprobs)],
            echoes: vec![None; prompts(Merge::Echo)],
        }
    }

    fn item(&mut self, index: usize, document: &Bytes, item: Item<'_>) -> Result<(), MergeError> {
        sound(Role::Prefill, item.failed)?;
        let meta_info = item.meta_info.ok_or(missing(Role::Prefill, "meta_info"))?;
        *place(&mut self.logprobs, index)? = Some(Logprobs::new(document, &meta_info));
        Ok(())
    }

    /// Other events than those of the tokens have choices too, without logprobs.
    fn choices(&mut self, document: &Bytes, completion: Completion) -> Result<(), MergeError> {
        sound(Role::Prefill, completion.failed)?;
        for choice in completion.choices {
            let echo = place(&mut self.echoes, choice.index)?;
            if let Some(lists) = choice.logprobs {
                *echo = Some(Echo::new(document, &lists)?);
            }
        }
        Ok(())
    }

    fn complete(self) -> Result<PromptSide, MergeError> {
        let prompts = match self.merge {
            Merge::None => Prompts::Nothing,
            Merge::InputLogprobs => {
                let expected = self.logprobs.len();
                let prompts: Vec<Logprobs> = self.logprobs.into_iter().flatten().collect();
                expect(Role::Prefill, expected, prompts.len())?;
                // Without `return_logprob` a prompt of a batch has none, but not all of them.
                if !prompts.is_empty() && prompts.iter().all(|prompt| prompt.entries.is_empty()) {
                    return Err(missing(Role::Prefill, "input_token_logprobs"));
                }
                Prompts::Logprobs(prompts)
            }
            Merge::Echo => {
                let prompts: Option<Vec<Echo>> = self.echoes.into_iter().collect();
                Prompts::Echo(prompts.ok_or(missing(Role::Prefill, "logprobs"))?)
            }
        };
        Ok(PromptSide {
            batch: self.batch,
            prompts,
        })
    }
}

/// The items of an answer of `/generate`, as many as the request has prompts.
fn items(batch: Batch, document: &[u8], leg: Role) -> Result<Vec<Item<'_>>, MergeError> {
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

fn completion(document: &[u8], leg: Role) -> Result<Completion, MergeError> {
    let completion = read(document, leg, Completion::read)?;
    sound(leg, completion.failed)?;
    if completion.has_choices {
        Ok(completion)
    } else {
        Err(missing(leg, "choices"))
    }
}

fn read<'a, T, F>(document: &'a [u8], leg: Role, read: F) -> Result<T, MergeError>
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
fn object_payload(event: &[u8]) -> Option<Range<usize>> {
    sse::data_span(event).filter(|span| event.get(span.start) == Some(&b'{'))
}

fn prompt_of<T>(prompts: &[T], index: usize, leg: Role) -> Result<&T, MergeError> {
    prompts.get(index).ok_or(MergeError::Index {
        leg,
        index,
        prompts: prompts.len(),
    })
}

fn place<T>(prompts: &mut [T], index: usize) -> Result<&mut T, MergeError> {
    let error = MergeError::Index {
        leg: Role::Prefill,
        index,
        prompts: prompts.len(),
    };
    prompts.get_mut(index).ok_or(error)
}

fn expect(leg: Role, expected: usize, found: usize) -> Result<(), MergeError> {
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

fn sound(leg: Role, failed: bool) -> Result<(), MergeError> {
    if failed {
        Err(MergeError::Failed { leg })
    } else {
        Ok(())
    }
}

fn missing(leg: Role, what: &'static str) -> MergeError {
    MergeError::Missing { leg, what }
}

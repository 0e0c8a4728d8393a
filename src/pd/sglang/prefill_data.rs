//! What prefill knows of the prompts, read from its answer and kept as slices of it, and what that changes
//! in a document of decode. What may not live here: decode's documents as a whole, see [`super::merge`].
//!
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (`add_logprob_to_meta_info`),
//! `srt/disaggregation/decode.py` ("Prefill omits these scores") and
//! `srt/entrypoints/openai/utils.py` (`to_openai_style_logprobs`).

use bytes::Bytes;

use super::super::Role;
use super::super::sse;
use super::request::{Batch, Merge};
use super::worker_response::{
    Completion, Edits, Item, LISTS, List, Lists, MergeError, MetaInfo, NESTED, Slot, completion,
    expect, items, missing, object_payload, read, sound,
};

/// What prefill knows of each prompt: slices of prefill's own answer.
#[derive(Clone, Debug)]
pub struct PrefillData {
    pub(super) batch: Batch,
    pub(super) prompts: Prompts,
}

impl PrefillData {
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
        for event in sse::events(body) {
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

/// The prompts' data, by index.
#[derive(Clone, Debug)]
pub(super) enum Prompts {
    Nothing,
    Logprobs(Vec<Logprobs>),
    Echo(Vec<Echo>),
}

/// Prefill's part of one item of `/generate`.
#[derive(Clone, Debug)]
pub(super) struct Logprobs {
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
    pub(super) fn edit<'a>(&'a self, meta_info: &MetaInfo<'_>, edits: &mut Edits<'a>) {
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
pub(super) struct Echo {
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

    pub(super) fn edit<'a>(&'a self, lists: &Lists, edits: &mut Edits<'a>) {
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

    fn complete(self) -> Result<PrefillData, MergeError> {
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
        Ok(PrefillData {
            batch: self.batch,
            prompts,
        })
    }
}

fn place<T>(prompts: &mut [T], index: usize) -> Result<&mut T, MergeError> {
    let error = MergeError::Index {
        leg: Role::Prefill,
        index,
        prompts: prompts.len(),
    };
    prompts.get_mut(index).ok_or(error)
}

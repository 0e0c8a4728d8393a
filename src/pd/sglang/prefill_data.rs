//! The data of the prompts that only prefill has, and the changes that they make in decode's documents.
//!
//! What lives here: reading the data from prefill's response, as slices of it, and the edits of one item or choice of
//! decode's. What may not: decode's documents as a whole, see [`super::merge`].
//!
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (`add_logprob_to_meta_info`),
//! `srt/disaggregation/decode.py` ("Prefill omits these scores") and
//! `srt/entrypoints/openai/utils.py` (`to_openai_style_logprobs`).

use bytes::Bytes;

use super::super::Role;
use super::super::sse;
use super::request::{Batch, Merge};
use super::worker_response::{
    Completion, Edits, Item, LOGPROB_LISTS, LogprobList, LogprobLists, LogprobMember, MergeError,
    MetaInfo, NESTED_TOP_LOGPROBS, check_count, completion, items, missing_key, object_payload,
    parse_document, reject_failed,
};

/// Prefill's data of each prompt, as slices of its response.
#[derive(Clone, Debug)]
pub struct PrefillData {
    pub(super) batch: Batch,
    pub(super) prompts: Prompts,
}

impl PrefillData {
    /// Reads prefill's document, the response to a request without streaming.
    ///
    /// # Errors
    /// The response is not JSON, reports an error, or lacks data that must be merged.
    pub fn from_body(merge: Merge, batch: Batch, body: Bytes) -> Result<Self, MergeError> {
        let mut prompts = PrefillReader::new(merge, batch);
        match merge {
            Merge::None => {}
            Merge::InputLogprobs => {
                for (index, item) in items(batch, &body, Role::Prefill)?.into_iter().enumerate() {
                    prompts.item(index, &body, item)?;
                }
            }
            Merge::Echo => prompts.choices(&body, completion(&body, Role::Prefill)?)?,
        }
        prompts.finish()
    }

    /// Reads prefill's whole stream.
    ///
    /// # Errors
    /// As [`Self::from_body`].
    pub fn from_stream(merge: Merge, batch: Batch, body: Bytes) -> Result<Self, MergeError> {
        let mut prompts = PrefillReader::new(merge, batch);
        for event in sse::events(body) {
            let Some(payload) = object_payload(&event) else {
                continue;
            };
            let payload = event.slice(payload);
            match merge {
                Merge::None => {}
                Merge::InputLogprobs => {
                    let item = parse_document(&payload, Role::Prefill, Item::read)?;
                    prompts.item(item.index, &payload, item)?;
                }
                Merge::Echo => {
                    let completion = parse_document(&payload, Role::Prefill, Completion::read)?;
                    prompts.choices(&payload, completion)?;
                }
            }
        }
        prompts.finish()
    }
}

/// The prompts' data, by index.
#[derive(Clone, Debug)]
pub(super) enum Prompts {
    Nothing,
    Logprobs(Vec<PromptLogprobs>),
    Echo(Vec<EchoedLists>),
}

/// Prefill's data for one item of `/generate`.
#[derive(Clone, Debug)]
pub(super) struct PromptLogprobs {
    entries: Vec<Entry>,
    /// The first row of `output_token_ids_logprobs`.
    first_row: Option<Bytes>,
    /// Whether the top logprobs come only as flat arrays, so that decode's nested ones must be removed.
    flat: bool,
}

/// One member with logprobs of the prompt.
#[derive(Clone, Debug)]
struct Entry {
    name: String,
    value: Bytes,
    /// Key, colon and value.
    member: Bytes,
}

impl PromptLogprobs {
    fn new(document: &Bytes, meta_info: &MetaInfo<'_>) -> Self {
        let entry = |member: &LogprobMember<'_>| Entry {
            name: member.name.clone().into_owned(),
            value: document.slice(member.value.clone()),
            member: document.slice(member.start..member.value.end),
        };
        let entries: Vec<Entry> = meta_info.prompt_logprobs.iter().map(entry).collect();
        let named = |name: &str| entries.iter().any(|entry| entry.name == name);
        let some_flat = entries
            .iter()
            .any(|entry| entry.name.starts_with("input_top_logprobs_"));
        let flat = some_flat && !named(NESTED_TOP_LOGPROBS);
        let row = meta_info.first_row.as_ref().filter(|row| !row.empty);
        let first_row = row.map(|row| document.slice(row.span.clone()));
        Self {
            entries,
            first_row,
            flat,
        }
    }

    /// The changes of an item of decode.
    pub(super) fn edit<'a>(&'a self, meta_info: &MetaInfo<'_>, edits: &mut Edits<'a>) {
        let decodes = |entry: &Entry| {
            let mut members = meta_info.prompt_logprobs.iter();
            members.find(|member| member.name == entry.name)
        };
        // Whether the object has no member, so that the first one inserted needs no comma.
        let mut empty =
            meta_info.cuts.leaves_nothing() && (self.flat || meta_info.prompt_logprobs.is_empty());
        for entry in &self.entries {
            match decodes(entry) {
                Some(member) => edits.replace(member.value.clone(), &entry.value),
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
        // In an incremental stream only the first event begins with token 0: the first row of a later event is not empty.
        let empty_row = meta_info.first_row.as_ref().filter(|row| row.empty);
        if let (Some(first_row), Some(row)) = (&self.first_row, empty_row) {
            edits.replace(row.span.clone(), first_row);
        }
    }
}

/// Prefill's data for one choice of `/v1/completions`: the elements of each list that belong to the prompt, which are
/// all but the last, without the brackets.
#[derive(Clone, Debug)]
pub(super) struct EchoedLists {
    heads: [Bytes; 4],
}

impl EchoedLists {
    fn new(document: &Bytes, lists: &LogprobLists) -> Result<Self, MergeError> {
        if lists[0].is_none() {
            return Err(missing_key(Role::Prefill, LOGPROB_LISTS[0]));
        }
        let head = |list: &Option<LogprobList>| {
            list.as_ref().map(|list| document.slice(list.head.clone()))
        };
        Ok(Self {
            heads: lists.each_ref().map(|list| head(list).unwrap_or_default()),
        })
    }

    /// The changes of a choice of decode.
    pub(super) fn edit<'a>(&'a self, lists: &LogprobLists, edits: &mut Edits<'a>) {
        for (head, list) in self.heads.iter().zip(lists) {
            if let (Some(list), false) = (list, head.is_empty()) {
                edits.insert(list.head.start, head);
                edits.insert(list.head.start, if list.elements == 0 { b"" } else { b"," });
            }
        }
    }
}

/// Reads prefill's response item by item. The data are ordered by the index of the prompt.
struct PrefillReader {
    merge: Merge,
    batch: Batch,
    logprobs: Vec<Option<PromptLogprobs>>,
    echoes: Vec<Option<EchoedLists>>,
}

impl PrefillReader {
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
        reject_failed(Role::Prefill, item.failed)?;
        let meta_info = item
            .meta_info
            .ok_or(missing_key(Role::Prefill, "meta_info"))?;
        *of_prompt(&mut self.logprobs, index)? = Some(PromptLogprobs::new(document, &meta_info));
        Ok(())
    }

    /// Events without tokens have choices too, without logprobs.
    fn choices(&mut self, document: &Bytes, completion: Completion) -> Result<(), MergeError> {
        reject_failed(Role::Prefill, completion.failed)?;
        for choice in completion.choices {
            let echo = of_prompt(&mut self.echoes, choice.index)?;
            if let Some(lists) = choice.logprobs {
                *echo = Some(EchoedLists::new(document, &lists)?);
            }
        }
        Ok(())
    }

    /// The data, once the whole response was read.
    fn finish(self) -> Result<PrefillData, MergeError> {
        let prompts = match self.merge {
            Merge::None => Prompts::Nothing,
            Merge::InputLogprobs => {
                let expected = self.logprobs.len();
                let prompts: Vec<PromptLogprobs> = self.logprobs.into_iter().flatten().collect();
                check_count(Role::Prefill, expected, prompts.len())?;
                // One prompt of a batch may have none, where its `return_logprob` is false, but not all of them.
                if !prompts.is_empty() && prompts.iter().all(|prompt| prompt.entries.is_empty()) {
                    return Err(missing_key(Role::Prefill, "input_token_logprobs"));
                }
                Prompts::Logprobs(prompts)
            }
            Merge::Echo => {
                let prompts: Option<Vec<EchoedLists>> = self.echoes.into_iter().collect();
                Prompts::Echo(prompts.ok_or(missing_key(Role::Prefill, "logprobs"))?)
            }
        };
        Ok(PrefillData {
            batch: self.batch,
            prompts,
        })
    }
}

fn of_prompt<T>(prompts: &mut [T], index: usize) -> Result<&mut T, MergeError> {
    let error = MergeError::Index {
        leg: Role::Prefill,
        index,
        prompts: prompts.len(),
    };
    prompts.get_mut(index).ok_or(error)
}

//! MERGE: prefill's data of the prompt go into decode's response.
//!
//! What lives here: decode's documents and events become the client's. It takes whole ones, never chunks, and copies
//! bytes without reading a number. What may not: waiting for either leg.
//!
//! Decode's response lacks only the prompt. On `/generate` its `meta_info` has the `input_*` logprob keys without content
//! and null as the first row of `output_token_ids_logprobs`; prefill has both, and an ordinary server sends the former
//! with every event of a stream. On `/v1/completions` with `echo` and `logprobs`, prefill's four lists cover the prompt
//! and one generated token; the prompt's part belongs in front of decode's lists, in a stream into the first event of
//! each choice.
//!
//! Source: SGLang 0.5.23, `srt/managers/tokenizer_manager.py` (`add_logprob_to_meta_info`),
//! `srt/disaggregation/decode.py` ("Prefill omits these scores"),
//! `srt/entrypoints/openai/serving_completions.py`; captured responses under `tests/fixtures/`.

use bytes::{Bytes, BytesMut};

use super::super::Role;
use super::prefill_data::{PrefillData, Prompts};
use super::worker_response::{
    Completion, Edits, Item, MergeError, check_count, completion, items, missing_key,
    object_payload, parse_document,
};

/// Makes the client's document of decode's, the response to a request without streaming.
///
/// # Errors
/// Decode's document is not JSON, reports an error, or has another shape than the request asks for.
pub fn body(data: &PrefillData, decode: Bytes) -> Result<Bytes, MergeError> {
    let mut edits = Edits::default();
    match &data.prompts {
        Prompts::Nothing => return Ok(decode),
        Prompts::Logprobs(prompts) => {
            for (prompt, item) in prompts
                .iter()
                .zip(items(data.batch, &decode, Role::Decode)?)
            {
                let meta_info = item
                    .meta_info
                    .ok_or(missing_key(Role::Decode, "meta_info"))?;
                prompt.edit(&meta_info, &mut edits);
            }
        }
        Prompts::Echo(prompts) => {
            let choices = completion(&decode, Role::Decode)?.choices;
            check_count(Role::Decode, prompts.len(), choices.len())?;
            for choice in choices {
                let logprobs = choice
                    .logprobs
                    .ok_or(missing_key(Role::Decode, "logprobs"))?;
                prompt_of(prompts, choice.index, Role::Decode)?.edit(&logprobs, &mut edits);
            }
        }
    }
    let mut merged = BytesMut::new();
    edits.splice(&decode, &mut merged);
    Ok(merged.freeze())
}

/// Makes the client's events of decode's, one by one.
#[derive(Debug)]
pub struct StreamMerger {
    data: PrefillData,
    /// For each choice of `/v1/completions`: whether the prompt's part was sent.
    echoed: Vec<bool>,
}

impl StreamMerger {
    /// A merger at the start of decode's stream.
    pub fn new(data: PrefillData) -> Self {
        let echoed = vec![false; data.batch.prompts()];
        Self { data, echoed }
    }

    /// Appends the client's event for one whole event of decode to `out`. Events with nothing to merge pass unchanged:
    /// the end of the stream, comments, errors.
    ///
    /// # Errors
    /// The event begins like JSON and is not, or has an index that is no prompt of the request. `out` is unchanged.
    pub fn event(&mut self, event: &[u8], out: &mut BytesMut) -> Result<(), MergeError> {
        let Some(span) = object_payload(event) else {
            out.extend_from_slice(event);
            return Ok(());
        };
        let payload = &event[span.clone()];
        let mut edits = Edits::default();
        match &self.data.prompts {
            Prompts::Nothing => {}
            Prompts::Logprobs(prompts) => {
                let item = parse_document(payload, Role::Decode, Item::read)?;
                if let Some(meta_info) = item.meta_info {
                    prompt_of(prompts, item.index, Role::Decode)?.edit(&meta_info, &mut edits);
                }
            }
            Prompts::Echo(prompts) => {
                for choice in parse_document(payload, Role::Decode, Completion::read)?.choices {
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

fn prompt_of<T>(prompts: &[T], index: usize, leg: Role) -> Result<&T, MergeError> {
    prompts.get(index).ok_or(MergeError::Index {
        leg,
        index,
        prompts: prompts.len(),
    })
}

#[cfg(test)]
mod tests;

//! MERGE: what only prefill knows of the prompt goes into decode's answer.
//!
//! What lives here: the way from decode's documents and events to the client's. It takes whole ones, never
//! chunks, and copies bytes without reading a number. What may not: waiting for either leg.
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

use bytes::{Bytes, BytesMut};

use super::super::Role;
use super::prefill_data::{PrefillData, Prompts};
use super::worker_response::{
    Completion, Edits, Item, MergeError, completion, expect, items, missing, object_payload, read,
};

/// Makes the client's answer of decode's whole answer to a request without streaming.
///
/// # Errors
/// When decode's answer is not JSON, tells of an error, or is not of the shape of the request.
pub fn body(side: &PrefillData, decode: Bytes) -> Result<Bytes, MergeError> {
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
    side: PrefillData,
    /// For each choice of `/v1/completions`: the prompt's part was sent.
    echoed: Vec<bool>,
}

impl StreamMerger {
    /// A merger at the start of decode's stream.
    pub fn new(side: PrefillData) -> Self {
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

fn prompt_of<T>(prompts: &[T], index: usize, leg: Role) -> Result<&T, MergeError> {
    prompts.get(index).ok_or(MergeError::Index {
        leg,
        index,
        prompts: prompts.len(),
    })
}

#[cfg(test)]
mod tests;

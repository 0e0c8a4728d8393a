//! From the JSON of a generation request to a batch of items, with SGLang's checks.
//!
//! `generate` and `openai` have one function for each endpoint, `fields` reads single fields; `schema` makes
//! pydantic's lists of errors, `report` formats them, and `python` prints values as Python does. The engine gets typed
//! values and checks none again. Rooms are parsed as integers and never pass through a float.
//! Source: SGLang 0.5.23, `managers/io_struct.py`, `entrypoints/openai/protocol.py`, and transcripts.

pub(super) mod fields;
mod generate;
pub(super) mod openai;
pub(super) mod python;
mod report;
mod samples;
pub(super) mod schema;

use super::errors::Failure;
use super::rendezvous::Room;
use super::vllm::transfer::Transfer;

pub(crate) use generate::generate;
pub(crate) use openai::{chat, chat_text, completions, messages, responses, tokenize};
pub(crate) use report::{Site, not_json, not_parsed, unsupported_media_type};

/// The items of one request, and the shape of its response.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) items: Vec<Item>,
    /// Whether the response is a list, as for a batch of one.
    pub(crate) list: bool,
    pub(crate) stream: bool,
    /// Samples per prompt.
    pub(crate) n: usize,
}

/// One prompt, or one sample of one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Item {
    pub(crate) rid: String,
    pub(crate) prompt: Vec<u32>,
    pub(crate) sampling: Sampling,
    pub(crate) logprobs: LogprobPlan,
    pub(crate) bootstrap: Bootstrap,
    /// vLLM's `kv_transfer_params`.
    pub(crate) transfer: Transfer,
    /// The data parallel rank that the request names; on SGLang's prefill its room decides.
    pub(crate) rank: Option<usize>,
    /// The data parallel rank of prefill that an SGLang request names.
    pub(crate) prefill_rank: Option<i128>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Sampling {
    pub(crate) max_new_tokens: usize,
    pub(crate) ignore_eos: bool,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_token_ids: Vec<u32>,
    /// Seed of the sampling; 0 unless the request has one.
    pub(crate) seed: u64,
}

/// The logprobs that a request wants.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogprobPlan {
    pub(crate) wanted: bool,
    /// First prompt position; none for no position of the prompt.
    pub(crate) start: Option<usize>,
    /// `logprob_start_len` if it is below -1.
    pub(crate) below_range: Option<i128>,
    pub(crate) top: usize,
    pub(crate) token_ids: Option<Vec<u32>>,
    /// Whether rows have the tokens' texts.
    pub(crate) text: bool,
    /// `return_flat_raw_top_logprobs`, `return_flat_raw_output_top_logprobs`.
    pub(crate) flat_input: bool,
    pub(crate) flat_output: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Bootstrap {
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u64>,
    pub(crate) room: Option<Room>,
}

impl Bootstrap {
    /// Whether the host is SGLang's reserved one, for which each role completes alone, without a transfer.
    /// Source: SGLang 0.5.23, `disaggregation/utils.py`, `FAKE_BOOTSTRAP_HOST`.
    pub(crate) fn is_fake(&self) -> bool {
        self.host.as_deref() == Some("2.2.2.2")
    }
}

/// The limits of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) context_length: usize,
}

impl Batch {
    /// Every prompt `n` times, prompt by prompt, with new rids. Source: `_handle_batch_request`.
    fn sampled(mut self) -> Batch {
        if self.n > 1 {
            self.items = std::mem::take(&mut self.items)
                .into_iter()
                .flat_map(|item| {
                    (0..self.n).map(move |_| Item {
                        rid: new_rid(),
                        ..item.clone()
                    })
                })
                .collect();
        }
        self
    }
}

impl Limits {
    /// Source: the messages of `err_too_long_gen` and of a real server for a too large `max_new_tokens`.
    fn check(self, prompt: usize, max_new_tokens: Option<usize>) -> Result<(), Failure> {
        let limit = self.context_length;
        if prompt >= limit {
            return Err(Failure::Invalid(format!(
                "The input ({prompt} tokens) is longer than the model's context length ({limit} tokens)."
            )));
        }
        match max_new_tokens {
            Some(new) if prompt.saturating_add(new) > limit => Err(Failure::Invalid(format!(
                "Requested token count exceeds the model's maximum context length of {limit} tokens. You \
                 requested a total of {} tokens: {prompt} tokens from the input messages and {new} tokens for \
                 the completion. Please reduce the number of tokens in the input messages or the completion to \
                 fit within the limit.",
                prompt.saturating_add(new)
            ))),
            _ => Ok(()),
        }
    }
}

/// 32 hex digits, as `uuid4().hex`.
pub(crate) fn new_rid() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn parse(body: Value) -> Result<Batch, Failure> {
        generate(&body, Limits { context_length: 64 })
    }

    #[test]
    fn a_scalar_room_counts_up_over_a_batch() {
        let batch = parse(
            json!({"text":["a","b"],"bootstrap_host":"h","bootstrap_port":null,
            "bootstrap_room":9223372036854775806u64,"sampling_params":{"max_new_tokens":4}}),
        )
        .unwrap();
        let rooms: Vec<_> = batch
            .items
            .iter()
            .map(|item| item.bootstrap.room.unwrap())
            .collect();
        assert_eq!(rooms, [9223372036854775806, 9223372036854775807]);
        assert!(batch.list);
    }

    #[test]
    fn a_room_list_that_is_too_short_is_an_internal_server_error() {
        let body = json!({"text":["a","b"],"bootstrap_host":["h"],"bootstrap_port":[1],"bootstrap_room":[7],
            "sampling_params":{"max_new_tokens":4}});
        assert_eq!(parse(body).unwrap_err(), Failure::Internal);
    }

    #[test]
    fn rids_of_a_batch_are_numbered() {
        let batch =
            parse(json!({"text":["a","b"],"rid":"X","sampling_params":{"max_new_tokens":4}}))
                .unwrap();
        let rids: Vec<_> = batch.items.iter().map(|item| item.rid.as_str()).collect();
        assert_eq!(rids, ["X_0", "X_1"]);
    }

    #[test]
    fn a_prompt_or_response_that_is_too_long_is_refused_with_sglangs_message() {
        let long = "word ".repeat(80);
        let Failure::Invalid(message) = parse(json!({"text":long})).unwrap_err() else {
            unreachable!("not the expected failure")
        };
        assert!(
            message.starts_with("The input (81 tokens) is longer"),
            "{message}"
        );
        let Failure::Invalid(message) = parse(json!({"text":"a"})).unwrap_err() else {
            unreachable!("not the expected failure")
        };
        assert!(
            message.contains("a total of 129 tokens: 1 tokens from"),
            "{message}"
        );
    }
}

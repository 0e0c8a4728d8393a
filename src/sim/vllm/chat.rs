//! `/v1/chat/completions` and `/v1/chat/completions/batch`. Source: transcripts 01, 02, 05, 06, 13, 23.

use bytes::Bytes;
use serde_json::Value;

use super::choice::{Answer, prompt_logprobs, with_top};
use crate::sim::engine::Step;
use crate::sim::errors::Family;
use crate::sim::openai::{name_and_bytes, token_logprob};
use crate::sim::render::{data, separate, string, write_to};
use crate::sim::request::Batch;
use crate::sim::stream::{FailedItem, Render};

/// The response of one request.
pub(super) struct Chat {
    answer: Answer,
    /// Logprobs of each choice's tokens that no event has had yet, as JSON objects.
    logprobs: Vec<String>,
    prompt_logprobs: String,
    /// A response to a list of conversations, which says less about the cache.
    is_batch: bool,
}

impl Chat {
    pub(super) fn new(
        answer: Answer,
        body: &Value,
        seed: u64,
        batch: &Batch,
        is_batch: bool,
    ) -> Chat {
        let wanted = body.get("prompt_logprobs").and_then(Value::as_u64);
        let prompt = batch.items.first().map(|item| item.prompt.as_slice());
        let prompt_logprobs = match (wanted, prompt) {
            (Some(top), Some(prompt)) => {
                prompt_logprobs(seed, prompt, usize::try_from(top).unwrap_or(0))
            }
            _ => "null".to_owned(),
        };
        Chat {
            logprobs: vec![String::new(); answer.choices.len()],
            answer,
            prompt_logprobs,
            is_batch,
        }
    }

    /// The first events: the role of every choice.
    fn roles(&mut self, out: &mut Vec<Bytes>) {
        if std::mem::replace(&mut self.answer.choices[0].begun, true) {
            return;
        }
        let usage = self.answer.event_tail(0, 0, false);
        let head = self.answer.head("chat.completion.chunk");
        for index in 0..self.answer.choices.len() {
            out.push(data(&format!(
                "{head},\"choices\":[{{\"index\":{index},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\
                 \"logprobs\":null,\"finish_reason\":null}}]{usage},\"prompt_token_ids\":null,\"prompt_text\":null}}"
            )));
        }
    }

    fn rows(&mut self, index: usize) -> String {
        let rows = std::mem::take(&mut self.logprobs[index]);
        match self.answer.choices[index].logprobs {
            None => "null".to_owned(),
            Some(_) => format!("{{\"content\":[{rows}]}}"),
        }
    }

    fn usage(&self) -> String {
        let usage = self.answer.usage(true);
        match (self.is_batch, usage.find(",\"prompt_tokens_details\"")) {
            (true, Some(at)) => format!(
                "{},\"prompt_tokens_details\":null,\"completion_tokens_details\":null}}",
                &usage[..at]
            ),
            _ => usage,
        }
    }
}

impl Render for Chat {
    const FAMILY: Family = Family::Vllm;

    fn absorb(&mut self, index: usize, step: &Step) {
        let choice = &mut self.answer.choices[index];
        let token = choice.absorb(step);
        if let (Some(_), Some(top), Some(row)) = (token, choice.logprobs, &step.row) {
            separate(&mut self.logprobs[index]);
            let best = with_top(row, top);
            let best = best.into_iter().take(top);
            let out = &mut self.logprobs[index];
            token_logprob(row, best, named_logprob, out);
        }
    }

    fn events(&mut self, index: usize, step: &Step, out: &mut Vec<Bytes>) {
        self.roles(out);
        let logprobs = self.rows(index);
        let choice = &self.answer.choices[index];
        let finish = match step.finish {
            Some(_) => choice.finish(),
            None => "\"finish_reason\":null".to_owned(),
        };
        let tokens = choice.generated.tokens;
        let tail = self.answer.event_tail(index, tokens, step.finish.is_some());
        out.push(data(&format!(
            "{},\"choices\":[{{\"index\":{index},\"delta\":{{\"content\":{}}},\"logprobs\":{logprobs},{finish},\
             \"token_ids\":null}}]{tail}}}",
            self.answer.head("chat.completion.chunk"),
            string(&step.text)
        )));
    }

    fn failed(&mut self, item: &FailedItem<'_>, out: &mut Vec<Bytes>) -> bool {
        self.roles(out);
        self.answer.fail(item.failure, out)
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        let open = format!(
            "{},\"choices\":[]",
            self.answer.head("chat.completion.chunk")
        );
        let print = string(&self.answer.fingerprint);
        let close = format!(",\"system_fingerprint\":{print}");
        let usage = self.answer.stream_usage(true);
        self.answer.end(&open, &usage, &close, out);
    }

    fn whole(&mut self) -> String {
        let mut choices = String::new();
        for index in 0..self.answer.choices.len() {
            let logprobs = self.rows(index);
            let choice = &self.answer.choices[index];
            separate(&mut choices);
            write_to(
                &mut choices,
                format_args!(
                    "{{\"index\":{index},\"message\":{{\"role\":\"assistant\",\"content\":\"{}\",\"refusal\":null,\
                     \"annotations\":null,\"audio\":null,\"function_call\":null,\"reasoning\":null}},\
                     \"logprobs\":{logprobs},{},\"token_ids\":null,\"routed_experts\":null}}",
                    choice.generated.text,
                    choice.finish()
                ),
            );
        }
        // With samples the params are the last one's.
        let params = self.answer.params(self.answer.choices.len() - 1);
        format!(
            "{},\"choices\":[{choices}],{},\"usage\":{},\"prompt_logprobs\":{},\"prompt_token_ids\":null,\
             \"prompt_text\":null,\"kv_transfer_params\":{params},\"ec_transfer_params\":null,\"metrics\":null}}",
            self.answer.head("chat.completion"),
            self.answer.tier(),
            self.usage(),
            self.prompt_logprobs
        )
    }
}

/// `"token":..,"logprob":..,"bytes":..`: another order than SGLang's.
fn named_logprob(token: u32, logprob: f64, out: &mut String) {
    let (name, bytes) = name_and_bytes(token);
    write_to(
        out,
        format_args!("\"token\":{name},\"logprob\":{logprob:?},\"bytes\":{bytes}"),
    );
}

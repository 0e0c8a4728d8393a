//! `/inference/v1/generate`: token ids in and out. Source: transcripts 12.

use bytes::Bytes;

use super::choice::Answer;
use crate::sim::engine::Step;
use crate::sim::errors::Family;
use crate::sim::render::{data, separate, string, write_to};
use crate::sim::stream::{FailedItem, Render};

/// The response of one request.
pub(super) struct Tokens {
    answer: Answer,
    tokens: Vec<String>,
}

impl Tokens {
    pub(super) fn new(answer: Answer) -> Tokens {
        Tokens {
            tokens: vec![String::new(); answer.choices.len()],
            answer,
        }
    }

    /// A choice with these tokens.
    fn choice(&self, index: usize, tokens: &str) -> String {
        let choice = &self.answer.choices[index];
        let versions = match (&choice.generated.finish, choice.generated.tokens) {
            (None, _) => "null".to_owned(),
            (Some(_), end) => {
                format!("[{{\"version\":\"default\",\"start\":0,\"end\":{end}}}]")
            }
        };
        format!(
            "{{\"index\":{index},{},\"token_ids\":[{tokens}],\"routed_experts\":null,\"sampling_mask\":null,\
             \"weight_versions\":{versions},\"logprobs\":null}}",
            choice.finish()
        )
    }
}

impl Render for Tokens {
    const FAMILY: Family = Family::Vllm;

    fn absorb(&mut self, index: usize, step: &Step) {
        if let Some(token) = self.answer.choices[index].absorb(step) {
            separate(&mut self.tokens[index]);
            write_to(&mut self.tokens[index], format_args!("{token}"));
        }
    }

    fn events(&mut self, index: usize, _step: &Step, out: &mut Vec<Bytes>) {
        let tokens = std::mem::take(&mut self.tokens[index]);
        let generated = &self.answer.choices[index].generated;
        let usage = match self.answer.continuous_usage {
            false => "null".to_owned(),
            true => {
                let (prompt, tokens) = (generated.prompt_tokens, generated.tokens);
                format!(
                    "{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":{tokens},\
                     \"prompt_tokens_details\":null,\"completion_tokens_details\":null}}",
                    prompt + tokens
                )
            }
        };
        out.push(data(&format!(
            "{{\"request_id\":{},\"usage\":{usage},\"output_mode\":\"tokens\",\"choices\":[{}]}}",
            string(&self.answer.id),
            self.choice(index, &tokens)
        )));
    }

    fn failed(&mut self, item: &FailedItem<'_>, out: &mut Vec<Bytes>) -> bool {
        self.answer.fail(item.failure, out)
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        let open = format!("{{\"request_id\":{}", string(&self.answer.id));
        let close = ",\"output_mode\":\"tokens\",\"choices\":[]";
        let usage = self.answer.stream_usage(false);
        self.answer.end(&open, &usage, close, out);
    }

    fn whole(&mut self) -> String {
        let mut choices = String::new();
        for index in 0..self.answer.choices.len() {
            separate(&mut choices);
            choices.push_str(&self.choice(index, &self.tokens[index]));
        }
        let params = self.answer.params(self.answer.choices.len() - 1);
        format!(
            "{{\"request_id\":{},\"model\":{},\"created\":{},\"usage\":{},\"prompt_logprobs\":null,\
             \"prompt_token_id_logprobs\":null,\"prompt_token_ids\":null,\"mm_placeholders\":null,\"metrics\":null,\
             \"kv_transfer_params\":{params},\"ec_transfer_params\":null,\"output_mode\":\"tokens\",\
             \"choices\":[{choices}]}}",
            string(&self.answer.id),
            string(&self.answer.model),
            self.answer.created,
            self.answer.usage(false)
        )
    }
}

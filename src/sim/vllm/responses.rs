//! `/v1/responses`: one message item, named and numbered events, no `[DONE]`. Source: transcripts 10.

use bytes::Bytes;
use serde_json::{Value, json};

use super::choice::Answer;
use crate::sim::engine::{Finish, Step};
use crate::sim::errors::Family;
use crate::sim::render::{named, string};
use crate::sim::stream::{FailedItem, Render};

/// The response of one request.
pub(super) struct Responses {
    answer: Answer,
    message_id: String,
    /// Fields of the request that the response repeats, as JSON.
    instructions: String,
    temperature: Value,
    top_p: Value,
    max_output_tokens: usize,
    sequence: u64,
}

impl Responses {
    /// `max_output_tokens` is what the request may generate, asked for or not.
    pub(super) fn new(answer: Answer, body: &Value, max_output_tokens: usize) -> Responses {
        let float = |name: &str| body.get(name).and_then(Value::as_f64).unwrap_or(1.0).into();
        let instructions = body.get("instructions").cloned().unwrap_or_default();
        Responses {
            message_id: format!("msg_{:016x}", rand::random::<u64>()),
            instructions: instructions.to_string(),
            temperature: float("temperature"),
            top_p: float("top_p"),
            max_output_tokens,
            sequence: 0,
            answer,
        }
    }

    /// The events before the first token.
    pub(super) fn preface(&mut self) -> Vec<Bytes> {
        let response = self.response("in_progress", "", "null");
        ["response.created", "response.in_progress"]
            .map(|name| {
                let response = format!("{{\"response\":{response}");
                self.numbered(name, &response)
            })
            .into()
    }

    fn text(&self) -> &str {
        &self.answer.choices[0].generated.text
    }

    /// `output` is the inside of its list, `usage` JSON.
    fn response(&self, status: &str, output: &str, usage: &str) -> String {
        let incomplete = match status {
            "incomplete" => "{\"reason\":\"max_output_tokens\"}",
            _ => "null",
        };
        format!(
            "{{\"id\":{},\"created_at\":{},\"incomplete_details\":{incomplete},\"instructions\":{},\"metadata\":null,\
             \"model\":{},\"object\":\"response\",\"output\":[{output}],\"parallel_tool_calls\":true,\
             \"temperature\":{},\"tool_choice\":\"none\",\"tools\":[],\"top_p\":{},\"background\":false,\
             \"max_output_tokens\":{},\"max_tool_calls\":null,\"previous_response_id\":null,\"prompt\":null,\
             \"reasoning\":null,\"service_tier\":\"auto\",\"status\":\"{status}\",\"text\":null,\"top_logprobs\":null,\
             \"truncation\":\"disabled\",\"usage\":{usage},\"user\":null,\"presence_penalty\":0.0,\
             \"frequency_penalty\":0.0,\"kv_transfer_params\":{},\"ec_transfer_params\":null,\"input_messages\":null,\
             \"output_messages\":null}}",
            string(&self.answer.id),
            self.answer.created,
            self.instructions,
            string(&self.answer.model),
            self.temperature,
            self.top_p,
            self.max_output_tokens,
            self.answer.params(0)
        )
    }

    fn finished(&self) -> String {
        let status = match self.answer.choices[0].generated.finish {
            Some(Finish::Length(_)) => "incomplete",
            _ => "completed",
        };
        let (input, output) = self.answer.totals();
        let (cached, written) = self.answer.cached().unwrap_or_default();
        let usage = json!({"input_tokens":input,
            "input_tokens_details":{"cached_tokens":cached,"cache_write_tokens":written,
                "input_tokens_per_turn":[],"cached_tokens_per_turn":[]},
            "output_tokens":output,
            "output_tokens_details":{"reasoning_tokens":0,"tool_output_tokens":0,"output_tokens_per_turn":[],
                "tool_output_tokens_per_turn":[]},
            "total_tokens":input + output});
        let message = self.message("completed", &part(self.text(), "null"));
        self.response(status, &message, &usage.to_string())
    }

    /// `content` is the inside of its list.
    fn message(&self, status: &str, content: &str) -> String {
        format!(
            "{{\"id\":\"{}\",\"content\":[{content}],\"role\":\"assistant\",\"status\":\"{status}\",\"type\":\"message\",\
             \"phase\":null}}",
            self.message_id
        )
    }

    /// An event with its number and its name. `open` is its JSON so far, without the last brace.
    fn numbered(&mut self, name: &str, open: &str) -> Bytes {
        let sequence = self.sequence;
        self.sequence += 1;
        named(
            name,
            &format!("{open},\"sequence_number\":{sequence},\"type\":\"{name}\"}}"),
        )
    }

    /// An event of the only part of the only message. `before` and `after` are its members around the id.
    fn of_part(&mut self, name: &str, before: &str, after: &str) -> Bytes {
        let id = &self.message_id;
        let open = format!("{{\"content_index\":0,{before}\"item_id\":\"{id}\",{after}");
        self.numbered(name, &open)
    }
}

impl Render for Responses {
    const FAMILY: Family = Family::Vllm;
    // The handler takes the error for one of its events, and fails on it.
    // Source: vLLM 0.32.0, `entrypoints/openai/responses/serving.py`.
    const CUTS: bool = true;

    fn absorb(&mut self, index: usize, step: &Step) {
        self.answer.choices[index].absorb(step);
    }

    fn events(&mut self, _index: usize, step: &Step, out: &mut Vec<Bytes>) {
        if !std::mem::replace(&mut self.answer.choices[0].begun, true) {
            let item = self.message("in_progress", "");
            let open = format!("{{\"item\":{item},\"output_index\":0");
            out.push(self.numbered("response.output_item.added", &open));
            let empty = format!("\"output_index\":0,\"part\":{}", part("", "[]"));
            out.push(self.of_part("response.content_part.added", "", &empty));
        }
        if !step.text.is_empty() {
            let delta = format!("\"delta\":{},", string(&step.text));
            let after = "\"logprobs\":[],\"output_index\":0";
            out.push(self.of_part("response.output_text.delta", &delta, after));
        }
    }

    fn failed(&mut self, _item: &FailedItem<'_>, _out: &mut Vec<Bytes>) -> bool {
        self.answer.failed = true;
        false
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        if self.answer.failed {
            return;
        }
        let text = self.text().to_owned();
        let after = format!(
            "\"logprobs\":[],\"output_index\":0,\"sequence_number\":{},\"text\":\"{text}\"",
            self.sequence
        );
        let name = "response.output_text.done";
        let id = &self.message_id;
        let done =
            format!("{{\"content_index\":0,\"item_id\":\"{id}\",{after},\"type\":\"{name}\"}}");
        self.sequence += 1;
        out.push(named(name, &done));
        let whole = format!("\"output_index\":0,\"part\":{}", part(&text, "null"));
        out.push(self.of_part("response.content_part.done", "", &whole));
        let item = self.message("completed", &part(&text, "null"));
        let open = format!("{{\"item\":{item},\"output_index\":0");
        out.push(self.numbered("response.output_item.done", &open));
        let open = format!("{{\"response\":{}", self.finished());
        out.push(self.numbered("response.completed", &open));
    }

    fn whole(&mut self) -> String {
        self.finished()
    }
}

/// A part of a message. `text` is the inside of a JSON string.
fn part(text: &str, logprobs: &str) -> String {
    format!(
        "{{\"annotations\":[],\"text\":\"{text}\",\"type\":\"output_text\",\"logprobs\":{logprobs}}}"
    )
}

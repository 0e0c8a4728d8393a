//! `/v1/messages` (Anthropic's API): named events, no `[DONE]`. Source: responses of a SGLang 0.5.23 server.

use bytes::Bytes;

use super::engine::{Finish, Step};
use super::errors::Family;
use super::openai;
use super::render::{escape_into, named, string};
use super::request::Batch;
use super::stream::{FailedItem, Render};

/// The response of one request.
pub(crate) struct Messages {
    id: String,
    model: String,
    input_tokens: usize,
    text: String,
    output_tokens: usize,
    begun: bool,
    failed: bool,
    finish: Option<Finish>,
}

impl Messages {
    pub(crate) fn new(body: &serde_json::Value, served_model: &str, batch: &Batch) -> Messages {
        Messages {
            id: format!("msg_{}", super::request::new_rid()),
            model: openai::model(body, served_model),
            input_tokens: batch.items.iter().map(|item| item.prompt.len()).sum(),
            text: String::new(),
            output_tokens: 0,
            begun: false,
            failed: false,
            finish: None,
        }
    }

    fn opening(&self, content: &str) -> String {
        let (id, model) = (string(&self.id), string(&self.model));
        format!(
            "\"id\":{id},\"type\":\"message\",\"role\":\"assistant\",\"content\":[{content}],\"model\":{model}"
        )
    }

    fn start(&self, input_tokens: usize) -> Bytes {
        let message = self.opening("");
        named(
            "message_start",
            &format!(
                "{{\"type\":\"message_start\",\"message\":{{{message},\"usage\":{{\"input_tokens\":{input_tokens},\
                 \"output_tokens\":0}}}}}}"
            ),
        )
    }

    fn stop(&self) -> String {
        match &self.finish {
            Some(Finish::StopText(text)) => {
                format!(
                    "\"stop_reason\":\"stop_sequence\",\"stop_sequence\":{}",
                    string(text)
                )
            }
            Some(Finish::Length(_)) => "\"stop_reason\":\"max_tokens\"".to_owned(),
            _ => "\"stop_reason\":\"end_turn\"".to_owned(),
        }
    }
}

impl Render for Messages {
    const FAMILY: Family = Family::Messages;

    fn absorb(&mut self, _index: usize, step: &Step) {
        self.finish.clone_from(&step.finish);
        if step.token.is_some() {
            self.output_tokens += 1;
            escape_into(&step.text, &mut self.text);
        }
    }

    fn events(&mut self, _index: usize, step: &Step, out: &mut Vec<Bytes>) {
        if !self.begun {
            out.push(self.start(self.input_tokens));
            out.push(named(
                "content_block_start",
                r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
            ));
        }
        self.begun = true;
        if !step.text.is_empty() {
            let text = string(&step.text);
            out.push(named("content_block_delta", &format!(
                "{{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":{text}}}}}")));
        }
    }

    fn failed(&mut self, item: &FailedItem<'_>, out: &mut Vec<Bytes>) -> bool {
        self.failed = true;
        if !self.begun {
            out.push(self.start(0));
        }
        out.push(named("error", &item.failure.event(Family::Messages)));
        false
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        const STOP: &str = r#"{"type":"message_stop"}"#;
        if self.failed {
            return out.push(named("message_stop", STOP));
        }
        let (stop, tokens) = (self.stop(), self.output_tokens);
        out.push(named(
            "content_block_stop",
            r#"{"type":"content_block_stop","index":0}"#,
        ));
        out.push(named("message_delta", &format!(
            "{{\"type\":\"message_delta\",\"delta\":{{{stop}}},\"usage\":{{\"output_tokens\":{tokens}}}}}")));
        out.push(named("message_stop", STOP));
    }

    fn whole(&mut self) -> String {
        let content = format!("{{\"type\":\"text\",\"text\":\"{}\"}}", self.text);
        let (input, output) = (self.input_tokens, self.output_tokens);
        format!(
            "{{{},{},\"usage\":{{\"input_tokens\":{input},\"output_tokens\":{output}}}}}",
            self.opening(&content),
            self.stop()
        )
    }
}

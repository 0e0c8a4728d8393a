//! `/v1/messages` (Anthropic's API): named events, no `[DONE]`. Source: transcripts 11.

use bytes::Bytes;

use super::choice::Answer;
use crate::sim::engine::{Finish, Step};
use crate::sim::errors::Family;
use crate::sim::render::{named, string};
use crate::sim::stream::{FailedItem, Render};

/// The response of one request.
pub(super) struct Messages {
    answer: Answer,
    /// A block of text has begun.
    has_block: bool,
}

impl Messages {
    pub(super) fn new(answer: Answer) -> Messages {
        Messages {
            answer,
            has_block: false,
        }
    }

    /// `"id":..,"type":"message","role":..,"content":..,"model":..`.
    fn opening(&self, content: &str) -> String {
        format!(
            "\"id\":{},\"type\":\"message\",\"role\":\"assistant\",\"content\":[{content}],\"model\":{}",
            string(&self.answer.id),
            string(&self.answer.model)
        )
    }

    fn start(&mut self, out: &mut Vec<Bytes>) {
        if std::mem::replace(&mut self.answer.choices[0].begun, true) {
            return;
        }
        let (input, _) = self.answer.totals();
        out.push(named(
            "message_start",
            &format!(
                "{{\"type\":\"message_start\",\"message\":{{{},\"stop_reason\":null,\"stop_sequence\":null,\
                 \"usage\":{{\"input_tokens\":{input},\"output_tokens\":0}}}}}}",
                self.opening("")
            ),
        ));
    }

    /// `stop_reason` and `stop_sequence`, as JSON.
    fn stop(&self) -> (&'static str, String) {
        match &self.answer.choices[0].generated.finish {
            Some(Finish::StopText(text)) => ("\"stop_sequence\"", string(text)),
            Some(Finish::Length(_)) => ("\"max_tokens\"", "null".to_owned()),
            _ => ("\"end_turn\"", "null".to_owned()),
        }
    }

    /// The input tokens leave out those that the cache had, or has now.
    fn usage(&self) -> String {
        let (input, output) = self.answer.totals();
        match self.answer.cached() {
            None => format!("{{\"input_tokens\":{input},\"output_tokens\":{output}}}"),
            Some((cached, created)) => format!(
                "{{\"input_tokens\":{},\"output_tokens\":{output},\"cache_creation_input_tokens\":{created},\
                 \"cache_read_input_tokens\":{cached}}}",
                input.saturating_sub(cached + created)
            ),
        }
    }
}

impl Render for Messages {
    const FAMILY: Family = Family::VllmMessages;

    fn absorb(&mut self, index: usize, step: &Step) {
        self.answer.choices[index].absorb(step);
    }

    fn events(&mut self, _index: usize, step: &Step, out: &mut Vec<Bytes>) {
        self.start(out);
        if step.text.is_empty() {
            return;
        }
        if !std::mem::replace(&mut self.has_block, true) {
            out.push(named(
                "content_block_start",
                r#"{"type":"content_block_start","content_block":{"type":"text","text":""},"index":0}"#,
            ));
        }
        out.push(named(
            "content_block_delta",
            &format!(
                "{{\"type\":\"content_block_delta\",\"delta\":{{\"type\":\"text_delta\",\"text\":{}}},\"index\":0}}",
                string(&step.text)
            ),
        ));
    }

    fn failed(&mut self, item: &FailedItem<'_>, out: &mut Vec<Bytes>) -> bool {
        self.start(out);
        self.answer.failed = true;
        out.push(named("error", &item.failure.event(Self::FAMILY)));
        false
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        if self.answer.failed {
            return;
        }
        if self.has_block {
            out.push(named(
                "content_block_stop",
                r#"{"type":"content_block_stop","index":0}"#,
            ));
        }
        let (reason, sequence) = self.stop();
        out.push(named(
            "message_delta",
            &format!(
                "{{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":{reason},\"stop_sequence\":{sequence}}},\
                 \"usage\":{}}}",
                self.usage()
            ),
        ));
        out.push(named("message_stop", r#"{"type":"message_stop"}"#));
    }

    fn whole(&mut self) -> String {
        let text = &self.answer.choices[0].generated.text;
        let content = format!("{{\"type\":\"text\",\"text\":\"{text}\"}}");
        let (reason, sequence) = self.stop();
        // A null is left out.
        let sequence = match sequence.as_str() {
            "null" => String::new(),
            text => format!(",\"stop_sequence\":{text}"),
        };
        let params = match self.answer.params(0) {
            "null" => String::new(),
            params => format!(",\"kv_transfer_params\":{params}"),
        };
        format!(
            "{{{},\"stop_reason\":{reason}{sequence},\"usage\":{}{params}}}",
            self.opening(&content),
            self.usage()
        )
    }
}

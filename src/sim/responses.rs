//! `/v1/responses`: one message item, named and numbered events, no `[DONE]`.
//!
//! Source: responses of a SGLang 0.5.23 server without response store.

use bytes::Bytes;
use serde_json::{Value, json};

use super::engine::{Finish, Step};
use super::errors::Family;
use super::openai;
use super::render::named;
use super::request::Batch;
use super::stream::{FailedItem, Render};

/// The response of one request.
pub(crate) struct Responses {
    id: String,
    message_id: String,
    created: u64,
    model: String,
    asked: Asked,
    input_tokens: usize,
    text: String,
    output_tokens: usize,
    begun: bool,
    failed: bool,
    finish: Option<Finish>,
    sequence: u64,
}

/// Fields of the request that the response repeats.
struct Asked {
    instructions: Value,
    max_output_tokens: Value,
    temperature: Value,
    top_p: Value,
}

impl Responses {
    pub(crate) fn new(body: &Value, served_model: &str, created: u64, batch: &Batch) -> Responses {
        let field = |name: &str| body.get(name).cloned().unwrap_or_default();
        let float = |name: &str| field(name).as_f64().map_or(Value::Null, Value::from);
        Responses {
            id: batch
                .items
                .first()
                .map_or(String::new(), |item| item.rid.clone()),
            message_id: format!("msg_{}", super::request::new_rid()),
            created,
            model: openai::model(body, served_model),
            asked: Asked {
                instructions: field("instructions"),
                max_output_tokens: field("max_output_tokens"),
                temperature: float("temperature"),
                top_p: float("top_p"),
            },
            input_tokens: batch.items.iter().map(|item| item.prompt.len()).sum(),
            text: String::new(),
            output_tokens: 0,
            begun: false,
            failed: false,
            finish: None,
            sequence: 0,
        }
    }

    /// The events before the first token.
    pub(crate) fn preface(&mut self) -> Vec<Bytes> {
        ["response.created", "response.in_progress"]
            .map(|name| {
                let response = self.response("in_progress", false);
                self.response_event(name, response)
            })
            .into()
    }

    fn status(&self) -> &'static str {
        if matches!(self.finish, Some(Finish::Length(_))) {
            "incomplete"
        } else {
            "completed"
        }
    }

    fn response(&self, status: &str, finished: bool) -> Value {
        let usage = json!({"input_tokens":self.input_tokens,
            "input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},
            "output_tokens":self.output_tokens,"output_tokens_details":{"reasoning_tokens":0},
            "total_tokens":self.input_tokens + self.output_tokens});
        let said = finished && !self.text.is_empty();
        json!({"id":self.id,"object":"response","created_at":self.created,"model":self.model,
            "output":if said { json!([self.message("completed", true)]) } else { json!([]) },
            "status":status,
            "usage":if finished { usage } else { Value::Null },
            "parallel_tool_calls":true,"tool_choice":"auto","tools":[],"error":null,
            "incomplete_details":match status {
                "incomplete" => json!({"reason":"max_output_tokens"}),
                _ => Value::Null,
            },
            "instructions":self.asked.instructions,"max_output_tokens":self.asked.max_output_tokens,
            "previous_response_id":null,"reasoning":{"effort":null,"summary":null},"store":true,
            "temperature":self.asked.temperature,
            "text":if said { json!({"format":{"type":"text"}}) } else { Value::Null },
            "top_p":self.asked.top_p,"truncation":"disabled","user":null,"metadata":{}})
    }

    fn message(&self, status: &str, with_text: bool) -> Value {
        let content = if with_text {
            json!([self.part(&self.text)])
        } else {
            json!([])
        };
        json!({"id":self.message_id,"content":content,"role":"assistant","status":status,"type":"message",
            "phase":"final_answer"})
    }

    fn part(&self, text: &str) -> Value {
        json!({"annotations":[],"text":text,"type":"output_text","logprobs":null})
    }

    fn response_event(&mut self, name: &str, response: Value) -> Bytes {
        let event = json!({"type":name,"response":response,"sequence_number":self.sequence});
        self.sequence += 1;
        named(name, &event.to_string())
    }

    /// An event of the only output item.
    fn item_event(&mut self, name: &str, mut event: Value) -> Bytes {
        if let Value::Object(event) = &mut event {
            event.insert("output_index".to_owned(), 0.into());
            event.insert("sequence_number".to_owned(), self.sequence.into());
            event.insert("type".to_owned(), name.into());
        }
        self.sequence += 1;
        named(name, &event.to_string())
    }
}

impl Render for Responses {
    const FAMILY: Family = Family::Responses;

    fn absorb(&mut self, _index: usize, step: &Step) {
        self.finish.clone_from(&step.finish);
        self.output_tokens += usize::from(step.token.is_some());
        self.text.push_str(&step.text);
    }

    fn events(&mut self, _index: usize, step: &Step, out: &mut Vec<Bytes>) {
        let id = self.message_id.clone();
        if !std::mem::replace(&mut self.begun, true) {
            let item = self.message("in_progress", false);
            out.push(self.item_event("response.output_item.added", json!({"item":item})));
            let part = self.part("");
            let event = json!({"content_index":0,"item_id":id,"part":part});
            out.push(self.item_event("response.content_part.added", event));
        }
        if !step.text.is_empty() {
            let event = json!({"content_index":0,"delta":step.text,"item_id":id,"logprobs":[]});
            out.push(self.item_event("response.output_text.delta", event));
        }
    }

    fn failed(&mut self, item: &FailedItem<'_>, out: &mut Vec<Bytes>) -> bool {
        self.failed = true;
        let mut response = self.response("failed", true);
        if let Value::Object(response) = &mut response {
            let error =
                serde_json::from_str(&item.failure.event(Family::Responses)).unwrap_or_default();
            response.insert("error".to_owned(), error);
        }
        out.push(self.response_event("response.failed", response));
        false
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        if self.failed {
            return;
        }
        let id = self.message_id.clone();
        let done = json!({"content_index":0,"item_id":id,"logprobs":[],"text":self.text});
        out.push(self.item_event("response.output_text.done", done));
        let part = self.part(&self.text);
        let done = json!({"content_index":0,"item_id":id,"part":part});
        out.push(self.item_event("response.content_part.done", done));
        let item = self.message("completed", true);
        out.push(self.item_event("response.output_item.done", json!({"item":item})));
        let status = self.status();
        let response = self.response(status, true);
        out.push(self.response_event(&format!("response.{status}"), response));
    }

    fn whole(&mut self) -> String {
        self.response(self.status(), true).to_string()
    }
}

//! `/generate`: text, token ids and `meta_info`, cumulative or as deltas.
//!
//! `item` writes one item's object, `prompt_logprobs` the keys about its prompt. Key order and which key is there
//! when: transcripts `gen_*`, `x_*_timeout`, and for the flat forms and `token_ids_logprob` a real pair of
//! SGLang 0.5.23.

mod item;
mod prompt_logprobs;

use bytes::Bytes;

use super::engine::{Finish, Step};
use super::errors::{Failure, Family};
use super::render::{data, string, write_to};
use super::request::Batch;
use super::stream::{FailedItem, Render};
use super::{Role, SimOptions};
use item::NativeItem;

/// The response of one request.
pub(crate) struct Native {
    items: Vec<NativeItem>,
    list: bool,
    stream: bool,
    incremental: bool,
}

impl Native {
    pub(crate) fn new(role: Role, options: &SimOptions, batch: &Batch) -> Native {
        let items = batch
            .items
            .iter()
            .map(|item| NativeItem::new(role, options, item))
            .collect();
        let incremental = batch.stream && options.incremental_streaming;
        Native {
            items,
            list: batch.list,
            stream: batch.stream,
            incremental,
        }
    }
}

impl Render for Native {
    const FAMILY: Family = Family::Native;

    fn absorb(&mut self, index: usize, step: &Step) {
        let (stream, incremental) = (self.stream, self.incremental);
        let item = &mut self.items[index];
        if incremental {
            item.forget();
        }
        item.absorb(step);
        if let Some(finish) = &step.finish {
            let reason = finish_reason(finish);
            item.finished = Some(item.object(&reason, step, stream));
        }
    }

    fn events(&mut self, index: usize, step: &Step, out: &mut Vec<Bytes>) {
        let list = self.list;
        let item = &mut self.items[index];
        let object = item
            .finished
            .take()
            .unwrap_or_else(|| item.object("null", step, true));
        item.sent = item.tokens;
        out.push(event(object, list.then_some(index)));
    }

    fn failed(&mut self, failed: &FailedItem<'_>, out: &mut Vec<Bytes>) -> bool {
        let FailedItem {
            index,
            failure,
            times,
        } = *failed;
        let item = &mut self.items[index];
        let object = match failure {
            Failure::Engine { status, message } => item.failed(*status, message, times),
            Failure::Refused(message) => item.refused(message, times),
            _ => {
                out.push(data(&failure.event(Family::Native)));
                return false;
            }
        };
        out.push(event(object, self.list.then_some(index)));
        true
    }

    fn end(&mut self, out: &mut Vec<Bytes>) {
        out.push(data("[DONE]"));
    }

    fn whole(&mut self) -> String {
        let objects: Vec<String> = self
            .items
            .iter_mut()
            .map(|item| item.finished.take().unwrap_or_default())
            .collect();
        if self.list {
            format!("[{}]", objects.join(","))
        } else {
            objects.concat()
        }
    }
}

fn event(mut object: String, index: Option<usize>) -> Bytes {
    if let Some(index) = index {
        object.pop();
        write_to(&mut object, format_args!(",\"index\":{index}}}"));
    }
    data(&object)
}

fn finish_reason(finish: &Finish) -> String {
    match finish {
        Finish::Length(length) => format!("{{\"type\":\"length\",\"length\":{length}}}"),
        Finish::StopToken(token) => format!("{{\"type\":\"stop\",\"matched\":{token}}}"),
        Finish::StopText(text) => format!("{{\"type\":\"stop\",\"matched\":{}}}", string(text)),
        Finish::Abort => {
            r#"{"type":"abort","message":"Aborted","status_code":null,"err_type":null}"#.to_owned()
        }
    }
}

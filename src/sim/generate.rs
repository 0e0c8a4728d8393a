//! `/generate`: text, token ids and `meta_info`, cumulative or as deltas.
//!
//! Key order and which key is there when: transcripts `gen_*`, `x_*_timeout`, and for the flat forms and
//! `token_ids_logprob` a real pair of SGLang 0.5.23.

use bytes::Bytes;

use super::engine::{Finish, Step, Times};
use super::errors::{Failure, Family};
use super::model::Context;
use super::render::{data, escape_into, float, separate, string, triple, triples, write_to};
use super::request::{Batch, Item};
use super::stream::Render;
use super::{Role, SimOptions};

/// The answer of one request.
pub(crate) struct Native {
    items: Vec<NativeItem>,
    list: bool,
    stream: bool,
    incremental: bool,
}

/// One item: everything is kept as JSON that is ready to be copied.
struct NativeItem {
    role: Role,
    rid: String,
    prompt_tokens: usize,
    plan: super::request::LogprobPlan,
    /// The keys about the prompt; decode's are empty lists.
    input: InputLogprobs,
    text: String,
    ids: String,
    rows: String,
    top_rows: String,
    id_rows: String,
    flat_values: String,
    flat_ids: String,
    tokens: usize,
    /// Output positions in `rows`; one more than tokens when none was asked for.
    positions: usize,
    /// Tokens that earlier events have carried.
    told: usize,
    first_sent: Option<f64>,
    finished: Option<String>,
}

/// Logprobs of prompt positions, as the JSON of whole keys.
#[derive(Default)]
struct InputLogprobs {
    tokens: String,
    top: String,
    ids: String,
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
        item.told = item.tokens;
        out.push(event(object, list.then_some(index)));
    }

    fn failed(
        &mut self,
        index: usize,
        failure: &Failure,
        times: Times,
        out: &mut Vec<Bytes>,
    ) -> bool {
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

impl NativeItem {
    fn new(role: Role, options: &SimOptions, item: &Item) -> NativeItem {
        let input = match role {
            Role::Decode => InputLogprobs::absent(item),
            Role::Prefill | Role::Ordinary => InputLogprobs::of(item, options.seed),
        };
        NativeItem {
            role,
            rid: item.rid.clone(),
            prompt_tokens: item.prompt.len(),
            plan: item.logprobs.clone(),
            input,
            text: String::new(),
            ids: String::new(),
            rows: String::new(),
            top_rows: String::new(),
            id_rows: String::new(),
            flat_values: String::new(),
            flat_ids: String::new(),
            tokens: 0,
            positions: 0,
            told: 0,
            first_sent: None,
            finished: None,
        }
    }

    /// With incremental streaming an event has only what is new.
    fn forget(&mut self) {
        for part in [
            &mut self.text,
            &mut self.ids,
            &mut self.rows,
            &mut self.top_rows,
            &mut self.id_rows,
        ] {
            part.clear();
        }
    }

    fn absorb(&mut self, step: &Step) {
        if let Some(token) = step.token {
            self.tokens += 1;
            escape_into(&step.text, &mut self.text);
            separate(&mut self.ids);
            write_to(&mut self.ids, format_args!("{token}"));
        }
        let Some(row) = &step.row else { return };
        self.positions += 1;
        separate(&mut self.rows);
        triple(Some(row.logprob), row.token, self.plan.text, &mut self.rows);
        if self.plan.top > 0 {
            separate(&mut self.top_rows);
            triples(Some(&row.top), self.plan.text, &mut self.top_rows);
            for (logprob, token) in &row.top {
                separate(&mut self.flat_values);
                write_to(&mut self.flat_values, format_args!("{logprob:?}"));
                separate(&mut self.flat_ids);
                write_to(&mut self.flat_ids, format_args!("{token}"));
            }
        }
        if self.plan.token_ids.is_some() {
            separate(&mut self.id_rows);
            triples(row.token_ids.as_deref(), self.plan.text, &mut self.id_rows);
        }
    }

    fn object(&mut self, finish_reason: &str, step: &Step, stream: bool) -> String {
        let finished = step.finish.is_some();
        let mut out = self.opening(finish_reason);
        if self.role != Role::Decode {
            out.push_str(",\"storage_prefetch_wait\":0.0,\"storage_staging_wait\":0.0");
        }
        write_to(
            &mut out,
            format_args!(
                ",\"forward_entry_time\":{}",
                float(step.times.forward_entry)
            ),
        );
        if self.role != Role::Decode {
            write_to(
                &mut out,
                format_args!(
                    ",\"prefill_finished_time\":{}",
                    float(step.times.prefill_finished)
                ),
            );
        }
        out.push_str(",\"queue_time\":0.0005");
        self.logprobs(&mut out, finished && !stream);
        write_to(
            &mut out,
            format_args!(
                ",\"reasoning_tokens\":0,\"completion_tokens\":{},\"cached_tokens\":{}",
                self.tokens, step.cached_tokens
            ),
        );
        if finished {
            self.weight_versions(&mut out);
        }
        match step.cached_tokens {
            0 => out.push_str(",\"cached_tokens_details\":null,\"dp_rank\":null"),
            cached => write_to(
                &mut out,
                format_args!(
                    ",\"cached_tokens_details\":{{\"device\":{cached},\"host\":0}},\"dp_rank\":null"
                ),
            ),
        }
        let sent_before = self.first_sent;
        if finished {
            self.timing(&mut out, step.times, stream, sent_before);
        } else if sent_before.is_none() {
            write_to(
                &mut out,
                format_args!(",\"response_sent_to_client_ts\":{}", float(step.times.now)),
            );
        }
        self.first_sent.get_or_insert(step.times.now);
        out.push_str("}}");
        out
    }

    fn opening(&self, finish_reason: &str) -> String {
        let mut out =
            String::with_capacity(600 + self.text.len() + self.ids.len() + self.rows.len() * 2);
        write_to(
            &mut out,
            format_args!(
                "{{\"text\":\"{}\",\"output_ids\":[{}],\"meta_info\":{{\"id\":{},\"finish_reason\":{finish_reason},\
                 \"prompt_tokens\":{},\"weight_version\":\"default\",\"num_retractions\":0",
                self.text,
                self.ids,
                string(&self.rid),
                self.prompt_tokens
            ),
        );
        out
    }

    fn logprobs(&self, out: &mut String, flat_output: bool) {
        if !self.plan.wanted {
            return;
        }
        let length = self.positions;
        write_to(
            out,
            format_args!(
                "{},\"output_token_logprobs\":[{}],\"output_token_logprobs_length\":{length}{}",
                self.input.tokens, self.rows, self.input.top
            ),
        );
        if self.plan.top > 0 {
            if flat_output && self.plan.flat_output {
                write_to(
                    out,
                    format_args!(
                        ",\"output_top_logprobs_val_flat\":[{}],\"output_top_logprobs_idx_flat\":[{}],\
                         \"output_top_logprobs_shape\":[{length},{}],\"output_top_logprobs_null_prefix\":0",
                        self.flat_values, self.flat_ids, self.plan.top
                    ),
                );
            } else {
                write_to(
                    out,
                    format_args!(",\"output_top_logprobs\":[{}]", self.top_rows),
                );
            }
        }
        if self.plan.token_ids.is_some() {
            let rows = &self.id_rows;
            write_to(
                out,
                format_args!("{},\"output_token_ids_logprobs\":[{rows}]", self.input.ids),
            );
        }
    }

    fn weight_versions(&self, out: &mut String) {
        let end = self.tokens;
        write_to(
            out,
            format_args!(
                ",\"weight_versions\":[{{\"version\":\"default\",\"start\":0,\"end\":{end}}}]"
            ),
        );
    }

    /// The keys of a finished item. Their order differs when an event went out before.
    fn timing(&self, out: &mut String, times: Times, stream: bool, sent_before: Option<f64>) {
        let elapsed = times.now - times.received;
        // Without a stream the front end learns of decode's first token with the last.
        let saw_first_token = stream || self.role != Role::Decode;
        let seen = if saw_first_token {
            times.first_token
        } else {
            times.now
        };
        write_to(
            out,
            format_args!(
                ",\"e2e_latency\":{elapsed:?},\"request_received_ts\":{:?},\"first_token_latency\":{:?},\
                 \"api_server_dispatch_finish_ts\":{:?}",
                times.received,
                seen - times.received,
                times.received
            ),
        );
        if let Some(sent) = sent_before {
            write_to(
                out,
                format_args!(",\"response_sent_to_client_ts\":{sent:?}"),
            );
        }
        write_to(
            out,
            format_args!(",\"request_finished_ts\":{:?}", times.now),
        );
        if self.tokens > 1 && saw_first_token {
            // Without think time less than the clock's resolution may have passed.
            let throughput = (self.tokens - 1) as f64 / (times.now - seen).max(1e-6);
            write_to(out, format_args!(",\"decode_throughput\":{throughput:?}"));
        }
        if sent_before.is_none() {
            write_to(
                out,
                format_args!(",\"response_sent_to_client_ts\":{:?}", times.now),
            );
        }
    }

    /// Source: the transcript single_err_start_beyond_stream.
    fn refused(&mut self, message: &str, times: Times) -> String {
        let reason = format!(
            "{{\"type\":\"abort\",\"message\":{},\"status_code\":400,\"err_type\":\"BadRequestError\"}}",
            string(message)
        );
        "0".clone_into(&mut self.ids);
        self.tokens = 1;
        self.input = InputLogprobs {
            tokens: ",\"input_token_logprobs\":[]".to_owned(),
            ..std::mem::take(&mut self.input)
        };
        let times = Times {
            first_token: times.now,
            ..times
        };
        let step = Step {
            token: None,
            text: String::new(),
            row: None,
            finish: Some(Finish::Abort),
            cached_tokens: 0,
            times,
        };
        self.object(&reason, &step, true)
    }

    fn failed(&self, status: u16, message: &str, times: Times) -> String {
        let reason = format!(
            "{{\"type\":\"abort\",\"message\":{},\"status_code\":{status},\"err_type\":null}}",
            string(message)
        );
        let mut out = self.opening(&reason);
        out.push_str(",\"queue_time\":0.0,\"reasoning_tokens\":0,\"completion_tokens\":0,\"cached_tokens\":0");
        self.weight_versions(&mut out);
        out.push_str(",\"cached_tokens_details\":null,\"dp_rank\":null");
        let times = Times {
            first_token: times.now,
            ..times
        };
        self.timing(&mut out, times, true, None);
        out.push_str("}}");
        out
    }
}

impl InputLogprobs {
    /// Decode never sends them. Source: SGLang 0.5.23, `managers/.../output_streamer.py`.
    fn absent(item: &Item) -> InputLogprobs {
        let plan = &item.logprobs;
        let top = match (plan.top, plan.flat_input) {
            (0, _) => String::new(),
            (_, false) => ",\"input_top_logprobs\":[]".to_owned(),
            (top, true) => flat_input("", "", 0, top, 0),
        };
        InputLogprobs {
            tokens: ",\"input_token_logprobs\":[]".to_owned(),
            top,
            ids: ",\"input_token_ids_logprobs\":[]".to_owned(),
        }
    }

    fn of(item: &Item, seed: u64) -> InputLogprobs {
        let plan = &item.logprobs;
        let Some(start) = plan.start.filter(|_| plan.wanted) else {
            return InputLogprobs::absent(item);
        };
        let wanted_ids = plan.token_ids.as_deref().unwrap_or_default();
        let (mut tokens, mut top, mut ids) = (String::new(), String::new(), String::new());
        let (mut values, mut flat_ids, mut rows) = (String::new(), String::new(), 0);
        let start = start.min(item.prompt.len());
        let mut context =
            Context::start(seed ^ item.sampling.seed).after_all(&item.prompt[..start]);
        for (position, &token) in item.prompt[start..].iter().enumerate() {
            [&mut tokens, &mut top, &mut ids]
                .into_iter()
                .for_each(separate);
            // Nothing predicts the first position that is asked for.
            let known = position > 0;
            triple(
                known.then(|| context.logprob(token)),
                token,
                plan.text,
                &mut tokens,
            );
            let best = if known {
                context.top(plan.top)
            } else {
                Vec::new()
            };
            triples(known.then_some(&best), plan.text, &mut top);
            let asked: Vec<_> = wanted_ids
                .iter()
                .map(|&id| (context.logprob(id), id))
                .collect();
            triples(known.then_some(&asked), plan.text, &mut ids);
            rows += usize::from(known);
            for (logprob, token) in best {
                [&mut values, &mut flat_ids].into_iter().for_each(separate);
                write_to(&mut values, format_args!("{logprob:?}"));
                write_to(&mut flat_ids, format_args!("{token}"));
            }
            context = context.after(token);
        }
        let top = match (plan.top, plan.flat_input) {
            (0, _) => String::new(),
            (_, false) => format!(",\"input_top_logprobs\":[{top}]"),
            (k, true) => flat_input(&values, &flat_ids, rows, k, usize::from(!tokens.is_empty())),
        };
        InputLogprobs {
            tokens: format!(",\"input_token_logprobs\":[{tokens}]"),
            top,
            ids: format!(",\"input_token_ids_logprobs\":[{ids}]"),
        }
    }
}

fn flat_input(values: &str, ids: &str, rows: usize, top: usize, null_prefix: usize) -> String {
    format!(
        ",\"input_top_logprobs_val_flat\":[{values}],\"input_top_logprobs_idx_flat\":[{ids}],\
         \"input_top_logprobs_shape\":[{rows},{top}],\"input_top_logprobs_null_prefix\":{null_prefix}"
    )
}

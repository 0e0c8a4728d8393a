//! One item of `/generate`: its object, from the parts that its steps add.

use super::prompt_logprobs::PromptLogprobs;
use crate::sim::engine::{Finish, Step, Times};
use crate::sim::render::{escape_into, float, separate, string, triple, triples, write_to};
use crate::sim::request::{Item, LogprobPlan};
use crate::sim::{Role, SimOptions};

/// One item of a request. Its parts are kept as JSON, so that an event only copies them.
pub(super) struct NativeItem {
    role: Role,
    rid: String,
    prompt_tokens: usize,
    plan: LogprobPlan,
    /// The keys about the prompt; empty lists on decode.
    input: PromptLogprobs,
    text: String,
    ids: String,
    rows: String,
    top_rows: String,
    id_rows: String,
    flat_values: String,
    flat_ids: String,
    pub(super) tokens: usize,
    /// Output positions in `rows`: one more than `tokens` when `max_new_tokens` is 0.
    positions: usize,
    /// Tokens in the events so far.
    pub(super) sent: usize,
    first_sent: Option<f64>,
    pub(super) finished: Option<String>,
}

impl NativeItem {
    pub(super) fn new(role: Role, options: &SimOptions, item: &Item) -> NativeItem {
        let input = match role {
            Role::Decode => PromptLogprobs::absent(item),
            Role::Prefill | Role::Ordinary => PromptLogprobs::of(item, options.seed),
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
            sent: 0,
            first_sent: None,
            finished: None,
        }
    }

    /// Drops the parts that earlier events had: with incremental streaming an event has only the new ones.
    pub(super) fn forget(&mut self) {
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

    pub(super) fn absorb(&mut self, step: &Step) {
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

    pub(super) fn object(&mut self, finish_reason: &str, step: &Step, stream: bool) -> String {
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

    /// The keys of a finished item about time. Their order depends on whether an event was sent before.
    fn timing(&self, out: &mut String, times: Times, stream: bool, sent_before: Option<f64>) {
        let elapsed = times.now - times.received;
        // Without a stream SGLang's front end gets decode's first token together with the last.
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
            // With times of zero the difference may be below the clock's resolution.
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
    pub(super) fn refused(&mut self, message: &str, times: Times) -> String {
        let reason = format!(
            "{{\"type\":\"abort\",\"message\":{},\"status_code\":400,\"err_type\":\"BadRequestError\"}}",
            string(message)
        );
        "0".clone_into(&mut self.ids);
        self.tokens = 1;
        self.input = PromptLogprobs {
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
            pulled: false,
            handed_over: None,
            times,
        };
        self.object(&reason, &step, true)
    }

    pub(super) fn failed(&self, status: u16, message: &str, times: Times) -> String {
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

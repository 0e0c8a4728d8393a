//! What the choices of all endpoints share: usage, logprobs, and the reasons of an end.
//!
//! Source: transcripts 01 to 08.

use bytes::Bytes;
use serde_json::Value;

use crate::sim::SimOptions;
use crate::sim::engine::{Finish, Row, Step};
use crate::sim::errors::{Failure, Family};
use crate::sim::model::{self, Context};
use crate::sim::openai::Generated;
use crate::sim::render::{data, separate, string, write_to};
use crate::sim::request::{Batch, Item};

/// The values of a response that all its choices share.
pub(super) struct Answer {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) created: u64,
    pub(super) fingerprint: String,
    pub(super) choices: Vec<Choice>,
    /// Choices of each prompt.
    pub(super) n: usize,
    pub(super) include_usage: bool,
    pub(super) continuous_usage: bool,
    /// A stream has had its error.
    pub(super) failed: bool,
}

/// One choice.
pub(super) struct Choice {
    pub(super) generated: Generated,
    /// The prompt's tokens that are new in the prefix cache.
    created_tokens: usize,
    block: usize,
    pub(super) logprobs: Option<usize>,
    pub(super) handed_over: Option<std::sync::Arc<str>>,
    stop_token_ids: Vec<u32>,
    pub(super) begun: bool,
}

impl Answer {
    pub(super) fn new(
        body: &Value,
        options: &SimOptions,
        id: String,
        created: u64,
        batch: &Batch,
    ) -> Answer {
        let stream = crate::sim::openai::StreamOptions::of(body);
        Answer {
            id,
            model: options.model.clone(),
            created,
            fingerprint: fingerprint(options),
            choices: batch
                .items
                .iter()
                .map(|item| Choice::new(item, options))
                .collect(),
            n: batch.n,
            include_usage: stream.include_usage,
            continuous_usage: stream.continuous_usage,
            failed: false,
        }
    }

    /// `{"id":..,"object":..,"created":..,"model":..`, open.
    pub(super) fn head(&self, object: &str) -> String {
        crate::sim::openai::head(&self.id, object, self.created, &self.model)
    }

    /// `"service_tier":..,"system_fingerprint":..`.
    pub(super) fn tier(&self) -> String {
        format!(
            "\"service_tier\":null,\"system_fingerprint\":{}",
            string(&self.fingerprint)
        )
    }

    /// The tokens of all prompts, and of all choices.
    pub(super) fn totals(&self) -> (usize, usize) {
        let prompts = self.choices.iter().step_by(self.n);
        let prompts = prompts.map(|choice| choice.generated.prompt_tokens).sum();
        let completions = self.choices.iter().map(|choice| choice.generated.tokens);
        (prompts, completions.sum())
    }

    /// The cached tokens, where the worker reports them, and the new ones in its cache. They are the last choice's.
    pub(super) fn cached(&self) -> Option<(usize, usize)> {
        let last = self.choices.last()?;
        Some((last.generated.cached_tokens?, last.created_tokens()))
    }

    /// The `usage` of a response in one piece.
    pub(super) fn usage(&self, counts_created: bool) -> String {
        let details = self.cached().map_or("null".to_owned(), |(cached, created)| {
            let created = match counts_created {
                true => created.to_string(),
                false => "null".to_owned(),
            };
            format!(
                "{{\"cached_tokens\":{cached},\"created_cache_tokens\":{created},\"multimodal_tokens\":null}}"
            )
        });
        format!(
            "{},\"prompt_tokens_details\":{details},\"completion_tokens_details\":null}}",
            counts(self.totals())
        )
    }

    /// The `usage` of a stream's last event.
    pub(super) fn stream_usage(&self, counts_created: bool) -> String {
        let details = self.cached().map_or(String::new(), |(cached, created)| {
            let created = match counts_created {
                true => format!(",\"created_cache_tokens\":{created}"),
                false => String::new(),
            };
            format!(",\"prompt_tokens_details\":{{\"cached_tokens\":{cached}{created}}}")
        });
        format!("{}{details}}}", counts(self.totals()))
    }

    /// The event of a failure in a stream whose head has been sent.
    pub(super) fn fail(&mut self, failure: &Failure, out: &mut Vec<Bytes>) -> bool {
        self.failed = true;
        out.push(data(&failure.event(Family::Vllm)));
        false
    }

    /// The last events of a stream: the usage, where it is wanted, in an event that begins like this, and the end.
    pub(super) fn end(&self, open: &str, usage: &str, close: &str, out: &mut Vec<Bytes>) {
        if self.include_usage && !self.failed {
            out.push(data(&format!("{open},\"usage\":{usage}{close}}}")));
        }
        out.push(data("[DONE]"));
    }

    /// The members of an event after its choices: its own usage, and the fingerprint of the last one.
    pub(super) fn event_tail(&self, index: usize, tokens: usize, is_last: bool) -> String {
        let mut tail = String::new();
        if self.continuous_usage {
            let prompt = self.choices[index].generated.prompt_tokens;
            write_to(
                &mut tail,
                format_args!(",\"usage\":{}}}", counts((prompt, tokens))),
            );
        }
        if is_last && !self.include_usage {
            write_to(
                &mut tail,
                format_args!(",\"system_fingerprint\":{}", string(&self.fingerprint)),
            );
        }
        tail
    }

    /// The `kv_transfer_params` of choice `index`.
    pub(super) fn params(&self, index: usize) -> &str {
        let choice = self.choices.get(index);
        let params = choice.and_then(|choice| choice.handed_over.as_deref());
        params.unwrap_or("null")
    }
}

impl Choice {
    fn new(item: &Item, options: &SimOptions) -> Choice {
        Choice {
            generated: Generated::new(item, options.cache_report),
            created_tokens: 0,
            block: super::nixl::block_size(options),
            logprobs: item.logprobs.wanted.then_some(item.logprobs.top),
            handed_over: None,
            stop_token_ids: item.sampling.stop_token_ids.clone(),
            begun: false,
        }
    }

    /// Adds a step, and gives its token.
    pub(super) fn absorb(&mut self, step: &Step) -> Option<u32> {
        let whole = self.generated.prompt_tokens / self.block * self.block;
        self.created_tokens = match step.pulled {
            true => 0,
            false => whole.saturating_sub(step.cached_tokens),
        };
        self.handed_over.clone_from(&step.handed_over);
        self.generated.absorb(step)
    }

    pub(super) fn created_tokens(&self) -> usize {
        self.created_tokens
    }

    /// `"finish_reason":..,"stop_reason":..`.
    pub(super) fn finish(&self) -> String {
        let (reason, stop) = self.reasons();
        format!("\"finish_reason\":{reason},\"stop_reason\":{stop}")
    }

    /// `finish_reason` and `stop_reason`, as JSON.
    pub(super) fn reasons(&self) -> (&'static str, String) {
        let null = || "null".to_owned();
        match &self.generated.finish {
            None => ("null", null()),
            Some(Finish::Length(_)) => ("\"length\"", null()),
            Some(Finish::StopToken(token)) if self.stop_token_ids.contains(token) => {
                ("\"stop\"", token.to_string())
            }
            Some(Finish::StopToken(_)) => ("\"stop\"", null()),
            Some(Finish::StopText(text)) => ("\"stop\"", string(text)),
            Some(Finish::Abort) => ("\"abort\"", null()),
        }
    }
}

/// `{"prompt_tokens":..,"total_tokens":..,"completion_tokens":..`, open.
fn counts((prompt, completion): (usize, usize)) -> String {
    format!(
        "{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":{completion}",
        prompt + completion
    )
}

/// It stands for the configuration of a worker.
fn fingerprint(options: &SimOptions) -> String {
    let tokens = model::encode(&options.reported.transfer_backend);
    let hash = Context::start(options.seed)
        .after_all(&tokens)
        .fingerprint();
    format!("vllm-{}-{:08x}", options.reported.version, hash as u32)
}

/// The logprobs of one output token with its `top` most probable ones, without repetition: the token itself is the first.
pub(super) fn with_top(row: &Row, top: usize) -> Vec<(f64, u32)> {
    let others = row.top.iter().take(top).copied();
    let mut all = vec![(row.logprob, row.token)];
    all.extend(others.filter(|(_, token)| *token != row.token));
    all
}

/// The logprobs of a prompt: none for its first token, then by token id.
pub(super) fn prompt_logprobs(seed: u64, prompt: &[u32], top: usize) -> String {
    let mut list = "null".to_owned();
    for (row, context) in prompt_rows(seed, prompt, top) {
        list.push_str(",{");
        let mut members = String::new();
        for (logprob, token) in row {
            separate(&mut members);
            write_to(
                &mut members,
                format_args!(
                    "\"{token}\":{{\"logprob\":{logprob:?},\"rank\":{},\"decoded_token\":{}}}",
                    context.rank_of(token) + 1,
                    string(&model::name_of(token))
                ),
            );
        }
        list.push_str(&members);
        list.push('}');
    }
    format!("[{list}]")
}

/// The logprobs of each prompt token but the first, with its `top` most probable ones, and the state before it.
pub(super) fn prompt_rows(
    seed: u64,
    prompt: &[u32],
    top: usize,
) -> impl Iterator<Item = (Vec<(f64, u32)>, Context)> + '_ {
    let mut context = Context::start(seed);
    prompt
        .iter()
        .enumerate()
        .filter_map(move |(index, &token)| {
            let before = context;
            context = context.after(token);
            let row = Row {
                token,
                logprob: before.logprob(token),
                top: before.top(top),
                token_ids: None,
            };
            (index > 0).then(|| (with_top(&row, top), before))
        })
}

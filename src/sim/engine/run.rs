//! One item while it generates: its tokens, and the reason of its end.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::OwnedSemaphorePermit;

use super::rank::Computed;
use super::stage::{Stage, Staged};
use super::{Abort, Engine};
use crate::sim::Role;
use crate::sim::chaos::ItemFault;
use crate::sim::errors::Failure;
use crate::sim::model::{self, Context};
use crate::sim::rendezvous::Record;
use crate::sim::request::{Item, Sampling};
use crate::sim::vllm::transfer::Transfer;

/// One item in the engine.
pub(crate) struct Run {
    pub(super) engine: Arc<Engine>,
    /// The number of its request in the journal.
    pub(super) request: u64,
    pub(super) item: Item,
    pub(super) fault: ItemFault,
    pub(super) abort: Arc<Abort>,
    pub(super) context: Context,
    progress: Progress,
    /// The last bytes of the text so far, as many as the longest stop string has.
    tail: String,
    /// Prefill's record, with the first token.
    pub(super) first: Option<Record>,
    /// Tokens of the prompt that the prefix cache of this worker had.
    pub(super) cached_tokens: usize,
    /// Keeps the prompt in the prefix cache until the item has ended.
    pub(super) computed: Option<Computed>,
    /// The blocks that a vLLM worker holds for decode.
    pub(super) blocks: Option<Vec<u64>>,
    /// Whether the prompt's KV cache is another worker's.
    pub(super) pulled: bool,
    pub(super) times: Times,
    pub(super) stage: Staged,
    pub(super) permits: Vec<OwnedSemaphorePermit>,
}

enum Progress {
    Waiting,
    Running { produced: usize },
    Over,
}

/// Clock readings of one item, in Unix seconds, as `meta_info` shows them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) received: f64,
    pub(crate) forward_entry: f64,
    pub(crate) prefill_finished: f64,
    pub(crate) first_token: f64,
    pub(crate) now: f64,
}

impl Times {
    fn start() -> Times {
        let now = unix_seconds();
        Times {
            received: now,
            forward_entry: now,
            prefill_finished: now,
            first_token: now,
            now,
        }
    }
}

/// One step of an item: a token, its end, or both.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) token: Option<u32>,
    /// The token's text, up to a stop string.
    pub(crate) text: String,
    /// Logprobs, if the request wants them.
    pub(crate) row: Option<Row>,
    pub(crate) finish: Option<Finish>,
    pub(crate) cached_tokens: usize,
    /// Whether the prompt's KV cache is another worker's.
    pub(crate) pulled: bool,
    /// The `kv_transfer_params` of a vLLM prefill worker, as JSON, with the last step.
    pub(crate) handed_over: Option<Arc<str>>,
    pub(crate) times: Times,
}

/// The logprobs of one output position.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) token: u32,
    pub(crate) logprob: f64,
    pub(crate) top: Vec<(f64, u32)>,
    /// None for decode's first token, because prefill's record does not have them.
    pub(crate) token_ids: Option<Vec<(f64, u32)>>,
}

/// Why an item ended without a failure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finish {
    /// The length in `finish_reason`, which is 0 on prefill.
    Length(usize),
    StopToken(u32),
    StopText(String),
    Abort,
}

impl Run {
    pub(super) fn new(
        engine: Arc<Engine>,
        request: u64,
        item: Item,
        fault: ItemFault,
        abort: Arc<Abort>,
    ) -> Run {
        let first = match (engine.role(), &item.transfer) {
            (_, Transfer::Pull(_)) => Stage::Preallocating,
            _ if engine.is_vllm() => Stage::Queued,
            (Role::Prefill, _) => Stage::Bootstrap,
            (Role::Decode, _) => Stage::Preallocating,
            (Role::Ordinary, _) => Stage::Queued,
        };
        let stage = Staged::new(&engine.stages, first);
        let (seed, sampling) = (engine.options.seed, item.sampling.seed);
        let context = match engine.is_vllm() {
            // The KV cache of a prompt does not depend on how tokens are sampled.
            true => Context::start(seed)
                .after_all(&item.prompt)
                .sampled(sampling),
            false => Context::start(seed ^ sampling).after_all(&item.prompt),
        };
        Run {
            context,
            engine,
            request,
            item,
            fault,
            abort,
            progress: Progress::Waiting,
            tail: String::new(),
            first: None,
            cached_tokens: 0,
            computed: None,
            blocks: None,
            pulled: false,
            times: Times::start(),
            stage,
            permits: Vec::new(),
        }
    }

    pub(crate) fn abort_handle(&self) -> Arc<Abort> {
        self.abort.clone()
    }

    /// The next step, or the failure that ends the item; none after the end.
    pub(crate) async fn advance(&mut self) -> Option<Result<Step, Failure>> {
        if matches!(self.progress, Progress::Waiting) {
            match self.admit().await {
                Ok(()) => {
                    self.times.first_token = unix_seconds();
                    self.progress = Progress::Running { produced: 0 };
                }
                Err(failure) => {
                    self.progress = Progress::Over;
                    self.times.now = unix_seconds();
                    return Some(Err(failure));
                }
            }
        }
        let Progress::Running { produced } = self.progress else {
            return None;
        };
        // A paused worker computes nothing. The caller checks for an abort afterwards.
        let engine = self.engine.clone();
        let _ = self.abort.race(engine.pause.moves()).await;
        if produced > 0 {
            self.pause(self.engine.options.time_per_output_token).await;
        }
        let scripted = matches!(self.fault, ItemFault::AbortAfter(tokens) if produced >= tokens);
        let mut step = if scripted || self.abort.is_requested() {
            self.aborted()
        } else {
            self.generate(produced)
        };
        if step.finish.is_some() {
            step.handed_over = self.hand_over(step.finish.as_ref(), produced + 1);
        }
        self.progress = match step.finish {
            Some(_) => Progress::Over,
            None => Progress::Running {
                produced: produced + 1,
            },
        };
        Some(Ok(step))
    }

    pub(crate) fn times(&self) -> Times {
        Times {
            now: unix_seconds(),
            ..self.times
        }
    }

    pub(super) async fn pause(&self, time: Duration) {
        if !time.is_zero() {
            // The caller checks for an abort afterwards.
            let _ = self.abort.race(tokio::time::sleep(time)).await;
        }
    }

    fn generate(&mut self, produced: usize) -> Step {
        let hands_over_first = self.engine.role() == Role::Prefill && !self.engine.is_vllm();
        if self.item.sampling.max_new_tokens == 0 && !hands_over_first {
            // The response has no token, but decode's has the logprobs of prefill's record.
            // Source: SGLang 0.5.23, `managers/scheduler_components/output_streamer.py`, `logprob_end`.
            let row = self.first.as_ref().filter(|_| self.item.logprobs.wanted);
            let row = row.map(|record| self.row(record.first_token, Some(record)));
            return self.step(None, String::new(), row, Some(Finish::Length(0)));
        }
        let handed = self.first.as_ref().filter(|_| produced == 0);
        let token = handed.map_or_else(|| self.context.next(), |record| record.first_token);
        let row = self.item.logprobs.wanted.then(|| self.row(token, handed));
        self.context = self.context.after(token);
        let text = model::text_of(&[token]);
        if hands_over_first {
            return self.step(Some(token), text, row, Some(Finish::Length(0)));
        }
        let (text, stopped) = self.cut_at_stop(text);
        let sampling = &self.item.sampling;
        let finish = stopped
            .map(Finish::StopText)
            .or_else(|| ends_with(sampling, token))
            .or_else(|| {
                (produced + 1 >= sampling.max_new_tokens).then_some(Finish::Length(produced + 1))
            });
        self.step(Some(token), text, row, finish)
    }

    fn row(&self, token: u32, handed: Option<&Record>) -> Row {
        let ids = self.item.logprobs.token_ids.as_deref().unwrap_or_default();
        match handed {
            Some(record) => Row {
                token,
                logprob: record.logprob,
                top: record.top.clone(),
                token_ids: None,
            },
            None => Row {
                token,
                logprob: self.context.logprob(token),
                top: self.context.top(self.item.logprobs.top),
                token_ids: Some(
                    ids.iter()
                        .map(|&id| (self.context.logprob(id), id))
                        .collect(),
                ),
            },
        }
    }

    /// The part of `text` before a stop string, and the stop string.
    fn cut_at_stop(&mut self, text: String) -> (String, Option<String>) {
        let stops = &self.item.sampling.stop;
        let Some(longest) = stops.iter().map(String::len).max() else {
            return (text, None);
        };
        let before = self.tail.len();
        self.tail.push_str(&text);
        let hit = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| Some((self.tail.find(stop.as_str())?, stop)))
            .min_by_key(|(at, _)| *at);
        if let Some((at, stop)) = hit {
            // Text of earlier events has been sent.
            let kept = text.get(..at.saturating_sub(before)).unwrap_or_default();
            return (kept.to_owned(), Some(stop.clone()));
        }
        let mut drop = self.tail.len().saturating_sub(longest);
        while !self.tail.is_char_boundary(drop) {
            drop -= 1;
        }
        self.tail.drain(..drop);
        (text, None)
    }

    fn aborted(&self) -> Step {
        self.step(None, String::new(), None, Some(Finish::Abort))
    }

    fn step(
        &self,
        token: Option<u32>,
        text: String,
        row: Option<Row>,
        finish: Option<Finish>,
    ) -> Step {
        let first = self.first.as_ref();
        let cached_tokens = first.map_or(self.cached_tokens, |record| record.cached_tokens);
        Step {
            token,
            text,
            row,
            finish,
            cached_tokens,
            pulled: self.pulled,
            handed_over: None,
            times: self.times(),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.give_blocks_back();
        self.engine.live().remove(&self.item.rid);
        self.engine.in_flight.send_modify(|items| *items -= 1);
    }
}

fn ends_with(sampling: &Sampling, token: u32) -> Option<Finish> {
    let ends =
        sampling.stop_token_ids.contains(&token) || (token == model::EOS && !sampling.ignore_eos);
    ends.then_some(Finish::StopToken(token))
}

pub(super) fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

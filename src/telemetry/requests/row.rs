//! One request in the form in which it is remembered, and as JSON.
//!
//! A row has a bounded size, which it knows: [`Row::bytes`]. Its JSON is described in docs/debug.md.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use serde::{Serialize, Serializer};

use super::super::record::Times;
use super::super::{Part, Record, Suspect};
use crate::fleet::{Forecast, Role, Spread};
use crate::pd::Route;

/// The longest text of a row: a request id, or an error. A longer one is cut.
const MAX_TEXT: usize = 256;

/// The most failed attempts of a row, and the most samples. Others are left off.
const MAX_FAILED: usize = 8;
const MAX_SAMPLES: usize = 32;

/// What an allocation costs besides its content.
const ALLOCATION: usize = 16;

/// One request, or one sample of a request.
pub(crate) struct Row {
    number: u64,
    id: Box<str>,
    sample: Option<usize>,
    client: Option<SocketAddr>,
    key: Option<Arc<str>>,
    method: Method,
    http: &'static str,
    route: Option<Route>,
    /// The URLs of the pair, prefill's first. They are shared with the workers.
    pair: Option<[Arc<str>; 2]>,
    prefill_rank: Option<u32>,
    forecast: Option<Arc<Forecast>>,
    attempts: u32,
    failed: Box<[Failed]>,
    rooms: usize,
    queued: Duration,
    times: Times,
    streamed: bool,
    request_bytes: usize,
    response_bytes: usize,
    events: u64,
    suspect: Option<Suspect>,
    status: u16,
    ended: Cow<'static, str>,
    error: Option<Box<str>>,
    /// How many samples were asked for, where they were several.
    asked: usize,
    samples: Box<[Row]>,
}

struct Failed {
    worker: Arc<str>,
    role: Role,
    cause: Box<str>,
}

impl Row {
    /// The row of a request, live or finished.
    pub(super) fn of(record: &Record) -> Self {
        let failed = record.failed.iter().take(MAX_FAILED);
        let failed = failed.map(|attempt| Failed {
            worker: attempt.worker.shared_url().clone(),
            role: attempt.worker.role(),
            cause: attempt.cause.to_string().into(),
        });
        let urls = |pair: &super::super::Pair| {
            [&pair.prefill, &pair.decode].map(|worker| worker.shared_url().clone())
        };
        Self {
            number: record.number,
            id: cut(record.request_id.to_str().unwrap_or("-")),
            sample: record.sample,
            client: record.client,
            key: record.key.clone(),
            method: record.method.clone(),
            http: record.version(),
            route: record.route,
            pair: record.pair.as_ref().map(urls),
            prefill_rank: record.spread.and_then(Spread::rank),
            forecast: record.forecast.clone(),
            attempts: record.attempts,
            failed: failed.collect(),
            rooms: record.rooms,
            queued: record.queued,
            times: record.times,
            streamed: record.streamed,
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            events: record.events,
            suspect: record.suspect,
            status: record.status,
            ended: record.ended.clone(),
            error: record.error.as_deref().map(cut),
            asked: record.samples,
            samples: record
                .sampled
                .iter()
                .take(MAX_SAMPLES)
                .map(|sample| Row::of(sample))
                .collect(),
        }
    }

    /// The memory of the row, in bytes. The URLs are counted as if no worker and no other row had them.
    pub(super) fn bytes(&self) -> usize {
        let shared = |text: &Arc<str>| ALLOCATION + 2 * size_of::<usize>() + text.len();
        let owned = |bytes: usize| if bytes == 0 { 0 } else { ALLOCATION + bytes };
        let pair: usize = self.pair.iter().flatten().map(shared).sum();
        let failed = self.failed.iter();
        let failed = failed.map(|failed| {
            size_of::<Failed>() + ALLOCATION + shared(&failed.worker) + owned(failed.cause.len())
        });
        let samples: usize = self.samples.iter().map(Row::bytes).sum();
        let ended = match &self.ended {
            Cow::Borrowed(_) => 0,
            Cow::Owned(text) => owned(text.capacity()),
        };
        // In an `Arc`.
        size_of::<Row>()
            + ALLOCATION
            + 2 * size_of::<usize>()
            + owned(self.id.len())
            + owned(self.error.as_ref().map_or(0, |error| error.len()))
            + pair
            + owned(self.forecast.as_ref().map_or(0, |_| size_of::<Forecast>()))
            + failed.sum::<usize>()
            + samples
            + ended
    }

    /// Whether a client has called it so.
    pub(crate) fn is_called(&self, id: &str) -> bool {
        &*self.id == id
    }

    /// Whether this worker has, or one of its samples, the request.
    pub(crate) fn is_at(&self, role: Role, url: &str) -> bool {
        let own = self.pair.as_ref().map(|[prefill, decode]| match role {
            Role::Prefill => prefill,
            Role::Decode => decode,
        });
        own.is_some_and(|own| &**own == url)
            || self.samples.iter().any(|sample| sample.is_at(role, url))
    }

    /// The time to the first byte of a stream.
    pub(super) fn ttft(&self) -> Option<Duration> {
        self.times.first_byte().filter(|_| self.streamed)
    }

    pub(super) fn e2e(&self) -> Duration {
        self.times.e2e()
    }

    /// When the request ended, or began where it is live.
    pub(crate) fn ended_at(&self) -> Instant {
        self.times.ended.unwrap_or(self.times.started)
    }

    fn is_live(&self) -> bool {
        self.times.ended.is_none()
    }

    /// The parts of the time to the first byte; of a live request those so far, and the one that it is in.
    fn parts(&self, now: Instant) -> (Vec<(&'static str, f64)>, Option<&'static str>) {
        let times = &self.times;
        let (parts, over) = times.split(self.queued, self.attempts, times.first_byte);
        let spent = parts.iter().filter(|(part, _)| over[*part as usize]);
        let mut shown: Vec<_> = spent
            .map(|(part, time)| (part.name(), millis(time)))
            .collect();
        if !self.is_live() {
            return (shown, None);
        }
        let mut parts = Part::ALL.into_iter();
        let current = parts.find(|part| *part != Part::Retry && !over[*part as usize]);
        let Some(current) = current else {
            return (shown, Some("stream"));
        };
        let name = match current {
            Part::Queue if !self.failed.is_empty() => Part::Retry.name(),
            current => current.name(),
        };
        let before: f64 = shown.iter().map(|(_, time)| time).sum();
        let so_far = millis(now.saturating_duration_since(times.started)) - before;
        shown.push((name, round(so_far.max(0.0))));
        (shown, Some(name))
    }

    /// When each step happened, in milliseconds from the head of the request.
    fn steps(&self) -> Vec<(&'static str, f64)> {
        let times = &self.times;
        let steps = [
            ("read", times.read),
            ("selected", times.selected),
            ("sent", times.sent),
            ("prefill_head", times.prefill_head),
            ("prefill_end", times.prefill_end),
            ("decode_head", times.decode_head),
            ("decode_first", times.decode_first),
            ("first_byte", times.first_byte),
            ("ended", times.ended),
        ];
        let reached = steps.into_iter().filter_map(|(step, at)| {
            let since = at?.saturating_duration_since(times.started);
            Some((step, millis(since)))
        });
        reached.collect()
    }

    fn came(&self, forecast: &Forecast) -> ForecastJson {
        let (expected, usage) = (forecast.expected(), forecast.usage());
        ForecastJson {
            expected_cached_tokens: expected.cached_tokens,
            cached_tokens: usage.and_then(|usage| usage.cached_tokens),
            prompt_tokens: usage.map(|usage| usage.prompt_tokens),
            expected_prefill_ms: millis(expected.prefill()),
            prefill_ms: self.times.prefill().map(millis),
        }
    }

    fn shown(&self, now: Instant) -> Json<'_> {
        let (parts, step) = self.parts(now);
        let finished = !self.is_live();
        let ago = |at: Instant| millis(now.saturating_duration_since(at));
        let url = |index: usize| self.pair.as_ref().map(|pair| &*pair[index]);
        let failed = self.failed.iter().map(|failed| FailedJson {
            worker: &failed.worker,
            role: failed.role.to_string(),
            cause: &failed.cause,
        });
        Json {
            number: self.number,
            id: &self.id,
            state: if finished { "finished" } else { "live" },
            sample: self.sample,
            step,
            route: self.route.map_or("other", Route::name),
            method: self.method.as_str(),
            path: self.route.map_or("", Route::path),
            http: self.http,
            client: self.client,
            key: self.key.as_deref(),
            prefill: url(0),
            prefill_rank: self.prefill_rank,
            decode: url(1),
            forecast: self.forecast.as_deref().map(|forecast| self.came(forecast)),
            attempts: self.attempts,
            failed: failed.collect(),
            suspect: self.suspect.map(Suspect::name),
            status: (self.status > 0).then_some(self.status),
            ended: finished.then_some(&*self.ended),
            error: self.error.as_deref(),
            stream: self.streamed,
            rooms: self.rooms,
            events: self.events,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            started_ago_ms: ago(self.times.started),
            ended_ago_ms: self.times.ended.map(ago),
            queued_ms: millis(self.queued),
            ttft_ms: self.ttft().map(millis),
            e2e_ms: finished.then(|| millis(self.e2e())),
            parts_ms: Pairs(parts),
            steps_ms: Pairs(self.steps()),
            samples_asked: self.asked,
            samples: self.samples.iter().map(|row| row.shown(now)).collect(),
        }
    }
}

/// A row as it is at one moment, for JSON.
pub(crate) struct Shown<'a>(pub(crate) &'a Row, pub(crate) Instant);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.shown(self.1).serialize(serializer)
    }
}

/// The members of a row, in their order.
#[derive(Serialize)]
struct Json<'a> {
    number: u64,
    id: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample: Option<usize>,
    step: Option<&'static str>,
    route: &'static str,
    method: &'a str,
    path: &'static str,
    http: &'static str,
    client: Option<SocketAddr>,
    key: Option<&'a str>,
    prefill: Option<&'a str>,
    prefill_rank: Option<u32>,
    decode: Option<&'a str>,
    forecast: Option<ForecastJson>,
    attempts: u32,
    failed: Vec<FailedJson<'a>>,
    suspect: Option<&'static str>,
    status: Option<u16>,
    ended: Option<&'a str>,
    error: Option<&'a str>,
    stream: bool,
    rooms: usize,
    events: u64,
    request_bytes: usize,
    response_bytes: usize,
    started_ago_ms: f64,
    ended_ago_ms: Option<f64>,
    queued_ms: f64,
    ttft_ms: Option<f64>,
    e2e_ms: Option<f64>,
    parts_ms: Pairs,
    steps_ms: Pairs,
    samples_asked: usize,
    samples: Vec<Json<'a>>,
}

/// What the policy expected, and what came.
#[derive(Serialize)]
struct ForecastJson {
    expected_cached_tokens: u64,
    cached_tokens: Option<u64>,
    prompt_tokens: Option<u64>,
    expected_prefill_ms: f64,
    prefill_ms: Option<f64>,
}

#[derive(Serialize)]
struct FailedJson<'a> {
    worker: &'a str,
    role: String,
    cause: &'a str,
}

/// An object of times.
struct Pairs(Vec<(&'static str, f64)>);

impl Serialize for Pairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, time)| (name, time)))
    }
}

/// To the microsecond.
fn millis(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1e3)
}

fn round(millis: f64) -> f64 {
    (millis * 1e3).round() / 1e3
}

fn cut(text: &str) -> Box<str> {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}

//! The attributes of spans, in the names of OpenTelemetry's semantic conventions. What they have no name for begins with
//! `mini_lb`. No prompt, no query and no key is in them.
//!
//! Source: OpenTelemetry semantic conventions 1.37, `http/http-spans.md` (stable), and `gen-ai/gen-ai-spans.md` (in development).

use http::HeaderValue;
use http::uri::Authority;
use opentelemetry::KeyValue;

use super::context::Details;
use crate::fleet::{Role, Spread, Worker};
use crate::pd::{Leg, Route};
use crate::telemetry::Record;

/// The attributes of a request's span.
pub(super) fn of_request(record: &Record, details: &Details) -> Vec<KeyValue> {
    let mut all = common(record);
    let scheme = if details.tls { "https" } else { "http" };
    all.push(KeyValue::new("url.scheme", scheme));
    all.push(KeyValue::new("url.path", record.path().to_owned()));
    all.push(KeyValue::new("network.protocol.version", record.version()));
    if let Some(authority) = text(&details.host).and_then(|host| host.parse::<Authority>().ok()) {
        let port = authority.port_u16();
        let port = port.unwrap_or(if details.tls { 443 } else { 80 });
        all.extend(server(authority.host(), port));
    }
    if let Some(agent) = text(&details.user_agent) {
        all.push(KeyValue::new("user_agent.original", agent.to_owned()));
    }
    if let Some(client) = record.client {
        all.push(KeyValue::new("client.address", client.ip().to_string()));
        all.push(KeyValue::new("client.port", i64::from(client.port())));
    }
    if record.status > 0 {
        all.push(status(record.status));
    }
    let size = |name, bytes: usize| KeyValue::new(name, bytes as i64);
    all.push(size("http.request.body.size", record.request_bytes));
    all.push(size("http.response.body.size", record.response_bytes));
    if record.streamed
        && let Some(time) = record.times.first_byte()
    {
        let name = "gen_ai.response.time_to_first_chunk";
        all.push(KeyValue::new(name, time.as_secs_f64()));
    }
    if record.samples > 0 {
        all.push(size("gen_ai.request.choice.count", record.samples));
    }
    if let Ok(id) = record.request_id.to_str() {
        all.push(KeyValue::new("mini_lb.request_id", id.to_owned()));
    }
    all.push(KeyValue::new("mini_lb.ended", record.ended.to_string()));
    if record.pair.is_some() {
        all.push(KeyValue::new(
            "mini_lb.attempts",
            i64::from(record.attempts),
        ));
        all.push(KeyValue::new("mini_lb.events", record.events as i64));
    }
    all
}

/// The attributes of a leg's span. Attempts are counted from 1, samples from 0.
pub(super) fn of_leg(
    record: &Record,
    worker: &Worker,
    attempt: usize,
    sample: Option<usize>,
) -> Vec<KeyValue> {
    let mut all = common(record);
    let origin = worker.origin();
    all.extend(server(&origin.host, origin.port));
    let url = format!("{}{}", worker.url().trim_end_matches('/'), record.path());
    all.push(KeyValue::new("url.full", url));
    all.push(KeyValue::new("mini_lb.role", worker.role().name()));
    all.push(KeyValue::new("mini_lb.attempt", attempt as i64));
    if attempt > 1 {
        let name = "http.request.resend_count";
        all.push(KeyValue::new(name, attempt as i64 - 1));
    }
    if let Some(sample) = sample {
        all.push(KeyValue::new("mini_lb.sample", sample as i64));
    }
    all
}

/// The attributes of prefill's leg from the choice of its worker: the rank, and where the policy learns what it expected and
/// what the worker reports. The time that came is the span's.
pub(super) fn of_choice(record: &Record) -> Vec<KeyValue> {
    let number = |name, number: u64| KeyValue::new(name, number as i64);
    let mut all = Vec::new();
    if let Some(rank) = record.spread.and_then(Spread::rank) {
        all.push(number("mini_lb.prefill_rank", rank.into()));
    }
    let Some(forecast) = &record.forecast else {
        return all;
    };
    let (expected, usage) = (forecast.expected(), forecast.usage());
    let seconds = expected.prefill_seconds;
    let cached = expected.cached_tokens;
    all.push(KeyValue::new("mini_lb.expected_prefill_seconds", seconds));
    all.push(number("mini_lb.expected_cached_tokens", cached));
    if let Some(cached) = usage.and_then(|usage| usage.cached_tokens) {
        all.push(number("mini_lb.cached_tokens", cached));
    }
    if let Some(usage) = usage {
        all.push(number("gen_ai.usage.input_tokens", usage.prompt_tokens));
    }
    all
}

/// The name of a request's span.
pub(super) fn request_name(record: &Record) -> String {
    let method = record.method.as_str();
    match record.route {
        Some(route) => format!("{method} {}", route.path()),
        // The path is the client's, and a name is one of few.
        None => method.to_owned(),
    }
}

/// The name of a leg's span.
pub(super) fn leg_name(record: &Record, role: Role) -> String {
    format!("{} {}", role.name(), request_name(record))
}

pub(super) fn status(status: u16) -> KeyValue {
    KeyValue::new("http.response.status_code", i64::from(status))
}

pub(super) fn error_type(error: String) -> KeyValue {
    KeyValue::new("error.type", error)
}

/// How far a leg came, in a word.
pub(super) fn outcome(leg: Leg) -> &'static str {
    match leg {
        Leg::Unused => "unused",
        Leg::Running => "cancelled",
        Leg::Served => "served",
        Leg::Rejected(_) => "rejected",
        Leg::Aborted(_) => "aborted",
        Leg::Unsent => "unsent",
        Leg::Lost => "lost",
        Leg::Stale => "stale",
        Leg::Failed => "failed",
    }
}

fn common(record: &Record) -> Vec<KeyValue> {
    let method = record.method.as_str().to_owned();
    let mut all = Vec::with_capacity(20);
    all.push(KeyValue::new("http.request.method", method));
    if let Some(route) = record.route {
        all.push(KeyValue::new("http.route", route.path()));
        all.push(KeyValue::new("gen_ai.operation.name", operation(route)));
        all.push(KeyValue::new("gen_ai.provider.name", "sglang"));
    }
    all
}

fn server(host: &str, port: u16) -> [KeyValue; 2] {
    [
        KeyValue::new("server.address", host.to_owned()),
        KeyValue::new("server.port", i64::from(port)),
    ]
}

const fn operation(route: Route) -> &'static str {
    match route {
        Route::Generate | Route::Completions => "text_completion",
        Route::ChatCompletions | Route::Responses | Route::Messages => "chat",
    }
}

fn text(field: &Option<HeaderValue>) -> Option<&str> {
    field.as_ref()?.to_str().ok()
}

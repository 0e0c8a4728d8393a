//! The workloads: bodies, concurrency, and the unit of work that costs are divided by.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use mini_lb::bench::{RequestSource, RequestSpec};
use mini_lb::pd::Engine;
use serde_json::{Value, json};

use super::fleet::{Fleet, Plan};
use super::targets::Legs;

/// Token ids of prompts; their values do not matter.
const FIRST_ID: u32 = 1_000;
/// Events per second over all streams. With more streams each one has its events further apart, so that only
/// the number of streams changes, not the load.
const EVENTS_PER_SECOND: u64 = 8_000;

/// Requests per second for fleets of every size. Each pair of simulated workers opens a connection at its first
/// rendezvous, so large fleets respond later; a closed loop would then send fewer requests at once, at a higher cost.
const FLEET_RATE: f64 = 2_000.0;

/// One row of the result.
#[derive(Debug, Clone)]
pub struct Workload {
    pub name: String,
    /// The title in the tables.
    pub about: String,
    pub group: Group,
    pub plan: Plan,
    pub path: &'static str,
    pub body: Value,
    pub concurrency: usize,
    /// Requests per second; `None` sends the next one when one has ended.
    pub rate: Option<f64>,
    pub unit: Unit,
    pub span: Span,
}

/// A group of workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The main table.
    Core,
    /// The growth of cost.
    Scale,
    /// Several samples per prompt. Only mini-lb serves them: its cost for four is compared with its cost for one.
    Samples,
}

/// The workloads of [`Group::Samples`].
pub const SAMPLES: [(&str, usize); 2] = [("samples-1", 1), ("samples-4", 4)];

/// The unit of work that CPU time is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Request,
    Event,
}

/// The part of a load that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// The whole load, from the first request to the last response.
    Whole,
    /// Some seconds in the middle, when all streams are live. The target is started anew, so that its peak of memory
    /// belongs to this load.
    Middle {
        /// Time for the streams to begin.
        warm_up: Duration,
    },
}

/// Every workload that workers of this engine serve.
pub fn all(engine: Engine) -> Vec<Workload> {
    let mut all = Vec::new();
    for concurrency in [1, 64] {
        all.push(chat(concurrency, Group::Core));
    }
    all.push(Workload {
        name: "stream-256".to_owned(),
        about: "chat, 64 events 10 ms apart, concurrency 256".to_owned(),
        plan: plan(2, Duration::from_millis(10)),
        unit: Unit::Event,
        ..streamed(64, 256)
    });
    all.push(Workload {
        name: "burst".to_owned(),
        about: "chat, 1,000 events of about 200 B as fast as possible, concurrency 4".to_owned(),
        unit: Unit::Event,
        ..streamed(1000, 4)
    });
    all.push(body_of(1, "prompt-1m", Group::Core));
    for (name, start, stream) in [
        ("logprobs", 0, false),
        ("logprobs-stream", 0, true),
        ("no-logprobs", -1, false),
        ("no-logprobs-stream", -1, true),
    ] {
        all.push(logprobs(name, start, stream));
    }
    all.push(live_streams(2_000, "streams-2000", Group::Core));
    all.extend(SAMPLES.map(|(name, n)| samples(name, n)));
    for concurrency in [4, 16, 256] {
        all.push(chat(concurrency, Group::Scale));
    }
    for mebibytes in [1, 2, 4, 8, 16] {
        all.push(body_of(
            mebibytes,
            &format!("body-{mebibytes}"),
            Group::Scale,
        ));
    }
    for streams in [16, 256, 2_000, 6_000] {
        all.push(live_streams(
            streams,
            &format!("live-{streams}"),
            Group::Scale,
        ));
    }
    for workers in [2, 20, 200, 2_000] {
        all.push(Workload {
            name: format!("workers-{workers}"),
            about: format!(
                "chat as chat-64 at {FLEET_RATE} a second, {workers} workers in the fleet"
            ),
            plan: plan(workers / 2, Duration::ZERO),
            rate: Some(FLEET_RATE),
            ..chat(64, Group::Scale)
        });
    }
    all.retain(|workload| engine.route(workload.path).is_some());
    all
}

impl Workload {
    /// Whether a worker sends the head before it computes anything, as for streams of `/generate`.
    pub fn has_early_head(&self) -> bool {
        self.path == "/generate" && self.body["stream"] == true
    }

    /// The requests of a target, each as its legs need it.
    pub fn asks(&self, legs: Legs, fleet: &Fleet) -> RequestSource {
        let body = Bytes::from(self.body.to_string());
        let prefill: Vec<(SocketAddr, u16)> = fleet
            .prefill
            .iter()
            .map(|worker| (worker.address, worker.bootstrap_port.unwrap_or_default()))
            .collect();
        if legs == Legs::Plain {
            return Box::new(move |_| RequestSpec {
                body: body.clone(),
                ..RequestSpec::default()
            });
        }
        // Rooms are unique to this run: two targets must not share one.
        let first_room: u64 = rand::random::<u64>() >> 2;
        Box::new(move |number| {
            let index = usize::try_from(number).unwrap_or_default() % prefill.len();
            let (address, port) = prefill[index];
            let room = first_room + number;
            let mut with_room = Vec::with_capacity(body.len() + 128);
            let fields = format!(
                "{{\"bootstrap_host\":\"127.0.0.1\",\"bootstrap_port\":{port},\"bootstrap_room\":{room},"
            );
            with_room.extend_from_slice(fields.as_bytes());
            with_room.extend_from_slice(&body[1..]);
            let mut headers = HeaderMap::new();
            headers.insert("x-prefill", HeaderValue::from(index));
            RequestSpec {
                body: with_room.into(),
                headers,
                beside: (legs == Legs::RoomBeside).then_some(address),
            }
        })
    }
}

fn plan(of_each: usize, gap: Duration) -> Plan {
    Plan { of_each, gap }
}

fn chat(concurrency: usize, group: Group) -> Workload {
    Workload {
        name: format!("chat-{concurrency}"),
        about: format!("chat, 1 KB in, about 300 B out, concurrency {concurrency}"),
        group,
        plan: plan(2, Duration::ZERO),
        path: "/v1/chat/completions",
        body: chat_body(900, 2, false),
        concurrency,
        rate: None,
        unit: Unit::Request,
        span: Span::Whole,
    }
}

fn streamed(events: usize, concurrency: usize) -> Workload {
    Workload {
        body: chat_body(900, events, true),
        ..chat(concurrency, Group::Core)
    }
}

fn samples(name: &str, n: usize) -> Workload {
    let mut workload = Workload {
        name: name.to_owned(),
        group: Group::Samples,
        about: format!("chat of {n} samples per prompt, 32 events each, concurrency 4"),
        ..streamed(32, 4)
    };
    workload.body["n"] = n.into();
    workload
}

fn body_of(mebibytes: usize, name: &str, group: Group) -> Workload {
    Workload {
        name: name.to_owned(),
        about: format!("chat, {mebibytes} MiB in, not streamed, concurrency 4"),
        body: chat_body(mebibytes << 20, 2, false),
        ..chat(4, group)
    }
}

fn live_streams(streams: usize, name: &str, group: Group) -> Workload {
    let gap = Duration::from_micros(1_000_000 * streams as u64 / EVENTS_PER_SECOND);
    Workload {
        name: name.to_owned(),
        about: format!(
            "{streams} live streams, {EVENTS_PER_SECOND} events per second over all of them"
        ),
        group,
        plan: plan(2, gap),
        unit: Unit::Event,
        span: Span::Middle {
            warm_up: gap * 2 + Duration::from_millis(1000 + streams as u64),
        },
        // No stream reaches its end.
        ..streamed(1_000_000, streams)
    }
}

fn logprobs(name: &str, start: i64, stream: bool) -> Workload {
    let about = match start {
        0 => "2,000 logprobs of the prompt",
        _ => "no logprobs of the prompt (what decode alone answers)",
    };
    let ids: Vec<u32> = (FIRST_ID..FIRST_ID + 2_000).collect();
    Workload {
        name: name.to_owned(),
        about: format!(
            "/generate, {about}, {}, concurrency 4",
            if stream { "32 events" } else { "not streamed" }
        ),
        path: "/generate",
        body: json!({
            "input_ids": ids,
            "sampling_params": {"max_new_tokens": if stream { 32 } else { 4 }, "ignore_eos": true},
            "return_logprob": true,
            "logprob_start_len": start,
            "stream": stream,
        }),
        unit: if stream { Unit::Event } else { Unit::Request },
        ..chat(4, Group::Core)
    }
}

fn chat_body(bytes: usize, tokens: usize, stream: bool) -> Value {
    json!({
        "model": "sim",
        "messages": [{"role": "user", "content": "words of a prompt ".repeat(bytes / 18)}],
        "max_tokens": tokens,
        "ignore_eos": true,
        "stream": stream,
    })
}

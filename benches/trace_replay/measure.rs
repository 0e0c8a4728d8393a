//! One target under the trace.

use std::cell::RefCell;
use std::fs;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::Full;
use mini_lb::bench::{
    Arrivals, Endpoint, Load, RequestSpec, Slo, Summary, Tally, Target, Trace, TracePrompt, Words,
    fetch,
};

use super::Arguments;
use super::fleet::Fleet;
use super::model::Workers;
use crate::programs::balancer::{ReservedPort, Worker, serving};
use crate::programs::machine::Ticks;

/// What was measured of one target.
pub struct Reading {
    pub name: String,
    pub summary: Summary,
    /// Percent of the prompt tokens that were cached, of each hundred requests in the order of their ends.
    pub cached_by_hundred: Vec<f64>,
    /// Percent of the time in which the machine's cores were busy.
    pub machine_busy: f64,
}

/// The requests, and the tokens of their prompts in all and cached, at the end of the last hundred.
#[derive(Default)]
struct Hundreds {
    requests: u64,
    tokens: u64,
    cached: u64,
    percent: Vec<f64>,
}

impl Hundreds {
    fn note(&mut self, tally: &Tally) {
        if tally.requests() < self.requests + 100 {
            return;
        }
        let (tokens, cached) = (tally.prompts.tokens, tally.prompts.cached_tokens);
        let part = (cached - self.cached) as f64 / (tokens - self.tokens).max(1) as f64;
        self.percent.push(100.0 * part);
        (self.requests, self.tokens, self.cached) = (tally.requests(), tokens, cached);
    }
}

/// Starts workers and a balancer, and sends it the trace.
pub async fn measured(
    arguments: &Arguments,
    trace: &Arc<Trace>,
    workers: &Workers,
    name: &str,
    command: &str,
) -> Result<Reading, String> {
    let fleet = Fleet::start(&arguments.mini_lb, workers, arguments.chunk(), 2)?;
    let files = tempfile::tempdir().map_err(|error| error.to_string())?;
    let port = ReservedPort::new()?;
    let mut command = fleet
        .of_roles()
        .command(command, &arguments.mini_lb, port.number());
    let log = files.path().join("log");
    let _program = serving(name, &mut command, &port, &log).await?;
    settled(port.address).await?;
    let load = Load {
        concurrency: 4_096.min(trace.requests.len()),
        arrivals: Arrivals::AtTimes(trace.requests.iter().map(|request| request.at).collect()),
        requests: trace.requests.len() as u64,
        time: Duration::MAX,
        request_timeout: Duration::from_secs(600),
        seed: 1,
        slo: Slo::default(),
    };
    let target = target(arguments, trace, port.number());
    let hundreds = Rc::new(RefCell::new(Hundreds::default()));
    let noted = hundreds.clone();
    let load = mini_lb::bench::run(target, &load, move |tally| noted.borrow_mut().note(tally));
    let flush = async {
        if arguments.flush_at_half {
            tokio::time::sleep(trace.span() / 2).await;
            for worker in fleet.of_roles().prefill {
                empty_cache(worker).await?;
            }
        }
        Ok::<_, String>(())
    };
    let before = Ticks::now();
    let (tally, flushed) = tokio::join!(load, flush);
    let machine_busy = Ticks::now().busy_since(before);
    flushed?;
    if let Some(error) = &tally.first_error {
        let said = fs::read_to_string(&log).unwrap_or_default();
        eprintln!("{name}: {error}\n{said}");
    }
    Ok(Reading {
        name: name.to_owned(),
        summary: Summary::of(&tally),
        cached_by_hundred: hundreds.take().percent,
        machine_busy,
    })
}

/// A balancer may answer /health before it knows all workers: it has to answer a request, and gets some time after that.
async fn settled(address: SocketAddr) -> Result<(), String> {
    const PATIENCE: Duration = Duration::from_secs(60);
    const AFTER: Duration = Duration::from_secs(3);
    let body = r#"{"text":"ready?","sampling_params":{"max_new_tokens":1}}"#;
    let answered = async {
        loop {
            let mut request = Request::new(Full::from(Bytes::from_static(body.as_bytes())));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = http::Uri::from_static("/generate");
            let headers = request.headers_mut();
            headers.insert(http::header::HOST, HeaderValue::from_static("target"));
            let json = HeaderValue::from_static("application/json");
            headers.insert(http::header::CONTENT_TYPE, json);
            if matches!(fetch(address, request).await, Ok(response) if response.status() == 200) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let answered = tokio::time::timeout(PATIENCE, answered).await;
    answered.map_err(|_| "it serves, but answers no request".to_owned())?;
    tokio::time::sleep(AFTER).await;
    Ok(())
}

/// As an eviction would: the worker is busy, and would refuse `/flush_cache`.
async fn empty_cache(worker: &Worker) -> Result<(), String> {
    let mut request = Request::new(Full::<Bytes>::default());
    *request.method_mut() = Method::DELETE;
    *request.uri_mut() = http::Uri::from_static("/sim/cache");
    let headers = request.headers_mut();
    headers.insert(http::header::HOST, HeaderValue::from_static("worker"));
    match fetch(worker.address, request).await {
        Ok(response) if response.status() == 200 => Ok(()),
        other => Err(format!("a worker keeps its cache: {other:?}")),
    }
}

fn target(arguments: &Arguments, trace: &Arc<Trace>, port: u16) -> Target {
    let prompt = TracePrompt {
        endpoint: Endpoint::Generate,
        words: match arguments.ids {
            true => Words::Ids,
            false => Words::Text,
        },
        stream: true,
        ignore_eos: true,
        model: String::new(),
        extra: serde_json::Map::new(),
    };
    let trace = trace.clone();
    Target {
        addresses: vec![SocketAddr::from(([127, 0, 0, 1], port))],
        host: HeaderValue::from_static("target"),
        path: http::Uri::from_static("/generate"),
        headers: HeaderMap::new(),
        requests: Box::new(move |number| {
            let request = usize::try_from(number)
                .ok()
                .and_then(|number| trace.requests.get(number));
            RequestSpec {
                body: request.map_or_else(Default::default, |request| prompt.body(&trace, request)),
                ..RequestSpec::default()
            }
        }),
    }
}

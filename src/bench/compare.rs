//! Measures each level of concurrency: the server alone, or in turn with a worker behind it.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderMap};
use http::{Method, Request};
use http_body_util::Full;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::BenchArgs;
use super::client::{Failure, fetch};
use super::error::BenchError;
use super::load::{Load, RequestSource, RequestSpec, Target, run};
use super::prompt::{Endpoint, Prompt};
use super::tally::Tally;
use super::trace::{Trace, TracePrompt, Words};
use super::url::Url;

/// Turns of each server within a level: other work on the machine then affects both alike.
const TURNS: u32 = 5;

/// The results of one level of concurrency.
#[derive(Debug)]
pub(crate) struct Level {
    pub(crate) load: Load,
    pub(crate) server: Tally,
    pub(crate) direct: Option<Tally>,
}

/// One server, and the requests for it.
struct Server {
    url: Url,
    addresses: Vec<SocketAddr>,
    headers: HeaderMap,
    prompt: Prompt,
    trace: Option<(Arc<Trace>, TracePrompt)>,
    /// Requests sent so far: the number of the next prompt, so that no prompt is sent twice.
    sent: u64,
}

/// Runs every level.
///
/// # Errors
/// When a server does not serve the first request, or all requests fail.
pub(crate) async fn measure(args: &BenchArgs) -> Result<Vec<Level>, BenchError> {
    let trace = args.trace.load(args.requests)?;
    let mut server = Server::new(args.server()?, args).await?;
    let mut direct = match &args.direct {
        Some(url) => Some(Server::new(url.clone(), args).await?),
        None => None,
    };
    let mut levels = Vec::new();
    let loads = args.loads(trace.as_ref());
    if let Some(trace) = trace {
        server.replay(trace, args.trace.trace_prompts);
    }
    for load in loads {
        for server in [Some(&mut server), direct.as_mut()].into_iter().flatten() {
            server.prepare(args, &load).await?;
        }
        let level = match &mut direct {
            None => {
                let tally = server
                    .run(args, &load, &load.concurrency.to_string())
                    .await?;
                Level {
                    load,
                    server: tally,
                    direct: None,
                }
            }
            Some(direct) => in_turn(args, load, &mut server, direct).await?,
        };
        levels.push(level);
    }
    match levels.iter().all(|level| level.server.answered == 0) {
        true => Err(BenchError::NothingAnswered),
        false => Ok(levels),
    }
}

async fn in_turn(
    args: &BenchArgs,
    load: Load,
    server: &mut Server,
    direct: &mut Server,
) -> Result<Level, BenchError> {
    let (mut through, mut beside) = (Tally::default(), Tally::default());
    for turn in 0..TURNS {
        let part = Load {
            requests: load.requests.div_ceil(TURNS.into()),
            time: load.time / TURNS,
            seed: load.seed + u64::from(turn),
            ..load.clone()
        };
        let label = |name| format!("{} {name} {}/{TURNS}", load.concurrency, turn + 1);
        through.add(&server.run(args, &part, &label("server")).await?);
        beside.add(&direct.run(args, &part, &label("direct")).await?);
    }
    Ok(Level {
        load,
        server: through,
        direct: Some(beside),
    })
}

impl Server {
    async fn new(url: Url, args: &BenchArgs) -> Result<Server, BenchError> {
        let addresses = url.addresses().await?;
        let headers = args.headers()?;
        let mut server = Server {
            url,
            addresses,
            headers,
            prompt: Prompt {
                endpoint: args.endpoint(),
                input: args.input(),
                output_tokens: args.output_tokens,
                range_ratio: args.range_ratio,
                stream: args.streams(),
                ignore_eos: !args.disable_ignore_eos,
                model: String::new(),
                extra: args.extra_request_body.clone().unwrap_or_default(),
                seed: args.seed,
            },
            trace: None,
            sent: 0,
        };
        server.prompt.model = match &args.model {
            Some(model) => model.clone(),
            None if server.prompt.endpoint == Endpoint::Generate => String::new(),
            None => server.first_model().await?,
        };
        Ok(server)
    }

    /// Sends the requests of a trace from now on, but for warming up.
    fn replay(&mut self, trace: Trace, words: Words) {
        let prompt = TracePrompt {
            endpoint: self.prompt.endpoint,
            words,
            stream: self.prompt.stream,
            ignore_eos: self.prompt.ignore_eos,
            model: self.prompt.model.clone(),
            extra: self.prompt.extra.clone(),
        };
        self.trace = Some((Arc::new(trace), prompt));
    }

    /// The first model of `/v1/models`; `default` on a server without that endpoint.
    async fn first_model(&self) -> Result<String, BenchError> {
        let response = self.ask(Method::GET, "/v1/models").await?;
        let unusable = |failure| BenchError::Unusable {
            url: format!("{}/v1/models", self.url),
            failure,
            message: Some(String::from_utf8_lossy(response.body()).into_owned()),
        };
        match response.status().as_u16() {
            200 => {}
            status @ (401 | 403) => return Err(unusable(Failure::Status(status))),
            // Not every server has this endpoint, and most ignore the name.
            _ => return Ok("default".to_owned()),
        }
        let models: serde_json::Value = serde_json::from_slice(response.body()).unwrap_or_default();
        let first = models["data"][0]["id"].as_str();
        Ok(first.unwrap_or("default").to_owned())
    }

    async fn ask(&self, method: Method, path: &str) -> Result<http::Response<Bytes>, BenchError> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = method;
        *request.uri_mut() = self.url.path(path)?;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(HOST, self.url.host()?);
        fetch(self.addresses[0], request)
            .await
            .map_err(|failure| BenchError::Unusable {
                url: self.url.to_string(),
                failure,
                message: None,
            })
    }

    /// Flushes the caches if `--flush-cache` is given, and warms up. A server that cannot be used fails here.
    async fn prepare(&mut self, args: &BenchArgs, load: &Load) -> Result<(), BenchError> {
        if args.flush_cache {
            let response = self.ask(Method::POST, "/flush_cache?timeout=60").await?;
            if !response.status().is_success() {
                return Err(BenchError::Unusable {
                    url: format!("{}/flush_cache", self.url),
                    failure: Failure::Status(response.status().as_u16()),
                    message: Some(String::from_utf8_lossy(response.body()).into_owned()),
                });
            }
        }
        let warm_up = Load {
            arrivals: super::Arrivals::WhenFree,
            requests: args.warmup_requests,
            time: load.request_timeout,
            ..load.clone()
        };
        let tally = run(self.target(self.random())?, &warm_up, |_| {}).await;
        self.sent += tally.requests();
        match (tally.answered, tally.failed.into_iter().next()) {
            (0, Some((failure, _))) => Err(BenchError::Unusable {
                url: format!("{}{}", self.url, self.prompt.endpoint.path()),
                failure,
                message: tally.first_error,
            }),
            _ => Ok(()),
        }
    }

    async fn run(
        &mut self,
        args: &BenchArgs,
        load: &Load,
        label: &str,
    ) -> Result<Tally, BenchError> {
        let bar = progress_bar(load, label, args.no_progress);
        let shown = bar.clone();
        let by_requests = load.requests < u64::MAX;
        let requests = self.recorded().unwrap_or_else(|| self.random());
        let tally = run(self.target(requests)?, load, move |tally| {
            let done = match by_requests {
                true => tally.requests(),
                false => shown.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
            };
            shown.set_position(done);
            if tally.failures() > 0 {
                shown.set_message(format!("{} failed", tally.failures()));
            }
        })
        .await;
        bar.finish_and_clear();
        self.sent += tally.requests();
        Ok(tally)
    }

    /// Prompts that no request has had.
    fn random(&self) -> RequestSource {
        let (prompt, first) = (self.prompt.clone(), self.sent);
        Box::new(move |number| RequestSpec {
            body: prompt.body(first + number),
            ..RequestSpec::default()
        })
    }

    /// The requests of the trace, if there is one.
    fn recorded(&self) -> Option<RequestSource> {
        let (trace, prompt) = self.trace.clone()?;
        Some(Box::new(move |number| {
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            let request = trace.requests.get(number);
            RequestSpec {
                body: request.map_or_else(Bytes::new, |request| prompt.body(&trace, request)),
                ..RequestSpec::default()
            }
        }))
    }

    fn target(&self, requests: RequestSource) -> Result<Target, BenchError> {
        Ok(Target {
            addresses: self.addresses.clone(),
            host: self.url.host()?,
            path: self.url.path(self.prompt.endpoint.path())?,
            headers: self.headers.clone(),
            requests,
        })
    }
}

/// Visible only on a terminal.
fn progress_bar(load: &Load, label: &str, hidden: bool) -> ProgressBar {
    if hidden || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (length, unit) = match load.requests {
        u64::MAX => (
            load.time.as_millis().try_into().unwrap_or(u64::MAX),
            "{eta} left",
        ),
        requests => (requests, "{human_pos}/{human_len}, {eta} left"),
    };
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(10));
    let template = format!("concurrency {{prefix}} [{{wide_bar}}] {unit} {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(label.to_owned());
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

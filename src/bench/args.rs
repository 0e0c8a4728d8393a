//! The arguments of `mini-lb bench`. Those that sglang.bench_serving has too are also accepted by its names.
//!
//! Source of those names: SGLang 0.5.23, `python/sglang/bench_serving.py`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::arrivals::{Arrivals, Spacing};
use super::error::BenchError;
use super::load::Load;
use super::prompt::{Endpoint, InputLength};
use super::trace::{Trace, TraceArgs};
use super::url::{Url, UrlError};

/// Default concurrency without `--rate`.
const USERS: usize = 16;
/// Default concurrency with `--rate`. Below 1,024, the usual limit of descriptors of a process.
const USERS_AT_RATE: usize = 512;
/// Default length of a level, in seconds.
const SECONDS: f64 = 10.0;
/// Asks mini-lb for the names of the workers of each response.
const TIMING: HeaderName = HeaderName::from_static("x-mini-lb-timing");
/// Upper bound of a level's and of a request's time.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Arguments of `mini-lb bench`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The options of sglang.bench_serving for random prompts are accepted by their names: --base-url, --host, \
    --port, --backend, --num-prompts, --max-concurrency, --request-rate, --random-input-len, --random-output-len, \
    --random-range-ratio, --disable-stream, --disable-ignore-eos, --output-file, --disable-tqdm and others."
)]
pub struct BenchArgs {
    /// URL of the server, such as http://127.0.0.1:8080.
    #[arg(
        long,
        visible_alias = "base-url",
        value_name = "URL",
        required_unless_present = "port"
    )]
    pub url: Option<Url>,
    /// A worker behind the server. Both are measured in turn, and the difference is shown.
    #[arg(long, value_name = "URL")]
    pub direct: Option<Url>,
    /// Endpoint that requests are sent to [default: chat; with --trace generate].
    #[arg(long, value_enum)]
    pub endpoint: Option<Endpoint>,
    /// Request streamed responses.
    #[arg(long)]
    pub stream: bool,
    /// Concurrent requests; give several levels separated by commas [default: 16; with --rate 512].
    #[arg(long, visible_alias = "max-concurrency", value_name = "N[,N]", value_delimiter = ',', value_parser = users)]
    pub concurrency: Vec<usize>,
    /// Requests per second, sent on schedule even while responses are outstanding, up to --concurrency of them.
    /// Latencies count from the scheduled time. Without it (or with `inf`) each user sends when its last response
    /// is complete.
    #[arg(long, visible_alias = "request-rate", value_name = "R", value_parser = rate, default_value = "inf")]
    pub rate: f64,
    /// How requests of --rate are spread over time.
    #[arg(long, value_enum, default_value_t = Spacing::Poisson)]
    pub spacing: Spacing,
    /// Number of requests of each level.
    #[arg(long, visible_alias = "num-prompts", value_name = "N")]
    pub requests: Option<u64>,
    /// Duration of each level in seconds; requests under way at its end are completed [default: 10].
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Length of a prompt in bytes.
    #[arg(long, value_name = "N", conflicts_with = "input_tokens")]
    pub input_bytes: Option<usize>,
    /// Length of a prompt in tokens; on /v1/chat/completions in words of four letters [default: 256].
    #[arg(long, visible_alias = "random-input-len", value_name = "N")]
    pub input_tokens: Option<usize>,
    /// Length of a response in tokens.
    #[arg(
        long,
        visible_alias = "random-output-len",
        value_name = "N",
        default_value_t = 64
    )]
    pub output_tokens: usize,
    /// Lengths are drawn between this fraction of the given ones and the given ones (0 in sglang.bench_serving).
    #[arg(long, visible_alias = "random-range-ratio", value_name = "PART", value_parser = part, default_value_t = 1.0)]
    pub range_ratio: f64,
    /// Let the model end a response before --output-tokens.
    #[arg(long)]
    pub disable_ignore_eos: bool,
    /// Name of the model; the first of /v1/models unless given.
    #[arg(long)]
    pub model: Option<String>,
    /// API key of the server [env: OPENAI_API_KEY].
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Header to add to every request; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    pub header: Vec<(HeaderName, HeaderValue)>,
    /// Fields to add to every body, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub extra_request_body: Option<Map<String, Value>>,
    /// Seed of the prompts, their lengths and the arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Requests before each level that are not measured.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warmup_requests: u64,
    /// Timeout of one request, in seconds.
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "600")]
    pub timeout_secs: f64,
    /// Flush the workers' caches before each level.
    #[arg(long)]
    pub flush_cache: bool,
    /// A trace to replay, and an SLO.
    #[command(flatten)]
    pub trace: TraceArgs,
    /// Write the numbers as JSON to this file; `-` for stdout, in place of the table.
    #[arg(long, visible_alias = "output-file", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write an HTML page with the table and charts to this file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Hide the progress bar.
    #[arg(long, visible_alias = "disable-tqdm")]
    pub no_progress: bool,
    /// Options that only sglang.bench_serving has.
    #[command(flatten)]
    pub foreign: Foreign,
}

/// Options of sglang.bench_serving that have no counterpart here, accepted so that its command lines work.
#[derive(Debug, Clone, Args)]
pub struct Foreign {
    /// The server's host, without --url.
    #[arg(long, hide = true, default_value = "127.0.0.1")]
    pub host: String,
    /// The server's port, without --url.
    #[arg(long, hide = true)]
    pub port: Option<u16>,
    /// The endpoint; streamed unless --disable-stream is given.
    #[arg(long, hide = true, value_enum)]
    pub backend: Option<Backend>,
    /// Request no streams.
    #[arg(long, hide = true)]
    pub disable_stream: bool,
    /// Ignored: prompts are always random.
    #[arg(long, hide = true, value_parser = ["random", "random-ids"])]
    pub dataset_name: Option<String>,
    /// Ignored: no tokenizer is needed.
    #[arg(long, hide = true)]
    pub tokenizer: Option<String>,
}

/// Values of `--backend` in sglang.bench_serving, each of which is an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// `/generate`
    Sglang,
    /// `/generate`
    SglangNative,
    /// `/v1/completions`
    SglangOai,
    /// `/v1/chat/completions`
    SglangOaiChat,
    /// `/v1/completions`
    Vllm,
    /// `/v1/chat/completions`
    VllmChat,
}

impl BenchArgs {
    /// The server to measure.
    pub(crate) fn server(&self) -> Result<Url, UrlError> {
        match (&self.url, self.foreign.port) {
            (Some(url), _) => Ok(url.clone()),
            (None, port) => format!("{}:{}", self.foreign.host, port.unwrap_or(30_000)).parse(),
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        match self.foreign.backend {
            None => self.endpoint.unwrap_or(match self.trace.trace {
                Some(_) => Endpoint::Generate,
                None => Endpoint::Chat,
            }),
            Some(Backend::Sglang | Backend::SglangNative) => Endpoint::Generate,
            Some(Backend::SglangOai | Backend::Vllm) => Endpoint::Completions,
            Some(Backend::SglangOaiChat | Backend::VllmChat) => Endpoint::Chat,
        }
    }

    pub(crate) fn streams(&self) -> bool {
        let is_usual = self.foreign.backend.is_some() || self.trace.trace.is_some();
        self.stream || (is_usual && !self.foreign.disable_stream)
    }

    pub(crate) fn input(&self) -> InputLength {
        match self.input_bytes {
            Some(bytes) => InputLength::Bytes(bytes),
            None => InputLength::Tokens(self.input_tokens.unwrap_or(256)),
        }
    }

    /// One load for each level of concurrency.
    pub(crate) fn loads(&self, trace: Option<&Trace>) -> Vec<Load> {
        let arrivals = match (trace, self.rate.is_finite()) {
            (Some(trace), _) => {
                let times = trace.requests.iter().map(|request| request.at);
                Arrivals::AtTimes(times.collect())
            }
            (None, true) => Arrivals::AtRate {
                per_second: self.rate,
                spacing: self.spacing,
            },
            (None, false) => Arrivals::WhenFree,
        };
        let users = match (self.concurrency.is_empty(), &arrivals) {
            (false, _) => self.concurrency.clone(),
            (true, Arrivals::WhenFree) => vec![USERS],
            (true, _) => vec![USERS_AT_RATE],
        };
        let requests = match trace {
            Some(trace) => Some(trace.requests.len() as u64),
            None => self.requests,
        };
        let seconds = match (self.seconds, requests) {
            (Some(seconds), _) => Duration::from_secs_f64(seconds),
            (None, Some(_)) => LONGEST,
            (None, None) => Duration::from_secs_f64(SECONDS),
        };
        let load = |concurrency| Load {
            concurrency,
            arrivals: arrivals.clone(),
            requests: requests.unwrap_or(u64::MAX),
            time: seconds.min(LONGEST),
            request_timeout: Duration::from_secs_f64(self.timeout_secs).min(LONGEST),
            seed: self.seed,
            slo: self.trace.slo(),
        };
        users.into_iter().map(load).collect()
    }

    pub(crate) fn headers(&self) -> Result<HeaderMap, BenchError> {
        let mut headers = HeaderMap::new();
        let key = self
            .api_key
            .clone()
            .or_else(|| std::env::var("OPENAI_API_KEY").ok());
        if let Some(key) = key {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| BenchError::Key)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if self.trace.trace.is_some() {
            headers.insert(TIMING, HeaderValue::from_static("1"));
        }
        headers.extend(self.header.iter().cloned());
        Ok(headers)
    }
}

fn users(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(users @ 1..=100_000) => Ok(users),
        _ => Err("expected a number from 1 to 100000".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 => Ok(rate),
        _ => Err("expected a number above 0, or inf".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= LONGEST.as_secs_f64() => Ok(seconds),
        _ => Err("expected seconds above 0 and up to 86400".to_owned()),
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(part) if (0.0..=1.0).contains(&part) => Ok(part),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let name = name.parse().map_err(|_| "not a valid header name")?;
    let value = value.parse().map_err(|_| "not a valid header value")?;
    Ok((name, value))
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("expected a JSON object: {error}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn line(options: &str) -> BenchArgs {
        let words = std::iter::once("bench").chain(options.split_whitespace());
        Line::try_parse_from(words)
            .unwrap_or_else(|error| panic!("{error}"))
            .bench
    }

    #[test]
    fn a_command_line_of_bench_serving_means_the_same_here() {
        let args = line(
            "--backend sglang-oai-chat --base-url http://h:1 --dataset-name random --num-prompts 50 --max-concurrency 8 \
             --request-rate 4 --random-input-len 100 --random-output-len 10 --random-range-ratio 0.5 --model m --tokenizer t \
             --output-file out.json --disable-tqdm --seed 7 --warmup-requests 2 --flush-cache --disable-ignore-eos",
        );
        assert_eq!(args.server().unwrap().to_string(), "http://h:1");
        assert_eq!((args.endpoint(), args.streams()), (Endpoint::Chat, true));
        assert_eq!(
            (args.input(), args.output_tokens),
            (InputLength::Tokens(100), 10)
        );
        let load = args.loads(None).remove(0);
        assert_eq!((load.concurrency, load.requests, load.seed), (8, 50, 7));
        assert_eq!(
            load.arrivals,
            Arrivals::AtRate {
                per_second: 4.0,
                spacing: Spacing::Poisson
            }
        );
        assert!(args.flush_cache && args.disable_ignore_eos && args.no_progress);

        let args = line("--backend sglang --port 30001 --disable-stream");
        assert_eq!(args.server().unwrap().to_string(), "http://127.0.0.1:30001");
        assert_eq!(
            (args.endpoint(), args.streams()),
            (Endpoint::Generate, false)
        );
        for (backend, endpoint) in [
            ("sglang-oai", Endpoint::Completions),
            ("vllm", Endpoint::Completions),
            ("vllm-chat", Endpoint::Chat),
        ] {
            let args = line(&format!("--backend {backend} --port 1"));
            assert_eq!(args.endpoint(), endpoint);
        }
    }

    #[test]
    fn without_a_number_or_a_time_a_level_is_bounded() {
        let loads = line("--url http://h:1 --concurrency 1,64").loads(None);
        let users: Vec<_> = loads.iter().map(|load| load.concurrency).collect();
        assert_eq!(users, [1, 64]);
        assert!(
            loads
                .iter()
                .all(|load| load.time == Duration::from_secs(10))
        );
        assert_eq!(
            line("--url http://h:1 --rate 5").loads(None)[0].concurrency,
            USERS_AT_RATE
        );
    }

    #[test]
    fn a_trace_gives_the_times_and_the_number_of_requests_and_is_streamed_to_generate() {
        let lines = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,5,1\n2023-11-16 18:17:07,5,1\n";
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.csv");
        std::fs::write(&path, lines).unwrap();
        let args = line(&format!(
            "--url http://h:1 --trace {} --speedup 4 --slo-ttft-ms 250",
            path.display()
        ));
        let trace = args.trace.load(args.requests).unwrap();
        let load = args.loads(trace.as_ref()).remove(0);
        let times = [0, 1].map(Duration::from_secs);
        assert_eq!(load.arrivals, Arrivals::AtTimes(times.into()));
        assert_eq!((load.requests, load.concurrency), (2, USERS_AT_RATE));
        assert_eq!(load.slo.ttft, Some(Duration::from_millis(250)));
        assert_eq!(
            (args.endpoint(), args.streams()),
            (Endpoint::Generate, true)
        );
        assert_eq!(args.headers().unwrap()[TIMING], "1");
    }

    #[test]
    fn invalid_options_are_refused() {
        for options in [
            "",
            "--url https://h",
            "--url http://h --concurrency 0",
            "--url http://h --rate 0",
            "--url http://h --rate NaN",
            "--url http://h --seconds inf",
            "--url http://h --range-ratio 2",
            "--url http://h --header x",
            "--url http://h --extra-request-body [1]",
            "--url http://h --dataset-name sharegpt",
            "--url http://h --speedup 2",
            "--url http://h --trace t --speedup 0",
            "--url http://h --trace t --rate 2",
            "--url http://h --trace t --direct http://i",
            "--url http://h --slo-ttft-ms -1",
        ] {
            let words = std::iter::once("bench").chain(options.split_whitespace());
            assert!(Line::try_parse_from(words).is_err(), "{options}");
        }
    }
}

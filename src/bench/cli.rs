//! `mini-lb bench`: its options. Those that sglang.bench_serving has too bear its names as well.
//!
//! What is done with them is `compare`'s and `report`'s business.
//!
//! Source of the other names: SGLang 0.5.23, `python/sglang/bench_serving.py`.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::arrivals::{Arrivals, Spacing};
use super::client::Failure;
use super::load::Load;
use super::prompt::{Endpoint, InputLength};
use super::url::{Url, UrlError};
use super::{compare, report};

/// Users of a closed loop, where the command line does not say how many.
const USERS: usize = 16;
/// The same of an open loop. Few enough for the descriptors that a process usually has.
const USERS_AT_RATE: usize = 512;
/// How long a level lasts, where neither a time nor a number is given.
const SECONDS: f64 = 10.0;
/// No load lasts longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Arguments of `mini-lb bench`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "The options of sglang.bench_serving for random prompts are accepted by their names: --base-url, --host, \
    --port, --backend, --num-prompts, --max-concurrency, --request-rate, --random-input-len, --random-output-len, \
    --random-range-ratio, --disable-stream, --disable-ignore-eos, --output-file, --disable-tqdm and others."
)]
pub struct BenchArgs {
    /// The server: http://HOST:PORT.
    #[arg(
        long,
        visible_alias = "base-url",
        value_name = "URL",
        required_unless_present = "port"
    )]
    pub url: Option<Url>,
    /// A worker behind it. It is asked in turn with the server, and what the server adds is shown.
    #[arg(long, value_name = "URL")]
    pub direct: Option<Url>,
    /// What is asked.
    #[arg(long, value_enum, default_value_t = Endpoint::Chat)]
    pub endpoint: Endpoint,
    /// Ask for streams.
    #[arg(long)]
    pub stream: bool,
    /// Requests at the same time; several levels are separated by commas [default: 16; with --rate 512].
    #[arg(long, visible_alias = "max-concurrency", value_name = "N[,N]", value_delimiter = ',', value_parser = users)]
    pub concurrency: Vec<usize>,
    /// Requests per second, whether answers come or not, up to --concurrency at the same time. Latencies are
    /// measured from when a request was due. Without it (or with `inf`) each user waits for its answer.
    #[arg(long, visible_alias = "request-rate", value_name = "R", value_parser = rate, default_value = "inf")]
    pub rate: f64,
    /// How the requests of --rate are spread.
    #[arg(long, value_enum, default_value_t = Spacing::Poisson)]
    pub spacing: Spacing,
    /// Requests of each level.
    #[arg(long, visible_alias = "num-prompts", value_name = "N")]
    pub requests: Option<u64>,
    /// Time of each level in seconds; requests that have begun by then are finished [default: 10].
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Bytes of a prompt.
    #[arg(long, value_name = "N", conflicts_with = "input_tokens")]
    pub input_bytes: Option<usize>,
    /// Tokens of a prompt; on /v1/chat/completions as many words of four letters [default: 256].
    #[arg(long, visible_alias = "random-input-len", value_name = "N")]
    pub input_tokens: Option<usize>,
    /// Tokens of an answer.
    #[arg(
        long,
        visible_alias = "random-output-len",
        value_name = "N",
        default_value_t = 64
    )]
    pub output_tokens: usize,
    /// Lengths lie between this part of the given ones and all of them. (sglang.bench_serving has 0 here.)
    #[arg(long, visible_alias = "random-range-ratio", value_name = "PART", value_parser = part, default_value_t = 1.0)]
    pub range_ratio: f64,
    /// Let the model end its answer earlier.
    #[arg(long)]
    pub disable_ignore_eos: bool,
    /// Model; the first of /v1/models unless given.
    #[arg(long)]
    pub model: Option<String>,
    /// Key of the server [env: OPENAI_API_KEY].
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// A header of every request; repeated for more.
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    pub header: Vec<(HeaderName, HeaderValue)>,
    /// More fields of the body, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = object)]
    pub extra_request_body: Option<Map<String, Value>>,
    /// Seed of prompts, lengths and arrivals.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Requests before each level, which do not count.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub warmup_requests: u64,
    /// Longest time of one request.
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "600")]
    pub timeout_secs: f64,
    /// Empty the workers' caches before each level.
    #[arg(long)]
    pub flush_cache: bool,
    /// Write the numbers to this file; `-` is stdout, in place of the table.
    #[arg(long, visible_alias = "output-file", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page with table and charts to this file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Show no progress.
    #[arg(long, visible_alias = "disable-tqdm")]
    pub no_progress: bool,
    /// What only sglang.bench_serving says.
    #[command(flatten)]
    pub foreign: Foreign,
}

/// Options of sglang.bench_serving that have no twin here.
#[derive(Debug, Clone, Args)]
pub struct Foreign {
    /// The server's host, where --url is not given.
    #[arg(long, hide = true, default_value = "127.0.0.1")]
    pub host: String,
    /// The server's port, where --url is not given.
    #[arg(long, hide = true)]
    pub port: Option<u16>,
    /// Endpoint, streamed unless --disable-stream stands there.
    #[arg(long, hide = true, value_enum)]
    pub backend: Option<Backend>,
    /// Ask for no streams.
    #[arg(long, hide = true)]
    pub disable_stream: bool,
    /// Prompts are random in any case.
    #[arg(long, hide = true, value_parser = ["random", "random-ids"])]
    pub dataset_name: Option<String>,
    /// No tokenizer is needed.
    #[arg(long, hide = true)]
    pub tokenizer: Option<String>,
}

/// The names that sglang.bench_serving has for endpoints.
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
}

/// Why there is nothing to show.
#[derive(Debug)]
pub enum BenchError {
    /// A URL cannot be asked.
    Url(UrlError),
    /// The first request failed.
    Unusable {
        /// Which server.
        url: String,
        /// How.
        failure: Failure,
        /// What it said.
        said: Option<String>,
    },
    /// Not one request was answered.
    NothingAnswered,
    /// A header cannot be made of the key.
    Key,
    /// A file, stdout or the runtime.
    Io(String, io::Error),
}

impl fmt::Display for BenchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (url, failure, said) = match self {
            BenchError::Url(error) => return error.fmt(f),
            BenchError::NothingAnswered => return f.write_str("not one request was answered"),
            BenchError::Key => return f.write_str("--api-key cannot stand in a header"),
            BenchError::Io(what, error) => return write!(f, "{what}: {error}"),
            BenchError::Unusable { url, failure, said } => (url, failure, said),
        };
        match failure {
            Failure::Refused => write!(
                f,
                "{url} refuses connections: nothing listens there. Start the server, or give its address with --url; \
                 `mini-lb demo` starts one to try"
            )?,
            Failure::Connect(reason) => write!(f, "no connection to {url}: {reason}")?,
            Failure::Status(401 | 403) => {
                write!(f, "{url} wants a key: give it with --api-key ({failure})")?;
            }
            Failure::Status(404) => write!(
                f,
                "{url} has no such endpoint; choose another with --endpoint ({failure})"
            )?,
            Failure::Timeout => write!(
                f,
                "{url} gave no answer in time; a longer time can be given with --timeout-secs"
            )?,
            other => write!(f, "the first request to {url} failed: {other}")?,
        }
        match said {
            Some(said) => write!(f, "\nIt said: {said}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for BenchError {}

impl From<UrlError> for BenchError {
    fn from(error: UrlError) -> BenchError {
        BenchError::Url(error)
    }
}

/// Measures, and tells.
///
/// # Errors
/// When the server cannot be asked at all, or a file cannot be written.
pub fn run_bench(args: BenchArgs) -> Result<(), BenchError> {
    // One thread: the rest of the machine is for the server.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| BenchError::Io("no runtime".to_owned(), error))?;
    let levels = runtime.block_on(compare::measure(&args))?;
    report::tell(&args, &levels)
}

impl BenchArgs {
    /// The server that is measured.
    pub(crate) fn server(&self) -> Result<Url, UrlError> {
        match (&self.url, self.foreign.port) {
            (Some(url), _) => Ok(url.clone()),
            (None, port) => format!("{}:{}", self.foreign.host, port.unwrap_or(30_000)).parse(),
        }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        match self.foreign.backend {
            None => self.endpoint,
            Some(Backend::Sglang | Backend::SglangNative) => Endpoint::Generate,
            Some(Backend::SglangOai) => Endpoint::Completions,
            Some(Backend::SglangOaiChat) => Endpoint::Chat,
        }
    }

    pub(crate) fn streams(&self) -> bool {
        self.stream || (self.foreign.backend.is_some() && !self.foreign.disable_stream)
    }

    pub(crate) fn input(&self) -> InputLength {
        match self.input_bytes {
            Some(bytes) => InputLength::Bytes(bytes),
            None => InputLength::Tokens(self.input_tokens.unwrap_or(256)),
        }
    }

    /// The levels, each as a load.
    pub(crate) fn loads(&self) -> Vec<Load> {
        let arrivals = match self.rate.is_finite() {
            true => Arrivals::AtRate {
                per_second: self.rate,
                spacing: self.spacing,
            },
            false => Arrivals::WhenFree,
        };
        let users = match (self.concurrency.is_empty(), arrivals) {
            (false, _) => self.concurrency.clone(),
            (true, Arrivals::WhenFree) => vec![USERS],
            (true, Arrivals::AtRate { .. }) => vec![USERS_AT_RATE],
        };
        let seconds = match (self.seconds, self.requests) {
            (Some(seconds), _) => Duration::from_secs_f64(seconds),
            (None, Some(_)) => LONGEST,
            (None, None) => Duration::from_secs_f64(SECONDS),
        };
        let load = |concurrency| Load {
            concurrency,
            arrivals,
            requests: self.requests.unwrap_or(u64::MAX),
            time: seconds.min(LONGEST),
            request_timeout: Duration::from_secs_f64(self.timeout_secs).min(LONGEST),
            seed: self.seed,
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
        headers.extend(self.header.iter().cloned());
        Ok(headers)
    }
}

fn users(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(users @ 1..=100_000) => Ok(users),
        _ => Err("a number from 1 to 100000 is needed".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 => Ok(rate),
        _ => Err("a number above 0 is needed, or inf".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= LONGEST.as_secs_f64() => Ok(seconds),
        _ => Err("a number of seconds above 0 is needed, 86400 at most".to_owned()),
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(part) if (0.0..=1.0).contains(&part) => Ok(part),
        _ => Err("a number from 0 to 1 is needed".to_owned()),
    }
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is needed")?;
    let name = name.parse().map_err(|_| "this is no header's name")?;
    let value = value.parse().map_err(|_| "this is no header's value")?;
    Ok((name, value))
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("a JSON object is needed: {error}"))
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
        let load = args.loads().remove(0);
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
    }

    #[test]
    fn without_a_number_or_a_time_a_level_is_bounded() {
        let loads = line("--url http://h:1 --concurrency 1,64").loads();
        let users: Vec<_> = loads.iter().map(|load| load.concurrency).collect();
        assert_eq!(users, [1, 64]);
        assert!(
            loads
                .iter()
                .all(|load| load.time == Duration::from_secs(10))
        );
        assert_eq!(
            line("--url http://h:1 --rate 5").loads()[0].concurrency,
            USERS_AT_RATE
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
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
        ] {
            let words = std::iter::once("bench").chain(options.split_whitespace());
            assert!(Line::try_parse_from(words).is_err(), "{options}");
        }
    }
}

//! What a policy makes of a trace: the time to first token, and the prompt tokens that were cached, beside a bound.
//!
//! ```text
//! cargo bench --bench routing
//! cargo bench --bench routing -- --trace conversation.jsonl --requests 3000 --policies random,least_tokens
//! cargo bench --bench routing -- --slow-worker 0.5 --json routing.json
//! ```
//!
//! Every policy gets the same trace at the same times, with workers of its own that are started anew. The workers are
//! simulated: prefill has a prefix cache and one forward pass at a time. Lengths are scaled down and the workers slowed down
//! accordingly, so that the programs of the measurement take little of the time that is measured. The model says how fast
//! the workers must be to be as busy as asked under random choices, and what the best choice would make of them.
//!
//! | file | what lives there |
//! |---|---|
//! | `model` | the queueing model: the calibration and the bound |
//! | `fleet` | the simulated workers |
//! | `generator` | the trace of the project |
//! | `report` | the table and the JSON |
//! | `programs` | shared with the other benchmarks |

mod fleet;
pub mod generator;
pub mod model;
mod report;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use http::{HeaderMap, HeaderValue};
use mini_lb::bench::{
    Arrivals, Cut, Endpoint, Load, RequestSpec, Slo, Summary, Target, Trace, TracePrompt, Words,
};

use crate::programs::balancer::{MINI_LB, ReservedPort, TARGET_HELP, serving};
use crate::programs::machine::{machine, text};
use crate::programs::{named_command, write};
use fleet::Fleet;
use model::{Choice, Workers};

/// Tokens before a token whose attention takes as long as the rest of it, for a model of 8B parameters: 2 FLOP for each
/// parameter, and 4 x 4,096 x 32 for each token before.
const ATTENTION_TOKENS: f64 = 30_000.0;
/// Tokens of a forward pass in SGLang on a large GPU (`chunked_prefill_size`).
const CHUNK_TOKENS: f64 = 8_192.0;

/// The command line.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "routing",
    about = "Time to first token and cached tokens by policy, for a trace of requests",
    after_help = TARGET_HELP
)]
pub struct Arguments {
    /// The trace, as of `mini-lb bench`.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/traces/chat_and_tools.jsonl"))]
    pub trace: PathBuf,
    /// Requests at the beginning of the trace that are left out.
    #[arg(long, default_value_t = 0)]
    pub skip: usize,
    /// Upper bound of the requests after those.
    #[arg(long, default_value_t = 3000)]
    pub requests: usize,
    /// Time that the trace is given for each policy.
    #[arg(long, default_value_t = 60.0)]
    pub seconds: f64,
    /// Factor on the lengths of prompts and responses, and on the workers' caches.
    #[arg(long, default_value_t = 0.1)]
    pub token_scale: f64,
    /// Policies of mini-lb's prefill by name.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "random,round_robin,power_of_two,least_requests,least_tokens"
    )]
    pub policies: Vec<String>,
    /// Another balancer.
    #[arg(long, value_name = "NAME=COMMAND", value_parser = named_command)]
    pub target: Vec<(String, String)>,
    /// Part of the time in which prefill computes under random choices.
    #[arg(long, default_value_t = 0.87)]
    pub busy: f64,
    /// Prefill workers.
    #[arg(long, default_value_t = 4)]
    pub prefills: usize,
    /// Speed of the first prefill worker beside the others.
    #[arg(long, default_value_t = 1.0)]
    pub slow_worker: f64,
    /// Tokens that each prefill worker can cache, before the scale.
    #[arg(long, default_value_t = 1_000_000)]
    pub cache_tokens: usize,
    /// Longest response in tokens: decode is not what is measured.
    #[arg(long, default_value_t = 8)]
    pub output_tokens: usize,
    /// Send token ids, which not every balancer compares, in place of text.
    #[arg(long)]
    pub ids: bool,
    /// The mini-lb binary, by default the one that was built with this benchmark.
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_mini-lb"))]
    pub mini_lb: String,
    /// Write all measurements to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the trace of the project to this file, and measure nothing.
    #[arg(long, value_name = "FILE")]
    pub write_trace: Option<PathBuf>,
    /// The flag that cargo passes to every benchmark.
    #[arg(long, hide = true)]
    pub bench: bool,
}

/// Runs every policy, and reports the table at the end.
pub async fn run(arguments: Arguments, mut say: impl FnMut(String)) -> Result<(), String> {
    if let Some(path) = &arguments.write_trace {
        return write(
            path,
            &generator::trace(generator::SEED, generator::REQUESTS),
        );
    }
    let trace = Arc::new(trace(&arguments)?);
    let workers = workers(&arguments, &trace);
    let bound = model::replay(&trace, &workers, Choice::Greedy);
    let machine = machine(&[]);
    say(text(&machine));
    say(report::asked(&arguments, &trace, &workers));
    let mut readings = Vec::new();
    for (name, command) in targets(&arguments) {
        match measured(&arguments, &trace, &workers, &name, &command).await {
            Ok(summary) => {
                say(report::line(&name, &summary));
                readings.push((name, summary));
            }
            Err(error) => say(error),
        }
    }
    say(report::table(&trace, &workers, &bound, &readings));
    match &arguments.json {
        Some(path) => write(path, &report::json(&machine, &workers, &bound, &readings)),
        None => Ok(()),
    }
}

/// The trace in the time that it is given.
fn trace(arguments: &Arguments) -> Result<Trace, String> {
    let cut = Cut {
        skip: arguments.skip,
        requests: arguments.requests,
        speedup: 1.0,
        token_scale: arguments.token_scale,
    };
    let load = |cut| Trace::load(&arguments.trace, cut).map_err(|error| error.to_string());
    let span = load(cut)?.span().as_secs_f64();
    let mut trace = load(Cut {
        speedup: (span / arguments.seconds).max(f64::MIN_POSITIVE),
        ..cut
    })?;
    for request in &mut trace.requests {
        request.output_tokens = request.output_tokens.min(arguments.output_tokens);
    }
    Ok(trace)
}

fn workers(arguments: &Arguments, trace: &Trace) -> Workers {
    let mut speeds = vec![1.0; arguments.prefills.max(1)];
    speeds[0] = arguments.slow_worker;
    let workers = Workers {
        speeds,
        cache_tokens: (arguments.cache_tokens as f64 * arguments.token_scale) as usize,
        token_seconds: 0.0,
        attention_seconds: 0.0,
    };
    let attention = ATTENTION_TOKENS * arguments.token_scale;
    let fitted = model::calibrated(trace, &workers, attention, arguments.busy);
    // The simulator takes whole microseconds.
    let token_seconds = ((fitted.token_seconds * 1e6).round() / 1e6).max(1e-6);
    Workers {
        token_seconds,
        attention_seconds: token_seconds / attention,
        ..fitted
    }
}

/// Name and command of each target.
fn targets(arguments: &Arguments) -> Vec<(String, String)> {
    let policy = |policy: &String| {
        let command = format!(
            "{MINI_LB} --prefill-policy {policy} --decode-policy least_requests \
             --server-timing always --log-level warn"
        );
        (policy.clone(), command)
    };
    let policies = arguments.policies.iter().map(policy);
    policies.chain(arguments.target.iter().cloned()).collect()
}

async fn measured(
    arguments: &Arguments,
    trace: &Arc<Trace>,
    workers: &Workers,
    name: &str,
    command: &str,
) -> Result<Summary, String> {
    let chunk = (CHUNK_TOKENS * arguments.token_scale) as usize;
    let fleet = Fleet::start(&arguments.mini_lb, workers, chunk.max(1), 2)?;
    let files = tempfile::tempdir().map_err(|error| error.to_string())?;
    let port = ReservedPort::new()?;
    let mut command = fleet
        .of_roles()
        .command(command, &arguments.mini_lb, port.number());
    let log = files.path().join("log");
    let _program = serving(name, &mut command, &port, &log).await?;
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
    let tally = mini_lb::bench::run(target, &load, |_| {}).await;
    if let Some(error) = &tally.first_error {
        let said = fs::read_to_string(&log).unwrap_or_default();
        eprintln!("{name}: {error}\n{said}");
    }
    Ok(Summary::of(&tally))
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

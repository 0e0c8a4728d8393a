//! What a policy makes of a trace: the time to first token, and the prompt tokens that were cached, beside a bound.
//!
//! ```text
//! cargo bench --bench routing
//! cargo bench --bench routing -- --trace conversation.jsonl --requests 3000 --policies random,least_tokens
//! cargo bench --bench routing -- --slow-worker 0.5 --flush-at-half --json routing.json
//! cargo bench --bench routing -- --offline --trace conversation.jsonl
//! ```
//!
//! Every policy gets the same trace at the same times, with workers of its own that are started anew. The workers are
//! simulated: prefill has a prefix cache and one forward pass at a time, and is slow, so that the programs of the measurement
//! take little of the time that is measured. The model says how fast
//! the workers must be to be as busy as asked under random choices, and what the best choice would make of them.
//!
//! With `--offline` the code that chooses stands in front of a model of the workers, and time is virtual.
//!
//! | file | what lives there |
//! |---|---|
//! | `model` | the queueing model: the calibration and the bound |
//! | `engine` | a worker in virtual time, with forward passes |
//! | `cache` | the prefix cache of both |
//! | `offline` | a policy in front of such workers |
//! | `fleet` | the simulated workers |
//! | `measure` | one target under the trace |
//! | `generator` | the trace of the project |
//! | `report` | the table and the JSON |
//! | `programs` | shared with the other benchmarks |

mod cache;
mod engine;
mod fleet;
pub mod generator;
mod measure;
pub mod model;
pub mod offline;
mod report;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use mini_lb::bench::{Cut, Trace, Words};

use crate::programs::balancer::{MINI_LB, TARGET_HELP};
use crate::programs::machine::{machine, text};
use crate::programs::{named_command, write};
use measure::measured;
use model::{Choice, Outcome, Workers};
use offline::{Asking, Chooser, Setting};
use report::Row;

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
    #[arg(long, default_value_t = 1.0)]
    pub token_scale: f64,
    /// Policies of mini-lb's prefill by name.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "random,round_robin,power_of_two,least_requests,least_tokens,expected_ttft"
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
    /// Empty the caches of all prefill workers at half time.
    #[arg(long)]
    pub flush_at_half: bool,
    /// Give each request a prompt that shares nothing with others.
    #[arg(long)]
    pub unshared: bool,
    /// Tokens that each prefill worker can cache, before the scale.
    #[arg(long, default_value_t = 1_000_000)]
    pub cache_tokens: usize,
    /// Longest response in tokens: decode is not what is measured.
    #[arg(long, default_value_t = 8)]
    pub output_tokens: usize,
    /// Send token ids, which not every balancer compares, in place of text.
    #[arg(long)]
    pub ids: bool,
    /// Put mini-lb's policies in front of a model of the workers, in virtual time: seconds in place of minutes, and the same
    /// result each time. Other balancers are left out.
    #[arg(long)]
    pub offline: bool,
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

impl Arguments {
    /// Most tokens of a forward pass.
    pub fn chunk(&self) -> usize {
        ((CHUNK_TOKENS * self.token_scale) as usize).max(1)
    }
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
    let flush = arguments.flush_at_half.then(|| trace.span() / 2);
    let bound = model::replay(&trace, &workers, Choice::Greedy, flush);
    let machine = machine(&[]);
    say(text(&machine));
    say(report::asked(&arguments, &trace, &workers));
    let mut rows = rows(&arguments, &trace, &workers, &bound);
    if arguments.offline {
        rows.extend(offline_rows(&arguments, &trace, &workers)?);
        say(report::table(&trace, &rows));
        return Ok(());
    }
    let mut readings = Vec::new();
    for (name, command) in targets(&arguments) {
        match measured(&arguments, &trace, &workers, &name, &command).await {
            Ok(reading) => {
                say(report::line(&reading));
                readings.push(reading);
            }
            Err(error) => say(error),
        }
    }
    rows.extend(readings.iter().map(Row::measured));
    say(report::table(&trace, &rows));
    if arguments.flush_at_half {
        say(report::hundreds(&bound, &readings));
    }
    match &arguments.json {
        Some(path) => write(path, &report::json(&machine, &workers, &bound, &readings)),
        None => Ok(()),
    }
}

/// What the models say: the bound, the same with forward passes, and random choices, by which the model can be judged.
fn rows(arguments: &Arguments, trace: &Trace, workers: &Workers, bound: &Outcome) -> Vec<Row> {
    let flush = arguments.flush_at_half.then(|| trace.span() / 2);
    let passes = offline::replay(trace, setting(arguments, trace, workers), Chooser::Greedy);
    let random = model::replay(trace, workers, Choice::Random(1), flush);
    vec![
        Row::modelled("bound", bound),
        Row::modelled("bound, in passes", &passes),
        Row::modelled("random, modelled", &random),
    ]
}

fn offline_rows(
    arguments: &Arguments,
    trace: &Trace,
    workers: &Workers,
) -> Result<Vec<Row>, String> {
    let words = match arguments.ids {
        true => Words::Ids,
        false => Words::Text,
    };
    let requests = offline::routing_keys(trace, words);
    let setting = setting(arguments, trace, workers);
    let row = |name: &String| {
        let policy = offline::policy(name).ok_or_else(|| format!("no policy {name}"))?;
        let asking = Asking::new(policy, &requests, workers);
        let outcome = offline::replay(trace, setting, Chooser::Policy(Box::new(asking)));
        Ok(Row::modelled(name, &outcome))
    };
    arguments.policies.iter().map(row).collect()
}

/// The workers of a measurement, for the model with passes.
pub fn setting<'a>(arguments: &Arguments, trace: &Trace, workers: &'a Workers) -> Setting<'a> {
    Setting {
        workers,
        chunk: arguments.chunk(),
        flush: arguments.flush_at_half.then(|| trace.span() / 2),
    }
}

/// The trace in the time that it is given.
pub fn trace(arguments: &Arguments) -> Result<Trace, String> {
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
    for (number, request) in (1..).zip(&mut trace.requests) {
        if arguments.unshared {
            let blocks = 0..request.blocks.len() as u64;
            request.blocks = blocks.map(|block| (number << 32) + block).collect();
        }
        request.output_tokens = request.output_tokens.min(arguments.output_tokens);
    }
    Ok(trace)
}

/// Workers that are as busy as asked.
pub fn workers(arguments: &Arguments, trace: &Trace) -> Workers {
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
